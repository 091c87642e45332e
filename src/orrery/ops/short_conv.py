"""Causal depthwise convolution with a handful of taps, over documents, with a state.

    y_t = b + sum_{j<K} w_j x_{t-K+1+j},   taps that reach before the document's start are zero

Written as K shifted multiply-adds: on a CPU this beats a grouped convolution, whose channels-first layout costs two
transposes, and it masks document starts without leaving the fast path.

B batch, T time, C channels, K kernel size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    inputs: Tensor | None = None,
    starts: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve x (B,T,C) with weight (C,K), the present token's tap last.

    Args:
        inputs: (B,K-1,C), the inputs before x (zeros when None).
        starts: (B,T) bool, document starts.
        lengths: (B,), valid tokens where padding trails.

    Returns:
        y (B,T,C) and the last K-1 valid inputs (B,K-1,C); those of an earlier document are zeroed.
    """
    batch, length, channels = x.shape
    taps = weight.shape[1]
    if inputs is None:
        inputs = x.new_zeros(batch, taps - 1, channels)
    weight = weight.to(x.dtype)  # autocast hands over 16-bit inputs beside float32 weights
    bias = None if bias is None else bias.to(x.dtype)
    if taps == 1:
        y = x * weight[:, 0]
        return (y if bias is None else y + bias), inputs
    padded = torch.cat([inputs.to(x.dtype), x], 1)
    if starts is None:
        y = _Taps.apply(padded, weight, bias) if length > 1 else _one_step(padded, weight, bias)
    else:
        y = _masked(padded, weight, bias, starts)
    return y, _last_inputs(padded, taps, starts, lengths)


def _one_step(padded: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """padded (B,K,C) -> (B,1,C)."""
    y = (padded * weight.t()).sum(1, keepdim=True)
    return y if bias is None else y + bias


def _masked(padded: Tensor, weight: Tensor, bias: Tensor | None, starts: Tensor) -> Tensor:
    """Taps that cross a document start contribute nothing. Autograd differentiates it."""
    length, taps = starts.shape[1], weight.shape[1]
    document = starts.cumsum(1)
    document = torch.cat([document.new_zeros(len(document), taps - 1), document], 1)
    y = padded[:, taps - 1 :] * weight[:, taps - 1]
    for j in range(taps - 1):
        same = document[:, j : j + length] == document[:, taps - 1 :]
        y = y + padded[:, j : j + length] * weight[:, j] * same[..., None].to(y.dtype)
    return y if bias is None else y + bias


def _last_inputs(padded: Tensor, taps: int, starts: Tensor | None, lengths: Tensor | None) -> Tensor:
    """The K-1 inputs before the next token, of its document only."""
    length = padded.shape[1] - taps + 1
    if lengths is None and starts is None:
        return padded[:, length:].clone() if padded.requires_grad is False else padded[:, length:]
    offsets = torch.arange(taps - 1, device=padded.device)
    end = torch.full((len(padded),), length, device=padded.device) if lengths is None else lengths
    index = end[:, None] + offsets
    last = padded[torch.arange(len(padded), device=padded.device)[:, None], index]
    if starts is None:
        return last
    document = starts.cumsum(1)
    document = torch.cat([document.new_zeros(len(document), taps - 1), document], 1)
    newest = document.gather(1, (end[:, None] + taps - 2).clamp(min=0))
    return last * (document.gather(1, index) == newest)[..., None].to(last.dtype)


class _Taps(torch.autograd.Function):
    """Sum of shifted products. Keeps the padded input only; autograd would keep K products."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(padded, weight)
        taps = weight.shape[1]
        length = padded.shape[1] - taps + 1
        columns = weight.t().contiguous()
        y = padded[:, taps - 1 :] * columns[taps - 1]
        for j in range(taps - 1):
            y.addcmul_(padded[:, j : j + length], columns[j])
        ctx.has_bias = bias is not None
        return y if bias is None else y.add_(bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        padded, weight = ctx.saved_tensors
        taps = weight.shape[1]
        length = dy.shape[1]
        columns = weight.t().contiguous()
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = torch.zeros_like(padded)
            for j in range(taps):
                dx[:, j : j + length].addcmul_(dy, columns[j])
        if ctx.needs_input_grad[1]:
            dw = torch.stack([(padded[:, j : j + length] * dy).sum((0, 1)) for j in range(taps)], 1)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            db = dy.sum((0, 1))
        return dx, dw, db
