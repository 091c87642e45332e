"""The file of a shard: tokens, suffix array, checksums and guide, one after the other in 64-bit little-endian words.

    tokens     (n + 1) ids of 1, 2 or 4 bytes: MARK d1 .. MARK d2 .. MARK; the mark is all ones
    suffixes   n positions of b = bits(n - 1) bits each, by rank, packed without gaps
    crowds     what follows the most frequent contexts, counted beforehand: see :class:`Crowds`
    checksums  one word for each page (512 bytes) of the sections above, each of which begins a page
    guide      the first 8 bytes of every 64th suffix

n counts the tokens and one mark per document; the last mark closes the stream and has no suffix. For 31 million tokens
of two bytes that is 2 + 25/8 + 0.3 = 5.4 bytes a token.

Opening maps the file and reads nothing of it. Pages are checked when a query first touches them.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from orrery.core.errors import CorruptionError, StorageError
from orrery.ngram import within
from orrery.ngram.compiled import Kernel, available, kernel
from orrery.ngram.memory import occupied
from orrery.ngram.pages import PAGE_LOG, check_page, page_sum
from orrery.ngram.threads import spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAGE = 1 << PAGE_LOG  # words
GUIDE_LOG = 6
CROWD = 1 << 14  # occurrences
_CROWD_LEAST = 256  # different continuations
_CROWD_DEPTH = 6  # tokens
_AT_ONCE = 1 << 14  # pages read at once where all are
BLOCK = 1 << 20  # suffixes packed at once; a multiple of 64 * PAGE, so that every block fills whole pages


@dataclass(frozen=True)
class Layout:
    """Where the sections of a shard begin, in words.

    n: suffixes. width: bytes of a token. doc_id: the id that stands for the mark in queries. vocab_size: number of ids.
    nodes, entries: of the crowds.
    """

    n: int
    width: int
    doc_id: int
    vocab_size: int
    nodes: int = 0
    entries: int = 0

    @property
    def bits(self) -> int:
        """Of a packed position."""
        return max(1, (self.n - 1).bit_length())

    @property
    def per_word(self) -> int:
        """Tokens in a word."""
        return 8 // self.width

    @property
    def suffixes(self) -> int:
        """Where the suffix array begins."""
        return _whole_pages(-(-(self.n + 1) // self.per_word))

    @property
    def crowds(self) -> int:
        """Where the crowds begin."""
        return _whole_pages(self.suffixes + (self.n * self.bits + 63) // 64)

    @property
    def crowd_tokens(self) -> int:
        """Where their tokens begin."""
        return self.crowds + 2 * self.nodes + 1

    @property
    def crowd_counts(self) -> int:
        """Where their counts begin."""
        return self.crowd_tokens - (-self.entries // self.per_word)

    @property
    def checksums(self) -> int:
        """Where the checksums begin; everything before is checked by them."""
        return _whole_pages(self.crowd_counts - (-self.entries // 2))

    @property
    def pages(self) -> int:
        """Pages with a checksum."""
        return self.checksums // PAGE

    @property
    def guide(self) -> int:
        """Where the guide begins."""
        return self.checksums + self.pages

    @property
    def keys(self) -> int:
        """Entries of the guide."""
        return -(-self.n >> GUIDE_LOG) if self.n else 0

    @property
    def words(self) -> int:
        """Of the whole file."""
        return self.guide + self.keys

    def entry(self) -> dict[str, Any]:
        """What the index's description says of the shard."""
        return {"tokens": self.n, "nodes": self.nodes, "entries": self.entries}

    def meta(self) -> NDArray[np.int64]:
        """The numbers that kernels read: :mod:`orrery.ngram.pages`."""
        bits = 8 * self.width
        numbers = [
            self.n,
            self.per_word.bit_length() - 1,
            self.per_word - 1,
            bits.bit_length() - 1,
            (1 << bits) - 1,
            self.suffixes,
            self.bits,
            self.checksums,
            self.guide,
            self.keys,
            GUIDE_LOG,
            self.doc_id,
            self.vocab_size,
            self.per_word,
            0,
            0,
        ]
        return np.array(numbers, dtype=np.int64)


def _whole_pages(words: int) -> int:
    return -(-words // PAGE) * PAGE


def token_type(width: int) -> np.dtype[Any]:
    """How tokens lie in the file."""
    return np.dtype({1: "u1", 2: "<u2", 4: "<u4"}[width])


class Shard:
    """An open shard.

    Args:
        path: its file.
        layout: from the index's description.
        plain: run the loops in Python even where numba is installed.

    Raises:
        StorageError: it cannot be opened.
        CorruptionError: it has another size than its layout.
    """

    def __init__(self, path: Path, layout: Layout, plain: bool = False) -> None:
        self.path, self.layout, self.n = path, layout, layout.n
        self.plain = plain or not available()
        try:
            with open(path, "rb", buffering=0) as file:
                size, wanted = os.fstat(file.fileno()).st_size, layout.words * 8
                mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size == wanted else None
        except OSError as error:
            raise StorageError(f"cannot read '{path}': {error.strerror or error}") from error
        if mapped is None:
            raise CorruptionError(f"'{path}' is damaged: {size} bytes instead of {wanted}; build the index again")
        self.words: Any = np.frombuffer(mapped, dtype="<i8")

    @cached_property
    def arguments(self) -> tuple[Any, Any, Any]:
        """What every kernel takes first."""
        ok: Any = np.zeros(self.layout.pages + 1, dtype=np.uint8)
        if self.plain:  # loops in Python read single items, which memoryviews hand out as Python integers
            return memoryview(self.words), memoryview(ok), self.layout.meta().tolist()
        return self.words, ok, self.layout.meta()

    def run(self, function: Any, *args: Any) -> Any:
        """Call a kernel of :mod:`orrery.ngram.search` on this shard.

        Raises:
            CorruptionError: a page that the kernel touched does not match its checksum.
        """
        arguments = self.arguments
        result = (function.plain if self.plain else function.fast)(*arguments, *args)
        if arguments[1][-1]:
            self.damaged()
        return result

    @property
    def ranks(self) -> int:
        """One more than the largest rank that :meth:`orrery.ngram.index.Index.find` may give."""
        return self.n

    def run_with_meta(self, function: Any, *args: Any) -> Any:
        """Call a kernel that needs only the numbers of the layout."""
        return (function.plain if self.plain else function.fast)(self.arguments[2], *args)

    def damaged(self) -> None:
        """Say so, and keep saying so."""
        raise CorruptionError(
            f"'{self.path}' is damaged: a page of it does not match its checksum; build the index again (or copy it again)"
        )

    def continuations(self, low: int, high: int, depth: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Stored tokens behind the `depth` tokens that ranks low..high share, ascending, and how often each follows."""
        if high - low >= CROWD:
            known = self._crowd(low, depth)
            if known is not None and int(known[1].sum()) == high - low:
                return known
        room = np.empty((2, min(high - low, self.layout.vocab_size)), dtype=np.int64)
        found = self.run(within.next_tokens, low, high, depth, *room)
        return room[0, :found], room[1, :found]

    def _crowd(self, low: int, depth: int) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Continuations that were counted beforehand; None where they were not."""
        layout = self.layout
        keys = self._section(layout.crowds, "<i8", 0, layout.nodes)
        row = int(np.searchsorted(keys, _crowd_key(low, depth)))
        if row == layout.nodes or keys[row] != _crowd_key(low, depth):
            return None
        first, last = self._section(layout.crowds + layout.nodes, "<i8", row, row + 2).tolist()
        if not 0 <= first < last <= layout.entries:
            self.damaged()
        tokens = self._section(layout.crowd_tokens, token_type(layout.width), first, last)
        return tokens.astype(np.int64), self._section(layout.crowd_counts, "<u4", first, last).astype(np.int64)

    def _section(self, word: int, kind: Any, first: int, last: int) -> NDArray[Any]:
        """Items first..last of a section, checked."""
        size = np.dtype(kind).itemsize
        if last > first:
            self.run(check_words, word + first * size // 8, word - (-last * size // 8))
        return np.frombuffer(self.words, dtype=kind, count=last - first, offset=8 * word + first * size)

    def check(self) -> None:
        """Compare every page with its checksum, now.

        Raises:
            CorruptionError: one differs.
        """
        words = np.memmap(self.path, dtype="<i8", mode="r")
        for first in range(0, self.layout.pages, _AT_ONCE):
            last = min(self.layout.pages, first + _AT_ONCE)
            sums = np.empty(last - first, dtype=np.int64)
            call(sum_pages, np.asarray(words[first * PAGE : last * PAGE]), sums, last - first, first)
            if not np.array_equal(sums, words[self.layout.checksums + first : self.layout.checksums + last]):
                self.damaged()

    @cached_property
    def tokens(self) -> NDArray[np.unsignedinteger[Any]]:
        """Stored tokens (n + 1,), straight from the file: not checked."""
        kind = token_type(self.layout.width)
        return np.asarray(np.memmap(self.path, dtype=kind, mode="r", shape=(self.n + 1,)))


class ShardWriter:
    """Completes a file that holds the tokens of a shard: pads them, then appends suffixes, checksums and guide.

    Args:
        room: bytes that may be held at once; None: the tokens fit into memory, and are there already.
    """

    def __init__(self, path: Path, layout: Layout, room: int | None = None) -> None:
        self.path, self.layout, self.room = path, layout, room

    def tokens(self) -> NDArray[np.unsignedinteger[Any]]:
        """The tokens (n + 1,), mapped."""
        kind = token_type(self.layout.width)
        return np.asarray(np.memmap(self.path, dtype=kind, mode="r", shape=(self.layout.n + 1,)))

    def append(self, order: Iterator[NDArray[np.integer]]) -> None:
        """Append the suffix array.

        Args:
            order: positions by rank, in blocks of 2^20, the last one shorter.

        Raises:
            StorageError: the disk is full.
        """
        layout = self.layout
        self._sums = np.empty(layout.crowds // PAGE, dtype=np.int64)
        self._guide = np.empty(layout.keys, dtype=np.int64)
        try:
            with open(self.path, "rb+") as file:
                file.truncate(layout.suffixes * 8)
                self._sum_tokens(self._sums)
                file.seek(layout.suffixes * 8)
                self._append_suffixes(file, order, self._sums, self._guide)
                if self.room is not None:
                    self._look_up(self._guide, self.room)
        except OSError as error:
            raise StorageError(f"cannot write '{self.path}': {error.strerror or error}") from error

    def finish(self) -> Layout:
        """Append everything else; the layout with the size of the crowds.

        Raises:
            StorageError: the disk is full.
        """
        crowds = Crowds(self.path, self.layout, self.room)
        layout = replace(self.layout, nodes=len(crowds.keys), entries=crowds.entries)
        table = crowds.words(layout)
        more = np.empty(layout.pages - len(self._sums), dtype=np.int64)
        call(sum_pages, table, more, len(more), len(self._sums))
        try:
            with open(self.path, "ab") as file:
                for section in (table, self._sums, more, self._guide):
                    section.astype("<i8", copy=False).tofile(file)
        except OSError as error:
            raise StorageError(f"cannot write '{self.path}': {error.strerror or error}") from error
        return layout

    def _sum_tokens(self, sums: NDArray[np.int64]) -> None:
        last = self.layout.suffixes // PAGE
        for first in range(0, last, _AT_ONCE):
            count = min(_AT_ONCE, last - first)
            words = np.fromfile(self.path, dtype="<i8", count=count * PAGE, offset=first * PAGE * 8)
            call(sum_pages, words, sums[first:], count, first)

    def _look_up(self, guide: NDArray[np.int64], room: int) -> None:
        """Replace positions by the keys of their suffixes, reading the tokens in their order."""
        batch, kind, stretch = max(1 << 12, room // 48), token_type(self.layout.width), 1 << 20
        for first in range(0, len(guide), batch):
            part = guide[first : first + batch]
            ascending = np.argsort(part)
            edges = np.searchsorted(part, np.arange(0, self.layout.n + stretch, stretch), sorter=ascending)
            for k in np.flatnonzero(np.diff(edges)).tolist():
                chosen, start = ascending[edges[k] : edges[k + 1]], k * stretch
                tokens = np.fromfile(
                    self.path, dtype=kind, count=min(stretch + 8, self.layout.n + 1 - start), offset=start * kind.itemsize
                )
                part[chosen] = keys(tokens, part[chosen] - start, self.layout.per_word)

    def _append_suffixes(
        self, file: BinaryIO, order: Iterator[NDArray[np.integer]], sums: NDArray[np.int64], guide: NDArray[np.int64]
    ) -> None:
        layout, tokens = self.layout, None if self.room is not None else self.tokens()
        buffer = np.zeros(BLOCK * layout.bits // 64, dtype=np.int64)
        done, page = 0, layout.suffixes // PAGE
        for block in order:
            call(pack, np.ascontiguousarray(block), buffer, layout.bits)
            words = -(-len(block) * layout.bits // 64)
            last = done + len(block) == layout.n
            padded = layout.crowds - page * PAGE if last else words
            piece = buffer[:padded] if padded <= len(buffer) else np.concatenate([buffer, np.zeros(padded - len(buffer), np.int64)])
            call(sum_pages, piece, sums[page:], padded // PAGE, page)
            piece.astype("<i8", copy=False).tofile(file)
            page += padded // PAGE
            first = done >> GUIDE_LOG
            chosen = block[:: 1 << GUIDE_LOG]
            guide[first : first + len(chosen)] = chosen if tokens is None else keys(tokens, chosen, layout.per_word)
            done += len(block)


class Crowds:
    """What follows contexts that occur so often, and are followed by so many tokens, that counting takes milliseconds.

    Contexts of up to 6 tokens that occur 16,384 times or more and have more than 256 continuations, so that any other
    next-token distribution takes some ten thousand reads at most, whatever the size of the index. Sections:

        keys     one word a context: first rank and length
        starts   nodes + 1 words: where the entries of a context begin
        tokens   entries, in the width of tokens
        counts   entries, u32
    """

    def __init__(self, path: Path, layout: Layout, room: int | None = None) -> None:
        whole = np.memmap(path, dtype="<i8", mode="r")
        self._pages: Any = whole._mmap  # type: ignore[attr-defined]  # numpy's name for what it mapped
        self._room = None if room is None or whole.nbytes < room // 2 else room
        self._keeps = room is not None and 8 * layout.suffixes <= room // 2
        self._limit = occupied() + (room or 0) * 3 // 4
        mapped = np.asarray(whole)
        flags = np.ones(layout.crowds // PAGE + 1, dtype=np.uint8)
        self._arguments = (mapped, flags, layout.meta())
        self._layout = layout
        self.keys: list[int] = []
        self._tokens: list[NDArray[np.int64]] = []
        self._counts: list[NDArray[np.int64]] = []
        frontier = [(0, layout.n)] if layout.n >= CROWD and available() else []
        for depth in range(_CROWD_DEPTH + 1):
            frontier = self._deepen(frontier, depth)
        order = np.argsort(np.array(self.keys, dtype=np.int64))
        self.keys, self._tokens, self._counts = ([each[i] for i in order] for each in (self.keys, self._tokens, self._counts))

    @property
    def entries(self) -> int:
        """Of all contexts together."""
        return sum(map(len, self._tokens))

    def _deepen(self, frontier: list[tuple[int, int]], depth: int) -> list[tuple[int, int]]:
        """Count behind contexts of one length; those one longer that are frequent."""
        layout, later = self._layout, []

        def part(first: int, last: int) -> list[Any]:
            return [self._behind(a, b, depth) for a, b in frontier[first:last]]

        counted = [each for piece in spread(part, len(frontier), 1) for each in piece] if frontier else []
        for (low, _), (tokens, counts) in zip(frontier, counted, strict=True):
            ends = low + np.cumsum(counts)
            if len(tokens) > _CROWD_LEAST:
                self.keys.append(_crowd_key(low, depth))
                self._tokens.append(tokens)
                self._counts.append(counts)
            often = (counts >= CROWD) & ((tokens != (1 << 8 * layout.width) - 1) | (depth == 0))
            later += list(zip((ends - counts)[often].tolist(), ends[often].tolist(), strict=True))
        return later

    def _behind(self, low: int, high: int, depth: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens behind the `depth` that ranks low..high share, ascending, and how often each follows.

        Where memory is bounded, a part at a time. Runs of equal tokens are read at their ends only, so where all tokens have room
        only pages of the suffixes are let go, of which few are read; else so many ranks at a time that the pages they touch fit.
        """
        parts: list[NDArray[np.int64]] = []
        step = high - low
        most = min(step, self._layout.vocab_size)
        if self._room is not None and self._keeps:
            most = min(most, max(4, self._room >> 23))
        elif self._room is not None:
            step = max(256, self._room >> 18)
        while low < high:
            room = np.empty((2, most), dtype=np.int64)
            found = room[:, : within.next_tokens.fast(*self._arguments, low, min(high, low + step), depth, *room)]
            low += int(found[1].sum())
            if parts and parts[-1][0, -1] == found[0, 0]:
                parts[-1][1, -1] += found[1, 0]
                found = found[:, 1:]
            if found.shape[1]:
                parts.append(found.copy())
            self._let_go()
        tokens, counts = np.concatenate(parts, axis=1)
        return tokens, counts

    def _let_go(self) -> None:
        """Give pages back that were read, where memory is bounded and they take too much of it."""
        if self._room is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        if not self._keeps:
            self._pages.madvise(mmap.MADV_DONTNEED)
        elif occupied() > self._limit:
            start = -(-8 * self._layout.suffixes // mmap.PAGESIZE) * mmap.PAGESIZE
            self._pages.madvise(mmap.MADV_DONTNEED, start, len(self._pages) - start)

    def words(self, layout: Layout) -> NDArray[np.int64]:
        """All sections, padded to whole pages."""
        table = np.zeros(layout.checksums - layout.crowds, dtype="<i8")
        data, base = table.view(np.uint8), layout.crowds
        starts = np.cumsum([0, *map(len, self._tokens)])
        parts = (
            (base, self.keys, "<i8"),
            (base + layout.nodes, starts, "<i8"),
            (layout.crowd_tokens, np.concatenate([*self._tokens, []]), token_type(layout.width)),
            (layout.crowd_counts, np.concatenate([*self._counts, []]), "<u4"),
        )
        for word, values, kind in parts:
            raw = np.asarray(values).astype(kind).view(np.uint8)
            data[8 * (word - base) : 8 * (word - base) + len(raw)] = raw
        return table


def _crowd_key(low: int, depth: int) -> int:
    return low << 8 | depth


def call(function: Kernel, *args: Any) -> None:
    """Call a kernel that fills arrays; without numba over memoryviews, whose items do not overflow."""
    function.fast(*args) if available() else function.plain(*(memoryview(a) if isinstance(a, np.ndarray) else a for a in args))


def keys(tokens: NDArray[Any], positions: NDArray[np.integer], count: int) -> NDArray[np.int64]:
    """The first 8 bytes of suffixes as signed numbers whose order is that of the tokens; behind the end stand zeros."""
    bits = 64 // count
    places = positions.astype(np.int64)
    key = tokens[places].astype(np.int64) - (1 << (bits - 1))
    for d in range(1, count):
        inside = places + d < len(tokens)
        key = (key << bits) + np.where(inside, tokens[np.minimum(places + d, len(tokens) - 1)].astype(np.int64), 0)
    return key


@kernel
def pack(block, buffer, bits):  # type: ignore[no-untyped-def]
    """Write numbers of `bits` bits without gaps into words."""
    word, filled, at = np.int64(0), 0, 0
    for i in range(len(block)):
        value = np.int64(block[i])
        word |= value << filled
        filled += bits
        if filled >= 64:
            buffer[at] = word
            at += 1
            filled -= 64
            word = value >> (bits - filled) if filled > 0 else np.int64(0)
    if filled > 0:
        buffer[at] = word
        at += 1
    for k in range(at, len(buffer)):
        buffer[k] = 0


def blocks(order: NDArray[np.integer]) -> Iterator[NDArray[np.integer]]:
    """An array in the blocks that :meth:`ShardWriter.write` takes."""
    for start in range(0, len(order), BLOCK):
        yield order[start : start + BLOCK]


def flush(path: Path) -> None:
    """Hand a file's bytes to the disk."""
    with open(path, "rb+") as handle:
        os.fsync(handle.fileno())


@kernel
def sum_pages(W, sums, pages, number):  # type: ignore[no-untyped-def]
    """The checksum of every page of W, the first of which is page `number` of the file."""
    for page in range(pages):
        sums[page] = page_sum(W, page << PAGE_LOG, (page + 1) << PAGE_LOG, number + page)


@kernel
def check_words(W, ok, meta, first, last):  # type: ignore[no-untyped-def]
    """Check the pages of words first..last."""
    for page in range(first >> PAGE_LOG, ((last - 1) >> PAGE_LOG) + 1):
        if ok[page] == 0:
            check_page(W, ok, meta[7], page)
