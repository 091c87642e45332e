"""Compiled loops that read sentences: UTF-8 split at white space, and the ids of its words. See :mod:`orrery.ngram.words`.

A word of up to seven bytes is a number by itself, its bytes and its length; of a longer one the number is a hash, and its bytes
are compared. Numbers of the two kinds differ in bit 62, and 0 is none, so an empty slot is a slot with 0.

W words, S slots (a power of two), B bytes of text, R rows.
"""

# mypy: disable-error-code="no-untyped-def, assignment"

from __future__ import annotations

import numpy as np

from orrery.ngram.compiled import bare, inlined

_MIX = 0x9E3779B97F4A7C1  # odd, below 2^60
_LONG = 1 << 62
_END = 0xFF  # a byte that UTF-8 has not, behind every row


@inlined
def white(text, at):
    """Bytes of the white space that begins at a byte, as `str.split` understands it; 0: none does.

    Every byte that could begin one stands before at least one more byte, be it the end of its row.
    """
    b = text[at]
    if b <= 32:
        return 1 if b == 32 or 9 <= b <= 13 or b >= 28 else 0
    if b == 0xC2:
        return 2 if text[at + 1] == 0x85 or text[at + 1] == 0xA0 else 0
    if b < 0xE1 or b > 0xE3:
        return 0
    c, d = text[at + 1], text[at + 2]
    if b == 0xE1:
        return 3 if c == 0x9A and d == 0x80 else 0  # 1680
    if b == 0xE3:
        return 3 if c == 0x80 and d == 0x80 else 0  # 3000
    if c == 0x80:  # 2000-200a, 2028, 2029, 202f
        return 3 if d <= 0x8A or d == 0xA8 or d == 0xA9 or d == 0xAF else 0
    return 3 if b == 0xE2 and c == 0x81 and d == 0x9F else 0  # 205f


@inlined
def number(text, begin, end):
    """The number of the word of these bytes."""
    size = end - begin
    if size < 8:
        found = np.int64(size)
        for i in range(begin, end):
            found = (found << 8) | np.int64(text[i])
        return found
    found = np.int64(size)
    for i in range(begin, end):
        found = (found ^ np.int64(text[i])) * _MIX
        found ^= (found >> 29) & 0x7FFFFFFFF
    return (found & (_LONG - 1)) | _LONG


@inlined
def slot(found, slots):
    """Where a number is looked for first."""
    mixed = found * _MIX
    return ((mixed >> 32) ^ mixed >> 13) & (slots - 1)


@inlined
def same(text, begin, end, words, edges, word):
    """Whether these bytes are that word."""
    size = end - begin
    if edges[word + 1] - edges[word] != size:
        return False
    i = 0
    while i < size and words[edges[word] + i] == text[begin + i]:
        i += 1
    return i == size


@inlined
def find(text, begin, end, table, words, edges):
    """The slot of a word, or the empty one where it belongs."""
    found = number(text, begin, end)
    at = slot(found, len(table))
    while table[at, 0] != 0:
        if table[at, 0] == found and (found < _LONG or same(text, begin, end, words, edges, table[at, 1])):
            break
        at = (at + 1) & (len(table) - 1)
    return at


@bare
def enter(words, edges, table):
    """Fill the table (S,2): number and id, of the words (their bytes; edges (W+1,)), which differ; empty ones are left out."""
    for word in range(len(edges) - 1):
        if edges[word] < edges[word + 1]:
            at = find(words, edges[word], edges[word + 1], table, words, edges)
            table[at, 0] = number(words, edges[word], edges[word + 1])
            table[at, 1] = word


@bare
def split(text, rows, table, words, edges, unknown, before, after, ids, lengths):
    """Ids of the words of R rows, framed: how many there are.

    text (B,): rows with an end behind each. unknown: the id of words that are not known. before, after: ids around
    every row, -1 for none. ids: room for B + 2R. lengths (R,): of the rows, with their frames.
    """
    at, filled = 0, 0
    for r in range(rows):
        begun = filled
        if before >= 0:
            ids[filled] = before
            filled += 1
        while text[at] != _END:
            space = white(text, at)
            if space > 0:
                at += space
                continue
            begin = at
            at += 1
            while text[at] != _END and white(text, at) == 0:
                at += 1
            place = find(text, begin, at, table, words, edges)
            ids[filled] = table[place, 1] if table[place, 0] != 0 else unknown
            filled += 1
        at += 1
        if after >= 0:
            ids[filled] = after
            filled += 1
        lengths[r] = filled - begun
    return filled


@bare
def total(value, lengths, out):
    """Natural logarithm of the product of each row's values: out (R,)."""
    t = 0
    for r in range(len(lengths)):
        product, logarithm = 1.0, 0.0
        for _ in range(lengths[r]):
            product *= value[t]
            t += 1
            if product < 1e-200:
                logarithm += np.log(product)
                product = 1.0
        out[r] = logarithm + np.log(product)
