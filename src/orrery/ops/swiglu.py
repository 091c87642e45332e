"""Gated linear unit with SiLU as a pure function that keeps only its input.

    y = silu(a) * b,   [a; b] = x split in two        (SwiGLU, arXiv 2002.05202)
    da = dy b s (1 + a (1 - s)),  db = dy a s,  s = sigmoid(a)

Both backends compute the same formula; the compiled one reads and writes every number once.

N rows, F hidden features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, run_blocks, sigmoid

SMALL = 1 << 14  # numbers below which a call of a compiled loop costs more than torch's own operations


def swiglu(x: Tensor, backend: str | None = None) -> Tensor:
    """Gate the second half of x (..., 2F) with the SiLU of the first: (..., F)."""
    offered = ("numba", "torch") if x.dtype == torch.float32 and x.numel() >= SMALL else ("torch",)
    if choose(backend, x, op="swiglu", offered=offered) == "numba":
        return _CompiledSwiGLU.apply(x)
    if torch.is_grad_enabled() and x.requires_grad:
        return _SwiGLU.apply(x)
    a, b = x.chunk(2, -1)
    return F.silu(a).mul_(b)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        a, b = x.chunk(2, -1)
        return F.silu(a).mul_(b)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        a, b = x.chunk(2, -1)
        return torch.cat([torch.ops.aten.silu_backward(dy * b, a), F.silu(a).mul_(dy)], -1)


class _CompiledSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        y = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        rows = x.detach().view(-1, x.shape[-1])
        run_blocks(_forward, len(rows), x.numel(), rows.numpy(), y.view(len(rows), -1).numpy())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        rows = x.view(-1, x.shape[-1])
        arrays = [rows.numpy(), dy.contiguous().view(len(rows), -1).numpy(), dx.view_as(rows).numpy()]
        run_blocks(_backward, len(rows), 2 * x.numel(), *arrays)
        return dx


@compiled
def _forward(first, last, x, y):  # type: ignore[no-untyped-def]
    half = y.shape[1]
    for row in range(first, last):
        a, b, out = x[row, :half], x[row, half:], y[row]
        for i in range(half):
            out[i] = a[i] * sigmoid(a[i]) * b[i]


@compiled
def _backward(first, last, x, dy, dx):  # type: ignore[no-untyped-def]
    half = dy.shape[1]
    one = np.float32(1.0)
    for row in range(first, last):
        a, b, g, da, db = x[row, :half], x[row, half:], dy[row], dx[row, :half], dx[row, half:]
        for i in range(half):
            s = sigmoid(a[i])
            silu = a[i] * s
            db[i] = g[i] * silu
            da[i] = g[i] * b[i] * (s + silu * (one - s))
