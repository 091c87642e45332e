"""Interpolated modified Kneser-Ney over token arrays: counted, not trained.

Paper: An Empirical Study of Smoothing Techniques for Language Modeling (Chen and Goodman 1998; cmp-lg/9606011 and TR-10-98).

    P_n(w | h) = max(c(h w) - D(c(h w)), 0) / c(h .)  +  g(h) P_(n-1)(w | h')        h' = h without its first token
    g(h)       = (D1 N1(h .) + D2 N2(h .) + D3 N3+(h .)) / c(h .)
    Y = n1 / (n1 + 2 n2);  D1 = 1 - 2Y n2/n1;  D2 = 2 - 3Y n3/n2;  D3 = 3 - 4Y n4/n3     (per order, from counts of counts)
    c is the number of occurrences at the highest order, and below it the number of different tokens seen before
    (h w): its continuation count. Below the unigrams stands the uniform distribution 1 / V.

Every order is one sorted array of keys (id of the context at the order below) * V + w, so that fitting is sorting and
scoring is binary search. n-grams do not reach over a document's start.

V vocabulary, N tokens, n order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orrery.core.errors import DataError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Level:
    """One order: its n-grams in the order of their keys, and sums over each context.

    keys: (G,) sorted; counts: (G,) occurrences or continuations.
    total, one, two, more: (C,) per context id: sum of counts, and how many continuations have count 1, 2, 3 or more.
    discounts: D1, D2, D3.
    """

    keys: Ints
    counts: Ints
    total: Ints
    one: Ints
    two: Ints
    more: Ints
    discounts: tuple[float, float, float]

    def find(self, context: Ints, token: Ints, vocabulary: int) -> Ints:
        """Index of each n-gram, -1 where it was not seen; context -1 stands for an unseen context."""
        wanted = context * vocabulary + token
        index = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where((context >= 0) & (self.keys[index] == wanted), index, -1)

    def discounted(self, counts: Ints) -> Floats:
        """max(c - D(c), 0)."""
        table = np.array([0.0, *self.discounts])
        return np.maximum(counts - table[np.minimum(counts, 3)], 0.0)

    def reserve(self, context: Ints) -> Floats:
        """g(h): the share of a seen context's mass that goes to the order below."""
        d1, d2, d3 = self.discounts
        return (d1 * self.one[context] + d2 * self.two[context] + d3 * self.more[context]) / self.total[context]


class KneserNey:
    """A fitted model. `levels[n-1]` holds the n-grams; orders for which the text is too short are left out."""

    def __init__(self, levels: list[Level], vocabulary: int, document: int | None) -> None:
        self.levels, self.vocabulary, self.document = levels, vocabulary, document

    @property
    def order(self) -> int:
        """The longest n-gram."""
        return len(self.levels)

    @classmethod
    def fit(cls, tokens: NDArray[np.integer], vocabulary: int, order: int = 5, document: int | None = None) -> KneserNey:
        """Count the n-grams of a stream.

        Args:
            tokens: (N,) ids below `vocabulary`.
            order: the longest n-gram, 1 or more.
            document: the id that begins a document; None: one document.

        Raises:
            DataError: for an empty stream or ids outside the vocabulary.
        """
        stream = np.asarray(tokens, dtype=np.int64)
        if stream.size == 0:
            raise DataError("an n-gram model needs at least one token to count")
        if stream.min() < 0 or stream.max() >= vocabulary:
            raise DataError(f"token {stream.max()} is outside the vocabulary of {vocabulary}")
        ends = _unique_ends(stream, vocabulary, order, document)
        levels = []
        for n, (keys, ids, _) in enumerate(ends):
            if n + 1 < len(ends):  # continuation counts: over the different n-grams one longer, their suffix of this order
                longer_first = ends[n + 1][2]
                counts = np.bincount(ids[longer_first], minlength=len(keys))
                opening = counts == 0  # only ever at a document's start, where nothing stands before
                counts[opening] = np.bincount(ids[ids >= 0], minlength=len(keys))[opening]
            else:
                counts = np.bincount(ids[ids >= 0], minlength=len(keys))
            contexts = len(ends[n - 1][0]) if n else 1
            levels.append(_level(keys, counts, vocabulary, contexts))
        return cls(levels, vocabulary, document)

    def log_probabilities(self, tokens: NDArray[np.integer]) -> Floats:
        """Natural logarithm of the probability of each token given those before it in the array: (N,) -> (N,)."""
        stream = np.asarray(tokens, dtype=np.int64)
        probability = np.full(len(stream), 1.0 / self.vocabulary)
        context = np.zeros(len(stream), dtype=np.int64)
        start = _starts(stream, self.document)
        place = np.arange(len(stream))
        for n, level in enumerate(self.levels):
            usable = (context >= 0) & (place - n >= start)
            context = np.where(usable, context, -1)
            found = level.find(context, stream, self.vocabulary)
            probability = self._blend(level, context, found, probability)
            context = np.concatenate([[-1], found[:-1]])
            context[start == place] = -1
        return np.log(probability)

    def distribution(self, context: NDArray[np.integer]) -> Floats:
        """P(w | context) for every w: (V,), summing to 1. Only the last order - 1 tokens matter."""
        history = np.asarray(context, dtype=np.int64)[-(self.order - 1) :] if self.order > 1 else np.empty(0, np.int64)
        if self.document is not None and len(history):
            last = np.flatnonzero(history == self.document)
            history = history[last[-1] :] if len(last) else history
        words = np.arange(self.vocabulary)
        probability = np.full(self.vocabulary, 1.0 / self.vocabulary)
        for n, level in enumerate(self.levels[: len(history) + 1]):
            identity = self._context(history[len(history) - n :])
            if identity < 0:
                break
            context_ids = np.full(self.vocabulary, identity)
            probability = self._blend(level, context_ids, level.find(context_ids, words, self.vocabulary), probability)
        return probability

    def _context(self, history: Ints) -> int:
        """Id of an n-gram at its own order, -1 if unseen, 0 for the empty one."""
        identity = np.zeros(1, dtype=np.int64)
        for n, token in enumerate(history):
            identity = self.levels[n].find(identity, np.array([token]), self.vocabulary)
        return int(identity[0])

    def _blend(self, level: Level, context: Ints, found: Ints, below: Floats) -> Floats:
        """One step of the interpolation; where the context is unseen, or never continued, the order below stands."""
        known = context >= 0
        known &= np.where(known, level.total[np.maximum(context, 0)], 0) > 0
        safe = np.where(known, context, int(np.argmax(level.total > 0)))
        own = np.where(found >= 0, level.discounted(level.counts[np.maximum(found, 0)]), 0.0) / level.total[safe]
        return np.where(known, own + level.reserve(safe) * below, below)


def _starts(stream: Ints, document: int | None) -> Ints:
    """Index of the document's first token, for every token."""
    if document is None:
        return np.zeros(len(stream), dtype=np.int64)
    begins = np.where(stream == document, np.arange(len(stream)), 0)
    return np.maximum.accumulate(begins)


def _unique_ends(stream: Ints, vocabulary: int, order: int, document: int | None) -> list[tuple[Ints, Ints, Ints]]:
    """Per order: sorted keys, the id of the n-gram that ends at each position (-1: none), a position of each n-gram."""
    start, place = _starts(stream, document), np.arange(len(stream))
    context, result = np.zeros(len(stream), dtype=np.int64), []
    for n in range(order):
        here = np.flatnonzero((place - n >= start) & (context >= 0))
        if len(here) == 0:
            break
        keys, first, inverse = np.unique(context[here] * vocabulary + stream[here], return_index=True, return_inverse=True)
        ids = np.full(len(stream), -1, dtype=np.int64)
        ids[here] = inverse
        result.append((keys, ids, here[first]))
        context = np.concatenate([[-1], ids[:-1]])
    return result


def _level(keys: Ints, counts: Ints, vocabulary: int, contexts: int) -> Level:
    context = keys // vocabulary
    total = np.bincount(context, weights=counts, minlength=contexts).astype(np.int64)
    one, two = (np.bincount(context[counts == c], minlength=contexts) for c in (1, 2))
    more = np.bincount(context[counts >= 3], minlength=contexts)
    return Level(keys, counts, total, one, two, more, _discounts(counts))


def _discounts(counts: Ints) -> tuple[float, float, float]:
    """Chen and Goodman's estimates; where a count of counts is missing, absolute discounting with Y (or 0.5) stands in."""
    n1, n2, n3, n4 = (int((counts == c).sum()) for c in (1, 2, 3, 4))
    if n1 == 0 or n2 == 0:
        return 0.5, 0.5, 0.5
    y = n1 / (n1 + 2 * n2)
    d1 = 1 - 2 * y * n2 / n1
    d2 = 2 - 3 * y * n3 / n2 if n3 else y
    d3 = 3 - 4 * y * n4 / n3 if n3 and n4 else d2
    return _within(d1, 1), _within(d2, 2), _within(d3, 3)


def _within(value: float, most: float) -> float:
    """Discounts lie in (0, c): mass is taken from every n-gram, and none is taken twice."""
    return min(max(value, 1e-3), most)
