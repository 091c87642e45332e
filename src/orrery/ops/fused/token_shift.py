"""RWKV's token shift: mixtures of a token with the one before it, one ratio per channel and mixture.

Equation (2305.13048, section 3.1): ``y_nt = r_n x_t + (1 - r_n) x_{t-1}``, where the token before a document is 0.

Gradients: ``dx_t = sum_n r_n dy_nt + (1 - r_n) dy_n,t+1`` and ``dr_n = sum_t dy_nt (x_t - x_{t-1})``. The compiled loop (numba, CPU)
makes all mixtures in one pass over x, and all gradients in one; :func:`token_mix_reference` is the equation in torch.

B batch, T time, D width, N mixtures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, run_blocks

_STRETCH = 64  # tokens of one row that a thread takes together
_ONE = np.float32(1.0)  # in a kernel, a Python 1 would turn float32 into float64


def token_mix(
    x: Tensor,
    ratios: Tensor,
    before: Tensor | None = None,
    starts: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Mix every token with the one before it.

    Args:
        x: (B,T,D).
        ratios: (N,D), the share of the present token in each mixture.
        before: (B,D), the token before x; zero when None.
        starts: (B,T) bool, document starts.
        lengths: (B,) int64, valid tokens where padding trails; mixtures at padding mean nothing.
        backend: `numba` or `torch`; None lets :mod:`orrery.ops.backend` choose.

    Returns:
        N mixtures (B,T,D), and the last valid token (B,D).
    """
    before = x.new_zeros(x.shape[0], x.shape[2]) if before is None else before.to(x.dtype)
    ratios = ratios.to(x.dtype)
    if (
        x.shape[1] == 1
        or x.dtype not in (torch.float32, torch.float64)
        or choose(backend, x, op="token_mix") == "torch"
    ):
        mixed = token_mix_reference(x, ratios, before, starts)
    else:
        mixed = _CompiledMix.apply(x, ratios, before, starts)
    return mixed, last_token(x, before, lengths)


def last_token(x: Tensor, before: Tensor | None, lengths: Tensor | None = None) -> Tensor:
    """The last valid token (B,D) of x (B,T,D), or the one before x where a row is empty; arguments as in :func:`token_mix`."""
    if lengths is None:
        return x[:, -1]
    before = x.new_zeros(x.shape[0], x.shape[2]) if before is None else before.to(x.dtype)
    last = x.gather(1, (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, x.shape[2]))[:, 0]
    return torch.where((lengths > 0)[:, None], last, before)


def token_mix_reference(x: Tensor, ratios: Tensor, before: Tensor, starts: Tensor | None = None) -> tuple[Tensor, ...]:
    """The equation; arguments as in :func:`token_mix`."""
    earlier = before[:, None] if x.shape[1] == 1 else torch.cat([before[:, None], x[:, :-1]], 1)
    if starts is not None:
        earlier = earlier.masked_fill(starts[..., None], 0.0)
    return tuple(torch.lerp(earlier, x, ratio) for ratio in ratios)


class _CompiledMix(torch.autograd.Function):
    """The compiled loop with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ratios: Tensor, before: Tensor, starts: Tensor | None) -> tuple[Tensor, ...]:
        x, ratios, before = x.contiguous(), ratios.contiguous(), before.contiguous()
        starts = torch.zeros(len(x), 0, dtype=torch.bool) if starts is None else starts.contiguous()
        mixed = x.new_empty(len(ratios), *x.shape)  # one array: a tuple of them would have to wake threads of Python's
        arrays = [t.detach().numpy() for t in (x, ratios, before, starts, mixed)]
        run_blocks(_mix_forward, _blocks(x), 2 * len(ratios) * x.numel(), *arrays)
        ctx.save_for_backward(x, ratios, before, starts)
        return mixed.unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, ratios, before, starts = ctx.saved_tensors
        dx, dbefore = torch.empty_like(x), torch.empty_like(before)
        dratios = x.new_empty(_blocks(x), *ratios.shape)
        arrays = [t.numpy() for t in (x, ratios, before, starts)]
        given = tuple(t.contiguous().numpy() for t in grads)
        outputs = [t.numpy() for t in (dx, dratios, dbefore)]
        run_blocks(_mix_backward, _blocks(x), 4 * len(ratios) * x.numel(), *arrays, given, *outputs)
        return dx, dratios.sum(0), dbefore, None


def _blocks(x: Tensor) -> int:
    return x.shape[0] * -(-x.shape[1] // _STRETCH)


@compiled
def _mix_forward(first, last, x, ratios, before, starts, mixed):  # type: ignore[no-untyped-def]
    time, width = x.shape[1], x.shape[2]
    stretches, resets = -(-time // _STRETCH), starts.shape[1] > 0
    nothing = np.zeros(width, x.dtype)
    for block in range(first, last):
        row, begin = block // stretches, (block % stretches) * _STRETCH
        for t in range(begin, min(begin + _STRETCH, time)):
            now, earlier = x[row, t], x[row, t - 1] if t > 0 else before[row]
            if resets and starts[row, t]:
                earlier = nothing
            for n in range(len(mixed)):
                ratio, out = ratios[n], mixed[n, row, t]
                for i in range(width):
                    out[i] = earlier[i] + ratio[i] * (now[i] - earlier[i])


@compiled
def _mix_backward(first, last, x, ratios, before, starts, given, dx, dratios, dbefore):  # type: ignore[no-untyped-def]
    time, width = x.shape[1], x.shape[2]
    stretches, resets = -(-time // _STRETCH), starts.shape[1] > 0
    nothing = np.zeros(width, x.dtype)
    for block in range(first, last):
        row, begin = block // stretches, (block % stretches) * _STRETCH
        dratios[block] = 0.0
        for t in range(begin, min(begin + _STRETCH, time)):
            now, earlier, out = x[row, t], x[row, t - 1] if t > 0 else before[row], dx[row, t]
            fresh = resets and starts[row, t]
            if fresh:
                earlier = nothing
            out[:] = 0.0
            for n in range(len(given)):
                ratio, grad, dratio = ratios[n], given[n][row, t], dratios[block, n]
                for i in range(width):
                    out[i] += ratio[i] * grad[i]
                    dratio[i] += grad[i] * (now[i] - earlier[i])
            if t + 1 < time and not (resets and starts[row, t + 1]):
                for n in range(len(given)):
                    ratio, grad = ratios[n], given[n][row, t + 1]
                    for i in range(width):
                        out[i] += (_ONE - ratio[i]) * grad[i]
            if t == 0:
                out = dbefore[row]
                out[:] = 0.0
                for n in range(len(given) if not fresh else 0):
                    ratio, grad = ratios[n], given[n][row, 0]
                    for i in range(width):
                        out[i] += (_ONE - ratio[i]) * grad[i]
