"""MixCE: cross-entropy in both directions, mixed.

Paper: MixCE: Training Autoregressive Language Models by Mixing Forward and Reverse Cross-Entropies (2305.16958).

Equation: with ``c = -log q_t`` and the model's own probability of the target held constant, per token
``(mix + (1 - mix) [q_t]) c``: the second term is the paper's estimate of the reverse cross-entropy from data.

Shapes: B batch, T time.

Cost: that of the cross-entropy.

Differs: nothing known; the estimator is the paper's approximation, with the sequence's probability taken per token.

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
class MixCEConfig(Config):
    """mix: share of the forward cross-entropy; 1 is plain next-token prediction."""

    mix: float = 0.5

    def __post_init__(self) -> None:
        require(0 <= self.mix <= 1, f"mix must lie between 0 and 1, not {self.mix}")


class MixCE:
    """`objective(model, batch) -> (loss, metrics)`."""

    Config = MixCEConfig

    def __init__(self, config: MixCEConfig | None = None) -> None:
        self.config = config or MixCEConfig()

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Loss and metrics of a batch, as :func:`orrery.models.reading.read_batch` takes and `report` gives them."""
        reading, mix = read_batch(model, batch), self.config.mix
        loss = Reweighted(lambda nats: mix + (1 - mix) * torch.exp(-nats))
        return report(reading, score(model, reading.out, reading.targets, ignore_index=reading.ignore, loss=loss))


register(
    "mixce",
    objective="MixCE",
    summary="forward and reverse cross-entropy, mixed",
    paper="2305.16958",
    year=2023,
    tags=("causal", "stopped"),
)
