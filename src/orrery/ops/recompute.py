"""Elementwise formulas whose results are computed again in the backward pass instead of being held.

A gate of five products keeps five tensors of (B,T,D) in autograd's hands; computed again from what went in, it keeps that
alone. And what a recurrence is given it need not hold either where it comes from here: a tensor that :func:`recompute` has made is
known by a mark, how it is made and which of the results it is. :func:`hold` keeps that in the place of the tensor, :func:`held` gets
the tensor back; what makes it does so once for all who ask, and for its own gradient. So gates, features and convolutions are
held by nobody, and computed once more than if they were. For formulas that cost little beside the products around them.

In a :class:`torch.autograd.Function`: ``hold(ctx, a, b)`` for ``ctx.save_for_backward(a, b)``, ``a, b = held(ctx)`` for ``ctx.saved_tensors``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class _Mark(NamedTuple):
    node: Any
    number: int
    version: int

    def fits(self, x: Tensor) -> bool:
        """Whether x is still what was made, neither written to nor cut off from its history."""
        return self.version == x._version and x.grad_fn is self.node


def recompute(function: Callable[..., Any], *tensors: Tensor | None) -> Any:
    """`function(*tensors)`, a tensor or a tuple of tensors and None; only `tensors` are held for the backward pass.

    Gradients reach these tensors alone: parameters that the function reads must be among them. It draws no random numbers. A
    compiler decides for itself what it holds, and is left to.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(*tensors)
    nodes: list[Any] = []
    found = _Recomputed.apply(function, nodes, *tensors)
    _mark((found,) if isinstance(found, Tensor) else found, nodes[0])
    return found


def with_ones(v: Tensor) -> Tensor:
    """v (B,T,H,V) and a 1 behind it (B,T,H,V+1), with which a recurrence sums its weights; not held beside v."""
    return cast(Tensor, recompute(partial(F.pad, pad=(0, 1), value=1.0), v))


def hold(ctx: Any, *tensors: Tensor | None) -> None:
    """Keep tensors, or how they are made; what was written to since it was made is kept itself."""
    marks: list[_Mark | None] = [None] * len(tensors)
    if not torch.compiler.is_compiling():
        for n, x in enumerate(tensors):
            own = None if x is None else getattr(x, "_made", None)
            marks[n] = own if own is not None and own.fits(x) else None
    ctx.marks = tuple(marks)
    ctx.save_for_backward(*(x if own is None else None for own, x in zip(marks, tensors, strict=True)))


def held(ctx: Any) -> tuple[Any, ...]:
    """The tensors that :func:`hold` was given. To be asked for once: recomputed blocks hand out what they saved only once."""
    return tuple(x if own is None else _made(own.node, own.number) for own, x in zip(ctx.marks, ctx.saved_tensors, strict=True))


def cast_now(ctx: Any, tensors: tuple[Tensor | None, ...]) -> None:
    """Remember how this forward pass casts, for :func:`again`."""
    device = next(x.device.type for x in tensors if x is not None)
    ctx.cast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)


def again(ctx: Any, tensors: tuple[Tensor | None, ...], needed: tuple[bool, ...]) -> tuple[list[Tensor | None], Any]:
    """The leaves that stand for `tensors`, and `ctx.function` of them, with its graph."""
    leaves = [x if x is None else x.detach().requires_grad_(need) for x, need in zip(tensors, needed, strict=True)]
    device, dtype, enabled = ctx.cast
    with torch.enable_grad(), torch.autocast(device, dtype, enabled):
        return leaves, ctx.function(*leaves)


def _mark(found: Iterable[Tensor | None], node: Any) -> None:
    """Say of tensors that `node` computes them again, by their number, outside of the graph."""
    for number, x in enumerate(found):
        if x is not None and x.requires_grad:
            x._made = _Mark(node, number, x._version)  # type: ignore[attr-defined]


def _found(ctx: Any) -> tuple[list[Tensor | None], Sequence[Any]]:
    """Leaves and results of what is computed again, once for all who ask until the gradient has been taken."""
    if ctx.found is None:
        leaves, found = again(ctx, held(ctx), ctx.needs_input_grad[2:])
        ctx.found = leaves, (found,) if isinstance(found, Tensor) else found
    return cast("tuple[list[Tensor | None], Sequence[Any]]", ctx.found)


def _made(ctx: Any, number: int) -> Tensor:
    return cast(Tensor, _found(ctx)[1][number]).detach()


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], nodes: list[Any], *tensors: Tensor | None) -> Any:
        ctx.function, ctx.found = function, None
        nodes.append(ctx)
        cast_now(ctx, tensors)
        hold(ctx, *tensors)
        ctx.set_materialize_grads(False)
        return function(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        leaves, outputs = _found(ctx)
        ctx.found = None
        pairs = [(y, dy) for y, dy in zip(outputs, grads, strict=True) if dy is not None and y.requires_grad]
        wanted = [x for x, need in zip(leaves, needed, strict=True) if need and x is not None]
        if not pairs:
            return None, None, *(None for _ in needed)
        slopes = iter(torch.autograd.grad([y for y, _ in pairs], wanted, [dy for _, dy in pairs], allow_unused=True))
        return None, None, *(next(slopes) if need else None for need in needed)
