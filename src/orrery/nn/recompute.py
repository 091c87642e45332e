"""Elementwise formulas whose intermediate results are computed again in the backward pass instead of being held.

A gate of five products keeps five tensors of (B,T,D) in autograd's hands; computed again from what went in, it keeps that
alone. What a matrix is multiplied with is held for the matrix' gradient: where it is such a formula's result, that can be
computed again, too (:func:`linear_of`). For formulas that cost little beside the products around them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def recompute(function: Callable[..., Any], *tensors: Tensor | None) -> Any:
    """`function(*tensors)`, a tensor or a tuple of tensors and None; only `tensors` are held for the backward pass.

    Gradients reach these tensors alone: parameters that the function reads must be among them. It draws no random numbers. A
    compiler decides for itself what it holds, and is left to.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(*tensors)
    return _Recomputed.apply(function, *tensors)


def linear_of(function: Callable[..., Tensor], linear: nn.Module, *tensors: Tensor | None) -> Tensor:
    """`linear(function(*tensors))`, without holding what `function` gives for the gradient of the matrix.

    As :func:`recompute`, but the product is not made again: the backward pass computes `function` a second time and nothing
    else. What is no plain linear map (an adapter, a quantised one) or is being watched by hooks is called as it is.
    """
    return linears_of(lambda *given: (function(*given),), (linear,), *tensors)[0]


def linears_of(
    function: Callable[..., Sequence[Tensor]], linears: Sequence[nn.Module], *tensors: Tensor | None
) -> tuple[Tensor, ...]:
    """The same for a function of several results, each with a linear map of its own."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not all(map(_bare, linears)):
        return tuple(linear(y) for linear, y in zip(linears, function(*tensors), strict=True))
    maps = [parameter for linear in linears for parameter in (linear.weight, linear.bias)]
    return cast("tuple[Tensor, ...]", _LinearsOf.apply(function, len(linears), *maps, *tensors))


def _bare(linear: nn.Module) -> bool:
    return type(linear) is nn.Linear and not linear._forward_hooks and not linear._forward_pre_hooks


def _cast_now(ctx: Any, tensors: tuple[Tensor | None, ...]) -> None:
    """Remember how this forward pass casts."""
    device = next(x.device.type for x in tensors if x is not None)
    ctx.cast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)


def _again(ctx: Any, tensors: tuple[Tensor | None, ...], needed: tuple[bool, ...]) -> tuple[list[Tensor | None], Any]:
    """The leaves that stand for `tensors`, and the function of them, with its graph."""
    leaves = [x if x is None else x.detach().requires_grad_(need) for x, need in zip(tensors, needed, strict=True)]
    device, dtype, enabled = ctx.cast
    with torch.enable_grad(), torch.autocast(device, dtype, enabled):
        return leaves, ctx.function(*leaves)


class _LinearsOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Sequence[Tensor]], count: int, *given: Tensor | None) -> tuple[Tensor, ...]:
        maps, tensors = given[: 2 * count], given[2 * count :]
        ctx.function, ctx.count = function, count
        _cast_now(ctx, tensors)
        ctx.save_for_backward(*maps[::2], *tensors)
        ctx.set_materialize_grads(False)
        pairs = zip(function(*tensors), maps[::2], maps[1::2], strict=True)
        return tuple(F.linear(y, cast(Tensor, weight), bias) for y, weight, bias in pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        count = ctx.count
        saved = ctx.saved_tensors  # once: a recomputed block hands them out only once
        weights, tensors = saved[:count], saved[count:]
        wanted, needed = ctx.needs_input_grad[2 : 2 + 2 * count], ctx.needs_input_grad[2 + 2 * count :]
        leaves, found = _again(ctx, tensors, needed)
        maps: list[Tensor | None] = []
        pairs: list[tuple[Tensor, Tensor]] = []
        for n, (weight, y, dz) in enumerate(zip(weights, found, grads, strict=True)):
            if dz is None:
                maps += [None, None]
                continue
            rows = dz.reshape(-1, dz.shape[-1])
            flat = y.detach().reshape(len(rows), -1).to(dz.dtype)
            maps.append((rows.t() @ flat).to(weight.dtype) if wanted[2 * n] else None)
            maps.append(rows.sum(0).to(weight.dtype) if wanted[2 * n + 1] else None)
            if y.requires_grad:
                pairs.append((y, (rows @ weight.to(dz.dtype)).view(y.shape).to(y.dtype)))
        into = [x for x, need in zip(leaves, needed, strict=True) if need and x is not None]
        if not pairs or not into:
            return None, None, *maps, *(None for _ in needed)
        slopes = iter(torch.autograd.grad([y for y, _ in pairs], into, [dy for _, dy in pairs], allow_unused=True))
        return None, None, *maps, *(next(slopes) if need else None for need in needed)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], *tensors: Tensor | None) -> Any:
        ctx.function = function
        _cast_now(ctx, tensors)
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return function(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        leaves, found = _again(ctx, ctx.saved_tensors, needed)
        outputs = (found,) if isinstance(found, Tensor) else found
        pairs = [(y, dy) for y, dy in zip(outputs, grads, strict=True) if dy is not None and y.requires_grad]
        wanted = [x for x, need in zip(leaves, needed, strict=True) if need and x is not None]
        if not pairs:
            return None, *(None for _ in needed)
        slopes = iter(torch.autograd.grad([y for y, _ in pairs], wanted, [dy for _, dy in pairs], allow_unused=True))
        return None, *(next(slopes) if need else None for need in needed)
