"""A causal mixer run both ways: how a recurrence becomes an encoder's layer.

Paper: Bidirectional Recurrent Neural Networks (Schuster and Paliwal 1997; no arXiv id).

Equation:  f = forward(x);   b = reverse(backward(reverse(x))), each document and row reversed within itself
    sum     y = f + b
    mean    y = (f + b) / 2
    concat  y = W [f; b]

Shapes: B batch, T time, D width.

Cost: twice the mixer's; no state.

Differs from the paper: outputs are summed by default, so that a layer keeps its width; `concat` with a linear map is a setting.

Oracle: tests/oracles/two_way.py (the two directions by loops in float64).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.block import make_part
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.reversal import reversal
from orrery.nn.timeline import gather_time

JOINS = ("sum", "mean", "concat")


@dataclass(frozen=True, kw_only=True)
class TwoWayConfig(PartConfig):
    """branches: the one mixer that both directions are, {"name": ..., **settings}; each direction has weights of its own."""

    branches: tuple[dict[str, Any], ...] = ({"name": "lstm"},)
    join: str = "sum"

    def __post_init__(self) -> None:
        require(len(self.branches) == 1, f"a two-way layer runs one mixer both ways, not {len(self.branches)}")
        require(self.join in JOINS, f"join '{self.join}' must be one of {', '.join(JOINS)}")


class TwoWay(Mixer):
    """Two copies of a mixer, one of which reads every document from its end."""

    Config = TwoWayConfig
    config: TwoWayConfig
    examples = (
        {"branches": [{"name": "lstm", "hidden": 24}]},
        {"branches": [{"name": "lstm"}], "join": "concat"},
        {"branches": [{"name": "gru"}], "join": "mean"},
    )

    def __init__(self, config: TwoWayConfig, place: Place) -> None:
        super().__init__(config, place)
        self.ahead, self.back = (cast(Mixer, make_part(config.branches[0], "mixer", place)) for _ in range(2))
        self.out = nn.Linear(2 * place.width, place.width, bias=False) if config.join == "concat" else None
        self.honours = self.ahead.honours - {"bias", "memory"}  # type: ignore[misc]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each direction's own; the joint map as the sum of its inputs, slightly off."""
        self.ahead.reset_parameters()
        self.back.reset_parameters()
        if self.out is not None:
            width = self.place.width
            nn.init.normal_(self.out.weight, std=(2 * width) ** -0.5 / 4)
            with torch.no_grad():
                self.out.weight += torch.eye(width, device=self.out.weight.device).repeat(1, 2)

    def mix(self, x: Tensor, state: Any, ctx: Context) -> tuple[Tensor, None]:
        time, length = ctx.timeline, x.shape[1]
        ahead, _ = self.ahead(x, None, ctx)
        order = reversal(time, length)
        shared = None if ctx.shared is None else dict(ctx.shared)
        changes: dict[str, Any] = {"shared": shared}
        if order is None:
            turned = x.flip(1)
            for name in ("tokens", "positions"):
                value = getattr(ctx, name)
                changes[name] = None if value is None else value.flip(1)
        else:
            turned = gather_time(x, order)
            for name in ("tokens", "positions"):
                value = getattr(ctx, name)
                changes[name] = None if value is None else gather_time(value, order)
        if ctx.positions is not None:
            changes["time"] = time._replace(positions=changes["positions"])
        back, _ = self.back(turned, None, ctx.replace(**changes))
        back = back.flip(1) if order is None else gather_time(back, order)
        if self.out is not None:
            return self.out(torch.cat([ahead, back], -1)), None
        return (ahead + back if self.config.join == "sum" else (ahead + back) / 2), None

    def flops(self, length: int) -> int:
        joint = 0 if self.out is None else 2 * self.out.weight.numel() * length
        return joint + self.ahead.flops(length) + self.back.flops(length)


register(
    "two-way",
    mixer="TwoWay",
    summary="A causal mixer run forward and backward over every document, the outputs summed, averaged or joined",
    paper="Schuster and Paliwal 1997",
    year=1997,
    tags=("bidirectional", "parallel"),
)
