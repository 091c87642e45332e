"""Marks: ids that text never produces and that play a role, such as `mask` in masked language modelling.

A tokenizer has one such id always, the document's. Encoders and encoder-decoders need more: `pad`, `class` (before a
text), `separator` (after it), `mask`, and for span corruption one `span-0`, `span-1`, ... per gap. Files made elsewhere
bring some (`[MASK]`, `<mask>`); :func:`with_marks` gives any tokenizer those that it lacks, behind its own ids, so that
ids of text stay what they were.

A spec of a tokenizer names them behind plus signs: `bpe:8192+mask`, `bytes+spans-100`.

Roles: pad, unknown, class, separator, mask, span-N. `class` and `separator` are never missing in practice: the
document's id takes their place where a tokenizer has none of its own (:func:`frame_ids`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from orrery.core.errors import DataError
from orrery.data.tokenizers import ROLES, Frame, Stream, Tokenizer

SPAN = "span-"
_ROLE = re.compile(rf"{'|'.join(ROLES)}|{SPAN}\d+")


class MarkedTokenizer(Tokenizer):
    """A tokenizer with further marks behind its ids.

    base: what encodes text. roles: the marks that are added, in order; the first gets id `base.vocab_size`.
    """

    def __init__(self, base: Tokenizer, roles: Sequence[str]) -> None:
        for role in roles:
            if not _ROLE.fullmatch(role):
                raise DataError(f"'{role}' is no role of a mark; roles are {', '.join(ROLES)} and {SPAN}N")
        taken = [role for role in roles if role in base.marks]
        if taken or len(set(roles)) < len(roles):
            raise DataError(f"the tokenizer '{base.name}' has the mark '{(taken or list(roles))[0]}' already")
        self.base, self.roles = base, tuple(roles)
        self.name = base.name
        self.vocab_size, self.doc_id = base.vocab_size + len(self.roles), base.doc_id
        self.lossless, self.unknown_id = base.lossless, base.unknown_id

    @property
    def marks(self) -> dict[str, int]:
        """Ids by role, the base's own among them."""
        return self.base.marks | {role: self.base.vocab_size + rank for rank, role in enumerate(self.roles)}

    @property
    def frame(self) -> Frame | None:
        """The base's."""
        return self.base.frame

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, (n,)."""
        return self.base.encode(text).astype(self.dtype)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of several texts."""
        return [ids.astype(self.dtype) for ids in self.base.encode_batch(texts)]

    def encode_places(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a text, (n,), and the characters that each comes from, (n,2)."""
        ids, places = self.base.encode_places(text)
        return ids.astype(self.dtype), places

    def stream(self) -> Stream:
        """A decoder for which a mark is what an id out of range is to the base: U+FFFD."""
        return self.base.stream()

    def _content(self) -> dict[str, Any]:
        return {"kind": "marked", "roles": list(self.roles), "base": self.base._content(), "base_name": self.base.name}


def spans(count: int) -> tuple[str, ...]:
    """The roles of `count` gaps."""
    return tuple(f"{SPAN}{number}" for number in range(count))


def parse_roles(written: Sequence[str]) -> tuple[str, ...]:
    """Roles as a tokenizer's spec has them behind plus signs: `mask`, `pad`, and `spans-100` for a hundred gaps."""
    found: list[str] = []
    for role in written:
        count = role.removeprefix("spans-")
        found += spans(int(count)) if count != role and count.isdecimal() else [role]
    return tuple(found)


def with_marks(tokenizer: Tokenizer, roles: Sequence[str]) -> Tokenizer:
    """A tokenizer that has every mark of `roles`: itself where it has them all."""
    base = tokenizer.base if isinstance(tokenizer, MarkedTokenizer) else tokenizer
    had = tokenizer.roles if isinstance(tokenizer, MarkedTokenizer) else ()
    missing = tuple(role for role in dict.fromkeys(roles) if role not in tokenizer.marks)
    return tokenizer if not missing else MarkedTokenizer(base, (*had, *missing))


def frame_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    """(what stands before a text, what stands after it): `class` and `separator`, or the document's id."""
    marks = tokenizer.marks
    return marks.get("class", tokenizer.doc_id), marks.get("separator", tokenizer.doc_id)


def house_frame(tokenizer: Tokenizer, end: int | None = None, bare: bool = False) -> Frame:
    """The marks of texts where no file says them: one between a pair's. end: another mark behind texts. bare: none stands before."""
    before, after = frame_ids(tokenizer)
    after = after if end is None else end
    return Frame(() if bare else (before,), (after,), after)
