"""TaiLr: a bound of the total variation distance, which forgives what the model finds impossible.

Paper: Tailoring Language Generation Models under Total Variation Distance (2302.13344).

Equation: with ``c = -log q_t`` and q_t held constant in brackets, per token
``(mix + (1 - mix) [max(floor, q_t / (gamma + (1 - gamma) q_t))]) c``: gamma 0 is plain next-token prediction, gamma 1 the
total variation bound.

Shapes: B batch, T time.

Cost: that of the cross-entropy.

Differs: the weight is bounded from below by `floor`, so that training can begin from a model that knows nothing; floor=0
is the paper's own. The baseline of the EMO paper (2310.04691) with mixing ratio g is mix=g, gamma=1-g, floor=0.2.

Oracle: float64 loop in tests/oracles/emo.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orrery.core.config import Config, require
from orrery.core.registry import register
from orrery.models.reading import read_batch, report
from orrery.models.scoring import score
from orrery.ops.losses.row_losses import Reweighted


@dataclass(frozen=True, kw_only=True)
class TaiLrConfig(Config):
    """gamma: how much of the total variation; floor: least weight of a token; mix: share of plain cross-entropy."""

    gamma: float = 1e-5
    floor: float = 0.2
    mix: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.gamma <= 1, f"gamma must lie between 0 and 1, not {self.gamma}")
        require(0 <= self.floor <= 1, f"floor must lie between 0 and 1, not {self.floor}")
        require(0 <= self.mix <= 1, f"mix must lie between 0 and 1, not {self.mix}")


class TaiLr:
    """`objective(model, batch) -> (loss, metrics)`."""

    Config = TaiLrConfig

    def __init__(self, config: TaiLrConfig | None = None) -> None:
        self.config = config or TaiLrConfig()

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Loss and metrics of a batch, as :func:`orrery.models.reading.read_batch` takes and `report` gives them."""
        reading = read_batch(model, batch)
        loss = Reweighted(self._weigh)
        return report(reading, score(model, reading.out, reading.targets, ignore_index=reading.ignore, loss=loss))

    def _weigh(self, nats: Tensor) -> Tensor:
        q, gamma, mix = torch.exp(-nats), self.config.gamma, self.config.mix
        if gamma == 0:  # q / q, also where q underflows
            return torch.ones_like(q)
        return mix + (1 - mix) * (q / (gamma + (1 - gamma) * q)).clamp(min=self.config.floor)


register(
    "tailr",
    objective="TaiLr",
    summary="total variation bound: forgives what the model finds impossible",
    paper="2302.13344",
    year=2023,
    tags=("causal", "stopped"),
)
