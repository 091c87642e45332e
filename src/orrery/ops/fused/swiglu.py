"""Gated linear units with SiLU or GELU as pure functions that keep only their input.

    y = silu(a) * b,   [a; b] = x split in two        (SwiGLU, arXiv 2002.05202)
    da = dy b s (1 + a (1 - s)),  db = dy a s,  s = sigmoid(a)
    y = gelu(a) * b,   gelu(a) = a (1 + t) / 2,  t = tanh(sqrt(2 / pi) (a + 0.044715 a^3))        (GeGLU, same paper)
    da = dy b ((1 + t) + a (1 - t^2) sqrt(2 / pi) (1 + 3 * 0.044715 a^2)) / 2,  db = dy gelu(a)

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
from orrery.ops.compiled import compiled, run_blocks, sigmoid, tanh

SMALL = 1 << 14  # numbers below which a call of a compiled loop costs more than torch's own operations
_ONE, _HALF, _CUBE, _THREE = np.float32(1.0), np.float32(0.5), np.float32(0.044715), np.float32(3 * 0.044715)
_ROOT = np.float32((2 / np.pi) ** 0.5)


def swiglu(x: Tensor, backend: str | None = None) -> Tensor:
    """Gate the second half of x (..., 2F) with the SiLU of the first: (..., F)."""
    if _compiled(x, backend, "swiglu"):
        return _CompiledSwiGLU.apply(x)
    if torch.is_grad_enabled() and x.requires_grad:
        return _SwiGLU.apply(x)
    a, b = x.chunk(2, -1)
    return F.silu(a).mul_(b)


def geglu(x: Tensor, backend: str | None = None) -> Tensor:
    """Gate the second half of x (..., 2F) with the GELU (its tanh form) of the first: (..., F)."""
    if _compiled(x, backend, "geglu"):
        return _CompiledGeGLU.apply(x)
    a, b = x.chunk(2, -1)
    return F.gelu(a, approximate="tanh") * b


def _compiled(x: Tensor, backend: str | None, op: str) -> bool:
    offered = ("numba", "torch") if x.dtype == torch.float32 and x.numel() >= SMALL else ("torch",)
    return choose(backend, x, op=op, offered=offered) == "numba"


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
        return _run_forward(ctx, x, _forward)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return _run_backward(ctx, dy, _backward)


class _CompiledGeGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _run_forward(ctx, x, _gelu_forward)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return _run_backward(ctx, dy, _gelu_backward)


def _run_forward(ctx: Any, x: Tensor, kernel: Any) -> Tensor:
    x = x.contiguous()
    ctx.save_for_backward(x)
    y = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
    rows = x.detach().view(-1, x.shape[-1])
    run_blocks(kernel, len(rows), x.numel(), rows.numpy(), y.view(len(rows), -1).numpy())
    return y


def _run_backward(ctx: Any, dy: Tensor, kernel: Any) -> Tensor:
    (x,) = ctx.saved_tensors
    dx = torch.empty_like(x)
    rows = x.view(-1, x.shape[-1])
    arrays = [rows.numpy(), dy.contiguous().view(len(rows), -1).numpy(), dx.view_as(rows).numpy()]
    run_blocks(kernel, len(rows), 2 * x.numel(), *arrays)
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


@compiled
def _gelu_forward(first, last, x, y):  # type: ignore[no-untyped-def]
    half = y.shape[1]
    for row in range(first, last):
        a, b, out = x[row, :half], x[row, half:], y[row]
        for i in range(half):
            out[i] = _HALF * a[i] * (_ONE + tanh(_ROOT * (a[i] + _CUBE * a[i] * a[i] * a[i]))) * b[i]


@compiled
def _gelu_backward(first, last, x, dy, dx):  # type: ignore[no-untyped-def]
    half = dy.shape[1]
    for row in range(first, last):
        a, b, g, da, db = x[row, :half], x[row, half:], dy[row], dx[row, :half], dx[row, half:]
        for i in range(half):
            square = a[i] * a[i]
            t = tanh(_ROOT * (a[i] + _CUBE * a[i] * square))
            phi = _HALF * (_ONE + t)
            db[i] = g[i] * a[i] * phi
            da[i] = g[i] * b[i] * (phi + _HALF * a[i] * (_ONE - t * t) * _ROOT * (_ONE + _THREE * square))
