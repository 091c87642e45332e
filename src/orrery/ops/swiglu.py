"""Gated linear unit with SiLU as a pure function that keeps only its input.

    y = silu(a) * b,   [a; b] = x split in two        (SwiGLU, arXiv 2002.05202)
    da = dy b s (1 + a (1 - s)),  db = dy a s,  s = sigmoid(a)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def swiglu(x: Tensor) -> Tensor:
    """x (..., 2F) -> (..., F)."""
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
        dx = torch.empty_like(x)
        da, db = dx.chunk(2, -1)
        torch.mul(F.silu(a), dy, out=db) if db.is_contiguous() else db.copy_(F.silu(a).mul_(dy))
        da.copy_(torch.ops.aten.silu_backward(dy * b, a))
        return dx
