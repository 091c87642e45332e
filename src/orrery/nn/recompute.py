"""Elementwise formulas whose intermediate results are computed again in the backward pass instead of being held.

A gate of five products keeps five tensors of (B,T,D) in autograd's hands; computed again from what went in, it keeps that
alone. For formulas that cost little beside the products around them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def recompute(function: Callable[..., Any], *tensors: Tensor | None) -> Any:
    """`function(*tensors)`, a tensor or a tuple of tensors and None; only `tensors` are held for the backward pass.

    Gradients reach these tensors alone: parameters that the function reads must be among them. It draws no random numbers. A
    compiler decides for itself what it holds, and is left to.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(*tensors)
    return _Recomputed.apply(function, *tensors)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], *tensors: Tensor | None) -> Any:
        ctx.function = function
        device = next(x.device.type for x in tensors if x is not None)
        ctx.cast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return function(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        leaves = [
            x if x is None else x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, needed, strict=True)
        ]
        device, dtype, enabled = ctx.cast
        with torch.enable_grad(), torch.autocast(device, dtype, enabled):
            found = ctx.function(*leaves)
        outputs = (found,) if isinstance(found, Tensor) else found
        pairs = [(y, dy) for y, dy in zip(outputs, grads, strict=True) if dy is not None and y.requires_grad]
        wanted = [x for x, need in zip(leaves, needed, strict=True) if need and x is not None]
        if not pairs:
            return None, *(None for _ in needed)
        slopes = iter(torch.autograd.grad([y for y, _ in pairs], wanted, [dy for _, dy in pairs], allow_unused=True))
        return None, *(next(slopes) if need else None for need in needed)
