"""Loops of :mod:`orrery.ngram.sampled`: searching a shard whose suffix array is kept only for every so-many-th place.

A *context* e = 1..n of a shard's text T stands for the tokens T[..e) before T[e]. Contexts are sorted by their tokens read
backwards, so that those which end with an n-gram are neighbours: its *rows*. What is stored is, row by row, the token that
follows, as a wavelet matrix (Claude, Navarro and Ordonez 2015): one vector of bits for each bit of an id, highest first, each
stably sorted by the bits before it. Going down its levels turns a row r and a token c into the number of rows before r
that go on with c, and with it into a row of the longer n-gram (Ferragina and Manzini 2000, read the other way round): a
search takes one step a token and begins with the first, and what may follow an n-gram stands in its rows.

The token behind context n is the mark that closes the text. It leads to no row; the first of the rows that end with a mark is
that of context 1, to which nothing leads.

Kernels take, as those of :mod:`orrery.ngram.search` do, W (the file's words) and ok (what was checked); of meta the numbers

    0 rows, 1 levels, 2 words of a level, 3 where the bits of the rows that are sampled begin, 4 the stored mark, 5 and 6 their
    places (first word, bits of each), 7 checksums, 8 and 9 the rows of every so-many-th context (first word, bits),
    10 the table of ids, 11 the mark's id, 12 ids, 13 how many tokens lie between two, 14 the row of context n,
    15 places that are sampled, from 16 on the zeros of each level

and, where they walk, `work` (256,) int64 to put down what is still to be visited.

Vectors of bits lie in blocks of eight words, a line of the cache: how many ones stand before the block (32 bits) and before
its third, fifth and seventh word (9 bits each), and 448 bits. Ranges of ranks that leave this file are numbered

    length of the n-gram << 33 | row             and, of n-grams that end with a mark,
    length of the n-gram << 33 | 1 << 32 | number of the row before that mark, among those that a mark follows

so that the place where an occurrence begins follows from its rank.
"""

from __future__ import annotations

import numpy as np

from orrery.ngram.compiled import bare, inlined, kernel, popcount, tiny
from orrery.ngram.pages import word
from orrery.ngram.search import crosses, invalid

_LOW = 0xFFFFFFFF
_RANK = 0x1FFFFFFFF
MARKED = 1 << 32
LENGTH_LOG = 33
_GROUP = 16  # rows that step together: as many reads as a core can wait for at once


# ---------------------------------------------------------------- bits


@tiny
def ones(W, ok, meta, base, i):  # type: ignore[no-untyped-def]
    """Ones before the i-th bit of the vector that begins at word `base`."""
    block = ((i >> 6) * 613566757) >> 32  # i // 448, for i below 2^32
    left = i - block * 448
    k = base + (block << 3)
    head = word(W, ok, meta[7], k)
    at = left >> 6
    total = (head & _LOW) + (((((head >> 32) & 0x7FFFFFF) << 9) >> (9 * (at >> 1))) & 511)
    total += popcount(W[k + 1 + (at & 6)] & -(at & 1))
    total += popcount(W[k + 1 + at] & ~(-1 << (left & 63)))
    return min(total, i)  # what is damaged must not lead out of the file


@tiny
def bit_at(W, ok, meta, base, i):  # type: ignore[no-untyped-def]
    """The i-th bit of a vector."""
    block = ((i >> 6) * 613566757) >> 32
    left = i - block * 448
    return (word(W, ok, meta[7], base + (block << 3) + 1 + (left >> 6)) >> (left & 63)) & 1


@tiny
def packed_at(W, ok, meta, base, bits, i):  # type: ignore[no-untyped-def]
    """The i-th of numbers of so many bits."""
    first = i * bits
    k, s = base + (first >> 6), first & 63
    low = (word(W, ok, meta[7], k) >> s) & ((1 << min(bits, 64 - s)) - 1)
    if s + bits <= 64:
        return low
    return low | ((word(W, ok, meta[7], k + 1) & ((1 << (s + bits - 64)) - 1)) << (64 - s))


@tiny
def coded(meta, x):  # type: ignore[no-untyped-def]
    """An id as it is counted: in the order of stored tokens, in which the mark is the last."""
    if x == meta[11]:
        return meta[12] - 1
    return int(x) - (x > meta[11])


@tiny
def named(meta, c):  # type: ignore[no-untyped-def]
    """The id of a code."""
    if c == meta[12] - 1:
        return meta[11]
    return c + (c >= meta[11])


@tiny
def ends_with(W, ok, meta, c):  # type: ignore[no-untyped-def]
    """First row of those that end with code c."""
    return min(word(W, ok, meta[7], meta[10] + c) & _LOW, meta[0])


@inlined
def followed(W, ok, meta, c, low, high):  # type: ignore[no-untyped-def]
    """How many of all rows that go on with code c stand before `low`, and before `high`; (0, 0) where they are the same."""
    base, a, b = 0, low, high
    for level in range(meta[1]):
        x, y = ones(W, ok, meta, base, a), ones(W, ok, meta, base, b)
        zeros = meta[16 + level]
        if (c >> (meta[1] - 1 - level)) & 1:
            a, b = min(zeros + x, meta[0]), min(zeros + y, meta[0])
        else:
            a, b = a - x, b - y
        if a >= b:
            return 0, 0
        base += meta[2]
    start = (word(W, ok, meta[7], meta[10] + c) >> 32) & _LOW
    return max(0, a - start), max(0, b - start)


@inlined
def extended(W, ok, meta, c, low, high, before, behind):  # type: ignore[no-untyped-def]
    """Rows of an n-gram with code c behind it, from its own rows and what :func:`followed` says of them."""
    first = ends_with(W, ok, meta, c)
    if c == meta[12] - 1:  # one more for context 1, one less for context n
        before += 1 - (meta[14] < low)
        behind += 1 - (meta[14] < high)
    return min(first + before, meta[0]), min(first + behind, meta[0])


# ---------------------------------------------------------------- n-grams


@inlined
def rows(W, ok, meta, q, start, stop):  # type: ignore[no-untyped-def]
    """Rows of the contexts that end with q[start:stop]; something follows each."""
    if start == stop:
        return 0, meta[0]
    c = coded(meta, q[start])
    low, high = ends_with(W, ok, meta, c), ends_with(W, ok, meta, c + 1)
    for i in range(start + 1, stop):
        if low >= high:
            return 0, 0
        c = coded(meta, q[i])
        before, behind = followed(W, ok, meta, c, low, high)
        if before >= behind:
            return 0, 0
        low, high = extended(W, ok, meta, c, low, high, before, behind)
    return low, max(low, high)


@inlined
def find_in(W, ok, meta, q, start, stop, across, inner):  # type: ignore[no-untyped-def]
    """Ranks of q[start:stop] under the rule about document marks; `inner`: something has to follow."""
    if not across and crosses(q, start, stop if inner else stop - 1, meta[11]):
        return 0, 0
    base = (stop - start) << LENGTH_LOG
    if inner or stop - start < 2 or q[stop - 1] != meta[11]:
        low, high = rows(W, ok, meta, q, start, stop)
    else:
        low, high = rows(W, ok, meta, q, start, stop - 1)
        if low < high:
            low, high = followed(W, ok, meta, meta[12] - 1, low, high)
        base |= MARKED
    return base + low, base + high


@inlined
def longest(W, ok, meta, q, start, stop):  # type: ignore[no-untyped-def]
    """The longest suffix of q[start:stop] that occurs and crosses no boundary: (first row, last, its start)."""
    for i in range(stop - 1, start, -1):
        if q[i] == meta[11]:
            start = i
            break
    limit = stop - start
    known, low, high = 0, 0, meta[0]
    step, bad = 4, limit + 1
    while known < limit and bad > known + 1:
        length = min(step if bad > limit else (known + bad) >> 1, limit)
        a, b = rows(W, ok, meta, q, stop - length, stop)
        if a < b:
            known, low, high = length, a, b
            step = length << 1
        else:
            bad = length
    return low, high, stop - known


@inlined
def alone(W, ok, meta, low, high):  # type: ignore[no-untyped-def]
    """The one token, as it is stored, that follows all of some rows; -1 if there are several."""
    base, a, b, c = 0, low, high, 0
    for level in range(meta[1]):
        x, y = ones(W, ok, meta, base, a), ones(W, ok, meta, base, b)
        if y == x:
            a, b, c = a - x, b - y, c << 1
        elif y - x == b - a:
            a, b, c = min(meta[16 + level] + x, meta[0]), min(meta[16 + level] + y, meta[0]), (c << 1) | 1
        else:
            return -1
        base += meta[2]
    return meta[4] if c == meta[12] - 1 else named(meta, c)


@inlined
def hits_of(W, ok, meta, x, low, high):  # type: ignore[no-untyped-def]
    """How many of some rows go on with id x."""
    if low >= high:
        return 0
    before, behind = followed(W, ok, meta, coded(meta, x), low, high)
    return behind - before


@bare
def find(W, ok, meta, work, q, across, inner):  # type: ignore[no-untyped-def]
    """(low, high, index of an invalid id or -1): ranks as this file numbers them."""
    bad = invalid(q, 0, len(q), meta)
    if bad >= 0:
        return 0, 0, bad
    low, high = find_in(W, ok, meta, q, 0, len(q), across, inner)
    return low, high, bad


@bare
def prob(W, ok, meta, work, q, across):  # type: ignore[no-untyped-def]
    """(count of q, count of q without its last id, index of an invalid id or -1)."""
    bad = invalid(q, 0, len(q), meta)
    last = len(q) - 1
    if bad >= 0 or (not across and crosses(q, 0, last, meta[11])):
        return 0, 0, bad
    low, high = rows(W, ok, meta, q, 0, last)
    return hits_of(W, ok, meta, q[last], low, high), high - low, bad


@bare
def inf_prob(W, ok, meta, work, q):  # type: ignore[no-untyped-def]
    """(hits, total, length of the suffix, its only next token or -1, index of an invalid id or -1)."""
    bad = invalid(q, 0, len(q), meta)
    if bad >= 0:
        return 0, 0, 0, 0, bad
    last = len(q) - 1
    low, high, begin = longest(W, ok, meta, q, 0, last)
    return hits_of(W, ok, meta, q[last], low, high), high - low, last - begin, alone(W, ok, meta, low, high), bad


@bare
def score(W, ok, meta, work, q, first, last, hits, totals, lengths, only):  # type: ignore[no-untyped-def]
    """:func:`orrery.ngram.search.score`."""
    bad = invalid(q, 0, min(last, len(q)), meta)
    if bad >= 0:
        return bad
    low, high, begin = longest(W, ok, meta, q, 0, first)
    for t in range(first, last):
        k = t - first
        totals[k] = high - low
        lengths[k] = t - begin
        only[k] = alone(W, ok, meta, low, high)
        hits[k] = 0
        if t == len(q):
            break
        before, behind = followed(W, ok, meta, coded(meta, q[t]), low, high)
        hits[k] = behind - before
        a, b = 0, 0
        if before < behind and (q[t] != meta[11] or begin == t):
            a, b = extended(W, ok, meta, coded(meta, q[t]), low, high, before, behind)
            if begin == t:
                a, b = rows(W, ok, meta, q, t, t + 1)
        if a < b:
            low, high = a, b
        else:
            low, high, begin = longest(W, ok, meta, q, begin if q[t] == meta[11] else min(begin + 1, t + 1), t + 1)
    return -1


# ---------------------------------------------------------------- what follows


@inlined
def listed(W, ok, meta, work, low, high, tokens, counts):  # type: ignore[no-untyped-def]
    """Stored tokens behind some rows, ascending, and how often each follows; how many there are.

    The wavelet matrix is walked from its first level, into the part of every level that any of the rows reaches.
    """
    found, top = 0, 1
    work[0], work[64], work[128], work[192] = low, high, 0, 0
    if low >= high:
        return 0
    while top > 0:
        top -= 1
        a, b, c, level = work[top], work[64 + top], work[128 + top], work[192 + top]
        if level == meta[1]:
            if found < len(tokens):
                tokens[found] = meta[4] if c == meta[12] - 1 else named(meta, c)
                counts[found] = b - a
                found += 1
            continue
        base = level * meta[2]
        x, y = ones(W, ok, meta, base, a), ones(W, ok, meta, base, b)
        zeros = meta[16 + level]
        if y > x:
            work[top], work[64 + top] = min(zeros + x, meta[0]), min(zeros + y, meta[0])
            work[128 + top], work[192 + top] = (c << 1) | 1, level + 1
            top += 1
        if b - y > a - x:
            work[top], work[64 + top] = a - x, b - y
            work[128 + top], work[192 + top] = c << 1, level + 1
            top += 1
    return found


@bare
def next_tokens(W, ok, meta, work, low, high, depth, tokens, counts):  # type: ignore[no-untyped-def]
    """:func:`listed` of a range that is known."""
    return listed(W, ok, meta, work, low & _LOW, high & _LOW, tokens, counts)


@bare
def find_next(W, ok, meta, work, q, across, most, tokens, counts):  # type: ignore[no-untyped-def]
    """:func:`orrery.ngram.within.find_next`."""
    bad = invalid(q, 0, len(q), meta)
    low, high = 0, 0
    if bad < 0 and (across or not crosses(q, 0, len(q), meta[11])):
        low, high = rows(W, ok, meta, q, 0, len(q))
    found = listed(W, ok, meta, work, low, high if high - low <= most else low, tokens, counts)
    return low, high, bad, found


@bare
def inf_find_next(W, ok, meta, work, q, most, tokens, counts):  # type: ignore[no-untyped-def]
    """:func:`orrery.ngram.within.inf_find_next`."""
    bad = invalid(q, 0, len(q), meta)
    low, high, begin = 0, 0, len(q)
    if bad < 0:
        low, high, begin = longest(W, ok, meta, q, 0, len(q))
    found = listed(W, ok, meta, work, low, high if high - low <= most else low, tokens, counts)
    return len(q) - begin, low, high, bad, found


# ---------------------------------------------------------------- many


@inlined
def _impossible(s, start, stop, mark, across, inner):  # type: ignore[no-untyped-def]
    """Whether s[start:stop], stored tokens, cannot occur: a mark inside, or an id that is none."""
    for i in range(start, stop):  # noqa: SIM110 - numba has no any() over a generator
        if s[i] < 0 or (not across and s[i] == mark and i > start and (inner or i + 1 < stop)):
            return True
    return False


@bare
def find_many(W, ok, meta, work, s, starts, stops, across, inner, lows, highs, space):  # type: ignore[no-untyped-def]
    """:func:`find` of many n-grams of stored tokens, one after the other."""
    for i in range(len(lows)):
        start, stop = starts[i], stops[i]
        lows[i], highs[i] = 0, 0
        if not _impossible(s, start, stop, meta[4], across, inner):
            lows[i], highs[i] = _find_stored(W, ok, meta, s, start, stop, inner)


@inlined
def _find_stored(W, ok, meta, s, start, stop, inner):  # type: ignore[no-untyped-def]
    low, high, base = 0, meta[0], (stop - start) << LENGTH_LOG
    for i in range(start, stop):
        c = coded(meta, meta[11] if s[i] == meta[4] else s[i])
        if i == start:
            low, high = ends_with(W, ok, meta, c), ends_with(W, ok, meta, c + 1)
        else:
            before, behind = followed(W, ok, meta, c, low, high)
            if c == meta[12] - 1 and i + 1 == stop and not inner:
                return base + MARKED + before, base + MARKED + behind
            if before >= behind:
                return 0, 0
            low, high = extended(W, ok, meta, c, low, high, before, behind)
        if low >= high:
            return 0, 0
    return base + low, base + high


@bare
def follow_many(W, ok, meta, work, lows, highs, depths, tokens, hits, only, space):  # type: ignore[no-untyped-def]
    """:func:`orrery.ngram.batches.follow_many`."""
    for i in range(len(lows)):
        low, high = int(lows[i]) & _LOW, int(highs[i]) & _LOW
        hits[i], only[i] = 0, -1
        if lows[i] >= highs[i]:
            continue
        only[i] = alone(W, ok, meta, low, high)
        if tokens[i] >= 0:
            hits[i] = hits_of(W, ok, meta, meta[11] if tokens[i] == meta[4] else tokens[i], low, high)


# ---------------------------------------------------------------- places


@inlined
def walk_all(W, ok, meta, work, m):  # type: ignore[no-untyped-def]
    """The codes behind the rows work[:m] into work[16:], and the rows of the next contexts (of context n: any) in their place.

    Level by level, all together: a row's reads wait for one another, those of different rows do not.
    """
    base, top = 0, meta[0]
    for s in range(m):
        work[_GROUP + s], work[2 * _GROUP + s] = 0, work[s]
    for level in range(meta[1]):
        zeros = meta[16 + level]
        for s in range(m):
            i = work[2 * _GROUP + s]
            x, b = ones(W, ok, meta, base, i), bit_at(W, ok, meta, base, i)
            work[2 * _GROUP + s] = min(zeros + x, top) if b else i - x
            work[_GROUP + s] = (work[_GROUP + s] << 1) | b
        base += meta[2]
    for s in range(m):
        c = work[_GROUP + s]
        if c >= meta[12]:  # only where something is damaged
            ok[len(ok) - 1] = 1
            c = 0
        start = (word(W, ok, meta[7], meta[10] + c) >> 32) & _LOW
        i = ends_with(W, ok, meta, c) + work[2 * _GROUP + s] - start
        if c == meta[12] - 1:
            i += 1 - (meta[14] < work[s])
        work[s] = max(0, min(i, top - 1))


@inlined
def row_of(W, ok, meta, rank):  # type: ignore[no-untyped-def]
    """The row of a rank; -1 for the occurrence that the closing mark ends, which has none."""
    row = rank & _LOW
    if rank & MARKED:
        closing, _ = followed(W, ok, meta, meta[12] - 1, meta[14], meta[14] + 1)
        if row == closing:
            return -1
        row = ends_with(W, ok, meta, meta[12] - 1) + row + (row < closing)
    return min(row, meta[0] - 1)


@bare
def positions(W, ok, meta, work, low, high, found):  # type: ignore[no-untyped-def]
    """Places at which the occurrences of ranks low..high begin, in that order.

    From each row steps lead forward to one that is sampled, of which there is one in `sample`; sixteen rows step together.
    """
    m, taken = 0, low
    while m > 0 or taken < high:
        while m < _GROUP and taken < high:
            row = row_of(W, ok, meta, taken)
            if row < 0:
                found[taken - low] = max(0, meta[0] + 1 - (taken >> LENGTH_LOG))
            else:
                work[m], work[3 * _GROUP + m], work[4 * _GROUP + m] = row, 0, taken
                m += 1
            taken += 1
        s = 0
        while s < m:
            row, away, rank = work[s], work[3 * _GROUP + s], work[4 * _GROUP + s]
            if bit_at(W, ok, meta, meta[3], row) == 0 and away <= meta[13]:
                work[3 * _GROUP + s] = away + 1
                s += 1
                continue
            if away > meta[13]:  # only where something is damaged
                ok[len(ok) - 1] = 1
            number = min(ones(W, ok, meta, meta[3], row), meta[15] - 1)
            place = min((packed_at(W, ok, meta, meta[5], meta[6], number) + 1) * meta[13], meta[0])
            found[rank - low] = min(max(0, place - away - max(1, rank >> LENGTH_LOG)), meta[0] - 1)
            m -= 1
            for k in (0, 3, 4):
                work[k * _GROUP + s] = work[k * _GROUP + m]
        walk_all(W, ok, meta, work, m)


@inlined
def spell(W, ok, meta, work, start, stop, found):  # type: ignore[no-untyped-def]
    """Ids start..stop of the text into `found`: from every row that is kept up to the next one, sixteen stretches together."""
    if start >= stop:
        return
    if start == 0:
        found[0] = meta[11]
    last = (stop - 1) // meta[13]
    for number in range(start // meta[13], last + 1, _GROUP):
        m = min(_GROUP, last + 1 - number)
        for s in range(m):
            work[s] = min(packed_at(W, ok, meta, meta[8], meta[9], number + s), meta[0] - 1)
        first = number * meta[13]
        for step in range(min(meta[13], stop - first)):
            if number == 0 and step == 1:  # the first row that is kept is that of context 1, not 0
                work[0] = min(packed_at(W, ok, meta, meta[8], meta[9], 0), meta[0] - 1)
            walk_all(W, ok, meta, work, m)
            for s in range(m):
                e = first + s * meta[13] + step
                if start <= e < stop and e > 0:
                    found[e - start] = named(meta, work[_GROUP + s])


@bare
def read(W, ok, meta, work, start, stop, found):  # type: ignore[no-untyped-def]
    """Stored tokens start..stop."""
    spell(W, ok, meta, work, start, stop, found)
    for i in range(stop - start):
        if found[i] == meta[11]:
            found[i] = meta[4]


@inlined
def _stands(text, size, at, q, start, stop):  # type: ignore[no-untyped-def]
    """Whether q[start:stop] stands at a place of a text of so many tokens."""
    if at + stop - start > size:
        return False
    for d in range(stop - start):  # noqa: SIM110 - numba has no all() over a generator
        if text[at + d] != q[start + d]:
            return False
    return True


@inlined
def _any_stands(text, size, at, q, offsets, first, last):  # type: ignore[no-untyped-def]
    for term in range(first, last):  # noqa: SIM110 - numba has no any() over a generator
        if _stands(text, size, at, q, offsets[term], offsets[term + 1]):
            return True
    return False


@kernel
def near(W, ok, meta, work, q, offsets, edges, rarest, anchors, window):  # type: ignore[no-untyped-def]
    """:func:`orrery.ngram.within.near`, over the text around each anchor, which is spelt first."""
    widest = 0
    for term in range(len(offsets) - 1):
        widest = max(widest, offsets[term + 1] - offsets[term])
    reach = min(window, meta[0])
    text = np.empty(2 * reach + widest + 2, np.int64)
    hits = 0
    for k in range(len(anchors)):
        anchor = int(anchors[k])
        begin = max(0, anchor - reach)
        size = min(meta[0] + 1, anchor + reach + widest + 1) - begin
        spell(W, ok, meta, work, begin, begin + size, text)
        middle = anchor - begin
        first, last = middle, middle
        while first > 0 and middle - first < window and text[first] != meta[11]:
            first -= 1
        while begin + last + 1 < meta[0] and last - middle < window and text[last + 1] != meta[11]:
            last += 1
        met = True
        for clause in range(len(edges) - 1):
            if clause == rarest:
                continue
            met = False
            for away in range(max(middle - first, last - middle) + 1):
                if middle - away >= first and _any_stands(text, size, middle - away, q, offsets, edges[clause], edges[clause + 1]):
                    met = True
                    break
                if middle + away <= last and _any_stands(text, size, middle + away, q, offsets, edges[clause], edges[clause + 1]):
                    met = True
                    break
            if not met:
                break
        hits += met
    return hits


# ---------------------------------------------------------------- building


@bare
def divide(chunk, shift, words, before, zeros, ones_, none):  # type: ignore[no-untyped-def]
    """Write bit `shift` of every number as blocks of a vector; the numbers go to `zeros` and `ones_`.

    before: ones of the vector before this chunk. none (1,): how many numbers went to `zeros`. The chunk is whole blocks, or the last.
    """
    size, low, high, total = len(chunk), 0, 0, before
    for block in range(len(words) >> 3):
        k, head, inside = block << 3, total, 0
        for w in range(7):
            if w & 1 == 0 and w > 0:
                head |= inside << (32 + 9 * ((w >> 1) - 1))
            first = block * 448 + (w << 6)
            bits = 0
            for i in range(first, min(size, first + 64)):
                x = chunk[i]
                one = (x >> shift) & 1
                bits |= -one << 63 if i - first == 63 else one << (i - first)
                inside += one
                zeros[low], ones_[high] = x, x  # without a branch that would be guessed wrong; each has room for one more
                low += 1 - one
                high += one
            words[k + 1 + w] = bits
        words[k] = head
        total += inside
    none[0] = low
