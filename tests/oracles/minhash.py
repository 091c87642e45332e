"""MinHash fingerprints and counting Bloom filters of words (2202.04350, section 3) in plain Python."""

from __future__ import annotations

import unicodedata

import numpy as np

P = 2**31 - 1


def words(text):
    """White space parts words; punctuation, symbols and Chinese characters stand alone; lower case."""
    found, open_word = [], False
    for char in text:
        if char.isspace():
            open_word = False
        elif unicodedata.category(char)[0] in "PS" or "\u4e00" <= char <= "\u9fff":
            found.append(char)
            open_word = False
        else:
            small = char.lower() if len(char.lower()) == 1 else char
            if open_word:
                found[-1] += small
            else:
                found.append(small)
            open_word = True
    return found


def _hash(gram, point):
    value = 0
    for char in gram:
        value = (value * point + ord(char) + 1) % P
    value = ((value ^ (value >> 15)) * 1540483477 + 374761393) % P
    return ((value ^ (value >> 13)) * 1103515245 + 668265263) % P


def fingerprint(word, hashes):
    """f_i = min over the trigrams of h1 + i h2."""
    grams = [word[i : i + 3] for i in range(len(word) - 2)] if len(word) >= 4 else [word]
    pairs = [(_hash(gram, 1000003), _hash(gram, 2097593)) for gram in grams]
    return [min((one + i * two) % P for one, two in pairs) for i in range(hashes)]


def bloom(prints, buckets):
    """How many of the fingerprint's hashes fall into each bucket."""
    counts = np.zeros(buckets, dtype=int)
    for value in prints:
        counts[value % buckets] += 1
    return counts
