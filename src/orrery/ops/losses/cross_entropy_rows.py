"""The softmax, soft-cap and gradient of cross-entropy (:mod:`orrery.ops.losses.cross_entropy`) as a compiled loop over rows.

In torch a chunk of logits is read and written about ten times, and seven times more with a soft-cap; here a row of a few
thousand logits stays in the nearest cache from its logits to its gradient. CPU and float32 only.

N rows, V classes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, inlined, run_blocks, tanh

LANES = 64  # partial sums side by side: a single running sum cannot be vectorised without reordering it
_F = np.float32
_ZERO, _ONE, _HALF, _LOWEST, _INVERSE = _F(0.0), _F(1.0), _F(0.5), _F(-87.0), _F(1.0 / math.log(2.0))
_HIGH, _LOW = _F(0.693359375), _F(math.log(2.0) - 0.693359375)
_C2, _C3, _C4, _C5, _C6, _C7 = (_F(1.0 / math.factorial(n)) for n in range(2, 8))


def can_score(scores: Tensor) -> bool:
    """Whether the compiled loop may run on these logits."""
    plain = scores.dtype == torch.float32 and scores.is_contiguous() and scores.numel() >= 1 << 14
    return choose(None, scores, op="cross_entropy", offered=("numba", "torch") if plain else ("torch",)) == "numba"


def score_rows(
    scores: Tensor, labels: Tensor, factors: Tensor | None, z_loss: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Score logits (N,V) against labels (N,); with factors (N,) they become their own gradient, else they are spent.

    Returns:
        nats and lse of every row, each (N,).
    """
    nats, lse = scores.new_empty(2, len(scores))
    weight = scores.new_empty(0) if factors is None else factors.contiguous()
    arrays = (scores, labels.contiguous(), weight, nats, lse)
    run_blocks(_rows, len(scores), 2 * scores.numel(), *(t.detach().numpy() for t in arrays), z_loss, softcap or 0.0)
    return nats, lse


@inlined
def exp_of_negative(x):  # type: ignore[no-untyped-def]
    """e^x in float32 for x <= 0, without a branch or a call; 0 below -87."""
    y = _LOWEST if x < _LOWEST else x
    n = np.floor(y * _INVERSE + _HALF)
    r = (y - n * _HIGH) - n * _LOW
    p = ((((_C7 * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2
    e = (p * r * r + r + _ONE) * np.int32((np.int32(n) + 127) << 23).view(np.float32)
    return _ZERO if x < _LOWEST else e


@compiled
def _rows(first, last, scores, labels, factors, nats, lse, z_loss, softcap):  # type: ignore[no-untyped-def]
    classes = scores.shape[1]
    even = classes - classes % LANES
    lanes, e = np.empty(LANES, np.float32), np.empty(classes, np.float32)
    cap, shrink = np.float32(softcap), np.float32(1.0 / softcap if softcap > 0 else 0.0)
    for n in range(first, last):
        row = scores[n]
        if softcap > 0:
            for j in range(classes):
                row[j] = cap * tanh(row[j] * shrink)
        lanes[:] = -np.inf
        for begin in range(0, even, LANES):
            for j in range(LANES):
                x = row[begin + j]
                lanes[j] = x if x > lanes[j] else lanes[j]
        for i in range(even, classes):
            lanes[0] = row[i] if row[i] > lanes[0] else lanes[0]
        peak = lanes.max()
        for j in range(classes):
            e[j] = exp_of_negative(row[j] - peak)
        lanes[:] = 0.0
        for begin in range(0, even, LANES):
            for j in range(LANES):
                lanes[j] += e[begin + j]
        for i in range(even, classes):
            lanes[0] += e[i]
        mass = np.float64(0.0)
        for j in range(LANES):
            mass += lanes[j]
        total, label = np.float64(peak) + np.log(mass), labels[n]
        wanted = row[label]
        nats[n], lse[n] = total - wanted, total
        if len(factors):
            factor = np.float64(factors[n])
            share = np.float32(factor * (1.0 + 2.0 * z_loss * total) / mass)
            own = e[label] * share - np.float32(factor)
            if softcap > 0:
                for j in range(classes):
                    t = row[j] * shrink
                    row[j] = e[j] * share * (_ONE - t * t)
                t = wanted * shrink
                row[label] = own * (_ONE - t * t)
            else:
                for j in range(classes):
                    row[j] = e[j] * share
                row[label] = own
