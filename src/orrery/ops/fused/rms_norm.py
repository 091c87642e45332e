"""RMSNorm (arXiv 1910.07467) as a pure function with a backward of its own.

    y = x r w,  r = 1 / sqrt(mean(x^2) + eps)
    dx = r (g - x r^2 mean(g x)),  g = dy w        dw = sum over rows of dy x r

Autograd of the plain formula keeps four tensors of x's size; this keeps x and one number per row. The compiled backend
reads each row once from memory.

N rows, D features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, dot, run_blocks

SMALL = 1 << 14  # numbers below which a call of a compiled loop costs more than torch's own operations
_ROWS = 64  # rows of a block: its sums for dw are kept apart, so that threads never share one


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, backend: str | None = None) -> Tensor:
    """x (..., D), weight (D,) or None -> (..., D). Statistics in float32 at least."""
    plain = x.dtype == torch.float32 and weight is not None and weight.dtype == torch.float32
    offered = ("numba", "torch") if plain and x.numel() >= SMALL else ("torch",)
    if choose(backend, x, op="rms_norm", offered=offered) == "numba":
        return _CompiledRMSNorm.apply(x, weight, eps)
    if torch.is_grad_enabled() and (x.requires_grad or (weight is not None and weight.requires_grad)):
        return _RMSNorm.apply(x, weight, eps)
    if x.dtype in (torch.float32, torch.float64):
        return F.rms_norm(x, x.shape[-1:], weight, eps)  # the same formula in one call: a decode step pays for every call
    return rms_norm_reference(x, weight, eps)


def rms_norm_reference(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """The formula as it stands."""
    wide = x if x.dtype == torch.float64 else x.float()
    y = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    return y if weight is None else y * weight


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        r = torch.rsqrt(norm.square() / x.shape[-1] + eps)
        ctx.save_for_backward(x, weight, r)
        y = (wide * r).to(x.dtype)
        return y if weight is None else y.mul_(weight) if y.dtype == weight.dtype else y * weight

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, r = ctx.saved_tensors
        wide = x if x.dtype == torch.float64 else x.float()
        normed = wide * r
        g = dy.to(normed.dtype) if weight is None else dy * weight
        dw = None
        if weight is not None and ctx.needs_input_grad[1]:
            dw = (dy * normed).reshape(-1, x.shape[-1]).sum(0).to(weight.dtype)
        inner = (g * normed).mean(-1, keepdim=True)
        dx = torch.addcmul(g, normed, inner, value=-1).mul_(r)
        return dx.to(x.dtype), dw, None


class _CompiledRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        rows = x.detach().view(-1, x.shape[-1])
        y, r = torch.empty_like(x), x.new_empty(len(rows))
        arrays = [rows.numpy(), weight.detach().contiguous().numpy(), y.view_as(rows).numpy(), r.numpy(), eps]
        run_blocks(_forward, -(-len(rows) // _ROWS), x.numel(), *arrays)
        ctx.save_for_backward(x, weight, r)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, r = ctx.saved_tensors
        rows = x.view(-1, x.shape[-1])
        blocks = -(-len(rows) // _ROWS)
        dx, dw = torch.empty_like(x), x.new_zeros(blocks, x.shape[-1])
        given = [rows, weight.contiguous(), r, dy.contiguous().view_as(rows)]
        arrays = [t.detach().numpy() for t in given]
        run_blocks(_backward, blocks, 2 * x.numel(), *arrays, dx.view_as(rows).numpy(), dw.numpy())
        return dx, dw.sum(0), None


@compiled
def _forward(first, last, x, weight, y, r, eps):  # type: ignore[no-untyped-def]
    width = x.shape[1]
    for row in range(first * _ROWS, min(last * _ROWS, x.shape[0])):
        given, out = x[row], y[row]
        scale = np.float32(1.0 / np.sqrt(np.float64(dot(given, given)) / width + eps))
        r[row] = scale
        for i in range(width):
            out[i] = given[i] * scale * weight[i]


@compiled
def _backward(first, last, x, weight, r, dy, dx, dw):  # type: ignore[no-untyped-def]
    width = x.shape[1]
    weighted = np.empty(width, np.float32)
    for block in range(first, last):
        sums = dw[block]
        for row in range(block * _ROWS, min((block + 1) * _ROWS, x.shape[0])):
            given, grad, out, scale = x[row], dy[row], dx[row], r[row]
            for i in range(width):
                weighted[i] = grad[i] * weight[i]
            inner = np.float32(np.float64(dot(weighted, given)) / width * scale * scale)
            for i in range(width):
                out[i] = scale * (weighted[i] - given[i] * inner)
            for i in range(width):
                sums[i] += grad[i] * given[i] * scale
