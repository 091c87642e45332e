"""What predictions are worth: classes, several labels, numbers, grades. With intervals over items, and calibration.

Every figure is a function of a table of items, so that its interval can be had by drawing items anew: percentiles of 2,000
draws (a BCa interval would need every figure once more for each item left out).
Two systems on the same items are compared by drawing the *same* items for both (:func:`paired_interval`).

classification: accuracy; macro F1 (mean over classes that occur in truth or prediction); Matthews' correlation, in Gorodkin's
form for any number of classes (doi 10.1016/j.compbiolchem.2004.09.006). Calibration: expected calibration error over 15 bins
of equal width (1706.04599, equation 3; it is biased upwards in small samples, and its interval with it), Brier score (sum over
classes), nats of the truth.
regression: Pearson, Spearman (ties share the mean rank), mean absolute and root mean square error.
ordinal: mean absolute error in grades, quadratic weighted kappa (doi 10.1037/h0026256), accuracy.
multi-label: micro and macro F1, share of rows with every label right.

N items, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orrery.core.errors import DataError
from orrery.core.seeds import numpy_generator
from orrery.evaluate.statistics import Interval

Array = NDArray[np.float64]
Figure = Callable[[Mapping[str, NDArray[np.generic]]], float]
BINS, DRAWS = 15, 2000


@dataclass(frozen=True)
class Measured:
    """A figure with its interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """As JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


def accuracy(items: Mapping[str, NDArray[np.generic]]) -> float:
    """Share of `predicted` (N,) that equals `true` (N,)."""
    return float(np.mean(items["true"] == items["predicted"]))


def confusion(items: Mapping[str, NDArray[np.generic]], classes: int | None = None) -> NDArray[np.int64]:
    """Counts (C,C): truth down, prediction across."""
    true, found = items["true"].astype(np.int64), items["predicted"].astype(np.int64)
    size = classes or int(max(true.max(), found.max())) + 1
    return np.bincount(true * size + found, minlength=size * size).reshape(size, size)


def macro_f1(items: Mapping[str, NDArray[np.generic]]) -> float:
    """Mean of the classes' F1, over classes that occur in truth or prediction."""
    counts = confusion(items)
    total = counts.sum(0) + counts.sum(1)
    return float(np.mean(2 * np.diag(counts)[total > 0] / total[total > 0]))


def matthews(items: Mapping[str, NDArray[np.generic]]) -> float:
    """Matthews' correlation; 0 where truth or prediction has one class only."""
    counts = confusion(items).astype(np.float64)
    n, right = counts.sum(), np.trace(counts)
    predicted, true = counts.sum(0), counts.sum(1)
    spread = np.sqrt((n * n - predicted @ predicted) * (n * n - true @ true))
    return float((right * n - predicted @ true) / spread) if spread > 0 else 0.0


def calibration_error(items: Mapping[str, NDArray[np.generic]], bins: int = BINS) -> float:
    """Expected calibration error of `confidence` (N,), the probability of what was predicted."""
    confidence, right = items["confidence"].astype(float), (items["true"] == items["predicted"]).astype(float)
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # bins are open on the left
    count = np.bincount(which, minlength=bins)
    gap = np.abs(np.bincount(which, right, bins) - np.bincount(which, confidence, bins))
    return float(gap.sum() / count.sum())


def reliability(confidence: Array, right: Array, bins: int = BINS) -> list[tuple[float, float, int]]:
    """The picture behind the calibration error: mean confidence, share right and number of items of each bin in use."""
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return [
        (float(confidence[which == b].mean()), float(right[which == b].mean()), int((which == b).sum()))
        for b in range(bins)
        if (which == b).any()
    ]


def brier(items: Mapping[str, NDArray[np.generic]]) -> float:
    """Mean squared distance of `probabilities` (N,C) from the truth's corner of the simplex."""
    p = items["probabilities"].astype(float)
    hot = np.eye(p.shape[1])[items["true"].astype(int)]
    return float(np.mean(((p - hot) ** 2).sum(1)))


def nats_of_truth(items: Mapping[str, NDArray[np.generic]]) -> float:
    """Mean of -log p(truth)."""
    p = items["probabilities"].astype(float)
    return float(np.mean(-np.log(np.maximum(p[np.arange(len(p)), items["true"].astype(int)], 1e-300))))


def pearson(items: Mapping[str, NDArray[np.generic]]) -> float:
    """Pearson's correlation of `true` and `predicted` (N,); 0 where one of them does not vary."""
    return _correlation(items["true"].astype(float), items["predicted"].astype(float))


def spearman(items: Mapping[str, NDArray[np.generic]]) -> float:
    """Pearson's correlation of the ranks."""
    return _correlation(_ranks(items["true"].astype(float)), _ranks(items["predicted"].astype(float)))


def absolute_error(items: Mapping[str, NDArray[np.generic]]) -> float:
    """Mean absolute error."""
    return float(np.mean(np.abs(items["true"].astype(float) - items["predicted"].astype(float))))


def root_mean_square(items: Mapping[str, NDArray[np.generic]]) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt(np.mean((items["true"].astype(float) - items["predicted"].astype(float)) ** 2)))


def weighted_kappa(items: Mapping[str, NDArray[np.generic]]) -> float:
    """Quadratic weighted kappa of grades; 0 where nothing could disagree."""
    counts = confusion(items).astype(float)
    grade = np.arange(len(counts))
    weight = (grade[:, None] - grade[None, :]) ** 2
    chance = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
    expected = (weight * chance).sum()
    return float(1 - (weight * counts).sum() / expected) if expected > 0 else 0.0


def micro_f1(items: Mapping[str, NDArray[np.generic]]) -> float:
    """F1 over all labels of all rows; `true` and `predicted` (N,C) of 0 and 1."""
    right, total = _label_counts(items)
    return float(2 * right.sum() / total.sum()) if total.sum() else 1.0


def label_macro_f1(items: Mapping[str, NDArray[np.generic]]) -> float:
    """Mean of the labels' F1, over labels that occur in truth or prediction."""
    right, total = _label_counts(items)
    return float(np.mean(2 * right[total > 0] / total[total > 0])) if total.any() else 1.0


def all_right(items: Mapping[str, NDArray[np.generic]]) -> float:
    """Share of rows with every label right."""
    return float(np.mean((items["true"].astype(bool) == items["predicted"].astype(bool)).all(1)))


FIGURES: dict[str, dict[str, Figure]] = {
    "classification": {"accuracy": accuracy, "macro_f1": macro_f1, "matthews": matthews},
    "calibration": {"calibration_error": calibration_error, "brier": brier, "nats": nats_of_truth},
    "regression": {
        "root_mean_square": root_mean_square,  # first: a correlation is blind to the scale of what is predicted
        "pearson": pearson,
        "spearman": spearman,
        "absolute_error": absolute_error,
    },
    "ordinal": {"absolute_error": absolute_error, "weighted_kappa": weighted_kappa, "accuracy": accuracy},
    "multi-label": {"micro_f1": micro_f1, "macro_f1": label_macro_f1, "all_right": all_right},
}
"""What is reported of each kind of prediction; the first is the one that choices are made by."""


def measure(
    figures: Mapping[str, Figure], items: Mapping[str, NDArray[np.generic]], draws: int = DRAWS, seed: int = 0
) -> dict[str, Measured]:
    """Figures with 95 % percentile intervals over items.

    Args:
        figures: by name, such as `FIGURES["classification"]`.
        items: arrays with N rows each.

    Raises:
        DataError: no item, or arrays of different lengths.
    """
    size = _size(items)
    held: dict[str, list[float]] = {name: [] for name in figures}
    rng = numpy_generator(seed, "items")
    for _ in range(draws if size > 1 else 0):
        index = rng.integers(0, size, size)
        drawn = {name: value[index] for name, value in items.items()}
        for name, figure in figures.items():
            held[name].append(figure(drawn))
    found = {}
    for name, figure in figures.items():
        low, high = np.quantile(held[name], (0.025, 0.975)) if held[name] else (-np.inf, np.inf)
        found[name] = Measured(figure(items), float(low), float(high))
    return found


def paired_interval(
    figure: Figure,
    first: Mapping[str, NDArray[np.generic]],
    second: Mapping[str, NDArray[np.generic]],
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """The difference figure(first) - figure(second) of two systems on the same items, with its 95 % interval; one item gives none."""
    size = _size(first)
    if _size(second) != size:
        raise DataError(f"{size} items of one system, {_size(second)} of the other; a paired comparison needs the same")
    if size < 2:
        return Interval(figure(first) - figure(second), -math.inf, math.inf, 0.95, "paired percentile bootstrap over items", size)
    rng = numpy_generator(seed, "items")
    deltas = []
    for _ in range(draws):
        index = rng.integers(0, size, size)
        one, other = ({name: value[index] for name, value in items.items()} for items in (first, second))
        deltas.append(figure(one) - figure(other))
    low, high = np.quantile(deltas, (0.025, 0.975))
    estimate = figure(first) - figure(second)
    return Interval(estimate, float(low), float(high), 0.95, "paired percentile bootstrap over items", size)


def _size(items: Mapping[str, NDArray[np.generic]]) -> int:
    sizes = {len(value) for value in items.values()}
    if len(sizes) != 1 or sizes == {0}:
        raise DataError("nothing to measure: no item" if sizes <= {0} else "columns of items have different lengths")
    return sizes.pop()


def _label_counts(items: Mapping[str, NDArray[np.generic]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    true, found = items["true"].astype(bool), items["predicted"].astype(bool)
    return (true & found).sum(0), true.sum(0) + found.sum(0)


def _correlation(x: Array, y: Array) -> float:
    x, y = x - x.mean(), y - y.mean()
    spread = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / spread) if spread > 0 else 0.0


def _ranks(values: Array) -> Array:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2.0)[which]
