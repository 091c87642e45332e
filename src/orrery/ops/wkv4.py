"""The recurrence of RWKV-4: an average of all values, weighted by exponentials of keys that fade at a fixed rate.

Paper: 2305.13048, section 3.1 and its appendix on the recurrent form. With decay ``w_log <= 0`` and bonus ``u`` per channel,

    ``y_t = (sum_{s<t} e^{k_s + (t-1-s) w_log} v_s + e^{u + k_t} v_t) / (the same sum without v)``.

As a recurrence: ``num' = e^{w_log} num + e^{k_t} v_t`` and ``den' = e^{w_log} den + e^{k_t}``. Keys are unbounded, so the state
holds ``num e^{-peak}``, ``den e^{-peak}`` and the running maximum ``peak' = max(peak + w_log, k_t)``; no exponent is ever
positive. Given the peaks it is a diagonal scan with gate ``peak + w_log - peak'`` (:mod:`orrery.ops.diagonal_scan`).

Gradients: numerator and denominator carry the same factor ``e^{-peak}``, which cancels in y, so peaks count as constants.
Only the returned state shows them: there, and in the initial state, their gradient is followed to the key (or the initial
peak, and the decay) that made the maximum, so that gradients are those of the function as written.

Forms: :func:`wkv4_reference` (the equation as a loop), :func:`wkv4_chunked` (torch, parallel over chunks),
:func:`wkv4_step` (one token), and a compiled loop (numba, CPU) that keeps the state in float64 and reads every number once;
its backward pass recomputes each stretch of tokens from a stored state. :func:`wkv4` chooses.

B batch, T time, D width, N chunks, C chunk length.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.ops import fla
from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, exp, run_blocks
from orrery.ops.diagonal_scan import diagonal_scan_chunked
from orrery.ops.operands import check_operands, sizes

NO_PEAK = -1e38  # the running maximum of nothing, as the published checkpoints' code writes it
_BLOCK = 32  # channels that one thread scans together
_STRETCH = 16  # tokens between stored states

WKVState = tuple[Tensor, Tensor, Tensor]  # num, den, peak: (B,D) each


def wkv4_initial(
    batch: int, width: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> WKVState:
    """The state before the first token: (num, den, peak), each (B,D)."""
    zero = torch.zeros(batch, width, device=device, dtype=dtype)
    return zero, zero.clone(), torch.full_like(zero, NO_PEAK)


def wkv4(
    k: Tensor,
    v: Tensor,
    w_log: Tensor,
    u: Tensor,
    state: WKVState | None = None,
    starts: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, WKVState]:
    """RWKV-4's weighted average over the past.

    Args:
        k, v: keys and values (B,T,D).
        w_log: logarithm of the decay per token (D,), at most 0 (RWKV's `-exp(time_decay)`).
        u: bonus of the current token (D,), RWKV's `time_first`.
        state: (num, den, peak), each (B,D); None is the state before the first token.
        starts: (B,T) bool; True empties the state before the token is consumed.
        lengths: (B,) int64, valid tokens per row; tokens after them leave the state as it is and give y = 0.
        backend: `numba`, `fla` (no starts, no lengths) or `torch`; None lets :mod:`orrery.ops.backend` choose.

    Returns:
        y (B,T,D) in v's type, and the state after the last valid token, float32 (float64 for float64 inputs).

    Raises:
        StateError: when the state or `starts` has another shape.
    """
    batch, time, width = sizes("wkv4", "k", k, "BTD")
    kind = torch.float64 if v.dtype == torch.float64 else torch.float32
    operands = {"v": (v, (batch, time, width)), "w_log": (w_log, (width,)), "u": (u, (width,))}
    for part in state or ():
        check_operands("wkv4", {"state": (part, (batch, width))}, (batch, time))
    check_operands("wkv4", operands, (batch, time), starts, lengths)
    num, den, peak = wkv4_initial(batch, width, k.device, kind) if state is None else (x.to(kind) for x in state)
    inputs = (k.to(kind), v.to(kind), w_log.to(kind), u.to(kind), num, den, peak)
    obstacle = None if starts is None and lengths is None else fla.no_documents(k)
    use = choose(backend, k, op="wkv4", offered=fla.offered("wkv4", obstacle))
    if use == "numba":
        y, *after = _CompiledWKV.apply(*inputs, starts, lengths)
        return y.to(v.dtype), (after[0], after[1], after[2])
    if time == 1 and lengths is None:
        y, last = wkv4_step(*inputs[:4], (num, den, peak), starts)
    elif use == "fla":
        y, last = fla.wkv4(*inputs[:4], (num, den, peak))
    else:
        y, last = wkv4_chunked(*inputs[:4], (num, den, peak), starts, lengths)
    return y.to(v.dtype), last


def wkv4_step(
    k: Tensor, v: Tensor, w_log: Tensor, u: Tensor, state: WKVState, starts: Tensor | None = None
) -> tuple[Tensor, WKVState]:
    """One token: k, v (B,1,D), state of (B,D), starts (B,1). Returns y (B,1,D) and the new state."""
    num, den, peak = state
    k, v = k[:, 0], v[:, 0]
    if starts is not None:
        num, den = torch.where(starts, 0.0, num), torch.where(starts, 0.0, den)
        peak = torch.where(starts, NO_PEAK, peak)
    top = torch.maximum(peak, k + u)
    past, now = (peak - top).exp(), (k + u - top).exp()
    y = (past * num + now * v) / (past * den + now)  # 2305.13048, the appendix's recurrent form
    top = torch.maximum(peak + w_log, k)
    past, now = (peak + w_log - top).exp(), (k - top).exp()
    return y[:, None], (past * num + now * v, past * den + now, top)


def wkv4_reference(
    k: Tensor, v: Tensor, w_log: Tensor, u: Tensor, state: WKVState | None = None, starts: Tensor | None = None
) -> tuple[Tensor, WKVState]:
    """The equation, token by token. Shapes as in :func:`wkv4`; gradients are autograd's."""
    state = wkv4_initial(k.shape[0], k.shape[2], k.device, k.dtype) if state is None else state
    out = []
    for t in range(k.shape[1]):
        now = None if starts is None else starts[:, t : t + 1]
        y, state = wkv4_step(k[:, t : t + 1], v[:, t : t + 1], w_log, u, state, now)
        out.append(y)
    return torch.cat(out, 1), state


def wkv4_matrix(k: Tensor, w_log: Tensor, u: Tensor, starts: Tensor | None = None) -> Tensor:
    """The matrices (B,D,T,T) with ``y = M v`` channel by channel; every row sums to 1. For short T."""
    time = k.shape[1]
    steps = torch.arange(time, device=k.device)
    ago = steps[:, None] - steps - 1
    fading = ago.clamp(min=0).to(k.dtype)[None] * w_log.clamp(min=-1e30)[:, None, None]
    scores = k.transpose(1, 2)[:, :, None] + torch.where(ago < 0, u[:, None, None], fading)
    seen = ago >= -1
    if starts is not None:
        document = starts.cumsum(1)
        seen = (seen & (document[:, :, None] == document[:, None]))[:, None]
    return scores.masked_fill(~seen, -math.inf).softmax(-1)


def wkv4_chunked(
    k: Tensor,
    v: Tensor,
    w_log: Tensor,
    u: Tensor,
    state: WKVState | None = None,
    starts: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, WKVState]:
    """Parallel over chunks: the peaks by a scan of maxima, then the two sums by one diagonal scan. Shapes as in :func:`wkv4`."""
    batch, time, width = k.shape
    num, den, peak = wkv4_initial(batch, width, k.device, k.dtype) if state is None else state
    gate, key, padding = w_log.expand(k.shape), k, None
    if lengths is not None:
        padding = (torch.arange(time, device=k.device) >= lengths[:, None])[..., None]
        gate, key = gate.masked_fill(padding, 0.0), k.masked_fill(padding, NO_PEAK)
        starts = None if starts is None else starts & ~padding[..., 0]
    if starts is not None:
        gate = gate.masked_fill(starts[..., None], -math.inf)
    peaks = _running_max(key.detach(), gate.detach(), peak.detach())
    before = torch.cat([peak.detach()[:, None], peaks[:, :-1]], 1)
    scale = (peak - peak.detach()).exp()  # 1, with the gradient of the initial peak
    num, den = num * scale, den * scale

    weight = (key - peaks).exp()
    if padding is not None:
        weight = weight.masked_fill(padding, 0.0)
    inputs = torch.cat([weight * v, weight], 2)
    sums, last = diagonal_scan_chunked((before + gate - peaks).repeat(1, 1, 2), inputs, torch.cat([num, den], 1))
    earlier = torch.cat([torch.cat([num, den], 1)[:, None], sums[:, :-1]], 1)
    if starts is not None:
        earlier = earlier.masked_fill(starts[..., None], 0.0)
        before = before.masked_fill(starts[..., None], NO_PEAK)
    top = torch.maximum(before, key + u).detach()
    past, now = (before - top).exp(), (key + u - top).exp()
    y = (past * earlier[..., :width] + now * v) / (past * earlier[..., width:] + now)
    if padding is not None:
        y = y.masked_fill(padding, 0.0)
    final = _final_peak(key, gate, w_log, peak, peaks, before, lengths)
    last = last * (peaks[:, -1] - final).exp().repeat(1, 2)
    return y, (last[:, :width], last[:, width:], final)


def _running_max(key: Tensor, gate: Tensor, peak: Tensor) -> Tensor:
    """``m_t = max(m_{t-1} + gate_t, key_t)`` over T, parallel over chunks; (B,T,D)."""
    batch, time, width = key.shape
    chunk = max(1, math.isqrt(time))
    chunks = -(-time // chunk)
    short = (0, 0, 0, chunks * chunk - time)
    m = F.pad(key, short, value=NO_PEAK).view(batch, chunks, chunk, width).clone()
    step = F.pad(gate, short).view(batch, chunks, chunk, width)
    for i in range(1, chunk):
        torch.maximum(m[:, :, i], m[:, :, i - 1] + step[:, :, i], out=m[:, :, i])
    reach = step.cumsum(2)
    carried = torch.empty_like(m[:, :, 0])
    for n in range(chunks):
        carried[:, n] = peak
        peak = torch.maximum(m[:, n, -1], peak + reach[:, n, -1])
    torch.maximum(m, carried[:, :, None] + reach, out=m)
    return m.view(batch, chunks * chunk, width)[:, :time].clamp(min=NO_PEAK)


def _final_peak(
    key: Tensor, gate: Tensor, w_log: Tensor, peak: Tensor, peaks: Tensor, before: Tensor, lengths: Tensor | None
) -> Tensor:
    """The last running maximum (B,D) as a differentiable function of the key, or initial peak, that made it."""
    time = key.shape[1]
    end = torch.full_like(key[:, 0, :1], time, dtype=torch.int64) if lengths is None else lengths[:, None]
    index = torch.arange(time, device=key.device)[:, None]
    sets = (key.detach() >= before + gate.detach()) & (index < end[:, None])
    made = torch.where(sets, index, -1).amax(1)
    source = torch.where(made >= 0, key.gather(1, made.clamp(min=0)[:, None])[:, 0], peak)
    path = source + (end - 1 - made) * w_log.clamp(min=-1e30)
    return peaks[:, -1] + (path - path.detach())


class _CompiledWKV(torch.autograd.Function):
    """The compiled loop with its gradient. Saves the inputs and the state at every stretch of tokens."""

    @staticmethod
    def forward(ctx: Any, k, v, w_log, u, num, den, peak, starts, lengths):  # type: ignore[no-untyped-def]
        inputs = [x.contiguous() for x in (k, v, w_log, u, num, den, peak)]
        batch, time, width = k.shape
        starts = torch.zeros(batch, 0, dtype=torch.bool) if starts is None else starts.contiguous()
        lengths = torch.full((batch,), time) if lengths is None else lengths.contiguous()
        wanted = any(ctx.needs_input_grad)
        kept = torch.empty(batch, -(-time // _STRETCH) if wanted else 0, 3, width, dtype=torch.float64)
        outputs = [torch.empty_like(inputs[0]), *(torch.empty_like(num) for _ in range(3))]
        arrays = [x.detach().numpy() for x in (*inputs, starts, lengths, *outputs, kept)]
        run_blocks(_wkv_forward, batch * -(-width // _BLOCK), 4 * k.numel(), *arrays)
        if wanted:
            ctx.save_for_backward(*inputs, starts, lengths, *outputs[1:3], kept)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        k, num = saved[0], saved[4]
        batch, _, width = k.shape
        outputs = [torch.empty_like(k), torch.empty_like(k), *(torch.empty_like(num) for _ in range(5))]
        arrays = [x.contiguous().numpy() for x in (*saved, *grads, *outputs)]
        run_blocks(_wkv_backward, batch * -(-width // _BLOCK), 8 * k.numel(), *arrays)
        dk, dv, dw, du, dnum, dden, dpeak = outputs
        return dk, dv, dw.sum(0), du.sum(0), dnum, dden, dpeak, None, None


# Of the two weights in a sum the greater is 1, so that one exponential gives both. Rows are taken as slices and indexed by
# the loop variable alone, which the compiler can vectorise.


@compiled
def _wkv_forward(  # type: ignore[no-untyped-def]
    first, last, k, v, w_log, u, num, den, peak, starts, lengths, y, num_after, den_after, peak_after, kept
):
    time, width = k.shape[1], k.shape[2]
    columns = -(-width // _BLOCK)
    resets, keeps = starts.shape[1] > 0, kept.shape[1] > 0
    state = np.empty((5, _BLOCK))
    a, b, m, decay, bonus = state[0], state[1], state[2], state[3], state[4]
    for block in range(first, last):
        row, low = block // columns, (block % columns) * _BLOCK
        high, end = min(low + _BLOCK, width), min(time, lengths[row])
        size = high - low
        a[:size], b[:size], m[:size] = num[row, low:high], den[row, low:high], peak[row, low:high]
        decay[:size], bonus[:size] = w_log[low:high], u[low:high]
        for t in range(end):
            if keeps and t % _STRETCH == 0:
                kept[row, t // _STRETCH, :, low:high] = state[:3, :size]
            if resets and starts[row, t]:
                a[:size], b[:size], m[:size] = 0.0, 0.0, NO_PEAK
            keys, values, out = k[row, t, low:high], v[row, t, low:high], y[row, t, low:high]
            for i in range(size):
                key, value = np.float64(keys[i]), np.float64(values[i])
                gap = m[i] - (key + bonus[i])
                small = exp(-abs(gap))
                past, now = (1.0, small) if gap > 0 else (small, 1.0)
                out[i] = (past * a[i] + now * value) / (past * b[i] + now)
                gap = m[i] + decay[i] - key
                small = exp(-abs(gap))
                past, now = (1.0, small) if gap > 0 else (small, 1.0)
                a[i] = past * a[i] + now * value
                b[i] = past * b[i] + now
                m[i] = m[i] + decay[i] if gap > 0 else key
        y[row, end:, low:high] = 0.0
        num_after[row, low:high], den_after[row, low:high], peak_after[row, low:high] = a[:size], b[:size], m[:size]


@compiled
def _wkv_backward(  # type: ignore[no-untyped-def]
    first, last, k, v, w_log, u, num, den, peak, starts, lengths, num_after, den_after, kept,
    dy, dnum_after, dden_after, dpeak_after, dk, dv, dw, du, dnum, dden, dpeak,
):  # fmt: skip
    time, width = k.shape[1], k.shape[2]
    columns = -(-width // _BLOCK)
    resets = starts.shape[1] > 0
    states = np.empty((3, _STRETCH + 1, _BLOCK))  # num, den, peak before each token of a stretch
    weights = np.empty((3, _STRETCH, _BLOCK))  # of past and present in the update; whether the peak came from the past
    rows = np.empty((7, _BLOCK))
    decay, bonus, ga, gb, gm, gw, gu = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6]
    for block in range(first, last):
        row, low = block // columns, (block % columns) * _BLOCK
        high, end = min(low + _BLOCK, width), min(time, lengths[row])
        size = high - low
        decay[:size], bonus[:size], gw[:size], gu[:size] = w_log[low:high], u[low:high], 0.0, 0.0
        ga[:size], gb[:size] = dnum_after[row, low:high], dden_after[row, low:high]
        gm[:size] = dpeak_after[row, low:high]
        a, b = num_after[row, low:high], den_after[row, low:high]
        for i in range(size):
            gm[i] -= ga[i] * a[i] + gb[i] * b[i]
        dk[row, end:, low:high] = 0.0
        dv[row, end:, low:high] = 0.0
        for stretch in range((end + _STRETCH - 1) // _STRETCH - 1, -1, -1):
            start = stretch * _STRETCH
            steps = min(_STRETCH, end - start)
            states[:, 0, :size] = kept[row, stretch, :, low:high]
            for s in range(steps):
                if resets and starts[row, start + s]:
                    states[0, s, :size], states[1, s, :size], states[2, s, :size] = 0.0, 0.0, NO_PEAK
                keys, values = k[row, start + s, low:high], v[row, start + s, low:high]
                a, b, m, past, now = states[0, s], states[1, s], states[2, s], weights[0, s], weights[1, s]
                a_next, b_next, m_next, kept_peak = states[0, s + 1], states[1, s + 1], states[2, s + 1], weights[2, s]
                for i in range(size):
                    key = np.float64(keys[i])
                    gap = m[i] + decay[i] - key
                    small = exp(-abs(gap))
                    older, newer = (1.0, small) if gap > 0 else (small, 1.0)
                    past[i] = older
                    now[i] = newer
                    kept_peak[i] = 1.0 if gap > 0 else 0.0
                    a_next[i] = older * a[i] + newer * values[i]
                    b_next[i] = older * b[i] + newer
                    m_next[i] = m[i] + decay[i] if gap > 0 else key
            for s in range(steps - 1, -1, -1):
                t = start + s
                keys, values, given = k[row, t, low:high], v[row, t, low:high], dy[row, t, low:high]
                a, b, m, past, now, kept_peak = (
                    states[0, s], states[1, s], states[2, s], weights[0, s], weights[1, s], weights[2, s],
                )  # fmt: skip
                dkey, dvalue = dk[row, t, low:high], dv[row, t, low:high]
                for i in range(size):
                    value = np.float64(values[i])
                    gap = m[i] - (keys[i] + bonus[i])
                    small = exp(-abs(gap))
                    before, here = (1.0, small) if gap > 0 else (small, 1.0)
                    below = 1.0 / (before * b[i] + here)
                    out = (before * a[i] + here * value) * below
                    top = given[i] * below
                    dbonus = here * top * (value - out)
                    gu[i] += dbonus
                    gw[i] += past[i] * (a[i] * ga[i] + b[i] * gb[i]) + kept_peak[i] * gm[i]
                    dvalue[i] = here * top + now[i] * ga[i]
                    dkey[i] = dbonus + now[i] * (value * ga[i] + gb[i]) + (1.0 - kept_peak[i]) * gm[i]
                    gm[i] = kept_peak[i] * gm[i]
                    ga[i] = past[i] * ga[i] + before * top
                    gb[i] = past[i] * gb[i] - before * top * out
                if resets and starts[row, t]:
                    ga[:size], gb[:size], gm[:size] = 0.0, 0.0, 0.0
        dw[row, low:high], du[row, low:high] = gw[:size], gu[:size]
        dnum[row, low:high], dden[row, low:high] = ga[:size], gb[:size]
        a, b, to_peak = num[row, low:high], den[row, low:high], dpeak[row, low:high]
        for i in range(size):
            to_peak[i] = a[i] * ga[i] + b[i] * gb[i] + gm[i]
