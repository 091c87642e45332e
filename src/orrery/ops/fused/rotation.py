"""Turning pairs of neighbouring features by given angles, for some of the heads, in one pass with its gradient.

    (x_{2i}, x_{2i+1}) <- (x_{2i} c - x_{2i+1} s, x_{2i} s + x_{2i+1} c)   for i < R/2 of the first M of N heads; the rest stays

Queries and keys are turned and values are not, but all three are slices of one projection. One pass over all of them
leaves a single gradient to give back; turning a slice costs a tensor of zeros, a copy and a sum of its size in addition.
The backward of a turn is the turn back, so nothing but the table is kept.

B batch, T time, N heads, K head dimension, R turned dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, run_blocks

SMALL = 1 << 14  # numbers below which a call of a compiled loop costs more than torch's own operations


def turn(x: Tensor, table: Tensor, heads: int, backend: str | None = None) -> Tensor:
    """Turn the first R dimensions of the first `heads` heads of x (B,T,N,K) by complex table (T,R/2) or (B,T,R/2)."""
    plain = x.dtype == torch.float32 and table.dtype == torch.complex64 and x.numel() >= SMALL
    if choose(backend, x, op="rotation", offered=("numba", "torch") if plain else ("torch",)) == "numba":
        return _Compiled.apply(x, table, heads)
    if torch.is_grad_enabled() and x.requires_grad:  # a decode step pays for every call
        return _Turn.apply(x, table, heads)
    return turn_reference(x, table, heads)


def turn_reference(x: Tensor, table: Tensor, heads: int) -> Tensor:
    """The formula as complex products."""
    rotated, part = 2 * table.shape[-1], x[:, :, :heads]
    wide = part if part.dtype in (torch.float32, torch.float64) else part.float()
    pairs = torch.view_as_complex(wide[..., :rotated].unflatten(-1, (-1, 2)))
    y = torch.view_as_real(pairs * table[..., None, :]).flatten(-2).to(x.dtype)
    if rotated < x.shape[-1]:
        y = torch.cat([y, part[..., rotated:]], -1)
    return y if heads == x.shape[2] else torch.cat([y, x[:, :, heads:]], 2)


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(table)
        ctx.heads = heads
        return turn_reference(x, table, heads)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (table,) = ctx.saved_tensors
        return turn_reference(dy.contiguous(), table.conj().resolve_conj(), ctx.heads), None, None


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, heads: int) -> Tensor:
        table = torch.view_as_real(table.contiguous())
        ctx.save_for_backward(table)
        ctx.heads = heads
        return _run(x, table, heads, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (table,) = ctx.saved_tensors
        return _run(dy, table, ctx.heads, -1.0), None, None


def _run(x: Tensor, table: Tensor, heads: int, sign: float) -> Tensor:
    x = x.detach().contiguous()
    y = torch.empty_like(x)
    rows = [t.flatten(0, 1).numpy() for t in (x, y)]
    angles = table.reshape(-1, *table.shape[-2:])
    run_blocks(_turn, len(rows[0]), 2 * x.numel(), *rows, angles.numpy(), heads, np.float32(sign))
    return y


@compiled
def _turn(first, last, x, y, table, turned, sign):  # type: ignore[no-untyped-def]
    heads, size = x.shape[1:]
    half = table.shape[1]
    for n in range(first, last):
        angles = table[n % len(table)]
        for h in range(heads):
            given, out = x[n, h], y[n, h]
            begin = 0
            if h < turned:
                begin = 2 * half
                for i in range(half):
                    c, s, even, odd = angles[i, 0], sign * angles[i, 1], given[2 * i], given[2 * i + 1]
                    out[2 * i] = even * c - odd * s
                    out[2 * i + 1] = even * s + odd * c
            for i in range(begin, size):
                out[i] = given[i]
