"""Linear maps of formulas that are computed again in the backward pass instead of being held.

What a matrix is multiplied with is held for the matrix' gradient. Where it is the result of a formula that costs little beside
the product, it can be computed again, as what stands between recurrences is (:func:`orrery.ops.recompute.recompute`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from orrery.nn.unchanged import listened_to
from orrery.ops.recompute import again, cast_now, held, hold, recompute

__all__ = ["block_linear", "linear_of", "linears_of", "recompute", "small_linear"]


def linear_of(function: Callable[..., Tensor], linear: nn.Module, *tensors: Tensor | None) -> Tensor:
    """`linear(function(*tensors))`, without holding what `function` gives for the gradient of the matrix.

    As :func:`recompute`, but the product is not made again: the backward pass computes `function` a second time and nothing
    else. What is no plain linear map (an adapter, a quantised one) or is being watched by hooks is called as it is.
    """
    return linears_of(lambda *given: (function(*given),), (linear,), *tensors)[0]


def linears_of(
    function: Callable[..., Sequence[Tensor]], linears: Sequence[nn.Module | Tensor], *tensors: Tensor | None
) -> tuple[Tensor, ...]:
    """The same for a function of several results, each with a linear map of its own, or a matrix (O,I)."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not all(map(_bare, linears)):
        pairs = zip(linears, function(*tensors), strict=True)
        return tuple(F.linear(y, linear) if isinstance(linear, Tensor) else linear(y) for linear, y in pairs)
    maps = [each for linear in linears for each in ((linear, None) if isinstance(linear, Tensor) else (linear.weight, linear.bias))]
    return cast("tuple[Tensor, ...]", _LinearsOf.apply(function, len(linears), *maps, *tensors))


def small_linear(linear: nn.Module, x: Tensor) -> Tensor:
    """`linear(x)`, whose product itself is made again: for a map of few rows or columns between larger ones."""
    maps = cast(nn.Linear, linear)
    return cast(Tensor, recompute(F.linear, x, maps.weight, maps.bias) if _bare(linear) else linear(x))


def block_linear(x: Tensor, blocks: Tensor) -> Tensor:
    """Tokens x (B,T,G*I) times block-diagonal matrices (G,I,O): (G,B*T,O), holding x as :func:`orrery.ops.recompute.hold` does."""
    return cast(Tensor, _BlockLinear.apply(x, blocks))


def _bare(linear: nn.Module | Tensor) -> bool:
    plain = isinstance(linear, Tensor) or type(linear) is nn.Linear
    return plain and not (isinstance(linear, nn.Module) and listened_to((linear,), back=True))


class _LinearsOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Sequence[Tensor]], count: int, *given: Tensor | None) -> tuple[Tensor, ...]:
        maps, tensors = given[: 2 * count], given[2 * count :]
        ctx.function, ctx.count = function, count
        cast_now(ctx, tensors)
        hold(ctx, *maps[::2], *tensors)
        ctx.set_materialize_grads(False)
        pairs = zip(function(*tensors), maps[::2], maps[1::2], strict=True)
        return tuple(F.linear(y, cast(Tensor, weight), bias) for y, weight, bias in pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        count = ctx.count
        saved = held(ctx)
        weights, tensors = saved[:count], saved[count:]
        wanted, needed = ctx.needs_input_grad[2 : 2 + 2 * count], ctx.needs_input_grad[2 + 2 * count :]
        leaves, found = again(ctx, tensors, needed)
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


class _BlockLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Tensor) -> Tensor:
        hold(ctx, x, blocks)
        return torch.bmm(_in_blocks(x, len(blocks)), blocks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, blocks = held(ctx)
        dx = torch.bmm(dy, blocks.transpose(1, 2)).transpose(0, 1).reshape(x.shape) if ctx.needs_input_grad[0] else None
        return dx, torch.bmm(_in_blocks(x, len(blocks)).transpose(1, 2), dy) if ctx.needs_input_grad[1] else None


def _in_blocks(x: Tensor, count: int) -> Tensor:
    return x.flatten(0, 1).unflatten(-1, (count, -1)).transpose(0, 1)
