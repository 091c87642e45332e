"""The selective scan of Mamba: a diagonal state space of N numbers per channel, whose step size and weights follow the input.

Paper: Mamba (2312.00752), section 3.2 and algorithm 2; discretised as its code does (exact for A, one Euler step for B).

Equation, per channel e and state n: ``delta = softplus(dt + dt_bias)``;
``h_t[n] = exp(delta_t A[n]) h_{t-1}[n] + delta_t x_t B_t[n]``;  ``s_t = sum_n C_t[n] h_t[n] + D x_t``;  ``y_t = s_t silu(z_t)``.

Forms: :func:`selective_scan_reference` (the equation as a loop), :func:`selective_scan_step` (one token), a chunked form in
torch, and a compiled loop (numba, CPU) that does everything from dt to y in one pass. Both of the latter keep the inputs and
the state at the beginning of every stretch of tokens, and recompute the states of one stretch at a time in the backward pass,
so that memory is O(T E) and never O(T E N). :func:`selective_scan` chooses.

Gradients, with ``G_t`` the gradient of ``h_t`` through everything after it and ds that of s:
``G_t = C_t ds_t + exp(delta_{t+1} A) G_{t+1}``; ``dC_t = sum_e ds_t h_t``; ``dB_t = sum_e G_t delta_t x_t``; with
``P_t = G_t exp(delta_t A) h_{t-1}``: ``dA = sum_t P_t delta_t``, ``ddelta_t = sum_n (P_t A + G_t B_t x_t)``.

Precision: the compiled loop carries states in float64 and has gates as ``exp(a) - 1``, so that a gate of 1 - 1e-7 keeps its
meaning over any number of tokens; the chunked form sums logarithms.

B batch, T time, E channels, N state size of a channel.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, expm1, inlined, run_blocks, sigmoid, softplus
from orrery.ops.diagonal_scan import scan_chunks
from orrery.ops.operands import check_operands, exact, exactly, sizes

_LANES = 64  # channels that the compiled loops take together
_GROUP = 256  # channels whose shares of dB and dC the backward loop adds up before it writes them
_COLUMNS = _GROUP // _LANES
_STRETCH = 32  # tokens between stored states
_CHUNK = 64  # tokens between stored states of the torch form
_ONE = np.float32(1.0)  # in a kernel, a Python 1 would turn float32 into float64


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The scan of the equation above.

    Args:
        x, dt: inputs and raw step sizes (B,T,E).
        A: rates (E,N), at most 0.
        B, C: what writes and reads the states (B,T,N), shared by all channels.
        D: skip (E,), none when None. z: gate (B,T,E), none when None. dt_bias: (E,), 0 when None.
        state: h before the first token (B,N,E), zero when None.
        starts: (B,T) bool; True zeroes the state before the token is consumed.
        lengths: (B,) int64, valid tokens per row; tokens after them leave the state as it is and give y = 0.
        backend: `numba` or `torch`; None lets :mod:`orrery.ops.backend` choose.

    Returns:
        y (B,T,E) in x's type, and h after the last valid token (B,N,E) in float32 (float64 for float64 inputs).

    Raises:
        StateError: when the state or `starts` has another shape.
    """
    batch, time, width = sizes("selective_scan", "x", x, "BTE")
    kind, size = torch.float64 if x.dtype == torch.float64 else torch.float32, A.shape[-1]
    each, shape = (batch, time, size), (batch, size, width)
    operands = {
        "dt": (dt, (batch, time, width)), "A": (A, (width, size)), "B": (B, each), "C": (C, each), "D": (D, (width,)),
        "z": (z, (batch, time, width)), "dt_bias": (dt_bias, (width,)), "state": (state, shape),
    }  # fmt: skip
    check_operands("selective_scan", operands, (batch, time), starts, lengths)
    before = x.new_zeros(shape, dtype=kind) if state is None else state.to(kind)
    wide = [None if each is None else each.to(kind) for each in (x, dt, A.t(), B, C, D, z, dt_bias)]
    given, raw, rates, write, read, skip, gate, bias = wide
    assert given is not None and raw is not None and rates is not None and write is not None and read is not None
    differentiated = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*wide, before))
    one = time == 1 and lengths is None
    if choose(backend, x, op="selective_scan") == "numba" and not (one and differentiated):
        y, after = _CompiledScan.apply(given, raw, rates, write, read, skip, gate, bias, before, starts, lengths)
        return y.to(x.dtype), after
    delta, padding = F.softplus(raw if bias is None else raw + bias), None
    if one:
        begin = None if starts is None else starts[:, 0]
        with exact(given):
            s, after = selective_scan_step(given[:, 0], delta[:, 0], rates.t(), write[:, 0], read[:, 0], before, begin)
        s = s[:, None]
    else:
        if lengths is not None:
            padding = torch.arange(time, device=x.device) >= lengths[:, None]
            delta = delta.masked_fill(padding[..., None], 0.0)
            starts = None if starts is None else starts & ~padding
        with exact(given):
            s, after = _ChunkedScan.apply(given, delta, rates, write, read, before, starts)
    s = s if skip is None else torch.addcmul(s, skip, given)
    y = s if gate is None else s * F.silu(gate)
    if padding is not None:
        y = y.masked_fill(padding[..., None], 0.0)
    return y.to(x.dtype), after


def selective_scan_step(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One token: x and delta (B,E), B and C (B,N), state (B,N,E), starts (B,). Returns s without skip (B,E), and h."""
    if starts is not None:
        state = torch.where(starts[:, None, None], 0.0, state)
    gates = (delta[:, None] * A.t()).exp()
    h = torch.addcmul(B[:, :, None] * (delta * x)[:, None], gates, state)
    return (C[:, None] @ h)[:, 0], h


def selective_scan_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    state: Tensor | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The equation, token by token. Shapes as in :func:`selective_scan`; gradients are autograd's."""
    batch, time, width = x.shape
    h = x.new_zeros(batch, A.shape[1], width) if state is None else state
    delta = F.softplus(dt if dt_bias is None else dt + dt_bias)
    out = []
    for t in range(time):
        now = None if starts is None else starts[:, t]
        s, h = selective_scan_step(x[:, t], delta[:, t], A, B[:, t], C[:, t], h, now)
        out.append(s)
    s = torch.stack(out, 1)
    s = s if D is None else s + D * x
    return (s if z is None else s * F.silu(z)), h


def selective_scan_matrix(
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    starts: Tensor | None = None,
) -> Tensor:
    """The matrices (B,E,T,T) with ``s = M x`` channel by channel, gate left out; D is on the diagonal. For short T."""
    delta = F.softplus(dt if dt_bias is None else dt + dt_bias).transpose(1, 2)  # (B,E,T)
    time = delta.shape[2]
    seen = torch.ones(time, time, dtype=torch.bool, device=dt.device).tril()
    if starts is not None:
        document = starts.cumsum(1)
        seen = (seen & (document[:, :, None] == document[:, None]))[:, None]
    passed = delta.cumsum(2)
    passed = (passed[..., :, None] - passed[..., None, :]).masked_fill(~seen, 0.0)  # the sum over s+1 .. t
    m = torch.zeros_like(passed)
    for n in range(A.shape[1]):
        pairs = (C[:, :, n, None] * B[:, None, :, n])[:, None]
        m = m + pairs * (passed * A[:, n, None, None]).exp()
    m = (m * delta[..., None, :]).masked_fill(~seen, 0.0)
    return m if D is None else m + torch.diag_embed(D[:, None].expand(-1, time))


def _terms(x: Tensor, delta: Tensor, rates: Tensor, B: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logarithms of gates, and inputs, of every state of a chunk (B,C,N,E)."""
    a_log = delta[:, :, None] * rates
    if starts is not None:
        a_log = a_log.masked_fill(starts[..., None, None], -math.inf)
    return a_log, B[..., None] * (delta * x)[:, :, None]


def _scan(a_log: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The diagonal scan over (B,C,N,E)."""
    h, after = scan_chunks(a_log.flatten(2), b.flatten(2), state.flatten(1))
    return h.view_as(b), after.view_as(state)


class _ChunkedScan(torch.autograd.Function):
    """The torch form with its gradient: rates (N,E), state (B,N,E). Saves the inputs and the state before every chunk."""

    @staticmethod
    def forward(ctx: Any, x, delta, rates, B, C, state, starts):  # type: ignore[no-untyped-def]
        s, kept, h = torch.empty_like(x), [], state
        for t in range(0, x.shape[1], _CHUNK):
            part = slice(t, t + _CHUNK)
            kept.append(h)
            terms = _terms(x[:, part], delta[:, part], rates, B[:, part], None if starts is None else starts[:, part])
            states, h = _scan(*terms, h)
            s[:, part] = (C[:, part, None] @ states)[:, :, 0]
        ctx.save_for_backward(x, delta, rates, B, C, torch.stack(kept), starts)
        return s, h

    @staticmethod
    @once_differentiable
    @exactly
    def backward(ctx: Any, ds: Tensor, carry: Tensor) -> tuple[Tensor | None, ...]:
        x, delta, rates, B, C, kept, starts = ctx.saved_tensors
        dx, ddelta, drates = torch.empty_like(x), torch.empty_like(x), torch.zeros_like(rates)
        dB, dC = torch.empty_like(B), torch.empty_like(C)
        for number in range(len(kept) - 1, -1, -1):
            part = slice(number * _CHUNK, (number + 1) * _CHUNK)
            given, step, grad = x[:, part], delta[:, part], ds[:, part]
            a_log, b = _terms(given, step, rates, B[:, part], None if starts is None else starts[:, part])
            h, _ = _scan(a_log, b, kept[number])
            later = F.pad(a_log[:, 1:], (0, 0, 0, 0, 0, 1)).flip(1)  # in reversed time, the gate of the token after
            through, _ = _scan(later, (C[:, part, :, None] * grad[:, :, None]).flip(1), carry)
            through = through.flip(1)  # G
            dC[:, part] = (h @ grad[..., None])[..., 0]
            dB[:, part] = (through @ (step * given)[..., None])[..., 0]
            written = (B[:, part, None] @ through)[:, :, 0]
            dx[:, part] = step * written
            back = through * a_log.exp()
            carry = back[:, 0]
            product = back * torch.cat([kept[number][:, None], h[:, :-1]], 1)  # P
            drates += torch.einsum("btne,bte->ne", product, step)
            ddelta[:, part] = (product * rates).sum(2) + given * written
        return dx, ddelta, drates, dB, dC, carry, None


def _flat(x: Tensor) -> tuple[Tensor, int, int]:
    """A tensor (B,T,E) whose last dimension is dense as one row of numbers, with the steps from row to row and token to token."""
    if x.stride(2) != 1 or x.stride(1) < x.shape[2] or (x.shape[0] > 1 and x.stride(0) < x.stride(1)):
        x = x.contiguous()
    rows, steps = x.stride(0), x.stride(1)
    span = (x.shape[0] - 1) * rows + (x.shape[1] - 1) * steps + x.shape[2]
    return x.detach().as_strided((span,), (1,)), rows, steps


class _CompiledScan(torch.autograd.Function):
    """The compiled loop with its gradient: rates (N,E), state (B,N,E)."""

    @staticmethod
    def forward(ctx: Any, x, dt, rates, B, C, D, z, bias, state, starts, lengths):  # type: ignore[no-untyped-def]
        batch, time, width = x.shape
        ctx.asked = D is not None, z is not None, bias is not None
        D, bias = (x.new_zeros(width) if each is None else each for each in (D, bias))
        gate, *steps = (x.new_zeros(0), 0, 0) if z is None else _flat(z)
        inputs = [each.detach().contiguous() for each in (x, dt, rates, B, C, D, bias, state)]
        starts = torch.zeros(batch, 0, dtype=torch.bool) if starts is None else starts.contiguous()
        lengths = torch.full((batch,), time) if lengths is None else lengths.contiguous()
        wanted = any(ctx.needs_input_grad)
        kept = x.new_empty(batch, -(-time // _STRETCH) if wanted else 0, *state.shape[1:])
        y, after = torch.empty_like(inputs[0]), torch.empty_like(inputs[-1])
        arrays = [each.numpy() for each in (*inputs, gate, starts, lengths, y, after, kept)]
        run_blocks(_scan_forward, batch * -(-width // _LANES), 4 * x.numel(), *arrays, *steps)
        if wanted:
            ctx.save_for_backward(*inputs, *(() if z is None else (z,)), starts, lengths, kept)
        return y, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dafter: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, rates, B, C, D, bias, _, *gates, starts, lengths, kept = ctx.saved_tensors
        batch, time, width = x.shape
        size, groups = len(rates), -(-width // _GROUP)
        gate, *steps = _flat(gates[0]) if gates else (x.new_zeros(0), 0, 0)
        dx, ddt, dstate = torch.empty_like(x), torch.empty_like(x), torch.empty_like(dafter)
        dz = torch.empty_like(x) if gates else x.new_zeros(batch, 0, 0)
        shares = x.new_empty(2, batch, groups, time, size)  # of dB and dC
        drates, dskip = x.new_empty(batch, size, width), x.new_empty(2, batch, width)  # of A; of D and the bias
        tensors = (x, dt, rates, B, C, D, bias, gate, starts, lengths, kept, dy.contiguous(), dafter.contiguous())
        outputs = (dx, ddt, dz, drates, shares, dskip, dstate)
        arrays = [each.numpy() for each in (*tensors, *outputs)]
        run_blocks(_scan_backward, batch * groups, 16 * x.numel(), *arrays, *steps)
        dB, dC = shares.sum(2)
        dD, dbias = dskip.sum(1)
        skip, gated, biased = ctx.asked
        return (
            dx, ddt, drates.sum(0), dB, dC, dD if skip else None, dz if gated else None, dbias if biased else None,
            dstate, None, None,
        )  # fmt: skip


# Rows of scratch memory always hold _LANES numbers, of which the last may be idle: loops of a constant length over parts of
# few arrays are what the compiler can prove to be independent, and vectorises.


@compiled
def _scan_forward(  # type: ignore[no-untyped-def]
    first, last, x, dt, rates, B, C, D, bias, state, gate, starts, lengths, y, after, kept, gate_row, gate_step
):
    time, width = x.shape[1], x.shape[2]
    columns, size = -(-width // _LANES), len(rates)
    resets, keeps, gated = starts.shape[1] > 0, kept.shape[1] > 0, len(gate) > 0
    carry, total = np.zeros((size, _LANES)), np.zeros(_LANES)
    given, raw, skip = np.zeros(_LANES, x.dtype), np.zeros(_LANES, x.dtype), np.zeros(_LANES, x.dtype)
    shift, delta, inputs = np.zeros(_LANES, x.dtype), np.zeros(_LANES, x.dtype), np.zeros(_LANES, x.dtype)
    rate, less = np.zeros((size, _LANES), x.dtype), np.zeros(_LANES, x.dtype)
    for block in range(first, last):
        row, low = block // columns, (block % columns) * _LANES
        high, end = min(low + _LANES, width), min(time, lengths[row])
        count = high - low
        carry[:, :count], rate[:, :count] = state[row, :, low:high], rates[:, low:high]
        skip[:count], shift[:count] = D[low:high], bias[low:high]
        for t in range(end):
            if keeps and t % _STRETCH == 0:
                kept[row, t // _STRETCH, :, low:high] = carry[:, :count]
            if resets and starts[row, t]:
                carry[:] = 0.0
            given[:count], raw[:count] = x[row, t, low:high], dt[row, t, low:high]
            for i in range(_LANES):
                delta[i] = softplus(raw[i] + shift[i])
                inputs[i] = delta[i] * given[i]
                total[i] = skip[i] * given[i]
            write, read = B[row, t], C[row, t]
            for n in range(size):
                for i in range(_LANES):
                    less[i] = expm1(delta[i] * rate[n, i])
                for i in range(_LANES):
                    carry[n, i] = (carry[n, i] + less[i] * carry[n, i]) + inputs[i] * write[n]
                    total[i] += read[n] * carry[n, i]
            out = y[row, t, low:high]
            if gated:
                at = row * gate_row + t * gate_step
                passed = gate[at + low : at + high]
                for i in range(count):
                    out[i] = total[i] * (passed[i] * sigmoid(passed[i]))
            else:
                out[:] = total[:count]
        y[row, end:, low:high] = 0.0
        after[row, :, low:high] = carry[:, :count]


@inlined
def _states_again(  # type: ignore[no-untyped-def]
    x, dt, B, C, starts, row, begin, steps, low, high, rate, skip, shift, h, tokens, gates, states
):
    """The forward pass over one stretch, with everything that the backward pass needs: x, delta, delta x and s of its tokens,
    gates less 1, and states after every token."""
    resets, count = starts.shape[1] > 0, high - low
    for s in range(steps):
        if resets and starts[row, begin + s]:
            h[:] = 0.0
        given, delta, inputs, total = tokens[0, s], tokens[1, s], tokens[2, s], tokens[3, s]
        given[:count], delta[:count] = x[row, begin + s, low:high], dt[row, begin + s, low:high]
        for i in range(_LANES):
            delta[i] = softplus(delta[i] + shift[i])
            inputs[i] = delta[i] * given[i]
            total[i] = skip[i] * given[i]
        write, read, less, now = B[row, begin + s], C[row, begin + s], gates[s], states[s + 1]
        for n in range(len(rate)):
            for i in range(_LANES):
                less[n, i] = expm1(delta[i] * rate[n, i])
            for i in range(_LANES):
                h[n, i] = (h[n, i] + less[n, i] * h[n, i]) + inputs[i] * write[n]
                now[n, i] = h[n, i]
                total[i] += read[n] * now[n, i]


@inlined
def _back(  # type: ignore[no-untyped-def]
    carry, ds, write, read, rate, less, before, now, delta, inputs, grads, product, back, written, turns, to_b, to_c
):
    """The gradients of one token's states, and what they add to those of A, B, C, delta and the input."""
    for n in range(len(rate)):
        for i in range(_LANES):
            grad = carry[n, i] + read[n] * ds[i]
            grads[i] = grad
            carry[n, i] = grad + less[n, i] * grad
        for i in range(_LANES):
            product[i] = (grads[i] + less[n, i] * grads[i]) * before[n, i]
        for i in range(_LANES):
            turns[n, i] += product[i] * delta[i]
            back[i] += product[i] * rate[n, i]
        for i in range(_LANES):
            to_b[n, i] += grads[i] * inputs[i]
            written[i] += grads[i] * write[n]
        for i in range(_LANES):
            to_c[n, i] += now[n, i] * ds[i]


@inlined
def _back_through_gate(dy, total, passed, dgate, ds):  # type: ignore[no-untyped-def]
    """From the gradient of y to those of the gate and of s."""
    for i in range(len(dy)):
        open_ = sigmoid(passed[i])
        dgate[i] = dy[i] * total[i] * (open_ * (_ONE + passed[i] * (_ONE - open_)))
        ds[i] = dy[i] * (passed[i] * open_)


@inlined
def _sum_lanes(sums, out):  # type: ignore[no-untyped-def]
    """sums (N,_LANES), which is overwritten -> out (N,)."""
    for n in range(len(out)):
        for i in range(_LANES // 2):
            sums[n, i] += sums[n, i + _LANES // 2]
        for i in range(_LANES // 4):
            sums[n, i] += sums[n, i + _LANES // 4]
        for i in range(_LANES // 8):
            sums[n, i] += sums[n, i + _LANES // 8]
        total = sums[n, 0]
        for i in range(1, _LANES // 8):
            total += sums[n, i]
        out[n] = total


@compiled
def _scan_backward(  # type: ignore[no-untyped-def]
    first, last, x, dt, rates, B, C, D, bias, gate, starts, lengths, kept, dy, dafter,
    dx, ddt, dz, drates, shares, dskip, dstate, gate_row, gate_step,
):  # fmt: skip
    time, width, size = x.shape[1], x.shape[2], len(rates)
    groups, resets, gated = -(-width // _GROUP), starts.shape[1] > 0, len(gate) > 0
    carries, turned = np.zeros((_COLUMNS, size, _LANES)), np.zeros((_COLUMNS, size, _LANES))
    h, rate, none = np.zeros((size, _LANES)), np.zeros((size, _LANES), x.dtype), np.zeros((size, _LANES), x.dtype)
    turns, states = np.zeros((size, _LANES), x.dtype), np.zeros((_STRETCH + 1, size, _LANES), x.dtype)
    gates, sums = np.zeros((_STRETCH, size, _LANES), x.dtype), np.zeros((2, _STRETCH, size, _LANES), x.dtype)
    tokens, ends = np.zeros((4, _STRETCH, _LANES), x.dtype), np.zeros((_COLUMNS, 2, _LANES))
    skip, shift, ds = np.zeros(_LANES, x.dtype), np.zeros(_LANES, x.dtype), np.zeros(_LANES, x.dtype)
    grads, product = np.zeros(_LANES, x.dtype), np.zeros(_LANES, x.dtype)
    back, written = np.zeros(_LANES, x.dtype), np.zeros(_LANES, x.dtype)
    for block in range(first, last):
        row, group = block // groups, block % groups
        left, end = group * _GROUP, min(time, lengths[row])
        right = min(left + _GROUP, width)
        columns = -(-(right - left) // _LANES)
        carries[:], turned[:], ends[:], ds[:] = 0.0, 0.0, 0.0, 0.0
        for column in range(columns):
            low, high = left + column * _LANES, min(left + (column + 1) * _LANES, right)
            carries[column, :, : high - low] = dafter[row, :, low:high]
        dx[row, end:, left:right], ddt[row, end:, left:right], shares[:, row, group, end:] = 0.0, 0.0, 0.0
        if gated:
            dz[row, end:, left:right] = 0.0
        for stretch in range((end + _STRETCH - 1) // _STRETCH - 1, -1, -1):
            begin = stretch * _STRETCH
            steps, sums[:] = min(_STRETCH, end - begin), 0.0
            for column in range(columns):
                low, high = left + column * _LANES, min(left + (column + 1) * _LANES, right)
                count, carry, both = high - low, carries[column], ends[column]
                if count < _LANES:  # what the idle ones hold must be finite, and their gradients zero
                    h[:], ds[:], tokens[:] = 0.0, 0.0, 0.0
                rate[:, :count], h[:, :count] = rates[:, low:high], kept[row, stretch, :, low:high]
                skip[:count], shift[:count], states[0], turns[:] = D[low:high], bias[low:high], h, 0.0
                _states_again(
                    x, dt, B, C, starts, row, begin, steps, low, high, rate, skip, shift, h, tokens, gates, states
                )
                for s in range(steps - 1, -1, -1):
                    t = begin + s
                    reset = resets and starts[row, t]
                    given, delta, inputs, total = tokens[0, s], tokens[1, s], tokens[2, s], tokens[3, s]
                    ds[:count], back[:], written[:] = dy[row, t, low:high], 0.0, 0.0
                    if gated:
                        at = row * gate_row + t * gate_step
                        _back_through_gate(
                            dy[row, t, low:high], total, gate[at + low : at + high], dz[row, t, low:high], ds
                        )
                    _back(
                        carry, ds, B[row, t], C[row, t], rate, gates[s], none if reset else states[s], states[s + 1],
                        delta, inputs, grads, product, back, written, turns, sums[0, s], sums[1, s],
                    )  # fmt: skip
                    if reset:
                        carry[:] = 0.0
                    for i in range(_LANES):
                        both[0, i] += ds[i] * given[i]
                        back[i] = -(back[i] + given[i] * written[i]) * expm1(-delta[i])
                        both[1, i] += back[i]
                        given[i] = ds[i] * skip[i] + delta[i] * written[i]
                    dx[row, t, low:high], ddt[row, t, low:high] = given[:count], back[:count]
                turned[column] += turns
            for s in range(steps):
                _sum_lanes(sums[0, s], shares[0, row, group, begin + s])
                _sum_lanes(sums[1, s], shares[1, row, group, begin + s])
        for column in range(columns):
            low, high = left + column * _LANES, min(left + (column + 1) * _LANES, right)
            drates[row, :, low:high] = turned[column, :, : high - low]
            dskip[:, row, low:high] = ends[column, :, : high - low]
            dstate[row, :, low:high] = carries[column, :, : high - low]
