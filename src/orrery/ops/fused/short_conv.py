"""Causal depthwise convolution with a handful of taps, over documents, with a state, and optionally SiLU behind it.

    z_t = b + sum_{j<K} w_j x_{t-K+1+j},   y_t = z_t or silu(z_t);   taps that reach before the document's start are zero

In torch it is written as K shifted multiply-adds: on a CPU this beats a grouped convolution, whose channels-first layout
costs two transposes, and it masks document starts without leaving the fast path. The compiled loop (numba, CPU, float32)
reads x once, forward and backward, keeps nothing but x, and works z out again for the gradient of SiLU.

B batch, T time, C channels, K kernel size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.core.errors import ConfigError
from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, run_blocks, sigmoid

SMALL = 1 << 14  # numbers below which a call of a compiled loop costs more than torch's own operations
_STRETCH = 32  # tokens of one row that a thread takes together
_ONE = np.float32(1.0)  # in a kernel, a Python 1 would turn float32 into float64


def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    inputs: Tensor | None = None,
    starts: Tensor | None = None,
    lengths: Tensor | None = None,
    activation: str = "",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve x (B,T,C) with weight (C,K), the present token's tap last.

    Args:
        inputs: (B,K-1,C), the inputs before x (zeros when None).
        starts: (B,T) bool, document starts.
        lengths: (B,), valid tokens where padding trails.
        activation: "silu" or "" (none), applied to the sum.
        backend: `numba` or `torch`; None lets :mod:`orrery.ops.backend` choose.

    Returns:
        y (B,T,C) and the last K-1 valid inputs (B,K-1,C); those of an earlier document are zeroed.

    Raises:
        ConfigError: for another activation.
    """
    if activation not in ("", "silu"):
        raise ConfigError(f"a short convolution has the activation 'silu' or none, not '{activation}'")
    batch, length, channels = x.shape
    taps = weight.shape[1]
    if inputs is None:
        inputs = x.new_zeros(batch, taps - 1, channels)
    inputs = inputs.to(x.dtype)
    weight = weight.to(x.dtype)  # autocast hands over 16-bit inputs beside float32 weights
    bias = None if bias is None else bias.to(x.dtype)
    wide = x.dtype == torch.float32 and length > 1 and taps > 1 and x.numel() >= SMALL
    offered = ("numba", "torch") if wide else ("torch",)
    if choose(backend, x, op="short_conv", offered=offered) == "numba":
        y = _CompiledConv.apply(x, weight, bias, inputs, starts, activation == "silu")
    else:
        y = _torch_conv(x, weight, bias, inputs, starts)
        y = F.silu(y) if activation else y
    return y, last_inputs(x, inputs, starts, lengths)


def _torch_conv(x: Tensor, weight: Tensor, bias: Tensor | None, inputs: Tensor, starts: Tensor | None) -> Tensor:
    """The sum, without activation; arguments as in :func:`short_conv`."""
    if weight.shape[1] == 1:
        y = x * weight[:, 0]
        return y if bias is None else y + bias
    padded = torch.cat([inputs, x], 1)
    if starts is not None:
        return _masked(padded, weight, bias, starts)
    return _Taps.apply(padded, weight, bias) if x.shape[1] > 1 else _one_step(padded, weight, bias)


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


def last_inputs(x: Tensor, inputs: Tensor, starts: Tensor | None, lengths: Tensor | None) -> Tensor:
    """The K-1 inputs before the next token, of its document only."""
    length, kept = x.shape[1], inputs.shape[1]
    if lengths is None and starts is None:
        recent = x[:, max(0, length - kept) :]
        return torch.cat([inputs[:, recent.shape[1] :], recent], 1)
    end = torch.full((len(x),), length, device=x.device) if lengths is None else lengths
    index = end[:, None] + torch.arange(kept, device=x.device)  # into inputs and x, one behind the other
    rows = torch.arange(len(x), device=x.device)[:, None]
    before = (index < kept)[..., None]
    last = torch.where(before, inputs[rows, index.clamp(max=kept - 1)], x[rows, (index - kept).clamp(min=0)])
    if starts is None or kept == 0:
        return last
    document = starts.cumsum(1)
    document = torch.cat([document.new_zeros(len(document), kept), document], 1)
    newest = document.gather(1, (end[:, None] + kept - 1).clamp(min=0))
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


class _CompiledConv(torch.autograd.Function):
    """The compiled loop with its gradient. x may be a slice of wider rows, as a fused projection leaves it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, inputs: Tensor, starts: Tensor | None, silu: bool
    ) -> Tensor:
        ctx.has_bias = bias is not None
        columns = weight.t().contiguous()  # (K,C)
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        starts = torch.zeros(len(x), 0, dtype=torch.bool) if starts is None else starts
        x = x if x.stride(2) == 1 and min(x.stride()) > 0 else x.contiguous()
        kept = [x, columns, bias.contiguous(), inputs.contiguous(), starts.contiguous()]
        y = torch.empty(x.shape, dtype=x.dtype)
        run_blocks(_forward, _blocks(x), 8 * x.numel(), *_arrays(kept), y.numpy(), silu)
        ctx.save_for_backward(*kept)
        ctx.silu = silu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        x, columns, _, inputs, _ = kept
        blocks = _blocks(x)
        dx, dinputs = torch.empty(x.shape, dtype=x.dtype), torch.zeros_like(inputs)
        sums = x.new_empty(blocks, len(columns) + 1, x.shape[2])
        outputs = [t.numpy() for t in (dx, sums, dinputs)]
        run_blocks(_backward, blocks, 16 * x.numel(), *_arrays(kept), dy.contiguous().numpy(), *outputs, ctx.silu)
        total = sums.sum(0)
        return dx, total[:-1].t(), total[-1] if ctx.has_bias else None, dinputs, None, None


def _blocks(x: Tensor) -> int:
    return x.shape[0] * -(-x.shape[1] // _STRETCH)


def _arrays(kept: Any) -> list[Any]:
    """Arrays for the kernels. x goes as one flat array with its strides: only then are rows known to be contiguous."""
    x, *others = (t.detach() for t in kept)
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return [x.as_strided((span,), (1,)).numpy(), x.stride(0), x.stride(1), *(t.numpy() for t in others)]


@compiled
def _forward(first, last, x, row_step, step, columns, bias, inputs, starts, y, silu):  # type: ignore[no-untyped-def]
    time, width, kept = y.shape[1], y.shape[2], inputs.shape[1]
    stretches, resets = -(-time // _STRETCH), starts.shape[1] > 0
    for block in range(first, last):
        row, begin = block // stretches, (block % stretches) * _STRETCH
        for t in range(begin, min(begin + _STRETCH, time)):
            out, at = y[row, t], row * row_step + t * step
            now, tap = x[at : at + width], columns[kept]
            for i in range(width):
                out[i] = bias[i] + tap[i] * now[i]
            for back in range(1, kept + 1):
                if resets and back <= t + 1 and starts[row, t + 1 - back]:
                    break
                early = at - back * step
                source = x[early : early + width] if t >= back else inputs[row, kept + t - back]
                tap = columns[kept - back]
                for i in range(width):
                    out[i] += tap[i] * source[i]
            if silu:
                for i in range(width):
                    out[i] = out[i] * sigmoid(out[i])


@compiled
def _backward(first, last, x, row_step, step, columns, bias, inputs, starts, dy, dx, sums, dinputs, silu):  # type: ignore[no-untyped-def]
    time, width, kept = dy.shape[1], dy.shape[2], inputs.shape[1]
    stretches, resets = -(-time // _STRETCH), starts.shape[1] > 0
    dz = np.empty((_STRETCH + kept, width), dy.dtype)  # of this block's tokens and of those that its inputs still reach
    for block in range(first, last):
        row, begin = block // stretches, (block % stretches) * _STRETCH
        end, total = min(begin + _STRETCH, time), sums[block]
        total[:] = 0.0
        for t in range(begin, min(end + kept, time)):
            out, grad, at = dz[t - begin], dy[row, t], row * row_step + t * step
            if silu:
                now, tap = x[at : at + width], columns[kept]
                for i in range(width):
                    out[i] = bias[i] + tap[i] * now[i]
                for back in range(1, kept + 1):
                    if resets and back <= t + 1 and starts[row, t + 1 - back]:
                        break
                    early = at - back * step
                    source = x[early : early + width] if t >= back else inputs[row, kept + t - back]
                    tap = columns[kept - back]
                    for i in range(width):
                        out[i] += tap[i] * source[i]
                for i in range(width):
                    s = sigmoid(out[i])
                    out[i] = grad[i] * s * (_ONE + out[i] * (_ONE - s))
            else:
                out[:] = grad
            if t < end:
                now, dtap, dbias = x[at : at + width], total[kept], total[kept + 1]
                for i in range(width):
                    dtap[i] += out[i] * now[i]
                    dbias[i] += out[i]
                for back in range(1, kept + 1):
                    if resets and back <= t + 1 and starts[row, t + 1 - back]:
                        break
                    early = at - back * step
                    source = x[early : early + width] if t >= back else inputs[row, kept + t - back]
                    dtap = total[kept - back]
                    for i in range(width):
                        dtap[i] += out[i] * source[i]
        for t in range(begin, end):
            out, source, tap = dx[row, t], dz[t - begin], columns[kept]
            for i in range(width):
                out[i] = tap[i] * source[i]
            for ahead in range(1, min(kept, time - 1 - t) + 1):
                if resets and starts[row, t + ahead]:
                    break
                source, tap = dz[t - begin + ahead], columns[kept - ahead]
                for i in range(width):
                    out[i] += tap[i] * source[i]
        if begin == 0:
            for t in range(min(kept, time)):
                if resets and starts[row, t]:
                    break
                for m in range(t, kept):
                    out, source, tap = dinputs[row, m], dz[t], columns[m - t]
                    for i in range(width):
                        out[i] += tap[i] * source[i]
