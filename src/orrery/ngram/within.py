"""What stands in a range of ranks of a shard: continuations with their counts, positions, the text around them.

Kernels as in :mod:`orrery.ngram.search`.
"""

from __future__ import annotations

import numpy as np

from orrery.ngram.compiled import bare, inlined, kernel
from orrery.ngram.pages import suffix_at, token_at, unpack
from orrery.ngram.search import compare, find_in, invalid, longest


@inlined
def continuations(W, ok, g, low, high, depth, tokens, counts):  # type: ignore[no-untyped-def]
    """Stored tokens behind the `depth` tokens that low..high share, ascending, and how often each follows; how many there are.

    Galloping: the end of a token's run is found by steps of 1, 2, 4 ..., then by halving.
    """
    found, i = 0, low
    t = token_at(W, ok, g, suffix_at(W, ok, g, i) + depth) if low < high else -1
    while i < high and found < len(tokens):
        a, step, b, behind = i, 1, high, -1
        while a + step < high:
            u = token_at(W, ok, g, suffix_at(W, ok, g, a + step) + depth)
            if u != t:
                b, behind = a + step, u
                break
            a += step
            step <<= 1
        while b - a > 1:
            middle = (a + b) >> 1
            u = token_at(W, ok, g, suffix_at(W, ok, g, middle) + depth)
            if u == t:
                a = middle
            else:
                b, behind = middle, u
        tokens[found] = t
        counts[found] = b - i
        found += 1
        i, t = b, behind
    return found


@bare
def next_tokens(W, ok, meta, low, high, depth, tokens, counts):  # type: ignore[no-untyped-def]
    """:func:`continuations` of a range that is known."""
    return continuations(W, ok, unpack(meta), low, high, depth, tokens, counts)


@bare
def find_next(W, ok, meta, q, across, most, tokens, counts):  # type: ignore[no-untyped-def]
    """(low, high, index of an invalid id or -1, number of continuations) behind q; none are counted in ranges above `most`."""
    g = unpack(meta)
    bad = invalid(q, 0, len(q), g)
    low, high = 0, 0
    if bad < 0:
        low, high = find_in(W, ok, g, q, 0, len(q), across, True)
    found = continuations(W, ok, g, low, high if high - low <= most else low, len(q), tokens, counts)
    return low, high, bad, found


@bare
def inf_find_next(W, ok, meta, q, most, tokens, counts):  # type: ignore[no-untyped-def]
    """:func:`find_next` behind the longest suffix that occurs, whose length comes first."""
    g = unpack(meta)
    bad = invalid(q, 0, len(q), g)
    low, high, begin = 0, 0, len(q)
    if bad < 0:
        low, high, begin = longest(W, ok, g, q, 0, len(q))
    found = continuations(W, ok, g, low, high if high - low <= most else low, len(q) - begin, tokens, counts)
    return len(q) - begin, low, high, bad, found


@inlined
def _any_at(W, ok, g, q, offsets, first, last, position):  # type: ignore[no-untyped-def]
    """Whether one of the n-grams first..last begins at a position."""
    for term in range(first, last):  # noqa: SIM110 - numba has no any() over a generator
        if compare(W, ok, g, q, offsets[term], offsets[term + 1], position, 0) == 0:
            return True
    return False


@bare
def near(W, ok, meta, q, offsets, edges, rarest, anchors, window):  # type: ignore[no-untyped-def]
    """How many anchors have, for every clause but `rarest`, one of its n-grams within `window` in their document.

    Clause c holds the n-grams edges[c]..edges[c + 1], n-gram i is q[offsets[i]:offsets[i + 1]]. The text around an
    anchor is looked through, outwards, so that it does not matter how frequent the other clauses are.
    """
    g = unpack(meta)
    hits = 0
    for k in range(len(anchors)):
        middle = anchors[k]
        first, last = middle, middle  # of the places in the window that lie in the document, its mark included
        while first > 0 and middle - first < window and token_at(W, ok, g, first) != g[4]:
            first -= 1
        while last + 1 < g[0] and last - middle < window and token_at(W, ok, g, last + 1) != g[4]:
            last += 1
        met = True
        for clause in range(len(edges) - 1):
            if clause == rarest:
                continue
            met = False
            for away in range(max(middle - first, last - middle) + 1):
                if middle - away >= first and _any_at(W, ok, g, q, offsets, edges[clause], edges[clause + 1], middle - away):
                    met = True
                    break
                if middle + away <= last and _any_at(W, ok, g, q, offsets, edges[clause], edges[clause + 1], middle + away):
                    met = True
                    break
            if not met:
                break
        hits += met
    return hits


@kernel
def positions(W, ok, meta, low, high):  # type: ignore[no-untyped-def]
    """Positions of the suffixes of ranks low..high, in that order."""
    g = unpack(meta)
    found = np.empty(high - low, np.int64)
    for i in range(low, high):
        found[i - low] = suffix_at(W, ok, g, i)
    return found


@kernel
def read(W, ok, meta, start, stop):  # type: ignore[no-untyped-def]
    """Stored tokens start..stop."""
    g = unpack(meta)
    found = np.empty(stop - start, np.int64)
    for i in range(start, stop):
        found[i - start] = token_at(W, ok, g, i)
    return found
