"""Where an n-gram stands: documents that hold it, sources of a text, conjunctions within a window.

CNF queries and attribution follow infini-gram (2401.17377) and OLMoTrace (2504.07096), exactly rather than sampled.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from orrery.core.errors import ConfigError, CorruptionError, DataError
from orrery.ngram import within
from orrery.ngram.answers import CnfCount, Document, Range, Span
from orrery.ngram.threads import spread

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from orrery.ngram.shard import Shard

    Ids = Sequence[int] | NDArray[np.integer]

TERMS = 4096  # n-grams of one conjunction at most
_CHUNK = 1 << 20  # suffixes looked up at once


class Searched(Protocol):
    """What is asked of an index here."""

    folder: Path
    tokens: int
    documents_total: int
    doc_id: int
    shards: list[Shard]

    @property
    def catalogue(self) -> Catalogue:
        """The documents' offsets and names."""
        ...

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Tokens start..stop of the whole text."""
        ...

    def find(self, ids: Ids) -> list[Range]:
        """Where the n-gram stands in the order of every shard."""
        ...

    def matches(self, ids: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """For every token: hits, totals and lengths of the longest suffix before it, and its only next token or -1."""
        ...

    def count(self, ids: Ids) -> int:
        """How often the n-gram occurs."""
        ...

    def count_batch(self, queries: Iterable[Ids]) -> NDArray[np.int64]:
        """How often each n-gram occurs."""
        ...


class Catalogue:
    """Offsets and names of the documents, mapped."""

    def __init__(self, index: Searched) -> None:
        self.index = index
        count = index.documents_total
        self.offsets = self._map("documents.bin", count + 1)
        self.ends = self._map("names.idx", count + 1)
        names = index.folder / "names.bin"
        if not names.is_file() or names.stat().st_size != int(self.ends[-1]):
            self._damaged(names.name)
        self.names: Any = np.memmap(names, dtype=np.uint8, mode="r")
        if int(self.offsets[-1]) != index.tokens:
            self._damaged("documents.bin")

    def _map(self, name: str, length: int) -> NDArray[np.int64]:
        path = self.index.folder / name
        if not path.is_file() or path.stat().st_size != 8 * length:
            self._damaged(name)
        return np.asarray(np.memmap(path, dtype="<i8", mode="r"))

    def _damaged(self, name: str) -> None:
        raise CorruptionError(f"'{self.index.folder / name}' is damaged or missing; build the index again (or copy it again)")

    def numbers(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The documents that hold positions of the stream."""
        return np.searchsorted(self.offsets, positions, side="right") - 1

    def bounds(self, number: int) -> tuple[int, int]:
        """Start and stop of a document in the stream, both of which must stand at a mark.

        Raises:
            CorruptionError: they do not.
        """
        start, stop = int(self.offsets[number]), int(self.offsets[number + 1])
        sound = 0 <= start < stop <= self.index.tokens and int(self.index.read(start, start + 1)[0]) == self.index.doc_id
        if not sound or (stop < self.index.tokens and int(self.index.read(stop, stop + 1)[0]) != self.index.doc_id):
            self._damaged("documents.bin")
        return start, stop

    def name(self, number: int) -> str:
        """A document's name.

        Raises:
            CorruptionError: it does not match its checksum.
        """
        start, stop = int(self.ends[number]), int(self.ends[number + 1])
        record = bytes(self.names[start:stop]) if 0 <= start <= stop - 4 <= len(self.names) else b""
        if len(record) < 4 or zlib.crc32(record[:-4]) != int.from_bytes(record[-4:], "little"):
            self._damaged("names.bin")
        return record[:-4].decode("utf-8", "surrogatepass")


def name_record(name: str) -> bytes:
    """How a name lies in `names.bin`: UTF-8 and its CRC-32."""
    data = name.encode("utf-8", "surrogatepass")
    return data + zlib.crc32(data).to_bytes(4, "little")


def _positions(index: Searched, found: Range) -> Any:
    """Positions in the stream of the suffixes of a range, a million at a time."""
    base = sum(shard.n for shard in index.shards[: found.shard])
    for low in range(found.low, found.high, _CHUNK):
        yield base + index.shards[found.shard].run(within.positions, low, min(found.high, low + _CHUNK))


def documents(index: Searched, ids: Ids, limit: int, context: int | None) -> list[Document]:
    """See :meth:`orrery.ngram.index.Index.documents`."""
    if limit < 0 or (context is not None and context < 0):
        raise ConfigError(f"limit and context must not be negative, but are {limit} and {context}")
    chosen: dict[int, list[int]] = {}
    catalogue = index.catalogue
    for found in index.find(ids):
        if len(chosen) >= limit:
            break  # shards follow the order of documents
        shard: dict[int, list[int]] = {}
        for positions in _positions(index, found):
            positions.sort()
            numbers = catalogue.numbers(positions)
            distinct, firsts = np.unique(numbers, return_index=True)
            edges = [*firsts.tolist(), len(positions)]
            for k in range(min(len(distinct), limit)):
                shard.setdefault(int(distinct[k]), []).extend(positions[edges[k] : edges[k + 1]].tolist())
            for number in sorted(shard)[limit:]:
                del shard[number]
        chosen.update(shard)
    return [_document(index, number, sorted(chosen[number]), len(ids), context) for number in sorted(chosen)[:limit]]


def _document(index: Searched, number: int, places: list[int], length: int, context: int | None) -> Document:
    """A document with its text, or `context` ids to both sides of the first place."""
    start, stop = index.catalogue.bounds(number)
    first, last = start + 1, stop
    if context is not None and places:
        first, last = max(first, places[0] - context), min(stop, places[0] + length + context)
    offsets = [place - start - 1 for place in places]
    return Document(number, index.catalogue.name(number), start, stop, stop - start - 1, offsets, index.read(first, last), first - start - 1)


def document(index: Searched, number: int) -> Document:
    """See :meth:`orrery.ngram.index.Index.document`."""
    if not 0 <= number < index.documents_total:
        raise DataError(f"there is no document {number}; the index holds 0..{index.documents_total - 1}")
    return _document(index, number, [], 0, None)


def attribute(index: Searched, ids: Ids, min_length: int, limit: int, context: int | None) -> list[Span]:
    """See :meth:`orrery.ngram.index.Index.attribute`."""
    if min_length < 1:
        raise ConfigError(f"min_length must be 1 or more, not {min_length}")
    lengths = index.matches(ids)[2]
    ends = np.arange(len(lengths))
    starts = ends - lengths
    final = np.append(starts[1:] > starts[:-1], True) & (lengths >= min_length)
    spans = []
    for stop in np.flatnonzero(final).tolist():
        start = int(starts[stop])
        part = np.asarray(ids)[start:stop]
        spans.append(Span(start, stop, index.count(part), documents(index, part, limit, context) if limit else []))
    return spans


def count_cnf(
    index: Searched, clauses: Sequence[Sequence[Ids]], window: int, cap: int | None, anchor: int | None = None
) -> CnfCount:
    """See :meth:`orrery.ngram.index.Index.count_cnf`."""
    if not clauses or any(not clause for clause in clauses) or any(not len(term) for clause in clauses for term in clause):
        raise DataError("a conjunction needs at least one clause, each clause an n-gram, and each n-gram an id")
    terms = sum(map(len, clauses))
    if terms > TERMS:
        raise DataError(f"the conjunction has {terms} n-grams; at most {TERMS} are answered")
    if anchor is not None and not 0 <= anchor < len(clauses):
        raise ConfigError(f"anchor must be one of the {len(clauses)} clauses, counted from 0, not {anchor}")
    if window < 0 or (cap is not None and cap < 1):
        raise ConfigError(f"window must be 0 or more and cap 1 or more, not {window} and {cap}")
    listed = [term for clause in clauses for term in clause]
    counts = index.count_batch(listed)
    flat = np.concatenate([np.asarray(term, dtype=np.int64) for term in listed])
    offsets = np.cumsum([0, *map(len, listed)]).astype(np.int64)
    edges = np.cumsum([0, *map(len, clauses)]).astype(np.int64)
    sizes = [int(counts[a:b].sum()) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    rarest = int(np.argmin(sizes)) if anchor is None else anchor
    if not sizes[rarest]:
        return CnfCount(0, True)
    stride = 1 if cap is None else -(-sizes[rarest] // cap)
    hits = 0
    for number, shard in enumerate(index.shards):
        found: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        for term in clauses[rarest]:
            ranges = [r for r in index.find(term) if r.shard == number]
            base = sum(s.n for s in index.shards[:number])
            found = np.concatenate([found, *(part - base for r in ranges for part in _positions(index, r))])
        anchors = np.unique(found)[::stride]

        def part(first: int, last: int, shard: Any = shard, anchors: Any = anchors) -> int:
            return int(shard.run(within.near, flat, offsets, edges, rarest, anchors[first:last], window))

        hits += sum(spread(part, len(anchors), 256)) if len(anchors) else 0
    return CnfCount(hits * stride, stride == 1)
