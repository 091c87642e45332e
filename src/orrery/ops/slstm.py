"""The scalar memory of the xLSTM (sLSTM): an LSTM with exponential gates, whose heads see only their own past.

Paper: 2405.04517, section 2.2 and appendix A.1, stabilised. Gates in the order i, f, z, o, per head:

    [i, f, z, o] = gates_x_t + h_{t-1} R;   log f = log sigmoid(f);   m_t = max(log f + m_{t-1}, i)
    c_t = e^{log f + m_{t-1} - m_t} c_{t-1} + e^{i - m_t} tanh(z),   n_t likewise with 1 in the place of tanh(z)
    h_t = sigmoid(o) c_t / n_t;      before the first token h, c, n are 0 and m is -1e38

The past's weight and the token's are at most 1, and the greater is 1, so n_t >= 1 and nothing overflows.

Gradients: c and n carry the same factor e^{-m}, which cancels in h, so m counts as a constant; only the returned state shows
it, and there its gradient is followed to the gate that made it (as in :mod:`orrery.ops.wkv4`).

Forms: :func:`slstm_reference` (the equations as a loop, autograd's gradients), :func:`slstm_step` (one token), and a loop with
a derived gradient: one batched product with R per token, the rest in one compiled kernel (numba, CPU) or in torch; the
gradient of R is one product over all tokens. :func:`slstm` chooses.

B batch, T time, H heads, K width of a head.
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
from orrery.ops.compiled import compiled, exp, sigmoid, tanh
from orrery.ops.lstm import marks, stepper
from orrery.ops.operands import check_operands, exactly, sizes
from orrery.ops.wkv4 import NO_PEAK

SLSTMState = tuple[Tensor, Tensor, Tensor, Tensor]  # h, c, n, m: (B,H,K) each
_ONE = np.float32(1.0)  # in a kernel, a Python 1 would turn float32 into float64


def slstm_initial(
    batch: int, heads: int, width: int, device: Any = None, dtype: torch.dtype | None = None
) -> SLSTMState:
    """The state before the first token."""
    zero = torch.zeros(batch, heads, width, device=device, dtype=dtype)
    return zero, zero.clone(), zero.clone(), torch.full_like(zero, NO_PEAK)


def slstm(
    gates_x: Tensor,
    weight: Tensor,
    state: SLSTMState | None = None,
    starts: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, SLSTMState]:
    """Run the recurrence over T tokens.

    Args:
        gates_x: the input's part of the gates, bias included (B,T,H,4K), order i, f, z, o within a head.
        weight: R of every head (H,K,4K).
        state: (h, c, n, m) before the first token; None: nothing seen.
        starts: (B,T) bool; True empties the state before the token is consumed.
        lengths: (B,) int64, valid tokens per row; tokens after them leave the state as it is and give h = 0.
        backend: `numba` or `torch`; None lets :mod:`orrery.ops.backend` choose.

    Returns:
        all h (B,T,H,K) in gates_x's type, and the state after the last valid token, float32 (float64 for float64 inputs).

    Raises:
        StateError: when an operand, the state or `starts` has a shape that does not fit.
    """
    batch, time, heads, total = sizes("slstm", "gates_x", gates_x, "BTHG")
    width = total // 4
    if total % 4 or weight.shape != (heads, width, total):
        raise StateError(
            f"slstm was given gates {tuple(gates_x.shape)} and a weight {tuple(weight.shape)}; it needs (B,T,H,4K) and (H,K,4K)"
        )
    if state is not None and any(part.shape != (batch, heads, width) for part in state):
        raise StateError(f"slstm was given a state of shape {tuple(state[0].shape)}; the input needs {(batch, heads, width)}")
    check_operands("slstm", {"weight": (weight, (heads, width, total))}, (batch, time), starts, lengths)
    kind = torch.float64 if gates_x.dtype == torch.float64 else torch.float32
    held = slstm_initial(batch, heads, width, gates_x.device, kind) if state is None else state
    held = (held[0].to(kind), held[1].to(kind), held[2].to(kind), held[3].to(kind))
    use = choose(backend, gates_x, op="slstm")
    with torch.autocast(gates_x.device.type, enabled=False):
        if time == 1 and starts is None and lengths is None:
            y, after = slstm_step(gates_x[:, 0].to(kind), weight.to(kind), held)
            return y[:, None].to(gates_x.dtype), after
        y, h, c, n, m = _SLSTM.apply(gates_x.to(kind), weight.to(kind), *held, starts, lengths, use)
    return y.to(gates_x.dtype), (h, c, n, m)


def slstm_step(gates_x: Tensor, weight: Tensor, state: SLSTMState) -> tuple[Tensor, SLSTMState]:
    """One token: gates_x (B,H,4K) -> h (B,H,K) and the new state."""
    h, c, n, m = state
    i, f, z, o = (gates_x + torch.matmul(h[:, :, None], weight)[:, :, 0]).chunk(4, -1)
    passed = F.logsigmoid(f) + m
    peak = torch.maximum(passed, i)
    keep, write = (passed - peak).exp(), (i - peak).exp()
    c, n = keep * c + write * torch.tanh(z), keep * n + write
    h = torch.sigmoid(o) * c / n
    return h, (h, c, n, peak)


def slstm_reference(
    gates_x: Tensor, weight: Tensor, state: SLSTMState | None = None, starts: Tensor | None = None
) -> tuple[Tensor, SLSTMState]:
    """The equations, token by token. Shapes as in :func:`slstm`; gradients are autograd's."""
    batch, time, heads, total = gates_x.shape
    fresh = slstm_initial(batch, heads, total // 4, gates_x.device, gates_x.dtype)
    held, out = (fresh if state is None else state), []
    for t in range(time):
        if starts is not None:
            first = starts[:, t, None, None]
            held = tuple(torch.where(first, new, old) for new, old in zip(fresh, held, strict=True))  # type: ignore[assignment]
        y, held = slstm_step(gates_x[:, t], weight, held)
        out.append(y)
    return torch.stack(out, 1), held


class _SLSTM(torch.autograd.Function):
    """The loop over tokens with its gradient; inside, arrays are (T,H,B,...). Saves the activated
    gates (of the forget gate its logarithm), c, n, m and h."""

    @staticmethod
    def forward(ctx: Any, gates_x, weight, h0, c0, n0, m0, starts, lengths, use):  # type: ignore[no-untyped-def]
        gates = torch.empty_like(gates_x.permute(1, 2, 0, 3), memory_format=torch.contiguous_format)
        gates.copy_(gates_x.permute(1, 2, 0, 3))
        time, heads, batch, total = gates.shape
        cells, y = gates.new_empty(time, 3, heads, batch, total // 4), gates.new_empty(time, heads, batch, total // 4)
        resets, ends = marks(starts, lengths, gates_x.transpose(0, 1))
        held = [x.transpose(0, 1).contiguous() for x in (h0, c0, n0, m0)]
        held = [x.clone() if x.data_ptr() == o.data_ptr() else x for x, o in zip(held, (h0, c0, n0, m0), strict=True)]
        for x, empty in zip(held, (0.0, 0.0, 0.0, NO_PEAK), strict=True):
            x.masked_fill_(resets[0][:, None], empty)
        h = held[0]
        step = stepper(use, _forward, _forward_torch, (resets, ends, *held, gates, cells, y))
        for t, now in enumerate(gates.unbind()):
            torch.baddbmm(now, h, weight, out=now)
            step(t)
        ctx.save_for_backward(weight, h0, c0, n0, m0, resets, ends, gates, cells, y, held[1], held[2])
        ctx.use = use
        return y.permute(2, 0, 1, 3), *(x.transpose(0, 1) for x in held)

    @staticmethod
    @once_differentiable
    @exactly
    def backward(ctx: Any, dy: Tensor, *last: Tensor) -> tuple[Tensor | None, ...]:
        weight, h0, c0, n0, m0, resets, ends, gates, cells, y, c_last, n_last = ctx.saved_tensors
        time, heads, _, width = y.shape
        dh_last, dc, dn, dm = (x.transpose(0, 1).clone(memory_format=torch.contiguous_format) for x in last)
        dm -= dc * c_last + dn * n_last
        dgates, dh = torch.empty_like(gates), torch.zeros_like(dc)
        before = [x.transpose(0, 1).contiguous() for x in (c0, n0, m0)]
        slopes = dy.permute(1, 2, 0, 3).contiguous()
        arrays = (gates, cells, *before, resets, ends, slopes, dh_last, dh, dc, dn, dm, dgates)
        step = stepper(ctx.use, _backward, _backward_torch, arrays)
        back = weight.transpose(1, 2).contiguous()
        for t in range(time - 1, -1, -1):
            step(t)
            torch.bmm(dgates[t], back, out=dh)
        found = torch.cat([h0.transpose(0, 1)[None], y[:-1]]).masked_fill_(resets[:, None, :, None], 0.0)
        found = found.permute(1, 3, 0, 2).reshape(heads, width, -1)
        dweight = found @ dgates.transpose(0, 1).reshape(heads, -1, 4 * width)
        dh = torch.where((ends == 0)[:, None], dh_last, dh)
        dm += dc * before[0] + dn * before[1]
        outcome = [x.masked_fill_(resets[0][:, None], 0.0).transpose(0, 1) for x in (dh, dc, dn, dm)]
        return dgates.permute(2, 0, 1, 3), dweight, *outcome, None, None, None


@compiled
def _forward(t, resets, ends, h, c, n, m, gates, cells, y):  # type: ignore[no-untyped-def]
    heads, batch, width = h.shape
    for head in range(heads):
        for row in range(batch):
            if t >= ends[row]:
                y[t, head, row, :] = 0.0
                continue
            enter, keep = gates[t, head, row, :width], gates[t, head, row, width : 2 * width]
            new, leave = gates[t, head, row, 2 * width : 3 * width], gates[t, head, row, 3 * width :]
            cell, norm, peak, out = c[head, row], n[head, row], m[head, row], h[head, row]
            kept_c, kept_n, kept_m = cells[t, 0, head, row], cells[t, 1, head, row], cells[t, 2, head, row]
            for i in range(width):
                new[i] = tanh(new[i])
            for i in range(width):
                leave[i] = sigmoid(leave[i])
            for i in range(width):
                raw, given, old = np.float64(keep[i]), np.float64(enter[i]), np.float64(peak[i])
                fade = min(raw, 0.0) - np.log1p(exp(-abs(raw)))
                passed = old + fade
                gap = passed - given
                weight = exp(-abs(gap))
                past, now = (1.0, weight) if gap > 0.0 else (weight, 1.0)
                cell[i] = past * cell[i] + now * new[i]
                norm[i] = past * norm[i] + now
                peak[i] = passed if gap > 0.0 else given
                enter[i] = now
                keep[i] = fade
            for i in range(width):
                kept_c[i] = cell[i]
                kept_n[i] = norm[i]
                kept_m[i] = peak[i]
                out[i] = leave[i] * cell[i] / norm[i]
                y[t, head, row, i] = out[i]
            if t + 1 < ends[row] and resets[t + 1, row]:
                out[:] = 0.0
                cell[:] = 0.0
                norm[:] = 0.0
                peak[:] = NO_PEAK


def _forward_torch(
    t: int, resets: Tensor, ends: Tensor, h: Tensor, c: Tensor, n: Tensor, m: Tensor, gates: Tensor, cells: Tensor, y: Tensor
) -> None:
    i, f, z, o = gates[t].chunk(4, -1)
    live = (ends > t)[:, None]
    f.copy_(F.logsigmoid(f))
    passed = f + m
    peak = torch.maximum(passed, i)
    now, past = (i - peak).exp(), (passed - peak).exp()
    z.tanh_()
    o.sigmoid_()
    i.copy_(now)
    cells[t, 0], cells[t, 1], cells[t, 2] = past * c + now * z, past * n + now, peak
    torch.mul(o, cells[t, 0] / cells[t, 1], out=y[t]).masked_fill_(~live, 0.0)
    fresh = resets[t + 1][:, None] & live if t + 1 < len(resets) else ~live & live
    for held, value, empty in zip((h, c, n, m), (y[t], *cells[t]), (0.0, 0.0, 0.0, NO_PEAK), strict=True):
        torch.where(live, value.masked_fill(fresh, empty), held, out=held)


@compiled
def _backward(t, gates, cells, c0, n0, m0, resets, ends, dy, dh_last, dh, dc, dn, dm, dgates):  # type: ignore[no-untyped-def]
    heads, batch, width = dc.shape
    for head in range(heads):
        for row in range(batch):
            if t >= ends[row]:
                dgates[t, head, row, :] = 0.0
                continue
            dout, dcell, dnorm, dpeak = dh[head, row], dc[head, row], dn[head, row], dm[head, row]
            if t == ends[row] - 1:
                dout[:] = dh_last[head, row]
            elif resets[t + 1, row]:
                dout[:] = 0.0
                dcell[:] = 0.0
                dnorm[:] = 0.0
                dpeak[:] = 0.0
            enter, keep = gates[t, head, row, :width], gates[t, head, row, width : 2 * width]
            new, leave = gates[t, head, row, 2 * width : 3 * width], gates[t, head, row, 3 * width :]
            denter, dkeep = dgates[t, head, row, :width], dgates[t, head, row, width : 2 * width]
            dnew, dleave = dgates[t, head, row, 2 * width : 3 * width], dgates[t, head, row, 3 * width :]
            cell, norm, peak = cells[t, 0, head, row], cells[t, 1, head, row], cells[t, 2, head, row]
            given = dy[t, head, row]
            for i in range(width):
                ratio, slope = cell[i] / norm[i], dout[i] + given[i]
                dleave[i] = slope * ratio * leave[i] * (_ONE - leave[i])
                part = slope * leave[i] / norm[i]
                dcell[i] += part
                dnorm[i] -= part * ratio
                dnew[i] = dcell[i] * enter[i] * (_ONE - new[i] * new[i])
                denter[i] = enter[i] * (new[i] * dcell[i] + dnorm[i])
            if resets[t, row]:
                for i in range(width):
                    denter[i] += dpeak[i]
                    dkeep[i] = 0.0
                    dcell[i] = 0.0
                    dnorm[i] = 0.0
                    dpeak[i] = 0.0
                continue
            before_c = cells[t - 1, 0, head, row] if t > 0 else c0[head, row]
            before_n = cells[t - 1, 1, head, row] if t > 0 else n0[head, row]
            before_m = cells[t - 1, 2, head, row] if t > 0 else m0[head, row]
            for i in range(width):
                fade, made = np.float64(keep[i]), enter[i] == _ONE  # whether the peak is the token's
                shrunk = exp(fade + np.float64(before_m[i]) - np.float64(peak[i])) if made else 1.0
                past = keep.dtype.type(shrunk)
                slope = past * (before_c[i] * dcell[i] + before_n[i] * dnorm[i])
                if made:
                    denter[i] += dpeak[i]
                    dpeak[i] = 0.0
                dkeep[i] = (slope + dpeak[i]) * keep.dtype.type(1.0 - exp(fade))
                dcell[i] *= past
                dnorm[i] *= past


def _backward_torch(
    t: int, gates: Tensor, cells: Tensor, c0: Tensor, n0: Tensor, m0: Tensor, resets: Tensor, ends: Tensor, dy: Tensor,
    dh_last: Tensor, dh: Tensor, dc: Tensor, dn: Tensor, dm: Tensor, dgates: Tensor,
) -> None:  # fmt: skip
    live, last = (ends > t)[:, None], (ends == t + 1)[:, None]
    from_later = dh
    if t + 1 < len(resets):
        later = resets[t + 1][:, None] & (ends > t + 1)[:, None]
        from_later = from_later.masked_fill(later, 0.0)
        for x in (dc, dn, dm):
            x.masked_fill_(later, 0.0)
    i, f, z, o = gates[t].chunk(4, -1)
    c, n, m = cells[t]
    first = resets[t][:, None]
    before = (c0, n0, m0) if t == 0 else tuple(cells[t - 1])
    slope = torch.where(last, dh_last, from_later) + dy[t]
    ratio, part = c / n, slope * o / n
    cell, norm = dc + part, dn - part * ratio
    made = (i == 1) | first
    past = torch.where(made, (f + before[2] - m).exp(), 1.0).masked_fill(first, 0.0)
    passed = past * (before[0] * cell + before[1] * norm) + dm.masked_fill(made, 0.0)
    parts = (
        i * (z * cell + norm) + dm.masked_fill(~made, 0.0),
        (passed * -torch.expm1(f)).masked_fill(first, 0.0),
        cell * i * (1 - z * z),
        slope * ratio * o * (1 - o),
    )
    torch.cat(parts, -1, out=dgates[t]).masked_fill_(~live, 0.0)
    for x, value in ((dc, cell * past), (dn, norm * past), (dm, dm.masked_fill(made, 0.0))):
        torch.where(live, value, x, out=x)
