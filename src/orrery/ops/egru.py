"""The event-based gated recurrent unit: a GRU whose units speak only when they cross a threshold.

Paper: 2206.06178 (EGRU), in the variant that resets after the recurrent product, gates z, r, g:
``[z', r', m] = W_hh y_{t-1} + bias``; ``z = sigma(gates_x_z + z')``; ``r = sigma(gates_x_r + r')``; ``g = tanh(gates_x_g + r m)``;
``c_t = z h_{t-1} + (1 - z) g``; ``o_t = 1 if c_t > theta else 0``; ``h_t = c_t - o_t theta``; ``y_t = o_t c_t``.

What other units and other layers hear is y, which is mostly zero. The derivative of the event is a surrogate:
``do/dc = damping max(0, 1 - support |c - theta|)``, ``do/dtheta = -do/dc``.

Forms as in :mod:`orrery.ops.lstm`: `egru_reference` (the loop, autograd's gradients with the surrogate), `egru_step`,
`egru_sequence` (a loop with a derived gradient; what is not a matrix product is one compiled kernel, or torch).

B batch, T time, H hidden width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, sigmoid, tanh
from orrery.ops.lstm import check_gates, marks, previous, stepper, time_major, zero_state
from orrery.ops.operands import check_operands

EGRUPair = tuple[Tensor, Tensor]  # h, y: (B,H) each
_ONE, _ZERO = np.float32(1.0), np.float32(0.0)  # in a kernel, a Python 1 would turn float32 into float64


def egru_sequence(
    gates_x: Tensor,
    weight_hh: Tensor,
    theta: Tensor,
    bias: Tensor | None = None,
    state: EGRUPair | None = None,
    starts: Tensor | None = None,
    lengths: Tensor | None = None,
    damping: float = 0.7,
    support: float = 1.0,
    backend: str | None = None,
) -> tuple[Tensor, EGRUPair]:
    """An EGRU over gates whose input part is already computed.

    Args:
        gates_x: the input's part of the gates (B,T,3H), order z, r, g, its own bias included.
        weight_hh: recurrent weight (3H,H).
        theta: thresholds (H,).
        bias: (3H,), added to the recurrent product.
        state: (h, y) before the first token, each (B,H); zero when None.
        starts, lengths, backend: as in :func:`orrery.ops.lstm.lstm_sequence`.
        damping, support: of the surrogate.

    Returns:
        all y (B,T,H) in gates_x's type, and (h, y) after the last valid token, float32 (float64 for float64 inputs).

    Raises:
        StateError: when the state, theta or `starts` has another shape.
    """
    kind = check_gates("egru", gates_x, weight_hh, 3, state, starts, lengths, bias)
    check_operands("egru", {"theta": (theta, tuple(weight_hh.shape[1:]))}, (len(gates_x), gates_x.shape[1]))
    h, last = (part.to(kind) for part in (state or zero_state(gates_x, weight_hh, 2)))
    bias = gates_x.new_zeros(len(weight_hh), dtype=kind) if bias is None else bias.to(kind)
    operands = gates_x.to(kind), weight_hh.to(kind), theta.to(kind), bias
    if gates_x.shape[1] == 1 and starts is None and lengths is None:
        with torch.autocast(gates_x.device.type, enabled=False):
            y, after = egru_step(operands[0][:, 0], *operands[1:], (h, last), damping, support)
        return y[:, None].to(gates_x.dtype), after
    use = choose(backend, gates_x, op="egru")
    y, h, last = _EGRU.apply(*operands, h, last, starts, lengths, damping, support, use)
    return y.to(gates_x.dtype), (h, last)


class _Event(torch.autograd.Function):
    """1 where u > 0, with the surrogate derivative."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, damping: float, support: float) -> Tensor:
        ctx.save_for_backward(u)
        ctx.damping, ctx.support = damping, support
        return (u > 0).to(u.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        return do * ctx.damping * (1 - ctx.support * u.abs()).clamp(min=0), None, None


def event(u: Tensor, damping: float = 0.7, support: float = 1.0) -> Tensor:
    """1 where u > 0, else 0, in u's type; the gradient is that of a triangle: damping max(0, 1 - support |u|)."""
    return _Event.apply(u, damping, support)


def egru_step(
    gates_x: Tensor,
    weight_hh: Tensor,
    theta: Tensor,
    bias: Tensor | None,
    state: EGRUPair,
    damping: float = 0.7,
    support: float = 1.0,
) -> tuple[Tensor, EGRUPair]:
    """One token: gates_x (B,3H), state (h, y) of (B,H). Returns y (B,H) and the new state."""
    h, last = state
    xz, xr, xg = gates_x.chunk(3, -1)
    z, r, m = F.linear(last, weight_hh, bias).chunk(3, -1)
    c = torch.lerp((xg + (xr + r).sigmoid() * m).tanh(), h, (xz + z).sigmoid())
    o = event(c - theta, damping, support)
    y = o * c
    return y, (c - o * theta, y)


def egru_reference(
    gates_x: Tensor,
    weight_hh: Tensor,
    theta: Tensor,
    bias: Tensor | None = None,
    state: EGRUPair | None = None,
    starts: Tensor | None = None,
    damping: float = 0.7,
    support: float = 1.0,
) -> tuple[Tensor, EGRUPair]:
    """The equation, token by token. Shapes as in :func:`egru_sequence`; gradients are autograd's, with the surrogate."""
    zero = gates_x.new_zeros(len(gates_x), weight_hh.shape[1])
    pair = state if state is not None else (zero, zero)
    out = []
    for t in range(gates_x.shape[1]):
        if starts is not None:
            pair = tuple(torch.where(starts[:, t, None], 0.0, part) for part in pair)  # type: ignore[assignment]
        y, pair = egru_step(gates_x[:, t], weight_hh, theta, bias, pair, damping, support)
        out.append(y)
    return torch.stack(out, 1), pair


class _EGRU(torch.autograd.Function):
    """The loop over tokens with its gradient, time-major inside. Saves the activated gates, W_hg y + b_g, c and y."""

    @staticmethod
    def forward(ctx: Any, gates_x, weight, theta, bias, h0, last0, starts, lengths, damping, support, use):  # type: ignore[no-untyped-def]
        gates = time_major(gates_x).detach()
        gates = gates.clone() if gates.data_ptr() == gates_x.data_ptr() else gates
        time, batch, total = gates.shape
        resets, ends = marks(starts, lengths, gates)
        inner = gates.new_empty(time, batch, total // 3)
        cells, y = torch.empty_like(inner), torch.empty_like(inner)
        first = resets[0][:, None]
        h, last = (x.masked_fill(first, 0.0).contiguous() for x in (h0, last0))
        product, recurrent, theta = torch.empty_like(gates[0]), weight.t().contiguous(), theta.contiguous()
        step = stepper(use, _forward, _forward_torch, (resets, ends, theta, product, h, last, gates, inner, cells, y))
        with torch.autocast(gates.device.type, enabled=False):
            for t in range(time):
                torch.addmm(bias, last, recurrent, out=product)
                step(t)
        ctx.save_for_backward(weight, theta, h0, last0, resets, ends, gates, inner, cells, y)
        ctx.damping, ctx.support, ctx.use = damping, support, use
        return y.transpose(0, 1), h, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dh_last: Tensor, dlast_last: Tensor) -> tuple[Tensor | None, ...]:
        weight, theta, h0, last0, resets, ends, gates, inner, cells, y = ctx.saved_tensors
        time, batch, width = y.shape
        dgates, dproduct = torch.empty_like(gates), torch.empty_like(gates)
        dh, dlast, dtheta = (y.new_zeros(batch, width) for _ in range(3))
        slope = y.new_tensor([ctx.damping, ctx.support])
        arrays = (
            theta, slope, gates, inner, cells, h0.contiguous(), resets, ends, time_major(dy), dh_last.contiguous(),
            dlast_last.contiguous(), dh, dlast, dgates, dproduct, dtheta,
        )  # fmt: skip
        step = stepper(ctx.use, _backward, _backward_torch, arrays)
        with torch.autocast(y.device.type, enabled=False):
            for t in range(time - 1, -1, -1):
                step(t)
                torch.mm(dproduct[t], weight, out=dlast)
            dweight = dproduct.flatten(0, 1).t() @ previous(last0, y, resets)
        first, empty = resets[0][:, None], (ends == 0)[:, None]
        dh, dlast = (torch.where(empty, end, own).masked_fill(first, 0.0) for end, own in ((dh_last, dh), (dlast_last, dlast)))
        dbias = dproduct.sum((0, 1))
        return dgates.transpose(0, 1), dweight, dtheta.sum(0), dbias, dh, dlast, None, None, None, None, None


@compiled
def _forward(t, resets, ends, theta, product, h, last, gates, inner, cells, y):  # type: ignore[no-untyped-def]
    width = h.shape[1]
    for row in range(len(h)):
        if t >= ends[row]:
            y[t, row, :] = _ZERO
            continue
        both, new = gates[t, row, : 2 * width], gates[t, row, 2 * width :]
        given, kept, cell = product[row], inner[t, row], cells[t, row]
        potential, spoken, out = h[row], last[row], y[t, row]
        for i in range(2 * width):
            both[i] = sigmoid(both[i] + given[i])
        update, reset, hidden = both[:width], both[width:], given[2 * width :]
        for i in range(width):
            kept[i] = hidden[i]
            new[i] = tanh(new[i] + reset[i] * hidden[i])
        for i in range(width):
            c = update[i] * potential[i] + (_ONE - update[i]) * new[i]
            cell[i] = c
            out[i] = c if c > theta[i] else _ZERO
            potential[i] = c - theta[i] if c > theta[i] else c
        spoken[:] = out
        if t + 1 < ends[row] and resets[t + 1, row]:
            potential[:] = _ZERO
            spoken[:] = _ZERO


def _forward_torch(
    t: int, resets: Tensor, ends: Tensor, theta: Tensor, product: Tensor, h: Tensor, last: Tensor, gates: Tensor,
    inner: Tensor, cells: Tensor, y: Tensor,
) -> None:  # fmt: skip
    z, r, g = gates[t].chunk(3, 1)
    pz, pr, m = product.chunk(3, 1)
    z.copy_((z + pz).sigmoid())
    r.copy_((r + pr).sigmoid())
    g.copy_((g + r * m).tanh())
    inner[t] = m
    live = (ends > t)[:, None]
    cells[t] = torch.lerp(g, h, z)
    fired = cells[t] > theta
    y[t] = torch.where(fired & live, cells[t], 0.0)
    keep = ~resets[t + 1][:, None] & live if t + 1 < len(resets) else live
    zero = torch.zeros((), dtype=h.dtype, device=h.device)
    h.copy_(torch.where(live, torch.where(keep, cells[t] - theta * fired, zero), h))
    last.copy_(torch.where(live, torch.where(keep, y[t], zero), last))


@compiled
def _backward(  # type: ignore[no-untyped-def]
    t, theta, slope, gates, inner, cells, h0, resets, ends, dy, dh_last, dlast_last, dh, dlast, dgates, dproduct, dtheta
):
    width = dh.shape[1]
    for row in range(len(dh)):
        if t >= ends[row]:
            dgates[t, row, :] = _ZERO
            dproduct[t, row, :] = _ZERO
            continue
        dstate, dspoken = dh[row], dlast[row]
        if t == ends[row] - 1:
            dstate[:] = dh_last[row]
            dspoken[:] = dlast_last[row]
        elif resets[t + 1, row]:
            dstate[:] = _ZERO
            dspoken[:] = _ZERO
        update, reset, new = gates[t, row, :width], gates[t, row, width : 2 * width], gates[t, row, 2 * width :]
        given, own, hidden, cell = dgates[t, row], dproduct[t, row], inner[t, row], cells[t, row]
        for i in range(width):
            c, heard = cell[i], dspoken[i] + dy[t, row, i]
            away = slope[1] * abs(c - theta[i])
            surrogate = slope[0] * (_ONE - away) if away < _ONE else _ZERO
            devent = (heard * c - dstate[i] * theta[i]) * surrogate
            fired = _ONE if c > theta[i] else _ZERO
            dcell = dstate[i] + heard * fired + devent
            dtheta[row, i] -= dstate[i] * fired + devent
            before = _ZERO
            if not resets[t, row]:
                before = h0[row, i]
                if t > 0:
                    before = cells[t - 1, row, i]
                    if before > theta[i]:
                        before -= theta[i]
            dnew = dcell * (_ONE - update[i]) * (_ONE - new[i] * new[i])
            dupdate = dcell * (before - new[i]) * update[i] * (_ONE - update[i])
            dreset = dnew * hidden[i] * reset[i] * (_ONE - reset[i])
            given[i] = own[i] = dupdate
            given[width + i] = own[width + i] = dreset
            given[2 * width + i] = dnew
            own[2 * width + i] = dnew * reset[i]
            dstate[i] = dcell * update[i]


def _backward_torch(
    t: int, theta: Tensor, slope: Tensor, gates: Tensor, inner: Tensor, cells: Tensor, h0: Tensor, resets: Tensor,
    ends: Tensor, dy: Tensor, dh_last: Tensor, dlast_last: Tensor, dh: Tensor, dlast: Tensor, dgates: Tensor,
    dproduct: Tensor, dtheta: Tensor,
) -> None:  # fmt: skip
    live, final = (ends > t)[:, None], (ends == t + 1)[:, None]
    dstate, dspoken = dh, dlast
    if t + 1 < len(resets):
        later = resets[t + 1][:, None]
        dstate, dspoken = dstate.masked_fill(later, 0.0), dspoken.masked_fill(later, 0.0)
    dstate, heard = torch.where(final, dh_last, dstate), torch.where(final, dlast_last, dspoken) + dy[t]
    z, r, g = gates[t].chunk(3, 1)
    c, fired = cells[t], (cells[t] > theta).to(dy.dtype)
    surrogate = slope[0] * (1 - slope[1] * (c - theta).abs()).clamp(min=0)
    devent = (heard * c - dstate * theta) * surrogate
    dcell = dstate + heard * fired + devent
    dtheta.sub_(torch.where(live, dstate * fired + devent, 0.0))
    before = h0 if t == 0 else cells[t - 1] - theta * (cells[t - 1] > theta)
    before = before.masked_fill(resets[t][:, None], 0.0)
    dnew = dcell * (1 - z) * (1 - g * g)
    dreset = dnew * inner[t] * r * (1 - r)
    dupdate = dcell * (before - g) * z * (1 - z)
    torch.cat([dupdate, dreset, dnew], 1, out=dgates[t]).masked_fill_(~live, 0.0)
    torch.cat([dupdate, dreset, dnew * r], 1, out=dproduct[t]).masked_fill_(~live, 0.0)
    dh.copy_(torch.where(live, dcell * z, dh))
