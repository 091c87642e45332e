"""Suffix arrays of token sequences in linear time and in place: induced sorting.

Paper: Two Efficient Algorithms for Linear Time Suffix Array Construction (Nong, Zhang and Chan 2011).

A suffix is S if it is smaller than the next one, else L (the last one is L: behind the text stands something smaller
than every token). A *leftmost S* suffix (LMS) has an L suffix before it. From the sorted LMS suffixes one pass to the
right induces the order of all L suffixes, and one to the left that of all S suffixes. The LMS suffixes themselves are
sorted by inducing once from an arbitrary order, which sorts the stretches between them; numbering equal stretches gives
a text of at most half the length, whose suffix array is found in the same way.

N tokens, A alphabet, M <= N/2 LMS suffixes. Time O(N), whatever the text; memory 4 N bytes for the result, 4 M for the
shorter text and 8 A for the bounds of the buckets, at each depth for what is left.

Entries are marked by their complement (~p): "whose predecessor is of the other type, so that this pass leaves it".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from orrery.ngram.compiled import available, inlined, kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONGEST = (1 << 31) - 2  # tokens of one text: positions are 32-bit and one bit marks


def suffix_array(text: NDArray[np.integer], alphabet: int) -> NDArray[np.int32]:
    """Positions of all suffixes of `text` (N,) in lexicographic order; a suffix sorts before those it begins.

    Args:
        text: (N,) unsigned 8, 16 or 32-bit ids below `alphabet`.
        alphabet: number of ids.
    """
    n = len(text)
    if n > LONGEST:
        raise ValueError(f"{n} tokens in one text; at most {LONGEST}")
    if not available():
        return _doubling(text)
    order = np.empty(n, dtype=np.int32)
    _sort(text, order, alphabet)
    return order


def _sort(text: NDArray[np.integer], order: NDArray[np.int32], alphabet: int) -> None:
    """Write the suffix array of `text` into `order`."""
    n = len(text)
    if n < 2:
        order[:] = 0
        return
    sizes = np.zeros(alphabet, dtype=np.int32)
    count(text, sizes)
    bounds = np.empty(alphabet, dtype=np.int32)
    m = place_unsorted(text, order, sizes, bounds)
    if m > 1:
        induce(text, order, sizes, bounds, True)
        names = name_stretches(text, order, m)
        shorter = np.empty(m, dtype=np.int32)
        gather_names(order, shorter, m)
        if names < m:
            del bounds  # the shorter text's are the larger ones
            _sort(shorter, order[:m], names)
            bounds = np.empty(alphabet, dtype=np.int32)
        else:
            invert(shorter, order)
        list_lms(text, shorter)
        translate(order, shorter)
        place_sorted(text, order, sizes, bounds, m)
    induce(text, order, sizes, bounds, False)


@kernel
def count(text, sizes):  # type: ignore[no-untyped-def]
    """How often each id occurs."""
    for i in range(len(text)):
        sizes[text[i]] += 1


@inlined
def _starts(sizes, bounds):  # type: ignore[no-untyped-def]
    total = 0
    for c in range(len(sizes)):
        bounds[c] = total
        total += sizes[c]


@inlined
def _ends(sizes, bounds):  # type: ignore[no-untyped-def]
    total = 0
    for c in range(len(sizes)):
        total += sizes[c]
        bounds[c] = total


@kernel
def place_unsorted(text, order, sizes, bounds):  # type: ignore[no-untyped-def]
    """Put every LMS suffix at the end of its bucket, in no particular order; all else is 0. Returns how many."""
    n = len(text)
    order[:] = 0
    _ends(sizes, bounds)
    m = 0
    later = np.int64(text[n - 1])
    rising = False  # whether the suffix behind is S
    for i in range(n - 2, -1, -1):
        here = np.int64(text[i])
        if here < later:
            rising = True
        elif here > later:
            if rising:
                bounds[later] -= 1
                order[bounds[later]] = i + 1
                m += 1
            rising = False
        later = here
    return m


@kernel
def induce(text, order, sizes, bounds, lms_only):  # type: ignore[no-untyped-def]
    """From LMS suffixes at the ends of their buckets, the order of all; with `lms_only` nothing but LMS is left."""
    n = len(text)
    _starts(sizes, bounds)
    c = np.int64(text[n - 1])
    top = np.int64(bounds[c])
    order[top] = n - 1 if np.int64(text[n - 2]) >= c else ~(n - 1)
    top += 1
    for i in range(n):
        p = np.int64(order[i])
        if p <= 0:
            continue
        if lms_only:
            order[i] = 0
        q = p - 1  # of type L, since p is L and not marked, or LMS
        d = np.int64(text[q])
        if d != c:
            bounds[c] = top
            c = d
            top = np.int64(bounds[c])
        order[top] = q if q > 0 and np.int64(text[q - 1]) >= d else ~q
        top += 1
    _ends(sizes, bounds)
    c = np.int64(0)
    top = np.int64(bounds[0])
    for i in range(n - 1, -1, -1):
        p = np.int64(order[i])
        if p >= 0:
            continue
        p = ~p
        order[i] = 0 if lms_only else p
        if p == 0:
            continue
        q = p - 1  # of type S
        d = np.int64(text[q])
        if d != c:
            bounds[c] = top
            c = d
            top = np.int64(bounds[c])
        top -= 1
        order[top] = ~q if q > 0 and np.int64(text[q - 1]) <= d else q


@kernel
def name_stretches(text, order, m):  # type: ignore[no-untyped-def]
    """Number the sorted stretches between LMS suffixes, equal ones equally; the number of p goes to order[m + p // 2].

    Returns how many different ones there are. The other entries behind the first m are -1.
    """
    n = len(text)
    kept = 0
    for i in range(n):
        p = order[i]
        if p > 0:
            order[i] = 0
            order[kept] = p
            kept += 1
    order[m:] = -1
    later, rising, end = np.int64(text[n - 1]), False, n
    for i in range(n - 2, -1, -1):  # lengths, both ends included; the last stretch ends behind the text
        here = np.int64(text[i])
        if here < later:
            rising = True
        elif here > later:
            if rising:
                order[m + ((i + 1) >> 1)] = end - i
                end = i + 1
            rising = False
        later = here
    name = np.int64(-1)
    before, before_length = np.int64(0), np.int64(0)
    for i in range(m):
        p = np.int64(order[i])
        length = np.int64(order[m + (p >> 1)])
        same = length == before_length and p + length <= n and before + length <= n
        if same:
            for k in range(length):
                if text[p + k] != text[before + k]:
                    same = False
                    break
        if not same:
            name += 1
            before, before_length = p, length
        order[m + (p >> 1)] = name
    return name + 1


@kernel
def gather_names(order, shorter, m):  # type: ignore[no-untyped-def]
    """The text of names, in the order of positions."""
    kept = 0
    for i in range(m, len(order)):
        if order[i] >= 0:
            shorter[kept] = order[i]
            kept += 1


@kernel
def invert(ranks, order):  # type: ignore[no-untyped-def]
    """order[ranks[i]] = i."""
    for i in range(len(ranks)):
        order[ranks[i]] = i


@kernel
def list_lms(text, positions):  # type: ignore[no-untyped-def]
    """Positions of the LMS suffixes, ascending."""
    later, rising, at = np.int64(text[len(text) - 1]), False, len(positions)
    for i in range(len(text) - 2, -1, -1):
        here = np.int64(text[i])
        if here < later:
            rising = True
        elif here > later:
            if rising:
                at -= 1
                positions[at] = i + 1
            rising = False
        later = here


@kernel
def translate(order, positions):  # type: ignore[no-untyped-def]
    """From the number of an LMS suffix to its position."""
    for i in range(len(positions)):
        order[i] = positions[order[i]]


@kernel
def place_sorted(text, order, sizes, bounds, m):  # type: ignore[no-untyped-def]
    """Spread the m sorted LMS suffixes to the ends of their buckets; all else is 0."""
    _ends(sizes, bounds)
    order[m:] = 0
    for i in range(m - 1, -1, -1):
        p = order[i]
        order[i] = 0
        c = text[p]
        bounds[c] -= 1
        order[bounds[c]] = p


def _doubling(text: NDArray[np.integer]) -> NDArray[np.int32]:
    """Without numba: sort by 1, 2, 4 ... tokens (Manber and Myers 1993), each time by a pair of ranks. N log^2 N."""
    rank = np.unique(text, return_inverse=True)[1].astype(np.int64) + 1
    width, order = 1, np.argsort(rank, kind="stable")
    while rank.max(initial=0) < len(text):
        behind = np.zeros_like(rank)
        behind[: max(0, len(text) - width)] = rank[width:]
        keys = rank * (len(text) + 1) + behind
        order = np.argsort(keys, kind="stable")
        rank[order] = 1 + np.cumsum(np.concatenate([[0], (np.diff(keys[order]) > 0).astype(np.int64)]))
        width *= 2
    return order.astype(np.int32)
