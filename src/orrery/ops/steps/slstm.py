"""One token of the sLSTM layer (arXiv 2405.04517) behind its norm and convolution, as one compiled pass: decoding on a CPU.

    [i, f] = c G_1 + h R, [z, o] = u G_2 + h R (with a bias);  the cell of :mod:`orrery.ops.slstm`;  x += layernorm_head(h) w

Prepared once for a whole decoding (:mod:`orrery.nn.stepping`); the mixer says the same in torch, for gradients, other types and
devices.

B rows, H heads, K width of a head, D = H K.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from orrery.ops.compiled import compiled, exp, prepare_blocks, sigmoid, tanh


class SLSTMWeights(NamedTuple):
    """gates (2,H,K,2K) of c and u, recurrent (H,K,4K), bias (H,4K), norm (D,), and its eps."""

    gates: Tensor
    recurrent: Tensor
    bias: Tensor
    norm: Tensor
    eps: float


def slstm_stepper(
    u: Tensor, smooth: Tensor, held: tuple[Tensor, Tensor, Tensor, Tensor], x: Tensor, weights: SLSTMWeights
) -> Callable[[], None]:
    """A function that reads u and its convolution c (B,D), moves h, c, n, m (B,H,K) on, and adds the layer's output to x (B,D)."""
    batch, heads, _ = held[0].shape
    arrays = [t.detach().numpy() for t in (u, smooth, *held, x, *weights[:4])]
    return prepare_blocks(_step, batch * heads, 2 * (weights.gates.numel() + weights.recurrent.numel()), *arrays, weights.eps)


@compiled
def _step(first, last, u, smooth, hidden, cell, normaliser, peak, x, gates, recurrent, bias, norm, eps):  # type: ignore[no-untyped-def]
    heads, size = hidden.shape[1:]
    raw = np.empty(4 * size, np.float32)
    for block in range(first, last):
        b, head = block // heads, block % heads
        low, high = head * size, (head + 1) * size
        given, direct, h = smooth[b, low:high], u[b, low:high], hidden[b, head]
        raw[:] = bias[head]
        early, late = raw[: 2 * size], raw[2 * size :]
        for i in range(size):
            for_early, for_late, for_all, value = gates[0, head, i], gates[1, head, i], recurrent[head, i], h[i]
            one, two = given[i], direct[i]
            for j in range(2 * size):
                early[j] += one * for_early[j]
                late[j] += two * for_late[j]
            for j in range(4 * size):
                raw[j] += value * for_all[j]
        mean = np.float64(0.0)
        for i in range(size):
            i_log, f = np.float64(raw[i]), np.float64(raw[size + i])
            passed = min(f, 0.0) - np.log1p(exp(-abs(f))) + peak[b, head, i]
            m = max(passed, i_log)
            keep, write = np.float32(exp(passed - m)), np.float32(exp(i_log - m))
            c = keep * cell[b, head, i] + write * tanh(raw[2 * size + i])
            n = keep * normaliser[b, head, i] + write
            cell[b, head, i], normaliser[b, head, i], peak[b, head, i] = c, n, np.float32(m)
            h[i] = sigmoid(raw[3 * size + i]) * c / n
            mean += h[i]
        mean /= size
        square = np.float64(0.0)
        for i in range(size):
            square += (h[i] - mean) * (h[i] - mean)
        factor, centre = np.float32(1.0 / np.sqrt(square / size + eps)), np.float32(mean)
        for i in range(size):
            x[b, low + i] += (h[i] - centre) * factor * norm[low + i]
