"""What a corpus repeats: verbatim duplicates, how many different n-grams it has, the most frequent ones.

All come from one reading of the suffix array in its order, in which suffixes that begin alike are neighbours: the tokens
that a suffix shares with the one before it (their LCP, which ends with a document) say where a new n-gram begins, for every
n at once. The array is read in blocks, so memory does not grow with the corpus.

    for span in duplicates(index, min_length=100): ...      spans that occur more than once
    report = duplicate_report(index, min_length=100)        how many tokens they cover
    facts = curiosities(index)                              numbers for a page about a corpus

The orders of several shards are merged while they are read, so what is told is that of the whole corpus.

Duplicates by a suffix array: Lee et al. 2022, 2107.06499.

N tokens, R ranks of a block.
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orrery.core.errors import ConfigError
from orrery.core.progress import progress
from orrery.ngram import within
from orrery.ngram.compiled import bare
from orrery.ngram.pages import suffix_at, token_at, unpack
from orrery.ngram.shard import call, token_type
from orrery.ngram.threads import spread

BLOCK = 1 << 18  # ranks read at once
LONGEST = 4096  # tokens that neighbours are compared over; longer duplicates are reported with this length
_KEPT = 100  # places of a span that are reported


@bare
def adjacent(W, ok, meta, first, last, most, where, common, before):  # type: ignore[no-untyped-def]
    """For ranks first..last: position, tokens shared with the rank before (at most `most`), and the token in front."""
    g = unpack(meta)
    previous = suffix_at(W, ok, g, first - 1) if first > 0 else -1
    for rank in range(first, last):
        position = suffix_at(W, ok, g, rank)
        length = 0
        if previous >= 0:
            while length < most:
                token = token_at(W, ok, g, position + length)
                if token == g[4] or token != token_at(W, ok, g, previous + length):
                    break
                length += 1
        where[rank - first] = position
        common[rank - first] = length
        before[rank - first] = token_at(W, ok, g, position - 1) if position > 0 else g[4]
        previous = position


class DuplicateSpan(NamedTuple):
    """A stretch of tokens that occurs `times` times, word for word.

    length: tokens that all occurrences share (at most 4096 are compared). places: where they begin in the stream, the first
    hundred, ascending; documents: the numbers of the documents that hold those.
    """

    length: int
    times: int
    places: list[int]
    documents: list[int]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return self._asdict()


class _Block(NamedTuple):
    where: np.ndarray
    common: np.ndarray
    before: np.ndarray


def _blocks(index: Any, most: int, quiet: bool) -> Iterator[_Block]:
    """All suffixes in their order, a block at a time."""
    with progress(index.tokens, "reading suffixes", "tok", quiet=quiet) as bar:
        found = _of_shard(index.shards[0], 0, most) if len(index.shards) == 1 else _of_all(index, most)
        for block in found:
            bar.update(len(block.where))
            yield block


def _of_shard(shard: Any, base: int, most: int) -> Iterator[_Block]:
    """A shard's suffixes, on all cores; `base` is its place in the stream."""
    for first in range(0, shard.n, BLOCK):
        size = min(BLOCK, shard.n - first)
        block = _Block(*(np.empty(size, dtype=np.int64) for _ in range(3)))

        def part(a: int, b: int, first: int = first, block: _Block = block) -> None:
            shard.run(adjacent, first + a, first + b, most, *(array[a:b] for array in block))

        spread(part, size, 4096)
        block.where[:] += base
        yield block


def _of_all(index: Any, most: int) -> Iterator[_Block]:
    """The suffixes of several shards merged, over a copy of all tokens in a file of its own."""
    kind = token_type(int(index.info["width"]))
    with tempfile.TemporaryDirectory(prefix="orrery-repeats-") as folder:
        path = Path(folder) / "tokens.bin"
        with open(path, "wb") as file:
            for shard in index.shards:
                for first in range(0, shard.n, BLOCK):
                    file.write(shard.run(within.read, first, min(shard.n, first + BLOCK)).astype(kind).tobytes())
            file.write(np.array([_mark(index)], dtype=kind).tobytes())
        text: Any = np.asarray(np.memmap(path, dtype=kind, mode="r"))
        bases = np.cumsum([0, *(shard.n for shard in index.shards)])
        parts = [_of_shard(shard, int(base), most) for shard, base in zip(index.shards, bases, strict=False)]
        yield from _zipped(text, parts, _mark(index), most)
        del text  # before its folder goes


def _zipped(text: Any, parts: list[Iterator[_Block]], mark: int, most: int) -> Iterator[_Block]:
    """Blocks of several orders as one."""
    count = len(parts)
    where, common, before = (np.zeros((count, BLOCK), dtype=np.int64) for _ in range(3))
    at, end, shared, beside = (np.zeros(count, dtype=np.int64) for _ in range(4))
    ended = [False] * count
    while True:
        for k in range(count):
            if at[k] == end[k] and not ended[k]:
                block = next(parts[k], None)
                ended[k] = block is None
                at[k], end[k] = 0, 0 if block is None else len(block.where)
                if block is not None:
                    for held, new in zip((where, common, before), block, strict=True):
                        held[k, : len(new)] = new
                    shared[k] = common[k, 0]
        left = int((end - at).sum())
        if not left:
            return
        made = [np.empty(min(BLOCK, left), dtype=np.int64) for _ in range(3)]
        done = np.zeros(1, dtype=np.int64)
        open_ = np.array([not each for each in ended], dtype=np.int64)
        flat = [each.reshape(-1) for each in (where, common, before)]
        call(zip_orders, text, mark, most, BLOCK, *flat, at, end, open_, shared, beside, *made, done)
        yield _Block(*(each[: int(done[0])] for each in made))


@bare
def zip_orders(text, mark, most, pitch, where, common, before, at, end, open_, shared, beside, w_out, c_out, b_out, done):  # type: ignore[no-untyped-def]
    """Merge sorted suffixes of several shards until the block is full or those of a shard are used up.

    shared[k]: tokens that shard k's next suffix shares with the one given last, as far as `common` goes. Of all that come
    later, those which share more with it are smaller; only where they share the same are tokens compared, from there on.
    """
    made, count = 0, len(at)
    while made < len(w_out):
        top = -1
        for k in range(count):
            if at[k] < end[k]:
                top = max(top, shared[k])
            elif open_[k] == 1:
                done[0] = made
                return
        best = -1
        for k in range(count):
            beside[k] = -1
            if at[k] == end[k] or shared[k] != top:
                continue
            if best < 0:
                best = k
                continue
            a, b, n = where[best * pitch + at[best]], where[k * pitch + at[k]], top
            while n < most and text[a + n] == text[b + n] and text[a + n] != mark:
                n += 1
            beside[k] = n
            if n < most and text[b + n] < text[a + n]:
                for j in range(k):
                    beside[j] = min(beside[j], n)
                beside[best], beside[k] = n, -1
                best = k
        if best < 0:
            break
        for k in range(count):
            if beside[k] >= 0:
                shared[k] = beside[k]
        place = best * pitch + at[best]
        w_out[made], c_out[made], b_out[made] = where[place], top, before[place]
        made += 1
        at[best] += 1
        if at[best] < end[best]:
            shared[best] = common[place + 1]
    done[0] = made


class _Group:
    """Neighbours that share enough, gathered over blocks: only what is reported of them is kept."""

    def __init__(self) -> None:
        self.count, self.length, self.alike = 0, LONGEST, True
        self.before = -1
        self.places: list[int] = []

    def add(self, where: np.ndarray, common: np.ndarray, before: np.ndarray, mark: int) -> None:
        """More of the group; the first of a group shares nothing with it."""
        if self.count == 0:
            self.before, common = int(before[0]), common[1:]
        if len(common):
            self.length = min(self.length, int(common.min()))
        self.alike = self.alike and self.before != mark and bool((before == self.before).all())
        self.count += len(where)
        self.places = heapq.nsmallest(_KEPT, [*self.places, *where.tolist()]) if len(where) < 10_000 else sorted(
            [*self.places, *np.partition(where, _KEPT)[:_KEPT].tolist()]
        )[:_KEPT]  # fmt: skip


def duplicates(index: Any, min_length: int = 50, *, quiet: bool = True) -> Iterator[DuplicateSpan]:
    """Spans of at least `min_length` tokens that occur more than once, in the order of the suffix array.

    Occurrences that share their first `min_length` tokens are one span, as long as all of them agree; that two of them agree
    further is not told apart. A span is reported where it cannot be made longer to the left: where its occurrences all
    follow the same token, the span that begins there is reported in its place. Spans do not reach over documents.

    Raises:
        ConfigError: for a length outside 1..4096.
    """
    if not 1 <= min_length <= LONGEST:
        raise ConfigError(f"min_length must lie between 1 and {LONGEST}, not {min_length}")
    mark = _mark(index)
    group = _Group()
    for block in _blocks(index, LONGEST, quiet):
        edges = np.flatnonzero(block.common < min_length)
        bounds = [0, *edges.tolist(), len(block.where)]
        sizes = np.diff(bounds)
        for k in np.flatnonzero((sizes > 1) | (np.arange(len(sizes)) == 0) | (np.arange(len(sizes)) == len(sizes) - 1)).tolist():
            a, b = bounds[k], bounds[k + 1]
            if k > 0:  # a new group begins at a
                if (span := _finished(index, group, min_length)) is not None:
                    yield span
                group = _Group()
            if b > a:
                group.add(block.where[a:b], block.common[a:b], block.before[a:b], mark)
    if (span := _finished(index, group, min_length)) is not None:
        yield span


def _finished(index: Any, group: _Group, least: int) -> DuplicateSpan | None:
    if group.count < 2 or group.alike or group.length < least:
        return None
    numbers = np.unique(index.catalogue.numbers(np.array(group.places)))
    return DuplicateSpan(group.length, group.count, group.places, numbers.tolist())


def _mark(index: Any) -> int:
    """The stored form of a document's mark: all ones."""
    return (1 << 8 * int(index.info["width"])) - 1


@dataclass(frozen=True)
class DuplicateReport:
    """How much of a corpus stands in it more than once.

    covered: tokens in a stretch of `min_length` that occurs again; share: of all tokens. spans: maximal spans. top: those of
    most repeated tokens, length * (times - 1), first.
    """

    min_length: int
    tokens: int
    covered: int
    share: float
    spans: int
    top: list[DuplicateSpan]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "top": [span.to_dict() for span in self.top]}


def duplicate_report(index: Any, min_length: int = 50, *, limit: int = 20, quiet: bool = True) -> DuplicateReport:
    """Count the duplicated tokens of a corpus and name the largest spans.

    Holds one byte per token in a file of its own while it runs, and no more in memory than a block.
    """
    top: list[tuple[int, int, DuplicateSpan]] = []
    spans = 0
    for spans, span in enumerate(duplicates(index, min_length, quiet=quiet), 1):
        item = (span.length * (span.times - 1), -spans, span)
        heapq.heappushpop(top, item) if len(top) >= limit else heapq.heappush(top, item)
    covered = _covered(index, min_length, quiet)
    tokens = index.tokens - index.documents_total
    return DuplicateReport(min_length, tokens, covered, covered / max(1, tokens), spans, [item[2] for item in sorted(top, reverse=True)])


def _covered(index: Any, length: int, quiet: bool) -> int:
    """Tokens that lie in a stretch of `length` tokens that occurs more than once."""
    size = index.tokens
    with tempfile.TemporaryDirectory(prefix="orrery-repeats-") as folder:
        begins = np.memmap(Path(folder) / "begins.bin", dtype=np.uint8, mode="w+", shape=(size,))
        last = -1
        for block in _blocks(index, length, quiet):
            again = block.common >= length
            begins[block.where[again]] = 1
            before = np.concatenate([[last], block.where[:-1]])[again]
            begins[before[before >= 0]] = 1
            last = int(block.where[-1])
        total, reach = 0, 0  # tokens before `reach` are counted
        for first in range(0, size, BLOCK):
            starts = np.flatnonzero(begins[first : first + BLOCK]) + first
            if len(starts):
                ends = starts + length
                total += int((ends - np.maximum(starts, np.concatenate([[reach], ends[:-1]]))).sum())
                reach = int(ends[-1])
        del begins  # before its folder goes
    return total


@dataclass(frozen=True)
class Curiosities:
    """Numbers about a corpus for a page.

    different: n -> different n-grams within documents. once: n -> share of them that occur once. frequent: n -> the most
    frequent, as (ids, count). longest: the longest span that occurs twice (None: nothing does). mean_shared: mean number of
    tokens that a position shares with the position most like it before it in order.
    """

    tokens: int
    documents: int
    different: dict[int, int]
    once: dict[int, float]
    frequent: dict[int, list[tuple[list[int], int]]]
    longest: DuplicateSpan | None
    mean_shared: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; keys become strings."""
        data = {name: {str(n): value for n, value in getattr(self, name).items()} for name in ("different", "once", "frequent")}
        return {**asdict(self), **data, "longest": self.longest.to_dict() if self.longest else None}


def curiosities(index: Any, lengths: tuple[int, ...] = (1, 2, 3, 4, 5, 8), *, limit: int = 10, quiet: bool = True) -> Curiosities:
    """Read the suffix array once and tell what is curious in it.

    Raises:
        ConfigError: for lengths outside 1..4096.
    """
    if not lengths or min(lengths) < 1 or max(lengths) > LONGEST:
        raise ConfigError(f"lengths must lie between 1 and {LONGEST}, not {lengths}")
    tally = {n: _Tally(n, limit) for n in sorted(set(lengths))}
    best: tuple[int, list[int]] = (0, [])
    shared, last = 0, -1
    ends = np.append(np.asarray(index.catalogue.offsets)[1:], index.tokens)
    for block in _blocks(index, LONGEST, quiet):
        shared += int(block.common.sum())
        at = int(block.common.argmax())
        if int(block.common[at]) > best[0]:
            best = int(block.common[at]), sorted([int(block.where[at]), int(block.where[at - 1]) if at else last])
        last = int(block.where[-1])
        room = ends[index.catalogue.numbers(block.where)] - block.where  # tokens to the end of the document
        marked = np.isin(block.where, np.asarray(index.catalogue.offsets))
        for one in tally.values():
            one.read(block.common, np.where(marked, 0, room), block.where)
    longest = None
    if best[0]:
        ids = index.read(best[1][0], best[1][0] + best[0])
        documents = np.unique(index.catalogue.numbers(np.array(best[1]))).tolist()
        longest = DuplicateSpan(best[0], index.count(ids), best[1], documents)
    finished = {n: one.finish() for n, one in tally.items()}
    return Curiosities(
        tokens=index.tokens - index.documents_total,
        documents=index.documents_total,
        different={n: kinds for n, (kinds, _, _) in finished.items()},
        once={n: single / max(1, kinds) for n, (kinds, single, _) in finished.items()},
        frequent={n: [(index.read(p, p + n).tolist(), count) for count, p in top] for n, (_, _, top) in finished.items()},
        longest=longest,
        mean_shared=shared / max(1, index.tokens),
    )


class _Tally:
    """Different n-grams of one length, while the suffixes go by."""

    def __init__(self, n: int, limit: int) -> None:
        self.n, self.limit = n, limit
        self.kinds = self.single = 0
        self.top: list[tuple[int, int]] = []  # count, a position
        self.open = (0, -1)  # the n-gram that is being counted

    def read(self, common: np.ndarray, room: np.ndarray, where: np.ndarray) -> None:
        """A block: `room` (R,) tokens from each suffix to its document's end."""
        valid = room >= self.n
        places, new = where[valid], common[valid] < self.n
        if not len(places):
            return
        starts = np.flatnonzero(new)
        head = int(starts[0]) if len(starts) else len(places)
        self.open = (self.open[0] + head, self.open[1] if self.open[0] else int(places[0]))
        if not len(starts):
            return
        self._close(np.array([self.open[0]]), np.array([self.open[1]]))
        sizes = np.diff(np.append(starts, len(places)))
        self._close(sizes[:-1], places[starts[:-1]])
        self.open = int(sizes[-1]), int(places[starts[-1]])

    def _close(self, sizes: np.ndarray, places: np.ndarray) -> None:
        places, sizes = places[sizes > 0], sizes[sizes > 0]
        self.kinds += len(sizes)
        self.single += int((sizes == 1).sum())
        least = self.top[0][0] if len(self.top) >= self.limit else 0
        chosen = np.flatnonzero(sizes > least)
        if len(chosen) > self.limit:
            chosen = chosen[np.argpartition(-sizes[chosen], self.limit - 1)[: self.limit]]
        for k in chosen.tolist():
            item = (int(sizes[k]), int(places[k]))
            heapq.heappushpop(self.top, item) if len(self.top) >= self.limit else heapq.heappush(self.top, item)

    def finish(self) -> tuple[int, int, list[tuple[int, int]]]:
        """Different n-grams, how many occur once, and the most frequent."""
        self._close(np.array([self.open[0]]), np.array([self.open[1]]))
        self.open = (0, -1)
        return self.kinds, self.single, sorted(self.top, reverse=True)
