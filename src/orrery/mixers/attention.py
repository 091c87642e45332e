"""Softmax attention: multi-head, grouped-query, sliding-window; with rotary positions.

Paper: Attention Is All You Need (arXiv 1706.03762); grouped queries 2305.13245; rotary positions 2104.09864;
    sliding window 2310.06825; query-key norm 2010.04245; output gate 2505.06708.

Equation: per head  y_t = sum_{s in N(t)} softmax_s( q_t . k_s / sqrt(K) ) v_s,
    N(t) = { s <= t, same document, t - s < window };  q, k rotated by their positions;  y = W_o [y_1 .. y_H]
    with `gate`:  y = W_o (sigmoid(W_g x) * [y_1 .. y_H])

Shapes: B batch, T time, D width, H query heads, G key-value heads, K head dimension, S cached keys, W window.

Cost: train and prefill O(T^2 H K) beside the projections (flash kernels: memory O(T)); decode O(S H K) a token;
    state 2 G K min(S, W) numbers.

Differs from the paper: projections have no bias and positions are rotary by default (both are settings); rotary pairs are
    neighbouring dimensions, as in the rotary paper.

Oracle: tests/oracles/attention.py (float64 loops); transformers' GPT-2 and Llama through the exchange maps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.heads import check_heads, count_groups, count_heads, reset_projections, scored_heads, turns
from orrery.nn.memory import distances
from orrery.nn.norms import RMSNorm
from orrery.nn.projection import Projection
from orrery.nn.relative import RelativeBias
from orrery.nn.rotary import Rope, rotate, rotated_size, scaling_of
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear, plain_out
from orrery.nn.timeline import Timeline, fresh_clock
from orrery.ops.fused.gates import sigmoid_gate
from orrery.ops.losses.relations import Scored
from orrery.ops.steps.attention import attention_step
from orrery.ops.steps.row_linear import RowNorm


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(PartConfig):
    """heads None: width / head_dim. kv_heads None: as many. window None: unlimited. rope 0: no positions; else the part
    of each head that is rotated, or how positions are scaled ("yarn(factor=4, original=4096)"). qk_norm: RMSNorm of every query
    and key (a number is its eps; True: 1e-6), with norm_whole over all heads together (OLMo 2). gate: a sigmoid gate on what
    comes out, before the way out ("head": one number for each head). bias: of the projections; out_bias: of the way out alone
    (None: as bias). init_std None: sqrt(2 / 5D). relative: buckets and greatest distance of T5's position bias (1910.10683),
    whose table the first layer holds for all; None: no bias."""

    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int = 64
    window: int | None = None
    rope: Rope = 1.0
    rope_theta: float = 10000.0
    qk_norm: bool | float = False
    norm_whole: bool = False
    gate: bool | str = False
    bias: bool = False
    out_bias: bool | None = None
    dropout: float = 0.0
    init_std: float | None = None
    relative: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        require(self.relative is None or self.window is None, "relative positions and a window do not go together")
        check_heads(self)
        require(isinstance(self.qk_norm, bool) or 0 < self.qk_norm < 1, f"qk_norm is true, false or an eps between 0 and 1, not {self.qk_norm}")
        require(self.gate in (True, False, "head"), f"gate is true, false or 'head', not {self.gate!r}")
        require(self.window is None or self.window > 0, f"window must be positive, not {self.window}")


@state
class AttentionState(NamedTuple):
    """Keys and values of the current document: row b holds min(position, window) of them, from slot 0 on.

    k, v: (B,S,G,K); conv: the projection's last inputs; clock: (B,2).
    """

    k: Tensor
    v: Tensor
    conv: Tensor
    clock: Tensor

    def with_capacity(self, capacity: int) -> AttentionState:
        """The same keys and values in buffers of at least `capacity` slots."""
        more = capacity - self.k.shape[1]
        if more <= 0:
            return self
        k, v = (F.pad(cached, (0, 0, 0, 0, 0, more)) for cached in (self.k, self.v))
        return AttentionState(k, v, self.conv, self.clock)


class Attention(Mixer):
    """Causal softmax attention."""

    Config = AttentionConfig
    State = AttentionState
    config: AttentionConfig
    honours = frozenset({"positions", "bias"})
    examples = (
        {"head_dim": 8},
        {"head_dim": 16, "heads": 4, "kv_heads": 2, "window": 7, "qk_norm": 0.01, "gate": "head", "rope": 0.5, "bias": True},
        {"head_dim": 8, "kv_heads": 2, "qk_norm": True, "norm_whole": True, "gate": True},
    )

    def __init__(self, config: AttentionConfig, place: Place) -> None:
        super().__init__(config, place)
        self.head_dim = config.head_dim
        self.heads = count_heads(config, place)
        self.kv_heads = count_groups(config, self.heads)
        self.scale = self.head_dim**-0.5  # of the scores; whoever holds the part may set another
        self.rotated, self.scaling = rotated_size(config.rope, self.head_dim), scaling_of(config.rope)
        self.packs = type(self) is Attention and "b" not in place.canon
        inner = self.heads * self.head_dim
        gates = 0 if not config.gate else self.heads if config.gate == "head" else inner
        self._parts = [inner + 2 * self.kv_heads * self.head_dim, gates]
        self.inputs = Projection(place, sum(self._parts), bias=config.bias, canon=self._parts[0])  # of q, k, v, and the gate
        self.out = nn.Linear(inner, place.out or place.width, bias=config.bias if config.out_bias is None else config.out_bias)
        whole, eps = config.norm_whole, 1e-6 if config.qk_norm is True else float(config.qk_norm)
        self.q_norm = RMSNorm(self.head_dim * (self.heads if whole else 1), eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim * (self.kv_heads if whole else 1), eps) if config.qk_norm else None
        first = config.relative is not None and place.layer == 0
        self.relative = RelativeBias(self.heads, *config.relative, both=False) if first and config.relative else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with std sqrt(2 / 5D) or as configured; the way out is scaled by 1/sqrt(2 depth) (GPT-2)."""
        reset_projections(self.inputs, self.out, self.config.init_std, self.place)
        for part in (self.q_norm, self.k_norm, self.relative):
            if part is not None:
                part.reset_parameters()

    def mix(self, x: Tensor, state: AttentionState | None, ctx: Context) -> tuple[Tensor, AttentionState | None]:
        time = ctx.timeline
        if time.groups is not None:
            return self._documents(x, ctx), None
        q, k, v, gate, conv = self._project(x, None if state is None else state.conv, ctx)
        fresh = state is None or time.past == 0
        still = time.starts is None and time.lengths is None
        write = not (fresh and time.starts is None) and state is not None and ctx.donate and still and self._fits(state, time, x)
        bias = ctx.bias if self.config.relative is None else self._relative(state, x, ctx, write)
        if fresh and time.starts is None:
            mask = self._mask(None, time, x, 0)
            if ctx.last and bias is None and isinstance(mask, str):
                q, gate, mask = q[:, -1:], None if gate is None else gate[:, -1:], "all"
            y = self._attend(q, k, v, mask, bias)
            kept = _keep(k, v, time, self.config.window)
        elif write and state is not None:
            kept = _write(state, k, v, time)
            span = time.past + x.shape[1]
            if time.even:
                mask = self._mask(None, time, x, time.past)
            else:
                mask = (torch.arange(span, device=x.device) <= time.positions[..., None])[:, None]
            y = self._attend(q, kept[0][:, :span], kept[1][:, :span], mask, bias)
        else:
            old = 0 if state is None else min(time.past, self.config.window or time.past)
            if state is not None and old:
                k, v = torch.cat([state.k[:, :old], k], 1), torch.cat([state.v[:, :old], v], 1)
            y = self._attend(q, k, v, self._mask(state, time, x, old), bias)
            kept = _trim(k, v, state, time, old, self.config.window)
        return self.out(self._gated(y, gate)), AttentionState(*kept, conv, time.clock)

    def _documents(self, x: Tensor, ctx: Context) -> Tensor:
        """A packed row of whole documents (1,N,D), as an encoder has it: those of one length together, each causal."""
        groups = ctx.timeline.groups or ()
        q, k, v, gate, _ = self._project(x, None, ctx)
        bias = self._square(groups[-1][1], ctx, x) if self.config.relative is not None else None
        begin, found = 0, []
        for count, length in groups:
            stop = begin + count * length
            own_q, own_k, own_v = (part[0, begin:stop].unflatten(0, (count, length)) for part in (q, k, v))
            time = Timeline(None, torch.arange(length, device=x.device), None, ctx.timeline.clock, 0)
            mask = self._mask(None, time, own_q, 0)
            y = self._attend(own_q, own_k, own_v, mask, None if bias is None else bias[..., :length, :length])
            found.append(y.flatten(0, 1))
            begin = stop
        y = torch.cat(found)[None]
        return self.out(self._gated(y, gate))

    def _square(self, length: int, ctx: Context, x: Tensor) -> Tensor | None:
        """T5's bias of one document (1,H,T,T), which the first layer leaves for the others."""
        shared = ctx.shared if ctx.shared is not None else {}
        if self.relative is not None:
            shared["relative"] = self.relative.square(length).to(x.dtype)
        return shared.get("relative")

    def _gated(self, y: Tensor, gate: Tensor | None) -> Tensor:
        """What the heads put out (...,H*K) times its gate (...,H*K) or (...,H)."""
        if gate is None or self.config.gate is True:
            return y if gate is None else sigmoid_gate(gate, y)
        return (y.unflatten(-1, (self.heads, -1)) * torch.sigmoid(gate)[..., None]).flatten(-2)

    def queries_keys_values(self, x: Tensor, ctx: Context) -> tuple[Tensor, ...]:
        """Queries (B,T,H*K), keys and values (B,T,G*K) before they are normed and rotated; what distillation compares."""
        p = self.inputs(x, None, ctx)[0].split(self._parts, -1)[0] if self.config.gate else self.inputs(x, None, ctx)[0]
        return p.split([size * self.head_dim for size in (self.heads, self.kv_heads, self.kv_heads)], -1)

    def scored(self, x: Tensor, ctx: Context) -> Scored:
        """What the scores of whole sequences are made of; distillation compares them, or what a softmax makes of them."""
        q, k, _, _, _ = self._project(x, None, ctx)
        return scored_heads(q * self.scale, k, None, None if self.config.window is None else self.config.window - 1)

    def _project(self, x: Tensor, conv: Tensor | None, ctx: Context) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
        """Q (B,T,H,K), k and v (B,T,G,K), rotated and normed; the raw gate (B,T,H*K); the last inputs of Canon-B."""
        canon = self.inputs.conv if self.q_norm is not None else None  # Canon-B stands behind the norms
        p, kept = self.inputs(x, conv, ctx) if canon is None else (self.inputs.linear(x), x)
        p, gate = p.split(self._parts, -1) if self.config.gate else (p, None)
        heads, groups = p.unflatten(-1, (-1, self.head_dim)), [self.heads, self.kv_heads, self.kv_heads]
        q, k, v = heads.split(groups, 2)
        if self.q_norm is not None and self.k_norm is not None:
            if self.config.norm_whole:
                q, k = self.q_norm(q.flatten(2)).view(q.shape), self.k_norm(k.flatten(2)).view(k.shape)
            else:
                q, k = self.q_norm(q), self.k_norm(k)
        if canon is not None:
            p, kept = canon(torch.cat([q, k, v], 2).flatten(2), conv, ctx)
            q, k, v = p.unflatten(-1, (-1, self.head_dim)).split(groups, 2)
        if self.rotated:
            table = turns(x, ctx, self.rotated, self.config.rope_theta, self.scaling)
            if self.q_norm is None:
                heads = rotate(heads, table, self.heads + self.kv_heads)  # values pass: one tensor, one gradient
                q, k, v = heads.split(groups, 2)
            else:
                q, k = rotate(q, table), rotate(k, table)
        return q, k, v, gate, kept

    def _relative(self, state: AttentionState | None, x: Tensor, ctx: Context, slots: bool) -> Tensor | None:
        """T5's bias (1|B,H,T,S) of this call's columns, which the first layer leaves for the others; the caller's is added.

        `slots`: a column's number is its key's position.
        """
        shared, time = ctx.shared if ctx.shared is not None else {}, ctx.timeline
        if self.relative is not None and slots:
            found = time.positions[..., None] - torch.arange(time.past + x.shape[1], device=x.device)
            shared["relative"] = self.relative(-found.clamp(min=0)).to(x.dtype)
        elif self.relative is not None:
            found = distances(time, None if state is None or time.past == 0 else state.clock, x.shape[1], None)
            shared["relative"] = self.relative(-found.clamp(min=0)).to(x.dtype)
        own = shared.get("relative")
        return ctx.bias if own is None else own if ctx.bias is None else own + ctx.bias

    def stepper(self, norm: RowNorm, state: AttentionState, run: Stepping) -> Step | None:
        behind = self.q_norm is not None and self.inputs.conv is not None
        if behind or self.config.relative is not None or not (plain_linear(self.inputs.linear) and plain_out(self.out)):
            return None
        attend, y = self.heads_step(run.x, norm, state, run)
        return in_order(attend, linear_step(y, self.out, run.x, add=True))

    def heads_step(self, x: Tensor, norm: RowNorm, state: AttentionState, run: Stepping) -> tuple[Step, Tensor]:
        """What all heads put out for one token x (B,D), as a step and the y (B,H*K) that it writes."""
        batch = len(x)
        p, y = x.new_empty(batch, self.inputs.linear.out_features), x.new_empty(batch, self.out.in_features)
        k, v = (self._ring(cached, run) for cached in (state.k, state.v))
        table = run.turns(self.rotated, self.config.rope_theta, self.scaling)
        norms = None
        if self.q_norm is not None and self.k_norm is not None:
            norms = (self.q_norm.weight, self.k_norm.weight, self.q_norm.eps)
        project = self.inputs.step(x, state.conv, p, norm)
        return in_order(project, attention_step(p, k, v, run.positions, table, y, norms, self.scale)), y

    def _ring(self, cached: Tensor, run: Stepping) -> Tensor:
        """Cached keys or values (B,S,G,K) as a ring (B,G,K,slots): position p in slot p mod (window, or capacity without one)."""
        slots = min(self.config.window or run.capacity, run.capacity)

        def write(ring: Tensor, cached: Tensor) -> None:
            held = min(slots, cached.shape[1])
            for row, position in enumerate(run.positions.tolist()):
                kept = cached[row, :held].flatten(1).t().contiguous()  # a whole matrix turns quicker than its heads
                ring[row].view(len(kept), slots)[:, :held] = kept.roll(position % slots, 1) if position > slots else kept

        return run.own(cached, cached.new_empty(len(cached), *cached.shape[2:], slots), write)  # a slot is read once it is written

    def _fits(self, state: AttentionState, time: Timeline, x: Tensor) -> bool:
        """Whether new keys go into the donated buffer at the slots of their positions."""
        span = time.past + x.shape[1]
        return span <= state.k.shape[1] and (self.config.window is None or span <= self.config.window)

    def _mask(self, state: AttentionState | None, time: Timeline, x: Tensor, old: int) -> Tensor | str:
        """Which of `old` cached and T new keys each query sees: "causal", "all", or bool (1|B,1,T,old+T)."""
        length, window = x.shape[1], self.config.window
        even = time.starts is None and time.even
        if even and (window is None or time.past + length <= window):
            if old == 0:
                return "causal"
            if length == 1:
                return "all"
        device = x.device
        steps = torch.arange(length, device=device)
        if even:
            distance = (steps[:, None] + old) - torch.arange(old + length, device=device)
            seen = (distance >= 0) & (distance < (window or math.inf))
            return seen[None, None]
        held = _held(state, time, window)  # (B,) cached keys of each row
        document = torch.zeros(1, length, dtype=torch.int64, device=device) if time.starts is None else time.starts.cumsum(1)
        cached = torch.arange(old, device=device)
        see_old = (document == 0)[:, :, None] & (cached < held[:, None])[:, None, :]
        see_new = (document[:, :, None] == document[:, None, :]) & (steps[:, None] >= steps)
        if window is not None:
            see_old = see_old & ((held[:, None, None] - cached) + steps[:, None] < window)
            see_new = see_new & (steps[:, None] - steps < window)
        see_new = see_new.expand(see_old.shape[0], -1, -1)
        return torch.cat([see_old, see_new], 2)[:, None]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | str, bias: Tensor | None) -> Tensor:
        """Q (B,T,H,K), k and v (B,S,G,K) -> (B,T,H*K)."""
        dropout = self.config.dropout if self.training else 0.0
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        grouped = self.kv_heads != self.heads
        causal, extra = mask == "causal" if isinstance(mask, str) else False, None if isinstance(mask, str) else mask
        if bias is not None:
            extra = bias if extra is None else bias.masked_fill(~extra, -math.inf)
            if causal:
                future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
                extra, causal = extra.masked_fill(future, -math.inf), False
        y = F.scaled_dot_product_attention(q, k, v, extra, dropout, is_causal=causal, scale=self.scale, enable_gqa=grouped)
        return y.transpose(1, 2).flatten(2)

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The attention matrix (B,H,T,T) of a whole sequence; row t sums to 1."""
        q, k, _, _, _ = self._project(x, None, ctx)
        k = k.repeat_interleave(self.heads // self.kv_heads, 2)
        scores = torch.einsum("bthk,bshk->bhts", q, k) * self.scale
        mask = self._mask(None, ctx.timeline, x, 0)
        if isinstance(mask, str):
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        return scores.masked_fill(~mask, -math.inf).softmax(-1)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None, capacity: int = 0) -> AttentionState:
        """No keys yet; `capacity` slots are set aside for a caller that donates its state."""
        k, v = (torch.zeros(batch, capacity, self.kv_heads, self.head_dim, device=device, dtype=dtype) for _ in range(2))
        return AttentionState(k, v, self.inputs.init_state(batch, device, dtype), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        kept = length if self.config.window is None else min(length, self.config.window)
        return 2 * kept * self.kv_heads * self.head_dim * self.out.weight.element_size() + self.inputs.state_bytes()

    def flops(self, length: int) -> int:
        window = min(self.config.window or length, length)
        pairs = window * (window + 1) // 2 + (length - window) * window
        inner = self.heads * self.head_dim
        return self.inputs.flops(length) + 2 * inner * self.out.out_features * length + 4 * inner * pairs


def _held(state: AttentionState | None, time: Timeline, window: int | None) -> Tensor:
    """(B,) keys that each row's cache holds before the call."""
    if state is None:
        return time.clock.new_zeros(len(time.clock))
    held = state.clock[:, 1]
    return held if window is None else held.clamp(max=window)


def _keep(k: Tensor, v: Tensor, time: Timeline, window: int | None) -> tuple[Tensor, Tensor]:
    """The cache after a first call without document starts: what is valid, or the last `window` of it."""
    if time.lengths is not None:
        return _trim(k, v, None, time, 0, window)
    if window is not None:
        k, v = k[:, -window:], v[:, -window:]
    return (k, v) if k.requires_grad else (k.contiguous(), v.contiguous())


def _write(state: AttentionState, k: Tensor, v: Tensor, time: Timeline) -> tuple[Tensor, Tensor]:
    """Put new keys into the donated buffers, at the slots of their positions."""
    if time.even:
        state.k[:, time.past : time.past + k.shape[1]] = k
        state.v[:, time.past : time.past + k.shape[1]] = v
    else:
        rows = torch.arange(len(k), device=k.device)[:, None]
        state.k[rows, time.positions] = k
        state.v[rows, time.positions] = v
    return state.k, state.v


def _trim(
    k: Tensor, v: Tensor, state: AttentionState | None, time: Timeline, old: int, window: int | None
) -> tuple[Tensor, Tensor]:
    """The cache after a call: of `old` cached and T new slots, each row keeps the last min(position, window) valid ones."""
    length = k.shape[1] - old
    if time.starts is None and time.lengths is None and time.even:
        keep = old + length if window is None else min(old + length, window)
        return k[:, k.shape[1] - keep :].clone(), v[:, v.shape[1] - keep :].clone()
    held = _held(state, time, window)
    new = time.lengths if time.lengths is not None else torch.full_like(held, length)
    kept = time.clock[:, 1] if window is None else time.clock[:, 1].clamp(max=window)
    slots = torch.arange(int(kept.max()), device=k.device)
    stream = (held + new - kept)[:, None] + slots  # index into [cached of this row, new of this row]
    index = torch.where(stream < held[:, None], stream, stream - held[:, None] + old).clamp(max=k.shape[1] - 1)
    rows = torch.arange(len(k), device=k.device)[:, None]
    empty = (slots >= kept[:, None])[..., None, None]
    return k[rows, index].masked_fill(empty, 0.0), v[rows, index].masked_fill(empty, 0.0)


register(
    "attention",
    mixer="Attention",
    summary="Softmax attention with rotary positions, grouped queries and an optional sliding window",
    paper="1706.03762",
    year=2017,
    tags=("causal", "parallel", "cache", "positions"),
)
