"""The vector-decay recurrence as loops that numba compiles: the token-by-token form, which wins on a CPU.

A state of 64 x 64 numbers stays in the innermost cache, so a token costs some 2 K V multiply-adds there and back, without
the masks, exponentials and small products of a chunked form. Four sweeps of one kernel make everything:

    forwards,  write k_t v_t^T:   read by q_t  -> y_t      and  read by dy_t -> dq_t
    backwards, write q_t dy_t^T:  read by k_t  -> dv_t     and  read by v_t  -> dk_t

each over the state (K,V) or over its transpose, whichever lets a read add whole rows. Decays are not applied to the state
at every token: with G_t the sum of gates since the state was last scaled, ``S_t = diag(e^{G_t}) X_t``, and X only grows,

    X_t = X_{t-1} + (e^{-G_t} k_t) v_t^T,   y_t = (e^{G_t} q_t) X_t,

until some G falls below -LIMIT; then X takes the decays in and G starts at 0 again. So every term is a plain float32 sum
(no rounding of a decay near 1 repeats itself), a gate of -inf empties its row exactly, and no exponent exceeds LIMIT.

The gradient of the gates is a running sum against time, ``dg_t = sum_{s>=t} (q_s dq_s - k_s dk_s)``, which starts afresh from
``<S, dS>`` every SPAN tokens; the sweeps leave both there. `lag` is 1 where y_t reads the state before its own token (bonus).

B batch, T time, H heads, K key dimension, V value dimension, N spans.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.ops.compiled import compiled, exp, run_blocks

SPAN = 256  # tokens over which the gradient of the gates is summed
FORGET = -1000.0
"""Gates below count as -inf: their exponential is 0 in float32 and float64, and float64 sums of them stay exact."""
_TOKENS = 64  # of a block of the bonus's gradient: its share of du is kept apart, so that threads never share one
_LIMIT = -30.0  # e^30 = 1e13: room for any key on either side


class Steps(NamedTuple):
    """What all sweeps share: gates (B,T,H,K), document starts (B,T) or (B,0), and the lag of reading."""

    gates: Tensor
    starts: Tensor
    lag: int


def sweep(
    keys: Tensor,
    values: Tensor,
    reads: Tensor,
    steps: Steps,
    begin: Tensor | None,
    scale: float,
    *,
    backwards: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Writes keys (B,T,H,K) times values (B,T,H,V), in either direction of time, and reads with K numbers a token.

    Args:
        keys, values, reads: (B,T,H,K), (B,T,H,V), (B,T,H,K); strided tokens are read where they lie.
        steps: gates, starts and lag.
        begin: the state before the first step (B,H,K,V), zero when None.
        scale: of q, which is what is read with forwards and what is written backwards.
        backwards: against time.
        keep: also return the states before every SPAN-th token.

    Returns:
        What was read (B,T,H,V), the state at the end (B,H,K,V), and the states at the spans (B,N,H,K,V); N is 0 unless kept.
    """
    return _run_sweep(keys, values, reads, steps, begin, scale, backwards, keep, True)


def sweep_by_value(
    keys: Tensor,
    values: Tensor,
    reads: Tensor,
    steps: Steps,
    begin: Tensor | None,
    scale: float,
    *,
    backwards: bool,
) -> Tensor:
    """The same over the transposed state: reads (B,T,H,V) -> what was read (B,T,H,K)."""
    return _run_sweep(keys, values, reads, steps, begin, scale, backwards, False, False)[0]


def _run_sweep(
    keys: Tensor,
    values: Tensor,
    reads: Tensor,
    steps: Steps,
    begin: Tensor | None,
    scale: float,
    backwards: bool,
    keep: bool,
    by_key: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, time, heads, key = steps.gates.shape
    value, make = values.shape[3], steps.gates.new_empty
    out = make(batch, time, heads, value if by_key else key)
    end = make(batch, heads, key, value) if by_key else make(batch, heads, 0, 0)
    marks = make(batch, -(-time // SPAN) if keep else 0, heads, key, value)
    first = make(0, heads, key, value) if begin is None else begin.detach().contiguous()
    arrays: list[Any] = []
    for x in (keys, values, reads):
        flat, step = flattened(x)
        arrays += [flat, step]
    arrays += [t.detach().numpy() for t in (steps.gates, steps.starts, first, out, end, marks)]
    work = 2 * time * batch * heads * key * value
    _helpers()
    scales = (number(out, 1.0), number(out, scale))
    write_scale, read_scale = reversed(scales) if backwards else scales
    numbers = value, steps.lag, write_scale, read_scale, backwards, by_key
    run_blocks(_sweep, batch * heads, work, *arrays, *numbers)
    return out, end, marks


def flattened(x: Tensor) -> tuple[Any, int]:
    """X (B,T,H,N) as one flat array and the distance of its tokens: only then are rows known to be contiguous."""
    batch, time, heads, width = x.shape
    even = x.stride(3) == 1 and x.stride(2) == width and (batch == 1 or x.stride(0) == time * x.stride(1))
    if not even or x.stride(1) < heads * width:
        x = x.contiguous()
    span = (batch * time - 1) * x.stride(1) + heads * width
    return x.detach().as_strided((span,), (1,)).numpy(), x.stride(1)


def number(like: Tensor, value: float) -> Any:
    """A number of a tensor's type: in a kernel, a Python float would turn float32 into float64."""
    return np.float64(value) if like.dtype == torch.float64 else np.float32(value)


def gate_gradient(
    q: Tensor, dq: Tensor, k: Tensor, dk: Tensor, steps: Steps, marks: Tensor, dmarks: Tensor, last: Tensor | None
) -> Tensor:
    """dg (B,T,H,K) from the gradients of q and k (without the bonus), the states and gradients at the spans, and the
    sum <S, dS> (B,H,K) after the last token."""
    dg = torch.empty_like(steps.gates)
    ends = (marks * dmarks).sum(-1)
    after = ends.new_zeros(ends.shape[0], *ends.shape[2:]) if last is None else last.contiguous()
    arrays: list[Any] = []
    for x in (q, k):
        flat, step = flattened(x)
        arrays += [flat, step]
    arrays += [t.detach().numpy() for t in (dq, dk, steps.gates, steps.starts, ends, after, dg)]
    batch, _, heads, _ = dg.shape
    run_blocks(_gate_gradient, batch * heads, 4 * dg.numel(), *arrays, steps.lag)
    return dg


def add_bonus(q: Tensor, k: Tensor, v: Tensor, bonus: Tensor, scale: float, y: Tensor) -> None:
    """y_t += scale (sum over K of q_t u k_t) v_t, in place."""
    arrays: list[Any] = []
    for x in (q, k, v):
        flat, step = flattened(x)
        arrays += [flat, step]
    tokens = y.shape[0] * y.shape[1]
    _helpers()
    arrays += [bonus.detach().contiguous().numpy(), y.view(tokens, *y.shape[2:]).numpy()]
    run_blocks(_bonus, tokens, 3 * y.numel(), *arrays, number(y, scale))


def add_bonus_gradient(
    q: Tensor, k: Tensor, v: Tensor, bonus: Tensor, scale: float, dy: Tensor, grads: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Adds what the bonus term contributes to dq, dk and dv, in place; returns du (H,K)."""
    arrays: list[Any] = []
    for x in (q, k, v, dy):
        flat, step = flattened(x)
        arrays += [flat, step]
    tokens = dy.shape[0] * dy.shape[1]
    dbonus = dy.new_empty(-(-tokens // _TOKENS), *bonus.shape)
    outputs = [t.view(tokens, *t.shape[2:]).numpy() for t in grads]
    _helpers()
    arrays += [bonus.detach().contiguous().numpy(), *outputs, dbonus.numpy()]
    run_blocks(_bonus_gradient, len(dbonus), 6 * dy.numel(), *arrays, number(dy, scale))
    return dbonus.sum(0)


def _fill(state, total, begin, b, h, by_key):  # type: ignore[no-untyped-def]
    """The state before the first step: zero where `begin` is empty."""
    for i in range(len(total)):
        total[i] = 0
    for r in range(state.shape[0]):
        for j in range(state.shape[1]):
            state[r, j] = 0
    if len(begin) > 0:
        for r in range(state.shape[0]):
            for j in range(state.shape[1]):
                state[r, j] = begin[b, h, r, j] if by_key else begin[b, h, j, r]


def _copy(source, target):  # type: ignore[no-untyped-def]
    for r in range(source.shape[0]):
        for j in range(source.shape[1]):
            target[r, j] = source[r, j]


def _scaled(state, total, fade, by_key):  # type: ignore[no-untyped-def]
    """Lets the state take in the decays since the last time."""
    rows, cols = state.shape
    for i in range(len(total)):
        fade[i] = exp(total[i])
        total[i] = 0.0
    for r in range(rows):
        row = state[r]
        if by_key:
            factor = fade[r]
            for j in range(cols):
                row[j] *= factor
        else:
            for j in range(cols):
                row[j] *= fade[j]


def _advance(state, write, col, read, acc):  # type: ignore[no-untyped-def]
    """state += write col^T; acc = read^T state. Two rows at once: with four, the tests for overlap that the compiler would
    have to make are too many, and it does not vectorise (measured: 1460 ns for 64 x 64, against 300)."""
    rows, cols = state.shape
    for j in range(cols):
        acc[j] = 0
    even = rows - rows % 2
    for r in range(0, even, 2):
        w0, w1, r0, r1 = write[r], write[r + 1], read[r], read[r + 1]
        s0, s1 = state[r], state[r + 1]
        for j in range(cols):
            c = col[j]
            x0, x1 = s0[j] + w0 * c, s1[j] + w1 * c
            s0[j], s1[j] = x0, x1
            acc[j] += r0 * x0 + r1 * x1
    for r in range(even, rows):
        w0, r0, s0 = write[r], read[r], state[r]
        for j in range(cols):
            x0 = s0[j] + w0 * col[j]
            s0[j] = x0
            acc[j] += r0 * x0


def _dot(a, b):  # type: ignore[no-untyped-def]
    """sum_i a_i b_i of two rows of one length; only here may the compiler reorder a sum."""
    total = a[0] * b[0]
    for i in range(1, len(a)):
        total += a[i] * b[i]
    return total


@functools.cache
def _helpers() -> None:
    """Lets numba compile what the kernels of this file call."""
    from numba import extending

    for function in (_fill, _copy, _scaled, _advance):
        extending.register_jitable(function)
    extending.register_jitable(fastmath={"contract", "reassoc", "nsz"})(_dot)


@compiled
def _sweep(  # type: ignore[no-untyped-def]
    first, last, keys, key_step, values, value_step, reads, read_step, gates, starts, begin, out, end, marks,
    value, lag, write_scale, read_scale, backwards, by_key,
):  # fmt: skip
    time, heads, key = gates.shape[1:]
    rows, cols = (key, value) if by_key else (value, key)
    state, total, fade = np.empty((rows, cols), gates.dtype), np.empty(key), np.empty(key, gates.dtype)
    write, read = np.empty(rows, gates.dtype), np.empty(rows, gates.dtype)
    col, acc = np.empty(cols, gates.dtype), np.empty(cols, gates.dtype)
    for block in range(first, last):
        b, h = block // heads, block % heads
        _fill(state, total, begin, b, h, by_key)
        for n in range(time + 1):
            t = time - 1 - n if backwards else n  # the token that reads
            edge = time - n if backwards else n  # a document start lies before this token
            gate = t + 1 if backwards else t - lag  # whose gate comes first,
            w = t + lag if backwards else t - lag  # and whose product comes then
            fresh = edge < time and starts.shape[1] > 0 and starts[b, edge]
            mark = 0 <= gate < time and gate % SPAN == 0 and marks.shape[1] > 0
            if mark and not backwards:
                _scaled(state, total, fade, by_key)
                _copy(state, marks[b, gate // SPAN, h])
            if fresh:
                _fill(state, total, begin[:0], b, h, by_key)
            elif 0 <= gate < time:
                low, g = 0, gates[b, gate, h]
                for i in range(key):
                    total[i] += g[i]
                    low |= total[i] < _LIMIT
                if low:
                    _scaled(state, total, fade, by_key)
            if mark and backwards:
                _scaled(state, total, fade, by_key)
                _copy(state, marks[b, gate // SPAN, h])
            for i in range(key):
                fade[i] = exp(total[i])
            if 0 <= w < time and not (fresh and lag == 1):
                at = (b * time + w) * key_step + h * key
                k = keys[at : at + key]
                at = (b * time + w) * value_step + h * value
                v = values[at : at + value]
                if by_key:
                    for i in range(key):
                        write[i] = write_scale * k[i] / fade[i]
                    for j in range(cols):
                        col[j] = v[j]
                else:
                    for i in range(key):
                        col[i] = write_scale * k[i] / fade[i]
                    for j in range(rows):
                        write[j] = v[j]
            else:
                for i in range(rows):
                    write[i] = 0
                for j in range(cols):
                    col[j] = 0  # what stood there may be NaN
            if 0 <= t < time:
                at = (b * time + t) * read_step + h * rows
                r = reads[at : at + rows]
                for i in range(rows):
                    read[i] = read_scale * r[i]
                if by_key:
                    for i in range(rows):
                        read[i] *= fade[i]
            _advance(state, write, col, read, acc)
            if 0 <= t < time:
                y = out[b, t, h]
                for i in range(cols):
                    y[i] = acc[i]
                if not by_key:
                    for i in range(cols):
                        y[i] *= fade[i]
        if end.shape[2] > 0:
            _scaled(state, total, fade, by_key)
            _copy(state, end[b, h])


@compiled
def _gate_gradient(  # type: ignore[no-untyped-def]
    first, last, q, q_step, k, k_step, dq, dk, gates, starts, ends, after, dg, lag
):  # fmt: skip
    time, heads, key = gates.shape[1:]
    total = np.empty(key)
    for block in range(first, last):
        b, h = block // heads, block % heads
        for i in range(key):
            total[i] = after[b, h, i]
        for t in range(time - 1, -1, -1):
            at = (b * time + t) * k_step + h * key
            k_t, dk_t, g, out = k[at : at + key], dk[b, t, h], gates[b, t, h], dg[b, t, h]
            r = t + lag
            if r < time:
                at = (b * time + r) * q_step + h * key
                q_r, dq_r = q[at : at + key], dq[b, r, h]
                for i in range(key):
                    total[i] += np.float64(q_r[i]) * dq_r[i] - np.float64(k_t[i]) * dk_t[i]
            else:
                for i in range(key):
                    total[i] -= np.float64(k_t[i]) * dk_t[i]
            if starts.shape[1] > 0 and starts[b, t]:
                for i in range(key):
                    total[i], out[i] = 0, 0
                continue
            for i in range(key):
                cut = g[i] <= FORGET
                out[i] = 0 if cut else total[i]
                total[i] = 0.0 if cut else total[i]
            if t % SPAN == 0 and t > 0:
                for i in range(key):
                    total[i] = ends[b, t // SPAN, h, i]


@compiled
def _bonus(first, last, q, q_step, k, k_step, v, v_step, bonus, y, scale):  # type: ignore[no-untyped-def]
    (heads, key), value = bonus.shape, y.shape[2]
    product = np.empty(key, y.dtype)
    for n in range(first, last):
        for h in range(heads):
            at_q, at_k, at_v = n * q_step + h * key, n * k_step + h * key, n * v_step + h * value
            q_n, k_n, v_n = q[at_q : at_q + key], k[at_k : at_k + key], v[at_v : at_v + value]
            u, out = bonus[h], y[n, h]
            for i in range(key):
                product[i] = q_n[i] * k_n[i]
            weight = _dot(product, u) * scale
            for j in range(value):
                out[j] += weight * v_n[j]


@compiled
def _bonus_gradient(  # type: ignore[no-untyped-def]
    first, last, q, q_step, k, k_step, v, v_step, dy, dy_step, bonus, dq, dk, dv, dbonus, scale
):  # fmt: skip
    (heads, key), value = bonus.shape, dv.shape[2]
    product = np.empty(key, dv.dtype)
    for block in range(first, last):
        sums = dbonus[block]
        for h in range(heads):
            for i in range(key):
                sums[h, i] = 0
        for n in range(block * _TOKENS, min((block + 1) * _TOKENS, len(dq))):
            for h in range(heads):
                at_q, at_k, at_v, at_y = n * q_step + h * key, n * k_step + h * key, n * v_step + h * value, n * dy_step + h * value
                q_n, k_n, u, total = q[at_q : at_q + key], k[at_k : at_k + key], bonus[h], sums[h]
                v_n, grad, out = v[at_v : at_v + value], dy[at_y : at_y + value], dv[n, h]
                out_q, out_k = dq[n, h], dk[n, h]
                for i in range(key):
                    product[i] = q_n[i] * k_n[i]
                weight, given = _dot(product, u) * scale, _dot(grad, v_n) * scale
                for j in range(value):
                    out[j] += weight * grad[j]
                for i in range(key):
                    total[i] += given * product[i]
                    out_q[i] += given * u[i] * k_n[i]
                    out_k[i] += given * u[i] * q_n[i]
