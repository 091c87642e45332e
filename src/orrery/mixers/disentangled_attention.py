"""Disentangled attention: content and relative position have vectors of their own, and each looks for the other.

Paper: DeBERTa (arXiv 2006.03654, section 3.1); logarithmic buckets and shared projections: DeBERTa v2 and v3 (2111.09543).

Equation: per head, with d = bucket(t - s) and R the table of relative positions (normed),
    y_t = sum_s softmax_s( (q_t . k_s + q_t . (W_k R_d) + k_s . (W_q R_d)) / sqrt(3 K) ) v_s;   y = W_o [y_1 .. y_H]
    bucket(r) = r where |r| <= B/2, else  sign(r) (B/2 + ceil( log(|r| / (B/2)) / log((M - 1) / (B/2)) (B/2 - 1) ))

Shapes: B batch, T time, D width, H heads, K head dimension, 2 S relative positions (S the buckets on one side, or M without).

Cost: O(T^2 H K) as attention, O(T H K S) for each of the two position terms, and D^2 S to project the table in every layer.
    Only the positions that occur are projected. No state.

Differs from the paper: the map of position keys has no bias, which the softmax would take away; the table is not
    dropped out; every layer has its own unless `shared_table` is set, as `deberta` does.

Oracle: tests/oracles/disentangled_attention.py (float64 loops); transformers' DeBERTa-v2 through `deberta`'s exchange map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.marks import no_decay
from orrery.nn.norms import LayerNorm
from orrery.nn.packing import pack_timeline
from orrery.nn.projection import Projection

TERMS = ("c2p", "p2c")


@dataclass(frozen=True, kw_only=True)
class DisentangledAttentionConfig(PartConfig):
    """buckets: S, relative positions on either side; 0: one for each distance up to max_positions, beyond which all are one.
    max_positions: M. terms: "c2p" (content looks for position), "p2c" (position for content). shared_key: positions go through the
    content's own maps; else through maps of their own. norm_positions, eps: a LayerNorm on the table. shared_table: the first layer's
    table serves all layers of a model; else each has its own."""

    head_dim: int = 64
    buckets: int = 256
    max_positions: int = 512
    terms: tuple[str, ...] = TERMS
    shared_key: bool = True
    norm_positions: bool = True
    shared_table: bool = False
    eps: float = 1e-7
    bias: bool = True
    dropout: float = 0.0
    init_std: float = 0.02

    def __post_init__(self) -> None:
        require(self.head_dim > 0, f"head_dim must be positive, not {self.head_dim}")
        require(set(self.terms) <= set(TERMS) and len(set(self.terms)) == len(self.terms) > 0, f"terms {self.terms} must be some of {TERMS}")
        fits = self.buckets == 0 or (self.buckets >= 4 and self.buckets % 2 == 0 and self.max_positions > self.buckets // 2 + 1)
        require(fits, f"buckets {self.buckets} must be 0, or even, at least 4, and less than twice max_positions")
        require(self.max_positions > 0, f"max_positions must be positive, not {self.max_positions}")


class DisentangledAttention(Mixer):
    """Attention to the whole document by content and by relative position; no state."""

    Config = DisentangledAttentionConfig
    config: DisentangledAttentionConfig
    packs = True
    queries_apart = True  # with ctx.memory of its own shape it asks by x what the memory holds at the same places
    examples = (
        {"head_dim": 8, "buckets": 8, "max_positions": 16},
        {"head_dim": 16, "buckets": 0, "max_positions": 5, "shared_key": False, "norm_positions": False},
        {"head_dim": 8, "buckets": 4, "max_positions": 9, "terms": ["p2c"], "bias": False},
    )

    def __init__(self, config: DisentangledAttentionConfig, place: Place) -> None:
        super().__init__(config, place)
        width, self.head_dim = place.width, config.head_dim
        require(width % config.head_dim == 0, f"width {width} is not a multiple of head_dim {config.head_dim}")
        self.heads = self.kv_heads = width // config.head_dim
        self.side = config.buckets or config.max_positions
        self.scale = 1 / math.sqrt(config.head_dim * (1 + len(config.terms)))
        self.inputs = Projection(place, 3 * width, bias=config.bias, canon=False)
        self.out = nn.Linear(width, width, bias=config.bias)
        own = not config.shared_key
        self.position_key = nn.Linear(width, width, bias=False) if own and "c2p" in config.terms else None
        self.position_query = nn.Linear(width, width) if own and "p2c" in config.terms else None
        held = place.layer == 0 or not config.shared_table
        self.positions = nn.Parameter(torch.empty(2 * self.side, width)) if held else None
        self.position_norm = LayerNorm(width, config.eps) if config.norm_positions and held else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with the configured std; biases 0."""
        for linear in (self.inputs.linear, self.out, self.position_key, self.position_query):
            if linear is not None:
                nn.init.normal_(linear.weight, std=self.config.init_std)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
        if self.positions is not None:
            nn.init.normal_(self.positions, std=self.config.init_std)
            no_decay(self.positions)
        if self.position_norm is not None:
            self.position_norm.reset_parameters()

    def mix(self, x: Tensor, state: Any, ctx: Context) -> tuple[Tensor, None]:
        time = ctx.timeline
        if time.groups is None and (time.starts is not None or time.lengths is not None):
            packing, packed = pack_timeline(time, len(x), x.shape[1])
            memory = None if ctx.memory is None else packing.gather(ctx.memory)
            y, _ = self.mix(packing.gather(x), None, ctx.replace(time=packed, memory=memory))
            return packing.spread(y), None
        heads = self._inputs(x, ctx.memory).unflatten(-1, (3 * self.heads, self.head_dim))
        table = self._table(ctx)
        if time.groups is None:
            return self.out(self._attend(heads, table).flatten(2)), None
        blocks = heads[0].split([count * length for count, length in time.groups])
        found = [
            self._attend(block.unflatten(0, (count, length)), table).flatten(0, 1)
            for block, (count, length) in zip(blocks, time.groups, strict=True)
        ]
        return self.out(torch.cat(found)[None].flatten(2)), None

    def _inputs(self, x: Tensor, memory: Tensor | None) -> Tensor:
        """Queries, keys and values (B,T,3D); the last two of the memory (B,T,D), where a mask decoder gives one."""
        linear = self.inputs.linear
        if memory is None:
            return cast(Tensor, linear(x))
        width = self.place.width
        bias = (None, None) if linear.bias is None else (linear.bias[:width], linear.bias[width:])
        return torch.cat([F.linear(x, linear.weight[:width], bias[0]), F.linear(memory, linear.weight[width:], bias[1])], -1)

    def queries_keys_values(self, x: Tensor, ctx: Context) -> tuple[Tensor, ...]:
        """Queries, keys and values (B,T,H*K) of contents; what distillation compares."""
        return self.inputs.linear(x).chunk(3, -1)

    def _table(self, ctx: Context) -> Tensor | None:
        """The table R (2S,D), one's own or the first layer's; None in a layer that is looked at without the first, which has it."""
        shared = ctx.shared if ctx.shared is not None else {}
        if self.positions is None:
            return shared.get("disentangled")
        table = self.positions if self.position_norm is None else cast(Tensor, self.position_norm(self.positions))
        if self.config.shared_table:
            shared["disentangled"] = table
        return table

    def _attend(self, heads: Tensor, table: Tensor | None) -> Tensor:
        """Documents of one length: heads (B,T,3H,K) -> (B,T,H,K)."""
        q, k, v = heads.transpose(1, 2).chunk(3, 1)
        dropout = self.config.dropout if self.training else 0.0
        bias = None if table is None else self._bias(q, k, table)
        return F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=self.scale).transpose(1, 2)

    def _bias(self, q: Tensor, k: Tensor, table: Tensor) -> Tensor:
        """What positions add to the scores (B,H,T,T); q, k (B,H,T,K)."""
        length = q.shape[2]
        first, last = self._seen(length)
        rows = table[first : last + 1]
        steps = torch.arange(length, device=q.device)
        place = (self.index(steps[:, None] - steps) - first).expand(*q.shape[:2], length, length)  # [t, s]
        bias: Tensor | None = None
        if "c2p" in self.config.terms:
            bias = (q @ self._positions(rows, self.position_key, 1).transpose(1, 2)).gather(-1, place)
        if "p2c" in self.config.terms:
            found = (k @ self._positions(rows, self.position_query, 0).transpose(1, 2)).gather(-1, place.transpose(2, 3)).transpose(2, 3)
            bias = found if bias is None else bias + found
        assert bias is not None
        return bias * self.scale

    def _positions(self, rows: Tensor, own: nn.Linear | None, part: int) -> Tensor:
        """Keys or queries (H,R,K) of rows of the table; part 0: the content's queries' map, 1: the keys'."""
        if own is not None:
            mapped = own(rows)
        else:
            linear = self.inputs.linear
            bias = None if linear.bias is None else linear.bias.chunk(3)[part]
            mapped = F.linear(rows, linear.weight.chunk(3)[part], bias)
        return mapped.unflatten(-1, (self.heads, self.head_dim)).transpose(0, 1)

    def index(self, distance: Tensor) -> Tensor:
        """The row of the table for queries that stand so many tokens behind their keys (t - s), int64 of any shape."""
        mid = self.config.buckets // 2
        if mid:
            size = distance.abs()
            ratio = torch.log(size.clamp(min=mid) / mid) / torch.log(torch.tensor((self.config.max_positions - 1) / mid))
            far = (torch.ceil(ratio * (mid - 1)) + mid).long() * distance.sign()
            distance = torch.where(size <= mid, distance, far)
        return (distance + self.side).clamp(0, 2 * self.side - 1)

    def _seen(self, length: int) -> tuple[int, int]:
        """The first and the last row that a document of `length` tokens uses."""
        low, high = self.index(torch.tensor([1 - length, length - 1])).tolist()
        return low, high

    def flops(self, length: int) -> int:
        """For one document of two: a call projects the table once, however many documents there are."""
        width, (first, last) = self.place.width, self._seen(length)
        rows = last - first + 1
        per_term = width * width * rows + 2 * width * rows * length
        return self.inputs.flops(length) + 2 * width * width * length + 4 * width * length**2 + len(self.config.terms) * per_term


register(
    "disentangled-attention",
    mixer="DisentangledAttention",
    summary="Attention by content and by relative position, each with vectors of its own",
    paper="2006.03654",
    year=2020,
    tags=("bidirectional", "parallel", "positions"),
)
