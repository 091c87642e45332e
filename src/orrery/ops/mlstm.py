"""The matrix memory of the xLSTM (mLSTM): scalar decay with exponential gates, a stabiliser and a normaliser.

Paper: 2405.04517, section 2.3 and appendix A.2. Gates travel as logs, ``i_log`` any number and ``f_log`` at most 0:

    m_t = max(f_t + m_{t-1}, i_t)
    C_t = e^{f_t + m_{t-1} - m_t} C_{t-1} + e^{i_t - m_t} k_t v_t^T,   n_t likewise with 1 in the place of v_t
    h_t = scale q_t C_t / (max(|scale q_t n_t|, e^{-m_t}) + eps);      before the first token C, n and m are 0

Given the peaks m, this is the recurrence of :mod:`orrery.ops.scalar_decay` with gates ``f_t + m_{t-1} - m_t <= 0``, write
strengths ``e^{i_t - m_t} <= 1`` and a column of ones beside v, whose output is the normaliser. The state is therefore
``memory`` (B,H,K,V+1), C with n as its last column, and ``m`` (B,H).

Gradients: numerator and normaliser carry the same factor e^{-m}, as the bound e^{-m} does, so m counts as a constant except
beside eps and in the returned state. There its gradient, dm_t = -<dh_t, h_t> eps / (the denominator) and that of the state,
is followed along the tokens that m was passed on by to the gate that made it. So gradients are those of the function as
written, without the large terms that cancel.

Peaks are summed in float64. Any m serves as long as gates and m agree, so that the float32 m of a state costs nothing.

Forms: :func:`mlstm_reference` (the equations as a loop), :func:`mlstm_chunked`, :func:`mlstm_step`. :func:`mlstm` chooses.

B batch, T time, H heads, K key dimension, V value dimension.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.core.errors import StateError
from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, run_blocks
from orrery.ops.operands import check_operands, sizes
from orrery.ops.recompute import recompute, with_ones
from orrery.ops.scalar_decay import scalar_decay

LOWEST = -(2.0**100)
"""Stands for a peak of -inf (both gates shut), so that differences of peaks stay numbers; the same in every type."""

_HIGHEST = 87.0  # e^-m up to 6e37, which float32 holds; what is divided by more is 0 in it

MLSTMState = tuple[Tensor, Tensor]  # memory (B,H,K,V+1), m (B,H)


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i_log: Tensor,
    f_log: Tensor,
    state: MLSTMState | None = None,
    starts: Tensor | None = None,
    lengths: Tensor | None = None,
    scale: float | None = None,
    eps: float = 1e-6,
    chunk: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, MLSTMState]:
    """Run the recurrence over T tokens.

    Args:
        q, k: (B,T,H,K).
        v: (B,T,H,V).
        i_log: (B,T,H), logarithm of the input gate.
        f_log: (B,T,H), logarithm of the forget gate, at most 0; -inf forgets everything.
        state: (memory, m) before the first token; zeros when None.
        starts: (B,T) bool; True zeroes the state before the token is consumed.
        lengths: (B,) int64, valid tokens per row; tokens after them leave the state as it is.
        scale: factor of q, 1 when None.
        eps: added to the denominator.
        chunk: tokens per chunk; None chooses by T.
        backend: `numba` or `torch`; None lets :mod:`orrery.ops.backend` choose.

    Returns:
        h (B,T,H,V) in v's type, and the state after the last valid token, float32 (float64 for float64 v).

    Raises:
        StateError: when an operand, the state or `starts` has a shape that does not fit.
    """
    _check(q, k, v, i_log, f_log, state, starts, lengths, chunk)
    if v.shape[1] == 1 and lengths is None:
        first = None if starts is None else starts[:, 0]
        h, after = mlstm_step(q[:, 0], k[:, 0], v[:, 0], i_log[:, 0], f_log[:, 0], state, first, scale, eps)
        return h[:, None], after
    return mlstm_chunked(q, k, v, i_log, f_log, state, starts, lengths, scale, eps, chunk, backend)


def _check(
    q: Tensor, k: Tensor, v: Tensor, i_log: Tensor, f_log: Tensor, state: MLSTMState | None, starts: Tensor | None,
    lengths: Tensor | None, chunk: int | None,
) -> None:  # fmt: skip
    batch, time, heads, width = sizes("mlstm", "v", v, "BTHV")
    gates = (batch, time, heads)
    if q.shape != k.shape or q.dim() != 4 or q.shape[:3] != gates or i_log.shape != gates or f_log.shape != gates:
        raise StateError(
            f"mlstm was given q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} and gates {tuple(i_log.shape)},"
            f" {tuple(f_log.shape)}; it needs (B,T,H,K) twice, (B,T,H,V) and (B,T,H) twice"
        )
    wanted = (batch, heads, q.shape[3], width + 1), (batch, heads)
    if state is not None and (state[0].shape, state[1].shape) != wanted:
        raise StateError(
            f"mlstm was given a state of shapes {tuple(state[0].shape)} and {tuple(state[1].shape)}; the input needs"
            f" {wanted[0]} and {wanted[1]}"
        )
    operands = {"q": (q, tuple(q.shape)), "k": (k, tuple(k.shape)), "i_log": (i_log, gates), "f_log": (f_log, gates)}
    check_operands("mlstm", operands, (batch, time), starts, lengths, chunk)


def mlstm_initial(
    batch: int, heads: int, keys: int, values: int, device: Any = None, dtype: torch.dtype | None = None
) -> MLSTMState:
    """The state before the first token."""
    memory = torch.zeros(batch, heads, keys, values + 1, device=device, dtype=dtype)
    return memory, memory.new_zeros(batch, heads)


def mlstm_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i_log: Tensor,
    f_log: Tensor,
    state: MLSTMState | None = None,
    starts: Tensor | None = None,
    scale: float | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, MLSTMState]:
    """One token: q, k (B,H,K), v (B,H,V), gates (B,H), starts (B,) -> h (B,H,V) and the new state."""
    kind = torch.float64 if v.dtype == torch.float64 else torch.float32
    given = v.dtype
    q, k, v, i_log, f_log = (x.to(kind) for x in (q, k, v, i_log, f_log))
    if state is None:
        memory, m = mlstm_initial(len(v), v.shape[1], q.shape[-1], v.shape[-1], v.device, kind)
    else:
        memory, m = (x.to(kind) for x in state)
    if starts is not None:
        memory, m = memory.masked_fill(starts[:, None, None, None], 0.0), m.masked_fill(starts[:, None], 0.0)
    peak = torch.maximum(f_log + m, i_log).clamp(min=LOWEST)
    keep, write = (f_log + m - peak).exp(), (i_log - peak).exp()
    written = F.pad(v, (0, 1), value=1.0) * write[..., None]
    memory = memory * keep[..., None, None] + k[..., None] * written[..., None, :]
    queries = q if scale is None else q * scale
    with torch.autocast(v.device.type, enabled=False):
        read = torch.matmul(queries[..., None, :], memory)[..., 0, :]
    bound = torch.maximum(read[..., -1:].abs(), (-peak).clamp(max=_HIGHEST).exp()[..., None])
    return (read[..., :-1] / (bound + eps)).to(given), (memory, peak)


def mlstm_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i_log: Tensor,
    f_log: Tensor,
    state: MLSTMState | None = None,
    starts: Tensor | None = None,
    scale: float | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, MLSTMState]:
    """The equations, token by token; arguments as :func:`mlstm`, gradients are autograd's."""
    out = []
    for t in range(v.shape[1]):
        first = None if starts is None else starts[:, t]
        h, state = mlstm_step(q[:, t], k[:, t], v[:, t], i_log[:, t], f_log[:, t], state, first, scale, eps)
        out.append(h)
    assert state is not None
    return torch.stack(out, 1), state


def mlstm_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i_log: Tensor,
    f_log: Tensor,
    state: MLSTMState | None = None,
    starts: Tensor | None = None,
    lengths: Tensor | None = None,
    scale: float | None = None,
    eps: float = 1e-6,
    chunk: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, MLSTMState]:
    """The peaks by a scan, then scalar decay in chunks, then the division; arguments as :func:`mlstm`."""
    kind = torch.float64 if v.dtype == torch.float64 else torch.float32
    numba = choose(backend, v, op="mlstm", offered=("fla", "numba", "torch")) == "numba"
    memory, first = (None, None) if state is None else (x.to(kind) for x in state)
    i_wide, f_wide = i_log.double(), f_log.double()
    if lengths is not None:
        padding = torch.arange(v.shape[1], device=v.device) >= lengths[:, None]
        i_wide, f_wide = i_wide.masked_fill(padding[..., None], LOWEST), f_wide.masked_fill(padding[..., None], 0.0)
        starts = None if starts is None else starts & ~padding
    zero = i_wide.new_zeros(v.shape[0], v.shape[2])
    m = _Peaks.apply(i_wide, f_wide, zero if first is None else first.double(), starts, numba)
    peak = m.detach()
    before = torch.cat([(zero if first is None else first.detach().double())[:, None], peak[:, :-1]], 1)
    if starts is not None:
        before = before.masked_fill(starts[..., None], 0.0)
    gates = f_wide + torch.minimum(before - peak, -f_wide.detach())  # rounding must not take them above 0
    write = (i_wide - peak).exp()
    values = with_ones(v.to(kind))
    memory = memory if memory is None or first is None else memory * (first - first.detach()).exp()[..., None, None]
    read, memory = scalar_decay(
        q, k, values, gates.to(kind), memory, starts, scale, chunk, backend, beta=write.to(kind), lengths=lengths
    )
    h = recompute(lambda read, m: _Normalise.apply(read, m, eps, numba), read, m)
    last = m[:, -1].to(kind)
    return h.to(v.dtype), (memory * (peak[:, -1] - last).exp().to(kind)[..., None, None], last)


class _Peaks(torch.autograd.Function):
    """m (B,T,H) of i_log and f_log (B,T,H) and the first m (B,H), all float64."""

    @staticmethod
    def forward(ctx: Any, i_log: Tensor, f_log: Tensor, first: Tensor, starts: Tensor | None, numba: bool) -> Tensor:
        i_log, f_log, first = (x.detach().contiguous() for x in (i_log, f_log, first))
        marks = torch.zeros(len(i_log), 0, dtype=torch.bool) if starts is None else starts.contiguous()
        m, passed = torch.empty_like(i_log), torch.empty_like(i_log, dtype=torch.bool)
        if numba:
            arrays = [x.numpy() for x in (i_log, f_log, first, marks, m, passed)]
            run_blocks(_peaks, len(i_log), 4 * i_log.numel(), *arrays)
        else:
            m = _peaks_torch(i_log, f_log, first, starts)
            before = torch.cat([first[:, None], m[:, :-1]], 1)
            if starts is not None:
                before = before.masked_fill(starts[..., None], 0.0)
            passed = before + f_log >= i_log
        ctx.save_for_backward(passed, starts)
        return m

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dm: Tensor) -> tuple[Tensor | None, ...]:
        passed, starts = ctx.saved_tensors
        cut = ~passed  # m_t owes nothing to m_{t-1}
        if starts is not None:
            cut = cut | starts[..., None]
        time = dm.shape[1]
        total = F.pad(dm.flip(1).cumsum(1).flip(1), (0, 0, 0, 1))
        steps = torch.arange(time, device=dm.device)[:, None]
        later = torch.where(cut, steps, time).flip(1).cummin(1).values.flip(1)  # next cut, the token itself included
        later = F.pad(later[:, 1:], (0, 0, 0, 1), value=time)
        carried = total[:, :-1] - total.gather(1, later)  # from a token and those that its m was passed on to
        di, df = carried.masked_fill(passed, 0.0), carried.masked_fill(~passed, 0.0)
        return di, df, carried[:, 0].masked_fill(cut[:, 0], 0.0), None, None


def _peaks_torch(i_log: Tensor, f_log: Tensor, first: Tensor, starts: Tensor | None) -> Tensor:
    """``m_t = max(m_{t-1} + f_t, i_t)`` over T, about sqrt(T) operations on sqrt(T) tokens each; (B,T,H)."""
    if starts is not None:  # behind a start stands m = 0: f_t is then a key, and nothing is passed on
        i_log = torch.where(starts[..., None], torch.maximum(i_log, f_log), i_log)
        f_log = f_log.masked_fill(starts[..., None], -torch.inf)
    batch, time, heads = i_log.shape
    chunk = max(1, int(time**0.5))
    chunks = -(-time // chunk)
    short = (0, 0, 0, chunks * chunk - time)
    m = F.pad(i_log, short, value=LOWEST).view(batch, chunks, chunk, heads).clone()
    step = F.pad(f_log, short).view(batch, chunks, chunk, heads)
    for t in range(1, chunk):
        torch.maximum(m[:, :, t], m[:, :, t - 1] + step[:, :, t], out=m[:, :, t])
    reach, carried = step.cumsum(2), torch.empty_like(m[:, :, 0])
    for n in range(chunks):
        carried[:, n] = first
        first = torch.maximum(m[:, n, -1], first + reach[:, n, -1])
    torch.maximum(m, carried[:, :, None] + reach, out=m)
    return m.view(batch, chunks * chunk, heads)[:, :time].clamp(min=LOWEST)


class _Normalise(torch.autograd.Function):
    """h (B,T,H,V) from what was read (B,T,H,V+1) and m (B,T,H), whose gradient is that of eps alone."""

    @staticmethod
    def forward(ctx: Any, read: Tensor, m: Tensor, eps: float, numba: bool) -> Tensor:
        bound = (-m).clamp(max=_HIGHEST).exp().to(read.dtype)
        if numba:
            read, h = read.detach().contiguous(), read.new_empty(*read.shape[:3], read.shape[3] - 1)
            below = torch.empty_like(bound)  # the denominator, negative where the normaliser is, 0 where the bound holds
            rows = (read.view(-1, read.shape[-1]), bound.view(-1), h.view(-1, h.shape[-1]), below.view(-1))
            run_blocks(_normalise, bound.numel(), 2 * read.numel(), *(x.numpy() for x in rows), eps)
            share = torch.where(read[..., -1].abs() > bound, read[..., -1].sign(), 0.0)
        else:
            normaliser = read[..., -1]
            share = torch.where(normaliser.abs() > bound, normaliser.sign(), 0.0)
            below = torch.maximum(normaliser.abs(), bound) + eps
            h = read[..., :-1] / below[..., None]
        ctx.save_for_backward(h, below, share)
        ctx.eps, ctx.numba = eps, numba
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        h, below, share = ctx.saved_tensors
        dread = h.new_empty(*h.shape[:3], h.shape[3] + 1)
        if ctx.numba:
            slope = torch.empty_like(below)
            rows = (dh.contiguous().view(-1, h.shape[-1]), h.view(-1, h.shape[-1]), below.view(-1), share.view(-1))
            more = (dread.view(-1, dread.shape[-1]), slope.view(-1))
            run_blocks(_normalise_gradient, below.numel(), 3 * h.numel(), *(x.detach().numpy() for x in (*rows, *more)))
        else:
            slope = (dh * h).sum(-1) / below
            torch.div(dh, below[..., None], out=dread[..., :-1])
            torch.mul(-slope, share, out=dread[..., -1])
        return dread, slope.double() * -ctx.eps, None, None


@compiled
def _peaks(first, last, i_log, f_log, before, starts, m, passed):  # type: ignore[no-untyped-def]
    time, heads = i_log.shape[1:]
    resets = starts.shape[1] > 0
    held = np.empty(heads)
    for row in range(first, last):
        held[:] = before[row]
        for t in range(time):
            if resets and starts[row, t]:
                held[:] = 0.0
            for h in range(heads):
                old, new = held[h] + f_log[row, t, h], i_log[row, t, h]
                passed[row, t, h] = old >= new
                peak = old if old >= new or old != old else new  # a NaN stays
                peak = LOWEST if peak < LOWEST else peak
                held[h] = peak
                m[row, t, h] = peak


@compiled
def _normalise(first, last, read, bound, h, below, eps):  # type: ignore[no-untyped-def]
    values = h.shape[1]
    for row in range(first, last):
        given, out = read[row, :values], h[row]
        size = abs(read[row, values])
        under = (bound[row] if bound[row] > size else size) + eps
        below[row] = under
        factor = read.dtype.type(1.0 / under)
        for j in range(values):
            out[j] = given[j] * factor


@compiled
def _normalise_gradient(first, last, dh, h, below, share, dread, slope):  # type: ignore[no-untyped-def]
    values = h.shape[1]
    lanes = np.empty(16, h.dtype)
    even = values - values % 16
    for row in range(first, last):
        given, out, into = dh[row], h[row], dread[row, :values]
        factor = h.dtype.type(1.0 / below[row])
        lanes[:] = 0
        for begin in range(0, even, 16):
            for j in range(16):
                lanes[j] += given[begin + j] * out[begin + j]
        for i in range(even, values):
            lanes[0] += given[i] * out[i]
        for j in range(values):
            into[j] = given[j] * factor
        total = lanes.sum() * factor
        slope[row] = total
        dread[row, values] = -total * share[row]
