"""One token of RWKV-4 (arXiv 2305.13048) between its linear maps, as compiled passes: decoding on a CPU, in float32.

    mix:     p_m = kept + mu_m (h - kept),  kept <- h
    average: y = sigmoid(r) wkv(k, v),  with the sums of :mod:`orrery.ops.wkv4`, moved on in place
    gate:    x += g z

In torch these are some thirty calls a layer, more than their arithmetic by far. No gradient.

B batch, D width, E width of the average, M mixtures.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from orrery.ops.compiled import compiled, exp, prepare_blocks, sigmoid
from orrery.ops.steps.row_linear import array


def mix_step(h: Tensor, kept: Tensor, ratios: Tensor, p: Tensor) -> Callable[[], None]:
    """A function that writes mixtures of h (B,D) and the token before, kept (B,D), into p (M,B,D); ratios (M,D)."""
    return prepare_blocks(_mix, len(h), 0, *(array(t, h) for t in (h, kept, ratios, p)))


def average_step(
    k: Tensor, v: Tensor, r: Tensor, w_log: Tensor, u: Tensor, state: tuple[Tensor, Tensor, Tensor], y: Tensor
) -> Callable[[], None]:
    """A function that writes the gated average of k, v, r (B,E) into y (B,E).

    Args:
        k, v, r: keys, values and raw gates.
        w_log: log of the decay (E,); u: bonus of the present token (E,).
        state: num, den, peak (B,E), overwritten.
        y: the result.
    """
    return prepare_blocks(_average, len(k), 0, *(array(t, k) for t in (k, v, r, w_log, u, *state, y)))


def gate_step(gate: Tensor, z: Tensor, x: Tensor) -> Callable[[], None]:
    """A function that adds gate * z to x, all (B,D)."""
    return prepare_blocks(_gate, len(x), 0, *(array(t, x) for t in (gate, z, x)))


@compiled
def _mix(first, last, h, kept, ratios, p):  # type: ignore[no-untyped-def]
    for b in range(first, last):
        now, before = h[b], kept[b]
        for m in range(len(ratios)):
            share, out = ratios[m], p[m, b]
            for i in range(len(now)):
                out[i] = before[i] + share[i] * (now[i] - before[i])
        before[:] = now


@compiled
def _average(first, last, k, v, r, w_log, u, num, den, peak, y):  # type: ignore[no-untyped-def]
    for b in range(first, last):
        for i in range(k.shape[1]):
            key, value, above = np.float64(k[b, i]), np.float64(v[b, i]), np.float64(peak[b, i])
            top = max(above, key + u[i])
            past, now = exp(above - top), exp(key + u[i] - top)
            y[b, i] = sigmoid(r[b, i]) * np.float32((past * num[b, i] + now * value) / (past * den[b, i] + now))
            top = max(above + w_log[i], key)
            past, now = exp(above + w_log[i] - top), exp(key - top)
            num[b, i] = np.float32(past * num[b, i] + now * value)
            den[b, i] = np.float32(past * den[b, i] + now)
            peak[b, i] = np.float32(top)


@compiled
def _gate(first, last, gate, z, x):  # type: ignore[no-untyped-def]
    for b in range(first, last):
        for i in range(x.shape[1]):
            x[b, i] += gate[b, i] * z[b, i]
