"""Loops of :mod:`orrery.ngram.external`: what is compared, counted and merged where a text is sorted by pieces.

`text` are the codes of a piece of M tokens, `order` its suffixes, sorted. Codes of other stretches are those of the piece;
~c stands for a token that the piece lacks and that lies below its code c. Bits are packed, the lowest first.
"""

from __future__ import annotations

from orrery.ngram.compiled import bare, inlined

_FAR = 255  # of a gap: the next four bytes hold the number


@inlined
def _bit(bits, k):  # type: ignore[no-untyped-def]
    return (bits[k >> 3] >> (k & 7)) & 1


@inlined
def _below(code, other):  # type: ignore[no-untyped-def]
    """Whether a code of the piece is below another, which it does not equal; ~c is below c and above all before it."""
    return code < other if other >= 0 else code < ~other


@bare
def z_values(pattern, shared):  # type: ignore[no-untyped-def]
    """How many codes every suffix of a pattern shares with the whole of it."""
    n, left, right = len(pattern), 0, 0
    shared[0] = n
    for i in range(1, n):
        k = min(shared[i - left], right - i) if i < right else 0
        while i + k < n and pattern[k] == pattern[i + k]:
            k += 1
        shared[i] = k
        if i + k > right:
            left, right = i, i + k


@bare
def above_end(text, pattern, shared, tail, above):  # type: ignore[no-untyped-def]
    """Which of a piece's suffixes are above the text behind it, T[e..], which begins with `pattern` (M codes, or to the end).

    tail: bits of the positions from e on: whether the suffix there is above T[e..]; 0 at the text's end.
    """
    m, n, left, right = len(text), len(pattern), 0, 0
    for i in range(m):
        k = min(shared[i - left], right - i) if i < right else 0
        while i + k < m and k < n and text[i + k] == pattern[k]:
            k += 1
        if i + k > right:
            left, right = i, i + k
        if i + k == m:
            above[i] = 1 - _bit(tail, k)  # T[e..] beside T[e + k..]
        elif k == n:
            above[i] = 1
        else:
            above[i] = 0 if _below(text[i + k], pattern[k]) else 1


@bare
def split_class(text, above):  # type: ignore[no-untyped-def]
    """Make room for three kinds of the last code c: followed by less than T[e..], followed by it, followed by more."""
    last = len(text) - 1
    c = text[last]
    for i in range(last):
        t = text[i]
        if t > c or (t == c and above[i + 1] == 1):
            text[i] = t + 2
    text[last] = c + 1


@bare
def unite_class(text, c):  # type: ignore[no-untyped-def]
    """Undo :func:`split_class`."""
    for i in range(len(text)):
        t = text[i]
        if t > c + 2:
            text[i] = t - 2
        elif t > c:
            text[i] = c


@bare
def above_first(order, bits, rank):  # type: ignore[no-untyped-def]
    """The rank of a piece's first suffix, and a bit for each that is above it."""
    found = False
    for i in range(len(order)):
        p = order[i]
        if found:
            bits[p >> 3] |= 1 << (p & 7)
        elif p == 0:
            rank[0] = i
            found = True


@bare
def rank_of(text, order, window, ended, tail, rank):  # type: ignore[no-untyped-def]
    """How many of a piece's suffixes are below the one that begins with `window`; -1 where it had to be longer.

    ended: whether the text ends with the window. tail: bits of its positions and of the one behind: above T[e..] or not.
    """
    m, n = len(text), len(window)
    low, high, below, over = 0, len(order), 0, 0
    while low < high:
        middle = (low + high) >> 1
        i, k = order[middle], min(below, over)
        while i + k < m and k < n and text[i + k] == window[k]:
            k += 1
        if i + k == m:
            smaller = _bit(tail, k) == 1
        elif k == n:
            if ended == 0:
                rank[0] = -1
                return
            smaller = False
        else:
            smaller = _below(text[i + k], window[k])
        if smaller:
            low, below = middle + 1, k
        else:
            high, over = middle, k
    rank[0] = low


@bare
def count_codes(text, starts):  # type: ignore[no-untyped-def]
    """starts[c]: codes below c; one more entry than there are codes."""
    for i in range(len(text)):
        starts[text[i] + 1] += 1
    for c in range(1, len(starts)):
        starts[c] += starts[c - 1]


@bare
def list_before(text, order, starts, free, ranks, none):  # type: ignore[no-untyped-def]
    """For each code c, in ranks[starts[c]:starts[c + 1]], the ranks of the suffixes that it stands before, ascending.

    The last code of the piece stands before none of them: `none` ends its list.
    """
    for c in range(len(free)):
        free[c] = starts[c]
    for i in range(len(order)):
        p = order[i]
        if p > 0:
            c = text[p - 1]
            ranks[free[c]] = i
            free[c] += 1
    ranks[free[text[len(text) - 1]]] = none


@bare
def plan_guide(starts, m, shifts, rows):  # type: ignore[no-untyped-def]
    """A guide to each code's list, with an entry for every 2^shift ranks, some four of the list's apart: its rows."""
    at = 0
    for c in range(len(shifts)):
        size, shift = starts[c + 1] - starts[c], 0
        while (m >> shift) + 1 > max(1, size >> 2):
            shift += 1
        shifts[c] = shift
        rows[c] = at
        at += (m >> shift) + 2
    rows[len(shifts)] = at


@bare
def fill_guide(starts, ranks, m, shifts, rows, guide):  # type: ignore[no-untyped-def]
    """Where in its code's list the ranks from k 2^shift on begin."""
    for c in range(len(shifts)):
        at = starts[c]
        for k in range(rows[c + 1] - rows[c] - 1):
            while at < starts[c + 1] and ranks[at] < k << shifts[c]:
                at += 1
            guide[rows[c] + k] = at
        guide[rows[c + 1] - 1] = starts[c + 1]


@inlined
def _around(ranks, i, low, high, guess, below):  # type: ignore[no-untyped-def]
    """Bounds of where ranks reach i, which lies in low..high, from a guess, by steps of 1, 2, 4 ..."""
    step = 1
    if below:
        low = guess + 1
        while low + step <= high and ranks[low + step - 1] < i:
            low += step
            step <<= 1
        return low, min(high, low + step - 1)
    high = guess
    while high - step >= low and ranks[high - step] >= i:
        high -= step
        step <<= 1
    return max(low, high - step + 1), high


@bare
def go_by(codes, bits, lengths, pitch, state, carried, work, starts, ranks, shifts, rows, guide, last, first):  # type: ignore[no-untyped-def]
    """Ranks of suffixes behind the piece among its own, some streams at once, each from its end on.

    Stream s are the lengths[s] codes from s * pitch on, which become ranks. state: rank of what follows; carried: whether
    that is above T[e..]. bits: the same for every position, which becomes whether the suffix is above the piece's first
    one, of rank `first`. All streams' reads of a kind are done together, since none of them waits for another.
    """
    count = len(lengths)
    longest = 0
    for s in range(count):
        longest = max(longest, lengths[s])
    for step in range(longest - 1, -1, -1):
        for s in range(count):
            c, i = max(codes[s * pitch + step], 0) if step < lengths[s] else 0, state[s]
            shift = shifts[c]
            row = rows[c] + (i >> shift)
            low, high = guide[row], guide[row + 1]
            work[s], work[count + s] = low, high
            work[2 * count + s] = low + (((i & ((1 << shift) - 1)) * (high - low)) >> shift)  # where i may be
        for s in range(count):
            work[3 * count + s] = ranks[min(work[2 * count + s], len(ranks) - 1)]
        for s in range(count):
            if step >= lengths[s]:
                continue
            at = s * pitch + step
            c, i, low, high = codes[at], state[s], work[s], work[count + s]
            if c < 0:
                low = starts[~c]
            else:
                if low < high:
                    low, high = _around(ranks, i, low, high, work[2 * count + s], work[3 * count + s] < i)
                    while low < high:
                        middle = (low + high) >> 1
                        if ranks[middle] < i:
                            low = middle + 1
                        else:
                            high = middle
                if c == last:
                    low += carried[s]
            codes[at] = low
            state[s] = low
            carried[s] = bits[at]
            bits[at] = 1 if low > first else 0


@bare
def tally(ranks, lengths, pitch, gaps, low, high):  # type: ignore[no-untyped-def]
    """Count the ranks in low..high."""
    for s in range(len(lengths)):
        for at in range(s * pitch, s * pitch + lengths[s]):
            rank = ranks[at]
            if low <= rank < high:
                gaps[rank] += 1


@bare
def code_gaps(gaps, data, size):  # type: ignore[no-untyped-def]
    """Gaps as bytes: one each below 255, else five. size: how many bytes there are."""
    at = 0
    for i in range(len(gaps)):
        g = gaps[i]
        if g < _FAR:
            data[at] = g
            at += 1
        else:
            data[at] = _FAR
            for k in range(4):
                data[at + 1 + k] = (g >> (8 * k)) & 255
            at += 5
    size[0] = at


@bare
def merge(orders, gaps, room, o_next, o_end, g_next, g_end, g_last, open_, left, bases, block, filled, skip):  # type: ignore[no-untyped-def]
    """Fill a block with positions in order, until it is full or a buffer must be filled again.

    Piece k has `room` entries of `orders` and of `gaps` from k * room on, of which those from next to end are to be used
    (g_last: nothing follows in the file). open_: its gap is to be read; left: how many to its right come before its next.
    """
    done, count = filled[0], len(bases)
    while done < len(block):
        k = 0
        while k < count - 1:
            if open_[k] == 1:
                if g_end[k] - g_next[k] < 5 and g_last[k] == 0:
                    filled[0] = done
                    return
                at = k * room + g_next[k]
                number, used = int(gaps[at]), 1
                if number == _FAR:
                    number, used = 0, 5
                    for b in range(4):
                        number |= int(gaps[at + 1 + b]) << (8 * b)
                g_next[k] += used
                left[k] = number
                open_[k] = 0
            if left[k] == 0:
                break
            k += 1
        if o_next[k] == o_end[k]:
            filled[0] = done
            return
        position = bases[k] + orders[k * room + o_next[k]]
        o_next[k] += 1
        open_[k] = 1
        for j in range(k):
            left[j] -= 1
        if position != skip:
            block[done] = position
            done += 1
    filled[0] = done
