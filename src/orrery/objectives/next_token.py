"""Next-token prediction: the plain language-modelling loss.

Equation: ``loss = mean_t -log p(x_{t+1} | x_1 .. x_t)`` over all targets that are not padding, plus what parts of the
model add (load balancing). Which tokens are targets: :mod:`orrery.models.reading`.

B batch, T time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from orrery.core.config import Config, require
from orrery.core.registry import register
from orrery.models.reading import read_batch, report
from orrery.models.scoring import score


@dataclass(frozen=True, kw_only=True)
class NextTokenConfig(Config):
    """z_loss: weight of the squared log-partition (2204.02311, section 5), 0 for none."""

    z_loss: float = 0.0

    def __post_init__(self) -> None:
        require(self.z_loss >= 0, f"z_loss must be 0 or more, not {self.z_loss}")


class NextToken:
    """`objective(model, batch) -> (loss, metrics)`."""

    Config = NextTokenConfig

    def __init__(self, config: NextTokenConfig | None = None) -> None:
        self.config = config or NextTokenConfig()

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Loss and metrics of a batch, as :func:`orrery.models.reading.read_batch` takes and `report` gives them."""
        reading = read_batch(model, batch)
        result = score(model, reading.out, reading.targets, z_loss=self.config.z_loss, ignore_index=reading.ignore)
        return report(reading, result)


register("next-token", objective="NextToken", summary="predict the next token (cross-entropy)", tags=("causal",))
