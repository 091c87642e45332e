"""The diagonal linear recurrence: every channel decays by its own gate and adds its own input.

Equation: ``h_t = exp(a_log_t) h_{t-1} + b_t``, elementwise. QRNN (1611.01576), SRU (1709.02755), Mamba's selective scan
(2312.00752), RG-LRU (2402.19427), minGRU and minLSTM (2410.01201) and, with its running maximum as a gate, RWKV-4
(2305.13048) are this recurrence.

Forms: :func:`diagonal_scan_reference` is the equation as a loop; :func:`diagonal_scan_chunked` scans all chunks at once
and then carries the state from chunk to chunk (torch, any device); :func:`diagonal_scan_step` is one token; the compiled
loop (numba, CPU) reads every number once. :func:`diagonal_scan` chooses.

What the compiled loop carries is two numbers of the inputs' type, h and what rounding took from it: with e = exp(a_log) - 1 and
``s = e h + (lost + b)``, ``h' = h + s`` and ``lost' = s - (h' - h)``, which is exact where |s| <= |h|. So s is rounded and h is
not: every result is that of inputs and gates changed by units in their last place, over any number of tokens (1e-7 of the greatest
state in 1e6 tokens with gates of 1; 1e-6 where inputs as large as the state alternate in sign for 2e4). Where the gate is
further from 1 than a factor of sqrt(2), or the state below 2^-92, the sum is taken plainly, ``exp(a_log) h + b``, since what it loses is
soon forgotten; states below 2^-126 count as 0, since what a processor does with numbers that small takes ten times as long. Like any sum
in that type, h that has overflowed does not come back.

Gradients, with ``G_t`` the gradient of ``h_t`` through everything after it: ``G_t = dh_t + exp(a_log_{t+1}) G_{t+1}``,
``db_t = G_t``, ``da_log_t = G_t exp(a_log_t) h_{t-1}``: the same recurrence, run backwards in time.

Gates: ``a_log = -inf`` (forget everything) is exact, and so are gates as near to 1 as 1 - 1e-7.

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

from orrery.ops import fla, streams
from orrery.ops.backend import choose
from orrery.ops.compiled import compiled, inlined, run_blocks, split_exp
from orrery.ops.operands import check_broadcast, check_operands, sizes
from orrery.ops.recompute import held, hold
from orrery.ops.streams import fetch, settle, stream

_BLOCK, _FEWEST = 512, 64  # channels that one thread scans together, at most and at least
_TILE = 16  # tokens whose gradients are written together
_FAR = 1 << 24  # bytes of an array from which on it is taken to lie further away than the caches

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)  # in a kernel, a Python 0.0 would turn float32 into float64
_NEAR, _LEAST = np.float32(2.0**-92), np.float32(2.0**-126)


def diagonal_scan(
    a_log: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """All states of ``h_t = exp(a_log_t) h_{t-1} + b_t``.

    Args:
        a_log: logarithm of the gates, (B,T,D) or broadcastable to it; -inf forgets everything.
        b: inputs (B,T,D).
        state: h before the first token (B,D), zero when None.
        starts: (B,T) bool; True zeroes the state before the token is consumed.
        lengths: (B,) int64, valid tokens per row; tokens after them leave the state as it is.
        backend: `numba`, `fla` or `torch`; None lets :mod:`orrery.ops.backend` choose.

    Returns:
        h (B,T,D) in b's type, and h after the last valid token (B,D) in float32 (float64 for float64 inputs).

    Raises:
        StateError: when the state or `starts` has another shape.
    """
    batch, time, width = sizes("diagonal_scan", "b", b, "BTD")
    kind = torch.float64 if b.dtype == torch.float64 else torch.float32
    check_broadcast("diagonal_scan", "a_log", a_log, (batch, time, width))
    check_operands("diagonal_scan", {"state": (state, (batch, width))}, (batch, time), starts, lengths)
    gate, inputs = a_log.to(kind), b.to(kind)
    if gate.shape != b.shape:
        gate = gate.expand(b.shape)
    before = inputs.new_zeros(batch, width) if state is None else state.to(kind)
    if time == 1 and lengths is None:
        h, after = diagonal_scan_step(gate, inputs, before, starts)
        return h.to(b.dtype), after
    if starts is not None:
        gate = gate.masked_fill(starts[..., None], -math.inf)
    if lengths is not None:
        padding = (torch.arange(time, device=b.device) >= lengths[:, None])[..., None]
        gate, inputs = gate.masked_fill(padding, 0.0), inputs.masked_fill(padding, 0.0)
    use = choose(backend, b, op="diagonal_scan", offered=("fla", "numba", "torch"))
    if use == "numba":
        h, after = _CompiledScan.apply(gate, inputs, before)
    elif use == "fla":
        h, after = fla.diagonal_scan(gate, inputs, before)
    else:
        h, after = diagonal_scan_chunked(gate, inputs, before)
    return h.to(b.dtype), after


def diagonal_scan_reference(
    a_log: Tensor, b: Tensor, state: Tensor | None = None, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The equation, token by token. Shapes as in :func:`diagonal_scan`; gradients are autograd's."""
    h = torch.zeros_like(b[:, 0]) if state is None else state
    out = []
    for t in range(b.shape[1]):
        if starts is not None:
            h = torch.where(starts[:, t, None], 0.0, h)
        h = a_log[:, t].exp() * h + b[:, t]
        out.append(h)
    return torch.stack(out, 1), h


def diagonal_scan_step(a_log: Tensor, b: Tensor, state: Tensor, starts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One token: a_log, b (B,1,D), state (B,D), starts (B,1). Returns h (B,1,D) and (B,D)."""
    if starts is not None:
        state = torch.where(starts, 0.0, state)
    h = torch.addcmul(b[:, 0], a_log[:, 0].exp(), state)
    return h[:, None], h


def diagonal_scan_chunked(a_log: Tensor, b: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Parallel over chunks, some 2 sqrt(T) steps in all; starts must already be gates of -inf. Shapes as above."""
    state = torch.zeros_like(b[:, 0]) if state is None else state
    return _ChunkedScan.apply(a_log, b, state)


def scan_chunks(a_log: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The chunked form without its gradient: scan every chunk from zero, all at once; carry the state over chunks; add what
    each carried state still counts."""
    batch, time, width = b.shape
    chunk = max(1, math.isqrt(time))
    chunks = -(-time // chunk)
    short = (0, 0, 0, chunks * chunk - time)  # a gate of 1 and an input of 0 leave the state as it is
    log_gate = F.pad(a_log, short).view(batch, chunks, chunk, width)
    h = (F.pad(b, short) if short[-1] else b.clone(memory_format=torch.contiguous_format)).view_as(log_gate)
    gate = log_gate.exp()
    for i in range(1, chunk):
        h[:, :, i].addcmul_(gate[:, :, i], h[:, :, i - 1])
    reach = log_gate.cumsum(2).exp()  # a sum of logarithms, so that 1 - 1e-7 survives thousands of float32 tokens
    wide = h.dtype if h.device.type == "mps" else torch.float64  # the chain of chunks must not collect rounding errors
    carried, carry = torch.empty_like(h[:, :, 0]), state.to(wide)
    last, through = h[:, :, -1].to(wide), log_gate.sum(2, dtype=wide).exp()
    for n in range(chunks):
        carried[:, n] = carry
        carry = torch.addcmul(last[:, n], through[:, n], carry)
    h.addcmul_(reach, carried[:, :, None])
    return h.view(batch, chunks * chunk, width)[:, :time], carry.to(h.dtype)


def _gradients_from(grad: Tensor, a_log: Tensor, h: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """From G_t (B,T,D) to the gradients of a_log and of the initial state."""
    previous = torch.cat([state[:, None], h[:, :-1]], 1)
    through = grad * a_log.exp()
    return through * previous, through[:, 0]


class _ChunkedScan(torch.autograd.Function):
    """The parallel form with its gradient."""

    @staticmethod
    def forward(ctx: Any, a_log: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h, after = scan_chunks(a_log, b, state)
        hold(ctx, a_log, h, state)
        return h, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor, dafter: Tensor) -> tuple[Tensor, ...]:
        a_log, h, state = held(ctx)
        later = F.pad(a_log[:, 1:], (0, 0, 0, 1)).flip(1)  # in reversed time, the gate of the token after
        grad = scan_chunks(later, dh.flip(1), dafter)[0].flip(1)
        da_log, dstate = _gradients_from(grad, a_log, h, state)
        return da_log, grad, dstate


class _CompiledScan(torch.autograd.Function):
    """The compiled loop with its gradient."""

    @staticmethod
    def forward(ctx: Any, a_log: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        gate, b, state = a_log.contiguous(), b.contiguous(), state.contiguous()
        batch, _, width = b.shape
        h, after = torch.empty_like(b), torch.empty_like(state)
        arrays = [x.detach().numpy() for x in (gate, b, state, h, after)]
        lanes = _lanes(batch, width)
        run_blocks(_scan_forward, batch * -(-width // lanes), 2 * b.numel(), *arrays, lanes)
        hold(ctx, a_log if getattr(a_log, "_made", None) is not None else gate, h, state)
        return h, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor, dafter: Tensor) -> tuple[Tensor, ...]:
        a_log, h, state = held(ctx)
        batch, _, width = h.shape
        da_log, db, dstate = torch.empty_like(h), torch.empty_like(h), torch.empty_like(state)
        arrays = [x.contiguous().numpy() for x in (a_log, h, state, dh, dafter)]
        outputs = [x.numpy() for x in (da_log, db, dstate)]
        lanes = _lanes(batch, width)
        kernel = _scan_backward
        if h.nbytes >= _FAR and streams.whole_lines(da_log, db):
            streams.ready()
            kernel = _scan_backward_far
        run_blocks(kernel, batch * -(-width // lanes), 3 * h.numel(), *arrays, *outputs, lanes)
        return da_log, db, dstate


# Rows are taken as slices and indexed by the loop variable alone: numba cannot tell that `low + i` is not negative, and
# the test for it would keep the compiler from vectorising. A slice takes as long as some fifty numbers: long rows are best.


def _lanes(batch: int, width: int) -> int:
    """Channels that a thread takes together: many, as long as there are blocks enough for all threads."""
    lanes = _BLOCK
    while lanes > _FEWEST and batch * -(-width // lanes) < 2 * torch.get_num_threads():
        lanes //= 2
    return lanes


@inlined
def _advance(a_log, high, low, given):  # type: ignore[no-untyped-def]
    """(high, low) -> e^a_log (high + low) + given as another such sum, and e^a_log high alone."""
    p, scale = split_exp(a_log)
    size = abs(high)
    near = (scale == _ONE) & (size >= _NEAR)
    held = _ZERO if size < _LEAST else high  # not a number stays one
    base = held if near else _ZERO
    gate = scale * p + (_ZERO if near else scale)  # less 1 where near
    added = gate * held + ((low if near else _ZERO) + given)
    total = base + added
    return total, added - (total - base), gate * held + base


@compiled
def _scan_forward(first, last, a_log, b, state, h, after, lanes):  # type: ignore[no-untyped-def]
    width = b.shape[2]
    columns = -(-width // lanes)
    carry, lost = np.empty(lanes, b.dtype), np.empty(lanes, b.dtype)
    for block in range(first, last):
        row, low = block // columns, (block % columns) * lanes
        high = min(low + lanes, width)
        carry[: high - low], lost[:] = state[row, low:high], 0.0
        for t in range(b.shape[1]):
            gate, given, out = a_log[row, t, low:high], b[row, t, low:high], h[row, t, low:high]
            for i in range(high - low):
                value, rest, _ = _advance(gate[i], carry[i], lost[i], given[i])
                carry[i] = value
                lost[i] = rest
                out[i] = value
        after[row, low:high] = carry[: high - low]


@compiled
def _scan_backward(first, last, a_log, h, state, dh, dafter, da_log, db, dstate, lanes):  # type: ignore[no-untyped-def]
    width, end = h.shape[2], h.shape[1] - 1
    columns = -(-width // lanes)
    carry, lost, none = np.empty(lanes, h.dtype), np.empty(lanes, h.dtype), np.zeros(lanes, h.dtype)
    for block in range(first, last):
        row, low = block // columns, (block % columns) * lanes
        high = min(low + lanes, width)
        carry[: high - low], lost[:] = dafter[row, low:high] + dh[row, end, low:high], 0.0
        db[row, end, low:high] = carry[: high - low]
        for t in range(end, -1, -1):
            gate, dgate = a_log[row, t, low:high], da_log[row, t, low:high]
            given = dh[row, t - 1, low:high] if t > 0 else none[: high - low]
            before = h[row, t - 1, low:high] if t > 0 else state[row, low:high]
            dinput = db[row, t - 1, low:high] if t > 0 else dstate[row, low:high]
            for i in range(high - low):
                value, rest, through = _advance(gate[i], carry[i], lost[i], given[i])
                carry[i] = value
                lost[i] = rest
                dinput[i] = value
                dgate[i] = through * before[i]


@compiled
def _scan_backward_far(first, last, a_log, h, state, dh, dafter, da_log, db, dstate, lanes):  # type: ignore[no-untyped-def]
    """The same for arrays longer than the caches: rows are fetched a tile ahead, results gathered by tiles, both taken upwards."""
    width, end = h.shape[2], h.shape[1] - 1
    columns = -(-width // lanes)
    carry, lost, none = np.empty(lanes, h.dtype), np.empty(lanes, h.dtype), np.zeros(lanes, h.dtype)
    room = np.empty((2, 2, _TILE, lanes), h.dtype)  # results of two tiles: one is filled while the other goes out
    for block in range(first, last):
        row, low = block // columns, (block % columns) * lanes
        high = min(low + lanes, width)
        carry[: high - low], lost[:] = dafter[row, low:high] + dh[row, end, low:high], 0.0
        for t in range(end, -1, -1):
            tile, at = t // _TILE, t % _TILE
            own, back = room[tile % 2], _TILE - 1 - at
            gate, dgate, dinput = a_log[row, t, low:high], own[0, at], own[1, at]
            given = dh[row, t - 1, low:high] if t > 0 else none[: high - low]
            before = h[row, t - 1, low:high] if t > 0 else state[row, low:high]
            ask, done = (tile - 1) * _TILE + back, (tile + 1) * _TILE + back
            if ask >= 0:
                fetch(a_log[row, ask, low:high])
                fetch(h[row, ask, low:high])
                fetch(dh[row, ask, low:high])
            if done <= end:
                other = room[(tile + 1) % 2]
                stream(other[0, back, : high - low], da_log[row, done, low:high])
                stream(other[1, back, : high - low], db[row, done, low:high])
            for i in range(high - low):
                dinput[i] = carry[i]
                value, rest, through = _advance(gate[i], carry[i], lost[i], given[i])
                carry[i] = value
                lost[i] = rest
                dgate[i] = through * before[i]
        for t in range(min(_TILE, end + 1)):
            stream(room[0, 0, t, : high - low], da_log[row, t, low:high])
            stream(room[0, 1, t, : high - low], db[row, t, low:high])
        dstate[row, low:high] = carry[: high - low]
    settle()
