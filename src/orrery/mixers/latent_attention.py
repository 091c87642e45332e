"""Multi-head latent attention (MLA): keys and values of all heads come from one small vector a token, which alone is cached.

Paper: DeepSeek-V2 (arXiv 2405.04434, section 2.1); without positions as in Kimi Linear (2510.26692, section 4); the gate of a
    head as in Gated Attention for LLMs (2505.06708).

Equation:  c_t = RMSNorm(W_c x_t),  r_t = rot_t(W_r x_t);  per head  k_t = [r_t, W_k c_t],  v_t = W_v c_t,
    q_t = [rot_t(a_t), b_t]  with  [a_t, b_t] = W_q x_t,  or  W_q RMSNorm(W_z x_t)  with `query_rank`
    y_t = sum_{s in N(t)} softmax_s( q_t . k_s / sqrt(R + N) ) v_s;   N(t) = { s <= t, same document, t - s < window }
    scores times (0.1 m' ln s + 1)^2 where positions are scaled so (:mod:`orrery.nn.rotary`)
    with `gate`  y_t <- sigmoid(g . x_t) y_t;   out = W_o [y_1 .. y_H]
    The same, absorbed (2405.04434, section 2.1.2):  u_t = W_k^T b_t;  y_t = W_v sum_s softmax_s( (rot_t(a_t) . r_s + u_t . c_s)
    / sqrt(R + N) ) c_s:  one key of R + C numbers for all heads, and nothing is expanded

Shapes: B batch, T time, D width, H heads, N own part of a head's key, R part that all heads share, V value size, C rank of keys
    and values, Q rank of queries, S cached tokens, W window.

Cost: train and prefill 2 D (H (R + N) + C + R + H V) + 2 C H (N + V) a token and 2 H (R + N + V) a pair; decode, absorbed, the same a
    token and 2 H (R + 2 C) a cached one; state (C + R) min(S, W) numbers, where attention's is 2 H N.

Differs from the paper: rotated features come first in a head; a window is an addition. Which form
    computes is decided by the operations that each would take.

Oracle: tests/oracles/latent_attention.py (float64 loops); transformers' Kimi Linear, Ling and DeepSeek-V3 through exchange maps.
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
from orrery.nn.heads import count_heads, turns
from orrery.nn.memory import distances, join, keep
from orrery.nn.norms import RMSNorm
from orrery.nn.projection import Projection
from orrery.nn.rotary import RopeScaling, check_turns, rotate, rotated_size, scaling_of
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, norm_of, plain_linear
from orrery.nn.timeline import Timeline, fresh_clock
from orrery.ops.steps.latent_attention import latent_step
from orrery.ops.steps.row_linear import RowNorm, row_norm_into


@dataclass(frozen=True, kw_only=True)
class LatentAttentionConfig(PartConfig):
    """heads None: width / head_dim. head_dim: N. value_dim V None: N. rank C None: 4 N. shared R None: N / 2. query_rank Q None: W_q is
    one matrix. rope False: the shared part is not rotated; or how positions are scaled. gate: a number per head.
    init_std None: sqrt(2 / (5 fan in))."""

    heads: int | None = None
    head_dim: int = 64
    value_dim: int | None = None
    rank: int | None = None
    shared: int | None = None
    query_rank: int | None = None
    rope: RopeScaling | bool = True
    rope_theta: float = 10000.0
    window: int | None = None
    gate: bool = False
    dropout: float = 0.0
    norm_eps: float = 1e-6
    init_std: float | None = None

    def __post_init__(self) -> None:
        for name in ("heads", "head_dim", "value_dim", "rank", "query_rank", "window"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be positive, not {value}")
        require(self.shared is None or self.shared >= 0, f"shared must be 0 or more, not {self.shared}")
        check_turns(self.rope, self.rope_theta)
        require(not (self.rope and (self.shared or 0) % 2), f"shared must be even where it is rotated, not {self.shared}")
        require(0 <= self.dropout < 1, f"dropout must lie in [0, 1), not {self.dropout}")


@state
class LatentState(NamedTuple):
    """What keys and values of the current document come from: row b holds min(position, window - 1) of them, from slot 0 on.

    latent: c and r side by side (B,S,C+R); conv: the projection's last inputs; clock: (B,2).
    """

    latent: Tensor
    conv: Tensor
    clock: Tensor

    def with_capacity(self, capacity: int) -> LatentState:
        """The same in a buffer of at least `capacity` slots."""
        more = capacity - self.latent.shape[1]
        return self if more <= 0 else self._replace(latent=F.pad(self.latent, (0, 0, 0, more)))


class LatentAttention(Mixer):
    """Causal softmax attention over a compressed cache."""

    Config = LatentAttentionConfig
    State = LatentState
    config: LatentAttentionConfig
    honours = frozenset({"positions"})
    examples = (
        {"head_dim": 8},
        {"head_dim": 8, "heads": 3, "value_dim": 12, "rank": 10, "shared": 6, "query_rank": 14, "window": 7, "gate": True},
        {"head_dim": 8, "value_dim": 4, "rank": 6, "shared": 2, "rope": False},
    )

    def __init__(self, config: LatentAttentionConfig, place: Place) -> None:
        super().__init__(config, place)
        self.head_dim, self.value_dim = config.head_dim, config.value_dim or config.head_dim
        self.rank = config.rank or 4 * config.head_dim
        self.shared = 2 * (config.head_dim // 4) if config.shared is None else config.shared
        self.heads, self.scaling = count_heads(config, place), scaling_of(config.rope)
        self.rotated = rotated_size(1.0 if config.rope is True else config.rope, self.shared) if config.rope else 0
        self.scale = (self.shared + self.head_dim) ** -0.5 * (1.0 if self.scaling is None else self.scaling.score_gain)
        asking = self.heads * (self.shared + self.head_dim)
        self.first, self.compressed = config.query_rank or asking, self.rank + self.shared
        self._parts = [self.first, self.compressed, self.heads if config.gate else 0]
        self.inputs = Projection(place, sum(self._parts), canon=sum(self._parts[:2]))  # of W_q or W_z; W_c, W_r; the gate
        self.query_norm = RMSNorm(config.query_rank, config.norm_eps) if config.query_rank else None
        self.query = nn.Linear(config.query_rank, asking, bias=False) if config.query_rank else None
        self.norm = RMSNorm(self.rank, config.norm_eps)
        self.expand = nn.Linear(self.rank, self.heads * (self.head_dim + self.value_dim), bias=False)  # head by head W_k, W_v
        self.out = nn.Linear(self.heads * self.value_dim, place.width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with std sqrt(2 / (5 fan in)) or as configured; the way out is scaled by 1/sqrt(2 depth) (GPT-2)."""
        for linear in (self.inputs.linear, self.query, self.expand):
            if linear is not None:
                nn.init.normal_(linear.weight, std=self.config.init_std or math.sqrt(2 / (5 * linear.in_features)))
        std = self.config.init_std or math.sqrt(2 / (5 * self.place.width))
        nn.init.normal_(self.out.weight, std=std / math.sqrt(2 * self.place.depth))
        for part in (self.inputs.conv, self.query_norm, self.norm):
            if part is not None:
                part.reset_parameters()

    def mix(self, x: Tensor, state: LatentState | None, ctx: Context) -> tuple[Tensor, LatentState]:
        time = ctx.timeline
        alone = ctx.last and time.starts is None and time.lengths is None
        queries = slice(x.shape[1] - 1, None) if alone else slice(None)
        q, new, gate, conv = self._project(x, None if state is None else state.conv, ctx, queries)
        clock = None if state is None else state.clock
        write = state is not None and ctx.donate and self._fits(state, time, x.shape[1])
        if write and state is not None:
            cache, kept = _write(state.latent, new, time), state.latent
        else:
            cache = join(None if state is None else state.latent, new, time, self._memory)
            (kept,) = keep((cache,), time, clock, self._memory)
        y = self._attend(q, cache, self._mask(time, clock, x.shape[1], queries, write))
        if gate is not None:
            y = y * torch.sigmoid(gate)[..., None]
        return self.out(y.flatten(2)), LatentState(kept, conv, time.clock)

    @property
    def _memory(self) -> int | None:
        """Earlier tokens that a token sees; None: all of them."""
        return None if self.config.window is None else self.config.window - 1

    def _project(
        self, x: Tensor, conv: Tensor | None, ctx: Context, queries: slice = slice(None)
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Chosen queries (B,T',H,R+N); c and r (B,T,C+R); the raw gate (B,T',H); the last inputs of Canon-B."""
        p, conv = self.inputs(x, conv, ctx)
        low, compressed, gate = p.split(self._parts, -1)
        low, gate = low[:, queries], gate[:, queries]
        if self.query is not None and self.query_norm is not None:
            low = self.query(self.query_norm(low))
        q = low.unflatten(-1, (self.heads, -1))
        c, r = compressed.split([self.rank, self.shared], -1)
        if self.rotated:
            table = turns(x, ctx, self.rotated, self.config.rope_theta, self.scaling)
            q, r = rotate(_paired(q), table[..., queries, :]), rotate(_paired(r[:, :, None]), table)[:, :, 0]  # 2405.04434 eq. 14, 15
        return q, torch.cat([self.norm(c), r], -1), gate if self.config.gate else None, conv

    def _attend(self, q: Tensor, cache: Tensor, mask: Tensor | str) -> Tensor:
        """Q (B,T,H,R+N), cache (B,S,C+R) -> (B,T,H,V), in the form that takes fewer operations."""
        expanded, absorbed = self._costs(q.shape[1], cache.shape[1])
        if absorbed < expanded and plain_linear(self.expand):
            return self._absorbed(q, cache, mask)
        return self._expanded(q, cache, mask)

    def _costs(self, asked: int, held: int) -> tuple[int, int]:
        """Operations a head of the expanded and of the absorbed form, behind the projections."""
        both, wide = self.head_dim + self.value_dim, self.rank + self.shared
        expanded = held * (self.rank * both + asked * (both + self.shared))
        return 2 * expanded, 2 * asked * (self.rank * both + 2 * held * wide)

    def _expanded(self, q: Tensor, cache: Tensor, mask: Tensor | str) -> Tensor:
        """Keys and values of every head, then attention as usual. Fused kernels want keys and values of one size."""
        c, r = cache.split([self.rank, self.shared], -1)
        own, v = self.expand(c).unflatten(-1, (self.heads, -1)).split([self.head_dim, self.value_dim], -1)
        k = torch.cat([r[:, :, None].expand(-1, -1, self.heads, -1), own], -1)
        more = v.shape[-1] - k.shape[-1]
        q, k, v = F.pad(q, (0, max(more, 0))), F.pad(k, (0, max(more, 0))), F.pad(v, (0, max(-more, 0)))
        y = self._softmax(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
        return y.transpose(1, 2)[..., : self.value_dim]

    def _absorbed(self, q: Tensor, cache: Tensor, mask: Tensor | str) -> Tensor:
        """W_k goes into the queries and W_v behind the mean of the cache (2405.04434, section 2.1.2)."""
        into, back = self.expand.weight.view(self.heads, -1, self.rank).split([self.head_dim, self.value_dim], 1)
        a, b = q.split([self.shared, self.head_dim], -1)
        u = torch.cat([torch.einsum("bthn,hnc->bthc", b, into), a], -1)
        if u.shape[1] == 1:  # the heads of one token as so many queries of one head
            y = self._softmax(u, cache[:, None], cache[:, None], mask)
        else:
            each = cache[:, None].expand(-1, self.heads, -1, -1)
            y = self._softmax(u.transpose(1, 2), each, each, mask).transpose(1, 2)
        return torch.einsum("bthc,hvc->bthv", y[..., : self.rank], back)

    def _softmax(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | str) -> Tensor:
        dropout, causal = self.config.dropout if self.training else 0.0, isinstance(mask, str) and mask == "causal"
        seen = None if isinstance(mask, str) else mask
        return F.scaled_dot_product_attention(q, k, v, seen, dropout, is_causal=causal, scale=self.scale)

    def _mask(self, time: Timeline, clock: Tensor | None, length: int, queries: slice, write: bool) -> Tensor | str:
        """Which columns each query sees: "causal", "all", or bool (1|B,1,T',S). `write`: a column's number is its position."""
        memory, even = self._memory, time.starts is None and time.even
        if even and (memory is None or time.past + length <= memory + 1):
            if length == 1 or queries.start:
                return "all"
            if time.past == 0:
                return "causal"
        if write and not time.even:
            return (torch.arange(time.past + length, device=time.clock.device) <= time.positions[:, queries, None])[:, None]
        return (distances(time, clock, length, memory, queries) >= 0)[:, None]

    def _fits(self, state: LatentState, time: Timeline, length: int) -> bool:
        """Whether new tokens go into the donated buffer at the slots of their positions."""
        plain = self._memory is None and time.starts is None and time.lengths is None and time.past > 0
        return plain and time.past + length <= state.latent.shape[1]

    def stepper(self, norm: RowNorm, state: LatentState, run: Stepping) -> Step | None:
        maps = [each for each in (self.inputs.linear, self.query, self.expand, self.out) if each is not None]
        if not plain_linear(*maps):
            return None
        x, batch = run.x, len(run.x)
        p, y = x.new_empty(batch, sum(self._parts)), x.new_empty(batch, self.out.in_features)
        steps, q = [self.inputs.step(x, state.conv, p, norm)], p
        if self.query is not None:
            low, q = x.new_empty(batch, self._parts[0]), x.new_empty(batch, self.query.out_features)
            steps += [row_norm_into(p[:, : self._parts[0]], norm_of(self.query_norm), low), linear_step(low, self.query, q)]
        table = run.turns(self.rotated, self.config.rope_theta, self.scaling)
        cache, weight = self._ring(state, run), self.expand.weight.view(self.heads, -1, self.rank)
        gain = self.norm.weight, self.norm.eps
        attend = latent_step(q, p, self._parts[0], cache, run.positions, table, weight, gain, y, self.scale)
        return in_order(*steps, attend, linear_step(y, self.out, x, add=True))

    def _ring(self, state: LatentState, run: Stepping) -> Tensor:
        """The cache as a ring (B,slots,C+R): position p in slot p mod (window, or capacity without one)."""
        slots = min(self.config.window or run.capacity, run.capacity)

        def write(ring: Tensor, latent: Tensor) -> None:
            for row, position in enumerate(run.positions.tolist()):
                held = min(position, slots if self._memory is None else self._memory)
                places = torch.arange(position - held, position) % slots
                ring[row, places] = latent[row, :held]

        size = self.rank + self.shared
        return run.own(state.latent, state.latent.new_empty(len(state.latent), slots, size), write)  # a slot is read once it is written

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The attention matrix (B,H,T,T) of a whole sequence; row t sums to 1."""
        q, cache, _, _ = self._project(x, None, ctx)
        c, r = cache.split([self.rank, self.shared], -1)
        k = self.expand(c).unflatten(-1, (self.heads, -1))[..., : self.head_dim]
        a, b = q.split([self.shared, self.head_dim], -1)
        scores = torch.einsum("bthr,bsr->bhts", a, r) + torch.einsum("bthn,bshn->bhts", b, k)
        seen = distances(ctx.timeline, None, x.shape[1], self._memory) >= 0
        return (scores * self.scale).masked_fill(~seen[:, None], -math.inf).softmax(-1)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None, capacity: int = 0) -> LatentState:
        """Nothing yet; `capacity` slots are set aside for a caller that donates its state."""
        latent = torch.zeros(batch, capacity, self.rank + self.shared, device=device, dtype=dtype)
        return LatentState(latent, self.inputs.init_state(batch, device, dtype), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        kept = length if self._memory is None else min(length, self._memory)
        return kept * (self.rank + self.shared) * self.out.weight.element_size() + self.inputs.state_bytes()

    def flops(self, length: int) -> int:
        window = min(self.config.window or length, length)
        pairs = window * (window + 1) // 2 + (length - window) * window
        both = self.head_dim + self.value_dim
        return self._outer_flops(length) + 2 * self.heads * (self.rank * both * length + (both + self.shared) * pairs)

    def step_flops(self, length: int) -> int:
        """Of a token at a time, in the cheaper form for each."""
        window = self.config.window or length
        return self._outer_flops(length) + self.heads * sum(min(self._costs(1, min(held, window))) for held in range(1, length + 1))

    def _outer_flops(self, length: int) -> int:
        maps = [linear for linear in (self.query, self.out) if linear is not None]
        return self.inputs.flops(length) + 2 * sum(each.in_features * each.out_features for each in maps) * length


def _paired(x: Tensor) -> Tensor:
    """X where pairs of features may be read as complex numbers, which must begin at even places; else a copy."""
    even = x.storage_offset() % 2 == 0 and not any(stride % 2 for stride in x.stride()[:-1])
    return x if even else x.clone(memory_format=torch.contiguous_format)


def _write(buffer: Tensor, new: Tensor, time: Timeline) -> Tensor:
    """Put new tokens into a donated buffer at the slots of their positions; what is filled of it."""
    if time.even:
        buffer[:, time.past : time.past + new.shape[1]] = new
    else:
        buffer[torch.arange(len(new), device=new.device)[:, None], time.positions] = new.to(buffer.dtype)
    return buffer[:, : time.past + new.shape[1]]


register(
    "latent-attention",
    mixer="LatentAttention",
    summary="Multi-head latent attention: keys and values of all heads from one small cached vector a token",
    paper="2405.04434",
    year=2024,
    tags=("causal", "parallel", "cache", "positions"),
)
