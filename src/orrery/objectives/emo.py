"""EMO: earth mover's distance between the model's distribution and the next token, beside the cross-entropy.

Paper: EMO: Earth Mover Distance Optimization for Auto-Regressive Language Modeling (2310.04691).

Equation: with ``q = softmax(z)``, the target t, and unit vectors e of the classes (rows of a matrix of cost vectors),
``m = 1 - <e_t, sum_k q_k e_k>`` is the expected cost ``1 - cos`` of moving q onto t, and ``c = -log q_t``. Per token

    emphasis "mle" (the paper's for a domain):        ``1/2 (c + [c / (m + eps)] m)``
    emphasis "emo" (the paper's for a light touch):   ``m + [m / (c + eps)] c``

where brackets are held constant, so that both terms have the same value and only their gradients differ; then the mean.
costs "fixed": e is the head as it was when the objective first met the model (a pre-trained one, or one's own matrix);
"adaptive": the head as it is now, without gradient, and ``q_t`` leaves m's sum (its gradient stays), as in the paper's code.

Shapes: B batch, T time, V classes, D width.

Cost: one product of the chunk's distinct targets with the cost vectors, and two more readings of the logits.

Differs: the bracketed ratio can be bounded (`cap`), as the published package does at 3 and the paper does not.

Oracle: float64 loop in tests/oracles/emo.py; the package EMOLoss 0.0.3 (emphasis both, fixed costs) where installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from orrery.core.config import Config, require
from orrery.core.errors import ConfigError
from orrery.core.registry import register
from orrery.models.reading import read_batch, report
from orrery.models.scoring import score
from orrery.ops.losses.row_losses import Coefficients, EarthMover, unit_rows

EPSILON = 1e-10
EMPHASES = ("mle", "emo")
COSTS = ("adaptive", "fixed")


@dataclass(frozen=True, kw_only=True)
class EmoConfig(Config):
    """emphasis: which term keeps its weight. costs: where the cost vectors come from. cap: bound of the ratio, 0 for none."""

    emphasis: str = "mle"
    costs: str = "adaptive"
    cap: float = 0.0

    def __post_init__(self) -> None:
        require(self.emphasis in EMPHASES, f"emphasis must be one of {', '.join(EMPHASES)}, not {self.emphasis!r}")
        require(self.costs in COSTS, f"costs must be one of {', '.join(COSTS)}, not {self.costs!r}")
        require(self.cap >= 0, f"cap must be 0 (none) or more, not {self.cap}")


class Emo(nn.Module):
    """`objective(model, batch) -> (loss, metrics)`; a module, because fixed costs belong into a checkpoint.

    costs: with config.costs "fixed", (V, any) cost vectors of one's own; None takes the head's at the first meeting.
    """

    Config = EmoConfig

    def __init__(self, config: EmoConfig | None = None, costs: Tensor | None = None) -> None:
        super().__init__()
        self.config = config or EmoConfig()
        if costs is not None and self.config.costs != "fixed":
            raise ConfigError("cost vectors of your own need costs=fixed; adaptive ones are the head's")
        self.register_buffer("costs", None if costs is None else unit_rows(costs))
        self.costs: Tensor | None

    def meet(self, model: nn.Module, tokenizer: Any = None) -> None:
        """Take the fixed costs from a model before it is trained.

        Raises:
            ConfigError: the model has no linear head, or a vocabulary of another size.
        """
        if self.config.costs == "fixed" and self.costs is None:
            self.costs = unit_rows(_head(model)).clone()

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Loss and metrics of a batch, as :func:`orrery.models.reading.read_batch` takes and `report` gives them."""
        self.meet(model)
        adaptive = self.config.costs == "adaptive"
        costs = unit_rows(_head(model)) if adaptive or self.costs is None else self.costs
        if len(costs) != _classes(model, costs):
            raise ConfigError(f"{len(costs)} cost vectors do not fit a vocabulary of {_classes(model, costs)}")
        reading = read_batch(model, batch)
        loss = EarthMover(partial(combine, self.config), costs, own=adaptive)
        return report(reading, score(model, reading.out, reading.targets, ignore_index=reading.ignore, loss=loss))


def combine(config: EmoConfig, nats: Tensor, distance: Tensor) -> Coefficients:
    """Value and coefficients of every token; the ratios are constants of the gradient."""
    if config.emphasis == "mle":
        ratio = _bounded(nats / (distance + EPSILON), config.cap)
        return 0.5 * (nats + ratio * distance), torch.full_like(nats, 0.5), 0.5 * ratio
    ratio = _bounded(distance / (nats + EPSILON), config.cap)
    return distance + ratio * nats, ratio, torch.ones_like(nats)


def _bounded(ratio: Tensor, cap: float) -> Tensor:
    return ratio.clamp(max=cap) if cap else ratio


def _head(model: nn.Module) -> Tensor:
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Linear):
        raise ConfigError(
            f"{type(model).__name__} has no linear head to take cost vectors from; give Emo(costs=...) your own"
        )
    return head.weight


def _classes(model: nn.Module, costs: Tensor) -> int:
    return int(getattr(model, "vocab_size", len(costs)))


register(
    "emo",
    objective="Emo",
    summary="earth mover's distance to the next token, beside the cross-entropy",
    paper="2310.04691",
    year=2023,
    tags=("causal", "stopped"),
)
