"""A short causal convolution between two gates (LFM2, arXiv 2511.23404), over documents, with a state.

    g_t = b_t u_t;   h_t = bias + sum_{j<K} w_j g_{t-K+1+j};   y_t = c_t h_t;   taps that reach before the document's start are zero

The compiled loop (numba, CPU, float32) reads b, c, u once where the three formulas read and write eight tensors; it keeps
nothing but what it reads and works g and h out again for the gradient.

B batch, T time, D width, K taps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, run_blocks
from orrery.ops.fused.short_conv import SMALL, last_inputs, short_conv

_STRETCH = 32  # tokens of one row that a thread takes together


def gated_conv(
    p: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    inputs: Tensor | None = None,
    starts: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Gate, convolve and gate again.

    Args:
        p: (B,T,3D), b, c and u side by side.
        weight: (D,K), the present token's tap last.
        bias: (D,) or None.
        inputs: (B,K-1,D), g before the first token (zeros when None).
        starts: (B,T) bool, document starts.
        backend: `numba` or `torch`; None lets :mod:`orrery.ops.backend` choose.

    Returns:
        y (B,T,D).
    """
    if inputs is None:
        inputs = p.new_zeros(len(p), weight.shape[1] - 1, len(weight))
    weight = weight.to(p.dtype)  # autocast hands over 16-bit inputs beside float32 weights
    bias = None if bias is None else bias.to(p.dtype)
    wide = p.dtype == torch.float32 and p.shape[1] > 1 and weight.shape[1] > 1 and p.numel() >= SMALL
    if choose(backend, p, op="gated_conv", offered=("numba", "torch") if wide else ("torch",)) == "numba":
        y: Tensor = _CompiledGatedConv.apply(p, weight, bias, inputs, starts)
        return y
    before, behind, u = p.chunk(3, -1)
    return behind * short_conv(before * u, weight, bias, inputs, starts, backend="torch")[0]


def last_gated(p: Tensor, taps: int, inputs: Tensor | None, starts: Tensor | None, lengths: Tensor | None) -> Tensor:
    """The last K-1 g (B,K-1,D) before the next token, of its document only; arguments as of :func:`gated_conv`.

    Args:
        taps: K.
        lengths: (B,), valid tokens where padding trails.
    """
    inputs = p.new_zeros(len(p), taps - 1, p.shape[2] // 3) if inputs is None else inputs.to(p.dtype)
    if lengths is None and p.shape[1] >= taps:
        begin = p.shape[1] - taps + 1
        p, starts = p[:, begin:], None if starts is None else starts[:, begin:]
    before, _, u = p.chunk(3, -1)
    return last_inputs(before * u, inputs, starts, lengths)


class _CompiledGatedConv(torch.autograd.Function):
    """The compiled loop with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, p: Tensor, weight: Tensor, bias: Tensor | None, inputs: Tensor, starts: Tensor | None
    ) -> Tensor:
        ctx.has_bias = bias is not None
        shift = weight.new_zeros(len(weight)) if bias is None else bias
        starts = torch.zeros(len(p), 0, dtype=torch.bool) if starts is None else starts
        kept = [t.contiguous() for t in (p, weight.t(), shift, inputs.to(p.dtype), starts)]
        y = p.new_empty(*p.shape[:2], len(weight))
        run_blocks(_forward, _blocks(y), 8 * y.numel(), *(t.detach().numpy() for t in (*kept, y)))
        ctx.save_for_backward(*kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        p, columns, shift, inputs, starts = ctx.saved_tensors
        blocks, dp, dinputs = _blocks(dy), torch.empty_like(p), torch.zeros_like(inputs)
        sums = p.new_empty(blocks, len(columns) + 1, columns.shape[1])
        given = (p, columns, shift, inputs, starts, dy.contiguous(), dp, sums, dinputs)
        run_blocks(_backward, blocks, 20 * dy.numel(), *(t.detach().numpy() for t in given))
        total = sums.sum(0)
        return dp, total[:-1].t(), total[-1] if ctx.has_bias else None, dinputs, None


def _blocks(y: Tensor) -> int:
    return y.shape[0] * -(-y.shape[1] // _STRETCH)


@compiled
def _forward(first, last, p, columns, bias, inputs, starts, y):  # type: ignore[no-untyped-def]
    time, width, kept = y.shape[1], y.shape[2], inputs.shape[1]
    stretches, resets = -(-time // _STRETCH), starts.shape[1] > 0
    g = np.empty((_STRETCH + kept, width), y.dtype)
    for block in range(first, last):
        row, begin = block // stretches, (block % stretches) * _STRETCH
        end = min(begin + _STRETCH, time)
        for t in range(begin - kept, end):
            out = g[t - begin + kept]
            if t < 0:
                out[:] = inputs[row, kept + t]
                continue
            before, given = p[row, t, :width], p[row, t, 2 * width :]
            for i in range(width):
                out[i] = before[i] * given[i]
        for t in range(begin, end):
            out, now, tap, behind = y[row, t], g[t - begin + kept], columns[kept], p[row, t, width : 2 * width]
            for i in range(width):
                out[i] = bias[i] + tap[i] * now[i]
            for back in range(1, kept + 1):
                if resets and back <= t + 1 and starts[row, t + 1 - back]:
                    break
                source, tap = g[t - begin + kept - back], columns[kept - back]
                for i in range(width):
                    out[i] += tap[i] * source[i]
            for i in range(width):
                out[i] *= behind[i]


@compiled
def _backward(first, last, p, columns, bias, inputs, starts, dy, dp, sums, dinputs):  # type: ignore[no-untyped-def]
    time, width, kept = dy.shape[1], dy.shape[2], inputs.shape[1]
    stretches, resets = -(-time // _STRETCH), starts.shape[1] > 0
    g = np.empty((_STRETCH + kept, width), dy.dtype)
    dh = np.empty((_STRETCH + kept, width), dy.dtype)  # of this block's tokens and of those that its g still reach
    h = np.empty(width, dy.dtype)
    for block in range(first, last):
        row, begin = block // stretches, (block % stretches) * _STRETCH
        end, total = min(begin + _STRETCH, time), sums[block]
        total[:] = 0.0
        for t in range(begin - kept, end):
            out = g[t - begin + kept]
            if t < 0:
                out[:] = inputs[row, kept + t]
                continue
            before, given = p[row, t, :width], p[row, t, 2 * width :]
            for i in range(width):
                out[i] = before[i] * given[i]
        for t in range(begin, min(end + kept, time)):
            out, grad, behind = dh[t - begin], dy[row, t], p[row, t, width : 2 * width]
            for i in range(width):
                out[i] = grad[i] * behind[i]
        for t in range(begin, end):
            dz, now, tap, dtap, dbias = dh[t - begin], g[t - begin + kept], columns[kept], total[kept], total[kept + 1]
            for i in range(width):
                h[i] = bias[i] + tap[i] * now[i]
                dtap[i] += dz[i] * now[i]
                dbias[i] += dz[i]
            for back in range(1, kept + 1):
                if resets and back <= t + 1 and starts[row, t + 1 - back]:
                    break
                source, tap, dtap = g[t - begin + kept - back], columns[kept - back], total[kept - back]
                for i in range(width):
                    h[i] += tap[i] * source[i]
                    dtap[i] += dz[i] * source[i]
            before, given, grad = p[row, t, :width], p[row, t, 2 * width :], dy[row, t]
            dbefore, dbehind, dgiven = dp[row, t, :width], dp[row, t, width : 2 * width], dp[row, t, 2 * width :]
            tap = columns[kept]
            for i in range(width):
                dbehind[i] = grad[i] * h[i]
                h[i] = tap[i] * dz[i]  # from here on the gradient of g
            for ahead in range(1, min(kept, time - 1 - t) + 1):
                if resets and starts[row, t + ahead]:
                    break
                source, tap = dh[t - begin + ahead], columns[kept - ahead]
                for i in range(width):
                    h[i] += tap[i] * source[i]
            for i in range(width):
                dbefore[i] = h[i] * given[i]
                dgiven[i] = h[i] * before[i]
        if begin == 0:
            for t in range(min(kept, time)):
                if resets and starts[row, t]:
                    break
                for m in range(t, kept):
                    out, source, tap = dinputs[row, m], dh[t], columns[m - t]
                    for i in range(width):
                        out[i] += tap[i] * source[i]
