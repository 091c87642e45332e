"""RMSNorm of a gated input (Mamba-2, arXiv 2405.21060, section 7): one function with a backward of its own.

    h = x silu(z),  y = h r w,  r = 1 / sqrt(mean(h^2) + eps), the mean over each of N equal parts of a row
    dh = r (g - h r^2 mean(g h)),  g = dy w;   dx = dh silu(z),   dz = dh x silu'(z),   dw = sum over rows of dy h r

Autograd of the plain formula keeps seven tensors of x's size; this keeps x, z and one number per part of a row.

D features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int = 1) -> Tensor:
    """Gate x (..., D) with silu(gate (..., D)), normalise each of `groups` parts of D, scale by weight (D,).

    Statistics in float32 at least; the result has x's type.
    """
    if torch.is_grad_enabled() and (x.requires_grad or gate.requires_grad or weight.requires_grad):
        return _Gated.apply(x, gate, weight, eps, groups)
    return gated_rms_norm_reference(x, gate, weight, eps, groups)


def gated_rms_norm_reference(x: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int = 1) -> Tensor:
    """The formula as it stands."""
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    h = F.silu(gate.to(kind)) * x.to(kind)
    parts = h.unflatten(-1, (groups, -1))
    r = torch.rsqrt(torch.linalg.vecdot(parts, parts)[..., None] / parts.shape[-1] + eps)
    return ((parts * r).flatten(-2) * weight).to(x.dtype)


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
        sigmoid = torch.sigmoid(wide)
        silu = sigmoid * wide
        normed = (silu * x).unflatten(-1, (groups, -1)).mul_(r)
        dy = dy.to(kind)
        dw = (dy * normed.flatten(-2)).flatten(0, -2).sum(0)
        g = (dy * weight).unflatten(-1, (groups, -1))
        inner = torch.linalg.vecdot(g, normed)[..., None].div_(-g.shape[-1])
        dh = torch.addcmul(g, normed, inner).mul_(r).flatten(-2)
        dz = torch.addcmul(sigmoid, silu, 1 - sigmoid).mul_(dh).mul_(x)  # silu' = s + silu (1 - s)
        return dh.mul_(silu).to(x.dtype), dz.to(gate.dtype), dw.to(weight.dtype), None, None
