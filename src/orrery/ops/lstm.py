"""The LSTM, a recurrence that cannot be parallelised over time (the GRU: :mod:`orrery.ops.gru`).

LSTM (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000), gates in torch's order i, f, g, o:
``[i, f, g, o] = gates_x_t + W_hh h_{t-1} + bias``; ``c_t = sigma(f) c_{t-1} + sigma(i) tanh(g)``; ``h_t = sigma(o) tanh(c_t)``.

Forms: `*_reference` is the equation as a loop with autograd's gradients, `*_step` one token, `*_sequence` a loop with a
derived gradient: one matrix product per token and the rest in one compiled kernel (numba, CPU) or in torch; the gradient of
W_hh is one product over all tokens. `*_layer` adds the input projection, and on the torch backend runs torch's own fused
layer (oneDNN, cuDNN), cut where a document starts or a row ends so that resets stay exact.

B batch, T time, H hidden width, D input width.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.core.errors import StateError
from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, prepare_blocks, sigmoid, tanh
from orrery.ops.operands import check_operands, sizes

LSTMState = tuple[Tensor, Tensor]  # h, c: (B,H) each
Arrays = tuple[Tensor, ...]
_ONE = np.float32(1.0)  # in a kernel, a Python 1 would turn float32 into float64


def lstm_sequence(
    gates_x: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    state: LSTMState | None = None,
    starts: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, LSTMState]:
    """An LSTM over gates whose input part is already computed.

    Args:
        gates_x: the input's part of the gates (B,T,4H), order i, f, g, o.
        weight_hh: recurrent weight (4H,H).
        bias: (4H,), or None when gates_x holds it.
        state: (h, c) before the first token, each (B,H); zero when None.
        starts: (B,T) bool; True zeroes the state before the token is consumed.
        lengths: (B,) int64, valid tokens per row; tokens after them leave the state as it is and give y = 0.
        backend: `numba` or `torch`; None lets :mod:`orrery.ops.backend` choose.

    Returns:
        y = all h (B,T,H) in gates_x's type, and (h, c) after the last valid token, float32 (float64 for float64 inputs).

    Raises:
        StateError: when the state or `starts` has another shape.
    """
    if bias is not None:
        check_gates("lstm", gates_x, weight_hh, 4, state, starts, lengths, bias)
    gates = gates_x if bias is None else gates_x + bias
    use = choose(backend, gates_x, op="lstm")
    return _run_lstm(gates, weight_hh, state, starts, lengths, use, bias is not None)


def lstm_layer(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    state: LSTMState | None = None,
    starts: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, LSTMState]:
    """An LSTM over x (B,T,D) with weight_ih (4H,D); all else as in :func:`lstm_sequence`."""
    check_layer("lstm", x, weight_ih, (bias,), starts, lengths)
    use = choose(backend, x, op="lstm")
    if use == "torch" and x.shape[1] > 1:
        weights = (weight_ih, weight_hh, bias, torch.zeros_like(bias))
        y, pair = fused_pieces(torch.lstm, x, weights, state or zero_state(x, weight_hh, 2), starts, lengths)
        return y, (pair[0], pair[1])
    gates = F.linear(x.transpose(0, 1), weight_ih, bias).transpose(0, 1)
    return _run_lstm(gates, weight_hh, state, starts, lengths, use, True)


def _run_lstm(
    gates: Tensor,
    weight: Tensor,
    state: LSTMState | None,
    starts: Tensor | None,
    lengths: Tensor | None,
    use: str,
    ours: bool,
) -> tuple[Tensor, LSTMState]:
    kind = check_gates("lstm", gates, weight, 4, state, starts, lengths)
    h, c = (part.to(kind) for part in state or zero_state(gates, weight, 2))
    if gates.shape[1] == 1 and starts is None and lengths is None:
        with torch.autocast(gates.device.type, enabled=False):
            y, (h, c) = lstm_step(gates[:, 0].to(kind), weight.to(kind), None, (h, c))
        return y[:, None].to(gates.dtype), (h, c)
    y, h, c = _LSTM.apply(gates.to(kind), weight.to(kind), h, c, starts, lengths, use, ours or gates.dtype != kind)
    return y.to(gates.dtype), (h, c)


def zero_state(x: Tensor, weight_hh: Tensor, parts: int) -> Arrays:
    """`parts` zeros (B,H) for rows like those of x (B,T,...)."""
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (x.new_zeros(len(x), weight_hh.shape[1], dtype=kind),) * parts


def fused_pieces(
    layer: Any, x: Tensor, weights: Arrays, state: Arrays, starts: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Arrays]:
    """torch's own fused layer, run piece by piece between the tokens where a row starts anew or ends."""
    time = x.shape[1]
    state = tuple(part.to(x.dtype) for part in state)
    cuts = {0, time}
    if lengths is not None:
        cuts |= {min(n, time) for n in lengths.tolist()}
        starts = None if starts is None else starts & (torch.arange(time, device=x.device) < lengths[:, None])
    if starts is not None:
        cuts |= set(starts.any(0).nonzero()[:, 0].tolist())
    edges, pieces = sorted(cuts), []
    for low, high in pairwise(edges):
        if starts is not None:
            state = tuple(torch.where(starts[:, low, None], 0.0, part) for part in state)
        before = tuple(part[None].contiguous() for part in state)
        given = before if len(before) > 1 else before[0]
        y, *after = layer(x[:, low:high].contiguous(), given, weights, True, 1, 0.0, True, False, True)
        new = tuple(part[0] for part in after)
        if lengths is not None:
            live = (lengths > low)[:, None]
            y, new = torch.where(live[..., None], y, 0.0), tuple(map(torch.where, (live,) * len(new), new, state))
        state = new
        pieces.append(y)
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)), tuple(part.to(kind) for part in state)


def check_gates(
    op: str, gates: Tensor, weight: Tensor, count: int, state: Any, starts: Tensor | None, lengths: Tensor | None,
    bias: Tensor | None = None,
) -> torch.dtype:  # fmt: skip
    """The type to compute in; raises on shapes that do not fit."""
    batch, time, total = sizes(op, "gates", gates, "BTG")
    width = weight.shape[-1]
    if weight.shape != (total, width) or total != count * width:
        raise StateError(
            f"{op} was given {total} gates and a weight of {tuple(weight.shape)}; with H hidden units it needs {count} H and"
            f" ({count} H, H)"
        )
    for part in state or ():
        if part.shape != (batch, width):
            raise StateError(f"{op} was given a state of shape {tuple(part.shape)}; the input needs {(batch, width)}")
    check_operands(op, {"weight": (weight, (total, width)), "bias": (bias, (total,))}, (batch, time), starts, lengths)
    return torch.float64 if gates.dtype == torch.float64 else torch.float32


def check_layer(
    op: str, x: Tensor, weight_ih: Tensor, biases: Arrays, starts: Tensor | None, lengths: Tensor | None
) -> None:
    """Raises unless x (B,T,D), the input's weight (G,D) and biases (G,) fit."""
    batch, time, width = sizes(op, "x", x, "BTD")
    total = len(weight_ih)
    check_operands(op, {"weight_ih": (weight_ih, (total, width))}, (batch, time), starts, lengths)
    for bias in biases:
        check_operands(op, {"bias": (bias, (total,))}, (batch, time))


def lstm_step(gates_x: Tensor, weight_hh: Tensor, bias: Tensor | None, state: LSTMState) -> tuple[Tensor, LSTMState]:
    """One token: gates_x (B,4H), state (h, c) of (B,H). Returns h (B,H) and the new state."""
    h, c = state
    i, f, g, o = (gates_x + F.linear(h, weight_hh, bias)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return h, (h, c)


def lstm_stepper(gates: Tensor, h: Tensor, c: Tensor) -> Callable[[], None]:
    """A function that moves h and c (B,H) on in place by what gates (B,4H) hold then, float32 on a CPU; no gradient."""
    return prepare_blocks(_lstm_cell, len(h), 0, *(t.detach().numpy() for t in (gates, h, c)))


def lstm_reference(
    gates_x: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    state: LSTMState | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, LSTMState]:
    """The equation, token by token. Shapes as in :func:`lstm_sequence`; gradients are autograd's."""
    zero = gates_x.new_zeros(len(gates_x), weight_hh.shape[1])
    h, c = state if state is not None else (zero, zero)
    out = []
    for t in range(gates_x.shape[1]):
        if starts is not None:
            h, c = (torch.where(starts[:, t, None], 0.0, x) for x in (h, c))
        y, (h, c) = lstm_step(gates_x[:, t], weight_hh, bias, (h, c))
        out.append(y)
    return torch.stack(out, 1), (h, c)


def marks(starts: Tensor | None, lengths: Tensor | None, like: Tensor) -> Arrays:
    """Starts (T,B) bool without those in padding, and row ends (B,) int64, for time-major arrays like `like`."""
    time, batch = like.shape[:2]
    ends = torch.full((batch,), time, device=like.device) if lengths is None else lengths.clamp(max=time)
    if starts is None:
        return torch.zeros(time, batch, dtype=torch.bool, device=like.device), ends
    return (starts & (torch.arange(time, device=like.device) < ends[:, None])).t().contiguous(), ends


def stepper(use: str, kernel: Any, plain: Any, arrays: Arrays) -> Any:
    """`step(t)`: the compiled kernel on numpy views of the arrays, or the torch form on the arrays themselves."""
    if use == "numba":
        views = tuple(x.detach().numpy() for x in arrays)
        return lambda t: kernel(t, *views)
    return lambda t: plain(t, *arrays)


def time_major(x: Tensor) -> Tensor:
    """(B,T,...) as contiguous (T,B,...): one token of all rows lies together, which memory serves twice as fast."""
    return x.transpose(0, 1).contiguous()


def previous(h0: Tensor, y: Tensor, resets: Tensor) -> Tensor:
    """What each token found as h (T*B,H): the initial state, then y one token earlier, zero where a document starts."""
    found = torch.cat([h0[None], y[:-1]])
    return found.masked_fill_(resets[..., None], 0.0).flatten(0, 1)


class _LSTM(torch.autograd.Function):
    """The loop over tokens with its gradient, time-major inside. Saves the activated gates, the cells and y."""

    @staticmethod
    def forward(ctx: Any, gates_x, weight, h0, c0, starts, lengths, use, ours):  # type: ignore[no-untyped-def]
        gates = time_major(gates_x).detach()  # is overwritten by the activated gates, unless it is the caller's memory
        gates = gates.clone() if not ours and gates.data_ptr() == gates_x.data_ptr() else gates
        time, batch, total = gates.shape
        resets, ends = marks(starts, lengths, gates)
        cells = gates.new_empty(time, batch, total // 4)
        y = torch.empty_like(cells)
        first = resets[0][:, None]
        h, c = (x.masked_fill(first, 0.0).contiguous() for x in (h0, c0))
        recurrent = weight.t().contiguous()
        step = stepper(use, _lstm_forward, _lstm_forward_torch, (resets, ends, h, c, gates, cells, y))
        with torch.autocast(gates.device.type, enabled=False):
            for t, now in enumerate(gates.unbind()):
                torch.addmm(now, h, recurrent, out=now)
                step(t)
        ctx.save_for_backward(weight, h0, c0, resets, ends, gates, cells, y)
        ctx.use = use
        return y.transpose(0, 1), h, c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dh_last: Tensor, dc_last: Tensor) -> tuple[Tensor | None, ...]:
        weight, h0, c0, resets, ends, gates, cells, y = ctx.saved_tensors
        time, batch, width = y.shape
        # The product with W_hh is taken as two halves of its sum (i, f and g, o): a batch of two products keeps two
        # threads busy where one product this small does not (H 256, batch 8: 15 microseconds against 30).
        dgates, dh = torch.empty_like(gates), y.new_zeros(2, batch, width)
        dc = dc_last.clone(memory_format=torch.contiguous_format)
        arrays = (gates, cells, c0.contiguous(), resets, ends, time_major(dy), dh_last.contiguous(), dh, dc, dgates)
        step = stepper(ctx.use, _lstm_backward, _lstm_backward_torch, arrays)
        halves, tokens = (
            weight.reshape(2, 2 * width, width),
            dgates.view(time, batch, 2, 2 * width).transpose(1, 2).unbind(),
        )
        with torch.autocast(y.device.type, enabled=False):
            for t in range(time - 1, -1, -1):
                step(t)
                torch.bmm(tokens[t], halves, out=dh)
            dweight = dgates.flatten(0, 1).t() @ previous(h0, y, resets)
        first = resets[0][:, None]
        dh = torch.where((ends == 0)[:, None], dh_last, dh.sum(0)).masked_fill_(first, 0.0)
        return dgates.transpose(0, 1), dweight, dh, dc.masked_fill_(first, 0.0), None, None, None, None


@compiled
def _lstm_forward(t, resets, ends, h, c, gates, cells, y):  # type: ignore[no-untyped-def]
    width = h.shape[1]
    for row in range(len(h)):
        if t >= ends[row]:
            y[t, row, :] = 0.0
            continue
        enter_keep, new = gates[t, row, : 2 * width], gates[t, row, 2 * width : 3 * width]
        enter, keep, leave = enter_keep[:width], enter_keep[width:], gates[t, row, 3 * width :]
        cell, cell_kept, out, out_kept = c[row], cells[t, row], h[row], y[t, row]
        for i in range(2 * width):
            enter_keep[i] = sigmoid(enter_keep[i])
        for i in range(width):
            new[i] = tanh(new[i])
        for i in range(width):
            leave[i] = sigmoid(leave[i])
        for i in range(width):
            cell[i] = keep[i] * cell[i] + enter[i] * new[i]
        for i in range(width):
            cell_kept[i] = cell[i]
            out[i] = leave[i] * tanh(cell[i])
        out_kept[:] = out
        if t + 1 < ends[row] and resets[t + 1, row]:
            out[:] = 0.0
            cell[:] = 0.0


def _lstm_forward_torch(
    t: int, resets: Tensor, ends: Tensor, h: Tensor, c: Tensor, gates: Tensor, cells: Tensor, y: Tensor
) -> None:
    i, f, g, o = gates[t].chunk(4, 1)
    gates[t, :, : 2 * h.shape[1]].sigmoid_()
    g.tanh_()
    o.sigmoid_()
    live = (ends > t)[:, None]
    torch.addcmul(i * g, f, c, out=cells[t])
    torch.mul(o, cells[t].tanh(), out=y[t]).masked_fill_(~live, 0.0)
    keep = ~resets[t + 1][:, None] & live if t + 1 < len(resets) else live
    torch.where(live, y[t] * keep, h, out=h)
    torch.where(live, cells[t] * keep, c, out=c)


@compiled
def _lstm_cell(first, last, gates, h, c):  # type: ignore[no-untyped-def]
    width = h.shape[1]
    for row in range(first, last):
        i, f, g, o = gates[row, :width], gates[row, width : 2 * width], gates[row, 2 * width : 3 * width], gates[row, 3 * width :]
        cell, out = c[row], h[row]
        for n in range(width):
            cell[n] = sigmoid(f[n]) * cell[n] + sigmoid(i[n]) * tanh(g[n])
        for n in range(width):
            out[n] = sigmoid(o[n]) * tanh(cell[n])


@compiled
def _lstm_backward(t, gates, cells, c0, resets, ends, dy, dh_last, dh, dc, dgates):  # type: ignore[no-untyped-def]
    width = dc.shape[1]
    for row in range(len(dc)):
        if t >= ends[row]:
            dgates[t, row, :] = 0.0
            continue
        dout, dcell = dh[0, row], dc[row]  # the gradients of h_t and c_t
        if t == ends[row] - 1:
            dout[:] = dh_last[row]
        elif resets[t + 1, row]:
            dout[:] = 0.0
            dcell[:] = 0.0
        else:
            other = dh[1, row]
            for i in range(width):
                dout[i] += other[i]
        enter, keep = gates[t, row, :width], gates[t, row, width : 2 * width]
        new, leave = gates[t, row, 2 * width : 3 * width], gates[t, row, 3 * width :]
        denter, dkeep = dgates[t, row, :width], dgates[t, row, width : 2 * width]
        dnew, dleave = dgates[t, row, 2 * width : 3 * width], dgates[t, row, 3 * width :]
        cell, given = cells[t, row], dy[t, row]
        for i in range(width):
            shown, grad = tanh(cell[i]), dout[i] + given[i]
            dcell[i] += grad * leave[i] * (_ONE - shown * shown)
            dleave[i] = grad * shown * leave[i] * (_ONE - leave[i])
        for i in range(width):
            denter[i] = dcell[i] * new[i] * enter[i] * (_ONE - enter[i])
            dnew[i] = dcell[i] * enter[i] * (_ONE - new[i] * new[i])
        if resets[t, row]:
            dkeep[:] = 0.0
        else:
            before = cells[t - 1, row] if t > 0 else c0[row]
            for i in range(width):
                dkeep[i] = dcell[i] * before[i] * keep[i] * (_ONE - keep[i])
        for i in range(width):
            dcell[i] *= keep[i]


def _lstm_backward_torch(
    t: int, gates: Tensor, cells: Tensor, c0: Tensor, resets: Tensor, ends: Tensor, dy: Tensor, dh_last: Tensor,
    dh: Tensor, dc: Tensor, dgates: Tensor,
) -> None:  # fmt: skip
    live, last = (ends > t)[:, None], (ends == t + 1)[:, None]
    from_later = dh[0] + dh[1]
    if t + 1 < len(resets):
        later = resets[t + 1][:, None]
        from_later.masked_fill_(later, 0.0)
        dc.masked_fill_(later, 0.0)
    i, f, g, o = gates[t].chunk(4, 1)
    shown = cells[t].tanh()
    out = torch.where(last, dh_last, from_later) + dy[t]
    cell = dc + out * o * (1 - shown * shown)
    before = (c0 if t == 0 else cells[t - 1]).masked_fill(resets[t][:, None], 0.0)
    parts = (cell * g * i * (1 - i), cell * before * f * (1 - f), cell * i * (1 - g * g), out * shown * o * (1 - o))
    torch.cat(parts, 1, out=dgates[t]).masked_fill_(~live, 0.0)
    torch.where(live, cell * f, dc, out=dc)
