"""Small elementwise functions with a backward of their own, each one pass over memory in each direction.

    sigmoid_gate:  y = sigmoid(r) v;   dv = dy s,  dr = dy v s (1 - s),  s = sigmoid(r)     (RWKV 2305.13048, section 3.1)
    silu_gate:     y = r sigmoid(r) v;   dv = dy r s,  dr = dy v s (1 + r (1 - s))            (Mamba 2312.00752)
    relu_square:   y = max(h, 0)^2;    dh = 2 sqrt(y) dy                                      (Primer 2109.08668)

Autograd of the plain formulas keeps and reads two to three times as many tensors. `relu_square` keeps its result only, which
the next matrix product keeps anyway.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, run_blocks, sigmoid

_BLOCK = 1 << 14  # numbers that one thread takes together
_ONE = np.float32(1.0)  # in a kernel, a Python 1 would turn float32 into float64
_TWO, _ZERO = np.float32(2.0), np.float32(0.0)


def sigmoid_gate(r: Tensor, v: Tensor, backend: str | None = None) -> Tensor:
    """sigmoid(r) * v, any equal shapes."""
    wide = r.dtype == v.dtype and r.dtype in (torch.float32, torch.float64) and r.numel() >= _BLOCK
    if not wide or choose(backend, r, op="sigmoid_gate") == "torch":
        return torch.sigmoid(r) * v
    return _Gate.apply(r, v)


def silu_gate(r: Tensor, v: Tensor, backend: str | None = None) -> Tensor:
    """silu(r) * v, any equal shapes."""
    wide = r.dtype == v.dtype and r.dtype in (torch.float32, torch.float64) and r.numel() >= _BLOCK
    if not wide or choose(backend, r, op="silu_gate") == "torch":
        return F.silu(r) * v
    return _SiluGate.apply(r, v)


def relu_square(h: Tensor, backend: str | None = None) -> Tensor:
    """max(h, 0)^2, any shape."""
    wide = h.dtype in (torch.float32, torch.float64) and h.numel() >= _BLOCK
    if not wide or choose(backend, h, op="relu_square") == "torch":
        return torch.relu(h).square()
    return _ReluSquare.apply(h)


def _run(kernel: Any, *tensors: Tensor) -> None:
    arrays = [t.detach().view(-1).numpy() for t in tensors]
    run_blocks(kernel, -(-len(arrays[0]) // _BLOCK), len(arrays) * len(arrays[0]), *arrays)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, r: Tensor, v: Tensor) -> Tensor:
        r, v = r.contiguous(), v.contiguous()
        y = torch.empty_like(v)
        _run(_gate_forward, r, v, y)
        ctx.save_for_backward(r, v)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        r, v = ctx.saved_tensors
        dr, dv = torch.empty_like(r), torch.empty_like(v)
        _run(_gate_backward, r, v, dy.contiguous(), dr, dv)
        return dr, dv


class _SiluGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, r: Tensor, v: Tensor) -> Tensor:
        r, v = r.contiguous(), v.contiguous()
        y = torch.empty_like(v)
        _run(_silu_forward, r, v, y)
        ctx.save_for_backward(r, v)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        r, v = ctx.saved_tensors
        dr, dv = torch.empty_like(r), torch.empty_like(v)
        _run(_silu_backward, r, v, dy.contiguous(), dr, dv)
        return dr, dv


class _ReluSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        h = h.contiguous()
        y = torch.empty_like(h)
        _run(_square_forward, h, y)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        dh = torch.empty_like(y)
        _run(_square_backward, y, dy.contiguous(), dh)
        return dh


@compiled
def _gate_forward(first, last, r, v, y):  # type: ignore[no-untyped-def]
    low, high = first * _BLOCK, min(last * _BLOCK, len(y))
    raw, value, out = r[low:high], v[low:high], y[low:high]
    for i in range(len(out)):
        out[i] = sigmoid(raw[i]) * value[i]


@compiled
def _gate_backward(first, last, r, v, dy, dr, dv):  # type: ignore[no-untyped-def]
    low, high = first * _BLOCK, min(last * _BLOCK, len(dy))
    raw, value, given, draw, dvalue = r[low:high], v[low:high], dy[low:high], dr[low:high], dv[low:high]
    for i in range(len(given)):
        s = sigmoid(raw[i])
        dvalue[i] = given[i] * s
        draw[i] = given[i] * value[i] * s * (_ONE - s)


@compiled
def _silu_forward(first, last, r, v, y):  # type: ignore[no-untyped-def]
    low, high = first * _BLOCK, min(last * _BLOCK, len(y))
    raw, value, out = r[low:high], v[low:high], y[low:high]
    for i in range(len(out)):
        out[i] = raw[i] * sigmoid(raw[i]) * value[i]


@compiled
def _silu_backward(first, last, r, v, dy, dr, dv):  # type: ignore[no-untyped-def]
    low, high = first * _BLOCK, min(last * _BLOCK, len(dy))
    raw, value, given, draw, dvalue = r[low:high], v[low:high], dy[low:high], dr[low:high], dv[low:high]
    for i in range(len(given)):
        s = sigmoid(raw[i])
        silu = raw[i] * s
        dvalue[i] = given[i] * silu
        draw[i] = given[i] * value[i] * (s + silu * (_ONE - s))


@compiled
def _square_forward(first, last, h, y):  # type: ignore[no-untyped-def]
    low, high = first * _BLOCK, min(last * _BLOCK, len(y))
    raw, out = h[low:high], y[low:high]
    for i in range(len(out)):
        positive = raw[i] if raw[i] > _ZERO or raw[i] != raw[i] else _ZERO
        out[i] = positive * positive


@compiled
def _square_backward(first, last, y, dy, dh):  # type: ignore[no-untyped-def]
    low, high = first * _BLOCK, min(last * _BLOCK, len(y))
    value, given, out = y[low:high], dy[low:high], dh[low:high]
    for i in range(len(out)):
        out[i] = _TWO * np.sqrt(value[i]) * given[i]
