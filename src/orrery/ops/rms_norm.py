"""RMSNorm (arXiv 1910.07467) as a pure function with a backward of its own.

    y = x r w,  r = 1 / sqrt(mean(x^2) + eps)
    dx = r (g - x r^2 mean(g x)),  g = dy w        dw = sum over rows of dy x r

Autograd of the plain formula keeps four tensors of x's size; this keeps x and one number per row.

N rows, D features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x (..., D), weight (D,) or None -> (..., D). Statistics in float32 at least."""
    if torch.is_grad_enabled() and (x.requires_grad or (weight is not None and weight.requires_grad)):
        return _RMSNorm.apply(x, weight, eps)
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
