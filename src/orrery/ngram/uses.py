"""Questions about a text that an index answers: was it in the training data, how new is it, how predictable is it.

    contamination(index, documents)     which documents of an evaluation set stand in the training corpus
    novelty(index, texts)               share of a text's n-grams that the corpus does not hold, by n
    agreement(index, texts)             how often the ∞-gram foresees the next token, by the length of the matching suffix

A text is a string (encoded with the index's tokenizer) or an array of ids. All three read a text once: for every position
the index gives the longest suffix of what stands before it that occurs in the corpus, L(t); an n-gram that ends at t occurs
if L(t) >= n. Nothing is sampled.

Papers: contamination by a share of n-grams as in PaLM (2204.02311: at least 70 % of the 8-grams), and by a verbatim span as
in GPT-3 (2005.14165) and GPT-4; novelty 2406.13069; agreement Infini-gram 2401.17377, section 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from orrery.core.errors import ConfigError, DataError

LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 32, 50)
EDGES = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 64, 128)


def encode(index: Any, text: Any) -> np.ndarray:
    """Ids (n,) of a text: a string through the index's tokenizer, anything else as ids.

    Raises:
        DataError: a string, and the index has no tokenizer.
    """
    if isinstance(text, str):
        if index.tokenizer is None:
            raise DataError("the index was built without a tokenizer, so it cannot encode text; give ids")
        return np.asarray(index.tokenizer.encode(text)).astype(np.int64)
    return np.asarray(text, dtype=np.int64).reshape(-1)


def _all(index: Any, texts: Iterable[Any]) -> list[np.ndarray]:
    """A list of texts, a TokenFile (its documents without their marks), or any iterable of either kind of text."""
    if isinstance(texts, str):
        raise DataError("give a list of texts, not one string")
    if hasattr(texts, "documents") and hasattr(texts, "document"):
        return [np.asarray(texts.document(number))[1:].astype(np.int64) for number in range(texts.documents)]
    return [encode(index, text) for text in texts]


def _longest(index: Any, ids: np.ndarray) -> np.ndarray:
    """L(t) for t = 1..T, (T,): the longest suffix of ids[:t] that occurs."""
    return np.asarray(index.matches(ids)[2])[1:]


@dataclass(frozen=True)
class DocumentOverlap:
    """One document of the evaluation set.

    document: its number. share: of its n-grams that the corpus holds (of a document shorter than n: 1 if it occurs whole).
    covered: share of its tokens that lie in such an n-gram. longest: of its verbatim spans, in tokens, at start..stop.
    contaminated: by the thresholds of the report.
    """

    document: int
    tokens: int
    share: float
    covered: float
    longest: int
    start: int
    stop: int
    contaminated: bool


@dataclass(frozen=True)
class Contamination:
    """An evaluation set beside a corpus. A document is contaminated if at least `share` of its n-grams occur in the corpus, or
    a verbatim span of at least `span` tokens does."""

    n: int
    share: float
    span: int
    documents: list[DocumentOverlap]

    @property
    def contaminated(self) -> list[int]:
        """Numbers of the contaminated documents."""
        return [document.document for document in self.documents if document.contaminated]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with totals: `total`, `contaminated`, `rate`, `token_rate` (of all tokens, how many are covered)."""
        tokens = sum(document.tokens for document in self.documents)
        covered = sum(document.covered * document.tokens for document in self.documents)
        dirty = self.contaminated
        return {
            **asdict(self),
            "total": len(self.documents),
            "contaminated": dirty,
            "rate": len(dirty) / max(1, len(self.documents)),
            "token_rate": covered / max(1, tokens),
        }


def contamination(index: Any, documents: Iterable[Any], *, n: int = 8, share: float = 0.7, span: int = 50) -> Contamination:
    """Look for the documents of an evaluation set in a training corpus.

    Args:
        index: of the training corpus (:func:`orrery.ngram.open`).
        documents: texts, arrays of ids, or a TokenFile; the index's tokenizer.
        n: length of the n-grams, in tokens of the index: 8 suits words and their parts; for bytes take 40.
        share, span: the thresholds (see :class:`Contamination`).

    Raises:
        ConfigError: for a length below 1 or a share outside 0..1.
        DataError: for no documents, or ids of another vocabulary.
    """
    if n < 1 or span < 1 or not 0 < share <= 1:
        raise ConfigError(f"n {n} and span {span} must be at least 1, and share {share} must lie above 0 and up to 1")
    rows = []
    for number, ids in enumerate(_all(index, documents)):
        if not len(ids):
            rows.append(DocumentOverlap(number, 0, 0.0, 0.0, 0, 0, 0, False))
            continue
        longest, least = _longest(index, ids), min(n, len(ids))
        hits = longest[least - 1 :] >= least
        stop = int(longest.argmax()) + 1
        length = int(longest[stop - 1])
        found = float(hits.mean())
        covered = _covered(np.flatnonzero(hits) + least, least, len(ids))
        dirty = found >= share or length >= span
        rows.append(DocumentOverlap(number, len(ids), found, covered, length, stop - length, stop, dirty))
    if not rows:
        raise DataError("the evaluation set holds no document")
    return Contamination(n, share, span, rows)


def _covered(stops: np.ndarray, length: int, size: int) -> float:
    """Share of 0..size that lies in one of the stretches of `length` that end at `stops`."""
    edges = np.zeros(size + 1, dtype=np.int64)
    np.add.at(edges, stops - length, 1)
    np.add.at(edges, stops, -1)
    return float((np.cumsum(edges[:-1]) > 0).mean())


@dataclass(frozen=True)
class Novelty:
    """How much of some texts a corpus does not hold.

    new: n -> share of their n-grams that the corpus does not hold (lengths that no text has are left out).
    longest: for every text, its longest verbatim span in tokens. mean_suffix: mean of L(t).
    """

    texts: int
    tokens: int
    new: dict[int, float]
    longest: list[int]
    mean_suffix: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the keys of `new` become strings."""
        return {**asdict(self), "new": {str(n): share for n, share in self.new.items()}}


def novelty(index: Any, texts: Iterable[Any], lengths: Iterable[int] = LENGTHS) -> Novelty:
    """Share of the n-grams of texts (say, of what a model wrote) that a corpus does not hold.

    Held-out human text of the same kind, measured alike, is what the numbers are to be read against.

    Raises:
        ConfigError: for a length below 1.
        DataError: for no text.
    """
    wanted = sorted(set(lengths))
    if not wanted or wanted[0] < 1:
        raise ConfigError(f"lengths must be 1 or more, not {wanted}")
    found, total, longest, suffixes = dict.fromkeys(wanted, 0), dict.fromkeys(wanted, 0), [], []
    for ids in _all(index, texts):
        if not len(ids):
            longest.append(0)
            continue
        each = _longest(index, ids)
        longest.append(int(each.max()))
        suffixes.append(each)
        for n in wanted:
            total[n] += max(0, len(ids) - n + 1)
            found[n] += int((each[n - 1 :] >= n).sum())
    if not suffixes:
        raise DataError("there is no text to measure")
    joined = np.concatenate(suffixes)
    new = {n: 1 - found[n] / total[n] for n in wanted if total[n]}
    return Novelty(len(longest), len(joined), new, longest, float(joined.mean()))


@dataclass(frozen=True)
class AgreementRow:
    """Tokens whose context had an effective n from `low` to `high` (None: no end).

    agreement: share of them that the ∞-gram gives more than half. probability: mean of what it gives them. sparse: share of
    sparse contexts; sparse_agreement: agreement among those (None: there are none).
    """

    low: int
    high: int | None
    tokens: int
    agreement: float
    probability: float
    sparse: float
    sparse_agreement: float | None


@dataclass(frozen=True)
class Agreement:
    """The ∞-gram's agreement with texts, in all and by effective n."""

    texts: int
    tokens: int
    agreement: float
    sparse: float
    sparse_agreement: float | None
    mean_n: float
    rows: list[AgreementRow]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def agreement(index: Any, texts: Iterable[Any], edges: Iterable[int] = EDGES) -> Agreement:
    """How often the next token is the one that the ∞-gram expects (probability above one half), by effective n.

    Run on human and on machine text, the two differ: what a model writes by taking likely tokens agrees more, and its
    agreement need not grow with the length of the suffix.

    Args:
        edges: effective n at which a row begins, ascending; a first row holds what lies below.

    Raises:
        ConfigError: when the edges do not ascend from 1.
        DataError: for no text.
    """
    marks = list(edges)
    if marks != sorted(set(marks)) or (marks and marks[0] < 1):
        raise ConfigError(f"edges must ascend from 1 or more, not {marks}")
    scores = [index.score(ids) for ids in _all(index, texts) if len(ids)]
    if not scores:
        raise DataError("there is no text to measure")
    p, n, sparse = (np.concatenate([np.asarray(getattr(one, name)) for one in scores]) for name in ("prob", "n", "sparse"))
    place, rows = np.searchsorted(marks, n, side="right"), []
    for number, low in enumerate([0, *marks]):
        chosen = place == number
        if chosen.any():
            high = marks[number] - 1 if number < len(marks) else None
            rows.append(AgreementRow(low, high, int(chosen.sum()), *_agree(p[chosen], sparse[chosen])))
    overall, _, share, among = _agree(p, sparse)
    return Agreement(len(scores), len(p), overall, share, among, float(n.mean()), rows)


def _agree(p: np.ndarray, sparse: np.ndarray) -> tuple[float, float, float, float | None]:
    right = p > 0.5
    among = float(right[sparse].mean()) if sparse.any() else None
    return float(right.mean()), float(p.mean()), float(sparse.mean()), among
