"""Searching a shard for many n-grams: sixteen at a time, step by step together.

A binary search waits for memory at every step, since each step says where the next one reads. Those of different queries do
not depend on one another: a step first reads the suffixes of all sixteen, then touches the tokens of all, then compares, so
the memory serves them at the same time. Comparisons are of whole words of tokens (:func:`~orrery.ngram.pages.key_at`) and
without branches that would be guessed wrong.

Kernels take *stored* tokens (:func:`translate`). What they find is what :mod:`orrery.ngram.search` finds, one by one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orrery.ngram.compiled import bare, inlined, tiny
from orrery.ngram.pages import key_at, suffix_at, token_at, unpack, word

_GROUP = 16  # queries that are searched together: as many reads as a core can wait for at once


def workspace() -> NDArray[np.int64]:
    """What a kernel writes down on its way: one for each thread."""
    return np.zeros((9, 2 * _GROUP), dtype=np.int64)


@bare
def translate(meta, q, tokens):  # type: ignore[no-untyped-def]
    """Ids as they are stored: the document mark is all ones, -1 an id that cannot occur. Returns the index of an invalid id or -1."""
    mark, doc, ids = meta[4], meta[11], meta[12]
    bad = -1
    for i in range(len(q)):
        x = q[i]
        if (x < 0 or x >= ids) and bad < 0:
            bad = i
        tokens[i] = mark if x == doc else (x if x < mark else -1)
    return bad


@inlined
def _compare(W, ok, g, s, start, stop, position, depth):  # type: ignore[no-untyped-def]
    """-1, 0, 1: how the suffix at a position stands to s[start:stop], of which `depth` tokens are known to agree."""
    for d in range(depth, stop - start):
        t = token_at(W, ok, g, position + d)
        if t != s[start + d]:
            return -1 if t < s[start + d] else 1
    return 0


@tiny
def _under(W, ok, g, s, start, stop, least, most, position, above):  # type: ignore[no-untyped-def]
    """Whether the suffix at a position stands before s[start:stop], or, with `above`, before or at it.

    least, most: the keys of the first and the last suffix that begin as the n-gram does.
    """
    if position + g[13] > g[0] + 1:
        return _compare(W, ok, g, s, start, stop, position, 0) < above
    key = key_at(W, ok, g, position)
    if stop - start <= g[13]:
        return key <= most if above else key < least
    if key != least:
        return key < least
    return _compare(W, ok, g, s, start, stop, position, g[13]) < above


@inlined
def _bound(W, ok, g, s, start, stop, low, high, above):  # type: ignore[no-untyped-def]
    """First rank in low..high that does not stand before the n-gram (`above`: that stands behind it)."""
    while low < high:
        middle = (low + high) >> 1
        if _compare(W, ok, g, s, start, stop, suffix_at(W, ok, g, middle), 0) < above:
            low = middle + 1
        else:
            high = middle
    return low


@inlined
def _holds(W, ok, g, s, start, stop, rank, above):  # type: ignore[no-untyped-def]
    """Whether `rank` is the bound: what stands before it is below, what stands at it is not."""
    if rank > 0 and _compare(W, ok, g, s, start, stop, suffix_at(W, ok, g, rank - 1), 0) >= above:
        return False
    return rank == g[0] or _compare(W, ok, g, s, start, stop, suffix_at(W, ok, g, rank), 0) >= above


@inlined
def _guide(W, g, least, most, first, last, m):  # type: ignore[no-untyped-def]
    """first, last (m,): the first entries of the guide that are >= least, and > most; all searches take the same steps."""
    base, size = g[8], g[9]
    for k in range(m):
        first[k], last[k] = 0, 0
    while size > 1:
        half = size >> 1
        for k in range(m):
            first[k] += half * (W[base + first[k] + half - 1] < least[k])
            last[k] += half * (W[base + last[k] + half - 1] <= most[k])
        size -= half
    if size == 1:
        for k in range(m):
            first[k] += 1 * (W[base + first[k]] < least[k])
            last[k] += 1 * (W[base + last[k]] <= most[k])


@inlined
def _touch(W, ok, g, ranks, places, m):  # type: ignore[no-untyped-def]
    """Positions of the suffixes with these ranks (-1: none) into places[:m]; their tokens are on their way then."""
    for k in range(m):
        if ranks[k] >= 0:
            places[k] = suffix_at(W, ok, g, ranks[k])
    for k in range(m):
        if ranks[k] >= 0:
            places[_GROUP + k] = word(W, ok, g[7], places[k] >> g[1])


@inlined
def _narrow(W, ok, g, s, starts, stops, base, m, keys, a, b, ranks, places, above):  # type: ignore[no-untyped-def]
    """Halve a[k]..b[k] of m queries together until each is a bound."""
    left = 1
    while left > 0:
        left = 0
        for k in range(m):
            ranks[k] = (a[k] + b[k]) >> 1 if a[k] < b[k] else -1
            left += a[k] < b[k]
        _touch(W, ok, g, ranks, places, m)
        for k in range(m):
            if ranks[k] >= 0:
                i = base + k
                if _under(W, ok, g, s, starts[i], stops[i], keys[0, k], keys[1, k], places[k], above):
                    a[k] = ranks[k] + 1
                else:
                    b[k] = ranks[k]


@inlined
def _gallop(W, ok, g, s, starts, stops, base, m, keys, a, b, steps, ranks, places):  # type: ignore[no-untyped-def]
    """For queries whose steps[k] is 1: from a[k], which matches, steps of 1, 2, 4 ... until the upper bound is in a[k]..b[k]."""
    left = 1
    while left > 0:
        left = 0
        for k in range(m):
            ranks[k] = a[k] + steps[k] if steps[k] > 0 and a[k] + steps[k] < b[k] else -1
            left += ranks[k] >= 0
        _touch(W, ok, g, ranks, places, m)
        for k in range(m):
            if ranks[k] >= 0:
                i = base + k
                if _under(W, ok, g, s, starts[i], stops[i], keys[0, k], keys[1, k], places[k], 1):
                    a[k] = ranks[k]
                    steps[k] <<= 1
                else:
                    b[k] = ranks[k]
                    steps[k] = 0


@inlined
def _possible(s, start, stop, mark, across, inner):  # type: ignore[no-untyped-def]
    """Whether s[start:stop] can be looked for: some tokens, all of them possible, none a mark inside."""
    if start == stop:
        return False
    for i in range(start, stop):  # noqa: SIM110 - numba has no all() over a generator
        if s[i] < 0 or (not across and s[i] == mark and i > start and (inner or i + 1 < stop)):
            return False
    return True


@inlined
def _keys(g, s, start, stop, keys, k):  # type: ignore[no-untyped-def]
    """Least and greatest key of suffixes that begin with s[start:stop]."""
    bits, length = 64 // g[13], stop - start
    least = s[start] - (1 << (bits - 1))
    most = least
    for d in range(1, g[13]):
        least = (least << bits) + (s[start + d] if d < length else 0)
        most = (most << bits) + (s[start + d] if d < length else g[4])
    keys[0, k], keys[1, k] = least, most


@bare
def find_many(W, ok, meta, s, starts, stops, across, inner, lows, highs, work):  # type: ignore[no-untyped-def]
    """Ranks lows[i]..highs[i] of s[starts[i]:stops[i]]: :func:`orrery.ngram.search.find_in` of many. work: :func:`workspace`."""
    g = unpack(meta)
    a, b, first, last, steps, ranks, places = work[0], work[1], work[2], work[3], work[4], work[5], work[6]
    keys = work[7:9]
    for base in range(0, len(lows), _GROUP):
        m = min(_GROUP, len(lows) - base)
        for k in range(m):
            i = base + k
            steps[k] = _possible(s, starts[i], stops[i], g[4], across, inner)
            if steps[k]:
                _keys(g, s, starts[i], stops[i], keys, k)
        _guide(W, g, keys[0], keys[1], first, last, m)
        for k in range(m):
            a[k] = max(0, (first[k] - 1) << g[10]) if steps[k] else 0
            long = stops[base + k] - starts[base + k] > g[13]
            b[k] = min(g[0], (last[k] if long else first[k]) << g[10]) if steps[k] else 0
            lows[base + k], highs[base + k] = a[k], b[k]
        _narrow(W, ok, g, s, starts, stops, base, m, keys, a, b, ranks, places, 0)
        for k in range(m):
            ranks[k] = a[k] if steps[k] and a[k] < g[0] else -1
        _touch(W, ok, g, ranks, places, m)
        for k in range(m):
            i = base + k
            if not steps[k]:
                continue
            start, stop, guided = starts[i], stops[i], True
            if (a[k] == lows[i] or a[k] == highs[i]) and not _holds(W, ok, g, s, start, stop, a[k], 0):
                a[k] = _bound(W, ok, g, s, start, stop, 0, g[0], 0)
                guided = False
                places[k] = suffix_at(W, ok, g, a[k]) if a[k] < g[0] else 0
            low = a[k]
            lows[i], b[k] = low, low
            if low == g[0] or _compare(W, ok, g, s, start, stop, places[k], 0) != 0:
                steps[k] = 0
                continue
            b[k] = max(low + 1, min(g[0], last[k] << g[10])) if guided else g[0]
            if stop - start <= g[13] and guided:
                steps[k] = 0
                a[k] = min(b[k], max(low + 1, (last[k] - 1) << g[10]))
            highs[i] = -1 if stop - start > g[13] or not guided else a[k]
            last[k] = b[k] if guided else -1
        _gallop(W, ok, g, s, starts, stops, base, m, keys, a, b, steps, ranks, places)
        _narrow(W, ok, g, s, starts, stops, base, m, keys, a, b, ranks, places, 1)
        for k in range(m):
            i = base + k
            if starts[i] == stops[i]:
                lows[i], highs[i] = 0, g[0]
            else:
                _close(W, ok, g, s, starts[i], stops[i], a[k], last[k], i, lows, highs)
            if inner and lows[i] < highs[i] and suffix_at(W, ok, g, lows[i]) + stops[i] - starts[i] > g[0]:
                lows[i] += 1


@inlined
def _close(W, ok, g, s, start, stop, high, last, i, lows, highs):  # type: ignore[no-untyped-def]
    """Set the upper bound; one at an edge that the guide gave is looked at again."""
    edge = high > lows[i] and (high == highs[i] or high == last)
    highs[i] = high
    if edge and not _holds(W, ok, g, s, start, stop, high, 1):
        highs[i] = _bound(W, ok, g, s, start, stop, lows[i], g[0], 1)


@bare
def follow_many(W, ok, meta, lows, highs, depths, tokens, hits, only, work):  # type: ignore[no-untyped-def]
    """How many of the suffixes lows[i]..highs[i], which agree in depths[i] tokens, go on with tokens[i].

    only[i]: the one token that follows all of them, -1 if there are several (or no suffix).
    """
    g = unpack(meta)
    a, b, ranks, places, deep, least, most = work[0], work[1], work[2], work[3], work[4], work[5], work[6]
    for base in range(0, len(lows), _GROUP):
        m = min(_GROUP, len(lows) - base)
        for k in range(m):
            ranks[k] = lows[base + k] if lows[base + k] < highs[base + k] else -1
            deep[k] = depths[base + k]
        _tokens_behind(W, ok, g, ranks, deep, places, least, m)
        for k in range(m):
            ranks[k] = highs[base + k] - 1 if lows[base + k] < highs[base + k] else -1
        _tokens_behind(W, ok, g, ranks, deep, places, most, m)
        for k in range(m):
            i = base + k
            some, token = lows[i] < highs[i], tokens[i]
            only[i] = least[k] if some and least[k] == most[k] else -1
            hits[i] = highs[i] - lows[i] if only[i] == token and some and token >= 0 else 0
            open_ = some and only[i] < 0 and token >= least[k] and token <= most[k]
            a[k], b[k] = lows[i], highs[i] - 1 if open_ and token > least[k] else lows[i]
            least[k] = open_
        _narrow_behind(W, ok, g, tokens, base, m, deep, a, b, ranks, places, 0)
        for k in range(m):
            i = base + k
            hits[i] -= a[k] * least[k]
            b[k] = (highs[i] if tokens[i] == most[k] else highs[i] - 1) if least[k] else a[k]
            if least[k] and tokens[i] == most[k]:
                a[k] = highs[i]
        _narrow_behind(W, ok, g, tokens, base, m, deep, a, b, ranks, places, 1)
        for k in range(m):
            hits[base + k] += a[k] * least[k]


@inlined
def _tokens_behind(W, ok, g, ranks, deep, places, found, m):  # type: ignore[no-untyped-def]
    """The tokens deep[k] behind the beginnings of suffixes; ranks of -1 are left out."""
    for k in range(m):
        if ranks[k] >= 0:
            places[k] = suffix_at(W, ok, g, ranks[k]) + deep[k]
    for k in range(m):
        if ranks[k] >= 0:
            found[k] = token_at(W, ok, g, places[k])


@inlined
def _narrow_behind(W, ok, g, tokens, base, m, deep, a, b, ranks, places, above):  # type: ignore[no-untyped-def]
    """:func:`_narrow` by the token deep[k] behind the beginning."""
    left = 1
    while left > 0:
        left = 0
        for k in range(m):
            ranks[k] = (a[k] + b[k]) >> 1 if a[k] < b[k] else -1
            left += a[k] < b[k]
        _tokens_behind(W, ok, g, ranks, deep, places, places[_GROUP:], m)
        for k in range(m):
            if ranks[k] >= 0:
                if places[_GROUP + k] < tokens[base + k] + above:
                    a[k] = ranks[k] + 1
                else:
                    b[k] = ranks[k]


@bare
def last_marks(meta, s, starts, stops):  # type: ignore[no-untyped-def]
    """Move every start to the last document mark of its context, if there is one."""
    for i in range(len(starts)):
        for k in range(stops[i] - 1, starts[i], -1):
            if s[k] == meta[4]:
                starts[i] = k
                break
