"""Labelled examples: whatever an encoder's head asks for, on a batch of texts with their labels.

Equation: the head's own loss (:mod:`orrery.models.heads`), optionally with a weight per class, plus what parts of the model
add.

B batch, T time, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orrery.core.config import Config, require
from orrery.core.errors import ConfigError
from orrery.core.registry import register
from orrery.nn.contract import Aux, Context
from orrery.ops.losses.cross_entropy import IGNORE


@dataclass(frozen=True, kw_only=True)
class LabelledConfig(Config):
    """weights: what an example of each class counts; empty for 1 each."""

    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require(all(weight >= 0 for weight in self.weights), "weights of classes must be 0 or more")


class Labelled:
    """`objective(model, batch) -> (loss, metrics)`."""

    Config = LabelledConfig

    def __init__(self, config: LabelledConfig | None = None) -> None:
        self.config = config or LabelledConfig()

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Loss of a batch: "tokens" (B,T), "segments" (B,T) or absent, "types" (B,T) or absent, "targets" as the head takes them.

        Raises:
            ConfigError: for a model without a head.
        """
        head: Any = getattr(model, "head", None)
        if not hasattr(head, "loss"):
            raise ConfigError(
                f"{type(model).__name__} has no head that learns labels; see orrery.models.convert.with_head"
            )
        aux = Aux()
        more = {"types": batch["types"]} if "types" in batch else {}
        segments: Tensor | None = batch.get("segments")
        out = model(batch["tokens"], ctx=Context(aux=aux), segments=segments, **more)
        targets: Tensor = batch["targets"]
        weights = torch.tensor(self.config.weights, device=targets.device) if self.config.weights else None
        loss = head.loss(out.logits, targets, segments, weights)
        count = (targets != IGNORE).sum() if targets.dtype == torch.int64 else torch.tensor(len(targets))
        metrics: dict[str, Any] = {"loss": loss.detach(), "tokens": count}
        for name, value in aux.losses.items():
            loss = loss + value
            metrics[f"aux/{name}"] = value.detach()
        return loss, metrics


register(
    "labelled",
    objective="Labelled",
    summary="what an encoder's head asks for, on labelled texts",
    tags=("bidirectional", "labels"),
)
