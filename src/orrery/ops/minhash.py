"""Words to features without a table: MinHash fingerprints of their trigrams, put into counting Bloom filters.

Papers: On the resemblance and containment of documents (Broder 1997); pNLP-Mixer (arXiv 2202.04350), section 3.

Text is UTF-8 bytes, one token each; ids from 256 up are marks and stand alone. A word is a run of letters, digits and other
signs between white space; punctuation, symbols and Chinese characters are words of their own. A byte of white space belongs
to the word behind it (at the end of a document, to the one before).

    g  trigrams of the word's characters, or the word itself where it has fewer than four
    h1(g), h2(g)     polynomials of the characters at two points modulo p = 2^31 - 1, then mixed twice
    f_i = min_g (h1(g) + i h2(g)) mod p,   i = 0 .. n - 1
    c_j = #{ i : f_i mod m = j }

The places f_i mod m are what is handed out: c times a matrix is the sum of n of its rows.

B batch, T time, W words, n hashes, m buckets.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orrery.ops.backend import installed
from orrery.ops.compiled import compiled, inlined

PRIME = (1 << 31) - 1
MARK = 256  # ids from here on are marks
KNOWN = 0x20000  # characters beyond stand alone and keep their case
_SPACE, _LETTER, _ALONE = 0, 1, 2


class Words(NamedTuple):
    """The words of a batch, in order.

    place: (B*T,) int64, the word of every token, -1 at padding. document: (W,) int64. origin: (W,) int64, each word's first
    token. chars, starts: characters of word w are chars[starts[w]:starts[w + 1]].
    """

    place: NDArray[np.int64]
    document: NDArray[np.int64]
    origin: NDArray[np.int64]
    chars: NDArray[np.int64]
    starts: NDArray[np.int64]


@functools.cache
def character_tables() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """What a character is (space, part of a word, alone) and its lower case, for those below KNOWN."""
    kinds, lower = np.full(KNOWN, _LETTER, np.uint8), np.arange(KNOWN, dtype=np.int64)
    for code in range(KNOWN):
        char = chr(code)
        category = unicodedata.category(char)
        if char.isspace():
            kinds[code] = _SPACE
        elif category[0] == "P" or category[0] == "S" or (category == "Lo" and 0x2E80 <= code):
            kinds[code] = _ALONE
        small = char.lower()
        if len(small) == 1 and ord(small) < KNOWN:
            lower[code] = ord(small)
    kinds[0xAC00:0xD7A4] = _LETTER  # Hangul is written with spaces
    return kinds, lower


@inlined
def _character(tokens, documents, t):  # type: ignore[no-untyped-def]
    """The character at place t and the place of its last byte; a byte that is no UTF-8 is a character of its own."""
    lead = tokens[t]
    more = 0
    code = lead
    if 0xC2 <= lead <= 0xDF:
        more, code = 1, lead & 0x1F
    elif 0xE0 <= lead <= 0xEF:
        more, code = 2, lead & 0x0F
    elif 0xF0 <= lead <= 0xF4:
        more, code = 3, lead & 0x07
    last = t
    for _ in range(more):
        last += 1
        while last < len(tokens) and documents[last] < 0:
            last += 1
        if last >= len(tokens) or documents[last] != documents[t] or tokens[last] < 0x80 or tokens[last] > 0xBF:
            return 0x110000 + lead, t
        code = (code << 6) | (tokens[last] & 0x3F)
    if more == 0 and lead >= 0x80:
        code = 0x110000 + lead
    return code, last


@compiled
def _cut(tokens, documents, kinds, lower, place, document, origin, chars, starts, sizes):  # type: ignore[no-untyped-def]
    """Fill `place`, `document`, `origin`, `chars`, `starts`; sizes: words and characters found."""
    words, count, inside, current, begun, t = 0, 0, False, -1, 0, 0
    first = 0  # token at which the document began
    total = len(tokens)
    while t <= total:
        if t < total and documents[t] < 0:
            place[t] = -1
            t += 1
            continue
        if t == total or documents[t] != current:
            if current >= 0 and words == begun:  # a document of white space alone is one word without characters
                document[words], origin[words], starts[words] = current, first, count
                words += 1
                for j in range(first, t):
                    if documents[j] == current:
                        place[j] = words - 1
            if t == total:
                break
            current, begun, inside, first = documents[t], words, False, t
        code, last = _character(tokens, documents, t)
        kind = kinds[code] if code < len(kinds) else (1 if 0x110000 <= code < 0x110000 + 256 else 2)
        if kind == 0:
            place[t:last + 1] = -2
            inside = False
        else:
            if kind == 2 or not inside:
                document[words], origin[words], starts[words] = current, t, count
                words += 1
            inside = kind == 1
            chars[count] = lower[code] if code < len(lower) else code
            count += 1
            place[t:last + 1] = words - 1
        for j in range(t, last):
            if documents[j] < 0:
                place[j] = -1
        t = last + 1
    starts[words] = count
    following = -1
    for t in range(total - 1, -1, -1):
        if place[t] >= 0:
            following = place[t]
        elif place[t] == -2 and following >= 0 and document[following] == documents[t]:
            place[t] = following
    before = -1
    for t in range(total):
        if place[t] >= 0:
            before = place[t]
        elif place[t] == -2:
            place[t] = before
    sizes[0], sizes[1] = words, count


@inlined
def _mixed(x):  # type: ignore[no-untyped-def]
    """A number below p from a number below p, so that neighbours part."""
    x = ((x ^ (x >> 15)) * 1540483477 + 374761393) % 2147483647
    return ((x ^ (x >> 13)) * 1103515245 + 668265263) % 2147483647


@compiled
def _fingerprints(chars, starts, found):  # type: ignore[no-untyped-def]
    """found (W,n): the least hash of every word's trigrams for every i; p where a word has no characters."""
    prime = 2147483647
    for word in range(len(found)):
        begin, stop = starts[word], starts[word + 1]
        found[word, :] = prime
        if stop == begin:
            continue
        size = 3 if stop - begin >= 4 else stop - begin
        for gram in range(begin, stop - size + 1):
            one, two = 0, 0
            for k in range(gram, gram + size):
                one = (one * 1000003 + chars[k] + 1) % prime
                two = (two * 2097593 + chars[k] + 1) % prime
            value, step = _mixed(one), _mixed(two)
            for i in range(found.shape[1]):
                found[word, i] = min(found[word, i], value)
                value += step
                if value >= prime:
                    value -= prime


@compiled
def _distinct(chars, starts, table, first, which, kept, begins, sizes):  # type: ignore[no-untyped-def]
    """Fill `first` (the first word of every spelling), `which`, and the spellings' `kept`, `begins`; table: open addressing."""
    mask, found, count = len(table) - 1, 0, 0
    for word in range(len(which)):
        begin, length = starts[word], starts[word + 1] - starts[word]
        value = length
        for k in range(begin, begin + length):
            value = (value * 1000003 + chars[k] + 1) % 2147483647
        slot = _mixed(value) & mask
        while table[slot] >= 0:
            other = table[slot]
            same = begins[other + 1] - begins[other] == length
            k = 0
            while same and k < length:
                same = kept[begins[other] + k] == chars[begin + k]
                k += 1
            if same:
                break
            slot = (slot + 1) & mask
        if table[slot] < 0:
            table[slot], first[found], begins[found] = found, word, count
            for k in range(length):
                kept[count + k] = chars[begin + k]
            count += length
            found += 1
            begins[found] = count
        which[word] = table[slot]
    sizes[0] = found


def cut_words(tokens: NDArray[np.int64], documents: NDArray[np.int64], lower: bool = True) -> Words:
    """The words of flattened rows of bytes.

    Args:
        tokens: (N,) int64, bytes and marks.
        documents: (N,) int64, each token's document, growing, -1 at padding.
        lower: fold case.
    """
    kinds, small = character_tables()
    if not lower:
        small = np.arange(KNOWN, dtype=np.int64)
    size = len(tokens) + 1
    place, chars, starts = np.empty(len(tokens), np.int64), np.empty(size, np.int64), np.empty(size + 1, np.int64)
    document, origin, sizes = np.empty(size, np.int64), np.empty(size, np.int64), np.zeros(2, np.int64)
    _run(_cut)(tokens, documents, kinds, small, place, document, origin, chars, starts, sizes)
    words, count = int(sizes[0]), int(sizes[1])
    return Words(place, document[:words], origin[:words], chars[:count], starts[: words + 1])


def fingerprints(words: Words, hashes: int) -> NDArray[np.int64]:
    """MinHash fingerprints (W,n) below p; p itself in words without characters."""
    found = np.empty((len(words.document), hashes), np.int64)
    _run(_fingerprints)(words.chars, words.starts, found)
    return found


def distinct(words: Words) -> tuple[Words, NDArray[np.int64]]:
    """Every spelling once, in the order in which they first come, and which of them each word has (W,).

    Exact: words are compared character by character, not by a hash alone. Nothing is kept between calls.
    """
    count = len(words.document)
    size = 1 << max(4, (2 * count - 1).bit_length())
    table, first, which = np.full(size, -1, np.int64), np.empty(count, np.int64), np.empty(count, np.int64)
    chars, starts, sizes = np.empty(len(words.chars), np.int64), np.empty(count + 1, np.int64), np.zeros(1, np.int64)
    _run(_distinct)(words.chars, words.starts, table, first, which, chars, starts, sizes)
    found = int(sizes[0])
    first = first[:found]
    kept = Words(words.place[:0], words.document[first], words.origin[first], chars[: starts[found]], starts[: found + 1])
    return kept, which


def bloom_counts(prints: NDArray[np.int64], buckets: int) -> NDArray[np.int64]:
    """Counting Bloom filters (W,m) of fingerprints (W,n): how many hashes fall into each bucket."""
    rows = np.arange(len(prints))[:, None] * buckets + prints % buckets
    return np.bincount(rows.ravel(), minlength=len(prints) * buckets).reshape(len(prints), buckets)


def _run(kernel):  # type: ignore[no-untyped-def]
    return kernel if installed("numba") else kernel.__wrapped__
