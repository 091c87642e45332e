"""The recurrence of :mod:`orrery.ops.dplr` as compiled loops: a state of K V numbers stays in the cache while tokens pass.

Forward, for every row and head (and a part of V, whose columns do not meet):

    ``S_t = diag(w_t) S_{t-1} + b_t u_t^T + k_t v_t^T``,  ``y_t = S_t^T q_t``,  ``u_{t+1} = S_t^T a_{t+1}``,  w = exp(g)

Backward. With X_t the gradient of S_t (its own output included) the same recurrence runs in reverse:

    ``X_t = q_t dy_t^T + diag(w_{t+1}) X_{t+1} + a_{t+1} du_{t+1}^T``,  ``dv_t = X_t^T k_t``,  ``du_t = X_t^T b_t``

Now u and du are known, and the other four gradients are reads of the two transposed states, row by row of V and so without
sums over neighbouring numbers:

    ``dq_t = S_t dy_t``,  ``da_t = S_{t-1} du_t``   forwards;      ``dk_t = X_t v_t``,  ``db_t = X_t u_t``   in reverse

The decay needs no product of its own. With ``f_t = sum_v S_t X_t`` (per channel): ``dg_t = f_t - b_t db_t - k_t dk_t`` and
``f_{t-1} = dg_t + a_t da_t + q_{t-1} dq_{t-1}``; f is computed afresh where a state was kept, every `stretch` tokens, so errors do
not add up along the sequence.

B batch, T time, H heads, K key dimension, V value dimension, P parts, N kept states.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.ops.compiled import compiled, run_blocks
from orrery.ops.recompute import held, hold

_ZERO = np.float32(0.0)  # in a kernel, a Python 0.0 would turn float32 into float64


class CompiledDPLR(torch.autograd.Function):
    """y (B,T,H,V) and the last state (B,H,K,V) from float32 q, k, v, a, b, g_log, state or None, document starts or None, and the
    factor on y."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, g_log: Tensor, state: Tensor | None,
        starts: Tensor | None, scale: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        given = q, k, v, a, b, g_log
        q, k, v, a, b, w = _laid_out(q, k, v, a, b, g_log, starts)
        batch, time, heads, key = k.shape
        value = v.shape[-1]
        stretch = max(64, value)
        start = k.new_zeros(batch, heads, key, value) if state is None else state.float().contiguous()
        y, u, final = torch.empty_like(v), torch.empty_like(v), torch.empty_like(start)
        wanted = any(ctx.needs_input_grad)
        marks = k.new_empty(batch, -(-time // stretch) if wanted else 0, heads, key, value)
        arrays = [x.detach().numpy() for x in (q, k, v, a, b, w, start, y, u, marks, final)]
        parts = _parts(batch * heads, value)
        run_blocks(_forward, batch * heads * parts, 8 * time * start.numel(), *arrays, parts, stretch, np.float32(scale))
        if wanted:
            hold(ctx, *given, starts, u, marks, final)
        ctx.scale, ctx.stretch, ctx.has_state = scale, stretch, state is not None
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, a, b, g_log, starts, u, marks, final = held(ctx)
        q, k, v, a, b, w = _laid_out(q, k, v, a, b, g_log, starts)
        (batch, time, heads, key), value, stretch = k.shape, v.shape[-1], ctx.stretch
        dy = (dy if ctx.scale == 1.0 else dy * ctx.scale).contiguous()
        work = 8 * time * final.numel()
        dv, du, dstate = torch.empty_like(v), torch.empty_like(v), torch.empty_like(final)
        parts = _parts(batch * heads, value)
        sums = k.new_empty(parts, batch, marks.shape[1], heads, key)
        arrays = [x.numpy() for x in (q, k, a, b, w, dy, dfinal.contiguous(), marks, final, dv, du, dstate, sums)]
        run_blocks(_reverse, batch * heads * parts, work, *arrays, parts, stretch)
        dq, da, dk, db, dg = (torch.empty_like(k) for _ in range(5))
        parts = _parts(batch * heads, key)
        arrays = [x.numpy() for x in (k, v, b, w, u, dy, du, marks, dq, da)]
        run_blocks(_read_forward, batch * heads * parts, work, *arrays, parts)
        arrays = [x.numpy() for x in (q, k, v, a, b, w, u, dy, du, dfinal.contiguous(), sums.sum(0), dq, da, dk, db, dg)]
        run_blocks(_read_reverse, batch * heads * parts, work, *arrays, parts, stretch)
        if starts is not None:
            da, dg = (x.masked_fill_(starts[..., None, None], 0.0) for x in (da, dg))
        return dq, dk, dv, da, db, dg, dstate if ctx.has_state else None, None, None


def _laid_out(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, g_log: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the loops read: contiguous, decays themselves instead of their logarithms, nothing of the past where a document starts."""
    w = g_log.exp()
    if starts is not None:
        a, w = (x.masked_fill(starts[..., None, None], 0.0) for x in (a, w))
    q, k, v, a, b, w = (x.contiguous() for x in (q, k, v, a, b, w))
    return q, k, v, a, b, w


def _parts(blocks: int, size: int) -> int:
    """Into how many parts of at least 32 a dimension is cut, so that every thread has a block."""
    parts = 1
    while blocks * parts < torch.get_num_threads() and size % (2 * parts) == 0 and size // (2 * parts) >= 32:
        parts *= 2
    return parts


@compiled
def _forward(first, last, q, k, v, a, b, w, start, y, u, marks, final, parts, stretch, scale):  # type: ignore[no-untyped-def]
    time, heads, key = q.shape[1], q.shape[2], q.shape[3]
    size = v.shape[3] // parts
    pairs = key - key % 2
    s = np.empty((key, size), q.dtype)
    now, given, read, ask = np.empty(size, q.dtype), np.empty(size, q.dtype), np.empty(size, q.dtype), np.empty(size, q.dtype)
    for block in range(first, last):
        r, h, low = block // (heads * parts), (block // parts) % heads, (block % parts) * size
        for j in range(size):
            ask[j] = _ZERO
        for i in range(key):
            for j in range(size):
                s[i, j] = start[r, h, i, low + j]
                ask[j] += a[r, 0, h, i] * s[i, j]
        for t in range(time):
            if marks.shape[1] > 0 and t % stretch == 0:
                for i in range(key):
                    for j in range(size):
                        marks[r, t // stretch, h, i, low + j] = s[i, j]
            after = min(t + 1, time - 1)
            for j in range(size):
                now[j] = ask[j]
                u[r, t, h, low + j] = ask[j]
                given[j] = v[r, t, h, low + j]
                ask[j] = _ZERO
                read[j] = _ZERO
            for i in range(0, pairs, 2):
                w0, w1, b0, b1 = w[r, t, h, i], w[r, t, h, i + 1], b[r, t, h, i], b[r, t, h, i + 1]
                k0, k1, q0, q1 = k[r, t, h, i], k[r, t, h, i + 1], q[r, t, h, i], q[r, t, h, i + 1]
                a0, a1 = a[r, after, h, i], a[r, after, h, i + 1]
                for j in range(size):
                    s0 = w0 * s[i, j] + (b0 * now[j] + k0 * given[j])
                    s1 = w1 * s[i + 1, j] + (b1 * now[j] + k1 * given[j])
                    s[i, j] = s0
                    s[i + 1, j] = s1
                    read[j] += q0 * s0 + q1 * s1
                    ask[j] += a0 * s0 + a1 * s1
            for i in range(pairs, key):
                w0, b0, k0, q0, a0 = w[r, t, h, i], b[r, t, h, i], k[r, t, h, i], q[r, t, h, i], a[r, after, h, i]
                for j in range(size):
                    s0 = w0 * s[i, j] + (b0 * now[j] + k0 * given[j])
                    s[i, j] = s0
                    read[j] += q0 * s0
                    ask[j] += a0 * s0
            for j in range(size):
                y[r, t, h, low + j] = read[j] * scale
        for i in range(key):
            for j in range(size):
                final[r, h, i, low + j] = s[i, j]


@compiled
def _reverse(first, last, q, k, a, b, w, dy, dfinal, marks, final, dv, du, dstate, sums, parts, stretch):  # type: ignore[no-untyped-def]
    time, heads, key = q.shape[1], q.shape[2], q.shape[3]
    size = dv.shape[3] // parts
    pairs = key - key % 2
    x = np.empty((key, size), q.dtype)
    now, given, read, ask = np.empty(size, q.dtype), np.empty(size, q.dtype), np.empty(size, q.dtype), np.empty(size, q.dtype)
    for block in range(first, last):
        r, h, part = block // (heads * parts), (block // parts) % heads, block % parts
        low = part * size
        for i in range(key):
            for j in range(size):
                x[i, j] = dfinal[r, h, i, low + j]
        for j in range(size):
            now[j] = _ZERO
        for t in range(time - 1, -1, -1):
            for j in range(size):
                given[j] = dy[r, t, h, low + j]
                ask[j] = _ZERO
                read[j] = _ZERO
            later = min(t + 1, time - 1)
            fresh = t == time - 1  # nothing comes after the last token: the state is what was given
            for i in range(0, pairs, 2):
                w0, w1, a0, a1 = w[r, later, h, i], w[r, later, h, i + 1], a[r, later, h, i], a[r, later, h, i + 1]
                if fresh:
                    w0 = w1 = np.float32(1.0)
                q0, q1, k0, k1 = q[r, t, h, i], q[r, t, h, i + 1], k[r, t, h, i], k[r, t, h, i + 1]
                b0, b1 = b[r, t, h, i], b[r, t, h, i + 1]
                for j in range(size):
                    x0 = w0 * x[i, j] + (a0 * now[j] + q0 * given[j])
                    x1 = w1 * x[i + 1, j] + (a1 * now[j] + q1 * given[j])
                    x[i, j] = x0
                    x[i + 1, j] = x1
                    read[j] += k0 * x0 + k1 * x1
                    ask[j] += b0 * x0 + b1 * x1
            for i in range(pairs, key):
                w0, a0, q0, k0, b0 = w[r, later, h, i], a[r, later, h, i], q[r, t, h, i], k[r, t, h, i], b[r, t, h, i]
                if fresh:
                    w0 = np.float32(1.0)
                for j in range(size):
                    x0 = w0 * x[i, j] + (a0 * now[j] + q0 * given[j])
                    x[i, j] = x0
                    read[j] += k0 * x0
                    ask[j] += b0 * x0
            for j in range(size):
                dv[r, t, h, low + j] = read[j]
                du[r, t, h, low + j] = ask[j]
                now[j] = ask[j]
            if (t + 1) % stretch == 0 or t == time - 1:
                n = t // stretch
                for i in range(key):
                    total = np.float64(0.0)
                    for j in range(size):
                        kept = final[r, h, i, low + j] if t == time - 1 else marks[r, n + 1, h, i, low + j]
                        total += x[i, j] * kept
                    sums[part, r, n, h, i] = total
        for i in range(key):
            w0, a0 = w[r, 0, h, i], a[r, 0, h, i]
            for j in range(size):
                dstate[r, h, i, low + j] = w0 * x[i, j] + a0 * now[j]


@compiled
def _read_forward(first, last, k, v, b, w, u, dy, du, marks, dq, da, parts):  # type: ignore[no-untyped-def]
    time, heads = k.shape[1], k.shape[2]
    size, value = k.shape[3] // parts, v.shape[3]
    pairs = value - value % 2
    s = np.empty((value, size), k.dtype)
    fade, own, turn = np.empty(size, k.dtype), np.empty(size, k.dtype), np.empty(size, k.dtype)
    into_q, into_a = np.empty(size, k.dtype), np.empty(size, k.dtype)
    for block in range(first, last):
        r, h, low = block // (heads * parts), (block // parts) % heads, (block % parts) * size
        for j in range(value):
            for i in range(size):
                s[j, i] = marks[r, 0, h, low + i, j]
        for t in range(time):
            for i in range(size):
                fade[i], own[i], turn[i] = w[r, t, h, low + i], k[r, t, h, low + i], b[r, t, h, low + i]
                into_q[i] = _ZERO
                into_a[i] = _ZERO
            for j in range(0, pairs, 2):
                v0, v1, u0, u1 = v[r, t, h, j], v[r, t, h, j + 1], u[r, t, h, j], u[r, t, h, j + 1]
                y0, y1, d0, d1 = dy[r, t, h, j], dy[r, t, h, j + 1], du[r, t, h, j], du[r, t, h, j + 1]
                for i in range(size):
                    s0, s1 = s[j, i], s[j + 1, i]
                    into_a[i] += d0 * s0 + d1 * s1
                    s0 = fade[i] * s0 + (turn[i] * u0 + own[i] * v0)
                    s1 = fade[i] * s1 + (turn[i] * u1 + own[i] * v1)
                    s[j, i] = s0
                    s[j + 1, i] = s1
                    into_q[i] += y0 * s0 + y1 * s1
            for j in range(pairs, value):
                v0, u0, y0, d0 = v[r, t, h, j], u[r, t, h, j], dy[r, t, h, j], du[r, t, h, j]
                for i in range(size):
                    s0 = s[j, i]
                    into_a[i] += d0 * s0
                    s0 = fade[i] * s0 + (turn[i] * u0 + own[i] * v0)
                    s[j, i] = s0
                    into_q[i] += y0 * s0
            for i in range(size):
                dq[r, t, h, low + i] = into_q[i]
                da[r, t, h, low + i] = into_a[i]


@compiled
def _read_reverse(first, last, q, k, v, a, b, w, u, dy, du, dfinal, sums, dq, da, dk, db, dg, parts, stretch):  # type: ignore[no-untyped-def]
    time, heads = k.shape[1], k.shape[2]
    size, value = k.shape[3] // parts, v.shape[3]
    pairs = value - value % 2
    x = np.empty((value, size), k.dtype)
    fade, own, turn = np.empty(size, k.dtype), np.empty(size, k.dtype), np.empty(size, k.dtype)
    into_k, into_b, flow = np.empty(size, k.dtype), np.empty(size, k.dtype), np.empty(size, np.float64)
    for block in range(first, last):
        r, h, low = block // (heads * parts), (block // parts) % heads, (block % parts) * size
        for j in range(value):
            for i in range(size):
                x[j, i] = dfinal[r, h, low + i, j]
        for t in range(time - 1, -1, -1):
            for i in range(size):
                fade[i], own[i], turn[i] = w[r, t, h, low + i], q[r, t, h, low + i], a[r, t, h, low + i]
                into_k[i] = _ZERO
                into_b[i] = _ZERO
            for j in range(0, pairs, 2):
                v0, v1, u0, u1 = v[r, t, h, j], v[r, t, h, j + 1], u[r, t, h, j], u[r, t, h, j + 1]
                y0, y1, d0, d1 = dy[r, t, h, j], dy[r, t, h, j + 1], du[r, t, h, j], du[r, t, h, j + 1]
                for i in range(size):
                    x0, x1 = x[j, i] + own[i] * y0, x[j + 1, i] + own[i] * y1
                    into_k[i] += v0 * x0 + v1 * x1
                    into_b[i] += u0 * x0 + u1 * x1
                    x[j, i] = fade[i] * x0 + turn[i] * d0
                    x[j + 1, i] = fade[i] * x1 + turn[i] * d1
            for j in range(pairs, value):
                v0, u0, y0, d0 = v[r, t, h, j], u[r, t, h, j], dy[r, t, h, j], du[r, t, h, j]
                for i in range(size):
                    x0 = x[j, i] + own[i] * y0
                    into_k[i] += v0 * x0
                    into_b[i] += u0 * x0
                    x[j, i] = fade[i] * x0 + turn[i] * d0
            for i in range(size):
                c = low + i
                if (t + 1) % stretch == 0 or t == time - 1:
                    flow[i] = sums[r, t // stretch, h, c]
                rest = flow[i] - b[r, t, h, c] * into_b[i] - k[r, t, h, c] * into_k[i]
                rest = rest if fade[i] != _ZERO else 0.0  # nothing flows through a closed gate
                dk[r, t, h, c], db[r, t, h, c], dg[r, t, h, c] = into_k[i], into_b[i], rest
                flow[i] = rest + a[r, t, h, c] * da[r, t, h, c]
                if t > 0:
                    flow[i] += q[r, t - 1, h, c] * dq[r, t - 1, h, c]
