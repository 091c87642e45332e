"""One token of retention (arXiv 2307.08621) between its two projections, as one compiled loop.

    q, k turned by the token's position;  S = gamma S + k v^T;  y = q S / sqrt(K);  out = w rmsnorm_head(y) silu(z)

Prepared once for a whole decoding (:mod:`orrery.nn.stepping`). Inference only; the mixer says the same in torch, for
gradients, other types and devices.

B batch, H heads, K key dimension, V value dimension.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from orrery.ops.compiled import compiled, prepare_blocks, sigmoid


def retnet_stepper(
    p: Tensor, memory: Tensor, out: Tensor, decays: list[float], positions: Tensor, theta: float, norm: Tensor, eps: float
) -> Callable[[], None]:
    """A function that reads p, moves memory on in place and writes out, each time it is called.

    Args:
        p: (B,2HK+2HV), q, k, v, z as the projection leaves them. memory: (B,H,K,V). out: (B,H*V).
        decays: log gamma of every head. positions: (B,) int64, the token's. theta: of the rotation.
        norm: (V,), weight of the norm. eps: of the norm.
    """
    keys = memory.shape[2]
    rates = theta ** (-torch.arange(0, keys, 2, dtype=torch.float64) / keys)
    keep = np.exp(np.array(decays)).astype(np.float32)
    arrays = (p.numpy(), memory.numpy(), out.numpy(), keep, positions.numpy(), rates.numpy(), norm.detach().numpy())
    return prepare_blocks(_step, len(p), 4 * memory.numel(), *arrays, eps)


@compiled
def _step(first, last, p, memory, out, keep, positions, rates, norm, eps):  # type: ignore[no-untyped-def]
    heads, keys, values = memory.shape[1:]
    q, k = np.empty(keys, np.float32), np.empty(keys, np.float32)
    turn = np.empty((2, len(rates)))
    at_v, scale = 2 * heads * keys, np.float32(1.0 / np.sqrt(np.float64(keys)))
    at_z = at_v + heads * values
    for b in range(first, last):
        for i in range(len(rates)):
            angle = rates[i] * positions[b]
            turn[0, i], turn[1, i] = np.cos(angle), np.sin(angle)
        for h in range(heads):
            for i in range(len(rates)):
                c, s = turn[0, i], turn[1, i]
                at = h * keys + 2 * i
                q[2 * i], q[2 * i + 1] = p[b, at] * c - p[b, at + 1] * s, p[b, at] * s + p[b, at + 1] * c
                at += heads * keys
                k[2 * i], k[2 * i + 1] = p[b, at] * c - p[b, at + 1] * s, p[b, at] * s + p[b, at + 1] * c
            given, z = p[b, at_v + h * values : at_v + (h + 1) * values], p[b, at_z + h * values : at_z + (h + 1) * values]
            y, decay = out[b, h * values : (h + 1) * values], keep[h]
            y[:] = np.float32(0.0)
            for i in range(keys):
                query, key, row = scale * q[i], k[i], memory[b, h, i]
                for j in range(values):
                    held = decay * row[j] + key * given[j]
                    row[j] = held
                    y[j] += query * held
            square = np.float64(0.0)
            for j in range(values):
                square += np.float64(y[j]) * y[j]
            factor = np.float32(1.0 / np.sqrt(square / values + eps))
            for j in range(values):
                y[j] = y[j] * factor * norm[j] * z[j] * sigmoid(z[j])
