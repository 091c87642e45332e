"""RMSNorm of a gated input (Mamba-2, arXiv 2405.21060, section 7): one function with a backward of its own.

    h = x silu(z),  y = h r w,  r = 1 / sqrt(mean(h^2) + eps), the mean over each of G equal parts of a row
    dh = r (g - h r^2 mean(g h)),  g = dy w;   dx = dh silu(z),   dz = dh x silu'(z),   dw = sum over rows of dy h r

Autograd of the plain formula keeps seven tensors of x's size; this keeps x, z and one number per part of a row. The
compiled backend reads each row once from memory.

N rows, D features, G parts.
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
_ROWS = 64  # rows of a block: its sums for dw are kept apart, so that threads never share one
_LANES = 16  # partial sums side by side: a single running sum cannot be vectorised without reordering it
_ONE = np.float32(1.0)  # in a kernel, a Python 1 would turn float32 into float64


def gated_rms_norm(
    x: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int = 1, backend: str | None = None
) -> Tensor:
    """Gate x (..., D) with silu(gate (..., D)), normalise each of `groups` parts of D, scale by weight (D,).

    Statistics in float32 at least; the result has x's type.
    """
    single = x.dtype == gate.dtype == weight.dtype == torch.float32
    offered = ("numba", "torch") if single and x.numel() >= SMALL else ("torch",)
    if choose(backend, x, op="gated_rms_norm", offered=offered) == "numba":
        return _Compiled.apply(x, gate, weight, eps, groups)
    if torch.is_grad_enabled() and (x.requires_grad or gate.requires_grad or weight.requires_grad):
        return _Gated.apply(x, gate, weight, eps, groups)
    return gated_rms_norm_reference(x, gate, weight, eps, groups)


def gated_rms_norm_reference(x: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int = 1) -> Tensor:
    """The formula as it stands."""
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    h = F.silu(gate.to(kind)) * x.to(kind)
    if groups == 1:
        return (F.rms_norm(h, h.shape[-1:], eps=eps) * weight).to(x.dtype)
    parts = h.unflatten(-1, (groups, -1))
    return (F.rms_norm(parts, parts.shape[-1:], eps=eps).flatten(-2) * weight).to(x.dtype)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int) -> Tensor:
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        parts = F.silu(gate.to(kind)).mul_(x).unflatten(-1, (groups, -1))
        norm = torch.linalg.vector_norm(parts, dim=-1, keepdim=True)
        r = torch.rsqrt(norm.square_().div_(parts.shape[-1]).add_(eps))
        ctx.save_for_backward(x, gate, weight, r)
        return parts.mul_(r).flatten(-2).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, gate, weight, r = ctx.saved_tensors
        groups, kind = r.shape[-2], r.dtype
        wide = gate.to(kind)
        slope = torch.sigmoid(wide)
        silu = slope * wide
        normed = (silu * x).unflatten(-1, (groups, -1)).mul_(r)
        dy = dy.to(kind)
        dw = (dy * normed.flatten(-2)).flatten(0, -2).sum(0)
        g = (dy * weight).unflatten(-1, (groups, -1))
        inner = torch.linalg.vecdot(g, normed)[..., None].div_(-g.shape[-1])
        dh = torch.addcmul(g, normed, inner).mul_(r).flatten(-2)
        dz = torch.addcmul(slope, silu, 1 - slope).mul_(dh).mul_(x)  # silu' = s + silu (1 - s)
        return dh.mul_(silu).to(x.dtype), dz.to(gate.dtype), dw.to(weight.dtype), None, None


class _Compiled(torch.autograd.Function):
    """The compiled loops. The gate may be a slice of wider rows, as a fused projection leaves it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        rows = x.numel() // x.shape[-1]
        gate = gate if _even_rows(gate) else gate.contiguous()
        y, r = torch.empty_like(x), x.new_empty(rows, groups)
        run_blocks(_forward, -(-rows // _ROWS), 8 * x.numel(), *_arrays(x, gate, weight), *_rows(y), r.numpy(), eps)
        ctx.save_for_backward(x, gate, weight, r)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, gate, weight, r = ctx.saved_tensors
        blocks = -(-len(r) // _ROWS)
        dx, dgate, dw = torch.empty_like(x), torch.empty_like(x), x.new_zeros(blocks, x.shape[-1])
        arrays = (*_arrays(x, gate, weight), r.numpy(), *_rows(dy.contiguous(), dx, dgate), dw.numpy())
        run_blocks(_backward, blocks, 16 * x.numel(), *arrays)
        return dx, dgate, dw.sum(0), None, None


def _even_rows(x: Tensor) -> bool:
    """Whether the rows of x (..., D) lie at equal distances, each of them contiguous."""
    steps = [x.stride(n) == x.shape[n + 1] * x.stride(n + 1) for n in range(x.dim() - 2)]
    return x.dim() >= 2 and all(steps) and x.stride(-1) == 1


def _rows(*tensors: Tensor) -> list[Any]:
    return [t.detach().view(-1, t.shape[-1]).numpy() for t in tensors]


def _arrays(x: Tensor, gate: Tensor, weight: Tensor) -> list[Any]:
    """For the kernels. The gate goes as one flat array and the distance of its rows: only then are rows known to be contiguous."""
    (rows,) = _rows(x)
    step = gate.stride(-2)
    flat = gate.detach().as_strided(((len(rows) - 1) * step + x.shape[-1],), (1,))
    return [rows, flat.numpy(), step, weight.detach().numpy()]


@compiled
def _forward(first, last, x, gate, step, weight, y, r, eps):  # type: ignore[no-untyped-def]
    groups = r.shape[1]
    width = x.shape[1] // groups
    even = width - width % _LANES
    lanes = np.empty(_LANES, dtype=np.float32)
    for row in range(first * _ROWS, min(last * _ROWS, x.shape[0])):
        for group in range(groups):
            low, high = group * width, (group + 1) * width
            given, z, out, w = x[row, low:high], gate[row * step + low : row * step + high], y[row, low:high], weight[low:high]
            for i in range(width):
                out[i] = given[i] * z[i] * sigmoid(z[i])
            lanes[:] = 0.0
            for begin in range(0, even, _LANES):
                part = out[begin : begin + _LANES]
                for j in range(_LANES):
                    lanes[j] += part[j] * part[j]
            total = np.float64(0.0)
            for j in range(_LANES):
                total += lanes[j]
            for i in range(even, width):
                total += out[i] * out[i]
            scale = np.float32(1.0 / np.sqrt(total / width + eps))
            r[row, group] = scale
            for i in range(width):
                out[i] = out[i] * scale * w[i]


@compiled
def _backward(first, last, x, gate, step, weight, r, dy, dx, dgate, dw):  # type: ignore[no-untyped-def]
    groups = r.shape[1]
    width = x.shape[1] // groups
    even = width - width % _LANES
    lanes = np.empty(_LANES, dtype=np.float32)
    h, s = np.empty(width, dtype=np.float32), np.empty(width, dtype=np.float32)
    for block in range(first, last):
        for row in range(block * _ROWS, min((block + 1) * _ROWS, x.shape[0])):
            for group in range(groups):
                low, high = group * width, (group + 1) * width
                given, z, w, scale = x[row, low:high], gate[row * step + low : row * step + high], weight[low:high], r[row, group]
                grad, out, dz, sums = dy[row, low:high], dx[row, low:high], dgate[row, low:high], dw[block, low:high]
                for i in range(width):
                    slope = sigmoid(z[i])
                    s[i] = slope
                    h[i] = given[i] * z[i] * slope
                lanes[:] = 0.0
                for begin in range(0, even, _LANES):
                    part, g, v = h[begin : begin + _LANES], grad[begin : begin + _LANES], w[begin : begin + _LANES]
                    for j in range(_LANES):
                        lanes[j] += g[j] * v[j] * part[j]
                total = np.float64(0.0)
                for j in range(_LANES):
                    total += lanes[j]
                for i in range(even, width):
                    total += grad[i] * w[i] * h[i]
                inner = np.float32(total / width * scale * scale)
                for i in range(width):
                    dh = scale * (grad[i] * w[i] - h[i] * inner)
                    sums[i] += grad[i] * h[i] * scale
                    out[i] = dh * z[i] * s[i]
                    dz[i] = dh * given[i] * s[i] * (_ONE + z[i] * (_ONE - s[i]))
