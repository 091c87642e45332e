"""The scalar-decay recurrence: a matrix state per head that decays by one number a token.

Equation: ``S_t = exp(g_t) S_{t-1} + b_t k_t v_t^T``,  ``y_t = scale q_t S_t + d v_t``

Lightning attention and RetNet (2307.08621: g constant per head), simple GLA, state space duality (Mamba-2, 2405.21060:
q, k, v are C, B, x; g = A dt, b = dt, d = D) and the matrix memory of xLSTM (2405.04517) are this recurrence.

Forms: :func:`scalar_decay_reference` is the equation as a loop; :func:`scalar_decay_step` is one token;
:func:`scalar_decay_chunked` works on chunks of C tokens as batched matrix products. :func:`scalar_decay` chooses.
Within a chunk, with a_t the sum of g over the chunk's tokens up to t, P the state before it and S the one after:

    y = M V + exp(a) (Q P) + d V,   M_ij = exp(a_i - a_j) b_j (Q K^T)_ij for j <= i
    S = exp(a_C) P + K^T (w V),    w_j = exp(a_C - a_j) b_j

Gradients, with dS that of the state after the chunk: dP = exp(a_C) dS + Q^T (exp(a) dY) carries it backwards, and

    u = exp(a_C - a) (K dS) + (M/b)^T dY,   dV = b u + d dY,   db = v.u,   dQ = (exp(a) dY) P^T + dA K
    dA = sum over a group's heads of (dY V^T) M / (Q K^T),     dK = (w V) dS^T + dA^T Q
    dg_t = sum over s >= t of (r_s.dy_s - b_s db_s) + <S, dS>,   r = y - d v      (a_t scales q_t, and k_t by its inverse)

Cost: q k^T and the products with states are shared by all heads of a group: with one group they are plain large matrix
products. Kept for the backward pass are the inputs, r, and one K x V state per head and chunk. Everything else is
recomputed: keeping the C x C matrices would save 3 % of the backward pass and double the memory.

The gradient of g is a difference of terms that cancel where gates are strong: its error is 1e-6 of y.dy, not of itself.

Gates: exponents are sums of g over exactly the tokens between two places, never above 0; -inf (forget all) is exact, a
document start is such a gate, and the state's own decay is summed in float64, so 64k steps of 1 - 1e-7 do not drift.

B batch, T time, H heads, G groups of heads that share q and k, R = H/G, K key dimension, V value dimension, C chunk
length, N = B * chunks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.core.errors import StateError
from orrery.ops import fla
from orrery.ops.backend import choose
from orrery.ops.operands import check_operands, exact, exactly, sizes
from orrery.ops.recompute import held, hold
from orrery.ops.scalar_decay_loops import COMPILED, FORGET, LEAST, TORCH, Decays, Pair, Sizes

_SPAN = 8  # chunks over which the gradient of the gates is summed before it starts afresh from <S, dS>


def scalar_decay(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_log: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float | None = None,
    chunk: int | None = None,
    backend: str | None = None,
    *,
    beta: Tensor | None = None,
    skip: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run ``S_t = exp(g_t) S_{t-1} + b_t k_t v_t^T``, ``y_t = scale q_t S_t + d v_t`` over T tokens.

    Args:
        q, k: (B,T,G,K); G divides H, and each group serves H/G heads that follow each other.
        v: (B,T,H,V).
        g_log: (B,T,H), logarithm of the decay, at most 0; -inf forgets everything. (H,) for one that never changes.
        state: (B,H,K,V) before the first token, zero when None.
        starts: (B,T) bool; True zeroes the state before the token is consumed.
        scale: factor of q, 1 when None.
        chunk: tokens per chunk; None chooses by T.
        backend: `numba`, `fla` or `torch`; None lets :mod:`orrery.ops.backend` choose.
        beta: (B,T,H), write strength b (an input gate, a step size); 1 when None.
        skip: (H,), weight d of the value itself in the output; 0 when None.
        lengths: (B,) int64, valid tokens per row; tokens after them leave the state as it is.

    Returns:
        y (B,T,H,V) in v's type, and the state after the last valid token (B,H,K,V) in float32 (float64 for float64 v).

    Raises:
        StateError: when an operand, the state or `starts` has a shape that does not fit.
    """
    fixed = g_log
    sizes("scalar_decay", "v", v, "BTHV")
    if g_log.dim() == 1:
        g_log = g_log.expand(*v.shape[:2], -1)
    _check(q, k, v, g_log, beta, skip, state, starts, lengths, chunk)
    time = v.shape[1]
    if lengths is not None:
        padding = torch.arange(time, device=v.device) >= lengths[:, None]
        k, g_log = k.masked_fill(padding[..., None, None], 0.0), g_log.masked_fill(padding[..., None], 0.0)
        starts = None if starts is None else starts & ~padding
    if time == 1:
        y, after = scalar_decay_step(
            q[:, 0],
            k[:, 0],
            v[:, 0],
            g_log[:, 0],
            state,
            starts,
            scale,
            beta=beta if beta is None else beta[:, 0],
            skip=skip,
        )
        return y[:, None], after
    if choose(backend, v, op="scalar_decay", offered=("fla", "numba", "torch")) == "fla":
        return fla.scalar_decay(q, k, v, g_log if lengths is not None else fixed, state, starts, scale, beta=beta, skip=skip)
    return scalar_decay_chunked(q, k, v, g_log, state, starts, scale, chunk, backend, beta=beta, skip=skip)


def _check(
    q: Tensor, k: Tensor, v: Tensor, g_log: Tensor, beta: Tensor | None, skip: Tensor | None, state: Tensor | None,
    starts: Tensor | None, lengths: Tensor | None, chunk: int | None,
) -> None:  # fmt: skip
    batch, time, heads, width = v.shape
    if q.shape != k.shape or q.dim() != 4 or q.shape[:2] != (batch, time) or heads % max(1, q.shape[2]) or g_log.shape != v.shape[:3]:
        raise StateError(
            f"scalar_decay was given q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} and g_log"
            f" {tuple(g_log.shape)}; it needs (B,T,G,K) twice, (B,T,H,V) and (B,T,H) with H a multiple of G"
        )
    group, key = q.shape[2:]
    operands = {
        "q": (q, (batch, time, group, key)),
        "k": (k, (batch, time, group, key)),
        "g_log": (g_log, (batch, time, heads)),
        "beta": (beta, (batch, time, heads)),
        "skip": (skip, (heads,)),
        "state": (state, (batch, heads, key, width)),
    }
    check_operands("scalar_decay", operands, (batch, time), starts, lengths, chunk)


def _kind(v: Tensor) -> torch.dtype:
    """The type of states and of all arithmetic."""
    return torch.float64 if v.dtype == torch.float64 else torch.float32


def scalar_decay_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_log: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float | None = None,
    *,
    beta: Tensor | None = None,
    skip: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The equation as a loop over time, in the operands' own type; arguments as :func:`scalar_decay`."""
    batch, time, heads, width = v.shape
    repeat = heads // q.shape[2]
    q, k = q.repeat_interleave(repeat, 2), k.repeat_interleave(repeat, 2)  # (B,T,H,K)
    S = v.new_zeros(batch, heads, q.shape[3], width) if state is None else state.to(v.dtype)
    outputs = []
    for t in range(time):
        decay = g_log[:, t].exp()
        if starts is not None:
            decay = decay.masked_fill(starts[:, t, None], 0.0)
        written = v[:, t] if beta is None else v[:, t] * beta[:, t, :, None]
        S = decay[..., None, None] * S + k[:, t, :, :, None] * written[:, :, None, :]
        y = torch.einsum("bhk,bhkv->bhv", q[:, t], S)
        outputs.append(y if scale is None else y * scale)
    y = torch.stack(outputs, 1)
    return (y if skip is None else y + skip[:, None] * v), S


def scalar_decay_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_log: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float | None = None,
    *,
    beta: Tensor | None = None,
    skip: Tensor | None = None,
    donate: bool = False,
) -> tuple[Tensor, Tensor]:
    """One token: q, k (B,G,K), v (B,H,V), g_log and beta (B,H), starts (B,1) -> y (B,H,V) and the new state.

    `donate` lets the state be overwritten in place (outside autograd only). The rest as :func:`scalar_decay`.
    """
    batch, heads, width = v.shape
    groups, keys = k.shape[1:]
    kind = _kind(v)
    values = v if v.dtype == kind else v.to(kind)
    written = values if beta is None else values * beta[..., None]
    shape = (batch, groups, heads // groups, keys, width)
    outer = k.to(kind).view(batch, groups, 1, keys, 1), written.view(batch, groups, -1, 1, width)
    if state is None:
        S = (outer[0] * outer[1]).view(batch, heads, keys, width)
    else:
        decay = g_log.to(kind).exp()
        if starts is not None:
            decay = decay.masked_fill(starts, 0.0)
        decay = decay[..., None, None]
        S = state.mul_(decay) if donate else state.to(kind) * decay
        S = S.view(shape).addcmul_(*outer).view(batch, heads, keys, width)
    queries = q.to(kind) if scale is None else q.to(kind) * scale
    with exact(v):
        y = torch.matmul(queries.view(batch, groups, 1, 1, keys), S.view(shape)).view(batch, heads, width)
    if skip is not None:
        y = torch.addcmul(y, values, skip[:, None])
    return (y if y.dtype == v.dtype else y.to(v.dtype)), S


def scalar_decay_matrix(
    q: Tensor,
    k: Tensor,
    g_log: Tensor,
    starts: Tensor | None = None,
    scale: float | None = None,
    *,
    beta: Tensor | None = None,
    skip: Tensor | None = None,
) -> Tensor:
    """The matrix M (B,H,T,T) with y = M v that the recurrence is from a zero state; arguments as :func:`scalar_decay`.

    O(T^2): for pictures and for distillation of short sequences. Differentiable.
    """
    a = (g_log.expand(*q.shape[:2], -1) if g_log.dim() == 1 else g_log).double().clamp(min=FORGET)
    if starts is not None:
        a = a.masked_fill(starts[..., None], FORGET)
    a = a.cumsum(1).transpose(1, 2)
    mask = (a[..., :, None] - a[..., None, :]).clamp(max=0.0).exp().tril().to(q.dtype)  # (B,H,T,T)
    scores = torch.einsum("btgk,bsgk->bgts", q, k).repeat_interleave(g_log.shape[-1] // q.shape[2], 1)
    matrix = mask * (scores if scale is None else scores * scale)
    if beta is not None:
        matrix = matrix * beta.transpose(1, 2)[:, :, None]
    return matrix if skip is None else matrix + torch.diag_embed(skip[:, None].expand(-1, a.shape[2]))


def chunk_length(time: int, target: int = 64) -> int:
    """Tokens per chunk for T tokens: T split as evenly as chunks of at most `target` allow."""
    return -(-time // -(-time // target))


def scalar_decay_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_log: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float | None = None,
    chunk: int | None = None,
    backend: str | None = None,
    *,
    beta: Tensor | None = None,
    skip: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence in chunks; arguments as :func:`scalar_decay`. Differentiable once, in all of its tensors."""
    time = v.shape[1]
    kind = _kind(v)
    chunk = min(chunk, time) if chunk is not None else chunk_length(time)
    compiled_loops = choose(backend, v, op="scalar_decay") == "numba"
    operands = [x if x is None else x.to(kind) for x in (q, k, v, g_log, beta)]
    rest = -time % chunk
    if rest:  # zero keys and zero gates leave the state as it is
        operands = [x if x is None else F.pad(x, (0, 0) * (x.dim() - 2) + (0, rest)) for x in operands]
        starts = starts if starts is None else F.pad(starts, (0, rest))
    extra = [x if x is None else x.to(kind) for x in (skip, state)]
    with exact(v):
        y, after = _Chunked.apply(*operands, *extra, starts, scale, chunk, compiled_loops)
    y = y[:, :time] if rest else y
    return y.to(v.dtype), after


def _sizes(q: Tensor, v: Tensor, chunk: int) -> Sizes:
    batch, time, heads, values = v.shape
    groups, keys = q.shape[2:]
    return Sizes(batch, time // chunk, chunk, groups, heads // groups, keys, values)


def _decays(g_log: Tensor, starts: Tensor | None, size: Sizes) -> Decays:
    g = g_log.double().clamp(min=FORGET)
    if starts is not None:
        g = g.masked_fill(starts[..., None], FORGET)
    g = g.view(size.all, size.chunk, size.heads)
    a = g.cumsum(1)
    last = a[:, -1:]
    kind = g_log.dtype
    whole = last.exp().view(size.batch, size.chunks, size.heads)
    inner, outer = (_no_denormals(x.exp().to(kind)) for x in (a, last - a))
    return Decays(a, whole, g.exp().to(kind), inner, outer)


def _no_denormals(x: Tensor) -> Tensor:
    """Products with denormal numbers take a hundred times as long; LEAST leaves room for the other factors."""
    return torch.threshold_(x, LEAST, 0.0) if x.dtype == torch.float32 else x


def _grouped(x: Tensor, size: Sizes) -> Tensor:
    """(B,T,G,K) -> (N*G,C,K); a view for one group."""
    x = x.reshape(size.all, size.chunk, size.groups, size.keys)
    return x.transpose(1, 2).reshape(size.all * size.groups, size.chunk, size.keys)


def _ungrouped(x: Tensor, size: Sizes) -> Tensor:
    """(N*G,C,K) -> (B,T,G,K)."""
    x = x.view(size.all, size.groups, size.chunk, size.keys).transpose(1, 2)
    return x.reshape(size.batch, size.chunks * size.chunk, size.groups, size.keys)


class _Chunked(torch.autograd.Function):
    """All operands in one floating type, T a multiple of the chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g_log: Tensor,
        beta: Tensor | None,
        skip: Tensor | None,
        state: Tensor | None,
        starts: Tensor | None,
        scale: float | None,
        chunk: int,
        numba: bool,
    ) -> tuple[Tensor, Tensor]:
        size = _sizes(q, v, chunk)
        loops = COMPILED if numba else TORCH
        decays = _decays(g_log, starts, size)
        write = _write(beta, g_log, size)
        qg, kg = _grouped(q if scale is None else q * scale, size), _grouped(k, size)
        vh, vw = loops.lay_out(v, decays.outer * write, size)
        states = torch.bmm(kg.transpose(1, 2), vw)
        after = loops.scan(states.view(size.batch, size.chunks, *size.row), decays.whole, state, False, size)
        product = loops.product(torch.bmm(qg, kg.transpose(1, 2)), decays, write, size)
        read, y = loops.outputs(torch.bmm(product, vh), torch.bmm(qg, states), decays.inner, skip, v, vh, size)
        hold(ctx, q, k, v, g_log, beta, skip, state, starts, read, states, after)
        ctx.scale, ctx.chunk, ctx.loops = scale, chunk, loops
        ctx.set_materialize_grads(False)
        return y, after

    @staticmethod
    @once_differentiable
    @exactly
    def backward(ctx: Any, dy: Tensor | None, dafter: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, g_log, beta, skip, state, starts, read, states, after = held(ctx)
        size, loops = _sizes(q, v, ctx.chunk), ctx.loops
        dy = torch.zeros_like(read) if dy is None else dy
        decays = _decays(g_log, starts, size)
        write = _write(beta, g_log, size)
        qg, kg = _grouped(q if ctx.scale is None else q * ctx.scale, size), _grouped(k, size)
        vh, vw = loops.lay_out(v, decays.outer * write, size)
        dyh, dread = loops.lay_out(dy, decays.inner, size)

        dstates = torch.bmm(qg.transpose(1, 2), dread)
        dstate = loops.scan(dstates.view(size.batch, size.chunks, *size.row), decays.whole, dafter, True, size)
        scores = torch.bmm(qg, kg.transpose(1, 2))
        plain, dscores = loops.product_gradient(scores, torch.bmm(dyh, vh.transpose(1, 2)), decays, write, size)
        dq = torch.bmm(dread, states.transpose(1, 2)).baddbmm_(dscores, kg)
        dk = torch.bmm(vw, dstates.transpose(1, 2)).baddbmm_(dscores.transpose(1, 2), qg)
        dq = _ungrouped(dq if ctx.scale is None else dq.mul_(ctx.scale), size)

        by_head, by_group = torch.bmm(plain.transpose(1, 2), dyh), torch.bmm(kg, dstates)
        dv, dbeta, direct, dskip = loops.values_gradient(
            by_head, by_group, decays.outer, write, skip, Pair(v, vh), Pair(dy, dyh), read, size
        )
        dg = None
        if ctx.needs_input_grad[3]:
            dg = _gate_gradient(direct, g_log, starts, states, dstates, after, dafter, size)
        dstate = None if state is None else dstate
        dbeta = None if beta is None else dbeta
        return dq, _ungrouped(dk, size), dv, dg, dbeta, dskip, dstate, None, None, None, None


def _write(beta: Tensor | None, g_log: Tensor, size: Sizes) -> Tensor:
    """Write strengths as (N,C,H)."""
    b = torch.ones_like(g_log) if beta is None else beta.contiguous()
    return b.view(size.all, size.chunk, size.heads)


def _gate_gradient(
    direct: Tensor,
    g_log: Tensor,
    starts: Tensor | None,
    states: Tensor,
    dstates: Tensor,
    after: Tensor,
    dafter: Tensor | None,
    size: Sizes,
) -> Tensor:
    """Sum of `direct` (B,T,H) over a token and all later ones of a span of chunks, plus <S, dS> at the span's end.

    One sum over all of T would be as exact on paper; in float32 the rounding of 64k terms would drown the gradient of a
    strong gate. Nothing is summed across a gate that forgets all.
    """
    length = min(_SPAN, size.chunks) * size.chunk
    spans = -(-g_log.shape[1] // length)
    rest = spans * length - g_log.shape[1]
    shape = (size.batch, spans, length, size.heads)
    sums = F.pad(direct.double(), (0, 0, 0, rest)).view(shape).flip(2).cumsum(2).flip(2)

    ends = sums.new_zeros(size.batch, spans, size.heads)
    if dafter is not None:
        ends[:, -1] = (after * dafter).sum((2, 3))
    if spans > 1:  # the state before chunk n is the state after chunk n-1, whose gradient is stored with the latter
        rows = (size.batch, size.chunks, *size.row)
        states, dstates = states.view(rows)[:, _SPAN::_SPAN], dstates.view(rows)[:, _SPAN - 1 : -1 : _SPAN]
        ends[:, :-1] = (states * dstates).sum((3, 5)).flatten(2)
    sums = F.pad(sums, (0, 0, 0, 1))

    cut = g_log <= FORGET
    if starts is not None:
        cut |= starts[..., None]
    steps = torch.arange(length, device=cut.device)[:, None]
    cut = F.pad(cut, (0, 0, 0, rest)).view(shape)
    later = torch.where(cut, steps, length).flip(2).cummin(2).values.flip(2)  # next cut, the token itself included
    later = F.pad(later[:, :, 1:], (0, 0, 0, 1), value=length)
    dg = sums[:, :, :-1] - sums.gather(2, later)
    dg = torch.where(later == length, dg + ends[:, :, None], dg).masked_fill_(cut, 0.0)
    return dg.view(size.batch, -1, size.heads)[:, : g_log.shape[1]].to(g_log.dtype)
