"""Several mixers side by side in one layer: the pattern `"mamba2 | attention"`.

Paper: Hymba (arXiv 2411.13676); compared with other fusions in Hybrid Architectures for Language Models (2510.04800).

Equation:  y = 1/n sum_i b_i * norm_i(mixer_i(x)),   norm_i an RMSNorm, b_i a vector per branch, initially 1

Shapes: B batch, T time, D width, n branches.

Cost: the sum of the branches'.

Differs from the paper: every branch reads the same input through its own projections; the paper's Hymba shares one input
    projection between its heads.

Oracle: the branches by themselves, normed and averaged in a float64 loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.block import make_part
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.norms import RMSNorm
from orrery.nn.state import state
from orrery.nn.timeline import fresh_clock


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(PartConfig):
    """branches: two or more mixers, each {"name": ..., **settings}; fusion "norm" (as above) or "mean" (no norm, no b)."""

    branches: tuple[dict[str, Any], ...] = ({"name": "attention"}, {"name": "lstm"})
    fusion: str = "norm"
    eps: float = 1e-6

    def __post_init__(self) -> None:
        require(len(self.branches) > 1, "a parallel layer needs two or more branches")
        require(self.fusion in ("norm", "mean"), f"fusion '{self.fusion}' must be norm or mean")


@state
class ParallelState(NamedTuple):
    """The branches' states in order."""

    branches: tuple[Any, ...]
    clock: Tensor


class Parallel(Mixer):
    """Branches on the same input, fused by an average of their normed outputs."""

    Config = ParallelConfig
    State = ParallelState
    config: ParallelConfig
    examples = ({"branches": [{"name": "attention", "head_dim": 8}, {"name": "attention", "head_dim": 16, "window": 5}]},)

    def __init__(self, config: ParallelConfig, place: Place) -> None:
        super().__init__(config, place)
        self.branches = nn.ModuleList(make_part(spec, "mixer", place) for spec in config.branches)
        normed = config.fusion == "norm"
        self.norms = nn.ModuleList(RMSNorm(place.width, config.eps) for _ in config.branches) if normed else None
        self.honours = frozenset.intersection(*(branch.honours for branch in self.branches))  # type: ignore[misc, arg-type]

    def reset_parameters(self) -> None:
        """Each branch's own; the weights of the norms, which are the b_i, start at 1."""
        for part in (*self.branches, *(self.norms or ())):
            part.reset_parameters()

    def mix(self, x: Tensor, state: ParallelState | None, ctx: Context) -> tuple[Tensor, ParallelState]:
        total, states = None, []
        for index, branch in enumerate(self.branches):
            y, after = branch(x, None if state is None else state.branches[index], ctx)
            if self.norms is not None:
                y = self.norms[index](y)
            total = y if total is None else total + y
            states.append(after)
        assert total is not None
        return total / len(self.branches), ParallelState(tuple(states), ctx.timeline.clock)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> ParallelState:
        states = tuple(branch.init_state(batch, device, dtype) for branch in self.branches)  # type: ignore[operator]
        return ParallelState(states, fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        return sum(branch.state_bytes(length) for branch in self.branches)  # type: ignore[operator]

    def flops(self, length: int) -> int:
        return sum(branch.flops(length) for branch in self.branches)  # type: ignore[operator]


register(
    "parallel",
    mixer="Parallel",
    summary="Several mixers side by side in one layer, normed and averaged",
    paper="2411.13676",
    year=2024,
    tags=("causal", "parallel"),
)
