"""Experts chosen by groups: a token first picks a few groups of neighbouring experts, then its experts among theirs.

Paper: DeepSeek-V3 (arXiv 2412.19437, section 2.1.2, node-limited routing), where a group's experts stand on one machine.

Equation:  rank_i = p_i + bias_i;   worth of a group = the sum of its two greatest ranks
    S = the k experts of greatest rank in the M groups of greatest worth;  everything else as :mod:`orrery.nn.moe`

Shapes: N tokens, E experts, G groups of E / G, M of them kept, k chosen.

Oracle: tests/oracles/moe.py (float64 loops); transformers' Ling and DeepSeek-V3 blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.contract import Place
from orrery.nn.moe import MoE, MoEConfig


@dataclass(frozen=True, kw_only=True)
class GroupedMoEConfig(MoEConfig):
    """Experts in `group_count` groups, of which a token uses `group_top`."""

    group_count: int = 2
    group_top: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        count, kept = self.group_count, self.group_top
        require(count > 0 and self.experts % count == 0, f"group_count {count} must divide the {self.experts} experts")
        require(self.experts // max(1, count) > 1, f"a group has two experts or more; {count} groups of {self.experts} experts have fewer")
        require(1 <= kept <= count, f"group_top must lie between 1 and the {count} groups, not be {kept}")
        room = kept * (self.experts // count)
        require(self.top_k <= room, f"{kept} groups hold {room} experts, fewer than the {self.top_k} (top_k) of a token")


class GroupedMoE(MoE):
    """Top-k routed experts out of the best groups."""

    Config = GroupedMoEConfig
    config: GroupedMoEConfig

    def __init__(self, config: GroupedMoEConfig, place: Place) -> None:
        super().__init__(config, place)
        self.groups = (config.group_count, config.group_top)

    def ranks(self, scores: Tensor) -> Tensor:
        """As of :class:`MoE`, and -inf outside the best groups."""
        count, kept = self.groups
        ranks = super().ranks(scores)
        if count == kept:
            return ranks
        grouped = ranks.unflatten(-1, (count, -1))
        worth = grouped.topk(2, -1).values.sum(-1)  # 2412.19437 section 2.1.2
        out = worth.new_ones(worth.shape, dtype=bool).scatter(-1, worth.topk(kept, -1).indices, False)
        return grouped.masked_fill(out[..., None], -math.inf).flatten(-2)


register(
    "grouped-moe",
    channel="GroupedMoE",
    summary="Mixture of experts that picks groups of experts first (node-limited routing)",
    paper="2412.19437",
    year=2024,
    tags=("causal",),
)
