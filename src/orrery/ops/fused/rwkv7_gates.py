"""What stands before and behind RWKV-7's recurrence: two elementwise functions with a backward of their own.

Before (2503.14456, equations 4 to 8), per head:

    ``kk = k kappa / |k kappa|``,  ``rate = sigmoid(a)``:   ``key = k (1 + (rate - 1) alpha)``,  ``-kk``,  ``kk rate``,
    ``log w = -e^-0.5 sigmoid(d)``

Behind (equations 20, 21):  ``y = gate * (weight (o - mean) / sqrt(var + eps) + bias + (sum r k rho) v)``, mean, var and sum over a head.

Autograd of the formulas reads and writes some 60 tensors of the input's size; the compiled loops read and write each once.

B batch, T time, D = H K width, H heads, K head size.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, dot, run_blocks, sigmoid

SMALL = 1 << 14  # numbers below which a call of a compiled loop costs more than torch's own operations
_SLOWEST = -math.exp(-0.5)  # log w lies between this and 0
_TOKENS = 32  # of a block: its sums for the parameters are kept apart, so that threads never share one
_ONE, _RATE = np.float32(1.0), np.float32(_SLOWEST)  # in a kernel, a Python 1 would turn float32 into float64
_LEAST = np.float32(1e-12)  # of a norm that is divided by


def rwkv7_gates(
    k: Tensor, rate: Tensor, decay: Tensor, scale: Tensor, alpha: Tensor, heads: int, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From k, rate, decay (B,T,D) and scale, alpha (D,): key, a, b, log w (B,T,H,K) for :func:`orrery.ops.dplr.dplr`."""
    if _plain("rwkv7_gates", backend, k, rate, decay, scale, alpha):
        return _Gates.apply(k, rate, decay, scale, alpha, heads)
    return rwkv7_gates_reference(k, rate, decay, scale, alpha, heads)


def _plain(op: str, backend: str | None, *tensors: Tensor) -> bool:
    """Whether the compiled loop may run: all in float32, and enough of it."""
    single = all(x.dtype == torch.float32 for x in tensors) and tensors[0].numel() >= SMALL
    return choose(backend, tensors[0], op=op, offered=("numba", "torch") if single else ("torch",)) == "numba"


def rwkv7_gates_reference(
    k: Tensor, rate: Tensor, decay: Tensor, scale: Tensor, alpha: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The formulas as they stand."""
    share = torch.sigmoid(rate)
    direction = F.normalize((k * scale).unflatten(-1, (heads, -1)), dim=-1)
    key = (k * (1 + (share - 1) * alpha)).unflatten(-1, (heads, -1))
    wide = decay if decay.dtype == torch.float64 else decay.float()
    g_log = (_SLOWEST * torch.sigmoid(wide)).unflatten(-1, (heads, -1))
    return key, -direction, direction * share.unflatten(-1, (heads, -1)), g_log


def rwkv7_out(
    o: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    bonus: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    backend: str | None = None,
) -> Tensor:
    """From o, r, k, v (B,T,H,K), gate (B,T,D) and bonus, weight, bias (D,): what the way out takes (B,T,D)."""
    if _plain("rwkv7_out", backend, o, r, k, v, gate, bonus, weight, bias):
        return _Out.apply(o, r, k, v, gate, bonus, weight, bias, eps)
    return rwkv7_out_reference(o, r, k, v, gate, bonus, weight, bias, eps)


def rwkv7_out_reference(
    o: Tensor, r: Tensor, k: Tensor, v: Tensor, gate: Tensor, bonus: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """The formula as it stands."""
    heads, size = o.shape[-2:]
    normed = F.layer_norm(o.to(gate.dtype), (size,), eps=eps).flatten(-2) * weight + bias
    own = (r * k * bonus.view(heads, size)).sum(-1, keepdim=True) * v
    return gate * (normed + own.flatten(-2))


def _rows(*tensors: Tensor) -> list[Any]:
    """Arrays for the kernels: (N,D), and what has one dimension or two as it is."""
    width = tensors[0].shape[-1] if tensors[0].dim() < 4 else tensors[0].shape[-1] * tensors[0].shape[-2]
    return [x.detach().numpy() if x.dim() < 3 else x.detach().view(-1, width).numpy() for x in tensors]


class _Gates(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, k: Tensor, rate: Tensor, decay: Tensor, scale: Tensor, alpha: Tensor, heads: int
    ) -> tuple[Tensor, ...]:
        k, rate, decay = (x.contiguous() for x in (k, rate, decay))
        found = [torch.empty_like(k) for _ in range(4)]
        size = k.new_empty(k.numel() // k.shape[-1], heads)
        run_blocks(_gates_forward, -(-len(size) // _TOKENS), 8 * k.numel(), *_rows(k, rate, decay, scale, alpha, *found, size))
        ctx.save_for_backward(k, rate, decay, scale, alpha, size)
        return tuple(x.unflatten(-1, (heads, -1)) for x in found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        k, rate, decay, scale, alpha, size = ctx.saved_tensors
        blocks = -(-len(size) // _TOKENS)
        given = [x.contiguous().view(k.shape) for x in grads]
        found = [torch.empty_like(k) for _ in range(3)]
        sums = k.new_zeros(blocks, 2 * k.shape[-1])
        arrays = [*_rows(k, rate, decay, scale, alpha, *given, *found, size), sums.numpy()]
        run_blocks(_gates_backward, blocks, 16 * k.numel(), *arrays)
        dscale, dalpha = sums.sum(0).chunk(2)
        return *found, dscale, dalpha, None


class _Out(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, o: Tensor, r: Tensor, k: Tensor, v: Tensor, gate: Tensor, bonus: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        o, r, k, v, gate = (x.contiguous() for x in (o, r, k, v, gate))
        y, (heads, _) = torch.empty_like(gate), o.shape[-2:]
        kept = o.new_empty(gate.numel() // gate.shape[-1], 3 * heads)  # mean, 1 / deviation, and the bonus
        arrays = _rows(gate, o, r, k, v, bonus, weight, bias, y)
        run_blocks(_out_forward, -(-len(kept) // _TOKENS), 8 * o.numel(), *arrays, kept.numpy(), heads, np.float32(eps))
        ctx.save_for_backward(o, r, k, v, gate, bonus, weight, bias, kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        o, r, k, v, gate, bonus, weight, bias, kept = ctx.saved_tensors
        blocks, heads = -(-len(kept) // _TOKENS), o.shape[-2]
        found = [torch.empty_like(x) for x in (o, r, k, v, gate)]
        sums = o.new_zeros(blocks, 3 * gate.shape[-1])
        arrays = _rows(gate, o, r, k, v, bonus, weight, bias, dy.contiguous(), *found)
        run_blocks(_out_backward, blocks, 16 * o.numel(), *arrays, kept.numpy(), heads, sums.numpy())
        return *found, *sums.sum(0).chunk(3), None


@compiled
def _gates_forward(first, last, k, rate, decay, scale, alpha, key, a, b, g, size):  # type: ignore[no-untyped-def]
    heads = size.shape[1]
    count = k.shape[1] // heads
    raw, share = np.empty(count, np.float32), np.empty(count, np.float32)
    for n in range(first * _TOKENS, min(last * _TOKENS, len(k))):
        for h in range(heads):
            low, high = h * count, (h + 1) * count
            x, weight, turn = k[n, low:high], scale[low:high], alpha[low:high]
            given = rate[n, low:high]
            for i in range(count):
                raw[i] = x[i] * weight[i]
                share[i] = sigmoid(given[i])
            norm = np.sqrt(dot(raw, raw))
            inverse = _ONE / (norm if norm > _LEAST else _LEAST)
            size[n, h] = inverse
            out_a, out_b = a[n, low:high], b[n, low:high]
            for i in range(count):
                direction = raw[i] * inverse
                out_a[i] = -direction
                out_b[i] = direction * share[i]
            out_k = key[n, low:high]
            for i in range(count):
                out_k[i] = x[i] * (_ONE + (share[i] - _ONE) * turn[i])
            from_g, out_g = decay[n, low:high], g[n, low:high]
            for i in range(count):
                out_g[i] = _RATE * sigmoid(from_g[i])


@compiled
def _gates_backward(  # type: ignore[no-untyped-def]
    first, last, k, rate, decay, scale, alpha, dkey, da, db, dg, dk, drate, ddecay, size, sums
):  # fmt: skip
    heads, width = size.shape[1], k.shape[1]
    count = width // heads
    share, along, back = np.empty(count, np.float32), np.empty(count, np.float32), np.empty(count, np.float32)
    for block in range(first, last):
        for n in range(block * _TOKENS, min((block + 1) * _TOKENS, len(k))):
            for h in range(heads):
                low, high = h * count, (h + 1) * count
                x, weight, turn = k[n, low:high], scale[low:high], alpha[low:high]
                given, inverse = rate[n, low:high], size[n, h]
                g_key, g_a, g_b = dkey[n, low:high], da[n, low:high], db[n, low:high]
                for i in range(count):
                    share[i] = sigmoid(given[i])
                    along[i] = x[i] * weight[i] * inverse
                out = drate[n, low:high]
                for i in range(count):
                    out[i] = (g_b[i] * along[i] + g_key[i] * x[i] * turn[i]) * share[i] * (_ONE - share[i])
                for i in range(count):
                    back[i] = g_b[i] * share[i] - g_a[i]
                inner = dot(back, along) if inverse * _LEAST < _ONE else np.float32(0.0)
                for i in range(count):
                    back[i] = inverse * (back[i] - along[i] * inner)
                out = dk[n, low:high]
                for i in range(count):
                    out[i] = back[i] * weight[i] + g_key[i] * (_ONE + (share[i] - _ONE) * turn[i])
                to_scale, to_alpha = sums[block, low:high], sums[block, width + low : width + high]
                for i in range(count):
                    to_scale[i] += back[i] * x[i]
                    to_alpha[i] += g_key[i] * x[i] * (share[i] - _ONE)
                raw, g_g, out = decay[n, low:high], dg[n, low:high], ddecay[n, low:high]
                for i in range(count):
                    s = sigmoid(raw[i])
                    out[i] = g_g[i] * _RATE * s * (_ONE - s)


@compiled
def _out_forward(first, last, gate, o, r, k, v, bonus, weight, bias, y, kept, heads, eps):  # type: ignore[no-untyped-def]
    count = gate.shape[1] // heads
    centred, ones = np.empty(count, np.float32), np.ones(count, np.float32)
    for n in range(first * _TOKENS, min(last * _TOKENS, len(gate))):
        for h in range(heads):
            low, high = h * count, (h + 1) * count
            x, mean = o[n, low:high], dot(o[n, low:high], ones) / np.float32(count)
            for i in range(count):
                centred[i] = x[i] - mean
            inverse = _ONE / np.sqrt(dot(centred, centred) / np.float32(count) + eps)
            w, shift = weight[low:high], bias[low:high]
            for i in range(count):
                centred[i] = centred[i] * inverse * w[i] + shift[i]
            out, left, right, extra = y[n, low:high], r[n, low:high], k[n, low:high], bonus[low:high]
            for i in range(count):
                out[i] = left[i] * extra[i]
            own = dot(out, right)
            value, z = v[n, low:high], gate[n, low:high]
            for i in range(count):
                out[i] = z[i] * (centred[i] + own * value[i])
            kept[n, 3 * h], kept[n, 3 * h + 1], kept[n, 3 * h + 2] = mean, inverse, own


@compiled
def _out_backward(  # type: ignore[no-untyped-def]
    first, last, gate, o, r, k, v, bonus, weight, bias, dy, do, dr, dk, dv, dgate, kept, heads, sums
):  # fmt: skip
    width = gate.shape[1]
    count = width // heads
    normed, back = np.empty(count, np.float32), np.empty(count, np.float32)
    ones = np.ones(count, np.float32)
    for block in range(first, last):
        for n in range(block * _TOKENS, min((block + 1) * _TOKENS, len(gate))):
            for h in range(heads):
                low, high = h * count, (h + 1) * count
                mean, inverse, own = kept[n, 3 * h], kept[n, 3 * h + 1], kept[n, 3 * h + 2]
                x, value, given, z = o[n, low:high], v[n, low:high], dy[n, low:high], gate[n, low:high]
                w, shift, out = weight[low:high], bias[low:high], dgate[n, low:high]
                for i in range(count):
                    normed[i] = (x[i] - mean) * inverse
                for i in range(count):
                    out[i] = given[i] * (normed[i] * w[i] + shift[i] + own * value[i])
                for i in range(count):
                    back[i] = given[i] * z[i]
                slope, out = dot(back, value), dv[n, low:high]
                for i in range(count):
                    out[i] = back[i] * own
                left, right, extra = r[n, low:high], k[n, low:high], bonus[low:high]
                to_r, to_k, to_bonus = dr[n, low:high], dk[n, low:high], sums[block, low:high]
                for i in range(count):
                    to_r[i] = slope * right[i] * extra[i]
                    to_k[i] = slope * left[i] * extra[i]
                for i in range(count):
                    to_bonus[i] += slope * left[i] * right[i]
                to_w, to_bias = sums[block, width + low : width + high], sums[block, 2 * width + low : 2 * width + high]
                for i in range(count):
                    to_w[i] += back[i] * normed[i]
                    to_bias[i] += back[i]
                for i in range(count):
                    back[i] *= w[i]
                level, tilt, out = dot(back, ones) / np.float32(count), dot(back, normed) / np.float32(count), do[n, low:high]
                for i in range(count):
                    out[i] = inverse * (back[i] - level - normed[i] * tilt)
