"""One token of the xLSTM's mLSTM block (arXiv 2405.04517) between its two projections, as compiled loops.

    c = silu(conv(u));  q, k = B_q c, B_k c;  v = B_v u, all block-diagonal;  i, f = W [q, k, v] + b
    the mLSTM of :mod:`orrery.ops.mlstm`;  y = (layernorm_head(h) w + s c) silu(z)

The convolution is :func:`orrery.ops.steps.diagonal.conv_step`. Prepared once for a whole decoding
(:mod:`orrery.nn.stepping`); the mixer says the same in torch, for gradients, other types and devices.

B batch, E inner size, H heads, K = E / H, P size of a block, G = E / P blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from orrery.ops.compiled import compiled, dot, exp, prepare_blocks, sigmoid
from orrery.ops.mlstm import LOWEST
from orrery.ops.program import Steps


class BlockWeights(NamedTuple):
    """blocks (3,G,P,P) of q, k, v; gates (2H,3E) and their bias (2H,); norm w and skip s (E,); eps of denominator and norm."""

    blocks: Tensor
    gates: Tensor
    bias: Tensor
    norm: Tensor
    skip: Tensor
    eps: float
    norm_eps: float


def mlstm_block_step(
    p: Tensor, c: Tensor, memory: Tensor, peak: Tensor, y: Tensor, weights: BlockWeights
) -> Callable[[], None]:
    """A function that reads p (B,2E), u and z, and c (B,E), moves memory (B,H,K,K+1) and peak (B,H) on, and writes y (B,E)."""
    batch, heads = peak.shape
    blocks, gates, bias, norm, skip = (t.detach().contiguous().numpy() for t in weights[:5])
    parts, raw = p.new_empty(batch, 3, c.shape[1]).numpy(), p.new_empty(batch, 2 * heads).numpy()
    u, smooth = p.numpy(), c.numpy()
    mix = prepare_blocks(_mix, batch, 0, u, smooth, blocks, gates, bias, parts, raw)
    held = memory.numpy(), peak.numpy(), y.numpy()
    cell = prepare_blocks(
        _cell, batch * heads, 4 * memory.numel(), u, smooth, parts, raw, norm, skip, *held, weights.eps, weights.norm_eps
    )
    return Steps((mix, cell))


@compiled
def _mix(first, last, p, c, blocks, gates, bias, parts, raw):  # type: ignore[no-untyped-def]
    count, size = blocks.shape[1:3]
    for b in range(first, last):
        for part in range(3):
            given, out = p[b] if part == 2 else c[b], parts[b, part]
            out[:] = np.float32(0.0)
            for g in range(count):
                low = g * size
                for i in range(size):
                    for j in range(size):
                        out[low + j] += given[low + i] * blocks[part, g, i, j]
        for n in range(len(bias)):
            raw[b, n] = bias[n] + dot(gates[n], parts[b].reshape(-1))


@compiled
def _cell(first, last, p, c, parts, raw, norm, skip, memory, peak, y, eps, norm_eps):  # type: ignore[no-untyped-def]
    heads, size = memory.shape[1:3]
    inner, read = heads * size, np.empty(size + 1, np.float32)
    value = np.ones(size + 1, np.float32)
    scale = np.float32(1.0 / np.sqrt(np.float64(size)))
    for block in range(first, last):
        b, h = block // heads, block % heads
        low, high = h * size, (h + 1) * size
        i_log, f = np.float64(raw[b, h]), np.float64(raw[b, heads + h])
        passed = min(f, 0.0) - np.log1p(exp(-abs(f))) + peak[b, h]
        m = np.float32(max(passed, i_log, LOWEST))
        peak[b, h] = m
        keep, write = np.float32(exp(passed - m)), np.float32(exp(i_log - m))
        value[:size] = parts[b, 2, low:high]
        read[:] = np.float32(0.0)
        for i in range(size):
            query, key, row = scale * parts[b, 0, low + i], write * parts[b, 1, low + i], memory[b, h, i]
            for j in range(size + 1):
                s = keep * row[j] + key * value[j]
                row[j] = s
                read[j] += query * s
        under = max(abs(np.float64(read[size])), exp(min(-np.float64(m), 87.0))) + eps
        mean, square = np.float64(0.0), np.float64(0.0)
        for j in range(size):
            mean += read[j]
        mean /= size
        for j in range(size):
            square += (read[j] - mean) * (read[j] - mean)
        factor, centre = np.float32(1.0 / np.sqrt(square / size + norm_eps * under * under)), np.float32(mean)
        for j in range(size):
            e = low + j
            z = p[b, inner + e]
            y[b, e] = ((read[j] - centre) * factor * norm[e] + c[b, e] * skip[e]) * z * sigmoid(z)
