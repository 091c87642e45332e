"""A linear map of a few rows, with what stands before and behind it, as one compiled pass: decoding on a CPU, in float32.

    y = act(W n(x) + b)  or  y += act(W n(x) + b);   n: nothing, RMSNorm or LayerNorm;   act: see ACTIVATIONS

A decode step reads every weight once and does two operations with it, so memory sets its pace; norm, activation and
residual sum cost nothing beside it once they need no call of their own. A row of W is read once for all rows of x. No gradient.

B rows of x, I inputs, O outputs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.ops.compiled import compiled, dot, inlined, prepare_blocks, sigmoid, tanh

ACTIVATIONS = ("", "silu", "gelu-tanh", "relu", "relu2", "sigmoid", "tanh", "gelu", "swiglu", "geglu")
"""What may stand behind the map, "" nothing. swiglu, geglu: W has 2 O rows, silu or gelu-tanh of the first O times the others."""
GATED = ACTIVATIONS.index("swiglu")  # the first of those
MOST_ROWS = 8  # beyond that a matrix product, which keeps a block of x in registers, is faster
NORMS = ("", "rmsnorm", "layernorm")
_OUTPUTS = 16  # of a block
_ONE, _HALF = np.float32(1.0), np.float32(0.5)  # in a kernel, a Python 1 would turn float32 into float64
_CUBE, _ROOT = np.float32(0.044715), np.float32((2 / np.pi) ** 0.5)


class RowNorm(NamedTuple):
    """The norm before a map: its kind (one of NORMS), weight and bias (I,) or None, eps."""

    kind: str = ""
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 0.0


def row_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    norm: RowNorm | None = None,
    activation: str = "",
    add: bool = False,
) -> Callable[[], None]:
    """A function that reads x and writes y each time it is called; the weights are looked up once, now.

    Args:
        x: (B,I), y: (B,O), float32 and contiguous, written by somebody else before each call.
        weight: (O,I), or (2 O,I) for swiglu and geglu; bias: of as many numbers, or None.
        norm: of x; None for none.
        activation: one of ACTIVATIONS.
        add: y is added to, not overwritten.
    """
    blocks = -(-y.shape[1] // _OUTPUTS)
    flat = _norm_arrays(norm, x)
    arrays = [array(t, x) for t in (weight, bias, y)]
    code = ACTIVATIONS.index(activation)
    return prepare_blocks(_map, blocks, 2 * weight.numel(), x.numpy(), *flat, *arrays, code, add)


def chosen_linear(x: Tensor, weight: Tensor, chosen: Tensor, y: Tensor, activation: str = "") -> Callable[[], None]:
    """A function that maps every row of x by several of many matrices, those that `chosen` names then.

    Args:
        x: (B,I). weight: (E,O,I), or (E,2 O,I) for the gated activations. chosen: (B,k) int64, below E. y: (B,k,O).
        activation: one of ACTIVATIONS.
    """
    blocks, code = -(-y.shape[2] // _OUTPUTS), ACTIVATIONS.index(activation)
    arrays = [array(t, x) for t in (x, weight, chosen, y)]
    return prepare_blocks(_chosen, chosen.numel() * blocks, 2 * y.numel() * weight.shape[2], *arrays, code, blocks)


def row_norm(x: Tensor, norm: RowNorm) -> Callable[[], Tensor]:
    """A function that gives the norm of what x (B,I) holds then, each time in a tensor of its own."""
    fixed = _norm_arrays(norm, x)
    kernel = functools.partial(_norm, 0, len(x), x.numpy(), *fixed)

    def normed() -> Tensor:
        y = torch.empty_like(x)
        kernel(y.numpy())
        return y

    return normed


def norm_of_rows(norm: RowNorm, like: Tensor) -> Callable[[Tensor], Tensor]:
    """The norm as a function of x (...,I), in one thread: for inputs so small that waking another takes longer."""
    fixed = _norm_arrays(norm, like)

    def normed(x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y = torch.empty_like(rows)
        _norm(0, len(rows), rows.numpy(), *fixed, y.numpy())
        return y.view(x.shape)

    return normed


def row_norm_into(x: Tensor, norm: RowNorm | None, y: Tensor) -> Callable[[], None]:
    """A function that writes the norm of what x (B,I) holds into y (B,I)."""
    return prepare_blocks(_norm, len(x), 0, x.numpy(), *_norm_arrays(norm, x), y.numpy())


def norm_in_place(x: Tensor, norm: RowNorm, kept: Tensor) -> Callable[[], None]:
    """A function that writes the norm of what x (B,I) holds into x and into kept (B,I)."""
    return prepare_blocks(_norm_twice, len(x), 0, x.numpy(), *_norm_arrays(norm, x), kept.numpy())


def blend(x: Tensor, kept: Tensor, keep: float, add: float) -> Callable[[], None]:
    """A function that does x = keep kept + add (x - kept), for x, kept (B,I)."""
    return prepare_blocks(_blend, len(x), 0, x.numpy(), kept.numpy(), np.float32(keep), np.float32(add))


def array(tensor: Tensor | None, like: Tensor) -> Any:
    """A numpy view for a kernel; of nothing, an empty one."""
    return like.new_empty(0).numpy() if tensor is None else tensor.detach().numpy()


def _norm_arrays(norm: RowNorm | None, like: Tensor) -> tuple[Any, ...]:
    norm = norm or RowNorm()
    return NORMS.index(norm.kind), array(norm.weight, like), array(norm.bias, like), norm.eps


@inlined
def _normalise(given, kind, gain, shift, eps, out):  # type: ignore[no-untyped-def]
    width = len(given)
    mean = np.float32(0.0)
    if kind == 2:
        for i in range(width):
            mean += given[i]
        mean /= np.float32(width)
    for i in range(width):
        out[i] = given[i] - mean
    if kind == 0:
        return
    scale = np.float32(1.0 / np.sqrt(np.float64(dot(out, out)) / width + eps))
    for i in range(width):
        out[i] *= scale
    if len(gain) > 0:
        for i in range(width):
            out[i] *= gain[i]
    if len(shift) > 0:
        for i in range(width):
            out[i] += shift[i]


@compiled
def _norm(first, last, x, kind, gain, shift, eps, y):  # type: ignore[no-untyped-def]
    for b in range(first, last):
        _normalise(x[b], kind, gain, shift, eps, y[b])


@compiled
def _norm_twice(first, last, x, kind, gain, shift, eps, kept):  # type: ignore[no-untyped-def]
    for b in range(first, last):
        _normalise(x[b], kind, gain, shift, eps, kept[b])
        x[b] = kept[b]


@compiled
def _blend(first, last, x, kept, keep, add):  # type: ignore[no-untyped-def]
    for b in range(first, last):
        for i in range(x.shape[1]):
            x[b, i] = keep * kept[b, i] + add * (x[b, i] - kept[b, i])


@inlined
def activated(v, code):  # type: ignore[no-untyped-def]
    """Of one number, by its place in ACTIVATIONS; of the gated ones, what stands before the product."""
    if code == 1 or code == 8:
        v = v * sigmoid(v)
    elif code == 2 or code == 9:
        v = _HALF * v * (_ONE + tanh(_ROOT * (v + _CUBE * v * v * v)))
    elif code == 3:
        v = max(v, np.float32(0.0))
    elif code == 4:
        v = max(v, np.float32(0.0)) * max(v, np.float32(0.0))
    elif code == 5:
        v = sigmoid(v)
    elif code == 6:
        v = tanh(v)
    elif code == 7:
        v = np.float32(0.5 * v * (1.0 + math.erf(v * 0.7071067811865476)))
    return v


@compiled
def _map(first, last, x, kind, gain, shift, eps, weight, bias, y, activation, add):  # type: ignore[no-untyped-def]
    batch, width = x.shape
    outputs = y.shape[1]
    given = x
    if kind > 0:  # each thread for itself: cheaper than to wait for one another
        given = np.empty((batch, width), np.float32)
        for b in range(batch):
            _normalise(x[b], kind, gain, shift, eps, given[b])
    z, up = np.empty((batch, _OUTPUTS), np.float32), np.empty((batch, _OUTPUTS), np.float32)
    for block in range(first, last):
        begin = block * _OUTPUTS
        count = min(_OUTPUTS, outputs - begin)
        for j in range(count):
            row = weight[begin + j]
            for b in range(batch):
                z[b, j] = dot(row, given[b])
        if len(bias) > 0:
            for b in range(batch):
                for j in range(count):
                    z[b, j] += bias[begin + j]
        if activation >= GATED:
            for j in range(count):
                row = weight[outputs + begin + j]
                for b in range(batch):
                    up[b, j] = dot(row, given[b])
            for b in range(batch):
                for j in range(count):
                    other = up[b, j] + bias[outputs + begin + j] if len(bias) > 0 else up[b, j]
                    z[b, j] = activated(z[b, j], activation) * other
        elif activation > 0:
            for b in range(batch):
                for j in range(count):
                    z[b, j] = activated(z[b, j], activation)
        for b in range(batch):
            out = y[b, begin : begin + count]
            if add:
                for j in range(count):
                    out[j] += z[b, j]
            else:
                for j in range(count):
                    out[j] = z[b, j]


@compiled
def _chosen(first, last, x, weight, chosen, y, code, blocks):  # type: ignore[no-untyped-def]
    count, outputs = y.shape[1:]
    for block in range(first, last):
        row, begin = block // blocks, (block % blocks) * _OUTPUTS
        b, i = row // count, row % count
        given, own, out = x[b], weight[chosen[b, i]], y[b, i]
        for j in range(begin, min(begin + _OUTPUTS, outputs)):
            v = activated(dot(own[j], given), code)
            out[j] = v * dot(own[outputs + j], given) if code >= GATED else v
