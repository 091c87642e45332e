"""Parts of documents around the place where an n-gram stands, and the places where a conjunction is met.

What :mod:`orrery.ngram.service` answers about documents, in the fields of the public infini-gram API. A place is a
position in the stream of all tokens; a pointer is one in the stream of a shard.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from orrery.core.errors import DataError
from orrery.ngram import within
from orrery.ngram.homes import plain_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from orrery.ngram.answers import Document
    from orrery.ngram.index import Index

POINTERS = 10_000  # places of a conjunction that are listed


class Matches(NamedTuple):
    """Where a conjunction is met: how often, whether that is exact, pointers by shard, whether some were left out."""

    hits: int
    exact: bool
    places: list[list[int]]
    truncated: bool


def single(index: Any) -> Index:
    """The index itself, where it is one that has ranks and pointers.

    Raises:
        DataError: it is several as one.
    """
    if not hasattr(index, "shards"):
        raise DataError("several indexes served as one have no ranks or pointers; use 'documents', or serve them apart")
    found: Index = index
    return found


def start_of(index: Index, shard: int) -> int:
    """Where the stream of a shard begins."""
    return sum(each.n for each in index.shards[:shard])


def place_of_rank(index: Index, shard: int, rank: int) -> int:
    """The place of the suffix of a rank."""
    return start_of(index, shard) + int(index.shards[shard].run(within.positions, rank, rank + 1)[0])


def matches(index: Index, clauses: list[list[list[int]]], window: int, cap: int | None) -> Matches:
    """Places where the rarest clause stands and every other one near it; see :meth:`Index.count_cnf`."""
    from orrery.ngram.index import flatten

    flat, offsets = flatten([term for clause in clauses for term in clause])
    edges = np.cumsum([0, *map(len, clauses)]).astype(np.int64)
    sizes = [sum(index.count(term) for term in clause) for clause in clauses]
    rarest = int(np.argmin(sizes))
    stride = 1 if cap is None else max(1, -(-sizes[rarest] // cap))
    hits, left = 0, POINTERS
    places: list[list[int]] = []
    for number, shard in enumerate(index.shards):
        parts = [np.empty(0, dtype=np.int64)]
        for term in clauses[rarest]:
            parts += [shard.run(within.positions, r.low, r.high) for r in index.find(term) if r.shard == number]
        anchors = np.unique(np.concatenate(parts))[::stride]
        met = _met(shard, (flat, offsets, edges, rarest), anchors, window)
        hits += len(met)
        places.append(met[:left].tolist())
        left -= len(places[-1])
    return Matches(hits * stride, stride == 1, places, hits > POINTERS)


def _met(shard: Any, query: tuple[Any, ...], anchors: NDArray[np.int64], window: int) -> NDArray[np.int64]:
    """The anchors that have all clauses near them: halves of which none or all have are not looked at further."""
    if not len(anchors):
        return anchors
    hits = int(shard.run(within.near, *query, anchors, window))
    if hits in (0, len(anchors)):
        return anchors[: hits or 0]
    middle = len(anchors) // 2
    return np.concatenate([_met(shard, query, half, window) for half in (anchors[:middle], anchors[middle:])])


def first_documents(index: Index, found: Matches, limit: int) -> list[int]:
    """A place in each of the first documents that hold a match."""
    places = np.concatenate([start_of(index, s) + np.array(p, dtype=np.int64) for s, p in enumerate(found.places)])
    firsts = np.unique(index.catalogue.numbers(places), return_index=True)[1]
    return [int(place) for place in places[firsts[:limit]]]


def passage(index: Index, place: int, clauses: list[list[list[int]]], limit: int) -> dict[str, Any]:
    """The document at a place: as much of it as `limit` tokens allow, the place in the middle, n-grams marked.

    Raises:
        DataError: nothing stands there.
    """
    if not 0 <= place < index.tokens:
        raise DataError(f"there is no token {place}; the index holds {index.tokens:,}")
    number = int(index.catalogue.numbers(np.array([place]))[0])
    start, stop = index.catalogue.bounds(number)
    first, last = start + 1, stop
    if last - first > limit:
        longest = max((len(term) for clause in clauses for term in clause), default=0)
        first = min(max(first, place - max(0, limit - longest) // 2), last - limit)
        last = first + limit
    ids = index.read(first, last)
    return {
        "doc_ix": number,
        "doc_len": stop - start - 1,
        "disp_len": len(ids),
        "needle_offset": max(0, place - first),
        "metadata": json.dumps({"name": index.catalogue.name(number)}, ensure_ascii=False),
        "token_ids": ids.tolist(),
        "spans": _spans(index, ids, clauses),
        "blocked": False,
    }


def _spans(index: Index, ids: NDArray[np.int64], clauses: list[list[list[int]]]) -> list[list[Any]]:
    """The text in pieces: those that are an n-gram of a clause with the clause's number, the others with None."""
    owner = np.full(len(ids), -1, dtype=np.int64)  # the start of the n-gram that a token belongs to
    label: dict[int, str] = {}
    for clause, terms in enumerate(clauses):
        for term in terms:
            if not 0 < len(term) <= len(ids):
                continue
            equal = (np.lib.stride_tricks.sliding_window_view(ids, len(term)) == np.array(term)).all(axis=1)
            for start in np.flatnonzero(equal).tolist():
                if (owner[start : start + len(term)] < 0).all():
                    owner[start : start + len(term)] = start
                    label[start] = str(clause)
    cuts = [0, *(np.flatnonzero(owner[1:] != owner[:-1]) + 1).tolist(), len(ids)] if len(ids) else [0]
    pieces = zip(cuts[:-1], cuts[1:], strict=True)
    return [[plain_text(index, ids[a:b]), label.get(int(owner[a]))] for a, b in pieces]


def described(one: Document, most: int) -> dict[str, Any]:
    """A document in JSON, at most `most` of its ids and of the places."""
    return {**one._asdict(), "ids": one.ids[:most].tolist(), "places": one.places[:most]}
