"""Searching a shard: binary search over its suffix array, from a guide that stays in the processor's cache.

A shard is one array of 64-bit words (see :mod:`orrery.ngram.shard` for its sections). Kernels take

    W     (words,) int64: the mapped file
    ok    (pages + 1,) uint8: 1 where a page of tokens or suffixes has been checked; the last is set when a check failed
    meta  (16,) int64: the numbers of :class:`orrery.ngram.shard.Meta`

and queries as int64 ids. Every page of 4 KiB is compared with its checksum before its first word is believed, so a
flipped bit ends in an error and not in a wrong count; positions are bounded besides, so it cannot end in a crash.
A query's lower and upper bound are found from the guide (the first 8 bytes of every 128th suffix, in order), then in the
array; the guide is never believed: a bound that it gave must hold in the array, or the whole array is searched.

Infini-gram (2401.17377): the longest suffix of a context that occurs is found by doubling and halving its length.
"""

from __future__ import annotations

import numpy as np

from orrery.ngram.compiled import inlined, kernel, tiny

_GROUP = 16  # queries of a batch that are searched together
PAGE_LOG = 9  # words of a page, as a power of 2: 4 KiB
_KEEP = 0x3FFFFFFFFFFFFFFF
_LOW = 0xFFFFFFFF


@inlined
def page_sum(W, first, last, page):  # type: ignore[no-untyped-def]
    """A checksum of words first..last, which are page number `page`, in 62 bits: any one wrong bit changes it.

    Every half of a word has an odd weight of its own, so a sum that may be taken in any order tells them apart.
    """
    total, weight = 0, 0x9E3779B1
    for k in range(first, last):
        c = weight + (k - first) * 0x7F4A7C16
        total += (W[k] & _LOW) * c + ((W[k] >> 32) & _LOW) * (c + 0x165667B2)
    return (total + (page + 1) * 0x2545F4914F6CDD1D) & _KEEP


@inlined
def check_page(W, ok, sums, page):  # type: ignore[no-untyped-def]
    """Compare a page with its checksum."""
    if page_sum(W, page << PAGE_LOG, (page + 1) << PAGE_LOG, page) != W[sums + page]:
        ok[len(ok) - 1] = 1
    ok[page] = 1


@tiny
def _word(W, ok, sums, k):  # type: ignore[no-untyped-def]
    page = k >> PAGE_LOG
    if ok[page] == 0:
        check_page(W, ok, sums, page)
    return W[k]


@tiny
def token_at(W, ok, g, position):  # type: ignore[no-untyped-def]
    """The stored token at a position, -1 behind the end."""
    if position > g[0]:
        return -1
    word = _word(W, ok, g[7], position >> g[1])
    return (word >> ((position & g[2]) << g[3])) & g[4]


@tiny
def suffix_at(W, ok, g, rank):  # type: ignore[no-untyped-def]
    """Position of the suffix with this rank."""
    bit = rank * g[6]
    k, s = g[5] + (bit >> 6), bit & 63
    word = _word(W, ok, g[7], k)
    if s + g[6] <= 64:
        position = (word >> s) & ((1 << g[6]) - 1)
    else:
        low = (word >> s) & ((1 << (64 - s)) - 1)
        position = low | ((_word(W, ok, g[7], k + 1) & ((1 << (s + g[6] - 64)) - 1)) << (64 - s))
    if position >= g[0]:
        ok[len(ok) - 1] = 1
        return 0
    return position


@inlined
def _unpack(meta):  # type: ignore[no-untyped-def]
    a = (meta[0], meta[1], meta[2], meta[3], meta[4], meta[5], meta[6])
    return a + (meta[7], meta[8], meta[9], meta[10], meta[11], meta[12], meta[13])


@tiny
def _query(q, i, g):  # type: ignore[no-untyped-def]
    """Stored form of the i-th id: the document mark is all ones; -1 for an id that cannot occur."""
    x = q[i]
    if x == g[11]:
        return g[4]
    if x >= g[4]:
        return -1
    return x


@tiny
def _compare(W, ok, g, q, start, stop, position, depth):  # type: ignore[no-untyped-def]
    """-1, 0, 1: how the suffix at a position stands to q[start:stop], of which `depth` tokens are known to agree."""
    for d in range(depth, stop - start):
        t = token_at(W, ok, g, position + d)
        x = _query(q, start + d, g)
        if t != x:
            return -1 if t < x else 1
    return 0


@inlined
def _bound(W, ok, g, q, start, stop, low, high, least, depth):  # type: ignore[no-untyped-def]
    """First rank in low..high whose suffix stands to the query at `least` (0: the lower bound, 1: the upper) or above."""
    while low < high:
        middle = (low + high) >> 1
        if _compare(W, ok, g, q, start, stop, suffix_at(W, ok, g, middle), depth) < least:
            low = middle + 1
        else:
            high = middle
    return low


@inlined
def _guided(W, g, wanted, above):  # type: ignore[no-untyped-def]
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
def _holds(W, ok, g, q, start, stop, rank, least):  # type: ignore[no-untyped-def]
    """Whether `rank` is the bound: what stands before it is below, what stands at it is not."""
    if rank > 0 and _compare(W, ok, g, q, start, stop, suffix_at(W, ok, g, rank - 1), 0) >= least:
        return False
    return rank == g[0] or _compare(W, ok, g, q, start, stop, suffix_at(W, ok, g, rank), 0) >= least


@inlined
def _bracket(W, g, q, start, stop):  # type: ignore[no-untyped-def]
    """What the guide says: ranks between which the lower bound lies, and those of the upper (from -1: not known)."""
    n, length, per, bits = g[0], stop - start, g[13], 64 // g[13]
    least = _query(q, start, g) - (1 << (bits - 1))  # keys are signed, so that their order is that of int64
    most = least
    for d in range(1, per):
        least = (least << bits) + (_query(q, start + d, g) if d < length else 0)
        most = (most << bits) + (_query(q, start + d, g) if d < length else g[4])
    first = _guided(W, g, least, False)
    last = _guided(W, g, most, True) if first < g[9] and W[g[8] + first] <= most else first
    lowest, highest = max(0, (first - 1) << g[10]), min(n, last << g[10])
    if length > per:
        return lowest, highest, -1, highest
    return lowest, min(n, first << g[10]), max(0, (last - 1) << g[10]), highest


@inlined
def _settle_low(W, ok, g, q, start, stop, low, first, last, upper, highest):  # type: ignore[no-untyped-def]
    """(lower bound, from, to of the upper bound); a lower bound at an edge of what the guide gave is looked at again.

    The upper bound is the lower one where nothing matches.
    """
    if low in (first, last) and not _holds(W, ok, g, q, start, stop, low, 0):
        low = _bound(W, ok, g, q, start, stop, 0, g[0], 0, 0)
        upper, highest = -1, g[0]
    if low == g[0] or _compare(W, ok, g, q, start, stop, suffix_at(W, ok, g, low), 0) != 0:
        return low, low, low
    if upper >= 0:
        return low, max(low, min(highest, upper)), highest
    step, reached = 1, low
    while low + step < highest and _compare(W, ok, g, q, start, stop, suffix_at(W, ok, g, low + step), 0) <= 0:
        reached = low + step
        step <<= 1
    return low, reached, min(highest, low + step)


@inlined
def _settle_high(W, ok, g, q, start, stop, low, high, first, last):  # type: ignore[no-untyped-def]
    """The upper bound, looked for everywhere if the one at an edge does not hold."""
    if last > low and high in (first, last) and not _holds(W, ok, g, q, start, stop, high, 1):
        return _bound(W, ok, g, q, start, stop, low, g[0], 1, 0)
    return high


@inlined
def _impossible(q, start, stop, g):  # type: ignore[no-untyped-def]
    """Whether q[start:stop] holds an id that cannot occur."""
    for i in range(start, stop):  # noqa: SIM110 - numba has no any() over a generator
        if _query(q, i, g) < 0:
            return True
    return False


@inlined
def search(W, ok, g, q, start, stop):  # type: ignore[no-untyped-def]
    """Ranks low..high of the suffixes that begin with q[start:stop]."""
    if stop == start:
        return 0, g[0]
    if _impossible(q, start, stop, g):
        return 0, 0
    first, last, upper, highest = _bracket(W, g, q, start, stop)
    low = _bound(W, ok, g, q, start, stop, first, last, 0, 0)
    low, first, last = _settle_low(W, ok, g, q, start, stop, low, first, last, upper, highest)
    high = _bound(W, ok, g, q, start, stop, first, last, 1, 0)
    return low, _settle_high(W, ok, g, q, start, stop, low, high, first, last)


@inlined
def _bounds(W, ok, g, q, starts, stops, base, m, lows, highs, places, least):  # type: ignore[no-untyped-def]
    """:func:`_bound` of the queries base..base + m, step by step together; the results are left in `lows`.

    A step first reads the suffixes of all queries, then the tokens of all, then compares: the reads do not depend on
    one another, so the memory serves them at the same time.
    """
    active = True
    while active:
        active = False
        for k in range(m):
            if lows[k] < highs[k]:
                places[k] = suffix_at(W, ok, g, (lows[k] + highs[k]) >> 1)
        for k in range(m):
            if lows[k] < highs[k]:
                places[_GROUP + k] = _word(W, ok, g[7], places[k] >> g[1])
        for k in range(m):
            if lows[k] < highs[k]:
                middle = (lows[k] + highs[k]) >> 1
                if _compare(W, ok, g, q, starts[base + k], stops[base + k], places[k], 0) < least:
                    lows[k] = middle + 1
                else:
                    highs[k] = middle
                active = active or lows[k] < highs[k]


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


@kernel
def find(W, ok, meta, q, across, inner):  # type: ignore[no-untyped-def]
    """(low, high, index of an invalid id or -1)."""
    g = _unpack(meta)
    bad = invalid(q, 0, len(q), g)
    if bad >= 0:
        return 0, 0, bad
    low, high = find_in(W, ok, g, q, 0, len(q), across, inner)
    return low, high, bad


@kernel
def find_many(W, ok, meta, q, starts, stops, across, inner, lows, highs):  # type: ignore[no-untyped-def]
    """:func:`find` of q[starts[i]:stops[i]] into lows[i], highs[i]. Returns the index of an invalid id or -1."""
    g = _unpack(meta)
    work = np.zeros((6, 2 * _GROUP), np.int64)
    a, b, places, firsts, lasts, kept = work[0], work[1], work[2], work[3], work[4], work[5]
    edges = np.zeros((2, _GROUP), np.int64)
    for base in range(0, len(lows), _GROUP):
        m = min(_GROUP, len(lows) - base)
        for k in range(m):
            start, stop = starts[base + k], stops[base + k]
            bad = invalid(q, start, stop, g)
            if bad >= 0:
                return bad
            a[k], b[k], kept[k] = 0, 0, 0
            if not across and crosses(q, start, stop if inner else stop - 1, g[11]):
                continue
            if start < stop and not _impossible(q, start, stop, g):
                a[k], b[k], edges[0, k], edges[1, k] = _bracket(W, g, q, start, stop)
                firsts[k], lasts[k], kept[k] = a[k], b[k], 1
        _bounds(W, ok, g, q, starts, stops, base, m, a, b, places, 0)
        for k in range(m):
            i = base + k
            lows[i], b[k] = 0, 0
            if kept[k]:
                u, v = edges[0, k], edges[1, k]
                lows[i], a[k], b[k] = _settle_low(W, ok, g, q, starts[i], stops[i], a[k], firsts[k], lasts[k], u, v)
            firsts[k], lasts[k] = a[k], b[k]
        _bounds(W, ok, g, q, starts, stops, base, m, a, b, places, 1)
        for k in range(m):
            i = base + k
            highs[i] = 0
            if kept[k]:
                highs[i] = _settle_high(W, ok, g, q, starts[i], stops[i], lows[i], a[k], firsts[k], lasts[k])
            elif starts[i] == stops[i]:
                highs[i] = g[0]
            if inner and lows[i] < highs[i] and suffix_at(W, ok, g, lows[i]) + stops[i] - starts[i] > g[0]:
                lows[i] += 1
    return -1


@kernel
def only_many(W, ok, meta, lows, highs, depths, only):  # type: ignore[no-untyped-def]
    """:func:`alone` of many ranges."""
    g = _unpack(meta)
    for i in range(len(lows)):
        only[i] = alone(W, ok, g, lows[i], highs[i], depths[i])


@kernel
def last_marks(meta, q, starts, stops):  # type: ignore[no-untyped-def]
    """Move every start to the last document mark of its context, if there is one."""
    for i in range(len(starts)):
        for k in range(stops[i] - 1, starts[i], -1):
            if q[k] == meta[11]:
                starts[i] = k
                break


@inlined
def _prob(W, ok, g, q, start, stop, across):  # type: ignore[no-untyped-def]
    """Occurrences of q[start:stop] and of all but its last id."""
    low, high = find_in(W, ok, g, q, start, stop - 1, across, True)
    if low == high:
        return 0, 0
    token = _query(q, stop - 1, g)
    if token < 0:
        return 0, high - low
    if stop - start <= g[13]:
        a, b = search(W, ok, g, q, start, stop)
    else:
        a, b = child(W, ok, g, low, high, stop - 1 - start, token)
    return b - a, high - low


@kernel
def prob(W, ok, meta, q, across):  # type: ignore[no-untyped-def]
    """(count of q, count of q without its last id, index of an invalid id or -1)."""
    g = _unpack(meta)
    bad = invalid(q, 0, len(q), g)
    if bad >= 0:
        return 0, 0, bad
    hits, total = _prob(W, ok, g, q, 0, len(q), across)
    return hits, total, bad


@inlined
def _inf_prob(W, ok, g, q, start, stop):  # type: ignore[no-untyped-def]
    low, high, begin = longest(W, ok, g, q, start, stop - 1)
    token, length = _query(q, stop - 1, g), stop - 1 - begin
    a, b = 0, 0
    if token >= 0:
        a, b = search(W, ok, g, q, begin, stop) if length < g[13] else child(W, ok, g, low, high, length, token)
    return b - a, high - low, length, alone(W, ok, g, low, high, length)


@kernel
def inf_prob(W, ok, meta, q):  # type: ignore[no-untyped-def]
    """(hits, total, length of the suffix, its only next token or -1, index of an invalid id or -1)."""
    g = _unpack(meta)
    bad = invalid(q, 0, len(q), g)
    if bad >= 0:
        return 0, 0, 0, 0, bad
    hits, total, length, only = _inf_prob(W, ok, g, q, 0, len(q))
    return hits, total, length, only, bad


@kernel
def score(W, ok, meta, q, first, last, hits, totals, lengths, only):  # type: ignore[no-untyped-def]
    """The longest occurring suffix of q[:t] and the id q[t] after it, for t from first to last (at most len(q)).

    The suffix for t + 1 starts no earlier than the one for t, so most steps narrow one range. For t = len(q) there is
    no id, and 0 hits. Arrays are indexed by t - first. Returns the index of an invalid id or -1.
    """
    g = _unpack(meta)
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
        token = _query(q, t, g)
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


@inlined
def _continuations(W, ok, g, low, high, depth):  # type: ignore[no-untyped-def]
    """Stored tokens behind the `depth` tokens that low..high share, ascending, and how often each follows.

    Galloping: the end of a token's run is found by steps of 1, 2, 4 ..., then by halving.
    """
    tokens, counts = np.empty(min(high - low, g[12]), np.int64), np.empty(min(high - low, g[12]), np.int64)
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
    return tokens[:found], counts[:found]


@kernel
def next_tokens(W, ok, meta, low, high, depth):  # type: ignore[no-untyped-def]
    """:func:`_continuations` of a range that is known."""
    return _continuations(W, ok, _unpack(meta), low, high, depth)


@kernel
def find_next(W, ok, meta, q, across, most):  # type: ignore[no-untyped-def]
    """(low, high, index of an invalid id or -1, tokens, counts) behind q; none are counted in ranges above `most`."""
    g = _unpack(meta)
    bad = invalid(q, 0, len(q), g)
    low, high = 0, 0
    if bad < 0:
        low, high = find_in(W, ok, g, q, 0, len(q), across, True)
    tokens, counts = _continuations(W, ok, g, low, high if high - low <= most else low, len(q))
    return low, high, bad, tokens, counts


@kernel
def inf_find_next(W, ok, meta, q, most):  # type: ignore[no-untyped-def]
    """:func:`find_next` behind the longest suffix that occurs, whose length comes first."""
    g = _unpack(meta)
    bad = invalid(q, 0, len(q), g)
    low, high, begin = 0, 0, len(q)
    if bad < 0:
        low, high, begin = longest(W, ok, g, q, 0, len(q))
    tokens, counts = _continuations(W, ok, g, low, high if high - low <= most else low, len(q) - begin)
    return len(q) - begin, low, high, bad, tokens, counts


@inlined
def _any_at(W, ok, g, q, offsets, first, last, position):  # type: ignore[no-untyped-def]
    """Whether one of the n-grams first..last begins at a position."""
    for term in range(first, last):  # noqa: SIM110 - numba has no any() over a generator
        if _compare(W, ok, g, q, offsets[term], offsets[term + 1], position, 0) == 0:
            return True
    return False


@kernel
def near(W, ok, meta, q, offsets, edges, rarest, anchors, window):  # type: ignore[no-untyped-def]
    """How many anchors have, for every clause but `rarest`, one of its n-grams within `window` in their document.

    Clause c holds the n-grams edges[c]..edges[c + 1], n-gram i is q[offsets[i]:offsets[i + 1]]. The text around an
    anchor is looked through, outwards, so that it does not matter how frequent the other clauses are.
    """
    g = _unpack(meta)
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
    g = _unpack(meta)
    found = np.empty(high - low, np.int64)
    for i in range(low, high):
        found[i - low] = suffix_at(W, ok, g, i)
    return found


@kernel
def read(W, ok, meta, start, stop):  # type: ignore[no-untyped-def]
    """Stored tokens start..stop."""
    g = _unpack(meta)
    found = np.empty(stop - start, np.int64)
    for i in range(start, stop):
        found[i - start] = token_at(W, ok, g, i)
    return found
