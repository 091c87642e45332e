"""PNA-attention: every head aggregates its causal graph in several ways at once and lets a small network weigh them.

Paper: Graph-Aware Isomorphic Attention for Adaptive Dynamics in Transformers (arXiv 2501.02393); principal neighbourhood
    aggregation: 2004.05718.

Equation: A_h = softmax(q k^T / (sqrt(K) tau)) over s <= t, same document;  per head, of the values v:
    mean = A v;  max, min over s <= t of v_s;  var = max(A v^2 - mean^2, 0);  std = sqrt(var + 1e-5)
    y_h = MLP_h([mean, max, min, std]),  MLP_h(z) = W2 silu(W1 z + b1) + b2;  out = W_o [y_1 .. y_H]

Shapes: B batch, T time, D width, H heads, K head dimension, F hidden size of a head, S tokens held.

Cost: train and prefill O(T^2 D), twice attention's where a variance is asked for (flash kernels: memory O(T)); decode
    O(S D) a token; state 2 H K (S + 1) numbers. Maxima run along: O(T D).

Differs from the paper: its code takes the maximum over the tokens with weight above 0, which behind a softmax are all up to the
    query; where weights round to 0 they count here. The rows of A sum to 1, so its sum and mean are one aggregator, and its set
    is ("mean", "max", "var"), its second form's mean, maximum, minimum and variance; here a deviation stands for the variance.
    The networks have biases. s (sharpen=True) and the networks' norm (normed=True) are GIN-attention's, and off here.

Oracle: tests/oracles/pna_attention.py (float64 loops).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orrery.core.config import require
from orrery.core.errors import suggest
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.contract import Context, Place
from orrery.nn.graph_attention import GraphAttention, GraphAttentionConfig
from orrery.nn.memory import columns, join, keep
from orrery.nn.state import state
from orrery.nn.timeline import fresh_clock
from orrery.ops.running_max import LOWEST, running_max

AGGREGATORS = ("mean", "max", "min", "std", "var")
_STD_FLOOR = 1e-5


@dataclass(frozen=True, kw_only=True)
class PNAAttentionConfig(GraphAttentionConfig):
    """aggregators: some of mean, max, min, std, var, in this order in front of the network."""

    sharpen: bool = False
    normed: bool = False
    aggregators: tuple[str, ...] = ("mean", "max", "min", "std")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.aggregators:
            require(name in AGGREGATORS, f"unknown aggregator '{name}'.{suggest(name, AGGREGATORS)} Known: {', '.join(AGGREGATORS)}")
        require(len(set(self.aggregators)) == len(self.aggregators) > 0, "aggregators must be one or more, each once")


@state
class PNAAttentionState(NamedTuple):
    """The document so far, from slot 0 on: k, v (B,S,H,K); high, low: (B,H,K), its greatest and least values.

    conv: the projection's last inputs; clock: (B,2).
    """

    k: Tensor
    v: Tensor
    high: Tensor
    low: Tensor
    conv: Tensor
    clock: Tensor


class PNAAttention(GraphAttention):
    """Attention with principal neighbourhood aggregation."""

    Config = PNAAttentionConfig
    State = PNAAttentionState
    config: PNAAttentionConfig
    examples = ({"head_dim": 8}, {"head_dim": 16, "aggregators": ["var", "mean", "max"], "bias": True, "sharpen": False, "hidden": 1.0})

    def __init__(self, config: PNAAttentionConfig, place: Place) -> None:
        super().__init__(config, place, 3, len(config.aggregators))
        self.spread = "std" in config.aggregators or "var" in config.aggregators
        self.reset_parameters()

    def mix(self, x: Tensor, state: PNAAttentionState | None, ctx: Context) -> tuple[Tensor, PNAAttentionState]:
        time, clock = ctx.timeline, None if state is None else state.clock
        q, k, rest, conv = self.project(x, None if state is None else state.conv, ctx)
        new = rest[:, :, 0]
        k = join(None if state is None else state.k, k, time, None)
        v = join(None if state is None else state.v, new, time, None)
        high, top = running_max(new, None if state is None else state.high, time.starts, time.lengths)
        low, bottom = running_max(-new, None if state is None else -state.low, time.starts, time.lengths)
        found = {"max": high, "min": -low}
        seen = self.seen(clock, x.shape[1], ctx)
        if self.spread:
            origin = self._origin(v, new, clock, ctx)
            centred = v - origin
            mean = self.aggregate(q, k, centred, seen)
            found["var"] = (self.aggregate(q, k, centred.square(), seen) - mean.square()).clamp(min=0.0)
            found["std"] = (found["var"] + _STD_FLOOR).sqrt()
            found["mean"] = mean + origin[:, v.shape[1] - x.shape[1] :]
        else:
            found["mean"] = self.aggregate(q, k, v, seen)
        z = torch.cat([found[name].to(new.dtype) for name in self.config.aggregators], -1)  # 2501.02393 section 2.3
        kept = keep((k, v), time, clock, None)
        return self.combine(z), PNAAttentionState(kept[0], kept[1], top, -bottom, conv, time.clock)

    def _origin(self, v: Tensor, new: Tensor, clock: Tensor | None, ctx: Context) -> Tensor:
        """The first value of every column's document, from which variances are taken: (B,S,H,K), without gradient.

        A variance does not depend on the origin, but the difference of A v^2 and mean^2 loses digits far from it, all of
        them where a document has one token.
        """
        time, old = ctx.timeline, columns(ctx.timeline, None)
        v, new = v.detach(), new.detach()
        base = v[:, :1] if old == 0 or clock is None else torch.where((clock[:, 1] > 0)[:, None, None, None], v[:, :1], new[:, :1])
        if time.starts is None:
            return base.expand_as(v)
        steps = torch.arange(new.shape[1], device=v.device)
        first = torch.where(time.starts, steps, -1).cummax(1).values
        rows = torch.arange(len(v), device=v.device)[:, None]
        opened = torch.where((first >= 0)[..., None, None], new[rows, first.clamp(min=0)], base)
        return torch.cat([base.expand(-1, old, -1, -1), opened], 1)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> PNAAttentionState:
        """Nothing seen."""
        k, v = (torch.zeros(batch, 0, self.heads, self.head_dim, device=device, dtype=dtype) for _ in range(2))
        high = torch.full((batch, self.heads, self.head_dim), LOWEST, device=device, dtype=dtype)
        return PNAAttentionState(k, v, high, -high, self.inputs.init_state(batch, device, dtype), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """A key and a value for every token, and the extremes."""
        inner = self.heads * self.head_dim
        return 2 * (length + 1) * inner * self.network.wide.element_size() + self.inputs.state_bytes()

    def flops(self, length: int) -> int:
        """The common parts; A is applied a second time for the variance."""
        second = 4 * self.heads * self.head_dim * (length * (length + 1) // 2) if self.spread else 0
        return super().flops(length) + second


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "pna-attention"}, channel={"name": "glu"}),
    frame={"tied": True},
    head="mixer.head_dim",
)

register(
    "pna-attention",
    mixer="PNAAttention",
    architecture="ARCHITECTURE",
    summary="Attention as a causal graph aggregated by mean, maximum, minimum and deviation",
    paper="2501.02393",
    year=2025,
    tags=("causal", "parallel", "cache", "positions", "rectified"),
)
