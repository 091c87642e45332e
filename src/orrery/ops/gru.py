"""The gated recurrent unit.

Paper: 1406.1078, in the variant of cuDNN and torch that resets after the product, gates r, z, n:
``[r, z, m] = W_hh h_{t-1} + bias``; ``r = sigma(gates_x_r + r)``, ``z = sigma(gates_x_z + z)``,
``n = tanh(gates_x_n + r m)``; ``h_t = (1 - z) n + z h_{t-1}``.

Forms as in :mod:`orrery.ops.lstm`: `gru_reference`, `gru_step`, `gru_sequence`, `gru_layer`.

B batch, T time, H hidden width, D input width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, prepare_blocks, sigmoid, tanh
from orrery.ops.lstm import check_gates, check_layer, fused_pieces, marks, previous, stepper, time_major, zero_state

_ONE = np.float32(1.0)  # in a kernel, a Python 1 would turn float32 into float64


def gru_sequence(
    gates_x: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """A GRU over gates whose input part is already computed.

    Args:
        gates_x: the input's part of the gates (B,T,3H), order r, z, n, its own bias included.
        weight_hh: recurrent weight (3H,H).
        bias: (3H,), added to the recurrent product; for n that is inside the reset, so it cannot be part of gates_x.
        state: h before the first token (B,H); zero when None.
        starts, lengths, backend: as in :func:`orrery.ops.lstm.lstm_sequence`.

    Returns:
        y = all h (B,T,H) in gates_x's type, and h after the last valid token (B,H), float32 (float64 for float64 inputs).

    Raises:
        StateError: when the state or `starts` has another shape.
    """
    return _run_gru(gates_x, weight_hh, bias, state, starts, lengths, choose(backend, gates_x, op="gru"), False)


def gru_layer(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    bias_hh: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """A GRU over x (B,T,D) with weight_ih (3H,D), bias (3H,) of the input and bias_hh (3H,) of the recurrent product."""
    check_layer("gru", x, weight_ih, (bias, bias_hh), starts, lengths)
    use = choose(backend, x, op="gru")
    if use == "torch" and x.shape[1] > 1:
        before = zero_state(x, weight_hh, 1) if state is None else (state,)
        y, after = fused_pieces(torch.gru, x, (weight_ih, weight_hh, bias, bias_hh), before, starts, lengths)
        return y, after[0]
    gates = F.linear(x.transpose(0, 1), weight_ih, bias).transpose(0, 1)
    return _run_gru(gates, weight_hh, bias_hh, state, starts, lengths, use, True)


def _run_gru(
    gates: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, starts: Tensor | None,
    lengths: Tensor | None, use: str, ours: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    kind = check_gates("gru", gates, weight, 3, None if state is None else (state,), starts, lengths, bias)
    h = zero_state(gates, weight, 1)[0] if state is None else state.to(kind)
    bias = gates.new_zeros(len(weight), dtype=kind) if bias is None else bias.to(kind)
    if gates.shape[1] == 1 and starts is None and lengths is None:
        with torch.autocast(gates.device.type, enabled=False):
            y, h = gru_step(gates[:, 0].to(kind), weight.to(kind), bias, h)
        return y[:, None].to(gates.dtype), h
    y, h = _GRU.apply(gates.to(kind), weight.to(kind), bias, h, starts, lengths, use, ours or gates.dtype != kind)
    return y.to(gates.dtype), h


def gru_step(gates_x: Tensor, weight_hh: Tensor, bias: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """One token: gates_x (B,3H), state (B,H). Returns h (B,H) twice, as output and as state."""
    xr, xz, xn = gates_x.chunk(3, -1)
    r, z, m = F.linear(state, weight_hh, bias).chunk(3, -1)
    z = (xz + z).sigmoid()
    h = torch.lerp((xn + (xr + r).sigmoid() * m).tanh(), state, z)
    return h, h


def gru_stepper(gates: Tensor, product: Tensor, h: Tensor) -> Callable[[], None]:
    """A function that moves h (B,H) on in place, float32 on a CPU; no gradient.

    Args:
        gates: the input's part (B,3H); product: W_hh h + bias_hh (B,3H); both written before each call.
        h: (B,H).
    """
    return prepare_blocks(_gru_cell, len(h), 0, *(t.detach().numpy() for t in (gates, product, h)))


def gru_reference(
    gates_x: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    state: Tensor | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The equation, token by token. Shapes as in :func:`gru_sequence`; gradients are autograd's."""
    h = gates_x.new_zeros(len(gates_x), weight_hh.shape[1]) if state is None else state
    out = []
    for t in range(gates_x.shape[1]):
        h = h if starts is None else torch.where(starts[:, t, None], 0.0, h)
        y, h = gru_step(gates_x[:, t], weight_hh, bias, h)
        out.append(y)
    return torch.stack(out, 1), h


class _GRU(torch.autograd.Function):
    """The loop over tokens with its gradient, time-major inside. Saves the activated gates, W_hn h + b_n, and y."""

    @staticmethod
    def forward(ctx: Any, gates_x, weight, bias, h0, starts, lengths, use, ours):  # type: ignore[no-untyped-def]
        gates = time_major(gates_x).detach()
        gates = gates.clone() if not ours and gates.data_ptr() == gates_x.data_ptr() else gates
        time, batch, total = gates.shape
        resets, ends = marks(starts, lengths, gates)
        inner = gates.new_empty(time, batch, total // 3)
        y = torch.empty_like(inner)
        h = h0.masked_fill(resets[0][:, None], 0.0).contiguous()
        product, recurrent = torch.empty_like(gates[0]), weight.t().contiguous()
        step = stepper(use, _gru_forward, _gru_forward_torch, (product, resets, ends, h, gates, inner, y))
        with torch.autocast(gates.device.type, enabled=False):
            for t in range(time):
                torch.addmm(bias, h, recurrent, out=product)
                step(t)
        ctx.save_for_backward(weight, h0, resets, ends, gates, inner, y)
        ctx.use = use
        return y.transpose(0, 1), h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dh_last: Tensor) -> tuple[Tensor | None, ...]:
        weight, h0, resets, ends, gates, inner, y = ctx.saved_tensors
        time, batch, width = y.shape
        parts = 1 if width % 2 else 2  # as in the LSTM: two half sums where the gates can be halved
        dgates, dproduct = torch.empty_like(gates), torch.empty_like(gates)
        dh, direct = y.new_zeros(parts, batch, width), y.new_zeros(batch, width)
        arrays = (
            gates,
            inner,
            y,
            h0.contiguous(),
            resets,
            ends,
            time_major(dy),
            dh_last.contiguous(),
            dh,
            direct,
            dgates,
            dproduct,
        )
        step = stepper(ctx.use, _gru_backward, _gru_backward_torch, arrays)
        halves, tokens = (
            weight.reshape(parts, -1, width),
            dproduct.view(time, batch, parts, -1).transpose(1, 2).unbind(),
        )
        with torch.autocast(y.device.type, enabled=False):
            for t in range(time - 1, -1, -1):
                step(t)
                torch.bmm(tokens[t], halves, out=dh)
            flat = dproduct.flatten(0, 1)
            dweight = flat.t() @ previous(h0, y, resets)
        dh = torch.where((ends == 0)[:, None], dh_last, dh.sum(0) + direct).masked_fill_(resets[0][:, None], 0.0)
        return dgates.transpose(0, 1), dweight, flat.sum(0), dh, None, None, None, None


@compiled
def _gru_forward(t, product, resets, ends, h, gates, inner, y):  # type: ignore[no-untyped-def]
    width = h.shape[1]
    for row in range(len(h)):
        if t >= ends[row]:
            y[t, row, :] = 0.0
            continue
        reset_update, new, update = (
            gates[t, row, : 2 * width],
            gates[t, row, 2 * width :],
            gates[t, row, width : 2 * width],
        )
        into, new_into, mid, out = product[row, : 2 * width], product[row, 2 * width :], inner[t, row], h[row]
        for i in range(2 * width):
            reset_update[i] = sigmoid(reset_update[i] + into[i])
        for i in range(width):
            new[i] = tanh(new[i] + reset_update[i] * new_into[i])
        mid[:] = new_into
        for i in range(width):
            out[i] += (_ONE - update[i]) * (new[i] - out[i])  # what is kept whole is kept exactly
        y[t, row, :] = out
        if t + 1 < ends[row] and resets[t + 1, row]:
            out[:] = 0.0


def _gru_forward_torch(
    t: int, product: Tensor, resets: Tensor, ends: Tensor, h: Tensor, gates: Tensor, inner: Tensor, y: Tensor
) -> None:
    width = h.shape[1]
    first, new = gates[t, :, : 2 * width], gates[t, :, 2 * width :]
    first.add_(product[:, : 2 * width]).sigmoid_()
    inner[t] = product[:, 2 * width :]
    new.addcmul_(first[:, :width], inner[t]).tanh_()
    live = (ends > t)[:, None]
    torch.lerp(new, h, first[:, width:], out=y[t]).masked_fill_(~live, 0.0)
    keep = ~resets[t + 1][:, None] & live if t + 1 < len(resets) else live
    torch.where(live, y[t] * keep, h, out=h)


@compiled
def _gru_cell(first, last, gates, product, h):  # type: ignore[no-untyped-def]
    width = h.shape[1]
    for row in range(first, last):
        given, inner, out = gates[row], product[row], h[row]
        for n in range(width):
            z = sigmoid(given[width + n] + inner[width + n])
            new = tanh(given[2 * width + n] + sigmoid(given[n] + inner[n]) * inner[2 * width + n])
            out[n] += (_ONE - z) * (new - out[n])


@compiled
def _gru_backward(t, gates, inner, y, h0, resets, ends, dy, dh_last, dh, direct, dgates, dproduct):  # type: ignore[no-untyped-def]
    width = direct.shape[1]
    for row in range(len(direct)):
        if t >= ends[row]:
            dgates[t, row, :] = 0.0
            dproduct[t, row, :] = 0.0
            continue
        grad, given = direct[row], dy[t, row]  # through h itself, to which the product's share and dy are added
        if t == ends[row] - 1:
            grad[:] = dh_last[row]
        elif resets[t + 1, row]:
            grad[:] = 0.0
        else:
            for part in range(len(dh)):
                share = dh[part, row]
                for i in range(width):
                    grad[i] += share[i]
        reset, update, new = gates[t, row, :width], gates[t, row, width : 2 * width], gates[t, row, 2 * width :]
        dreset, dupdate = dgates[t, row, :width], dgates[t, row, width : 2 * width]
        dnew, dinner, mid = dgates[t, row, 2 * width :], dproduct[t, row, 2 * width :], inner[t, row]
        for i in range(width):
            grad[i] += given[i]
            dnew[i] = grad[i] * (_ONE - update[i]) * (_ONE - new[i] * new[i])
        for i in range(width):
            dinner[i] = dnew[i] * reset[i]
            dreset[i] = dinner[i] * mid[i] * (_ONE - reset[i])
        if resets[t, row]:
            for i in range(width):
                dupdate[i] = -grad[i] * new[i] * update[i] * (_ONE - update[i])
        else:
            before = y[t - 1, row] if t > 0 else h0[row]
            for i in range(width):
                dupdate[i] = grad[i] * (before[i] - new[i]) * update[i] * (_ONE - update[i])
        dproduct[t, row, : 2 * width] = dgates[t, row, : 2 * width]
        for i in range(width):
            grad[i] *= update[i]


def _gru_backward_torch(
    t: int, gates: Tensor, inner: Tensor, y: Tensor, h0: Tensor, resets: Tensor, ends: Tensor, dy: Tensor,
    dh_last: Tensor, dh: Tensor, direct: Tensor, dgates: Tensor, dproduct: Tensor,
) -> None:  # fmt: skip
    live, last = (ends > t)[:, None], (ends == t + 1)[:, None]
    from_later = direct + dh.sum(0)
    if t + 1 < len(resets):
        from_later.masked_fill_(resets[t + 1][:, None], 0.0)
    grad = torch.where(last, dh_last, from_later) + dy[t]
    r, z, n = gates[t].chunk(3, 1)
    before = (h0 if t == 0 else y[t - 1]).masked_fill(resets[t][:, None], 0.0)
    dn = grad * (1 - z) * (1 - n * n)
    dz, dr = grad * (before - n) * z * (1 - z), dn * inner[t] * r * (1 - r)
    torch.cat((dr, dz, dn), 1, out=dgates[t]).masked_fill_(~live, 0.0)
    torch.cat((dr, dz, dn * r), 1, out=dproduct[t]).masked_fill_(~live, 0.0)
    torch.where(live, grad * z, direct, out=direct)
