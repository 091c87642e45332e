"""Shards that keep their suffix array only for every so-many-th token, and neither it nor the tokens as such: less than half the file.

    levels   a wavelet matrix of the tokens behind all contexts, the contexts sorted by what they end with (8/7 bits an id's bit);
             tokens as codes 0..V - 1 in the order of the stored ones, in which the mark comes last
    marks    a vector of bits: which rows belong to every K-th context, or the last one
    places   the numbers of those contexts, by row, packed
    rows     the rows of every K-th context, by place, packed: where reading the text begins
    ids      one word for each id, and one more: the first row that ends with it, and where the last level has it
    checksums  as in :mod:`orrery.ngram.shard`

Counting needs no suffix array (Ferragina and Manzini 2000): an n-gram's rows follow from those of the n-gram without its last token.
Where it stands is found by at most K - 1 steps forward through the text. n tokens of V ids take n (8/7 (bits of V + 1) + 2 bits(n) / K)
bits: for 31 million tokens of 16,384 ids 2.5 bytes a token at K = 32, in place of 5.4. The kernels are in
:mod:`orrery.ngram.sampled_loops`; they answer the calls of :mod:`orrery.ngram.search`, `within` and `batches`, the same answers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from orrery.core.errors import ConfigError, StorageError
from orrery.ngram import batches, sampled_loops, search, within
from orrery.ngram.shard import PAGE, Shard, call, pack, sum_pages, token_type
from orrery.ngram.threads import spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST, MOST = 2, 1024  # tokens between two that are sampled
IDS = 1 << 22  # of a vocabulary, at most: each has a word of its own
_BLOCK_BITS = 448
_CHUNK = _BLOCK_BITS << 9  # tokens that are divided at once
_AT_ONCE = 1 << 13  # pages
BLOCK = 1 << 17  # places that are listed at once
_INSTEAD = {
    search.find: sampled_loops.find,
    search.prob: sampled_loops.prob,
    search.inf_prob: sampled_loops.inf_prob,
    search.score: sampled_loops.score,
    within.next_tokens: sampled_loops.next_tokens,
    within.find_next: sampled_loops.find_next,
    within.inf_find_next: sampled_loops.inf_find_next,
    within.near: sampled_loops.near,
    batches.find_many: sampled_loops.find_many,
    batches.follow_many: sampled_loops.follow_many,
}


def check_sample(sample: int | None, vocab_size: int) -> None:
    """Refuse what cannot be built.

    Raises:
        ConfigError: a distance outside 2..1024, or too many ids.
    """
    if sample is None:
        return
    if not LEAST <= sample <= MOST:
        raise ConfigError(f"sample must lie between {LEAST} and {MOST}, not {sample}; leave it out for the whole suffix array")
    if vocab_size > IDS:
        raise ConfigError(f"a sampled index takes vocabularies of at most {IDS:,} ids, not {vocab_size:,}; leave sample out")


def _whole_pages(words: int) -> int:
    return -(-words // PAGE) * PAGE


@dataclass(frozen=True)
class SampledLayout:
    """Where the sections of a sampled shard begin, in words.

    n: contexts, one for each token but the closing mark. width: bytes of a token while the shard is built. sample: tokens between two
    that are kept. last: the row of context n. zeros: of each level. What a build finds out is 0 and () before it.
    """

    n: int
    width: int
    doc_id: int
    vocab_size: int
    sample: int
    last: int = 0
    zeros: tuple[int, ...] = ()

    @property
    def levels(self) -> int:
        """Bits of an id."""
        return max(1, (self.vocab_size - 1).bit_length())

    @property
    def stride(self) -> int:
        """Words of a vector of n bits; a bound may stand behind its last bit."""
        return _whole_pages(8 * (self.n // _BLOCK_BITS + 1))

    @property
    def marks(self) -> int:
        """Where the vector of sampled rows begins."""
        return self.levels * self.stride

    @property
    def places(self) -> int:
        """Where the numbers of the sampled contexts begin."""
        return self.marks + self.stride

    @property
    def sampled(self) -> int:
        """Contexts that are kept: multiples of `sample`, and the last one."""
        return -(-self.n // self.sample)

    @property
    def place_bits(self) -> int:
        """Of the number of a sampled context."""
        return max(1, (self.sampled - 1).bit_length())

    @property
    def rows(self) -> int:
        """Where the rows of contexts 1, K, 2K, ... begin."""
        return self.places + _whole_pages(self.sampled * self.place_bits // 64 + 2)

    @property
    def row_bits(self) -> int:
        """Of a row."""
        return max(1, (self.n - 1).bit_length())

    @property
    def starts(self) -> int:
        """Contexts whose rows are kept."""
        return self.n // self.sample + 1

    @property
    def ids(self) -> int:
        """Where the table of ids begins."""
        return self.rows + _whole_pages(self.starts * self.row_bits // 64 + 2)

    @property
    def checksums(self) -> int:
        """Where the checksums begin; everything before is checked by them."""
        return self.ids + _whole_pages(self.vocab_size + 1)

    @property
    def pages(self) -> int:
        """Pages with a checksum."""
        return self.checksums // PAGE

    @property
    def words(self) -> int:
        """Of the whole file."""
        return self.checksums + self.pages

    def meta(self) -> NDArray[np.int64]:
        """The numbers that kernels read."""
        numbers = [
            self.n,
            self.levels,
            self.stride,
            self.marks,
            (1 << 8 * self.width) - 1,
            self.places,
            self.place_bits,
            self.checksums,
            self.rows,
            self.row_bits,
            self.ids,
            self.doc_id,
            self.vocab_size,
            self.sample,
            self.last,
            self.sampled,
            *self.zeros,
        ]
        return np.array(numbers, dtype=np.int64)

    def entry(self) -> dict[str, Any]:
        """What the index's description says of the shard."""
        return {"tokens": self.n, "last": self.last, "zeros": list(self.zeros)}


class SampledShard(Shard):
    """An open shard that keeps every so-many-th place: answers the kernels of a :class:`~orrery.ngram.shard.Shard` by its own."""

    layout: Any

    def __init__(self, path: Path, layout: SampledLayout, plain: bool = False) -> None:
        super().__init__(path, layout, plain)  # type: ignore[arg-type]  # what it reads of a layout this one has
        self._own = threading.local()

    @property
    def ranks(self) -> int:
        """One more than the largest rank that :meth:`orrery.ngram.index.Index.find` may give."""
        return 1 << 62

    def run(self, function: Any, *args: Any) -> Any:
        """Answer a kernel of plain shards.

        Raises:
            CorruptionError: a page that was touched does not match its checksum.
            ConfigError: the question needs the whole suffix array.
        """
        own = _INSTEAD.get(function)
        if own is not None:
            return super().run(own, self._work(), *args)
        if function is within.positions:
            return self._positions(*args)
        if function is within.read:
            return self._read(*args)
        raise ConfigError("this index keeps a sampled suffix array, which cannot be read in its order; build it without `sample`")

    def _work(self) -> Any:
        """This thread's place to put down what is still to be visited."""
        work: Any = getattr(self._own, "work", None)
        if work is None:
            work = np.zeros(256, dtype=np.int64)
            self._own.work = work = memoryview(work) if self.plain else work
        return work

    def continuations(self, low: int, high: int, depth: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Stored tokens behind rows low..high, ascending, and how often each follows."""
        room = np.empty((2, min(high - low, self.layout.vocab_size)), dtype=np.int64)
        found = self.run(within.next_tokens, low, high, depth, *room)
        return room[0, :found], room[1, :found]

    def _positions(self, low: int, high: int) -> NDArray[np.int64]:
        found = np.empty(high - low, dtype=np.int64)

        def part(first: int, last: int) -> None:
            super(SampledShard, self).run(sampled_loops.positions, self._work(), low + first, low + last, found[first:last])

        spread(part, high - low, 256)
        return found

    def _read(self, start: int, stop: int) -> NDArray[np.int64]:
        found = np.empty(stop - start, dtype=np.int64)

        def part(first: int, last: int) -> None:
            super(SampledShard, self).run(sampled_loops.read, self._work(), start + first, start + last, found[first:last])

        spread(part, stop - start, 4096)
        return found


class SampledWriter:
    """Writes a sampled shard.

    Holds 8 bytes for each place that is kept, and little beside.
    """

    def __init__(self, path: Path, layout: SampledLayout) -> None:
        self.path, self.layout = path, layout
        top = layout.vocab_size - 1  # the mark's code, which may have one bit more than stored tokens
        self._kind = token_type(1 if top < 1 << 8 else 2 if top < 1 << 16 else 4)

    def write(self, order: Iterator[tuple[NDArray[np.integer], NDArray[Any]]]) -> SampledLayout:
        """Write the file; its layout with what was found out.

        Args:
            order: places in the n tokens read backwards (:func:`write_backward`), sorted by what stands there, in blocks, and the stored
                tokens in front of each, a mark in front of the first.

        Raises:
            StorageError: the disk is full.
        """
        behind, kept = (self.path.with_suffix(f".{name}") for name in ("behind", "kept"))
        try:
            places, rows = self._list(order, behind, kept)
            counts = self._count(behind)
            with open(self.path, "wb") as file:
                zeros = self._levels(file, behind, counts)
                self._vector(file, kept, np.dtype("u1"), 0, None, 0)
                layout = replace(self.layout, last=int(self._last), zeros=zeros)
                self._packed(file, places, layout.place_bits, layout.rows)
                self._packed(file, rows, layout.row_bits, layout.ids)
                table = np.zeros(_whole_pages(layout.vocab_size + 1), dtype="<i8")
                table[: layout.vocab_size + 1] = _id_table(counts, layout.levels)
                table.tofile(file)
            self._seal(layout)
        except OSError as error:
            raise StorageError(f"cannot write '{self.path}': {error.strerror or error}; free some space and run again") from error
        finally:
            for each in (behind, kept, behind.with_suffix(".next")):
                each.unlink(missing_ok=True)
        return layout

    def _list(self, order: Iterator[tuple[Any, Any]], behind: Path, kept: Path) -> tuple[NDArray[Any], NDArray[Any]]:
        """Write down, row by row, the id behind its context and whether it is sampled; sampled numbers and the contexts' rows."""
        layout, n, k = self.layout, self.layout.n, self.layout.sample
        places = np.empty(layout.sampled, dtype=np.uint32)
        rows = np.empty(layout.starts, dtype=np.uint32)
        row = filled = 0
        with open(behind, "wb") as ids, open(kept, "wb") as flags:
            for block, tokens in order:
                where = block.astype(np.int64)
                marked = tokens == (1 << 8 * layout.width) - 1
                codes = np.where(marked, layout.vocab_size - 1, tokens.astype(np.int64) - (tokens > layout.doc_id))
                codes.astype(self._kind).tofile(ids)
                context = n - where
                chosen = (context % k == 0) | (context == n)
                chosen.astype(np.uint8).tofile(flags)
                sampled = -(-context[chosen] // k) - 1
                places[filled : filled + len(sampled)] = sampled
                filled += len(sampled)
                starts = np.flatnonzero((context % k == 0) | (context == 1))
                first = context[starts]
                rows[np.where(first == 1, 0, first // k)] = row + starts
                ends = np.flatnonzero(context == n)
                if len(ends):
                    self._last = row + int(ends[0])
                row += len(where)
        return places, rows

    def _count(self, behind: Path) -> NDArray[np.int64]:
        """How often each id occurs."""
        counts = np.zeros(self.layout.vocab_size, dtype=np.int64)
        with open(behind, "rb") as file:
            for chunk in _chunks(file, self._kind):
                counts += np.bincount(chunk, minlength=self.layout.vocab_size)
        return counts

    def _levels(self, file: BinaryIO, behind: Path, counts: NDArray[np.int64]) -> tuple[int, ...]:
        """Write the wavelet matrix, from a file that is divided once for each level; the zeros of each."""
        ids, zeros = np.arange(len(counts)), []
        for level in range(self.layout.levels):
            shift = self.layout.levels - 1 - level
            zeros.append(int(counts[(ids >> shift) & 1 == 0].sum()))
            after = behind.with_suffix(".next") if shift else None
            self._vector(file, behind, self._kind, shift, after, zeros[-1])
            if after is not None:
                after.replace(behind)
        return tuple(zeros)

    def _vector(self, file: BinaryIO, source: Path, kind: np.dtype[Any], shift: int, after: Path | None, zeros: int) -> None:
        """Write bit `shift` of all numbers of a file as a vector; the numbers go to the file `after`, zeros first."""
        size, written, total = self.layout.n, 0, 0
        if after is not None:
            with open(after, "wb") as made:
                made.truncate(size * kind.itemsize)
        with open(source, "rb") as given, open(after or source, "rb+" if after else "rb") as low, open(
            after or source, "rb+" if after else "rb"
        ) as high:
            high.seek(zeros * kind.itemsize)
            for chunk in _chunks(given, kind):
                words = np.zeros(8 * -(-len(chunk) // _BLOCK_BITS), dtype=np.int64)
                parts = np.empty((2, len(chunk) + 1), dtype=kind)
                none = np.zeros(1, dtype=np.int64)
                call(sampled_loops.divide, chunk, shift, words, total, *parts, none)
                count = int(none[0])
                total += len(chunk) - count
                words.astype("<i8", copy=False).tofile(file)
                written += len(words)
                if after is not None:
                    parts[0, :count].tofile(low)
                    parts[1, : len(chunk) - count].tofile(high)
        rest = np.zeros(self.layout.stride - written, dtype="<i8")
        if size % _BLOCK_BITS == 0:
            rest[0] = total  # the block that only a bound behind the last bit is in
        rest.tofile(file)

    def _packed(self, file: BinaryIO, values: NDArray[Any], bits: int, end: int) -> None:
        """Write packed numbers, then zeros up to a word of the file."""
        for first in range(0, len(values), BLOCK):
            part = values[first : first + BLOCK]
            buffer = np.zeros(-(-len(part) * bits // 64), dtype=np.int64)
            call(pack, part, buffer, bits)
            buffer.astype("<i8", copy=False).tofile(file)
        np.zeros(end - file.tell() // 8, dtype="<i8").tofile(file)

    def _seal(self, layout: SampledLayout) -> None:
        """Append the checksums."""
        sums = np.empty(layout.pages, dtype=np.int64)
        for first in range(0, layout.pages, _AT_ONCE):
            count = min(_AT_ONCE, layout.pages - first)
            call(sum_pages, np.fromfile(self.path, dtype="<i8", count=count * PAGE, offset=first * PAGE * 8), sums[first:], count, first)
        with open(self.path, "ab") as file:
            sums.astype("<i8", copy=False).tofile(file)


def with_before(tokens: NDArray[Any], order: NDArray[np.integer]) -> Iterator[tuple[NDArray[np.integer], NDArray[Any]]]:
    """Sorted places in blocks, each with the tokens in front of them; a mark in front of the first."""
    for start in range(0, len(order), BLOCK):
        where = order[start : start + BLOCK]
        before = tokens[np.maximum(where, 1) - 1]
        before[where == 0] = np.iinfo(tokens.dtype).max
        yield where, before


def write_backward(source: Path, start: int, layout: SampledLayout, target: Path) -> None:
    """Copy the n tokens from `start` on, the last one first.

    Raises:
        StorageError: the disk is full.
    """
    kind, stretch = token_type(layout.width), 1 << 20
    try:
        with open(target, "wb") as file:
            for stop in range(layout.n, 0, -stretch):
                first = max(0, stop - stretch)
                part = np.fromfile(source, dtype=kind, count=stop - first, offset=(start + first) * kind.itemsize)
                part[::-1].tofile(file)
    except OSError as error:
        raise StorageError(f"cannot write '{target}': {error.strerror or error}; free some space and run again") from error


def _chunks(file: BinaryIO, kind: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    while len(chunk := np.fromfile(file, dtype=kind, count=_CHUNK)):
        yield chunk


def _id_table(counts: NDArray[np.int64], levels: int) -> NDArray[np.int64]:
    """For each id, and one more: rows that end with a smaller one, and where it begins in the last level, which is ordered by its bits
    read backwards."""
    ids, backward = np.arange(len(counts)), np.zeros(len(counts), dtype=np.int64)
    for bit in range(levels):
        backward |= ((ids >> bit) & 1) << (levels - 1 - bit)
    order = np.argsort(backward)
    begins = np.zeros(len(counts) + 1, dtype=np.int64)
    begins[order] = np.cumsum(counts[order]) - counts[order]
    return np.concatenate([[0], np.cumsum(counts)]) | begins << 32
