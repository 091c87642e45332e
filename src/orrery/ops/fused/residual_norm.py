"""A residual sum and the norm behind it in one pass over memory, in place: what reading a short text does between two products.

    x <- x + y;   out <- norm(x)       out may be x itself (post-norm) or another place (pre-norm); norm: see row_linear.NORMS

Torch's own operations need two or three calls for it, each of which takes longer than the numbers do. Without gradients,
float32 on a CPU.

N rows, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from orrery.ops.compiled import compiled, dot, prepare_blocks
from orrery.ops.steps.row_linear import NORMS, RowNorm, array


def residual_norm(x: Tensor, y: Tensor | None, norm: RowNorm, out: Tensor) -> Callable[[], Any]:
    """A function that does `x += y; out = norm(x)` each time it is called, for what the tensors hold then.

    Args:
        x, out: (N,D) contiguous float32; they may be the same. y: (N,D), or None for no sum.
    """
    added = x.new_empty(0, x.shape[1]) if y is None else y
    given = [array(t, x) for t in (x, added, norm.weight, norm.bias, torch.ones(x.shape[1]))]
    return prepare_blocks(_residual_norm, len(x), 0, *given, NORMS.index(norm.kind), norm.eps, out.numpy())


def residual_norm_reference(x: Tensor, y: Tensor | None, norm: RowNorm, out: Tensor) -> None:
    """The same by torch's own operations."""
    if y is not None:
        x.add_(y)
    if norm.kind == "layernorm":
        out.copy_(F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps))
    elif norm.kind == "rmsnorm":
        out.copy_(F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps))
    elif out is not x:
        out.copy_(x)


@compiled
def _residual_norm(first, last, x, y, gain, shift, ones, kind, eps, out):  # type: ignore[no-untyped-def]
    width = x.shape[1]
    for n in range(first, last):
        row, to = x[n], out[n]
        if len(y) > 0:
            added = y[n]
            for i in range(width):
                row[i] += added[i]
        mean = dot(row, ones) / ones.dtype.type(width) if kind == 2 else ones.dtype.type(0)
        for i in range(width):
            to[i] = row[i] - mean
        if kind > 0:
            scale = ones.dtype.type(1.0 / (dot(to, to) / width + eps) ** 0.5)
            if len(gain) > 0:
                for i in range(width):
                    to[i] *= scale * gain[i]
            else:
                for i in range(width):
                    to[i] *= scale
            if len(shift) > 0:
                for i in range(width):
                    to[i] += shift[i]
