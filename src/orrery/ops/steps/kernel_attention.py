"""One token of linear attention (arXiv 2006.16236) between its two projections, as one compiled loop.

    q, k turned by the token's position;  S = d S + phi(k) [v, 1]^T;  [n, m] = phi(q) S;  y = n / max(m, eps)

    elu      phi(x) = elu(x) + 1                                                              (2006.16236), d = 1
    cosine   phi(x) = [relu(x) cos a, relu(x) sin a],  a = pi/2 min(position, M) / M          (2202.08791), d = 1
    relu     phi(x) = relu(W x') + 1e-3,  x' = x / K^(1/4)                                    (2009.14794), d = 1
    softmax  phi(q) = e^(W q' - max),  phi(k) = e^(b - peak),  b = W k' - |k'|^2 / 2, the peak the greatest b so far,
             d = e^(the peak before - the peak)                                               (2009.14794)

Prepared once for a whole decoding (:mod:`orrery.nn.stepping`). Inference only; the mixers say the same in torch, for gradients,
other types and devices.

B batch, H heads, K head dimension, F features of a head, R rotated dimensions, M horizon.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.ops.compiled import compiled, dot, exp, prepare_blocks
from orrery.ops.steps.row_linear import array

KINDS = ("elu", "cosine", "relu", "softmax")
RELU_FLOOR = 1e-3  # of the generalised features of 2009.14794
_FLOOR, _ONE, _ZERO, _HALF = np.float32(RELU_FLOOR), np.float32(1.0), np.float32(0.0), np.float32(0.5)


class FeatureMap(NamedTuple):
    """phi: one of KINDS; directions: W (F,K) of relu and softmax; horizon: M of cosine."""

    kind: str
    directions: Tensor | None = None
    horizon: int = 1


def kernel_attention_step(
    p: Tensor, memory: Tensor, peak: Tensor, y: Tensor, features: FeatureMap, positions: Tensor, table: Tensor, eps: float
) -> Callable[[], None]:
    """A function that takes one token of every row further each time it is called.

    Args:
        p: (B,3HK), q, k, v as the projection leaves them. memory: (B,H,F,K+1), moved on in place. peak: (B,H), of softmax
            alone, moved on; else (B,0). y: (B,H*K), what comes out.
        features: phi.
        positions: (B,) int64, of the token, raised before each call.
        table: (P,R/2) complex, row p mod P the turns of position p; R may be 0.
        eps: least denominator.
    """
    arrays = [array(t, p) for t in (p, memory, peak, y, features.directions, positions, torch.view_as_real(table))]
    if features.directions is None:
        arrays[4] = np.empty((0, memory.shape[3] - 1), np.float32)
    blocks = memory.shape[0] * memory.shape[1]
    code, rate = KINDS.index(features.kind), math.pi / 2 / features.horizon
    return prepare_blocks(_step, blocks, 4 * memory.numel(), *arrays, code, features.horizon, rate, eps)


@compiled
def _step(first, last, p, memory, peak, out, directions, positions, table, code, horizon, rate, eps):  # type: ignore[no-untyped-def]
    heads, count, size = memory.shape[1], memory.shape[2], memory.shape[3] - 1
    half, root = table.shape[1], np.float32(np.float64(size) ** -0.25)
    turned, phi = np.empty((2, size), np.float32), np.empty((2, count), np.float32)
    given, total = np.ones(size + 1, np.float32), np.empty(size + 1, np.float32)
    for block in range(first, last):
        b, h = block // heads, block % heads
        at, decay = positions[b], _ONE
        turn = at % len(table)
        for i in range(size):
            given[i] = p[b, (2 * heads + h) * size + i]
        for n in range(2):  # q, then k
            x, f = turned[n], phi[n]
            x[:] = p[b, (n * heads + h) * size : (n * heads + h + 1) * size]
            for i in range(half):
                c, s, even, odd = table[turn, i, 0], table[turn, i, 1], x[2 * i], x[2 * i + 1]
                x[2 * i], x[2 * i + 1] = even * c - odd * s, even * s + odd * c
            if code == 0:
                for i in range(size):
                    f[i] = x[i] + _ONE if x[i] > _ZERO else np.float32(exp(np.float64(x[i])))
            elif code == 1:
                angle = rate * min(at, horizon)
                c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
                for i in range(size):
                    v = max(x[i], _ZERO)
                    f[i], f[size + i] = v * c, v * s
            else:
                for i in range(size):
                    x[i] *= root
                for j in range(count):
                    f[j] = dot(directions[j], x)
                if code == 2:
                    for j in range(count):
                        f[j] = max(f[j], _ZERO) + _FLOOR
                else:
                    square = _HALF * dot(x, x) if n == 1 else _ZERO
                    most = f[0] - square
                    for j in range(count):
                        f[j] -= square
                        most = max(most, f[j])
                    if n == 1:
                        most = max(most, peak[b, h])
                        decay = np.float32(exp(np.float64(peak[b, h]) - np.float64(most)))
                        peak[b, h] = most
                    for j in range(count):
                        f[j] = np.float32(exp(np.float64(f[j] - most)))
        total[:] = _ZERO
        for j in range(count):
            row, write, read = memory[b, h, j], phi[1, j], phi[0, j]
            for i in range(size + 1):
                held = decay * row[i] + write * given[i]
                row[i] = held
                total[i] += read * held
        inverse = _ONE / max(total[size], np.float32(eps))
        for i in range(size):
            out[b, h * size + i] = total[i] * inverse
