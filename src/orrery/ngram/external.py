"""Suffix arrays of texts larger than memory: pieces are sorted one after the other and merged, exactly, for any text.

Paper: Parallel External Memory Suffix Sorting (Kaerkkaeinen, Kempa and Puglisi 2015), after Ferragina, Gagie and Manzini
2012. Pieces are taken from the right. A piece T[b..e) is sorted in memory by induced sorting; where two of its suffixes
run into its end, one bit for each position says whether the suffix there is above T[e..] or below, and splits the last
token's bucket in two, so that no comparison reaches behind the piece. Then all that stands to the right of the piece goes
by, from its end: the rank of T[j..] among the piece's suffixes follows from that of T[j+1..] by one step of backward search,

    rank(j) = starts[T[j]] + (suffixes k of the piece with T[k-1] = T[j] and k's rank < rank(j+1))  (+ 1 for the last token)

and what is kept of it is how many suffixes fall into each *gap* between two neighbours of the piece, and a bit for each
position: above T[b..] or not, for the next piece. At last the pieces' orders are merged by their gaps without looking
at the text at all.

N tokens, P pieces of M tokens. Time O(N) for sorting and O(N P / 2) steps of backward search, whatever the text is;
memory O(M); on the disk 5 bytes a token beside text and result. What was finished is kept: a build that is killed goes on
with the piece it stood at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from orrery.core.errors import CorruptionError, StorageError
from orrery.core.files import read_json, write_json
from orrery.ngram.external_loops import (
    above_end,
    above_first,
    code_gaps,
    count_codes,
    fill_guide,
    go_by,
    list_before,
    merge,
    plan_guide,
    rank_of,
    split_class,
    tally,
    unite_class,
    z_values,
)
from orrery.ngram.memory import release
from orrery.ngram.shard import call
from orrery.ngram.suffixes import suffix_array
from orrery.ngram.threads import spread, workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONGEST = (1 << 32) - 2  # tokens of one text: gaps are counted in 32 bits
COUNTED = 1 << 22  # ids up to which each is counted; of more, those of a piece are replaced by their ranks
_NONE = (1 << 31) - 1  # no rank
_STREAMS = 16  # stretches of the text that go by at once in a thread, so that their reads of memory overlap
_STRIDE = 1 << 14  # tokens of each at a time
_APART = 320  # between two, so that what is read of them together does not fall on the same lines of the cache
_READ = 1 << 20  # tokens read at a time where they are read in order


def bytes_per_token(width: int, vocab_size: int) -> float:
    """Memory that a token of a piece takes while it is sorted, or while the rest goes by."""
    dense = max(width, 2) if width < 4 else 4
    return max(dense + 8.25, 2 * dense + 5.5) + (0 if vocab_size <= COUNTED else 32)


class Pieces:
    """The suffixes of a file of tokens in order, by pieces.

    Args:
        folder: for what is kept between the steps; another text must not be sorted there.
        path: a file that begins with the tokens.
        kind: their type. total: how many. bound: no token but the mark (all ones) is as large.
        size: tokens of a piece, at most.
        tell: called with shares of the work, which sum to 1.
        closed: the last token closes the text: the suffix that is it alone is left out. Of a text that is not closed the
            tokens in front of its suffixes are kept too: see :meth:`before`.
    """

    def __init__(
        self,
        folder: Path,
        path: Path,
        kind: np.dtype[Any],
        total: int,
        bound: int,
        size: int,
        tell: Callable[[float], None],
        closed: bool = True,
    ) -> None:
        self._closed = closed
        self.folder, self.path, self.kind, self.total, self.bound = folder, path, kind, total, bound
        count = -(-total // max(8, size // 8 * 8))
        each = -(-total // count) + 7 & ~7
        self.edges = [min(total, each * k) for k in range(-(-total // each))] + [total]
        behind = sum(total - edge for edge in self.edges[1:])
        self._cost = 4.0 * total + behind  # sorting a token takes as long as four go by
        self._tell = tell
        self._table: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.edges) - 1

    def blocks(self, length: int) -> Iterator[NDArray[np.int64]]:
        """Positions of all suffixes in order (of a closed text but the last token's alone), in blocks of `length`, the last one shorter.

        Raises:
            StorageError: the disk is full.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            done = self._resume()
            for number in range(len(self) - 1 - done, -1, -1):
                self._piece(number)
                release()
                write_json(self.folder / "stage.json", {"edges": self.edges, "done": len(self) - number})
                self._file("above", number + 1).unlink(missing_ok=True)
            yield from self._merged(length)
        except OSError as error:
            raise StorageError(
                f"cannot write '{self.folder}': {error.strerror or error}; free some space and run again"
            ) from error

    def remove(self) -> None:
        """Drop what was kept."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _resume(self) -> int:
        """Pieces that are done."""
        with suppress(CorruptionError, StorageError):
            stage = read_json(self.folder / "stage.json")
            if isinstance(stage, dict) and stage.get("edges") == self.edges:
                done = int(stage["done"])
                for number in range(len(self) - done, len(self)):
                    self._progress(number)
                return done
        for name in self.folder.iterdir():
            name.unlink()
        return 0

    def _progress(self, number: int, tokens: int | None = None) -> None:
        """Say that a piece was sorted (tokens None: and that everything went by it)."""
        first, last = self.edges[number : number + 2]
        cost = 4 * (last - first) + (self.total - last) if tokens is None else tokens
        self._tell(cost / self._cost)

    # ---------------------------------------------------------------- one piece

    def _piece(self, number: int) -> None:
        first, last = self.edges[number : number + 2]
        alphabet = self._alphabet(first, last)
        text = alphabet.text(self._tokens(first, last), last - first)
        order = self._sort(text, first, last, alphabet)
        _save(self._file("order", number), order)
        if not self._closed:
            self._save_before(number, order)
        rank = np.empty(1, dtype=np.int64)
        bits = np.zeros(-(-len(text) // 8), dtype=np.uint8)
        call(above_first, order, bits, rank)
        above = self._file("above", number)
        with open(above, "wb") as file:
            file.seek(first >> 3)
            bits.tofile(file)
        self._progress(number, 4 * (last - first))
        if last < self.total:
            streams = self._streams(text, order, last, alphabet)
            search = _Backward(text, order, alphabet.size, int(rank[0]))
            del text, order, bits
            step = search.arguments()
            gaps = np.zeros(last - first + 1, dtype=np.uint32)
            self._go_by(number, streams, step, alphabet, gaps)
            _save_gaps(self._file("gaps", number), gaps)
        _flush(above)

    def _sort(self, text: NDArray[Any], first: int, last: int, alphabet: _Alphabet) -> NDArray[np.int32]:
        """The order of a piece's suffixes as suffixes of the whole text; `text` is as it was in the end."""
        above = np.ones(len(text), dtype=np.uint8)
        if last < self.total:
            size = min(last - first, self.total - last)
            pattern = self._following(last, size, alphabet)
            shared = np.empty(size, dtype=np.int32)
            call(z_values, pattern, shared)
            call(above_end, text, pattern, shared, self._bits(self._number(last), last, size + 1), above)
            del pattern, shared
        c = int(text[-1])
        call(split_class, text, above)
        del above
        order = suffix_array(text, alphabet.size + 2)
        call(unite_class, text, c)
        return order

    def _following(self, first: int, size: int, alphabet: _Alphabet) -> NDArray[Any]:
        """`size` tokens from `first` on in a piece's codes."""
        parts = self._tokens(first, first + size)
        if alphabet.whole:
            return alphabet.text(parts, size)
        return np.concatenate([alphabet.codes(part) for part in parts])

    def _number(self, first: int) -> int:
        return self.edges.index(first)

    def _streams(self, text: NDArray[Any], order: NDArray[np.int32], last: int, alphabet: _Alphabet) -> list[_Stream]:
        """Stretches of what is behind the piece, each with the rank of what follows it."""
        length = self.total - last
        count = min(_STREAMS * min(workers(), 8), max(1, length // 4096))
        each = -(-length // count) + 7 & ~7
        starts = list(range(last, self.total, each))
        streams = []
        for start in starts:
            stop = min(self.total, start + each)
            rank = 0 if stop == self.total else self._rank(text, order, self._number(last), stop, alphabet)
            above = 0 if stop == self.total else int(self._bits(self._number(last), stop, 1)[0]) & 1
            streams.append(_Stream(start, stop, rank, above))
        return streams

    def _rank(self, text: NDArray[Any], order: NDArray[np.int32], number: int, start: int, alphabet: _Alphabet) -> int:
        """How many of the piece's suffixes are below T[start..]."""
        found = np.empty(1, dtype=np.int64)
        for size in (4096, len(text)):
            size = min(size, self.total - start)
            window = self._following(start, size, alphabet)
            tail = self._bits(number, start, size + 1)
            call(rank_of, text, order, window, int(start + size == self.total), tail, found)
            if found[0] >= 0:
                break
        return int(found[0])

    def _go_by(self, number: int, streams: list[_Stream], step: tuple[Any, ...], alphabet: _Alphabet, gaps: NDArray[np.uint32]) -> None:
        """Count the suffixes behind the piece into its gaps, and note which of them are above its first one."""
        count, pitch = len(streams), _STRIDE + _APART
        codes, bits = np.zeros(count * pitch, dtype=np.int32), np.zeros(count * pitch, dtype=np.uint8)
        lengths, state, carried = (np.zeros(count, dtype=np.int64) for _ in range(3))
        for k, stream in enumerate(streams):
            state[k], carried[k] = stream.rank, stream.above

        def steps(a: int, b: int) -> None:
            part, work = slice(a * pitch, b * pitch), np.zeros(4 * (b - a), dtype=np.int64)
            call(go_by, codes[part], bits[part], lengths[a:b], pitch, state[a:b], carried[a:b], work, *step)

        def fall(a: int, b: int) -> None:
            call(tally, codes, lengths, pitch, gaps, a, b)

        with (
            open(self.path, "rb") as text,
            open(self._file("above", number + 1), "rb") as before,
            open(self._file("above", number), "rb+") as after,
        ):
            while any(stream.stop > stream.start for stream in streams):
                for k, stream in enumerate(streams):
                    low = max(stream.start, stream.stop - _STRIDE + 7 & ~7)
                    lengths[k] = size = stream.stop - low
                    part = slice(k * pitch, k * pitch + size)
                    codes[part] = alphabet.codes(_read(text, self.kind, low, size))
                    bits[part] = _read_bits(before, low, size)
                spread(steps, count, max(1, count // workers()))
                spread(fall, len(gaps), max(1, len(gaps) // workers()))
                for k, stream in enumerate(streams):
                    size = int(lengths[k])
                    if size:
                        stream.stop -= size
                        after.seek(stream.stop >> 3)
                        after.write(np.packbits(bits[k * pitch : k * pitch + size], bitorder="little").tobytes())
                self._progress(number, int(lengths.sum()))

    def _save_before(self, number: int, order: NDArray[np.int32]) -> None:
        first, last = self.edges[number : number + 2]
        tokens = np.empty(last - first, dtype=self.kind)
        tokens[0] = np.iinfo(self.kind).max
        offset = 1 if first == 0 else 0
        with open(self.path, "rb") as text:
            tokens[offset:] = _read(text, self.kind, first - 1 + offset, last - first - offset)
        with open(self._file("before", number), "wb") as file:
            for start in range(0, len(order), _READ):
                tokens[order[start : start + _READ]].tofile(file)
            file.flush()
            os.fsync(file.fileno())

    # ---------------------------------------------------------------- all of them

    def before(self, blocks: Iterator[NDArray[np.int64]]) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """Blocks of positions, each with the tokens in front of them; in front of the first token stands a mark."""
        with ExitStack() as stack:
            files: list[BinaryIO] = []
            for block in blocks:
                files = files or [stack.enter_context(open(self._file("before", k), "rb")) for k in range(len(self))]
                pieces, tokens = np.searchsorted(self.edges, block, side="right") - 1, np.empty(len(block), dtype=self.kind)
                for number, file in enumerate(files):
                    here = pieces == number
                    tokens[here] = np.fromfile(file, dtype=self.kind, count=int(here.sum()))
                yield block, tokens

    def _merged(self, length: int) -> Iterator[NDArray[np.int64]]:
        """All suffixes in order: before the i-th of a piece come as many of those to its right as its i-th gap says."""
        count = len(self)
        room = max(64, min(1 << 16, (16 << 20) // (5 * count)))
        orders, gaps = np.zeros(count * room, dtype=np.int32), np.zeros(count * room, dtype=np.uint8)
        state = np.zeros((7, count), dtype=np.int64)  # see `merge`, from o_next on
        state[5] = 1
        bases, left = np.array(self.edges[:-1], dtype=np.int64), self.total - self._closed
        skip = self.total - 1 if self._closed else -1
        with ExitStack() as stack:
            files = [stack.enter_context(open(self._file("order", k), "rb")) for k in range(count)]
            more = [stack.enter_context(open(self._file("gaps", k), "rb")) for k in range(count - 1)]
            while left:
                block, filled = np.empty(min(length, left), dtype=np.int64), np.zeros(1, dtype=np.int64)
                while filled[0] < len(block):
                    for k in range(count):
                        part = slice(k * room, (k + 1) * room)
                        _refill(files[k], orders[part], state[0:2, k])
                        if k < count - 1 and not state[4, k]:
                            state[4, k] = _refill(more[k], gaps[part], state[2:4, k])
                    call(merge, orders, gaps, room, *state, bases, block, filled, skip)
                left -= len(block)
                yield block

    # ---------------------------------------------------------------- files

    def _file(self, kind: str, number: int) -> Path:
        return self.folder / f"{kind}-{number:05d}.bin"

    def _tokens(self, first: int, last: int) -> Iterator[NDArray[Any]]:
        with open(self.path, "rb") as file:
            for start in range(first, last, _READ):
                yield _read(file, self.kind, start, min(_READ, last - start))

    def _bits(self, number: int, first: int, size: int) -> NDArray[np.uint8]:
        """Packed bits of the positions from `first`, a multiple of 8, on; behind the text there are zeros."""
        count = -(-size // 8)
        with open(self._file("above", number), "rb") as file:
            file.seek(first >> 3)
            data = np.frombuffer(file.read(count), dtype=np.uint8)
        return np.concatenate([data, np.zeros(count - len(data), dtype=np.uint8)])

    def _alphabet(self, first: int, last: int) -> _Alphabet:
        """Codes of the tokens: those of the whole text in few, or of a piece, so that each can be counted."""
        if self.kind.itemsize == 4 and self.bound > COUNTED:
            return _Alphabet(None, np.unique(np.concatenate(list(self._tokens(first, last)))))
        if self._table is None:
            size = 1 << 8 * self.kind.itemsize if self.kind.itemsize < 4 else self.bound + 1
            used = np.zeros(size, dtype=bool)
            for part in self._tokens(0, self.total):
                used[np.minimum(part, size - 1)] = True
            self._table = np.where(used, np.cumsum(used) - 1, 0).astype(np.int32)
        return _Alphabet(self._table, None)


class _Alphabet:
    """Tokens as codes 0..size - 1, in the order of the tokens.

    Args:
        table: the code of every token that occurs in the text; or
        found: the tokens of a piece, ascending; of others :meth:`codes` gives ~c, c being the code of the next larger one.
    """

    def __init__(self, table: NDArray[np.int32] | None, found: NDArray[Any] | None) -> None:
        self._lookup, self._found = table, found
        self.size = int(table.max()) + 1 if table is not None else len(found) if found is not None else 0

    @property
    def whole(self) -> bool:
        """Whether there is a code for every token of the text."""
        return self._lookup is not None

    def codes(self, tokens: NDArray[Any]) -> NDArray[np.int32]:
        """Codes of tokens."""
        if self._lookup is not None:
            return self._lookup[np.minimum(tokens, len(self._lookup) - 1)]
        assert self._found is not None
        places = np.searchsorted(self._found, tokens)
        known = self._found[np.minimum(places, len(self._found) - 1)] == tokens
        return np.where(known, places, ~places).astype(np.int32)

    def text(self, parts: Iterator[NDArray[Any]], length: int) -> NDArray[Any]:
        """Codes of a piece, in the smallest type that has room for two more."""
        text = np.empty(length, dtype=np.uint8 if self.size < 254 else np.uint16 if self.size < 65534 else np.uint32)
        at = 0
        for part in parts:
            text[at : at + len(part)] = self.codes(part)
            at += len(part)
        return text


class _Stream:
    """What of T[start..stop) has not gone by; rank of T[stop..] in the piece, and whether it is above T[e..]."""

    def __init__(self, start: int, stop: int, rank: int, above: int) -> None:
        self.start, self.stop, self.rank, self.above = start, stop, rank, above


class _Backward:
    """One step of backward search in a piece: for each code, the ranks of the suffixes that it stands before.

    `order` is dropped meanwhile by its owner: it is used here and not kept.
    """

    def __init__(self, text: NDArray[Any], order: NDArray[np.int32], size: int, first: int) -> None:
        m = len(text)
        starts, free = np.zeros(size + 1, dtype=np.int64), np.empty(size, dtype=np.int64)
        call(count_codes, text, starts)
        ranks = np.empty(m, dtype=np.int32)
        call(list_before, text, order, starts, free, ranks, _NONE)
        self._parts = (starts, ranks, int(text[-1]), first)

    def arguments(self) -> tuple[Any, ...]:
        """What :func:`go_by` takes."""
        starts, ranks, last, first = self._parts
        m, size = len(ranks), len(starts) - 1
        shifts, rows = np.empty(size, dtype=np.int64), np.empty(size + 1, dtype=np.int64)
        call(plan_guide, starts, m, shifts, rows)
        guide = np.empty(int(rows[-1]), dtype=np.int32)
        call(fill_guide, starts, ranks, m, shifts, rows, guide)
        return starts, ranks, shifts, rows, guide, last, first


def _read(file: BinaryIO, kind: np.dtype[Any], start: int, count: int) -> NDArray[Any]:
    file.seek(start * kind.itemsize)
    return np.frombuffer(file.read(count * kind.itemsize), dtype=kind)


def _read_bits(file: BinaryIO, start: int, count: int) -> NDArray[np.uint8]:
    """Bits of positions from a multiple of 8 on, one a byte."""
    file.seek(start >> 3)
    return np.unpackbits(np.frombuffer(file.read(-(-count // 8)), dtype=np.uint8), count=count, bitorder="little")


def _refill(file: BinaryIO, buffer: NDArray[Any], use: NDArray[np.int64]) -> int:
    """Move what is left of a buffer (use: from, to) to its front and fill it from the file; 1 where that has ended."""
    left = int(use[1] - use[0])
    if left > len(buffer) >> 1:
        return 0
    buffer[:left] = buffer[use[0] : use[1]].copy()
    data = np.frombuffer(file.read((len(buffer) - left) * buffer.itemsize), dtype=buffer.dtype)
    buffer[left : left + len(data)] = data
    use[:] = 0, left + len(data)
    return int(left + len(data) < len(buffer))


def _save(path: Path, array: NDArray[Any]) -> None:
    with open(path, "wb") as file:
        array.tofile(file)
        file.flush()
        os.fsync(file.fileno())


def _save_gaps(path: Path, gaps: NDArray[np.uint32]) -> None:
    size = np.zeros(1, dtype=np.int64)
    with open(path, "wb") as file:
        for start in range(0, len(gaps), _READ):
            part = gaps[start : start + _READ]
            data = np.empty(5 * len(part), dtype=np.uint8)
            call(code_gaps, part, data, size)
            file.write(data[: int(size[0])].tobytes())
        file.flush()
        os.fsync(file.fileno())


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
