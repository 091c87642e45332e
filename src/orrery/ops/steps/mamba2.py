"""One token of Mamba-2 (arXiv 2405.21060) between its two projections, as one compiled loop.

    x, B, C = silu(conv(window));  dt = softplus(raw + b_dt);  S = exp(-exp(A_log) dt) S + dt B x^T;  y = C S + D x
    out = w rmsnorm(y silu(z)),  or  w rmsnorm(y) silu(z),  or  y silu(z)

Decoding one row is some thirty small torch calls otherwise, which take several times as long as their arithmetic.
Inference only; the mixer says the same in torch, for gradients, other types and devices.

B batch, E = H P inner size, H heads, P head dimension, G groups, N state size, M = E + 2GN channels of the convolution,
K taps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, exp, prepare_blocks, sigmoid


class StepWeights(NamedTuple):
    """Parameters that a step reads: taps (M,K), conv_bias (M,) or None, dt_bias, A_log, D (H,), norm (E,) or None."""

    taps: Tensor
    conv_bias: Tensor | None
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor
    norm: Tensor | None


def can_step(p: Tensor, conv: Tensor, ssm: Tensor) -> bool:
    """Whether the compiled loop may run: nothing to differentiate, float32, and the rule for backends says so."""
    differentiated = torch.is_grad_enabled() and (p.requires_grad or conv.requires_grad or ssm.requires_grad)
    plain = not differentiated and p.dtype == conv.dtype == ssm.dtype == torch.float32
    return choose(None, p, op="mamba2_step", offered=("numba", "torch") if plain else ("torch",)) == "numba"


def mamba2_step(
    p: Tensor,
    conv: Tensor,
    ssm: Tensor,
    weights: StepWeights,
    groups: int,
    eps: float,
    dt_limit: tuple[float, float] | None = None,
    donate: bool = False,
    norm_first: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one token of every row.

    Args:
        p: (B,E+M+H), z, the convolution's input and raw step sizes, as the first projection leaves them.
        conv: (B,K-1,M), its last inputs.
        ssm: (B,H,N,P), the state; overwritten in place when donated.
        weights: the layer's parameters.
        groups: G, of B, C and the norm.
        eps: of the norm.
        dt_limit: bounds of the step size.
        donate: the caller gives `ssm` away.
        norm_first: the norm stands before the gate.

    Returns:
        out (B,E), the next last inputs and the next state.
    """
    batch, kept, mixed = conv.shape
    p, ssm = p.contiguous(), ssm.contiguous()
    after = ssm if donate else torch.empty_like(ssm)
    window, out = conv.new_empty(batch, kept, mixed), p.new_empty(batch, ssm.shape[1] * ssm.shape[3])
    tensors = (p, conv.contiguous(), window, ssm, after, out)
    prepare_blocks(_step, batch, 4 * ssm.numel(), *_arguments(tensors, weights, groups, eps, dt_limit, norm_first))()
    return out, window, after


def mamba2_stepper(
    p: Tensor, conv: Tensor, ssm: Tensor, out: Tensor, weights: StepWeights, groups: int, eps: float,
    dt_limit: tuple[float, float] | None = None, norm_first: bool = False,
) -> Callable[[], None]:  # fmt: skip
    """:func:`mamba2_step` prepared once: every call reads p, moves conv and ssm on in place, and writes out (B,E)."""
    given = _arguments((p, conv, conv, ssm, ssm, out), weights, groups, eps, dt_limit, norm_first)
    return prepare_blocks(_step, len(p), 4 * ssm.numel(), *given)


def _arguments(
    tensors: tuple[Tensor, ...], weights: StepWeights, groups: int, eps: float, dt_limit: tuple[float, float] | None, norm_first: bool
) -> tuple[Any, ...]:
    """What the kernel takes: arrays, then numbers."""
    low, high = dt_limit or (0.0, math.inf)
    bias = weights.taps.new_zeros(len(weights.taps)) if weights.conv_bias is None else weights.conv_bias
    norm = weights.D.new_empty(0) if weights.norm is None else weights.norm
    parameters = (weights.taps, bias, weights.dt_bias, weights.A_log, weights.D, norm)
    return *(t.detach().numpy() for t in (*tensors, *parameters)), groups, eps, low, high, norm_first


@compiled
def _step(  # type: ignore[no-untyped-def]
    first, last, p, conv, window, before, after, out, taps, bias, dt_bias, A_log, D, norm, groups, eps, low, high, norm_first
):
    kept, mixed = conv.shape[1:]
    heads, size, width = before.shape[1:]
    inner, part = heads * width, heads * width // groups
    x = np.empty(mixed, np.float32)
    for b in range(first, last):
        row = p[b, inner : inner + mixed]
        for c in range(mixed):
            total = bias[c] + taps[c, kept] * row[c]
            for j in range(kept):
                total += taps[c, j] * conv[b, j, c]
            x[c] = total
        for j in range(kept - 1):  # once conv has been read: it may be the window itself
            window[b, j] = conv[b, j + 1]
        if kept:
            window[b, kept - 1] = row
        for c in range(mixed):
            x[c] = x[c] * sigmoid(x[c])
        for h in range(heads):
            raw = np.float64(p[b, inner + mixed + h]) + dt_bias[h]
            dt = max(raw, 0.0) + np.log1p(exp(-abs(raw)))
            dt = min(max(dt, low), high)
            decay, step = np.float32(exp(-exp(np.float64(A_log[h])) * dt)), np.float32(dt)
            key = inner + h // (heads // groups) * size
            value, y = x[h * width : (h + 1) * width], out[b, h * width : (h + 1) * width]
            skip = D[h]
            for j in range(width):
                y[j] = skip * value[j]
            for i in range(size):
                old, new = before[b, h, i], after[b, h, i]
                write, query = step * x[key + i], x[key + groups * size + i]
                for j in range(width):
                    s = decay * old[j] + write * value[j]
                    new[j] = s
                    y[j] += query * s
        for g in range(groups):
            y, z = out[b, g * part : (g + 1) * part], p[b, g * part : (g + 1) * part]
            if not norm_first:
                for j in range(part):
                    y[j] = y[j] * z[j] * sigmoid(z[j])
            if len(norm) == 0:
                continue
            square = np.float64(0.0)
            for j in range(part):
                square += np.float64(y[j]) * y[j]
            scale = np.float32(1.0 / np.sqrt(square / part + eps))
            for j in range(part):
                y[j] = y[j] * scale * norm[g * part + j]
            if norm_first:
                for j in range(part):
                    y[j] = y[j] * z[j] * sigmoid(z[j])
