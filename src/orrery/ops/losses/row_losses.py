"""Losses of a token that are more than its cross-entropy, with their gradient in closed form, for the fused head.

Equations (one row, classes k, label t, ``p = softmax(z)``): cross-entropy ``c = -log p_t``; the earth mover's distance
between p and the label under the costs ``1 - s_k``, ``s_k = <e_t, e_k>`` with unit vectors e, is ``m = 1 - sum_k p_k s_k``
(2310.04691, the product coupling, which is exact when one side is a single point).
A loss here has the value ``v(c, m)`` and the gradient ``a dc/dz + b dm/dz`` with coefficients a, b that are held constant:
``dc/dz_k = p_k - [k = t]`` and ``dm/dz_k = p_k (sum_j p_j s_j - s_k)``.

Cost: without b, a chunk costs what cross-entropy does. With b, the cosines of the chunk's *distinct* labels with all
classes (one product, U x D x V) and two more readings of the chunk; no second product for the gradient.
On a CPU in float32 both readings are compiled loops.

Shapes: C rows, V classes, D width of the cost vectors. scores (C,V), labels (C,), costs (V,D) with rows of length 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.ops.compiled import compiled, dot, run_blocks
from orrery.ops.losses.cross_entropy_rows import LANES, can_score, exp_of_negative

Coefficients = tuple[Tensor, Tensor, Tensor | None]
"""(value, a, b) of every row, each (C,); b is None where the distance takes no part in the gradient."""


class Reweighted(NamedTuple):
    """A loss that is cross-entropy times a constant weight per token: `weigh` maps nats (C,) to weights (C,)."""

    weigh: Callable[[Tensor], Tensor]

    def value(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`orrery.ops.losses.cross_entropy.RowLoss`."""
        nats = torch.logsumexp(scores, -1) - scores.gather(1, labels[:, None])[:, 0]
        return nats, nats * self.weigh(nats)

    def gradient(self, scores: Tensor, labels: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`orrery.ops.losses.cross_entropy.RowLoss`."""
        nats, _ = _softmax(scores, labels, None, None)
        weight = self.weigh(nats)
        _differentiate(scores, labels, weight * factors[:, 0], None, None, None, None)
        return nats, nats * weight


class EarthMover(NamedTuple):
    """A loss of cross-entropy and earth mover's distance.

    combine: (nats, distances), both (C,), to :data:`Coefficients`.
    costs: (V,D), rows of length 1 (:func:`unit_rows`).
    own: whether the distance counts the label's own probability as moved (the adaptive form of 2310.04691, which leaves
        ``p_t`` out of the sum but not out of the gradient).
    """

    combine: Callable[[Tensor, Tensor], Coefficients]
    costs: Tensor
    own: bool = False

    def value(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`orrery.ops.losses.cross_entropy.RowLoss`."""
        nats, distance, *_ = self._measure(scores, labels)
        return nats, self.combine(nats, distance)[0]

    def gradient(self, scores: Tensor, labels: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`orrery.ops.losses.cross_entropy.RowLoss`."""
        nats, distance, mean, cosines, which = self._measure(scores, labels)
        value, a, b = self.combine(nats, distance)
        scale = factors[:, 0]
        _differentiate(scores, labels, a * scale, None if b is None else b * scale, mean, cosines, which)
        return nats, value

    def _measure(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        distinct, which = labels.unique(return_inverse=True)  # text repeats itself: a third of a chunk is distinct
        cosines = (self.costs[distinct] @ self.costs.t()).to(scores.dtype)
        nats, mean = _softmax(scores, labels, cosines, which)
        distance = 1 - mean
        return nats, distance + torch.exp(-nats) if self.own else distance, mean, cosines, which


def unit_rows(costs: Tensor) -> Tensor:
    """Rows scaled to length 1, in float32 at least; a row of zeros stays (it is at distance 1 from everything)."""
    exact = costs.detach().to(torch.promote_types(costs.dtype, torch.float32))
    length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
    return exact / torch.where(length > 0, length, 1.0)


def _softmax(scores: Tensor, labels: Tensor, cosines: Tensor | None, which: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores become probabilities; (nats, sum_k p_k s_k), each (C,), the latter empty without cosines."""
    if can_score(scores):
        nats = scores.new_empty(len(scores))
        mean = scores.new_empty(0 if cosines is None else len(scores))
        run_blocks(_soften, len(scores), 3 * scores.numel(), *_arrays(scores, labels, nats, mean, cosines, which))
        return nats, mean
    lse = torch.logsumexp(scores, -1)
    nats = lse - scores.gather(1, labels[:, None])[:, 0]
    scores.sub_(lse[:, None]).exp_()
    return nats, scores.new_empty(0) if cosines is None else (scores * cosines[which]).sum(-1)


def _differentiate(
    scores: Tensor,
    labels: Tensor,
    a: Tensor,
    b: Tensor | None,
    mean: Tensor | None,
    cosines: Tensor | None,
    which: Tensor | None,
) -> None:
    """Probabilities (C,V) become ``a (p - [label]) + b p (mean - cosine)``."""
    if b is None or mean is None or cosines is None:
        scores.mul_(a[:, None])
        scores.scatter_add_(1, labels[:, None], -a[:, None].to(scores.dtype))
    elif can_score(scores):
        run_blocks(_slope, len(scores), 2 * scores.numel(), *_arrays(scores, labels, a, b, mean, cosines, which))
    else:
        scores.mul_((a + b * mean)[:, None] - b[:, None] * cosines[which])
        scores.scatter_add_(1, labels[:, None], -a[:, None].to(scores.dtype))


def _arrays(*tensors: Tensor | None) -> tuple[np.ndarray, ...]:
    """What a kernel takes: every tensor as an array, None as an empty one of the kind that stands there."""
    kinds = (torch.float32,) * (len(tensors) - 1) + (torch.int64,)
    empty = {torch.float32: (0, 0), torch.int64: (0,)}
    return tuple(
        (torch.empty(empty[kind], dtype=kind) if t is None else t.detach().contiguous()).numpy()
        for t, kind in zip(tensors, kinds, strict=True)
    )


@compiled
def _soften(first, last, scores, labels, nats, mean, cosines, which):  # type: ignore[no-untyped-def]
    classes = scores.shape[1]
    even = classes - classes % LANES
    lanes = np.empty(LANES, np.float32)
    for n in range(first, last):
        row = scores[n]
        lanes[:] = -np.inf
        for begin in range(0, even, LANES):
            for j in range(LANES):
                x = row[begin + j]
                lanes[j] = x if x > lanes[j] else lanes[j]
        for k in range(even, classes):
            lanes[0] = row[k] if row[k] > lanes[0] else lanes[0]
        peak, wanted = lanes.max(), row[labels[n]]
        for k in range(classes):
            row[k] = exp_of_negative(row[k] - peak)
        lanes[:] = 0.0
        for begin in range(0, even, LANES):
            for j in range(LANES):
                lanes[j] += row[begin + j]
        for k in range(even, classes):
            lanes[0] += row[k]
        mass = np.float64(0.0)
        for j in range(LANES):
            mass += lanes[j]
        nats[n] = np.log(mass) + np.float64(peak) - np.float64(wanted)
        share = np.float32(1.0 / mass)
        for k in range(classes):
            row[k] *= share
        if len(mean):
            mean[n] = dot(row, cosines[which[n]])


@compiled
def _slope(first, last, scores, labels, a, b, mean, cosines, which):  # type: ignore[no-untyped-def]
    classes = scores.shape[1]
    for n in range(first, last):
        row, cosine = scores[n], cosines[which[n]]
        base, tilt = a[n] + b[n] * mean[n], b[n]
        for k in range(classes):
            row[k] *= base - tilt * cosine[k]
        row[labels[n]] -= a[n]
