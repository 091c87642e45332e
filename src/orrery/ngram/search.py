"""Searching a shard: binary search over its suffix array, from a guide that stays in the processor's cache.

Kernels take a shard's words as :mod:`orrery.ngram.pages` says, and queries as int64 ids; many queries at once are searched
in :mod:`orrery.ngram.batches`. A query's lower and upper bound are found from the guide (the first 8 bytes of every so-many-th
suffix, in order), then in the array; the guide is never believed: a bound that it gave must hold in the array, or
the whole array is searched.

Infini-gram (2401.17377): the longest suffix of a context that occurs is found by doubling and halving its length.
"""

from __future__ import annotations

from orrery.ngram.compiled import bare, inlined, tiny
from orrery.ngram.pages import suffix_at, token_at, unpack


@tiny
def stored(q, i, g):  # type: ignore[no-untyped-def]
    """Stored form of the i-th id: the document mark is all ones; -1 for an id that cannot occur."""
    x = q[i]
    if x == g[11]:
        return g[4]
    if x >= g[4]:
        return -1
    return x


@tiny
def compare(W, ok, g, q, start, stop, position, depth):  # type: ignore[no-untyped-def]
    """-1, 0, 1: how the suffix at a position stands to q[start:stop], of which `depth` tokens are known to agree."""
    for d in range(depth, stop - start):
        t = token_at(W, ok, g, position + d)
        x = stored(q, start + d, g)
        if t != x:
            return -1 if t < x else 1
    return 0


@inlined
def bound(W, ok, g, q, start, stop, low, high, least, depth):  # type: ignore[no-untyped-def]
    """First rank in low..high whose suffix stands to the query at `least` (0: the lower bound, 1: the upper) or above."""
    while low < high:
        middle = (low + high) >> 1
        if compare(W, ok, g, q, start, stop, suffix_at(W, ok, g, middle), depth) < least:
            low = middle + 1
        else:
            high = middle
    return low


@inlined
def guided(W, g, wanted, above):  # type: ignore[no-untyped-def]
    """First entry of the guide that is >= wanted, or > wanted."""
    low, high = 0, g[9]
    while low < high:
        middle = (low + high) >> 1
        key = W[g[8] + middle]
        if key < wanted or (above and key == wanted):
            low = middle + 1
        else:
            high = middle
    return low


@inlined
def holds(W, ok, g, q, start, stop, rank, least):  # type: ignore[no-untyped-def]
    """Whether `rank` is the bound: what stands before it is below, what stands at it is not."""
    if rank > 0 and compare(W, ok, g, q, start, stop, suffix_at(W, ok, g, rank - 1), 0) >= least:
        return False
    return rank == g[0] or compare(W, ok, g, q, start, stop, suffix_at(W, ok, g, rank), 0) >= least


@inlined
def bracket(W, g, q, start, stop):  # type: ignore[no-untyped-def]
    """What the guide says: ranks between which the lower bound lies, and those of the upper (from -1: not known)."""
    n, length, per, bits = g[0], stop - start, g[13], 64 // g[13]
    least = stored(q, start, g) - (1 << (bits - 1))  # keys are signed, so that their order is that of int64
    most = least
    for d in range(1, per):
        least = (least << bits) + (stored(q, start + d, g) if d < length else 0)
        most = (most << bits) + (stored(q, start + d, g) if d < length else g[4])
    first = guided(W, g, least, False)
    last = guided(W, g, most, True) if first < g[9] and W[g[8] + first] <= most else first
    lowest, highest = max(0, (first - 1) << g[10]), min(n, last << g[10])
    if length > per:
        return lowest, highest, -1, highest
    return lowest, min(n, first << g[10]), max(0, (last - 1) << g[10]), highest


@inlined
def settle_low(W, ok, g, q, start, stop, low, first, last, upper, highest):  # type: ignore[no-untyped-def]
    """(lower bound, from, to of the upper bound); a lower bound at an edge of what the guide gave is looked at again.

    The upper bound is the lower one where nothing matches.
    """
    if low in (first, last) and not holds(W, ok, g, q, start, stop, low, 0):
        low = bound(W, ok, g, q, start, stop, 0, g[0], 0, 0)
        upper, highest = -1, g[0]
    if low == g[0] or compare(W, ok, g, q, start, stop, suffix_at(W, ok, g, low), 0) != 0:
        return low, low, low
    highest = max(highest, low + 1)  # something matches, whatever the guide says
    if upper >= 0:
        return low, max(low + 1, min(highest, upper)), highest
    step, reached = 1, low
    while low + step < highest and compare(W, ok, g, q, start, stop, suffix_at(W, ok, g, low + step), 0) <= 0:
        reached = low + step
        step <<= 1
    return low, reached, min(highest, low + step)


@inlined
def settle_high(W, ok, g, q, start, stop, low, high, first, last):  # type: ignore[no-untyped-def]
    """The upper bound, looked for everywhere if the one at an edge does not hold."""
    if last > low and high in (first, last) and not holds(W, ok, g, q, start, stop, high, 1):
        return bound(W, ok, g, q, start, stop, low, g[0], 1, 0)
    return high


@inlined
def impossible(q, start, stop, g):  # type: ignore[no-untyped-def]
    """Whether q[start:stop] holds an id that cannot occur."""
    for i in range(start, stop):  # noqa: SIM110 - numba has no any() over a generator
        if stored(q, i, g) < 0:
            return True
    return False


@inlined
def search(W, ok, g, q, start, stop):  # type: ignore[no-untyped-def]
    """Ranks low..high of the suffixes that begin with q[start:stop]."""
    if stop == start:
        return 0, g[0]
    if impossible(q, start, stop, g):
        return 0, 0
    first, last, upper, highest = bracket(W, g, q, start, stop)
    low = bound(W, ok, g, q, start, stop, first, last, 0, 0)
    low, first, last = settle_low(W, ok, g, q, start, stop, low, first, last, upper, highest)
    high = bound(W, ok, g, q, start, stop, first, last, 1, 0)
    return low, settle_high(W, ok, g, q, start, stop, low, high, first, last)


@inlined
def child(W, ok, g, low, high, depth, token):  # type: ignore[no-untyped-def]
    """Ranks in low..high, which agree in `depth` tokens, whose next stored token is `token`."""
    a, b = low, high
    while a < b:
        middle = (a + b) >> 1
        if token_at(W, ok, g, suffix_at(W, ok, g, middle) + depth) < token:
            a = middle + 1
        else:
            b = middle
    first, step = a, 1
    while first + step < high and token_at(W, ok, g, suffix_at(W, ok, g, first + step) + depth) <= token:
        a = first + step
        step <<= 1
    b = min(high, first + step)
    while a < b:
        middle = (a + b) >> 1
        if token_at(W, ok, g, suffix_at(W, ok, g, middle) + depth) <= token:
            a = middle + 1
        else:
            b = middle
    return first, a


@inlined
def crosses(q, start, stop, doc):  # type: ignore[no-untyped-def]
    """Whether a document mark stands anywhere behind the first of q[start:stop]."""
    for i in range(start + 1, stop):  # noqa: SIM110 - numba has no any() over a generator
        if q[i] == doc:
            return True
    return False


@inlined
def invalid(q, start, stop, g):  # type: ignore[no-untyped-def]
    """Index of the first id outside the vocabulary, -1 if there is none."""
    for i in range(start, stop):
        if q[i] < 0 or q[i] >= g[12]:
            return i
    return -1


@inlined
def find_in(W, ok, g, q, start, stop, across, inner):  # type: ignore[no-untyped-def]
    """Ranks of q[start:stop] under the rule about document marks; `inner`: something has to follow."""
    if not across and crosses(q, start, stop if inner else stop - 1, g[11]):
        return 0, 0
    low, high = search(W, ok, g, q, start, stop)
    if inner and low < high and suffix_at(W, ok, g, low) + stop - start > g[0]:
        low += 1  # nothing follows at the end of the stream, and what ends there comes first
    return low, high


@inlined
def longest(W, ok, g, q, start, stop):  # type: ignore[no-untyped-def]
    """The longest suffix of q[start:stop] that occurs and crosses no boundary: (low, high, its start)."""
    for i in range(stop - 1, start, -1):
        if q[i] == g[11]:
            start = i
            break
    limit = stop - start
    known, low, high = 0, 0, g[0]
    step, bad = 4, limit + 1  # the shortest length that is known not to occur
    while known < limit and bad > known + 1:
        length = step if bad > limit else (known + bad) >> 1
        length = min(length, limit)
        a, b = search(W, ok, g, q, stop - length, stop)
        if a < b:
            known, low, high = length, a, b
            step = length << 1
        else:
            bad = length
    return low, high, stop - known


@inlined
def alone(W, ok, g, low, high, depth):  # type: ignore[no-untyped-def]
    """The one token that follows everywhere in low..high; -1 if there are several."""
    t = token_at(W, ok, g, suffix_at(W, ok, g, low) + depth)
    if high - low > 1 and token_at(W, ok, g, suffix_at(W, ok, g, high - 1) + depth) != t:
        return -1
    return t


@bare
def find(W, ok, meta, q, across, inner):  # type: ignore[no-untyped-def]
    """(low, high, index of an invalid id or -1)."""
    g = unpack(meta)
    bad = invalid(q, 0, len(q), g)
    if bad >= 0:
        return 0, 0, bad
    low, high = find_in(W, ok, g, q, 0, len(q), across, inner)
    return low, high, bad


@inlined
def _prob(W, ok, g, q, start, stop, across):  # type: ignore[no-untyped-def]
    """Occurrences of q[start:stop] and of all but its last id."""
    low, high = find_in(W, ok, g, q, start, stop - 1, across, True)
    if low == high:
        return 0, 0
    token = stored(q, stop - 1, g)
    if token < 0:
        return 0, high - low
    if stop - start <= g[13]:
        a, b = search(W, ok, g, q, start, stop)
    else:
        a, b = child(W, ok, g, low, high, stop - 1 - start, token)
    return b - a, high - low


@bare
def prob(W, ok, meta, q, across):  # type: ignore[no-untyped-def]
    """(count of q, count of q without its last id, index of an invalid id or -1)."""
    g = unpack(meta)
    bad = invalid(q, 0, len(q), g)
    if bad >= 0:
        return 0, 0, bad
    hits, total = _prob(W, ok, g, q, 0, len(q), across)
    return hits, total, bad


@inlined
def _inf_prob(W, ok, g, q, start, stop):  # type: ignore[no-untyped-def]
    low, high, begin = longest(W, ok, g, q, start, stop - 1)
    token, length = stored(q, stop - 1, g), stop - 1 - begin
    a, b = 0, 0
    if token >= 0:
        a, b = search(W, ok, g, q, begin, stop) if length < g[13] else child(W, ok, g, low, high, length, token)
    return b - a, high - low, length, alone(W, ok, g, low, high, length)


@bare
def inf_prob(W, ok, meta, q):  # type: ignore[no-untyped-def]
    """(hits, total, length of the suffix, its only next token or -1, index of an invalid id or -1)."""
    g = unpack(meta)
    bad = invalid(q, 0, len(q), g)
    if bad >= 0:
        return 0, 0, 0, 0, bad
    hits, total, length, only = _inf_prob(W, ok, g, q, 0, len(q))
    return hits, total, length, only, bad


@bare
def score(W, ok, meta, q, first, last, hits, totals, lengths, only):  # type: ignore[no-untyped-def]
    """The longest occurring suffix of q[:t] and the id q[t] after it, for t from first to last (at most len(q)).

    The suffix for t + 1 starts no earlier than the one for t, so most steps narrow one range. For t = len(q) there is
    no id, and 0 hits. Arrays are indexed by t - first. Returns the index of an invalid id or -1.
    """
    g = unpack(meta)
    bad = invalid(q, 0, min(last, len(q)), g)
    if bad >= 0:
        return bad
    low, high, begin = longest(W, ok, g, q, 0, first)
    for t in range(first, last):
        k = t - first
        totals[k] = high - low
        lengths[k] = t - begin
        only[k] = alone(W, ok, g, low, high, t - begin)
        hits[k] = 0
        if t == len(q):
            break
        token = stored(q, t, g)
        a, b = 0, 0
        if token >= 0:
            if t - begin < g[13]:
                a, b = search(W, ok, g, q, begin, t + 1)
            else:
                a, b = child(W, ok, g, low, high, t - begin, token)
        hits[k] = b - a
        if b > a and (q[t] != g[11] or begin == t):
            low, high = a, b
        else:
            low, high, begin = longest(W, ok, g, q, begin if q[t] == g[11] else min(begin + 1, t + 1), t + 1)
    return -1
