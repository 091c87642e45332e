"""One token of Gated DeltaNet between its two projections, in one compiled pass: decoding on a CPU, in float32.

Equation (2412.06464; :mod:`orrery.mixers.gated_deltanet` and :mod:`orrery.ops.delta_rule` have it for whole sequences), with
the projected token p = [q, k, v | z | b | a] and a window of the last inputs of the convolution:

    q, k, v = silu(conv);  q, k divided by their norms;  S' = exp(-exp(A_log) softplus(a + dt_bias)) S
    u = sigmoid(b) (v - S'^T k);  S = S' + k u^T;  o = S^T q / sqrt(K);  y = RMSNorm(o) * silu(z)

In torch this is some 35 calls of a few microseconds each, more than the arithmetic. Here a head's state is read twice and
written twice while it stays in the cache. There is no gradient: what needs one takes the mixer's general path.

B batch, H heads, G of them for q and k, K key dimension, V value dimension, C taps, E = 2 G K + H V convolved channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, exp, prepare_blocks, sigmoid

_ONE = np.float32(1.0)  # in a kernel, a Python 1 would turn float32 into float64


class StepWeights(NamedTuple):
    """What the token meets: taps (E,C), decay_log and decay_bias (H,) or None, norm (V,), eps of the norm and of q and k,
    whether there is a gate z, and the largest beta."""

    taps: Tensor
    decay_log: Tensor | None
    decay_bias: Tensor | None
    norm: Tensor
    norm_eps: float
    l2_eps: float
    gate: bool
    most: float


def can_step(p: Tensor, conv: Tensor, memory: Tensor, backend: str | None = None) -> bool:
    """Whether :func:`gated_delta_step` may run: no gradient asked for, all in float32, and numba is the backend."""
    kinds = p.dtype == conv.dtype == memory.dtype == torch.float32
    offered = ("numba", "torch") if kinds and not torch.is_grad_enabled() else ("torch",)
    return choose(backend, p, op="gated_delta_step", offered=offered) == "numba"


def gated_delta_step(
    p: Tensor, conv: Tensor, memory: Tensor, weights: StepWeights, donate: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """From the projected token to what the way out takes.

    Args:
        p: (B, E + H V (with a gate) + H + H (with decay)), laid out as the mixer lays it out.
        conv: the last inputs of the convolution (B,C-1,E).
        memory: S (B,H,K,V).
        weights: see there.
        donate: overwrite `conv` and `memory` instead of making new ones.

    Returns:
        y (B,H*V), and the new inputs and memory.
    """
    p, conv, memory = p.contiguous(), conv.detach().contiguous(), memory.detach().contiguous()
    y = p.new_empty(len(p), memory.shape[1] * memory.shape[3])
    window, after = (conv, memory) if donate else (torch.empty_like(conv), torch.empty_like(memory))
    _prepared(p, conv, memory, weights, window, after, y)()
    return y, window, after


def gated_delta_stepper(p: Tensor, conv: Tensor, memory: Tensor, y: Tensor, weights: StepWeights) -> Callable[[], None]:
    """:func:`gated_delta_step` prepared once: every call reads p, moves conv and memory on in place, and writes y (B,H*V)."""
    return _prepared(p, conv, memory, weights, conv, memory, y)


def _prepared(
    p: Tensor, conv: Tensor, memory: Tensor, weights: StepWeights, window: Tensor, after: Tensor, y: Tensor
) -> Callable[[], None]:
    batch, heads, key, value = memory.shape
    none = p.new_empty(0)
    decay = [none if w is None else w for w in (weights.decay_log, weights.decay_bias)]
    fixed = [w.detach() for w in (weights.taps, *decay, weights.norm)]
    arrays = [t.numpy() for t in (p, conv, memory, *fixed, window, after, y)]
    numbers = np.float32(weights.l2_eps), np.float32(weights.norm_eps), weights.gate, np.float32(weights.most)
    groups = (len(weights.taps) - heads * value) // (2 * key)
    return prepare_blocks(_step, batch * groups, 2 * memory.numel(), *arrays, *numbers, groups)


@compiled
def _step(  # type: ignore[no-untyped-def]
    first, last, p, conv, memory, taps, decay_log, decay_bias, norm, window, after, y, l2_eps, norm_eps, gate, most, groups
):  # fmt: skip
    heads, key, value = memory.shape[1:]
    kept, inner, each = conv.shape[1], heads * value, heads // groups
    convolved = 2 * groups * key + inner
    strengths = convolved + (inner if gate else 0)
    mixed, u = np.empty(2 * key + each * value, np.float32), np.empty(value, np.float32)
    for block in range(first, last):
        b, group = block // groups, block % groups
        token = p[b]
        for part in range(3):  # the convolution of this head's q and k, and of the v that they serve
            size = each * value if part == 2 else key
            source = part * groups * key + group * size
            for i in range(size):
                c = source + i
                total = taps[c, kept] * token[c]
                for j in range(kept):
                    total += taps[c, j] * conv[b, j, c]
                mixed[part * key + i] = total * sigmoid(total)
                for j in range(kept - 1):
                    window[b, j, c] = conv[b, j + 1, c]
                if kept > 0:
                    window[b, kept - 1, c] = token[c]
        q, k = mixed[:key], mixed[key : 2 * key]
        q_size = k_size = l2_eps
        for i in range(key):
            q_size += q[i] * q[i]
            k_size += k[i] * k[i]
        q_scale, k_scale = _ONE / np.sqrt(q_size * np.float32(key)), _ONE / np.sqrt(k_size)
        low = group * each
        for h in range(low, low + each):
            beta, fade = most * sigmoid(token[strengths + h]), _ONE
            if len(decay_log) > 0:
                step = np.float64(token[strengths + heads + h] + decay_bias[h])
                soft = step if step > 30.0 else math.log1p(exp(step))
                fade = np.float32(exp(-exp(np.float64(decay_log[h])) * soft))
            old, new = memory[b, h], after[b, h]
            v, out = mixed[2 * key + (h - low) * value : 2 * key + (h - low + 1) * value], y[b, h * value : (h + 1) * value]
            u[:] = v
            for i in range(key):
                row, k_i = old[i], k[i] * k_scale * fade
                for j in range(value):
                    u[j] -= k_i * row[j]
            out[:] = 0.0
            for i in range(key):
                row, target, k_i, q_i = old[i], new[i], k[i] * k_scale * beta, q[i] * q_scale
                for j in range(value):
                    s = fade * row[j] + k_i * u[j]
                    target[j] = s
                    out[j] += q_i * s
            squares = np.float32(0.0)
            for j in range(value):
                squares += out[j] * out[j]
            scale = _ONE / np.sqrt(squares / np.float32(value) + norm_eps)
            for j in range(value):
                out[j] = out[j] * scale * norm[j]
            if gate:
                z = token[convolved + h * value : convolved + (h + 1) * value]
                for j in range(value):
                    out[j] = out[j] * z[j] * sigmoid(z[j])
