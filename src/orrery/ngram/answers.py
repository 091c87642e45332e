"""What queries answer: counts beside every probability, and whether anything was left out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Probability(NamedTuple):
    """P(id | context) = hits / total; NaN where the context never occurs (total 0)."""

    prob: float
    hits: int
    total: int


class InfProbability(NamedTuple):
    """P(id | longest suffix of the context that occurs). n: its length. sparse: only one id was ever seen after it."""

    prob: float
    hits: int
    total: int
    n: int
    sparse: bool


class Next(NamedTuple):
    """Continuations that occur: ids (K,) ascending, counts (K,) of each; K = 0 where the context never occurs."""

    ids: np.ndarray
    counts: np.ndarray


class InfNext(NamedTuple):
    """:class:`Next` of the longest suffix that occurs, n ids long; sparse: K = 1. total: the sum of the counts."""

    ids: np.ndarray
    counts: np.ndarray
    n: int
    sparse: bool
    total: int


class InfBatch(NamedTuple):
    """:class:`InfProbability` of many pairs, as arrays (Q,)."""

    prob: np.ndarray
    hits: np.ndarray
    total: np.ndarray
    n: np.ndarray
    sparse: np.ndarray


class Scores(NamedTuple):
    """Every position of a text given all before it, as arrays (T,): see :class:`InfProbability`."""

    prob: np.ndarray
    n: np.ndarray
    sparse: np.ndarray
    hits: np.ndarray
    total: np.ndarray


class CnfCount(NamedTuple):
    """Matches of a conjunction of clauses. exact: False where a cap was asked for and a clause has more occurrences."""

    matches: int
    exact: bool


class Range(NamedTuple):
    """Ranks low..high of the suffixes of one shard that begin with an n-gram; their number is its count.

    In a sampled index ranks are numbers of their own (:mod:`orrery.ngram.sampled_loops`), with the same difference.
    """

    shard: int
    low: int
    high: int


class Document(NamedTuple):
    """A document that holds an n-gram.

    id: its number in the index. name: of its file or record. start, stop: where it stands in the stream of all tokens,
    its mark included. length: ids without the mark. places: offsets in the document at which the n-gram begins, 0 being
    the first id behind the mark (-1: the mark itself). ids: of the document, or of the part that was asked for.
    offset: where that part begins.
    """

    id: int
    name: str
    start: int
    stop: int
    length: int
    places: list[int]
    ids: np.ndarray
    offset: int


class Span(NamedTuple):
    """A stretch start..stop of a text that occurs verbatim and cannot be made longer at either end.

    times: how often it occurs. documents: some of those that hold it.
    """

    start: int
    stop: int
    times: int
    documents: list[Document]
