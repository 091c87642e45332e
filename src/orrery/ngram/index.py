"""An index: exact counts of n-grams of any length, and all that follows from them.

    index = orrery.ngram.build("stdlib", "stdlib.idx", tokenizer="bpe:8192")
    index = orrery.ngram.open("stdlib.idx")
    index.count(ids); index.prob(context, id); index.next(context); index.inf_prob(context, id); index.inf_next(context)

Documents follow one another as MARK d1 .. MARK d2 .., the mark being the id `index.doc_id`. It stands for a document's
start, as the first id of an n-gram, and for its end, as the last one; nothing that reaches over it is counted unless
`across=True` asks for the stream as it is. The empty n-gram occurs once for every token and mark, so the counts of
`next([])` sum to `count([])`, and those of `next(context)` to the number of occurrences of any context.

Infini-gram: 2401.17377.
"""

from __future__ import annotations

import threading
from array import array as machine_array
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from orrery.core.config import config_hash
from orrery.core.errors import CorruptionError, DataError, StorageError
from orrery.core.files import MANIFEST, read_json, verify_directory
from orrery.ngram import batches, provenance, search, within
from orrery.ngram.answers import (
    CnfCount,
    Document,
    InfBatch,
    InfNext,
    InfProbability,
    Next,
    Probability,
    Range,
    Scores,
    Span,
)
from orrery.ngram.provenance import Catalogue
from orrery.ngram.shard import CROWD, Layout, Shard
from orrery.ngram.threads import spread

if TYPE_CHECKING:
    from orrery.data.tokenizers import Tokenizer

DESCRIPTION = "index.json"
FORMAT = 2  # 1: pages of 4 KiB, a guide of every 128th suffix
Ids = Sequence[int] | NDArray[np.integer]


def open_index(folder: str | Path, *, plain: bool = False) -> Index:
    """Open an index; nothing but its description is read.

    Args:
        folder: what :func:`orrery.ngram.build` wrote.
        plain: do without numba (slow; the answers are the same).

    Raises:
        StorageError: there is no such folder.
        CorruptionError: it is damaged, incomplete, or no index.
    """
    return Index(folder, plain)


class Index:
    """An open index. Queries may come from several threads.

    tokens: of the stream, one mark per document included. documents_total: documents. vocab_size: ids, the mark included.
    """

    def __init__(self, folder: str | Path, plain: bool = False) -> None:
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise StorageError(f"no index '{folder}'; build one with orrery.ngram.build")
        about = _description(self.folder)
        self.info: dict[str, Any] = about
        self.tokens, self.documents_total = int(about["tokens"]), int(about["documents"])
        self.vocab_size, self.doc_id = int(about["vocab_size"]), int(about["doc_id"])
        self.shards: list[Shard] = []
        for number, entry in enumerate(about["shards"]):
            self.shards.append(self._shard(self.folder / f"shard-{number:05d}.bin", entry, plain))
        self._mark = (1 << 8 * int(about["width"])) - 1
        self._one = self.shards[0] if len(self.shards) == 1 else None
        self._rooms = threading.local()

    def _shard(self, path: Path, entry: dict[str, Any], plain: bool) -> Shard:
        facts = int(entry["tokens"]), int(self.info["width"]), self.doc_id, self.vocab_size
        if self.sample is None:
            return Shard(path, Layout(*facts, int(entry["nodes"]), int(entry["entries"])), plain)
        from orrery.ngram.sampled import SampledLayout, SampledShard

        return SampledShard(path, SampledLayout(*facts, self.sample, int(entry["last"]), tuple(entry["zeros"])), plain)

    @property
    def sample(self) -> int | None:
        """How many tokens lie between two whose places are kept (:mod:`orrery.ngram.sampled`); None: all are."""
        found: int | None = self.info.get("sample")
        return found

    def __repr__(self) -> str:
        size = f"{self.tokens:,} tokens in {self.documents_total:,} documents"
        return f"<n-gram index {self.folder.name}: {size}, {len(self.shards)} shard{'s' * (len(self.shards) > 1)}>"

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that made the ids, None where none was given.

        Raises:
            CorruptionError: the stored one is not the one that the index was built with.
        """
        wanted = self.info["tokenizer"]
        if wanted is None:
            return None
        from orrery.data.tokenizer_files import load_tokenizer

        found = load_tokenizer(self.folder / "tokenizer")
        if found.hash != wanted["hash"]:
            raise CorruptionError(f"the tokenizer in '{self.folder}' is not the one that the index was built with")
        return found

    def verify(self) -> None:
        """Compare every file with its SHA-256 and every page with its checksum.

        Raises:
            CorruptionError: naming the file that is damaged.
        """
        verify_directory(self.folder)
        for shard in self.shards:
            shard.check()

    # ---------------------------------------------------------------- counts

    def count(self, ids: Ids, *, across: bool = False) -> int:
        """How often the n-gram `ids` occurs. The empty one: once for every token and mark.

        Raises:
            DataError: an id lies outside the vocabulary.
            CorruptionError: the index is damaged where the answer is looked for.
        """
        total = 0
        q = _array(ids)
        for shard in self.shards:
            low, high, bad = shard.run(search.find, q, across, False)
            if bad >= 0:
                self._refuse(q, bad)
            total += high - low
        return total + (self._straddling(q) if across and self._one is None else 0)

    def find(self, ids: Ids, *, across: bool = False) -> list[Range]:
        """Where the suffixes that begin with `ids` stand, in every shard that has some."""
        q, found = _array(ids), []
        for number, shard in enumerate(self.shards):
            low, high, bad = shard.run(search.find, q, across, False)
            if bad >= 0:
                self._refuse(q, bad)
            if high > low:
                found.append(Range(number, low, high))
        return found

    def count_batch(self, queries: Iterable[Ids], *, across: bool = False, lengths: Any = None) -> NDArray[np.int64]:
        """:meth:`count` of many n-grams on all cores: (Q,).

        Args:
            queries: n-grams, or one padded array (Q, L) with `lengths` (Q,).
        """
        flat, offsets = flatten(queries, lengths)
        tokens = self._translated(flat)
        total = np.zeros(len(offsets) - 1, dtype=np.int64)
        for shard in self.shards:
            lows, highs = self._find_many(shard, tokens, offsets[:-1], offsets[1:], across, False)
            total += highs - lows
        if across and self._one is None:
            total += [self._straddling(flat[a:b]) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
        return total

    # ---------------------------------------------------------------- probabilities

    def prob(self, context: Ids, id: int, *, across: bool = False) -> float:  # noqa: A002 - the public name
        """P(id | context): how many of the context's occurrences go on with `id`. NaN where it never occurs."""
        return self.prob_info(context, id, across=across).prob

    def prob_info(self, context: Ids, id: int, *, across: bool = False) -> Probability:  # noqa: A002
        """:meth:`prob` with its two counts."""
        q = _joined(context, id)
        count = total = 0
        for shard in self.shards:
            a, b, bad = shard.run(search.prob, q, across)
            if bad >= 0:
                self._refuse(q, bad)
            count, total = count + a, total + b
        if across and self._one is None:
            count, total = count + self._straddling(q), total + self._straddling(q, inner=True)
        return Probability(count / total if total else float("nan"), count, total)

    def prob_batch(self, contexts: Iterable[Ids], ids: Ids, *, across: bool = False) -> NDArray[np.float64]:
        """:meth:`prob` of many pairs, on all cores: (Q,)."""
        flat, offsets = _pairs(contexts, ids)
        tokens, starts, stops = self._translated(flat), offsets[:-1], offsets[1:] - 1
        count, total = (np.zeros(len(starts), dtype=np.int64) for _ in range(2))
        for shard in self.shards:
            lows, highs = self._find_many(shard, tokens, starts, stops, across, True)
            total += highs - lows
            count += self._follow_many(shard, tokens, starts, stops, lows, highs)[0]
        if across and self._one is None:
            spans = list(zip(offsets[:-1], offsets[1:], strict=True))
            count += [self._straddling(flat[a:b]) for a, b in spans]
            total += [self._straddling(flat[a:b], inner=True) for a, b in spans]
        return _ratio(count, total)

    def inf_prob(self, context: Ids, id: int) -> float:  # noqa: A002
        """P(id | the longest suffix of the context that occurs). Document marks end a context."""
        return self.inf_prob_info(context, id).prob

    def inf_prob_info(self, context: Ids, id: int) -> InfProbability:  # noqa: A002
        """:meth:`inf_prob` with its counts, the length of the suffix and whether it has but one continuation."""
        q = _joined(context, id)
        count, total, n, only = 0, 0, -1, -1
        for shard in self.shards:
            a, b, length, token, bad = shard.run(search.inf_prob, q)
            if bad >= 0:
                self._refuse(q, bad)
            if length > n:
                count, total, n, only = a, b, length, token
            elif length == n:
                count, total = count + a, total + b
                only = token if token == only else -1
        return InfProbability(count / total, count, total, n, only >= 0)

    def inf_prob_batch(self, contexts: Iterable[Ids], ids: Ids) -> InfBatch:
        """:meth:`inf_prob_info` of many pairs, on all cores."""
        flat, offsets = _pairs(contexts, ids)
        tokens, parts = self._translated(flat), []
        for shard in self.shards:
            starts, stops = offsets[:-1].copy(), offsets[1:] - 1
            begins, lows, highs = self._longest_many(shard, tokens, starts, stops)
            hits, only = self._follow_many(shard, tokens, begins, stops, lows, highs)
            parts.append((hits, highs - lows, stops - begins, only))
        count, total, n, only = _merge(parts)
        return InfBatch(_ratio(count, total), count, total, n, only >= 0)

    def score(self, ids: Ids) -> Scores:
        """The ∞-gram probability of every id of a text given all before it, in one pass on all cores: arrays (T,)."""
        count, total, n, only = self.matches(ids)
        last = len(count) - 1
        return Scores(_ratio(count[:last], total[:last]), n[:last], only[:last] >= 0, count[:last], total[:last])

    def matches(self, ids: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """For t = 0..T: the longest suffix of ids[:t] that occurs, followed by ids[t].

        Returns:
            hits, totals, lengths of the suffixes, and their only next stored token or -1: each (T + 1,).
        """
        q, parts = _array(ids), []
        for shard in self.shards:
            arrays = tuple(np.zeros(len(q) + 1, dtype=np.int64) for _ in range(4))

            def part(first: int, last: int, shard: Shard = shard, arrays: Any = arrays) -> int:
                return int(shard.run(search.score, q, first, last, *(a[first:last] for a in arrays)))

            for bad in spread(part, len(q) + 1, 4096):
                if bad >= 0:
                    self._refuse(q, bad)
            parts.append(arrays)
        return _merge(parts)

    # ---------------------------------------------------------------- distributions

    def next(self, context: Ids, *, across: bool = False) -> Next:
        """The ids that follow the context somewhere, ascending, and how often each does.

        A document's end is the id `doc_id`. The counts sum to the number of the context's occurrences.
        """
        q, parts, room = _array(context), [], self._room()
        for shard in self.shards:
            low, high, bad, found = shard.run(within.find_next, q, across, CROWD, *room)
            if bad >= 0:
                self._refuse(q, bad)
            if high > low:
                parts.append((room[0][:found].copy(), room[1][:found].copy()) if found else shard.continuations(low, high, len(q)))
        if across and self._one is None:
            parts += self._straddling_next(q)
        return self._distribution(parts)

    def inf_next(self, context: Ids) -> InfNext:
        """:meth:`next` of the longest suffix of the context that occurs."""
        q, n, total, room = _array(context), -1, 0, self._room()
        parts: list[tuple[Any, Any]] = []
        for shard in self.shards:
            length, low, high, bad, found = shard.run(within.inf_find_next, q, CROWD, *room)
            if bad >= 0:
                self._refuse(q, bad)
            if length > n:
                parts, n, total = [], length, 0
            if length == n:
                parts.append((room[0][:found].copy(), room[1][:found].copy()) if found else shard.continuations(low, high, n))
                total += high - low
        ids, counts = self._distribution(parts)
        return InfNext(ids, counts, n, len(ids) == 1, total)

    def _room(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """This thread's room for the continuations of one context."""
        room: tuple[NDArray[np.int64], NDArray[np.int64]] | None = getattr(self._rooms, "room", None)
        if room is None:
            size = min(CROWD, self.vocab_size)
            room = self._rooms.room = (np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64))
        return room

    def _distribution(self, parts: list[tuple[Any, Any]]) -> Next:
        """Stored tokens with counts, from several places, as one distribution over ids."""
        if not parts:
            return Next(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
        tokens, counts = parts[0]
        if len(parts) > 1:
            tokens, inverse = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
            counts = np.zeros(len(tokens), dtype=np.int64)
            np.add.at(counts, inverse, np.concatenate([part[1] for part in parts]))
        if tokens[-1] == self._mark:
            tokens[-1] = self.doc_id
            if len(tokens) > 1 and tokens[-2] > self.doc_id:
                order = np.argsort(tokens)
                tokens, counts = tokens[order], counts[order]
        return Next(tokens, counts)

    # ---------------------------------------------------------------- where it stands

    @cached_property
    def catalogue(self) -> Catalogue:
        """Offsets and names of the documents."""
        return Catalogue(self)

    def documents(self, ids: Ids, limit: int = 10, *, context: int | None = None) -> list[Document]:
        """The first `limit` documents that hold an n-gram, in the index's order.

        Args:
            context: give only so many ids to both sides of the first place in each; None: whole documents.
        """
        return provenance.documents(self, ids, limit, context)

    def document(self, number: int) -> Document:
        """A document by its number.

        Raises:
            DataError: there is none.
        """
        return provenance.document(self, number)

    def attribute(self, ids: Ids, min_length: int = 8, *, limit: int = 3, context: int | None = 32) -> list[Span]:
        """Stretches of a text that occur verbatim, at least `min_length` long, none a part of another.

        Args:
            limit: documents that are named for each stretch; context: see :meth:`documents`.
        """
        return provenance.attribute(self, ids, min_length, limit, context)

    def count_cnf(
        self, clauses: Sequence[Sequence[Ids]], window: int = 100, *, cap: int | None = None, anchor: int | None = None
    ) -> CnfCount:
        """Count places where all clauses are met: a clause is a list of n-grams, any of which will do.

        Counted are the occurrences of the rarest clause that have, for every other clause, an occurrence in the same
        document which begins at most `window` tokens before or behind.

        Args:
            cap: look only at about so many occurrences, evenly spread, and scale; the answer then says `exact=False`.
            anchor: the clause whose occurrences are counted, if not the rarest (of a whole of which this is a part).
        """
        return provenance.count_cnf(self, clauses, window, cap, anchor)

    # ---------------------------------------------------------------- shared

    def _refuse(self, q: Any, bad: int) -> None:
        raise DataError(
            f"the id {int(q[bad])} is outside the index's vocabulary of {self.vocab_size};"
            " was the text encoded with another tokenizer?"
        )

    def _translated(self, flat: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ids as they are stored, for :mod:`orrery.ngram.batches`; -1 for one that cannot occur."""
        tokens = np.empty_like(flat)
        bad = self.shards[0].run_with_meta(batches.translate, flat, tokens)
        if bad >= 0:
            self._refuse(flat, bad)
        return tokens

    def _find_many(self, shard: Shard, tokens: Any, starts: Any, stops: Any, across: bool, inner: bool) -> tuple[Any, Any]:
        """Ranks of tokens[starts[i]:stops[i]], pieces of the batch on threads."""
        lows, highs = np.zeros(len(starts), dtype=np.int64), np.zeros(len(starts), dtype=np.int64)
        starts, stops = np.ascontiguousarray(starts), np.ascontiguousarray(stops)

        def part(a: int, b: int) -> None:
            shard.run(batches.find_many, tokens, starts[a:b], stops[a:b], across, inner, lows[a:b], highs[a:b], batches.workspace())

        spread(part, len(starts), 512)
        return lows, highs

    def _follow_many(self, shard: Shard, tokens: Any, starts: Any, stops: Any, lows: Any, highs: Any) -> tuple[Any, Any]:
        """How often tokens[stops[i]] follows the contexts starts[i]..stops[i] of ranks lows[i]..highs[i]; the only token that does."""
        hits, only = np.zeros(len(lows), dtype=np.int64), np.full(len(lows), -1)
        depths, last = stops - starts, tokens[stops]

        def part(a: int, b: int) -> None:
            given = (lows[a:b], highs[a:b], depths[a:b], last[a:b], hits[a:b], only[a:b])
            shard.run(batches.follow_many, *given, batches.workspace())

        spread(part, len(lows), 512)
        return hits, only

    def _longest_many(self, shard: Shard, tokens: Any, starts: Any, stops: Any) -> tuple[Any, Any, Any]:
        """Start and ranks of the longest suffix of each context that occurs: its length is doubled, then halved."""
        shard.run_with_meta(batches.last_marks, tokens, starts, stops)
        limit = stops - starts
        known, bad, step = np.zeros_like(limit), limit + 1, np.full_like(limit, 4)
        lows, highs = np.zeros_like(limit), np.full_like(limit, shard.n)
        open_ = np.flatnonzero(bad > known + 1)
        while len(open_):
            length = np.where(bad[open_] > limit[open_], step[open_], (known[open_] + bad[open_]) >> 1)
            length = np.minimum(length, limit[open_])
            low, high = self._find_many(shard, tokens, stops[open_] - length, stops[open_], False, True)
            hit = high > low
            yes, no = open_[hit], open_[~hit]
            known[yes], lows[yes], highs[yes], step[yes] = length[hit], low[hit], high[hit], 2 * length[hit]
            bad[no] = length[~hit]
            open_ = open_[bad[open_] > known[open_] + 1]
        return stops - known, lows, highs

    def _straddling(self, q: NDArray[np.int64], inner: bool = False) -> int:
        """Occurrences of q (without its last id, where `inner`) over the boundaries of shards."""
        return sum(counts.sum() for _, counts in self._straddling_next(q[: len(q) - 1])) if inner else len(self._joints(q))

    def _joints(self, q: NDArray[np.int64]) -> list[Any]:
        """Windows of the stream over a boundary of two shards that equal q."""
        found = []
        for window in self._windows(len(q)):
            if np.array_equal(window, q):
                found.append(window)
        return found

    def _straddling_next(self, q: NDArray[np.int64]) -> list[tuple[Any, Any]]:
        """Stored tokens that follow q where q and they together lie over a boundary of shards."""
        found = [w[-1] for w in self._windows(len(q) + 1) if np.array_equal(w[:-1], q)]
        return [(np.array([self._mark if t == self.doc_id else t]), np.array([1])) for t in found]

    def _windows(self, length: int) -> list[NDArray[np.int64]]:
        """Stretches of `length` ids that begin in one shard and end in a later one."""
        found = []
        edge = 0
        for shard in self.shards[:-1]:
            edge += shard.n
            for start in range(max(edge - length + 2, 0), edge):
                stop = start + length
                if edge + 1 < stop <= self.tokens + 1:
                    window = self.read(start, min(stop, self.tokens))
                    found.append(window if stop <= self.tokens else np.append(window, self.doc_id))
        return found

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Ids start..stop of the stream, marks included.

        Raises:
            IndexError: the range is not within 0..tokens.
        """
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens {start}..{stop} of a stream of {self.tokens}")
        pieces, base = [np.empty(0, dtype=np.int64)], 0
        for shard in self.shards:
            a, b = max(start - base, 0), min(stop - base, shard.n)
            if a < b:
                pieces.append(shard.run(within.read, a, b))
            base += shard.n
        stored = np.concatenate(pieces)
        return np.where(stored == self._mark, self.doc_id, stored)


def _description(folder: Path) -> dict[str, Any]:
    if not (folder / DESCRIPTION).is_file() or not (folder / MANIFEST).is_file():
        raise CorruptionError(f"'{folder}' is incomplete or no n-gram index; build it again")
    about = read_json(folder / DESCRIPTION)
    if not isinstance(about, dict) or about.get("kind") != "ngram":
        raise CorruptionError(f"'{folder / DESCRIPTION}' is damaged or not that of an n-gram index; build it again")
    if about.get("format") != FORMAT:
        age = "an older" if about.get("format") == 1 else "a newer"
        raise CorruptionError(f"the index '{folder}' was built by {age} version of Orrery; build it again")
    if about.pop("check", None) != config_hash(about):
        raise CorruptionError(f"'{folder / DESCRIPTION}' is damaged: its content does not match its checksum")
    return about


def _array(ids: Any) -> NDArray[np.int64]:
    """Ids as a contiguous int64 array (n,)."""
    if type(ids) is list:
        try:
            array = np.array(ids)
        except (ValueError, OverflowError) as error:
            raise DataError(f"an n-gram is a sequence of whole numbers: {error}") from error
    else:
        array = ids.detach().cpu().numpy() if hasattr(ids, "detach") else np.asarray(ids)
    if array.dtype != np.int64 or not (array.flags.c_contiguous and array.flags.writeable):
        if array.size and array.dtype.kind not in "iu":
            raise DataError(f"an n-gram is a sequence of whole numbers, not of {array.dtype}")
        array = np.array(array, dtype=np.int64, order="C")  # kernels are compiled for writeable arrays
    if array.ndim != 1:
        raise DataError(f"an n-gram has one dimension, not shape {array.shape}")
    return array


def _joined(context: Any, token: int) -> NDArray[np.int64]:
    if type(context) is list:
        return _array([*context, token])
    before = _array(context)
    joined = np.empty(len(before) + 1, dtype=np.int64)
    joined[:-1], joined[-1] = before, token
    return joined


def flatten(queries: Any, lengths: Any = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Many n-grams as one array and offsets (Q + 1,) into it."""
    if hasattr(queries, "ndim") and queries.ndim == 2:
        table = np.asarray(queries)
        sizes = np.full(len(table), table.shape[1]) if lengths is None else np.asarray(lengths, dtype=np.int64)
        if sizes.shape != (len(table),) or (sizes.size and (sizes.min() < 0 or sizes.max() > table.shape[1])):
            raise DataError(f"lengths must be {len(table)} numbers from 0 to {table.shape[1]}")
        flat = _array(table[np.arange(table.shape[1]) < sizes[:, None]])
    else:
        listed = [each if type(each) is list else _array(each) for each in queries]
        sizes = np.fromiter(map(len, listed), dtype=np.int64, count=len(listed))
        if all(type(each) is list for each in listed):
            flat = _flat(listed)
        else:
            flat = np.concatenate([_array(each) for each in listed])
    return flat, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _flat(listed: list[Any]) -> NDArray[np.int64]:
    """Lists of ids end to end."""
    ids = list(chain.from_iterable(listed))
    try:
        return np.frombuffer(machine_array("q", ids), dtype=np.int64) if ids else np.empty(0, dtype=np.int64)
    except (TypeError, OverflowError):  # said as it is for one n-gram
        return _array(ids)


def _pairs(contexts: Iterable[Ids], ids: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Contexts with the id behind each."""
    flat, offsets = flatten(contexts)
    last = _array(ids)
    if len(last) != len(offsets) - 1:
        raise DataError(f"{len(offsets) - 1} contexts but {len(last)} ids")
    joined, edges = np.empty(len(flat) + len(last), dtype=np.int64), offsets + np.arange(len(offsets))
    inside = np.ones(len(joined), dtype=bool)
    inside[edges[1:] - 1] = False
    joined[inside], joined[edges[1:] - 1] = flat, last
    return joined, edges


def _ratio(count: NDArray[np.int64], total: NDArray[np.int64]) -> NDArray[np.float64]:
    out = np.full(len(count), np.nan)
    np.divide(count, total, out=out, where=total > 0)
    return out


def _merge(parts: list[Any]) -> Any:
    """Hits, totals, lengths and only tokens of several shards: those with the longest suffix count."""
    hits, totals, lengths, only = parts[0]
    for a, b, c, d in parts[1:]:
        longer, equal = c > lengths, c == lengths
        only = np.where(longer, d, np.where(equal & (d != only), -1, only))
        hits = np.where(longer, a, np.where(equal, hits + a, hits))
        totals = np.where(longer, b, np.where(equal, totals + b, totals))
        lengths = np.maximum(lengths, c)
    return hits, totals, lengths, only

