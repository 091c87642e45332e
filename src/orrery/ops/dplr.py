"""Diagonal plus low rank: a matrix memory with a decay per key channel whose transition also moves one direction onto another.

Papers: RWKV-7 2503.14456 (all of it), Kimi Delta Attention 2510.26692 (one case). Per head, with the state S (K,V):

    ``u_t = S_{t-1}^T a_t``                                        what the old state holds under a_t
    ``S_t = diag(exp(g_t)) S_{t-1} + b_t u_t^T + k_t v_t^T``        ``= (diag(exp(g_t)) + b_t a_t^T) S_{t-1} + k_t v_t^T``
    ``y_t = scale S_t^T q_t``

so the token reads the state that already holds its own value. The delta rule with a decay per channel,

    ``S_t = (I - beta_t k_t k_t^T) diag(exp(g_t)) S_{t-1} + beta_t k_t v_t^T``,

is a_t = exp(g_t) k_t, b_t = -beta_t k_t: :func:`vector_delta_rule`. (One decay per head: :mod:`orrery.ops.delta_rule`.)

Chunked form (torch). Inside a chunk that starts at S, with G the sum of g up to a token, G' up to the one before it:

    ``(I - AB) U = e^{G'} a S + AK V``        ``AB_ij = sum_k a_ik b_jk e^{G'_ik - G_jk}``, AK with k_j, for j < i
    ``Y = scale (e^G q S + QB U + QK V)``      likewise with q_i and e^{G_i - G_j}, for j <= i
    ``S_+ = e^{G_C} S + (e^{G_C - G} b)^T U + (e^{G_C - G} k)^T V``

The four matrices are one product of rows ``e^{G - m}`` and columns ``e^{m - G}`` with m in the middle of the chunk's decay, which is
exact while a channel decays by less than e^-160 in a chunk; the chunks in which one decays further are computed pair by
pair. A document start is a mask, not a decay. The backward pass computes a section (some chunks) again from the state
before it, so nothing of a chunk is kept.

Compiled form (numba, CPU; :mod:`orrery.ops.dplr_loops`): the equation itself, a state of K V numbers staying in the cache;
exact for every decay. On two cores with K = V = 64 it takes a fifth of the time of the chunked form.

What is kept for the backward pass: the inputs, and compiled u and a state every max(64, V) tokens.

B batch, T time, H heads, K key dimension, V value dimension, C chunk length, N chunks, M = N B H matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.ops import fla
from orrery.ops.backend import choose
from orrery.ops.dplr_loops import CompiledDPLR
from orrery.ops.operands import check_operands, sizes
from orrery.ops.recompute import held, hold

CHUNK = 16
"""Chunk length of the torch form: a channel may decay by e^-10 a token before pairs are computed one by one."""

_LEAST = -1000.0  # e^-1000 is 0 in float64 too, and sums of it over a chunk keep eleven digits for the other gates
_HALF = {torch.float32: 80.0, torch.float64: 340.0}  # e^x and e^-x are ordinary numbers
_MATRICES = 256  # chunks times rows times heads in a section: what the backward pass holds at a time


@torch.compiler.disable  # the loops are not torch's, and chunks by the hundred take a compiler longer than they save
def dplr(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    g_log: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float | None = None,
    chunk: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence over a sequence. For padding pass a = b = k = 0 and g_log = 0: the state stays as it is.

    Args:
        q, k, a, b: (B,T,H,K).
        v: (B,T,H,V).
        g_log: logarithm of the decay (B,T,H,K), at most 0; -inf empties a channel.
        state: S before the first token (B,H,K,V), zero when None.
        starts: (B,T) bool; True empties the state before the token is consumed.
        scale: factor on y; None is 1.
        chunk: chunk length of the torch form; None is :data:`CHUNK`.
        backend: `numba`, `fla` or `torch`, or None to let :mod:`orrery.ops.backend` choose.

    Returns:
        y (B,T,H,V) in v's type, and S after the last token (B,H,K,V) in float32 (float64 for float64 inputs).

    Raises:
        StateError: when an argument has another shape than the keys need.
    """
    _check(q, k, v, a, b, g_log, state, starts, chunk)
    scale = 1.0 if scale is None else scale
    if k.shape[1] == 1:
        return dplr_step(q, k, v, a, b, g_log, state, starts, scale)
    use = choose(backend, k, op="dplr", offered=fla.offered("dplr", fla.too_wide(k)))
    if use == "fla":
        return fla.dplr(q, k, v, a, b, g_log, state, starts, scale)
    if use == "numba":
        y, final = CompiledDPLR.apply(*(x.float() for x in (q, k, v, a, b, g_log)), state, starts, scale)
        return y.to(v.dtype), final
    return dplr_chunked(q, k, v, a, b, g_log, state, starts, scale, chunk)


def vector_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g_log: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The delta rule with a decay per channel (2510.26692, equation 1); beta (B,T,H), the rest as in :func:`dplr`."""
    batch, time, heads, key = sizes("vector_delta_rule", "k", k, "BTHK")
    gates = {"beta": (beta, (batch, time, heads)), "g_log": (g_log, (batch, time, heads, key))}
    check_operands("vector_delta_rule", gates, (batch, time))
    offers = fla.offered("vector_delta_rule", fla.too_wide(k))
    if k.shape[1] > 1 and choose(backend, k, op="vector_delta_rule", offered=offers) == "fla":
        return fla.vector_delta_rule(q, k, v, beta, g_log, state, starts, 1.0 if scale is None else scale)
    written = k * beta[..., None]
    return dplr(q, written, v, k * g_log.to(k.dtype).exp(), -written, g_log, state, starts, scale, None, backend)


def dplr_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    g_log: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The equation, token by token, in the inputs' type. Shapes as in :func:`dplr`; gradients are autograd's."""
    s = k.new_zeros(k.shape[0], *k.shape[2:], v.shape[-1]) if state is None else state
    out = []
    for t in range(k.shape[1]):
        if starts is not None:
            s = torch.where(starts[:, t, None, None, None], 0.0, s)
        u = torch.einsum("bhk,bhkv->bhv", a[:, t], s)
        s = g_log[:, t, :, :, None].exp() * s
        s = s + torch.einsum("bhk,bhv->bhkv", b[:, t], u) + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        out.append(scale * torch.einsum("bhk,bhkv->bhv", q[:, t], s))
    return torch.stack(out, 1), s


def dplr_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    g_log: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """One token, in few calls: shapes as in :func:`dplr` with T = 1."""
    batch, _, heads, key = k.shape
    given, kind, value, rows = v.dtype, _kind(v), v.shape[-1], batch * heads
    q, k, a, b, decay = (x.to(kind).reshape(rows, key, 1) for x in (q, k, a, b, g_log))
    v = v.to(kind).reshape(rows, 1, value)
    if state is None:
        s = torch.bmm(k, v)
    else:
        s = state.to(kind).reshape(rows, key, value)
        if starts is not None:
            s = s.masked_fill(starts.expand(batch, heads).reshape(rows, 1, 1), 0.0)
        u = torch.bmm(a.transpose(1, 2), s)
        s = torch.baddbmm(s * decay.exp(), torch.cat([b, k], 2), torch.cat([u, v], 1))
    y = torch.bmm(q.transpose(1, 2), s)
    y = y if scale == 1.0 else y * scale
    return y.view(batch, 1, heads, value).to(given), s.view(batch, heads, key, value)


def dplr_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    g_log: Tensor,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float = 1.0,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Matrix products over chunks, in float32 (float64 for float64 inputs). Shapes as in :func:`dplr`."""
    batch, time, heads, key = k.shape
    if state is None:
        state = k.new_zeros(batch, heads, key, v.shape[-1], dtype=_kind(v))
    chunk = min(time, CHUNK if chunk is None else chunk)
    return _Chunked.apply(q, k, v, a, b, g_log, state.to(_kind(v)), _Options(scale, chunk, starts))


def _kind(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _Options(NamedTuple):
    scale: float
    chunk: int
    starts: Tensor | None


def _check(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, g_log: Tensor, state: Tensor | None, starts: Tensor | None, chunk: int | None
) -> None:
    (batch, time, heads, key), value = sizes("dplr", "k", k, "BTHK"), v.shape[-1]
    operands = {
        "q": (q, (batch, time, heads, key)),
        "v": (v, (batch, time, heads, value)),
        "a": (a, (batch, time, heads, key)),
        "b": (b, (batch, time, heads, key)),
        "g_log": (g_log, (batch, time, heads, key)),
        "state": (state, (batch, heads, key, value)),
    }
    check_operands("dplr", operands, (batch, time), starts, None, chunk)


def _sections(k: Tensor, chunk: int) -> Iterator[tuple[slice, slice]]:
    """Rows and times that are worked on together."""
    batch, time, heads, _ = k.shape
    rows = max(1, _MATRICES // heads)
    length = chunk * max(1, _MATRICES // (min(rows, batch) * heads))
    for row in range(0, batch, rows):
        for start in range(0, time, length):
            yield slice(row, min(row + rows, batch)), slice(start, min(start + length, time))


def _matrices(x: Tensor, chunk: int, kind: torch.dtype) -> Tensor:
    """x (B,T,H,...) as matrices (M,C,...), chunk by chunk, padded with zeros at the end."""
    short = -x.shape[1] % chunk
    if short:
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, short))
    return x.unflatten(1, (-1, chunk)).transpose(0, 1).transpose(2, 3).flatten(0, 2).to(kind)


def _scores(rows: Tensor, columns: Tensor, high: Tensor, low: Tensor, seen: Tensor) -> Tensor:
    """Sums over K of rows (M,R,K) times columns (M,S,K) times e^{high - low}, where `seen` (M,R,S); high, low like them."""
    half = _HALF[rows.dtype]
    least = low.detach().amin(1, keepdim=True)
    middle = least / 2
    far = (least < -2 * half).flatten(1).any(1)
    up, down = ((x.clamp(-half, half) if bool(far.any()) else x).to(rows.dtype).exp() for x in (high - middle, middle - low))
    found = torch.bmm(rows * up, (columns * down).transpose(1, 2)).masked_fill(~seen, 0.0)
    for index in far.nonzero()[:, 0].split(32):
        pairs = high[index, :, None] - low[index, None]
        pairs = pairs.masked_fill(~seen[index, ..., None], -torch.inf).to(rows.dtype).exp()
        found = found.index_copy(0, index, torch.einsum("mrk,mrsk,msk->mrs", rows[index], pairs, columns[index]))
    return found


def _section(inputs: Sequence[Tensor], state: Tensor, options: _Options) -> tuple[Tensor, Tensor]:
    """The chunked form of some rows and chunks: y (B,T,H,V) and the state after it; `starts` belong to this section."""
    q, k, v, a, b, g_log = inputs
    (batch, time, heads, key), value, kind, chunk = k.shape, v.shape[-1], state.dtype, options.chunk
    q, k, v, a, b = (_matrices(x, chunk, kind) for x in (q, k, v, a, b))
    matrices, groups = len(k), batch * heads
    wide = torch.float64 if k.device.type != "mps" else torch.float32
    g = _matrices(g_log.clamp(min=_LEAST), chunk, wide)
    documents = k.new_zeros(matrices, chunk, dtype=torch.int64)
    if options.starts is not None:
        marks = _matrices(options.starts[..., None].expand(batch, time, heads), chunk, torch.int64)
        g, documents = g.masked_fill(marks[..., None] > 0, 0.0), marks.cumsum(1)
    same = documents[:, :, None] == documents[:, None, :]
    total = g.cumsum(1) if options.starts is None else torch.bmm(same.tril().to(wide), g)  # each document's own
    last = total[:, -1:]
    later = torch.cat([same.tril(), same.tril(-1)], 1)  # (M,2C,C): q sees itself, a does not
    reach = torch.cat([total, total - g], 1)
    rows = torch.cat([q, a], 1)
    scores = _scores(rows, torch.cat([b, k], 1), reach, torch.cat([total, total], 1), torch.cat([later, later], 2))
    (of_u, of_v), (inner, outer) = (part.split(chunk, 2) for part in scores.split(chunk, 1))

    carried = (documents == 0).to(kind)[..., None]  # still in the document that the state is of
    reads = rows * reach.to(kind).exp() * torch.cat([carried, carried], 1)
    gone = (documents != documents[:, -1:])[..., None]  # of documents that end here; their sums may lie far below the last one's
    held = (last - total).masked_fill(gone, -torch.inf).to(kind).exp()
    writes = torch.cat([b * held, k * held], 1).transpose(1, 2)  # (M,K,2C)
    keep = last.to(kind).exp().transpose(1, 2) * carried[:, -1:]
    eye = torch.eye(chunk, dtype=kind, device=k.device)
    sides = torch.cat([reads[:, chunk:], torch.bmm(outer, v)], 2)
    solved = torch.linalg.solve_triangular(eye - inner, sides, upper=False, unitriangular=True)
    asks, known = (x.view(-1, groups, chunk, x.shape[-1]) for x in solved.split([key, value], 2))
    s, states, moved = state.flatten(0, 1), [], []
    writes, keep, given = (x.view(-1, groups, *x.shape[1:]) for x in (writes, keep, v))
    for n in range(len(asks)):
        states.append(s)
        moved.append(torch.baddbmm(known[n], asks[n], s))
        s = torch.baddbmm(keep[n] * s, writes[n], torch.cat([moved[-1], given[n]], 1))
    y = torch.bmm(reads[:, :chunk], torch.cat(states))
    y = torch.baddbmm(torch.baddbmm(y, of_u, torch.cat(moved)), of_v, v) * options.scale
    y = y.view(-1, batch, heads, chunk, value).transpose(2, 3).transpose(0, 1).flatten(1, 2)
    return y[:, :time], s.view(batch, heads, key, value)


class _Chunked(torch.autograd.Function):
    """Sections one after the other; backward computes each again."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, g_log: Tensor, state: Tensor, options: _Options
    ) -> tuple[Tensor, Tensor]:
        inputs, final = (q, k, v, a, b, g_log), state.clone()
        y, before = torch.empty_like(v, memory_format=torch.contiguous_format), []
        with torch.autocast(k.device.type, enabled=False):
            for rows, times in _sections(k, options.chunk):
                before.append(final[rows].clone())
                section = [x[rows, times] for x in inputs]
                part, final[rows] = _section(section, before[-1], _at(options, rows, times))
                y[rows, times] = part.to(y.dtype)
        hold(ctx, *inputs, *before)
        ctx.options = options
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        saved = held(ctx)
        inputs, before = saved[:6], saved[6:]
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]
        dstate = dfinal.clone()
        sections = list(enumerate(_sections(inputs[1], ctx.options.chunk)))
        with torch.autocast(dy.device.type, enabled=False), torch.enable_grad():
            for n, (rows, times) in reversed(sections):
                leaves = [x[rows, times].detach().requires_grad_() for x in inputs]
                leaves.append(before[n].detach().requires_grad_())
                y, after = _section(leaves[:6], leaves[6], _at(ctx.options, rows, times))
                found = torch.autograd.grad([y, after], leaves, [dy[rows, times].to(y.dtype), dstate[rows]])
                for grad, part in zip(grads, found, strict=False):
                    grad[rows, times] = part.to(grad.dtype)
                dstate[rows] = found[-1]
        return *grads, dstate, None


def _at(options: _Options, rows: slice, times: slice) -> _Options:
    return options if options.starts is None else options._replace(starts=options.starts[rows, times])
