"""What Kimi Delta Attention's recurrence takes, from what its projections give: one elementwise function with its gradient.

    ``kh = k / |k|``,  ``beta = most sigmoid(s)``,  ``g = -exp(A) softplus(f + bias)``  or, above a bound below 0,
    ``g = bound sigmoid(exp(A) (f + bias))``:
    ``q / |q|``,  ``key = beta kh``,  ``a = exp(g) kh``,  ``b = -beta kh``,  ``g``          (2510.26692, equations 1 and 10; a and b as
    :mod:`orrery.ops.dplr` takes them).  Norms are sqrt(|x|^2 + 1e-6).

Autograd of the formulas reads and writes some 50 tensors of the input's size; the compiled loop reads and writes each once.

B batch, T time, H heads, K head size, D = H K.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, dot, exp, run_blocks, sigmoid, softplus

SMALL = 1 << 14  # numbers below which a call of a compiled loop costs more than torch's own operations
_EPS = 1e-6  # under the root, as fla and transformers have it
_TOKENS = 32  # of a block: its sums for the parameters are kept apart, so that threads never share one
_ONE, _ZERO, _ROOT = np.float32(1.0), np.float32(0.0), np.float32(_EPS)  # in a kernel, a Python 1 would turn float32 into float64


def kda_gates(
    mixed: Tensor,
    strength: Tensor,
    decay: Tensor,
    rate_log: Tensor,
    bias: Tensor,
    most: float,
    valid: Tensor | None = None,
    bound: float = 0.0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, key, v, a, b, g (B,T,H,K), without effect on the state where a token is padding; all but v in float32 at least.

    Args:
        mixed: q, k, v side by side (B,T,3*H*K).
        strength: s (B,T,H). decay: f (B,T,H*K).
        rate_log: A (H,). bias: (H*K,).
        most: the largest beta.
        valid: (B,T) bool, False at padding; None: all tokens count.
        bound: of g from below; 0: none.
    """
    tensors = mixed, strength, decay, rate_log, bias
    single = all(x.dtype == torch.float32 for x in tensors) and mixed.numel() >= SMALL
    if choose(backend, mixed, op="kda_gates", offered=("numba", "torch") if single else ("torch",)) == "numba":
        return _Gates.apply(*tensors, most, valid, bound)
    return kda_gates_reference(*tensors, most, valid, bound)


def kda_gates_reference(
    mixed: Tensor, strength: Tensor, decay: Tensor, rate_log: Tensor, bias: Tensor, most: float, valid: Tensor | None = None,
    bound: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The formulas as they stand."""
    q, k, v, beta, g_log = kda_parts(mixed, strength, decay, rate_log, bias, most, valid, bound)
    key = beta[..., None] * k
    return q, key, v, g_log.exp() * k, -key, g_log


def kda_parts(
    mixed: Tensor, strength: Tensor, decay: Tensor, rate_log: Tensor, bias: Tensor, most: float, valid: Tensor | None = None,
    bound: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q / |q|, k / |k|, v (B,T,H,K), beta (B,T,H) and g (B,T,H,K), as the delta rule with vector decay takes them."""
    heads, wide = len(rate_log), torch.promote_types(mixed.dtype, torch.float32)
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in mixed.chunk(3, -1))
    beta = most * torch.sigmoid(strength.to(wide))
    rate, raw = rate_log.to(wide).exp()[:, None], (decay.to(wide) + bias).unflatten(-1, (heads, -1))
    g_log = bound * torch.sigmoid(rate * raw) if bound else -rate * F.softplus(raw)
    if valid is not None:
        beta, g_log = beta.masked_fill(~valid[..., None], 0.0), g_log.masked_fill(~valid[..., None, None], 0.0)
    q, k = (x.to(wide) * torch.rsqrt(x.to(wide).square().sum(-1, keepdim=True) + _EPS) for x in (q, k))
    return q, k, v, beta, g_log


class _Gates(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mixed: Tensor, strength: Tensor, decay: Tensor, rate_log: Tensor, bias: Tensor, most: float, valid: Tensor | None,
        bound: float,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        mixed, strength, decay = (x.contiguous() for x in (mixed, strength, decay))
        valid = torch.ones(strength.shape[:2], dtype=torch.bool) if valid is None else valid.contiguous()
        found = [torch.empty_like(decay) for _ in range(6)]
        q, key, _, a, _, g = found
        sizes = strength.new_empty(strength.shape[0] * strength.shape[1], 2 * len(rate_log))
        arrays = [*_rows(mixed, strength, decay, rate_log, bias), valid.view(-1).numpy(), *_rows(*found, sizes)]
        limits = np.float32(most), np.float32(bound)
        run_blocks(_forward, -(-len(sizes) // _TOKENS), 8 * mixed.numel(), *arrays, *limits)
        ctx.save_for_backward(strength, decay, rate_log, bias, valid, q, key, a, g, sizes, mixed)
        ctx.limits = limits
        return tuple(x.unflatten(-1, (len(rate_log), -1)) for x in found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        strength, decay, rate_log, bias, valid, q, _, a, g, sizes, mixed = ctx.saved_tensors
        blocks, width = -(-len(sizes) // _TOKENS), decay.shape[-1]
        given = [x.contiguous().view(decay.shape) for x in grads]
        found = [torch.empty_like(x) for x in (mixed, strength, decay)]
        sums = mixed.new_zeros(blocks, width + len(rate_log))
        arrays = [*_rows(mixed, strength, decay, rate_log, bias), valid.view(-1).numpy(), *_rows(q, a, g, sizes, *given, *found)]
        run_blocks(_backward, blocks, 16 * mixed.numel(), *arrays, sums.numpy(), *ctx.limits)
        dbias, drate = sums.sum(0).split([width, len(rate_log)])
        return *found, drate, dbias, None, None, None


def _rows(*tensors: Tensor) -> list[Any]:
    """Arrays for the kernels: (N,...) rows, parameters as they are."""
    return [x.detach().numpy() if x.dim() == 1 else x.detach().view(-1, x.shape[-1]).numpy() for x in tensors]


@compiled
def _forward(  # type: ignore[no-untyped-def]
    first, last, mixed, strength, decay, rate_log, bias, valid, q, key, v, a, b, g, sizes, most, bound
):  # fmt: skip
    heads, width = len(rate_log), decay.shape[1]
    count = width // heads
    for n in range(first * _TOKENS, min(last * _TOKENS, len(decay))):
        for h in range(heads):
            low, high = h * count, (h + 1) * count
            from_q, from_k, from_v = mixed[n, low:high], mixed[n, width + low : width + high], mixed[n, 2 * width + low : 2 * width + high]
            q_size, k_size = _ONE / np.sqrt(dot(from_q, from_q) + _ROOT), _ONE / np.sqrt(dot(from_k, from_k) + _ROOT)
            sizes[n, 2 * h], sizes[n, 2 * h + 1] = q_size, k_size
            beta = most * sigmoid(strength[n, h]) * k_size
            fastest, most_g = -np.float32(exp(np.float64(rate_log[h]))), bound
            if not valid[n]:
                beta = fastest = most_g = _ZERO
            out_q, out_v = q[n, low:high], v[n, low:high]
            for i in range(count):
                out_q[i] = from_q[i] * q_size
                out_v[i] = from_v[i]
            out_key, out_b = key[n, low:high], b[n, low:high]
            for i in range(count):
                out_key[i] = from_k[i] * beta
                out_b[i] = -(from_k[i] * beta)
            raw, shift, out_g = decay[n, low:high], bias[low:high], g[n, low:high]
            if bound == _ZERO:
                for i in range(count):
                    out_g[i] = fastest * softplus(raw[i] + shift[i])
            else:
                for i in range(count):
                    out_g[i] = most_g * sigmoid(-fastest * (raw[i] + shift[i]))
            out_a = a[n, low:high]
            for i in range(count):
                out_a[i] = np.float32(exp(np.float64(out_g[i]))) * from_k[i] * k_size


@compiled
def _backward(  # type: ignore[no-untyped-def]
    first, last, mixed, strength, decay, rate_log, bias, valid, q, a, g, sizes, dq, dkey, dv, da, db, dg, dmixed, dstrength, ddecay,
    sums, most, bound,
):  # fmt: skip
    heads, width = len(rate_log), decay.shape[1]
    count = width // heads
    unit, back, flow = np.empty(count, np.float32), np.empty(count, np.float32), np.empty(count, np.float32)
    for block in range(first, last):
        for n in range(block * _TOKENS, min((block + 1) * _TOKENS, len(decay))):
            for h in range(heads):
                low, high = h * count, (h + 1) * count
                q_size, k_size = sizes[n, 2 * h], sizes[n, 2 * h + 1]
                share = sigmoid(strength[n, h])
                beta, fastest = most * share, -np.float32(exp(np.float64(rate_log[h])))
                if not valid[n]:
                    beta = fastest = _ZERO
                given, along, out = dq[n, low:high], q[n, low:high], dmixed[n, low:high]
                inner = dot(given, along)
                for i in range(count):
                    out[i] = q_size * (given[i] - along[i] * inner)
                from_k, to_key, to_b = mixed[n, width + low : width + high], dkey[n, low:high], db[n, low:high]
                for i in range(count):
                    unit[i] = from_k[i] * k_size
                    back[i] = to_key[i] - to_b[i]
                slope = dot(back, unit)
                dstrength[n, h] = slope * beta * (_ONE - share)
                to_a, gate = da[n, low:high], g[n, low:high]
                for i in range(count):
                    back[i] = beta * back[i] + np.float32(exp(np.float64(gate[i]))) * to_a[i]
                inner, out = dot(back, unit), dmixed[n, width + low : width + high]
                for i in range(count):
                    out[i] = k_size * (back[i] - unit[i] * inner)
                given, out = dv[n, low:high], dmixed[n, 2 * width + low : 2 * width + high]
                for i in range(count):
                    out[i] = given[i]
                to_g, held = dg[n, low:high], a[n, low:high]
                for i in range(count):
                    flow[i] = to_g[i] + to_a[i] * held[i]
                raw, shift, out, to_bias = decay[n, low:high], bias[low:high], ddecay[n, low:high], sums[block, low:high]
                if bound == _ZERO:
                    sums[block, width + h] += dot(flow, gate)
                    for i in range(count):
                        out[i] = flow[i] * fastest * sigmoid(raw[i] + shift[i])
                else:  # g is 0 at padding, and its slope with it
                    for i in range(count):
                        unit[i] = raw[i] + shift[i]
                        out[i] = -flow[i] * gate[i] * fastest * sigmoid(fastest * unit[i])
                    sums[block, width + h] += dot(out, unit)
                for i in range(count):
                    to_bias[i] += out[i]
