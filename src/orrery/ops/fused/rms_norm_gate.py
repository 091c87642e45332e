"""RMSNorm of every head, then a SiLU gate (the way out of RetNet, GLA and Gated DeltaNet), as one function.

    y = n w silu(z),   n = x r,   r = 1 / sqrt(mean(x^2) + eps), the mean over a head
    dx = r (a - n mean(a n)),  a = dy w silu(z);   dz = dy n w silu'(z);   dw = sum over tokens and heads of dy n silu(z)

The norm comes first, where Mamba-2's comes last (:mod:`orrery.ops.fused.gated_rms_norm`). Autograd of the formula keeps five tensors
of x's size; this keeps x, z and one number per head and token. The compiled loop reads and writes every number once.

N tokens, H heads, V features of a head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, run_blocks, sigmoid

SMALL = 1 << 14  # numbers below which a call of a compiled loop costs more than torch's own operations
_TOKENS = 32  # of a block: its sums for dw are kept apart, so that threads never share one
_LANES = 16  # partial sums side by side: a single running sum cannot be vectorised without reordering it
_ONE = np.float32(1.0)  # in a kernel, a Python 1 would turn float32 into float64


def rms_norm_gate(x: Tensor, gate: Tensor, weight: Tensor, eps: float, backend: str | None = None) -> Tensor:
    """Normalise each head of x (..., H, V), scale it by weight (V,), gate it with silu(gate (..., H*V)).

    Statistics in float32 at least; the result (..., H*V) has gate's type.
    """
    plain = x.dtype == gate.dtype == weight.dtype == torch.float32
    offered = ("numba", "torch") if plain and x.numel() >= SMALL else ("torch",)
    if choose(backend, x, op="rms_norm_gate", offered=offered) == "numba":
        return _CompiledNormGate.apply(x, gate, weight, eps)
    if torch.is_grad_enabled() and (x.requires_grad or gate.requires_grad or weight.requires_grad):
        return _NormGate.apply(x, gate, weight, eps)
    return rms_norm_gate_reference(x, gate, weight, eps)


def rms_norm_gate_reference(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The formula as it stands."""
    wide = x if x.dtype == torch.float64 else x.float()
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight
    return (y.flatten(-2) * F.silu(gate.to(y.dtype))).to(gate.dtype)


class _NormGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        r = torch.rsqrt(torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_() / x.shape[-1] + eps)
        ctx.save_for_backward(x, gate, weight, r)
        y = (wide * r).mul_(weight).flatten(-2)
        return y.mul_(F.silu(gate.to(y.dtype))).to(gate.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, gate, weight, r = ctx.saved_tensors
        normed = x.to(r.dtype) * r
        z, dy = gate.to(r.dtype), dy.to(r.dtype)
        dz = torch.ops.aten.silu_backward((normed * weight).flatten(-2).mul_(dy), z)
        dn = (F.silu(z) * dy).view_as(normed)
        dw = (dn * normed).reshape(-1, x.shape[-1]).sum(0)
        a = dn.mul_(weight)
        dx = a.addcmul_(normed, (a * normed).mean(-1, keepdim=True), value=-1).mul_(r)
        return dx.to(x.dtype), dz.to(gate.dtype), dw.to(weight.dtype), None


class _CompiledNormGate(torch.autograd.Function):
    """The compiled loop with its gradient. The gate may be a slice of wider rows, as a fused projection leaves it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, weight, z = x.contiguous(), weight.contiguous(), _rows(gate)
        tokens = len(z)
        y, r = torch.empty(gate.shape, dtype=gate.dtype), x.new_empty(tokens, x.shape[-2])
        arrays = _arrays(x, z, weight, r)
        run_blocks(_forward, -(-tokens // _TOKENS), 4 * x.numel(), *arrays, y.view(tokens, -1).numpy(), eps)
        ctx.save_for_backward(x, z, weight, r)
        ctx.shape = gate.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, z, weight, r = ctx.saved_tensors
        blocks = -(-len(z) // _TOKENS)
        dx, dz, dw = torch.empty_like(x), torch.empty(z.shape, dtype=z.dtype), weight.new_empty(blocks, len(weight))
        outputs = [t.numpy() for t in (dx.view_as(z), dz, dw)]
        given = dy.contiguous().view(z.shape).numpy()
        run_blocks(_backward, blocks, 6 * x.numel(), *_arrays(x, z, weight, r), given, *outputs)
        return dx, dz.view(ctx.shape), dw.sum(0), None


def _rows(gate: Tensor) -> Tensor:
    """The gate as rows (N,H*V), a view where its rows follow each other at one distance and are contiguous in themselves."""
    rows = gate.flatten(0, -2)
    return rows if rows.stride(1) == 1 and rows.stride(0) >= rows.shape[1] else rows.contiguous()


def _arrays(x: Tensor, z: Tensor, weight: Tensor, r: Tensor) -> list[Any]:
    """Arrays for the kernels. z goes as one flat array with its stride: only then are rows known to be contiguous."""
    flat = z.detach().as_strided(((len(z) - 1) * z.stride(0) + z.shape[1],), (1,))
    return [x.detach().view(z.shape).numpy(), flat.numpy(), z.stride(0), weight.detach().numpy(), r.numpy()]


@compiled
def _forward(first, last, x, z, step, weight, r, y, eps):  # type: ignore[no-untyped-def]
    heads, value = r.shape[1], len(weight)
    even = value - value % _LANES
    lanes = np.empty(_LANES, dtype=np.float32)
    for n in range(first * _TOKENS, min(last * _TOKENS, len(x))):
        for h in range(heads):
            low = h * value
            given, gate, out = (
                x[n, low : low + value],
                z[n * step + low : n * step + low + value],
                y[n, low : low + value],
            )
            lanes[:] = 0.0
            for begin in range(0, even, _LANES):
                part = given[begin : begin + _LANES]
                for j in range(_LANES):
                    lanes[j] += part[j] * part[j]
            total = np.float64(0.0)
            for j in range(_LANES):
                total += lanes[j]
            for i in range(even, value):
                total += given[i] * given[i]
            scale = np.float32(1.0 / np.sqrt(total / value + eps))
            r[n, h] = scale
            for i in range(value):
                out[i] = given[i] * scale * weight[i] * gate[i] * sigmoid(gate[i])


@compiled
def _backward(first, last, x, z, step, weight, r, dy, dx, dz, dw):  # type: ignore[no-untyped-def]
    heads, value = r.shape[1], len(weight)
    even = value - value % _LANES
    lanes = np.empty(_LANES, dtype=np.float32)
    a = np.empty(value, dtype=np.float32)
    for block in range(first, last):
        sums = dw[block]
        sums[:] = 0.0
        for n in range(block * _TOKENS, min((block + 1) * _TOKENS, len(x))):
            for h in range(heads):
                low, scale = h * value, r[n, h]
                given, gate, grad = (
                    x[n, low : low + value],
                    z[n * step + low : n * step + low + value],
                    dy[n, low : low + value],
                )
                out, dgate = dx[n, low : low + value], dz[n, low : low + value]
                for i in range(value):
                    s, normed = sigmoid(gate[i]), given[i] * scale
                    silu = gate[i] * s
                    dgate[i] = grad[i] * normed * weight[i] * (s + silu * (_ONE - s))
                    sums[i] += grad[i] * normed * silu
                    a[i] = grad[i] * weight[i] * silu
                lanes[:] = 0.0
                for begin in range(0, even, _LANES):
                    part, other = given[begin : begin + _LANES], a[begin : begin + _LANES]
                    for j in range(_LANES):
                        lanes[j] += part[j] * other[j]
                total = np.float64(0.0)
                for j in range(_LANES):
                    total += lanes[j]
                for i in range(even, value):
                    total += given[i] * a[i]
                inner = np.float32(total / value) * scale * scale
                for i in range(value):
                    out[i] = scale * (a[i] - given[i] * inner)
