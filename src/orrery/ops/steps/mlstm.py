"""One token of xLSTM-7B's layer (arXiv 2503.13427) between its two projections, as one compiled loop.

    i, f = c tanh(([i, f] + b) / c);  m' = max(log sigmoid(f) + m, i);  the mLSTM of :mod:`orrery.ops.mlstm`
    out = sigmoid(o) w layernorm_head(h)

Decoding one row is some thirty small torch calls otherwise, which take several times as long as their arithmetic.
Inference only; the mixer says the same in torch, for gradients, other types and devices.

B batch, H heads, K key dimension, V value dimension.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, exp, prepare_blocks, run_blocks, sigmoid, tanh
from orrery.ops.mlstm import LOWEST


def can_step(p: Tensor, memory: Tensor, peak: Tensor) -> bool:
    """Whether the compiled loop may run: nothing to differentiate, float32, and the rule for backends says so."""
    differentiated = torch.is_grad_enabled() and (p.requires_grad or memory.requires_grad or peak.requires_grad)
    plain = not differentiated and p.dtype == memory.dtype == peak.dtype == torch.float32
    return choose(None, p, op="mlstm_step", offered=("numba", "torch") if plain else ("torch",)) == "numba"


def large_step(
    p: Tensor,
    memory: Tensor,
    peak: Tensor,
    gate_bias: Tensor,
    norm: Tensor,
    keys: int,
    cap: float,
    eps: float,
    norm_eps: float,
    donate: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one token of every row.

    Args:
        p: (B,2HK+2HV+2H), q, k, v, o, i, f as the projection leaves them.
        memory: (B,H,K,V+1), overwritten in place when donated. peak: (B,H).
        gate_bias: (2H,). norm: (H*V,), weight of the norm.
        keys: K. cap: of the gates. eps: of the denominator. norm_eps: of the norm.
        donate: the caller gives `memory` away.

    Returns:
        out (B,H*V), the next memory and peak.
    """
    p, memory = p.contiguous(), memory.contiguous()
    after = memory if donate else torch.empty_like(memory)
    out, peak_after = p.new_empty(len(p), len(norm)), torch.empty_like(peak)
    tensors = (p, memory, peak.contiguous(), gate_bias, norm, after, peak_after, out)
    run_blocks(_step, len(p), 4 * memory.numel(), *(t.detach().numpy() for t in tensors), keys, cap, eps, norm_eps)
    return out, after, peak_after


def large_stepper(
    p: Tensor, memory: Tensor, peak: Tensor, out: Tensor, gate_bias: Tensor, norm: Tensor, keys: int, cap: float, eps: float,
    norm_eps: float,
) -> Callable[[], None]:  # fmt: skip
    """:func:`large_step` prepared once: every call reads p, moves memory and peak on in place, and writes out (B,H*V)."""
    tensors = (p, memory, peak, gate_bias, norm, memory, peak, out)
    return prepare_blocks(_step, len(p), 4 * memory.numel(), *(t.detach().numpy() for t in tensors), keys, cap, eps, norm_eps)


@compiled
def _step(  # type: ignore[no-untyped-def]
    first, last, p, memory, peak, gate_bias, norm, after, peak_after, out, keys, cap, eps, norm_eps
):
    heads, values = memory.shape[1], memory.shape[3] - 1
    read = np.empty(values + 1, np.float32)
    value = np.empty(values + 1, np.float32)
    scale = 1.0 / np.sqrt(np.float64(keys))
    for b in range(first, last):
        at_v, at_o = 2 * heads * keys, 2 * heads * keys + heads * values
        at_gates = at_o + heads * values
        for h in range(heads):
            i_log = cap * tanh((np.float64(p[b, at_gates + h]) + gate_bias[h]) / cap)
            f = cap * tanh((np.float64(p[b, at_gates + heads + h]) + gate_bias[heads + h]) / cap)
            f_log = min(f, 0.0) - np.log1p(exp(-abs(f)))
            passed = f_log + peak[b, h]
            m = np.float32(max(passed, i_log, LOWEST))
            peak_after[b, h] = m
            keep, write = np.float32(exp(passed - m)), np.float32(exp(i_log - m))
            given = p[b, at_v + h * values : at_v + (h + 1) * values]
            for j in range(values):
                value[j] = given[j]
            value[values] = np.float32(1.0)
            read[:] = np.float32(0.0)
            for i in range(keys):
                query, key = np.float32(scale * p[b, h * keys + i]), write * p[b, (heads + h) * keys + i]
                old, new = memory[b, h, i], after[b, h, i]
                for j in range(values + 1):
                    s = keep * old[j] + key * value[j]
                    new[j] = s
                    read[j] += query * s
            under = max(abs(np.float64(read[values])), exp(min(-np.float64(m), 87.0))) + eps
            mean = np.float64(0.0)
            for j in range(values):
                mean += read[j]
            mean /= values
            square = np.float64(0.0)
            for j in range(values):
                c = read[j] - mean
                square += c * c
            factor = np.float32(1.0 / np.sqrt(square / values + norm_eps * under * under))
            centre = np.float32(mean)
            gate, y = p[b, at_o + h * values : at_o + (h + 1) * values], out[b, h * values : (h + 1) * values]
            weight = norm[h * values : (h + 1) * values]
            for j in range(values):
                y[j] = (read[j] - centre) * factor * weight[j] * sigmoid(gate[j])
