"""Many small linear maps, each on its own rows: what a mixture of experts computes once the router has chosen.

    dispatch    xs_j = x_{token(j)}              the rows of all N k choices, sorted by expert
    grouped     y_j  = W_{expert(j)} xs_j        one matrix product per expert, on neighbouring rows
    combine     y_n  = sum_i gate_{n,i} ys_{place(n,i)}

Backward: dispatch adds the k copies of a token, grouped gives dW_e = dy_e^T x_e and dx_e = dy_e W_e into one buffer each,
combine is a permutation; no scatter with additions anywhere, so that results do not depend on an order of summation.
:func:`experts` is the three with two grouped maps and an activation between. It keeps x and the hidden rows h before the
activation alone: dispatch and activation are done again, and a gate's gradient is <W2^T dy, act(h)>, which needs no outputs.
A choice that is dropped carries the expert number E; it is sorted last, computed nowhere, and adds 0.

N tokens, k choices a token, E experts, D inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Dispatch(NamedTuple):
    """Where the rows go: `order` (Nk,) choices sorted by expert, `place` (Nk,) its inverse, `counts` rows of each expert."""

    order: Tensor
    place: Tensor
    counts: list[int]
    choices: int


def plan_dispatch(chosen: Tensor, experts: int) -> Dispatch:
    """The sorting of chosen (N,k) int64, expert numbers below `experts`, or `experts` for none; earlier tokens first."""
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    counts = torch.bincount(flat, minlength=experts + 1)[:experts].tolist()
    return Dispatch(order, place, counts, chosen.shape[1])


def drop_beyond(chosen: Tensor, experts: int, capacity: int) -> Tensor:
    """Chosen (N,k) with `experts` in place of what comes after the first `capacity` choices of an expert (2006.16668).

    First choices go before second ones, and earlier tokens before later ones.
    """
    flat = chosen.t().flatten()
    order = flat.argsort(stable=True)
    begins = torch.bincount(flat, minlength=experts + 1).cumsum(0).roll(1)
    begins[0] = 0
    rank = torch.arange(len(flat), device=flat.device) - begins[flat[order]]
    kept = torch.empty_like(flat, dtype=torch.bool)
    kept[order] = rank < capacity
    return torch.where(kept, flat, experts).view(chosen.shape[1], -1).t()


def dispatch(x: Tensor, plan: Dispatch) -> Tensor:
    """X (N,D) -> the rows of every choice sorted by expert (Nk,D)."""
    return _Dispatch.apply(x, plan.order, plan.place, plan.choices)


def combine(ys: Tensor, gates: Tensor, plan: Dispatch) -> Tensor:
    """Sorted rows (Nk,O) and gates (N,k) -> (N,O)."""
    rows = _Permute.apply(ys, plan.place, plan.order)
    return torch.matmul(gates.to(ys.dtype)[:, None], rows.view(*gates.shape, -1))[:, 0]


def grouped_linear(x: Tensor, weight: Tensor, counts: Sequence[int]) -> Tensor:
    """X (M,D) sorted by group, weight (E,O,D), counts of rows per group -> (M,O); rows beyond the sum of counts give 0."""
    if torch.is_autocast_enabled(x.device.type):
        kind = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(kind), weight.to(kind)
    return _GroupedLinear.apply(x, weight, list(counts))


def grouped_linear_reference(x: Tensor, weight: Tensor, counts: Sequence[int]) -> Tensor:
    """The same, row by row."""
    owners = [expert for expert, count in enumerate(counts) for _ in range(count)]
    rows = [weight[expert] @ row for expert, row in zip(owners, x, strict=False)]
    rows += [x.new_zeros(weight.shape[1])] * (len(x) - len(rows))
    return torch.stack(rows)


def experts(
    x: Tensor, gates: Tensor, wide: Tensor, out: Tensor, plan: Dispatch, activate: Callable[[Tensor], Tensor]
) -> Tensor:
    """Rows through their experts: sum_i gate_i out_i act(wide_i x).

    Args:
        x: (N,D). gates: (N,k), of the choices that `plan` was made from.
        wide: (E,F,D). out: (E,O,F'), where `activate` takes (M,F) to (M,F'), row by row.

    Returns:
        (N,O).
    """
    if torch.is_autocast_enabled(x.device.type):
        kind = torch.get_autocast_dtype(x.device.type)
        x, wide, out = x.to(kind), wide.to(kind), out.to(kind)
    return _Experts.apply(x, gates.to(x.dtype), wide, out, plan, activate)


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gates: Tensor, wide: Tensor, out: Tensor, plan: Dispatch, activate: Callable[[Tensor], Tensor]
    ) -> Tensor:
        h = _products(x.index_select(0, plan.order // plan.choices), wide, plan.counts)
        ys = _products(activate(h), out, plan.counts).index_select(0, plan.place)
        ctx.save_for_backward(x, gates, wide, out, h)
        ctx.plan, ctx.activate = plan, activate
        return torch.matmul(gates[:, None], ys.view(*gates.shape, -1))[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gates, wide, out, h = ctx.saved_tensors
        plan: Dispatch = ctx.plan
        of_row = plan.order // plan.choices
        with torch.enable_grad():
            h = h.detach().requires_grad_()
            a = ctx.activate(h)
        gate = gates.flatten().index_select(0, plan.order)[:, None]
        dys = dy.contiguous().index_select(0, of_row)
        da = _products(dys, out.transpose(1, 2), plan.counts)
        dgates = (da * a.detach()).sum(-1).index_select(0, plan.place).view_as(gates)
        dout = _weight_gradients(dys.mul_(gate), a.detach(), out, plan.counts)
        del dys
        (dh,) = torch.autograd.grad(a, h, da.mul_(gate))
        del a, da
        dwide = _weight_gradients(dh, x.index_select(0, of_row), wide, plan.counts)
        dx = _products(dh, wide.transpose(1, 2), plan.counts).index_select(0, plan.place)
        return dx.view(len(x), plan.choices, -1).sum(1), dgates, dwide, dout, None, None


def _products(x: Tensor, weight: Tensor, counts: Sequence[int]) -> Tensor:
    """X (M,D) sorted by group times weight (E,O,D); 0 in rows beyond the groups."""
    y = x.new_empty(len(x), weight.shape[1])
    begin = 0
    for expert, count in enumerate(counts):
        if count:
            torch.mm(x[begin : begin + count], weight[expert].t(), out=y[begin : begin + count])
            begin += count
    y[begin:] = 0
    return y


def _weight_gradients(dy: Tensor, x: Tensor, weight: Tensor, counts: Sequence[int]) -> Tensor:
    """dW_e = dy_e^T x_e (E,O,D)."""
    dw = torch.empty_like(weight)
    begin = 0
    for expert, count in enumerate(counts):
        if count:
            torch.mm(dy[begin : begin + count].t(), x[begin : begin + count], out=dw[expert])
        else:
            dw[expert] = 0
        begin += count
    return dw


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, place: Tensor, choices: int) -> Tensor:
        ctx.save_for_backward(place)
        ctx.choices = choices
        return x.index_select(0, order // choices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        (place,) = ctx.saved_tensors
        return dy.index_select(0, place).view(-1, ctx.choices, dy.shape[1]).sum(1), None, None, None


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return dy.index_select(0, back), None, None


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, counts: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.counts = counts
        return _products(x, weight, counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        dy = dy.contiguous()
        dx = _products(dy, weight.transpose(1, 2), ctx.counts) if ctx.needs_input_grad[0] else None
        dw = _weight_gradients(dy, x, weight, ctx.counts) if ctx.needs_input_grad[1] else None
        return dx, dw, None
