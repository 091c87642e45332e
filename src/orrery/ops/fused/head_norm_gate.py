"""LayerNorm of every head, a weight, and a sigmoid gate (the way out of xLSTM-7B, arXiv 2503.13427), as one function.

    y = sigmoid(z) w n,   n = (x - mean(x)) r,   r = 1 / sqrt(var(x) + eps), mean and variance over a head
    a = dy w sigmoid(z);   dx = r (a - mean(a) - n mean(a n));   dz = dy w n s (1 - s),  s = sigmoid(z)
    dw = sum over tokens of dy n s

Autograd of the formula keeps six tensors of x's size; this keeps x, z and two numbers per head and token. The compiled loop
reads and writes every number once.

N tokens, H heads, V features of a head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, run_blocks, sigmoid

SMALL = 1 << 14  # numbers below which a call of a compiled loop costs more than torch's own operations
_TOKENS = 32  # of a block: its sums for dw are kept apart, so that threads never share one
_LANES = 16  # partial sums side by side: a single running sum cannot be vectorised without reordering it
_ONE = np.float32(1.0)  # in a kernel, a Python 1 would turn float32 into float64


def head_norm_gate(x: Tensor, gate: Tensor, weight: Tensor, eps: float, backend: str | None = None) -> Tensor:
    """Normalise each head of x (..., H, V), scale by weight (H*V,), gate with sigmoid(gate (..., H*V)).

    Statistics in float32 at least; the result (..., H*V) has gate's type.
    """
    plain = x.dtype == gate.dtype == weight.dtype == torch.float32
    offered = ("numba", "torch") if plain and x.numel() >= SMALL else ("torch",)
    if choose(backend, x, op="head_norm_gate", offered=offered) == "numba":
        return _CompiledNormGate.apply(x, gate, weight, eps)
    return head_norm_gate_reference(x, gate, weight, eps)


def head_norm_gate_reference(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The formula as it stands, with autograd's gradients."""
    wide = x if x.dtype == torch.float64 else x.float()
    n = torch.nn.functional.layer_norm(wide, x.shape[-1:], eps=eps).flatten(-2)
    return (n * weight * torch.sigmoid(gate.to(n.dtype))).to(gate.dtype)


class _CompiledNormGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        rows, (z, step) = x.detach().view(-1, *x.shape[-2:]), _flat(gate)
        y, kept = x.new_empty(gate.shape), x.new_empty(2, *rows.shape[:2])
        arrays = (weight.detach(), y.view(len(rows), -1), kept)
        run_blocks(_forward, len(rows), 3 * x.numel(), rows.numpy(), z, step, *(t.numpy() for t in arrays), eps)
        ctx.save_for_backward(x, gate, weight, kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, weight, kept = ctx.saved_tensors
        rows = x.detach().view(-1, *x.shape[-2:])
        dx, dz = torch.empty_like(x), x.new_empty(gate.shape)
        blocks = -(-len(rows) // _TOKENS)
        dw = x.new_empty(blocks, len(weight))
        arrays = (weight, dy.contiguous().view(len(rows), -1), kept, dx.view(rows.shape), dz.view(len(rows), -1), dw)
        run_blocks(_backward, blocks, 5 * x.numel(), rows.numpy(), *_flat(gate), *(t.detach().numpy() for t in arrays))
        return dx, dz, dw.sum(0), None


def _flat(gate: Tensor) -> tuple[Any, int]:
    """A gate (..., E) as one flat array and the distance of its rows: a split projection is not copied, and its rows are known to be
    contiguous, which a kernel cannot tell of an array with two strides."""
    rows = gate.detach().flatten(0, -2)
    rows = rows if rows.stride(1) == 1 and rows.stride(0) >= rows.shape[1] else rows.contiguous()
    return rows.as_strided(((len(rows) - 1) * rows.stride(0) + rows.shape[1],), (1,)).numpy(), rows.stride(0)


@compiled
def _forward(first, last, x, z, step, w, y, kept, eps):  # type: ignore[no-untyped-def]
    heads, values = x.shape[1:]
    even = values - values % _LANES
    lanes = np.empty((2, _LANES), x.dtype)
    for n in range(first, last):
        for h in range(heads):
            given, low = x[n, h], h * values
            lanes[:] = 0
            for begin in range(0, even, _LANES):
                part = given[begin : begin + _LANES]  # a slice: its index is known not to be negative
                for j in range(_LANES):
                    lanes[0, j] += part[j]
            for i in range(even, values):
                lanes[0, 0] += given[i]
            mean = x.dtype.type(np.float64(lanes[0].sum()) / values)
            for begin in range(0, even, _LANES):
                part = given[begin : begin + _LANES]
                for j in range(_LANES):
                    c = part[j] - mean
                    lanes[1, j] += c * c
            for i in range(even, values):
                c = given[i] - mean
                lanes[1, 0] += c * c
            r = x.dtype.type(1.0 / np.sqrt(np.float64(lanes[1].sum()) / values + eps))
            kept[0, n, h], kept[1, n, h] = mean, r
            gate = z[n * step + low : n * step + low + values]
            weight, out = w[low : low + values], y[n, low : low + values]
            for j in range(values):
                out[j] = (given[j] - mean) * r * weight[j] * sigmoid(gate[j])


@compiled
def _backward(first, last, x, z, step, w, dy, kept, dx, dz, dw):  # type: ignore[no-untyped-def]
    count, heads, values = x.shape
    even = values - values % _LANES
    lanes = np.empty((2, _LANES), x.dtype)
    a, normed = np.empty(values, x.dtype), np.empty(values, x.dtype)
    for block in range(first, last):
        dw[block] = 0
        for n in range(block * _TOKENS, min((block + 1) * _TOKENS, count)):
            for h in range(heads):
                low, mean, r = h * values, kept[0, n, h], kept[1, n, h]
                given, weight, into = x[n, h], w[low : low + values], dx[n, h]
                gate = z[n * step + low : n * step + low + values]
                slope, total = dy[n, low : low + values], dw[block, low : low + values]
                dgate = dz[n, low : low + values]
                for j in range(values):
                    s = sigmoid(gate[j])
                    normed[j] = (given[j] - mean) * r
                    part = slope[j] * s
                    total[j] += part * normed[j]
                    a[j] = part * weight[j]
                    dgate[j] = a[j] * normed[j] * (_ONE - s)
                lanes[:] = 0
                for begin in range(0, even, _LANES):
                    for j in range(_LANES):
                        lanes[0, j] += a[begin + j]
                        lanes[1, j] += a[begin + j] * normed[begin + j]
                for i in range(even, values):
                    lanes[0, 0] += a[i]
                    lanes[1, 0] += a[i] * normed[i]
                mean_a, mean_an = lanes[0].sum() / x.dtype.type(values), lanes[1].sum() / x.dtype.type(values)
                for j in range(values):
                    into[j] = r * (a[j] - mean_a - normed[j] * mean_an)
