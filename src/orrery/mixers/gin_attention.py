"""GIN-attention: every head is a graph isomorphism network on the causal graph that its attention draws.

Paper: Graph-Aware Isomorphic Attention for Adaptive Dynamics in Transformers (arXiv 2501.02393); GIN: 1810.00826.

Equation: A_h = softmax(s q k^T / (sqrt(K) tau)) over s <= t, same document;  x_h: the part of the input x that belongs to h;
    y_h = MLP_h(e_h x_h + A_h x_h),  MLP_h(z) = W2 silu(rmsnorm(W1 z + b1)) + b2;  y = [y_1 .. y_H], or W_o of it

Shapes: B batch, T time, D width, H heads, K head dimension (H K = D), F hidden size of a head, S tokens held.

Cost: train and prefill O(T^2 D) beside the projections (flash kernels: memory O(T)); decode O(S D) a token; state 2 D S
    numbers: keys and inputs. There are no values.

Differs from the paper: as its released code does, e_h stands without the 1 of GIN's 1 + e (one_plus=True adds it), and
    the way out is left out (project=True adds it); no dropout.

Oracle: tests/oracles/gin_attention.py (float64 loops).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.contract import Context, Place
from orrery.nn.graph_attention import GraphAttention, GraphAttentionConfig
from orrery.nn.memory import join, keep
from orrery.nn.state import state
from orrery.nn.timeline import fresh_clock


@dataclass(frozen=True, kw_only=True)
class GINAttentionConfig(GraphAttentionConfig):
    """one_plus: a node keeps (1 + e_h) of itself instead of e_h."""

    project: bool = False
    one_plus: bool = False


@state
class GINAttentionState(NamedTuple):
    """The document so far, from slot 0 on: k (B,S,H,K), nodes (B,S,H,K); conv: the projection's last inputs; clock: (B,2)."""

    k: Tensor
    nodes: Tensor
    conv: Tensor
    clock: Tensor


class GINAttention(GraphAttention):
    """Graph isomorphism attention."""

    Config = GINAttentionConfig
    State = GINAttentionState
    config: GINAttentionConfig
    examples = ({"head_dim": 8, "one_plus": True}, {"head_dim": 16, "project": True, "bias": True, "sharpen": False, "rope": 0.5})

    def __init__(self, config: GINAttentionConfig, place: Place) -> None:
        super().__init__(config, place, 2, 1)
        require(
            self.heads * self.head_dim == place.width,
            f"heads share the input: {self.heads} heads of {self.head_dim} must make the width {place.width}",
        )
        self.itself = nn.Parameter(torch.empty(self.heads))  # e_h
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As attention's; e_h 0."""
        super().reset_parameters()
        nn.init.zeros_(self.itself)

    def mix(self, x: Tensor, state: GINAttentionState | None, ctx: Context) -> tuple[Tensor, GINAttentionState]:
        time, clock = ctx.timeline, None if state is None else state.clock
        q, k, _, conv = self.project(x, None if state is None else state.conv, ctx)
        own = x.unflatten(-1, (self.heads, self.head_dim)).to(k.dtype)
        k = join(None if state is None else state.k, k, time, None)
        nodes = join(None if state is None else state.nodes, own, time, None)
        itself = self.itself[:, None] + (1.0 if self.config.one_plus else 0.0)
        z = itself * own + self.aggregate(q, k, nodes, self.seen(clock, x.shape[1], ctx))
        kept = keep((k, nodes), time, clock, None)
        return self.combine(z), GINAttentionState(kept[0], kept[1], conv, time.clock)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> GINAttentionState:
        """Nothing seen."""
        k, nodes = (torch.zeros(batch, 0, self.heads, self.head_dim, device=device, dtype=dtype) for _ in range(2))
        return GINAttentionState(k, nodes, self.inputs.init_state(batch, device, dtype), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """A key and an input for every token."""
        return 2 * length * self.place.width * self.itself.element_size() + self.inputs.state_bytes()


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "gin-attention"}, channel={"name": "glu"}),
    frame={"tied": True},
    head="mixer.head_dim",
    presets={
        "gin-attention-protein": {"width": 560, "depth": 6, "mixer.head_dim": 70, "mixer.hidden": 0.5, "channel.hidden": 512}
    },
)

register(
    "gin-attention",
    mixer="GINAttention",
    architecture="ARCHITECTURE",
    summary="Attention as a causal graph with a graph isomorphism network per head",
    paper="2501.02393",
    year=2025,
    tags=("causal", "parallel", "cache", "positions"),
    presets=("gin-attention-protein",),
)
