"""∞-gram distributions of all positions of a batch, dense, from an index: what models that mix stand on.

N tokens of text, P positions, V vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KEPT = 4096  # distributions remembered: short suffixes come again and again


class Suffixes:
    """Distributions behind the longest suffixes that an index knows, over a vocabulary of V ids."""

    def __init__(self, index: Any, vocabulary: int) -> None:
        self.index, self.vocabulary = index, vocabulary
        self._found: OrderedDict[tuple[int, ...], tuple[Any, Any, int]] = OrderedDict()

    def __deepcopy__(self, memo: Any) -> Suffixes:
        """An open index is a value; copies of a model share it."""
        return self

    def distributions(
        self, text: NDArray[np.int64], starts: NDArray[np.int64], places: NDArray[np.int64], context: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
        """P_inf behind the tokens at `places`, given at most `context` tokens of their row.

        Args:
            text: (N,) rows laid end to end; starts: (R,) where each begins.

        Returns:
            probabilities (P,V); effective n (P,); sparse (P,).
        """
        p = np.zeros((len(places), self.vocabulary))
        n, sparse = np.zeros(len(places), dtype=np.int64), np.zeros(len(places), dtype=bool)
        behind = np.zeros(len(text), dtype=np.int64)  # the longest suffix that occurs, of the row up to each token
        for begin, end in zip(starts.tolist(), [*starts[1:].tolist(), len(text)], strict=True):
            behind[begin:end] = self.index.matches(text[begin:end])[2][1:]
        for i, place in enumerate(places.tolist()):
            length = min(int(behind[place]), context)
            ids, shares, n[i] = self._next(tuple(text[place + 1 - length : place + 1].tolist()))
            p[i, ids] = shares
            sparse[i] = len(ids) == 1
        return p, n, sparse

    def _next(self, suffix: tuple[int, ...]) -> tuple[Any, Any, int]:
        """Ids, their shares, and how long a suffix they follow."""
        if suffix in self._found:
            self._found.move_to_end(suffix)
            return self._found[suffix]
        found = self.index.next(np.array(suffix, dtype=np.int64))
        ids, counts = np.asarray(found.ids), np.asarray(found.counts, dtype=np.float64)
        known = ids < self.vocabulary  # an index without documents' marks has one id more, for the end of its text
        ids, counts = ids[known], counts[known]
        if not len(ids) and suffix:
            return self._next(suffix[1:])
        answer = ids, counts / max(counts.sum(), 1.0), len(suffix)
        self._found[suffix] = answer
        if len(self._found) > _KEPT:
            self._found.popitem(last=False)
        return answer
