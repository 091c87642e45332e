"""The vector-decay recurrence: a matrix state per head whose every row decays by a number of its own at each token.

Equation, per head with state S (K,V), gates g_t (K) at most 0, and without and with a bonus u (K) for the present token:

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T
    y_t = scale q_t S_t                                  gated linear attention (2312.06635), HGRN2 (2404.07904)
    y_t = scale q_t (S_{t-1} + diag(u) k_t v_t^T)         RWKV-5 and RWKV-6 (2404.05892)

Forms: :func:`vector_decay_reference` is the equation as a loop; :func:`vector_decay_step` is one token;
:func:`vector_decay_chunked` works on chunks of C tokens as batched matrix products (torch, any device); on a CPU the
recurrence itself as a compiled loop (:mod:`orrery.ops.vector_decay_loops`) is faster. :func:`vector_decay` chooses.

Chunked form. Let G_i be the sum of g over the chunk up to i, and R_i what token i reads with: G_i, or G_{i-1} with a bonus.

    Y = (e^R Q) P + A V,   A_ij = sum_c q_ic k_jc exp(R_ic - G_jc) for j < i,   A_ii = q_i k_i, or q_i (u k_i)
    S = diag(e^{G_C}) P + (e^{G_C - G} K)^T V

A is no product of two matrices that are safe to form: e^{-G} overflows. It is made by halves: where j lies in the first
half of a block and i in the second, with m the last token of the first half, ``A_ij = (q_i e^{R_i - G_m}) (k_j e^{G_m - G_j})``,
a matrix product without any exponent above 0; then the same inside both halves, down to single tokens. That is log2 C levels
with C K multiply-adds a token in all, exact for every gate: none is clamped, -inf included.

Gradients, with dS that of the state after the chunk: the halves give dQ and dK of A from dA = dY V^T, and

    dP = diag(e^{G_C}) dS + (e^R Q)^T dY,   dV = A^T dY + (e^{G_C - G} K) dS
    dQ += e^R (dY P^T),   dK += e^{G_C - G} (V dS^T),   dg_t = sum over s >= t of (q_s dq_s - k_s dk_s) + rows of <S, dS>

in which the q_s that reads before the gate of its own token (bonus) counts from s > t, and the diagonal of A not at all.
Kept for the backward pass are the inputs and one K x V state per head and chunk; the rest is computed again.

The gradient of g is a difference of terms that cancel where gates are strong: its error is 1e-6 of q.dq, not of itself.

B batch, T time, H heads, K key dimension, V value dimension, C chunk length, N chunks, M = B N H matrices.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.ops import fla
from orrery.ops import vector_decay_loops as loops
from orrery.ops.backend import choose
from orrery.ops.operands import check_operands, exact, sizes
from orrery.ops.recompute import held, hold
from orrery.ops.vector_decay_loops import FORGET

CHUNK = 64
"""Longest default chunk of the torch form. Chunks are powers of two, since they are halved."""


def vector_decay(
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
    bonus: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run ``S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T`` over T tokens and read it with q.

    Args:
        q, k: (B,T,H,K).
        v: (B,T,H,V).
        g_log: (B,T,H,K), logarithm of the decays, at most 0; -inf empties the row. NaN reaches y and the state.
        state: (B,H,K,V) before the first token, zero when None.
        starts: (B,T) bool; True zeroes the state before the token is consumed.
        scale: factor of y, 1 when None.
        chunk: tokens per chunk of the torch form, rounded up to a power of two; None chooses by T.
        backend: `numba`, `fla` or `torch`; None lets :mod:`orrery.ops.backend` choose.
        bonus: u (H,K): y_t reads the state before its own token, which counts u times. None: y_t reads the state after it.
        lengths: (B,) int64, valid tokens per row; tokens after them leave the state as it is.

    Returns:
        y (B,T,H,V) in v's type, and the state after the last valid token (B,H,K,V) in float32 (float64 for float64 v).

    Raises:
        StateError: when an operand, the state or `starts` has a shape that does not fit.
    """
    _check(q, k, v, g_log, state, starts, bonus, lengths, chunk)
    time = v.shape[1]
    if lengths is not None:
        padding = (torch.arange(time, device=v.device) >= lengths[:, None])[..., None, None]
        k, g_log = k.masked_fill(padding, 0.0), g_log.masked_fill(padding, 0.0)
        starts = None if starts is None else starts & ~padding[..., 0, 0]
    if time == 1:
        y, after = vector_decay_step(q[:, 0], k[:, 0], v[:, 0], g_log[:, 0], state, starts, scale, bonus=bonus)
        return y[:, None], after
    use = choose(backend, v, op="vector_decay", offered=("fla", "numba", "torch"))
    if use == "fla":
        return fla.vector_decay(q, k, v, g_log, state, starts, scale, bonus=bonus)
    if use == "torch":
        return vector_decay_chunked(q, k, v, g_log, state, starts, scale, chunk, bonus=bonus)
    kind = _kind(v)
    operands = [x if x is None else x.to(kind) for x in (q, k, v, g_log, bonus, state)]
    y, after = _Compiled.apply(*operands, starts, 1.0 if scale is None else scale)
    return y.to(v.dtype), after


def _check(
    q: Tensor, k: Tensor, v: Tensor, g_log: Tensor, state: Tensor | None, starts: Tensor | None, bonus: Tensor | None,
    lengths: Tensor | None, chunk: int | None,
) -> None:  # fmt: skip
    (batch, time, heads, key), value = sizes("vector_decay", "k", k, "BTHK"), v.shape[-1]
    operands = {
        "q": (q, (batch, time, heads, key)),
        "v": (v, (batch, time, heads, value)),
        "g_log": (g_log, (batch, time, heads, key)),
        "state": (state, (batch, heads, key, value)),
        "bonus": (bonus, (heads, key)),
    }
    check_operands("vector_decay", operands, (batch, time), starts, lengths, chunk)


def _kind(v: Tensor) -> torch.dtype:
    """The type of states and of all arithmetic."""
    return torch.float64 if v.dtype == torch.float64 else torch.float32


def vector_decay_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_log: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float | None = None,
    *,
    bonus: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The equation as a loop over time, in the operands' own type; arguments as :func:`vector_decay`."""
    batch, time, heads, key = k.shape
    S = v.new_zeros(batch, heads, key, v.shape[-1]) if state is None else state.to(v.dtype)
    outputs = []
    for t in range(time):
        if starts is not None:
            S = torch.where(starts[:, t, None, None, None], 0.0, S)
        written = k[:, t, :, :, None] * v[:, t, :, None, :]
        after = g_log[:, t, :, :, None].exp() * S + written
        seen = after if bonus is None else S + bonus[:, :, None] * written
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], seen))
        S = after
    y = torch.stack(outputs, 1)
    return (y if scale is None else y * scale), S


def vector_decay_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_log: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float | None = None,
    *,
    bonus: Tensor | None = None,
    donate: bool = False,
) -> tuple[Tensor, Tensor]:
    """One token: q, k, g_log (B,H,K), v (B,H,V), starts (B,1) -> y (B,H,V) and the new state.

    `donate` lets the state be overwritten in place (outside autograd only). The rest as :func:`vector_decay`.
    """
    (batch, heads, key), value, kind = k.shape, v.shape[-1], _kind(v)
    queries, keys, values = (x if x.dtype == kind else x.to(kind) for x in (q, k, v))
    S = v.new_zeros(batch, heads, key, value, dtype=kind) if state is None else state.to(kind)
    if starts is not None:
        S = S.masked_fill(starts[..., None, None], 0.0)
    with exact(v):
        if bonus is not None:
            y = torch.matmul(queries[:, :, None], S)[:, :, 0]
            y = torch.addcmul(y, (queries * bonus * keys).sum(-1, keepdim=True), values)
        decay = g_log.to(kind).exp()[..., None]
        S = S.mul_(decay) if donate and starts is None and state is not None else S * decay
        S = S.addcmul_(keys[..., None], values[:, :, None])
        if bonus is None:
            y = torch.matmul(queries[:, :, None], S)[:, :, 0]
    y = y if scale is None else y * scale
    return (y if y.dtype == v.dtype else y.to(v.dtype)), S


def vector_decay_matrix(
    q: Tensor,
    k: Tensor,
    g_log: Tensor,
    starts: Tensor | None = None,
    scale: float | None = None,
    *,
    bonus: Tensor | None = None,
) -> Tensor:
    """The matrix (B,H,T,T) with y = matrix v that the recurrence is from a zero state; arguments as :func:`vector_decay`.

    O(T^2): for pictures and for distillation of short sequences. Differentiable: it is the op, given unit vectors.
    """
    batch, time, heads, _ = k.shape
    units = torch.eye(time, dtype=k.dtype, device=k.device)[None, :, None].expand(batch, -1, heads, -1)
    rows, _ = vector_decay(q, k, units, g_log, None, starts, scale, bonus=bonus)
    return rows.transpose(1, 2)


def vector_decay_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_log: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float | None = None,
    chunk: int | None = None,
    *,
    bonus: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence as matrix products; arguments as :func:`vector_decay`. Differentiable once, in all of its tensors."""
    time, kind = v.shape[1], _kind(v)
    chunk = 1 << (min(chunk or CHUNK, time) - 1).bit_length()
    operands = [x.to(kind) for x in (q if scale is None else q * scale, k, v, g_log)]
    rest = -time % chunk
    if rest:  # zero keys and zero gates leave the state as it is
        operands = [F.pad(x, (0, 0, 0, 0, 0, rest)) for x in operands]
        starts = None if starts is None else F.pad(starts, (0, rest))
    extra = [x if x is None else x.to(kind) for x in (bonus, state)]
    with exact(v):
        y, after = _Chunked.apply(*operands, *extra, starts, chunk)
    return (y[:, :time] if rest else y).to(v.dtype), after


class _Logs(NamedTuple):
    """Sums of gates over each chunk, float64 (B,N,H,C,K): when a token reads (R), and after it has written (G)."""

    read: Tensor
    written: Tensor


def _to_chunks(x: Tensor, chunk: int) -> Tensor:
    """(B,T,H,K) -> (B,N,H,C,K)."""
    return x.unflatten(1, (-1, chunk)).transpose(2, 3)


def _from_chunks(x: Tensor) -> Tensor:
    """(B,N,H,C,K) -> (B,T,H,K)."""
    return x.transpose(2, 3).flatten(1, 2)


def _logs(g_log: Tensor, starts: Tensor | None, chunk: int, bonus: bool) -> _Logs:
    g = _to_chunks(g_log.double().clamp(min=FORGET), chunk)
    step = g
    if starts is not None:  # a start comes before its token reads, with a bonus, too
        step = g + FORGET * starts.unflatten(1, (-1, chunk))[:, :, None, :, None]
    total = step.cumsum(3)
    return _Logs(total - g if bonus else total, total)


def _halves(chunk: int) -> list[int]:
    return [1 << n for n in range(chunk.bit_length() - 1)]


def _factors(logs: _Logs, half: int, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """e^{R_i - G_m} and e^{G_m - G_j} for second and first halves of blocks of 2 `half` tokens: (B,N,H,P,half,K) each."""
    read, written = (x.unflatten(3, (-1, 2, half)) for x in logs)
    middle = written[:, :, :, :, 0, -1:]
    late, early = read[:, :, :, :, 1] - middle, middle - written[:, :, :, :, 0]
    return _no_denormals(late.to(kind).exp()), _no_denormals(early.to(kind).exp())


def _no_denormals(x: Tensor) -> Tensor:
    """Products with denormal numbers take a hundred times as long."""
    return torch.threshold(x, 1e-33, 0.0) if x.dtype == torch.float32 else x


def _blocks(a: Tensor, half: int) -> Tensor:
    """The lower left quarters of the blocks of 2 `half` tokens on the diagonal of a (B,N,H,C,C): a view (B,N,H,half,half,P)."""
    parts = a.unflatten(4, (-1, 2 * half)).unflatten(3, (-1, 2 * half))
    return parts.diagonal(dim1=3, dim2=5)[:, :, :, half:, :half]


def _scores(q: Tensor, k: Tensor, logs: _Logs, bonus: Tensor | None) -> Tensor:
    """A (B,N,H,C,C), zero above the diagonal."""
    chunk = q.shape[3]
    a = q.new_zeros(*q.shape[:4], chunk)
    for half in _halves(chunk):
        late, early = _factors(logs, half, q.dtype)
        late = late * q.unflatten(3, (-1, 2, half))[:, :, :, :, 1]
        early = early * k.unflatten(3, (-1, 2, half))[:, :, :, :, 0]
        product = (late * early).sum(-1, keepdim=True) if half == 1 else late @ early.transpose(-1, -2)
        _blocks(a, half).copy_(product.permute(0, 1, 2, 4, 5, 3))
    own = q * k if bonus is None else q * k * bonus[:, None]
    a.diagonal(dim1=3, dim2=4).copy_(own.sum(-1))
    return a


def _scores_gradient(q: Tensor, k: Tensor, logs: _Logs, da: Tensor) -> tuple[Tensor, Tensor]:
    """What the parts of A below the diagonal give to dq and dk (B,N,H,C,K)."""
    dq, dk = torch.zeros_like(q), torch.zeros_like(k)
    for half in _halves(q.shape[3]):
        late, early = _factors(logs, half, q.dtype)
        q_late, k_early = (x.unflatten(3, (-1, 2, half)) for x in (q, k))
        block = _blocks(da, half).permute(0, 1, 2, 5, 3, 4)
        to_q = block @ (k_early[:, :, :, :, 0] * early)
        to_k = block.transpose(-1, -2) @ (q_late[:, :, :, :, 1] * late)
        dq.unflatten(3, (-1, 2, half))[:, :, :, :, 1].addcmul_(to_q, late)
        dk.unflatten(3, (-1, 2, half))[:, :, :, :, 0].addcmul_(to_k, early)
    return dq, dk


def _carry(added: Tensor, whole: Tensor, first: Tensor | None, backwards: bool) -> tuple[Tensor, Tensor]:
    """From what each chunk adds (B,N,H,K,V): the state before each chunk (backwards: after it), and the last one.

    whole: (B,N,H,K), the decay of a chunk, float64; so is the carry, since float32 would round always the same way.
    """
    states = torch.empty_like(added)
    carry = torch.zeros_like(added[:, 0], dtype=torch.float64) if first is None else first.double()
    for n in reversed(range(added.shape[1])) if backwards else range(added.shape[1]):
        states[:, n] = carry
        carry = torch.addcmul(added[:, n].double(), carry, whole[:, n, :, :, None])
    return states, carry.to(added.dtype)


class _Chunked(torch.autograd.Function):
    """All operands in one floating type, T a multiple of the chunk; q already scaled."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g_log: Tensor,
        bonus: Tensor | None,
        state: Tensor | None,
        starts: Tensor | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        logs = _logs(g_log, starts, chunk, bonus is not None)
        qc, kc, vc = (_to_chunks(x, chunk) for x in (q, k, v))
        last = logs.written[:, :, :, -1:]
        ends = kc * _no_denormals((last - logs.written).to(q.dtype).exp())
        states, after = _carry(ends.transpose(-1, -2) @ vc, last[:, :, :, 0].exp(), state, False)
        y = _scores(qc, kc, logs, bonus) @ vc
        y = y + (qc * _no_denormals(logs.read.to(q.dtype).exp())) @ states
        hold(ctx, q, k, v, g_log, bonus, state, starts, states, after)
        ctx.chunk = chunk
        ctx.set_materialize_grads(False)
        return _from_chunks(y), after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dafter: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = held(ctx)
        with exact(saved[2]):
            return _Chunked._gradients(saved, ctx.chunk, dy, dafter)

    @staticmethod
    def _gradients(
        saved: tuple[Any, ...], chunk: int, dy: Tensor | None, dafter: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        q, k, v, g_log, bonus, state, starts, states, after = saved
        logs = _logs(g_log, starts, chunk, bonus is not None)
        dy = torch.zeros_like(v) if dy is None else dy
        qc, kc, vc, dyc = (_to_chunks(x, chunk) for x in (q, k, v, dy))
        last = logs.written[:, :, :, -1:]
        near = _no_denormals(logs.read.to(q.dtype).exp())
        far = _no_denormals((last - logs.written).to(q.dtype).exp())
        whole = last[:, :, :, 0].exp()
        dstates, dstate = _carry((qc * near).transpose(-1, -2) @ dyc, whole, dafter, True)
        dv = _scores(qc, kc, logs, bonus).transpose(-1, -2) @ dyc + (kc * far) @ dstates
        dq, dk = _scores_gradient(qc, kc, logs, dyc @ vc.transpose(-1, -2))
        dq += near * (dyc @ states.transpose(-1, -2))
        dk += far * (vc @ dstates.transpose(-1, -2))
        following = torch.cat([states[:, 1:], after[:, None]], 1)
        dg = _gate_gradient(qc * dq, kc * dk, (following * dstates).sum(-1), g_log, starts, bonus is not None)
        own = (dyc * vc).sum(-1, keepdim=True)
        dbonus = None if bonus is None else (own * qc * kc).sum((0, 1, 3))
        weight = own if bonus is None else own * bonus[:, None]
        dq, dk = dq + weight * kc, dk + weight * qc
        grads = [_from_chunks(x) for x in (dq, dk, dv)]
        return *grads, dg, dbonus, None if state is None else dstate, None, None


def _gate_gradient(
    read: Tensor, written: Tensor, ends: Tensor, g_log: Tensor, starts: Tensor | None, bonus: bool
) -> Tensor:
    """From q dq and k dk (B,N,H,C,K) and the rows of <S, dS> (B,N,H,K) after each chunk: dg (B,T,H,K).

    Sums run from a token to the end of its chunk, and stop before a gate that forgets all and before a document start.
    """
    chunk = read.shape[3]
    if bonus:
        read = F.pad(read[:, :, :, 1:], (0, 0, 0, 1))  # token t+1 reads what the gate of t has passed
    sums = (read.double() - written).flip(3).cumsum(3).flip(3)
    cut = _to_chunks(g_log <= FORGET, chunk)
    if starts is not None:
        cut = cut | starts.unflatten(1, (-1, chunk))[:, :, None, :, None]
    steps = torch.arange(chunk, device=cut.device)[:, None]
    later = torch.where(cut, steps, chunk).flip(3).cummin(3).values.flip(3)  # the next cut, the token itself included
    later = F.pad(later[:, :, :, 1:], (0, 0, 0, 1), value=chunk)
    sums = F.pad(sums, (0, 0, 0, 1))
    dg = sums[:, :, :, :-1] - sums.gather(3, later)
    dg = torch.where(later == chunk, dg + ends[:, :, :, None], dg).masked_fill_(cut, 0.0)
    return _from_chunks(dg).to(g_log.dtype)


class _Compiled(torch.autograd.Function):
    """The compiled recurrence: four sweeps, two of them in the backward pass of either direction of time."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g_log: Tensor,
        bonus: Tensor | None,
        state: Tensor | None,
        starts: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        steps = _steps(g_log, starts, bonus)
        y, after, marks = loops.sweep(k, v, q, steps, state, scale, backwards=False, keep=any(ctx.needs_input_grad))
        if bonus is not None:
            loops.add_bonus(q, k, v, bonus, scale, y)
        hold(ctx, q, k, v, g_log, bonus, state, starts, marks, after)
        ctx.scale = scale
        ctx.set_materialize_grads(False)
        return y, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dafter: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, g_log, bonus, state, starts, marks, after = held(ctx)
        steps, scale = _steps(g_log, starts, bonus), ctx.scale
        dy = torch.zeros_like(v) if dy is None else dy
        dq = loops.sweep_by_value(k, v, dy, steps, state, scale, backwards=False)
        dv, dstate, dmarks = loops.sweep(q, dy, k, steps, dafter, scale, backwards=True, keep=True)
        dk = loops.sweep_by_value(q, dy, v, steps, dafter, scale, backwards=True)
        last = None if dafter is None else (after * dafter).sum(-1)
        dg = loops.gate_gradient(q, dq, k, dk, steps, marks, dmarks, last)
        dbonus = None
        if bonus is not None:
            dbonus = loops.add_bonus_gradient(q, k, v, bonus, scale, dy, (dq, dk, dv))
        return dq, dk, dv, dg, dbonus, None if state is None else dstate, None, None


def _steps(g_log: Tensor, starts: Tensor | None, bonus: Tensor | None) -> loops.Steps:
    none = torch.zeros(len(g_log), 0, dtype=torch.bool)
    marks = none if starts is None else starts.contiguous()
    return loops.Steps(g_log.contiguous(), marks, 0 if bonus is None else 1)
