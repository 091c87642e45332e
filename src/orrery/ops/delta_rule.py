"""The delta rule with decay: a matrix memory that is corrected towards each new value instead of only added to.

Papers: DeltaNet 2406.06484 (no decay), Gated DeltaNet 2412.06464 (a decay per head and token). Per head, the state S (K,V)
fades, is asked what it holds under key k_t, and the error is written back with strength beta_t:

    ``S'_t = exp(g_t) S_{t-1}``
    ``u_t  = beta_t (v_t - S'_t^T k_t)``                 the correction
    ``S_t  = S'_t + k_t u_t^T``                          ``= exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T``
    ``y_t  = scale S_t^T q_t``

so the token reads the state that already holds its own correction. Stable for ``beta |k|^2`` in [0, 2]. With `l2_eps`,
q and k are first divided by their norms, ``k <- k / sqrt(|k|^2 + eps)``: inside the chunks, where they are in the cache.

Chunked form (WY representation, 2406.06484 section 3). Inside a chunk that starts at state S, with ``G_i`` the sum of g over the
chunk up to i, ``D_ij = exp(G_i - G_j)`` for j <= i, ``N = D * K K^T`` below the diagonal, ``A = scale D * Q K^T``:

    ``(I + diag(beta) N) U = diag(beta) (V - diag(e^G) K S)``
    ``Y    = scale diag(e^G) Q S + A U``
    ``S_+  = e^{G_C} S + (diag(e^{G_C - G}) K)^T U``

Let T be the inverse of ``I + diag(beta) K K^T`` (below the diagonal): one triangular solve per chunk, by substitution, which
stays accurate where the Neumann series does not (equal keys). Its entries are at most 2 for keys of norm 1. Since D is a
ratio of a factor of the row and one of the column, the inverse with decay is ``D * T``, and

    ``U = (D * T) diag(beta) V - diag(e^G) T diag(beta) K S``

in which no two decays are multiplied, so that none underflows. All of it is done for all chunks at once; only U and S are
carried from chunk to chunk.

Gradients, by hand. With ``P`` the gradient of the right-hand side V - diag(e^G) K S divided by beta (so ``dV = beta P``):

    ``P  = (D * T)^T (A^T dY + diag(e^{G_C - G}) K dS_+)``      the same system, transposed, run backwards over chunks
    ``dS = scale (diag(e^G) Q)^T dY + e^{G_C} dS_+ - (diag(beta e^G) K)^T P``

and everything else is local to a chunk. The decay needs no matrices of its own: scaling the state at i and undoing it at
the end of the chunk changes nothing, so ``dg_i = sum_{j >= i} (y_j dy_j - v_j dv_j) + <S_+, dS_+>`` over the chunk, or up
to the next document start in it.

Forms: :func:`delta_rule_reference` (the equation as a loop), :func:`delta_rule_chunked`, :func:`delta_rule_step` (one token);
:func:`delta_rule` chooses. Decays are exact from e^g = 0 (g = -inf, which a document start uses) to 1 - 1e-7: their sums
are float64. On a CPU the work goes through the caches in sections (rows x time), which also bounds the memory of
temporaries; what is kept for the backward pass is O(T (K + V + C)) and, with
decay, (T / C) K V; without, the states of chunks are made again from U.

B batch, T time, H heads, K key dimension, V value dimension, C chunk length, N chunks, M = N B H matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from orrery.ops import fla
from orrery.ops.backend import choose
from orrery.ops.operands import check_operands, sizes
from orrery.ops.recompute import held, hold

CHUNK = 32
"""Default chunk length. Measured on two cores: 16, 24, 48 and 64 are 5 to 25 % slower for K, V of 64 to 128."""

_RESET = -1000.0  # e^-1000 is 0 in float64 too, and sums of it over a chunk keep eleven digits for the other gates
_LEAST = {
    torch.float32: -60.0,
    torch.float64: -700.0,
}  # e^x is 0 below: a denormal factor makes products 10 times slower
_SECTION = 600_000  # numbers of k and v together in a section: 2.4 MB in float32, half of it in each core's cache


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g_log: Tensor | None = None,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float | None = None,
    chunk: int | None = None,
    backend: str | None = None,
    *,
    l2_eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The (gated) delta rule over a sequence. For padding pass beta = 0 and g_log = 0: the state stays as it is.

    Args:
        q, k: queries and keys (B,T,H,K); keys of norm at most 1 keep beta up to 2 stable.
        v: values (B,T,H,V).
        beta: strength of the correction (B,T,H).
        g_log: logarithm of the decay (B,T,H), at most 0; -inf empties the state. None: no decay (DeltaNet).
        state: S before the first token (B,H,K,V), zero when None.
        starts: (B,T) bool; True empties the state before the token is consumed.
        scale: factor on y; None is 1.
        chunk: chunk length of the chunked form; None is :data:`CHUNK`, or less for short inputs.
        backend: `fla` or `torch`, or None to let :mod:`orrery.ops.backend` choose.
        l2_eps: normalise q and k over K with this constant under the root; None: take them as they are.

    Returns:
        y (B,T,H,V) in v's type, and S after the last token (B,H,K,V) in float32 (float64 for float64 inputs).

    Raises:
        StateError: when the state, `starts` or a gate has another shape than the input needs.
    """
    _check(q, k, v, beta, g_log, state, starts, chunk)
    use = choose(backend, k, op="delta_rule", offered=fla.offered("delta_rule", fla.too_wide(k), ("torch",)))
    scale = 1.0 if scale is None else scale
    if k.shape[1] == 1:
        return delta_rule_step(q, k, v, beta, g_log, state, starts, scale, l2_eps=l2_eps)
    if use == "fla":
        return fla.delta_rule(q, k, v, beta, g_log, state, starts, scale, l2_eps=l2_eps)
    return delta_rule_chunked(q, k, v, beta, g_log, state, starts, scale, chunk, l2_eps=l2_eps)


def delta_rule_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g_log: Tensor | None = None,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float = 1.0,
    *,
    l2_eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The equation, token by token, in the inputs' type. Shapes as in :func:`delta_rule`; gradients are autograd's."""
    q, k = _normalised(q, l2_eps), _normalised(k, l2_eps)
    s = k.new_zeros(k.shape[0], *k.shape[2:], v.shape[-1]) if state is None else state
    out = []
    for t in range(k.shape[1]):
        if starts is not None:
            s = torch.where(starts[:, t, None, None, None], 0.0, s)
        if g_log is not None:
            s = g_log[:, t, :, None, None].exp() * s
        u = beta[:, t, :, None] * (v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], s))
        s = s + torch.einsum("bhk,bhv->bhkv", k[:, t], u)
        out.append(scale * torch.einsum("bhk,bhkv->bhv", q[:, t], s))
    return torch.stack(out, 1), s


def delta_rule_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g_log: Tensor | None = None,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float = 1.0,
    *,
    l2_eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """One token, in few calls: shapes as in :func:`delta_rule` with T = 1."""
    batch, _, heads, key = k.shape
    kind, value, rows = _kind(v), v.shape[-1], batch * heads
    s = k.new_zeros(rows, key, value, dtype=kind) if state is None else state.to(kind).reshape(rows, key, value)
    if g_log is not None:
        s = s * g_log.to(kind).exp().view(rows, 1, 1)
    if starts is not None:
        s = s.masked_fill(starts.expand(batch, heads).reshape(rows, 1, 1), 0.0)
    q, k = (_normalised(x.to(kind).reshape(rows, 1, key), l2_eps) for x in (q, k))
    error = torch.baddbmm(v.to(kind).reshape(rows, 1, value), k, s, alpha=-1)
    s = torch.baddbmm(s, k.transpose(1, 2), error * beta.to(kind).reshape(rows, 1, 1))
    y = torch.bmm(q, s)
    y = y if scale == 1.0 else y * scale
    return y.view(batch, 1, heads, value).to(v.dtype), s.view(batch, heads, key, value)


def delta_rule_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g_log: Tensor | None = None,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float = 1.0,
    chunk: int | None = None,
    *,
    l2_eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Matrix products over chunks of tokens, in float32 (float64 for float64 inputs). Shapes as in :func:`delta_rule`."""
    kind = _kind(v)
    if starts is not None:
        gate = torch.zeros_like(beta) if g_log is None else g_log
        g_log = gate.masked_fill(starts[..., None], _RESET)
    if chunk is None:
        pieces = -(-k.shape[1] // CHUNK)
        chunk = -(-k.shape[1] // pieces)  # equal pieces: 65 tokens are three times 22, not 96 less 31 of padding
    state = None if state is None else state.to(kind)
    chunk = min(chunk, k.shape[1])
    return _ChunkedDeltaRule.apply(q, k, v, beta, g_log, state, _Options(scale, chunk, l2_eps, starts is not None))


def _kind(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _normalised(x: Tensor, eps: float | None) -> Tensor:
    """Rows of x (...,K) divided by sqrt(|x|^2 + eps)."""
    return x if eps is None else x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


class _Options(NamedTuple):
    """What is not a tensor. resets: some gates are document starts."""

    scale: float
    chunk: int
    l2_eps: float | None
    resets: bool


def _check(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g_log: Tensor | None, state: Tensor | None, starts: Tensor | None, chunk: int | None
) -> None:
    (batch, time, heads, key), value = sizes("delta_rule", "k", k, "BTHK"), v.shape[-1]
    operands = {
        "q": (q, (batch, time, heads, key)),
        "v": (v, (batch, time, heads, value)),
        "beta": (beta, (batch, time, heads)),
        "g_log": (g_log, (batch, time, heads)),
        "state": (state, (batch, heads, key, value)),
    }
    check_operands("delta_rule", operands, (batch, time), starts, None, chunk)


def _sections(k: Tensor, v: Tensor, chunk: int) -> Iterator[tuple[slice, slice]]:
    """Rows and times that are worked on together: all of them on an accelerator, what fits the caches on a CPU."""
    batch, time, heads, key = k.shape
    if k.device.type != "cpu":
        yield slice(0, batch), slice(0, time)
        return
    tokens = max(chunk, _SECTION // (heads * (key + v.shape[-1])))
    length = min(time, tokens // chunk * chunk)
    rows = max(1, tokens // length)
    for row in range(0, batch, rows):
        for start in range(0, time, length):
            yield slice(row, min(row + rows, batch)), slice(start, min(start + length, time))


def _to_chunks(x: Tensor, at: tuple[slice, slice], chunk: int, kind: torch.dtype) -> Tensor:
    """A section of x (B,T,H,...) as matrices (M,C,...), chunk by chunk, contiguous, padded with zeros at the end."""
    x = x[at]
    short = -x.shape[1] % chunk
    if short:
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, short))
    x = x.unflatten(1, (-1, chunk)).transpose(0, 1).transpose(2, 3)
    out = torch.empty(x.shape, dtype=kind, device=x.device)
    return out.copy_(x).flatten(0, 2)


def _from_chunks(x: Tensor, out: Tensor, at: tuple[slice, slice]) -> None:
    """Writes matrices (M,C,...) to their section of out (B,T,H,...)."""
    out = out[at]
    batch, time, heads = out.shape[:3]
    x = x.view(-1, batch, heads, *x.shape[1:]).transpose(2, 3).transpose(0, 1)
    whole = time // x.shape[2]
    out[:, : whole * x.shape[2]].unflatten(1, (whole, -1)).copy_(x[:, :whole]) if whole else None
    rest = time - whole * x.shape[2]
    if rest:
        out[:, time - rest :].copy_(x[:, whole, :rest])


class _Kept(NamedTuple):
    """What a section's backward pass needs beside the inputs."""

    states: Tensor  # (N+1,G,K,V), before each chunk and after the last, G rows times heads; without decay the first alone is kept
    correction: Tensor  # U (M,C,V)
    inverse: Tensor  # T, without decay (M,C,C)
    scores: Tensor  # A (M,C,C)
    overlap: Tensor  # N (M,C,C)
    fade: Tensor | None  # D (M,C,C), None without decay
    since: Tensor | None  # e^G (M,C)
    until: Tensor | None  # e^{G_C - G} (M,C)
    whole: Tensor | None  # e^{G_C} (M,1)
    q_size: Tensor | None  # 1 / sqrt(|q|^2 + eps) (M,C,1), None where q and k are taken as they are
    k_size: Tensor | None


def _decays(g_log: Tensor | None, at: tuple[slice, slice], chunk: int, kind: torch.dtype) -> tuple[Tensor | None, ...]:
    """D, e^G, e^{G_C - G}, e^{G_C}. Sums are float64: in float32 one gate of 1e-30 would cost its neighbours four digits."""
    if g_log is None:
        return None, None, None, None
    wide = torch.float64 if g_log.device.type != "mps" else torch.float32
    total = _to_chunks(g_log, at, chunk, wide).clamp_(min=_RESET).cumsum(1)
    last = total[:, -1:]
    logs = (total[:, :, None] - total[:, None, :], total, last - total, last)
    fade, *rest = (torch.threshold(x.to(kind), _LEAST[kind], _RESET).exp_() for x in logs)
    return fade.tril_(), *rest


def _rows_times(factors: Tensor | None, x: Tensor) -> Tensor:
    """Multiplies the rows of x (M,C,...) in place; None stands for ones."""
    return x if factors is None else x.mul_(factors[:, :, None])


def _past(x: Tensor, fade: Tensor | None, diagonal: bool) -> Tensor:
    """Scores x (M,C,C) times D, in place; without decay D is 1 up to the diagonal. `diagonal` False clears it."""
    if fade is None:
        return x.tril_(0 if diagonal else -1)
    x.mul_(fade)
    if not diagonal:
        x.diagonal(dim1=1, dim2=2).zero_()
    return x


def _unit(x: Tensor, eps: float | None) -> Tensor | None:
    """Normalises the rows of x (M,C,K) in place; returns their factors (M,C,1)."""
    if eps is None:
        return None
    size = x.square().sum(-1, keepdim=True).add_(eps).rsqrt_()
    x.mul_(size)
    return size


def _forward_section(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decays: tuple[Tensor | None, ...],
    state: Tensor,
    options: _Options,
) -> tuple[Tensor, _Kept]:
    """Y (M,C,V) and what the backward pass needs, from q, k (M,C,K), v (M,C,V), beta (M,C), state (G,K,V)."""
    (fade, since, until, whole), scale = decays, options.scale
    (matrices, chunk, _), (rows, key, value) = k.shape, state.shape
    steps = matrices // rows
    sizes = _unit(q, options.l2_eps), _unit(k, options.l2_eps)
    kt = k.transpose(1, 2)
    overlap = torch.bmm(k, kt)
    eye = torch.eye(chunk, dtype=k.dtype, device=k.device).expand(matrices, chunk, chunk)
    inverse = torch.linalg.solve_triangular(overlap * beta[:, :, None], eye, upper=False, unitriangular=True)
    overlap = _past(overlap, fade, diagonal=False)
    scores = _past(torch.baddbmm(overlap, q, kt, beta=0, alpha=scale), fade, diagonal=True)
    solve = inverse * beta[:, None, :]
    reads = _rows_times(since, torch.bmm(solve, k))  # 2406.06484, W
    correction = torch.bmm(solve if fade is None else solve.mul_(fade), v)

    states = state.new_empty(steps + 1, rows, key, value)
    states[0] = state
    u, w = correction.view(steps, rows, chunk, value), reads.view(steps, rows, chunk, key)
    writes = (k if until is None else k * until[:, :, None]).view(steps, rows, chunk, key).transpose(2, 3)
    gates = None if whole is None else whole.view(steps, rows, 1, 1)
    for n in range(steps):
        u[n].baddbmm_(w[n], states[n], alpha=-1)
        before = states[n] if gates is None else torch.mul(states[n], gates[n], out=states[n + 1])
        torch.baddbmm(before, writes[n], u[n], out=states[n + 1])
    y = torch.bmm(q, states[:steps].flatten(0, 1))
    y.mul_(scale) if since is None else y.mul_((since * scale)[:, :, None])
    y.baddbmm_(scores, correction)
    return y, _Kept(states, correction, inverse, scores, overlap, fade, since, until, whole, *sizes)


def _states(k: Tensor, kept: _Kept) -> Tensor:
    """The states before each chunk and after the last (N+1,G,K,V): without decay they are sums, made again from the first and the
    corrections; k (M,C,K) normalised."""
    _, rows, key, value = kept.states.shape
    steps = len(k) // rows
    if kept.whole is not None:
        return kept.states
    states = kept.states.new_empty(steps + 1, rows, key, value)
    states[0] = kept.states[0]
    torch.bmm(k.transpose(1, 2), kept.correction, out=states[1:].view(-1, key, value))
    for n in range(steps):
        states[n + 1].add_(states[n])
    return states


def _backward_section(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    dy: Tensor,
    dstate: Tensor,
    kept: _Kept,
    scale: float,
    documents: Tensor | None,
) -> tuple[list[Tensor], Tensor]:
    """Gradients of q, k, v, beta and, with decay, g_log (as chunks), and of the state before the section (G,K,V)."""
    fade, since = kept.fade, kept.since
    for x, size in ((q, kept.q_size), (k, kept.k_size)):
        if size is not None:
            x.mul_(size)
    strength = beta if since is None else beta * since
    dy_read = dy * scale if since is None else dy * (since * scale)[:, :, None]
    kept = kept._replace(states=_states(k, kept))
    p, dstates = _carry_back(q, k, strength, dy, dy_read, dstate, kept)

    before, after, later = kept.states[:-1].flatten(0, 1), kept.states[1:].flatten(0, 1), dstates[1:].flatten(0, 1)
    ut = kept.correction.transpose(1, 2)
    dscores = _past(torch.baddbmm(kept.scores, dy, ut, beta=0, alpha=scale), fade, diagonal=True)
    doverlap = torch.bmm(p, ut)
    p_read = torch.bmm(p, before.transpose(1, 2))
    p_value = (p * v).sum(-1)
    asked = (k * p_read).sum(-1)
    dbeta = p_value - (asked if since is None else asked * since) - (doverlap * kept.overlap).sum(-1)
    doverlap = _past(doverlap, fade, diagonal=False).mul_(-beta[:, :, None])
    dq = torch.bmm(dy_read, before.transpose(1, 2)).baddbmm_(dscores, k)
    dk = _rows_times(kept.until, torch.bmm(kept.correction, later.transpose(1, 2)))
    dk.addcmul_(p_read, strength[:, :, None], value=-1)
    dk.baddbmm_(dscores.transpose(1, 2), q).baddbmm_(doverlap + doverlap.transpose(1, 2), k)
    grads = [dq, dk, p.mul_(beta[:, :, None]), dbeta]
    along = (dq * q).sum(-1)
    if fade is not None:
        grads.append(_gate_gradient(along - beta * p_value, (later * after).sum((1, 2))[:, None], documents))
    if kept.q_size is not None and kept.k_size is not None:
        dq.addcmul_(q, along[:, :, None], value=-1).mul_(kept.q_size)
        dk.addcmul_(k, (dk * k).sum(-1, keepdim=True), value=-1).mul_(kept.k_size)
    return grads, dstates[0]


def _carry_back(
    q: Tensor, k: Tensor, strength: Tensor, dy: Tensor, dy_read: Tensor, dstate: Tensor, kept: _Kept
) -> tuple[Tensor, Tensor]:
    """P (M,C,V) and the gradients of the states around the chunks (N+1,G,K,V): the transposed system, chunk by chunk."""
    (steps, rows, key, value), chunk = (len(kept.states) - 1, *kept.states.shape[1:]), k.shape[1]
    inverse = kept.inverse if kept.fade is None else kept.inverse * kept.fade
    p = torch.bmm(inverse.transpose(1, 2), torch.bmm(kept.scores.transpose(1, 2), dy))
    reach = _rows_times(kept.until, torch.bmm(kept.inverse.transpose(1, 2), k))
    dstates = torch.empty_like(kept.states)
    dstates[-1] = dstate
    torch.bmm(q.transpose(1, 2), dy_read, out=dstates[:-1].view(-1, key, value))
    asks = (k * strength[:, :, None]).view(steps, rows, chunk, key).transpose(2, 3)
    each, z = p.view(steps, rows, chunk, value), reach.view(steps, rows, chunk, key)
    gates = None if kept.whole is None else kept.whole.view(steps, rows, 1, 1)
    for n in range(steps - 1, -1, -1):
        each[n].baddbmm_(z[n], dstates[n + 1])
        dstates[n].add_(dstates[n + 1]) if gates is None else dstates[n].addcmul_(dstates[n + 1], gates[n])
        dstates[n].baddbmm_(asks[n], each[n], alpha=-1)
    return p, dstates


def _gate_gradient(local: Tensor, end: Tensor, documents: Tensor | None) -> Tensor:
    """Sums of `local` (M,C) from each token to the end of the chunk, plus `end` (M,1); not beyond its own document."""
    if documents is None:
        return local.flip(1).cumsum(1).flip(1) + end
    same = (documents[:, :, None] == documents[:, None, :]).tril().to(local.dtype)
    last = (documents == documents[:, -1:]).to(local.dtype)
    return torch.bmm(local[:, None, :], same)[:, 0] + end * last


class _ChunkedDeltaRule(torch.autograd.Function):
    """The chunked form, section by section, with the backward pass derived in this file's docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        g_log: Tensor | None,
        state: Tensor | None,
        options: _Options,
    ) -> tuple[Tensor, Tensor]:
        kind, chunk, (batch, _, heads, key), value = _kind(v), options.chunk, k.shape, v.shape[-1]
        final = k.new_zeros(batch, heads, key, value, dtype=kind) if state is None else state.clone()
        y = torch.empty_like(v, memory_format=torch.contiguous_format)
        kept: list[Tensor | None] = []
        with torch.autocast(k.device.type, enabled=False):
            for at in _sections(k, v, chunk):
                q_, k_, v_, beta_ = (_to_chunks(x, at, chunk, kind) for x in (q, k, v, beta))
                decays = _decays(g_log, at, chunk, kind)
                section, keep = _forward_section(q_, k_, v_, beta_, decays, final[at[0]].flatten(0, 1), options)
                _from_chunks(section, y, at)
                final[at[0]] = keep.states[-1].view(-1, heads, key, value)
                kept += keep if g_log is not None else keep._replace(states=keep.states[:1].clone())
        if any(ctx.needs_input_grad):
            hold(ctx, q, k, v, beta, g_log, *kept)
        ctx.options, ctx.has_state = options, state is not None
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, beta, g_log, *kept = held(ctx)
        scale, chunk, _, resets = ctx.options
        kind, width = _kind(v), len(_Kept._fields)
        inputs = (q, k, v, beta) if g_log is None else (q, k, v, beta, g_log)
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]
        dstate = dfinal.clone()
        with torch.autocast(k.device.type, enabled=False):
            for n, at in reversed(list(enumerate(_sections(k, v, chunk)))):
                q_, k_, v_, beta_, dy_ = (_to_chunks(x, at, chunk, kind) for x in (q, k, v, beta, dy))
                keep, end = _Kept(*kept[n * width : (n + 1) * width]), dstate[at[0]].flatten(0, 1)
                documents = _to_chunks(g_log <= _RESET, at, chunk, torch.int64).cumsum(1) if resets else None
                parts, first = _backward_section(q_, k_, v_, beta_, dy_, end, keep, scale, documents)
                for part, grad in zip(parts, grads, strict=True):
                    _from_chunks(part, grad, at)
                dstate[at[0]] = first.view(-1, *dstate.shape[1:])
        dg = None if g_log is None else grads[4].masked_fill_(g_log <= _RESET, 0.0)
        return *grads[:4], dg, dstate if ctx.has_state else None, None
