"""Labels of ids, and sentences as ids of their words: split at white space and looked up by compiled loops.

Words are split where `str.split` splits them, by Unicode's white space; anything else may stand in a word, NUL and combining
marks included, and words are compared as they are, without normalising. Compiled, a batch is one buffer of UTF-8 with the
byte 0xFF, which UTF-8 has not, behind every sentence; what that reads is equal to what :meth:`Vocabulary.plain` reads.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import repeat
from typing import Any

import numpy as np

from orrery.core.errors import DataError
from orrery.ngram.threads import workers
from orrery.ngram.trie import Ints

_LEAST, _MOST = 1 << 14, 1 << 18  # bytes of sentences that are read at once
_END = b"\xff"


class Vocabulary:
    """The ids of words. Of a word that stands in the list twice the last place counts.

    Attributes:
        ids: word -> id. unknown: the id of `<unk>`; -1: there is none.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.ids = {word: number for number, word in enumerate(words)}
        self.unknown = self.ids.get("<unk>", self.ids.get("<UNK>", -1))

    def look_up(self, words: Sequence[str]) -> Ints:
        """Ids of words (N,); unknown ones become `<unk>`.

        Raises:
            DataError: an unknown word, where there is no `<unk>`.
        """
        found = np.fromiter(map(self.ids.get, words, repeat(self.unknown)), dtype=np.int64)
        if len(found) and found.min() < 0:
            missing = next(word for word in words if word not in self.ids)
            raise DataError(f"'{missing}' is not in the model's vocabulary, and it has no <unk>")
        return found

    def plain(self, sentences: Sequence[Any], before: int = -1, after: int = -1) -> tuple[Ints, Ints]:
        """Ids of sentences (strings or lists of words) laid end to end, and their lengths.

        Args:
            before, after: ids around every sentence, -1 for none; they count as part of it.
        """
        words: list[str] = []
        sizes = array("q")
        for sentence in sentences:
            row = sentence.split() if isinstance(sentence, str) else sentence
            words += row
            sizes.append(len(row))
        lengths: Ints = np.array(sizes, dtype=np.int64)
        ids, marks = self.look_up(words), int(before >= 0) + int(after >= 0)
        framed = np.empty(len(ids) + marks * len(lengths), dtype=np.int64)
        row = np.repeat(np.arange(len(lengths)), lengths)
        framed[np.arange(len(ids)) + marks * row + int(before >= 0)] = ids
        stops = np.cumsum(lengths + marks)
        if before >= 0:
            framed[stops - lengths - marks] = before
        if after >= 0:
            framed[stops - 1] = after
        return framed, lengths + marks

    def blocks(self, sentences: Sequence[str]) -> list[tuple[np.ndarray, int]] | None:
        """Sentences as buffers for :meth:`read`, and how many are in each; None where one holds half a surrogate pair."""
        try:
            encoded = [sentence.encode() for sentence in sentences]
        except UnicodeEncodeError:
            return None
        sizes = np.cumsum([0, *(len(each) + 1 for each in encoded)])
        step = min(_MOST, max(_LEAST, int(sizes[-1]) // (4 * workers())))
        edges = np.unique([*np.searchsorted(sizes, np.arange(0, sizes[-1], step)), len(encoded)]).tolist()
        return [(_buffer(encoded[a:b]), b - a) for a, b in zip(edges[:-1], edges[1:], strict=True)]

    def read(self, text: np.ndarray, rows: int, before: int = -1, after: int = -1) -> tuple[Ints, Ints]:
        """:meth:`plain`, compiled, of a buffer of :meth:`blocks`. Without `<unk>`, unknown words are -1."""
        from orrery.ngram.word_loops import split

        ids, lengths = np.empty(len(text) + 2 * rows, dtype=np.int64), np.empty(rows, dtype=np.int64)
        filled = split(text, rows, *self._table, self.unknown, before, after, ids, lengths)
        return ids[:filled], lengths

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The words by their numbers, their bytes, and the edges of these; the ids of left out words have no bytes."""
        from orrery.ngram.word_loops import enter

        spelt = list(_spelt(self.ids))
        edges = np.cumsum([0, *map(len, spelt)])
        table = np.zeros((1 << max(4, (2 * len(spelt)).bit_length()), 2), dtype=np.int64)
        words = np.frombuffer(b"".join(spelt) or b"\0", dtype=np.uint8)
        enter(words, edges, table)
        return table, words, edges


def _buffer(encoded: list[bytes]) -> np.ndarray:
    return np.frombuffer(_END.join([*encoded, b""]), dtype=np.uint8)


def _spelt(ids: dict[str, int]) -> Iterator[bytes]:
    """The bytes of every id's word: none where it has no word of its own, or one that no text can hold."""
    by_id = {number: word for word, number in ids.items()}
    for number in range(max(by_id, default=-1) + 1):
        try:
            yield by_id.get(number, "").encode()
        except UnicodeEncodeError:
            yield b""
