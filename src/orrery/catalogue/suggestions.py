"""Did you mean: the nearest words of the vocabulary for a word that no paper holds.

Near is an edit distance (insertion, deletion, substitution, transposition of neighbours) of 1 for words up to five letters,
2 up to eight, 3 above. The vocabulary is first cut by length and by counts of letters, which bound that distance from
below (every edit changes at most two counts), as one pass of numpy over a byte matrix; the few words left are compared
exactly. Among equally near words the one that shares more of its beginning, then the more frequent, wins.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orrery.catalogue import vectors
from orrery.catalogue.query import Query, Term
from orrery.catalogue.words import STOP

if TYPE_CHECKING:
    import numpy as np

    from orrery.catalogue.store import Store

    Array = np.ndarray[Any, Any]

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_COMPARED = 400  # words that are compared exactly
_SHORTEST = 4  # letters; shorter words have too many neighbours


def edits(one: str, other: str, most: int) -> int:
    """Edit distance with transposition of neighbours (optimal string alignment); `most` + 1 when it is larger than `most`."""
    if abs(len(one) - len(other)) > most:
        return most + 1
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        previous, row, earlier = row, [i], before
        for j, b in enumerate(other, 1):
            cost = min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, earlier[j - 2] + 1)
            row.append(cost)
        before = previous
        if min(row) > most:
            return most + 1
    return min(row[-1], most + 1)


def tolerance(word: str) -> int:
    """Edits within which another word is near."""
    return 1 if len(word) <= 5 else 2 if len(word) <= 8 else 3


def _signature(words: Sequence[str]) -> Array:
    """Counts (N,37) of letters of every word, and of all other characters together."""
    import numpy as np

    codes = np.full(0x110000 if any(not word.isascii() for word in words) else 128, len(_LETTERS), np.int64)
    for place, letter in enumerate(_LETTERS):
        codes[ord(letter)] = place
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    letters = np.frombuffer("".join(words).encode("utf-32-le"), np.uint32)
    where = np.repeat(np.arange(len(words)), lengths) * (len(_LETTERS) + 1) + codes[letters]
    return np.bincount(where, minlength=len(words) * (len(_LETTERS) + 1)).reshape(len(words), -1).astype(np.int8)


def _table(placed: vectors.Vectors) -> tuple[Array, Array, Array]:
    """Words of the vocabulary in order of length: their places, lengths and counts of letters. Made once in a process."""
    import numpy as np

    table: tuple[Array, Array, Array] | None = getattr(placed, "_letters", None)
    if table is None:
        lengths = np.fromiter(map(len, placed.vocabulary), np.int64, len(placed.vocabulary))
        order = np.argsort(lengths, kind="stable")
        table = order, lengths[order], _signature([placed.vocabulary[place] for place in order])
        placed._letters = table  # type: ignore[attr-defined]
    return table


def nearest(placed: vectors.Vectors, word: str, limit: int = 3) -> list[str]:
    """Words of the vocabulary that are near to `word`, nearest first."""
    import numpy as np

    if len(word) < _SHORTEST or not placed.vocabulary:
        return []
    most = tolerance(word)
    order, lengths, letters = _table(placed)
    first, last = np.searchsorted(lengths, (len(word) - most, len(word) + most + 1))
    difference = letters[first:last] - _signature([word])
    apart = np.abs(difference).sum(axis=1, dtype=np.int16)  # letters too many and letters too few:
    bound = (
        apart + np.abs(lengths[first:last] - len(word))
    ) // 2  # the larger of both; each edit mends at most one of each
    passed = np.flatnonzero(bound <= most)
    places = order[first + passed]
    near = places[np.lexsort((-placed.counts[places], bound[passed]))][:_COMPARED]
    found = []
    for place in near:
        other = placed.vocabulary[place]
        distance = edits(word, other, most)
        if distance <= most and other != word:
            found.append((distance, -_shared(word, other), -int(placed.counts[place]), other))
    return [item[-1] for item in sorted(found)[:limit]]


def _shared(one: str, other: str) -> int:
    """Letters of the common beginning, three at most: beginnings are rarely mistyped."""
    count = 0
    for a, b in zip(one[:3], other[:3], strict=False):
        if a != b:
            break
        count += 1
    return count


def correct(store: Store, connection: sqlite3.Connection, asked: Query) -> tuple[Query, str | None]:
    """The query with words that no paper holds replaced by the nearest that one does, and that query as text.

    Only bare words are mended; a phrase, prefix or field says exactly what it wants. (None: nothing to suggest.)
    """
    replaced: dict[str, str] = {}
    for term in asked.terms:
        word = term.words[0]
        if term.plain and len(word) >= _SHORTEST and word not in STOP and not held(connection, term):
            placed = vectors.current(store)
            near = nearest(placed, word, 1) if placed else []
            if near:
                replaced[word] = near[0]
    if not replaced:
        return asked, None

    def mended(term: Term) -> Term:
        return replace(term, words=(replaced.get(term.words[0], term.words[0]),)) if term.plain else term

    groups = tuple(tuple(mended(term) for term in group) for group in asked.groups)
    text = " ".join(replaced.get(word, word) for word in asked.text.split())
    return replace(asked, groups=groups, text=text), text


def held(connection: sqlite3.Connection, term: Term) -> bool:
    """Whether any paper holds a term."""
    return (
        connection.execute("SELECT 1 FROM papers_fts WHERE papers_fts MATCH ? LIMIT 1", (term.match(),)).fetchone()
        is not None
    )
