"""Which document is trained on and which is held out: a pure function of the corpus' content.

Every document has a number u in [0, 1): the first eight bytes of the BLAKE2b of its text under a fixed salt. Copies of
a document share u and therefore the side. Rule `orrery-split-1`:

1. A document that makes up more than half of the corpus (all its copies together) is never held out whole.
2. The others are held out, in order of u, while u < 5 % and at most half of the corpus is held out, and also while
   less than 1 % of it is held out (so that a folder of ten files has a validation set too).
3. If the others together are less than 1 % of the corpus (a single book; a book and its licence), the corpus counts
   as one document and that is cut: the first 95 % are trained on, the tail is held out. The cut is at the first
   blank line in the next 2.5 %; where there is none, at the first line end there; else between two characters.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from orrery.core.errors import DataError
from orrery.data.text import Document, Tally, character_start

RULE = "orrery-split-1"
SHARE = 0.05  # of the documents are held out
LEAST = 0.01  # of the bytes are held out at least
PART = 1 << 16  # bytes; longer held-out documents are stored in parts of about this size
_PARAGRAPH = re.compile(rb"\n[ \t\r]*\n")
_LARGEST_SEARCH = 1 << 20  # bytes searched for a boundary at most


@dataclass(frozen=True)
class Split:
    """Held out is every document with u < `below`, except `whole`; or the tail of `cut` behind `offset` bytes."""

    below: int = 0  # u times 2^64
    whole: int = -1  # u of the document that is too large to be held out
    cut: int = -1  # u of the document that is cut
    offset: int = 0  # bytes of the cut document that are trained on
    boundary: str = ""  # paragraph | line | character: what the cut was made at

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; 64-bit numbers as text."""
        return {key: str(value) if key in ("below", "whole", "cut") else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Split:
        """Inverse of :meth:`to_dict`."""
        numbers = {key: int(data[key]) for key in ("below", "whole", "cut", "offset")}
        return cls(**numbers, boundary=str(data["boundary"]))

    def held_out(self, u: int) -> bool:
        """Whether the document with this u is held out whole."""
        return u < self.below and u != self.whole

    def describe(self) -> str:
        """One sentence for reports."""
        if self.cut >= 0:
            return f"one document, cut at a {self.boundary} boundary behind byte {self.offset}; the tail is validation"
        return f"by document hash; {100 * self.below / 2**64:.3g} % of the hash range is validation"


class Hash:
    """Running hash of one document: `update(text)` per piece, then `u`, `digest`, and `bytes`."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16, person=RULE.encode())
        self.bytes = 0

    def update(self, text: str) -> None:
        """Add the next piece."""
        data = text.encode("utf-8")
        self._hash.update(data)
        self.bytes += len(data)

    @property
    def digest(self) -> bytes:
        """Sixteen bytes that identify the text."""
        return self._hash.digest()

    @property
    def u(self) -> int:
        """The number that decides the side, times 2^64."""
        return int.from_bytes(self.digest[:8], "big")


def decide(us: array[int], sizes: array[int], share: float = SHARE) -> Split:
    """Rules 1 and 2 from every document's u and size in bytes; rule 3 as a Split whose `offset` is still 0.

    Raises:
        DataError: when there is no text.
    """
    import numpy

    every = numpy.frombuffer(us, dtype=numpy.uint64) if len(us) else numpy.empty(0, numpy.uint64)
    distinct, inverse = numpy.unique(every, return_inverse=True)
    if distinct.size == 0:
        raise DataError("the corpus holds no text")
    size = numpy.bincount(inverse, weights=numpy.frombuffer(sizes, dtype=numpy.uint64).astype(float)).astype(
        numpy.int64
    )
    total = int(size.sum())
    giants = distinct[size * 2 > total]
    whole = int(giants[0]) if giants.size else -1
    small = size * 2 <= total
    if int(size[small].sum()) < LEAST * total:
        return Split(cut=whole)
    us_small, cumulative = distinct[small], numpy.cumsum(size[small])
    by_share = int(numpy.searchsorted(us_small, numpy.uint64(int(share * 2**64))))
    by_least = int(numpy.searchsorted(cumulative, LEAST * total)) + 1
    fits = int(numpy.searchsorted(cumulative, total / 2, side="right"))
    count = min(max(by_share, by_least), fits)
    if count == by_share:
        return Split(below=int(share * 2**64), whole=whole)
    return Split(below=int(us_small[count - 1]) + 1, whole=whole)


def locate_cut(document: Document, size: int, share: float = SHARE) -> tuple[int, str]:
    """Where rule 3 cuts a document of `size` bytes: (offset in bytes, kind of boundary).

    Raises:
        DataError: when it is too short to be cut.
    """
    low = int((1 - share) * size)
    low = max(1, min(low, size - 1))
    high = min(size, low + min(_LARGEST_SEARCH, max(8, int(share * size / 2))))
    start, window = max(0, low - 4), bytearray()
    position = 0
    for piece in document.pieces(Tally()):
        data = piece.encode("utf-8")
        if position + len(data) > start and position < high + 4:
            window += data[max(0, start - position) : high + 4 - position]
        position += len(data)
    data = bytes(window)
    offset, boundary = cut_within(data, low - start, high - start)
    if start + offset >= size:
        offset = character_start(data, len(data) - 1)  # the last character alone
    if not 0 < start + offset < size or data[offset] & 0xC0 == 0x80:
        raise DataError(f"the corpus is one text of {size} bytes, too short to hold out a part of it for validation")
    return start + offset, boundary


def cut_within(data: bytes, low: int, high: int) -> tuple[int, str]:
    """The first blank line's end in [low, high] of UTF-8 text, else a line's end, else the next character's start."""
    for match in _PARAGRAPH.finditer(data, max(0, low - 2), min(high, len(data))):
        if low <= match.end() < len(data):
            return match.end(), "paragraph"
    line = data.find(b"\n", max(0, low - 1), high) + 1
    if low <= line < len(data) and line > 0:
        return line, "line"
    while low < len(data) and data[low] & 0xC0 == 0x80:
        low += 1
    return low, "character"


def head(pieces: Iterable[str], offset: int) -> Iterator[str]:
    """The pieces of a text up to `offset` bytes."""
    for piece in pieces:
        if offset <= 0:
            return
        data = piece.encode("utf-8")
        yield piece if len(data) <= offset else data[:offset].decode("utf-8")
        offset -= len(data)


def tail(pieces: Iterable[str], offset: int) -> Iterator[str]:
    """The pieces of a text from `offset` bytes on."""
    for piece in pieces:
        data = piece.encode("utf-8")
        if offset < len(data):
            yield piece if offset <= 0 else data[offset:].decode("utf-8")
        offset -= len(data)


def parts(pieces: Iterable[str], size: int, part: int = PART) -> Iterator[str]:
    """A held-out text of `size` bytes as texts of about `part` bytes, cut at blank lines where there are some.

    So a sample of whole stored documents can be drawn, and bootstrapped over, from a corpus of one long text.
    """
    count = max(1, round(size / part))
    target = -(-size // count)
    buffer = b""
    for piece in pieces:
        buffer += piece.encode("utf-8")
        while count > 1 and len(buffer) > 2 * target:
            end, _ = cut_within(buffer, target, target + target // 2)
            yield buffer[:end].decode("utf-8")
            buffer = buffer[end:]
    while count > 1 and len(buffer) > 1.5 * target:
        end, _ = cut_within(buffer, target, target + target // 4)
        if end >= len(buffer):
            break
        yield buffer[:end].decode("utf-8")
        buffer = buffer[end:]
    if buffer:
        yield buffer.decode("utf-8")
