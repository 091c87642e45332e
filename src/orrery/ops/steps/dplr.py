"""One token of RWKV-7 and of Kimi Delta Attention between their projections, each in one compiled pass: decoding on a CPU.

The equations are those of :mod:`orrery.mixers.rwkv7` and :mod:`orrery.mixers.kda`, for T = 1; a head's state is read twice and
written once while it stays in the cache. Both are prepared once and then called for every token; states, windows and
results are overwritten in place. There is no gradient: what needs one takes the mixers' general path.

B batch, H heads, K head size, D = H K, C taps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from orrery.ops.compiled import compiled, dot, exp, prepare_blocks, sigmoid, softplus

_ONE, _ZERO = np.float32(1.0), np.float32(0.0)  # in a kernel, a Python 1 would turn float32 into float64
_RATE, _LEAST, _ROOT = np.float32(-math.exp(-0.5)), np.float32(1e-12), np.float32(1e-6)


class KDAWeights(NamedTuple):
    """taps (3 D,C), decay (D,K), decay_log (H,), decay_bias (D,), gate (D,K), norm (K,), its eps, the largest beta, and the bound of g
    from below, 0 for none. decay and gate (0,K): p holds what they would give."""

    taps: Tensor
    decay: Tensor
    decay_log: Tensor
    decay_bias: Tensor
    gate: Tensor
    norm: Tensor
    eps: float
    most: float
    bound: float = 0.0


def kda_stepper(p: Tensor, conv: Tensor, memory: Tensor, y: Tensor, weights: KDAWeights) -> Callable[[], None]:
    """A function that reads p (B,3D+2K+H), or (B,5D+H) without decay and gate, moves conv (B,C-1,3D) and memory (B,H,K,K) on, and writes y (B,D)."""
    *parameters, eps, most, bound = weights
    arrays = [t.detach().numpy() for t in (p, conv, memory, *parameters, y)]
    blocks = memory.shape[0] * memory.shape[1]
    return prepare_blocks(_kda, blocks, 4 * memory.numel(), *arrays, np.float32(eps), np.float32(most), np.float32(bound))


class RWKV7Weights(NamedTuple):
    """scale, alpha, bonus, weight and bias of the norm (D,), and its eps."""

    scale: Tensor
    alpha: Tensor
    bonus: Tensor
    weight: Tensor
    bias: Tensor
    eps: float


def rwkv7_stepper(
    parts: tuple[Tensor, ...], first: Tensor | None, memory: Tensor, y: Tensor, weights: RWKV7Weights
) -> Callable[[], None]:
    """A function that reads r, k, v, decay, rate, gate and, where `first` is given, the residual's share (B,D) each, moves
    memory (B,H,K,K) on, and writes y (B,D).

    Args:
        parts: these tensors; decay and rate before their sigmoid, share after it.
        first: the values of the model's first layer (B,D), which v is mixed with; None in that layer.
        memory, y, weights: see above.
    """
    nothing = y.new_empty(0, y.shape[1])
    tensors = (*parts, *(() if first is not None else (nothing,)), nothing if first is None else first, memory, *weights[:-1], y)
    blocks = memory.shape[0] * memory.shape[1]
    return prepare_blocks(_rwkv7, blocks, 4 * memory.numel(), *(t.detach().numpy() for t in tensors), np.float32(weights.eps))


@compiled
def _kda(  # type: ignore[no-untyped-def]
    first, last, p, conv, memory, taps, decay, decay_log, decay_bias, gate, norm, y, eps, most, bound
):  # fmt: skip
    heads, count = memory.shape[1], memory.shape[2]
    inner, kept, full = heads * count, conv.shape[1], len(decay) == 0
    between = inner if full else count
    mixed, u, fade = np.empty(3 * count, np.float32), np.empty(count, np.float32), np.empty(count, np.float32)
    for block in range(first, last):
        row, h = block // heads, block % heads
        token, out = p[row], y[row, h * count : (h + 1) * count]
        for part in range(3):  # the convolution of this head's q, k and v
            for i in range(count):
                c = part * inner + h * count + i
                total = taps[c, kept] * token[c]
                for j in range(kept):
                    total += taps[c, j] * conv[row, j, c]
                mixed[part * count + i] = total * sigmoid(total)
                for j in range(kept - 1):
                    conv[row, j, c] = conv[row, j + 1, c]
                if kept > 0:
                    conv[row, kept - 1, c] = token[c]
        q, k, v = mixed[:count], mixed[count : 2 * count], mixed[2 * count :]
        q_scale, k_scale = _ONE / np.sqrt((dot(q, q) + _ROOT) * np.float32(count)), _ONE / np.sqrt(dot(k, k) + _ROOT)
        low, high = token[3 * inner : 3 * inner + between], token[3 * inner + between : 3 * inner + 2 * between]
        beta, rate = most * sigmoid(token[3 * inner + 2 * between + h]), exp(np.float64(decay_log[h]))
        state = memory[row, h]
        for j in range(count):
            u[j] = v[j]
        for i in range(count):
            c = h * count + i
            raw = (low[c] if full else dot(decay[c], low)) + decay_bias[c]
            if bound == _ZERO:
                fade[i] = np.float32(exp(-rate * np.float64(softplus(raw))))
            else:
                fade[i] = np.float32(exp(np.float64(bound * sigmoid(np.float32(rate) * raw))))
            asked, line = k[i] * k_scale * fade[i], state[i]
            for j in range(count):
                u[j] -= asked * line[j]
        for j in range(count):
            out[j] = _ZERO
        for i in range(count):
            kept_share, written, read, line = fade[i], k[i] * k_scale * beta, q[i] * q_scale, state[i]
            for j in range(count):
                s = kept_share * line[j] + written * u[j]
                line[j] = s
                out[j] += read * s
        scale = _ONE / np.sqrt(dot(out, out) / np.float32(count) + eps)
        for j in range(count):
            c = h * count + j
            out[j] = out[j] * scale * norm[j] * sigmoid(high[c] if full else dot(gate[c], high))


@compiled
def _rwkv7(  # type: ignore[no-untyped-def]
    first, last, r, k, v, decay, rate, gate, share, values, memory, scale, alpha, bonus, weight, bias, y, eps
):  # fmt: skip
    heads, count = memory.shape[1], memory.shape[2]
    away, value, key = np.empty(count, np.float32), np.empty(count, np.float32), np.empty(count, np.float32)
    u = np.empty(count, np.float32)
    for block in range(first, last):
        row, h = block // heads, block % heads
        low, high = h * count, (h + 1) * count
        out, read, extra = y[row, low:high], r[row, low:high], bonus[low:high]
        size = np.float32(0.0)
        own = np.float32(0.0)
        for i in range(count):
            c = low + i
            away[i] = k[row, c] * scale[c]
            size += away[i] * away[i]
            key[i] = k[row, c] * (_ONE + (sigmoid(rate[row, c]) - _ONE) * alpha[c])
            own += read[i] * key[i] * extra[i]
            value[i] = v[row, c]
            if len(values) > 0:
                value[i] += (values[row, c] - value[i]) * share[row, c]
            u[i] = _ZERO
            out[i] = _ZERO
        size = np.sqrt(size)
        size = _ONE / (size if size > _LEAST else _LEAST)
        state = memory[row, h]
        for i in range(count):
            away[i] *= size
            asked, line = away[i], state[i]
            for j in range(count):
                u[j] -= asked * line[j]
        for i in range(count):
            c = low + i
            fade = np.float32(exp(np.float64(_RATE * sigmoid(decay[row, c]))))
            moved, written, asked, line = away[i] * sigmoid(rate[row, c]), key[i], read[i], state[i]
            for j in range(count):
                s = fade * line[j] + (moved * u[j] + written * value[j])
                line[j] = s
                out[j] += asked * s
        mean = np.float32(0.0)
        for j in range(count):
            mean += out[j]
        mean /= np.float32(count)
        for j in range(count):
            out[j] -= mean
        inverse = _ONE / np.sqrt(dot(out, out) / np.float32(count) + eps)
        for j in range(count):
            c = low + j
            out[j] = gate[row, c] * (out[j] * inverse * weight[c] + bias[c] + own * value[j])
