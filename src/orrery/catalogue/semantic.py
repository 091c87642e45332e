"""Meaning without a network: latent semantic analysis of the catalogue in numpy.

A text becomes a bag of features: stems, and concepts of :mod:`orrery.catalogue.lexicon`. With A the documents-by-features
matrix of weights (1 + ln count) * idf, rows of unit length, the space is spanned by the right singular vectors V of A
(Deerwester et al. 1990), found by a randomized range finder with power iterations (Halko, Martinsson, Tropp 2011,
algorithm 4.4). A text is placed at x V, x its row, its mean direction removed, at unit length; nearness is the cosine.

Cost: the space is fitted on at most `SAMPLE` documents, evenly spaced over all, and every other document is folded in, as
a query is, so memory and time of the fit do not grow with the catalogue. Vectors of documents are kept as int8 with one
scale each: a quarter of float32's disk and reading time, at an error of the cosine below 0.01 (tested).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orrery.catalogue.lexicon import concepts
from orrery.catalogue.words import stems

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

DIMENSIONS = 64
SAMPLE = 12_000  # documents that the space is fitted on
SMALL = 1000  # documents; among fewer a feature of a single one is kept
MOST_FEATURES = 40_000  # the most frequent ones of the sample
OVERSAMPLING, POWER_ITERATIONS = 10, 2
CONCEPT_WEIGHT = 2.0  # of a concept beside a word
_PIECE = 1 << 16  # entries multiplied at once

Bag = dict[str, float]


def bag(*texts: tuple[str, float]) -> Bag:
    """Weighted counts of the features of some texts, each with its weight (title 3, abstract 1, say)."""
    counts: Counter[str] = Counter()
    for text, weight in texts:
        found = stems(text)
        for feature in found:
            counts[feature] += weight  # type: ignore[assignment]
        for feature in concepts(found):
            counts[feature] += weight * CONCEPT_WEIGHT  # type: ignore[assignment]
    return dict(counts)


@dataclass(frozen=True)
class Rows:
    """A sparse matrix by rows: entries of row i are `starts[i]:starts[i + 1]`."""

    starts: Array
    columns: Array
    values: Array

    def times(self, dense: Array) -> Array:
        """This matrix (N,F) times a dense one (F,K), in pieces of bounded size."""
        import numpy as np

        out = np.zeros((len(self.starts) - 1, dense.shape[1]), np.float32)
        for first, last in self._pieces():
            begin, end = int(self.starts[first]), int(self.starts[last])
            if begin == end:
                continue
            filled = np.flatnonzero(np.diff(self.starts[first : last + 1]))  # reduceat has no empty rows
            product = dense[self.columns[begin:end]] * self.values[begin:end, None]
            out[first + filled] = np.add.reduceat(product, self.starts[first:last][filled] - begin, axis=0)
        return out

    def _pieces(self) -> Iterator[tuple[int, int]]:
        import numpy as np

        first, rows = 0, len(self.starts) - 1
        while first < rows:
            last = int(np.searchsorted(self.starts, self.starts[first] + _PIECE, side="right")) - 1
            last = min(max(last, first + 1), rows)
            yield first, last
            first = last

    def transposed(self, columns: int) -> Rows:
        """The same matrix by columns."""
        import numpy as np

        rows = np.repeat(np.arange(len(self.starts) - 1, dtype=np.int32), np.diff(self.starts))
        order = np.argsort(self.columns, kind="stable")
        starts = np.zeros(columns + 1, np.int64)
        np.cumsum(np.bincount(self.columns, minlength=columns), out=starts[1:])
        return Rows(starts, rows[order], self.values[order])


@dataclass(frozen=True)
class Space:
    """A fitted space: features by name, their idf and their directions."""

    features: tuple[str, ...]
    idf: Array  # (F,) float32
    directions: Array  # (F,K) float16
    mean: Array  # (K,) float32

    @property
    def places(self) -> dict[str, int]:
        """Feature -> row of `directions`."""
        known: dict[str, int] | None = self.__dict__.get("_places")
        if known is None:
            known = {name: place for place, name in enumerate(self.features)}
            object.__setattr__(self, "_places", known)
        return known

    def embed(self, bags: Iterable[Bag]) -> Array:
        """Unit vectors (N,K) float32 of some texts; a text of which the space knows no feature is zero."""
        return self._place(sparse(bags, self.places, self.idf))

    def _place(self, rows: Rows) -> Array:
        import numpy as np

        if len(rows.columns) < 1000:  # a query: take the few directions rather than widen them all
            used, columns = np.unique(rows.columns, return_inverse=True)
            return _unit(
                Rows(rows.starts, columns, rows.values).times(self.directions[used].astype(np.float32))
                - self._shift(rows)
            )
        return _unit(rows.times(self.directions.astype(np.float32)) - self._shift(rows))

    def _shift(self, rows: Rows) -> Array:
        """The mean direction for rows that have an entry, zero for empty ones."""
        import numpy as np

        return np.outer(np.diff(rows.starts) > 0, self.mean)


def sparse(bags: Iterable[Bag], places: dict[str, int], idf: Array) -> Rows:
    """Rows of (1 + ln count) * idf at unit length; features that are not in `places` are left out."""
    import numpy as np

    starts, columns, values = [0], [], []
    for counts in bags:
        for feature, count in counts.items():
            place = places.get(feature)
            if place is not None:
                columns.append(place)
                values.append(count)
        starts.append(len(columns))
    where = np.asarray(columns, np.int32)
    weights = np.asarray(values, np.float32)
    weights = (1 + np.log(np.maximum(weights, 1e-3))).clip(0.2) * idf[where]
    begins = np.asarray(starts, np.int64)
    squares = np.concatenate([[0.0], np.cumsum(weights.astype(np.float64) ** 2)])
    norms = np.sqrt(np.maximum(squares[begins[1:]] - squares[begins[:-1]], 1e-12))
    return Rows(begins, where, weights / np.repeat(norms, np.diff(begins)).astype(np.float32))


def fit(bags: Sequence[Bag], dimensions: int = DIMENSIONS, seed: int = 0) -> Space:
    """Fit a space on the bags of a sample of documents.

    Args:
        bags: one per document; see :func:`sample` for which.
        dimensions: K; fewer when there are fewer documents.
        seed: of the random test matrix. The same bags and seed give the same space.
    """
    import numpy as np

    counts = Counter(feature for counts in bags for feature in counts)
    least = 1 if len(bags) <= SMALL else 2
    ranked = sorted((item for item in counts.items() if item[1] >= least), key=lambda item: (-item[1], item[0]))[
        :MOST_FEATURES
    ]
    names = tuple(name for name, _ in ranked)
    seen = np.asarray([count for _, count in ranked], np.float32)
    idf = np.log((len(bags) + 1) / (seen + 0.5)).clip(0.05).astype(np.float32)
    if not names:
        return Space((), idf, np.zeros((0, dimensions), np.float16), np.zeros(dimensions, np.float32))
    rows = sparse(bags, {name: place for place, name in enumerate(names)}, idf)
    directions = right_singular(rows, len(names), dimensions, seed)
    mean = rows.times(directions).mean(axis=0)
    return Space(names, idf, directions.astype(np.float16), mean.astype(np.float32))


def right_singular(rows: Rows, columns: int, rank: int, seed: int = 0) -> Array:
    """The leading right singular vectors (F,K) of a sparse matrix (N,F), by a randomized range finder."""
    import numpy as np

    count = len(rows.starts) - 1
    rank = min(rank, count, columns)
    width = min(rank + OVERSAMPLING, count, columns)
    turned = rows.transposed(columns)
    basis = turned.times(np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32))
    for _ in range(POWER_ITERATIONS):
        basis, _ = np.linalg.qr(basis)
        image, _ = np.linalg.qr(rows.times(basis))
        basis = turned.times(image)
    basis, _ = np.linalg.qr(basis)
    right = np.linalg.svd(rows.times(basis), full_matrices=False)[2]
    found = basis @ right[:rank].T
    signs = np.sign(found[np.abs(found).argmax(axis=0), np.arange(found.shape[1])])  # one of the two equal answers
    return np.asarray(found * np.where(signs == 0, 1, signs), np.float32)


def sample(count: int, limit: int = SAMPLE) -> list[int]:
    """Numbers of at most `limit` of `count` documents, evenly spaced, the last one included."""
    if count <= limit:
        return list(range(count))
    return [place * (count - 1) // (limit - 1) for place in range(limit)]


def _unit(vectors: Array) -> Array:
    import numpy as np

    norms = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
    return np.divide(vectors, norms, out=np.zeros_like(vectors, dtype=np.float32), where=norms > 1e-9)


def pack(vectors: Array) -> tuple[Array, Array]:
    """Float vectors (N,K) as int8 and one scale a row."""
    import numpy as np

    scales = np.maximum(np.abs(vectors).max(axis=1, initial=0.0), 1e-12) / 127
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales.astype(np.float32)


def unpack(packed: Array, scales: Array) -> Array:
    """What :func:`pack` packed, as float32."""
    import numpy as np

    wide = packed.astype(np.float32)
    wide *= scales[:, None]
    return wide
