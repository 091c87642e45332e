"""Softmax attention of every token to its whole document: what encoders are made of.

Paper: Attention Is All You Need (arXiv 1706.03762, encoder); rotary positions 2104.09864; relative position bias 1910.10683;
    local attention as in ModernBERT (2412.13663).

Equation: per head  y_t = sum_{s in N(t)} softmax_s( q_t . k_s / sqrt(K) + b_{ts} ) v_s;   y = W_o [y_1 .. y_H]
    N(t) = { s in the document of t, |t - s| <= window };  q, k rotated by their positions;  b from buckets of s - t

Shapes: B batch, T time, D width, H query heads, G key-value heads, K head dimension, W window.

Cost: O(T^2 H K) beside the projections, O(T W H K) under a window; no state. Padding costs nothing: documents are packed
    (nn/packing.py) and attended length by length.

Differs from the paper: projections have no bias and positions are rotary by default (both are settings). T5 does not divide
    by sqrt(K): that factor stands in the queries' weights.

Oracle: tests/oracles/bidirectional_attention.py (float64 loops); transformers' BERT and T5 through the exchange maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.document_attention import attend_documents, band, exporting, pairs_seen, short_attention
from orrery.nn.heads import check_heads, count_groups, count_heads, reset_projections, scored_heads, turns
from orrery.nn.packing import pack_timeline
from orrery.nn.projection import Projection
from orrery.nn.relative import RelativeBias
from orrery.nn.rotary import Rope, cached_table, rotate, rotate_by_reals, rotated_size, scaling_of
from orrery.nn.short_text import ShortText, short_linears
from orrery.nn.stepping import plain_linear
from orrery.ops.fused.packed_linear import PackedLinear
from orrery.ops.losses.relations import Scored


@dataclass(frozen=True, kw_only=True)
class BidirectionalAttentionConfig(PartConfig):
    """heads None: width / head_dim. kv_heads None: as many. window None: unlimited; else the tokens seen on either side.
    rope 0: no rotation; else the part of each head that is rotated, or how positions are scaled. relative: buckets and greatest
    distance of T5's bias, whose table the first layer holds for all; None: no bias. bias: of the projections; out_bias None: as bias.
    init_std None: sqrt(2 / 5D); init_scaled: the way out starts smaller by sqrt(2 depth)."""

    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int = 64
    window: int | None = None
    rope: Rope = 1.0
    rope_theta: float = 10000.0
    relative: tuple[int, int] | None = None
    bias: bool = False
    out_bias: bool | None = None
    dropout: float = 0.0
    init_std: float | None = None
    init_scaled: bool = True

    def __post_init__(self) -> None:
        check_heads(self)
        require(self.window is None or self.window > 0, f"window must be positive, not {self.window}")
        if self.relative is not None:
            buckets, most = self.relative
            fits = buckets >= 4 and buckets % 4 == 0 and most > buckets // 4
            require(fits, f"relative {self.relative} must be buckets, a multiple of 4, and a distance beyond the exact ones")


class BidirectionalAttention(Mixer):
    """Attention to the whole document; no state."""

    Config = BidirectionalAttentionConfig
    config: BidirectionalAttentionConfig
    honours = frozenset({"positions", "bias"})
    packs = True
    examples = (
        {"head_dim": 8},
        {"head_dim": 16, "heads": 4, "kv_heads": 2, "window": 7, "rope": 0.5, "bias": True},
        {"head_dim": 8, "rope": 0.0, "out_bias": True},
    )

    def __init__(self, config: BidirectionalAttentionConfig, place: Place) -> None:
        super().__init__(config, place)
        self.head_dim = config.head_dim
        self.heads = count_heads(config, place)
        self.kv_heads = count_groups(config, self.heads)
        self.rotated, self.scaling = rotated_size(config.rope, self.head_dim), scaling_of(config.rope)
        inner = self.heads * self.head_dim
        self.inputs = Projection(place, inner + 2 * self.kv_heads * self.head_dim, bias=config.bias, canon=False)
        self.out = nn.Linear(inner, place.width, bias=config.bias if config.out_bias is None else config.out_bias)
        own = config.relative is not None and place.layer == 0
        self.relative = RelativeBias(self.heads, *config.relative, both=True) if own and config.relative else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with std sqrt(2 / 5D) or as configured; the way out by 1/sqrt(2 depth) less, unless the config says otherwise."""
        reset_projections(self.inputs, self.out, self.config.init_std, self.place, self.config.init_scaled)
        if self.relative is not None:
            self.relative.reset_parameters()

    def mix(self, x: Tensor, state: Any, ctx: Context) -> tuple[Tensor, None]:
        time = ctx.timeline
        if time.groups is None and (time.starts is not None or time.lengths is not None):
            return self._packed(x, ctx), None
        heads = self._project(x, ctx)
        dropout = self.config.dropout if self.training else 0.0
        y = attend_documents(heads, self._sizes, time.groups, self._bias(x, ctx), self.config.window, dropout)
        return self.out(y.flatten(2)), None

    def prepared(self) -> Callable[[Tensor, Tensor, Context], Tensor] | None:
        """Both projections laid out once, the way out onto the residual."""
        if not plain_linear(self.inputs.linear, self.out):
            return None
        inputs = PackedLinear(self.inputs.linear.weight, self.inputs.linear.bias)
        out, sizes, window = PackedLinear(self.out.weight, self.out.bias), self._sizes, self.config.window

        def attend(x: Tensor, residual: Tensor, ctx: Context) -> Tensor:
            time = ctx.timeline
            if time.groups is None and (time.starts is not None or time.lengths is not None):
                return residual + self.mix(x, None, ctx)[0]
            heads = self._turned(inputs(x), x, ctx)
            return out.onto(attend_documents(heads, sizes, time.groups, self._bias(x, ctx), window).flatten(2), residual)

        return attend

    def short(self) -> Callable[[ShortText], list[Callable[[], Any]]] | None:
        """Both projections laid out for few rows; heads are a view of one buffer."""
        maps = short_linears(self.inputs.linear, self.out)
        if maps is None:
            return None
        inputs, out = maps

        def bind(run: ShortText) -> list[Callable[[], Any]]:
            length, p, y = run.length, run.buffer("projected", inputs.size), run.buffer("attended", self.heads * self.head_dim)
            heads, turns = p.view(length, -1, self.head_dim), None
            if self.rotated:
                places, theta = torch.arange(length), self.config.rope_theta
                turns = cached_table(places, length, self.rotated, theta, heads.dtype, self.scaling)
            if self.relative is not None:
                run.shared["relative"] = self.relative.square(length).detach()
            attend = short_attention(heads, self._sizes, y, run.shared.get("relative"), self.config.window, turns)
            return [inputs.step(run.given, p), attend, out.step(y, run.y)]

        return bind

    @property
    def _sizes(self) -> tuple[int, int, int]:
        return self.heads, self.kv_heads, self.kv_heads

    def _packed(self, x: Tensor, ctx: Context) -> Tensor:
        """Rows with padding or several documents, outside a frame that packs them for all parts at once."""
        packing, time = pack_timeline(ctx.timeline, len(x), x.shape[1])
        positions = None if ctx.positions is None else packing.gather(ctx.positions)
        if ctx.bias is not None:
            return self._rows(x, ctx)
        time = time if positions is None else time._replace(positions=positions)
        y, _ = self.mix(packing.gather(x), None, ctx.replace(time=time, positions=positions))
        return packing.spread(y)

    def _rows(self, x: Tensor, ctx: Context) -> Tensor:
        """The same with a bias (B,H,T,T) of the caller, which belongs to places of the rows: with a mask."""
        time, length = ctx.timeline, x.shape[1]
        document = torch.zeros(1, length, dtype=torch.int64, device=x.device) if time.starts is None else time.starts.cumsum(1)
        seen, valid = document[:, :, None] == document[:, None, :], time.valid(length)
        if valid is not None:
            seen = seen & valid[:, None, :] | ~valid[:, :, None]  # what padding sees is thrown away, but must be a number
            x = x.masked_fill(~valid[..., None], 0.0)
        if self.config.window is not None:
            seen = seen & band(0, length, 0, length, self.config.window, x.device)[0]
        assert ctx.bias is not None
        bias = ctx.bias.masked_fill(~seen[:, None], -math.inf)
        heads = self._project(x, ctx)
        return self.out(attend_documents(heads, self._sizes, None, bias, None, self.config.dropout if self.training else 0.0).flatten(2))

    def queries_keys_values(self, x: Tensor, ctx: Context) -> tuple[Tensor, ...]:
        """Queries (B,T,H*K), keys and values (B,T,G*K) before they are rotated; what distillation compares."""
        return self.inputs.linear(x).split([size * self.head_dim for size in self._sizes], -1)

    def scored(self, x: Tensor, ctx: Context) -> Scored:
        """What the scores are made of; distillation compares them, or what a softmax makes of them."""
        q, k, _ = self._project(x, ctx).split(self._sizes, 2)
        bias = self._bias(x, ctx)
        return scored_heads(q / math.sqrt(self.head_dim), k, None if bias is None else bias[0], self.config.window)

    def _project(self, x: Tensor, ctx: Context) -> Tensor:
        """Queries, keys and values (B,T,H+2G,K), the first two rotated."""
        return self._turned(self.inputs.linear(x), x, ctx)

    def _turned(self, p: Tensor, x: Tensor, ctx: Context) -> Tensor:
        heads = p.unflatten(-1, (-1, self.head_dim))
        if not self.rotated:
            return heads
        time = ctx.timeline
        if exporting():
            theta, turned = self.config.rope_theta, self.heads + self.kv_heads
            return rotate_by_reals(heads, time.positions, self.rotated, theta, turned, self.scaling)
        table = turns(x, ctx, self.rotated, self.config.rope_theta, self.scaling)
        return rotate(heads, table, self.heads + self.kv_heads)

    def _bias(self, x: Tensor, ctx: Context) -> Tensor | None:
        """The caller's bias and that of relative positions, which the first layer leaves for the others."""
        if self.config.relative is None:
            return ctx.bias
        shared = ctx.shared if ctx.shared is not None else {}
        if self.relative is not None:
            groups = ctx.timeline.groups
            shared["relative"] = self.relative.square(x.shape[1] if groups is None else groups[-1][1]).to(x.dtype)
        own = shared.get("relative")
        if own is None:
            return ctx.bias  # a layer looked at by itself, without the first
        return own if ctx.bias is None else own + ctx.bias

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The attention matrix (B,H,T,T) of whole sequences; row t sums to 1."""
        q, k, _ = self._project(x, ctx).split(self._sizes, 2)
        k = k.repeat_interleave(self.heads // self.kv_heads, 2)
        scores = torch.einsum("bthk,bshk->bhts", q, k) / math.sqrt(self.head_dim)
        bias = self._bias(x, ctx)
        scores = scores if bias is None else scores + bias
        if ctx.timeline.starts is not None:
            document = ctx.timeline.starts.cumsum(1)
            scores = scores.masked_fill((document[:, :, None] != document[:, None, :])[:, None], -math.inf)
        if self.config.window is not None:
            scores = scores.masked_fill(~band(0, x.shape[1], 0, x.shape[1], self.config.window, x.device), -math.inf)
        return scores.softmax(-1)

    def flops(self, length: int) -> int:
        pairs = pairs_seen(length, self.config.window)
        inner = self.heads * self.head_dim
        return self.inputs.flops(length) + 2 * inner * self.place.width * length + 4 * inner * pairs


register(
    "bidirectional-attention",
    mixer="BidirectionalAttention",
    summary="Softmax attention of every token to its whole document, with an optional window on both sides",
    paper="1706.03762",
    year=2017,
    tags=("bidirectional", "parallel", "positions"),
)
