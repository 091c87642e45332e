"""One token of lightning attention (arXiv 2307.14995, 2501.08313) between its two projections, as one compiled loop.

    q, k (and v) = silu(.);  with LRPE-d q -> [q cos(theta t), q sin(theta t)], k likewise;  S = e^{-s} S + k v^T;  y = q S
    out = rmsnorm(y) w u,  or with sigmoid(u)

Prepared once for a whole decoding (:mod:`orrery.nn.stepping`). Inference only; the mixer says the same in torch, for
gradients, other types and devices.

B batch, H heads, K head dimension, J = K or 2 K numbers of a key, E = H K.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from orrery.ops.compiled import compiled, prepare_blocks, sigmoid
from orrery.ops.steps.row_linear import array


def lightning_stepper(
    p: Tensor,
    memory: Tensor,
    out: Tensor,
    decays: list[float],
    positions: Tensor,
    theta_log: Tensor | None,
    gain: Tensor | None,
    eps: float,
    activate_values: bool,
    gate: bool,
) -> Callable[[], None]:
    """A function that reads p, moves memory on in place and writes out, each time it is called.

    Args:
        p: (B,4E), q, k, v, u as the projection leaves them. memory: (B,H,J,K). out: (B,E).
        decays: -s of every head. positions: (B,) int64, the token's. theta_log: (H,K) of LRPE-d, or None.
        gain: (E,), weight of the norm, or None. eps: of the norm.
        activate_values: v = silu(v). gate: sigmoid(u).
    """
    heads, keys = memory.shape[1], memory.shape[3]
    rates = torch.zeros(0, dtype=torch.float64)
    if theta_log is not None:
        exponents = -2 * torch.arange(heads * keys, dtype=torch.float64) / (heads * keys)
        rates = 10000.0**exponents * theta_log.detach().double().flatten().exp()
    keep = np.exp(np.array(decays)).astype(np.float32)
    arrays = (p.numpy(), memory.numpy(), out.numpy(), keep, positions.numpy(), rates.numpy(), array(gain, p))
    return prepare_blocks(_step, len(p), 4 * memory.numel(), *arrays, eps, activate_values, gate)


@compiled
def _step(first, last, p, memory, out, keep, positions, rates, gain, eps, activate_values, gate):  # type: ignore[no-untyped-def]
    heads, size, width = memory.shape[1:]
    inner = heads * width
    turns = np.empty((2, width), np.float32)
    for b in range(first, last):
        qk, value, y = p[b, : 2 * inner], p[b, 2 * inner : 3 * inner], out[b]
        for i in range(2 * inner):
            qk[i] = qk[i] * sigmoid(qk[i])
        if activate_values:
            for i in range(inner):
                value[i] = value[i] * sigmoid(value[i])
        y[:] = np.float32(0.0)
        for h in range(heads):
            low = h * width
            decay, given, read = keep[h], value[low : low + width], y[low : low + width]
            if len(rates) > 0:
                for i in range(width):
                    angle = rates[low + i] * positions[b]
                    turns[0, i], turns[1, i] = np.cos(angle), np.sin(angle)
            for i in range(size):
                query, key = qk[low + i % width], qk[inner + low + i % width]
                if len(rates) > 0:
                    turn = turns[i // width, i % width]
                    query *= turn
                    key *= turn
                row = memory[b, h, i]
                for j in range(width):
                    s = decay * row[j] + key * given[j]
                    row[j] = s
                    read[j] += query * s
        square = np.float64(0.0)
        for i in range(inner):
            square += np.float64(y[i]) * y[i]
        scale = np.float32(1.0 / np.sqrt(square / inner + eps))
        u = p[b, 3 * inner :]
        for i in range(inner):
            y[i] *= scale * (sigmoid(u[i]) if gate else u[i])
        if len(gain) > 0:
            for i in range(inner):
                y[i] *= gain[i]
