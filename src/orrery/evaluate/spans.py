"""Spans in tag sequences, and their F1: what taggers are judged by.

Schemes: "bio" (B- begins, I- goes on; also known as IOB2), "bioes" (and E- ends, S- stands alone; also with L- and U- for these,
as BILOU has them), "plain" (every token has a label of its own, as parts of speech: no spans). A span is (type, first token, one
behind the last).

Reading: as the CoNLL scorer does: I-X that nothing of its type comes before begins a span, so that broken sequences have a
reading too (:func:`broken` says where they break). The F1 of a corpus is micro-averaged: spans right over spans
predicted (precision) and over spans there are (recall); a span counts when its type and both ends agree.
Oracle of the tests: seqeval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from orrery.core.errors import DataError

SCHEMES = ("bio", "bioes", "plain")
OUTSIDE = "O"
_SAME = {"L": "E", "U": "S"}  # BILOU's names


class Span(NamedTuple):
    """A typed stretch of tokens, [first, last)."""

    type: str
    first: int
    last: int


class Score(NamedTuple):
    """Counts of spans, and what follows from them. Without any span in either, F1 is 1."""

    right: int
    predicted: int
    true: int

    @property
    def precision(self) -> float:
        """Share of predicted spans that are right; 1 when nothing is predicted and nothing was there."""
        return self.right / self.predicted if self.predicted else float(not self.true)

    @property
    def recall(self) -> float:
        """Share of true spans that are found."""
        return self.right / self.true if self.true else float(not self.predicted)

    @property
    def f1(self) -> float:
        """2 right / (predicted + true)."""
        total = self.predicted + self.true
        return 2 * self.right / total if total else 1.0


@dataclass(frozen=True)
class SpanReport:
    """F1 of a corpus: over all spans, by type, and the counts of every sentence (for intervals)."""

    overall: Score
    types: dict[str, Score]
    sentences: tuple[Score, ...]
    tokens_right: float  # share of tokens whose tag is right

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        types = {
            name: {"f1": s.f1, "precision": s.precision, "recall": s.recall, "spans": s.true}
            for name, s in self.types.items()
        }
        return {
            "f1": self.overall.f1,
            "precision": self.overall.precision,
            "recall": self.overall.recall,
            "spans": self.overall.true,
            "token_accuracy": self.tokens_right,
            "types": types,
        }


def split_tag(tag: str) -> tuple[str, str]:
    """("B", "LOC") of "B-LOC"; ("O", "") of "O"; a prefix alone ("B") has the type "_"; BILOU's L and U are E and S."""
    prefix, dash, kind = tag.partition("-")
    return _SAME.get(prefix, prefix), kind if dash else ("" if tag == OUTSIDE else "_")


def scheme_of(tags: Sequence[Sequence[str]]) -> str:
    """The scheme that sequences are written in, from the prefixes they use."""
    prefixes = {split_tag(tag)[0] for row in tags for tag in row}
    if prefixes <= {"B", "I", OUTSIDE} and prefixes & {"B", "I"}:
        return "bio"
    return "bioes" if prefixes <= {"B", "I", "E", "S", OUTSIDE} and prefixes & {"E", "S"} else "plain"


def spans(tags: Sequence[str]) -> list[Span]:
    """The spans of a sentence in either scheme, in order."""
    found: list[Span] = []
    first, kind, before = 0, "", OUTSIDE
    for position, tag in enumerate([*tags, OUTSIDE]):
        prefix, now = split_tag(tag)
        goes_on = prefix in ("I", "E") and before in ("B", "I") and now == kind
        if kind and not goes_on:
            found.append(Span(kind, first, position))
        if prefix == OUTSIDE:
            kind = ""
        elif not goes_on:
            first, kind = position, now
        before = prefix
    return found


def broken(tags: Sequence[str], scheme: str) -> int | None:
    """The first position that no correct sequence of the scheme has, or None.

    Raises:
        DataError: an unknown scheme.
    """
    if scheme not in SCHEMES:
        raise DataError(f"no scheme '{scheme}'; there are {', '.join(SCHEMES)}")
    if scheme == "plain":
        return None
    known = {"B", "I", OUTSIDE} if scheme == "bio" else {"B", "I", "E", "S", OUTSIDE}
    before, kind = OUTSIDE, ""
    for position, tag in enumerate(tags):
        prefix, now = split_tag(tag)
        inside = before in ("B", "I") and (scheme == "bio" or kind != "")
        follows = prefix in ("I", "E")
        wrong = prefix not in known or (follows and not (inside and now == kind))
        if scheme == "bioes" and inside and not follows:
            wrong = True  # a span that began must end
        if wrong:
            return position
        before, kind = prefix, now
    return len(tags) - 1 if scheme == "bioes" and before in ("B", "I") else None


def score_spans(true: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> SpanReport:
    """Compare tag sequences, sentence by sentence.

    Raises:
        DataError: sentences of different lengths.
    """
    if len(true) != len(predicted):
        raise DataError(f"{len(true)} sentences, but {len(predicted)} predictions")
    sentences, right, claimed, there = [], Counter[str](), Counter[str](), Counter[str]()
    tokens = equal = 0
    for number, (wanted, found) in enumerate(zip(true, predicted, strict=True), 1):
        if len(wanted) != len(found):
            raise DataError(f"sentence {number} has {len(wanted)} tags, its prediction {len(found)}")
        a, b = set(spans(wanted)), set(spans(found))
        sentences.append(Score(len(a & b), len(b), len(a)))
        right.update(span.type for span in a & b)
        claimed.update(span.type for span in b)
        there.update(span.type for span in a)
        tokens += len(wanted)
        equal += sum(x == y for x, y in zip(wanted, found, strict=True))
    types = {kind: Score(right[kind], claimed[kind], there[kind]) for kind in sorted(there | claimed)}
    overall = Score(right.total(), claimed.total(), there.total())
    return SpanReport(overall, types, tuple(sentences), equal / tokens if tokens else 1.0)
