"""Text to text: an encoder-decoder learns to write the answer to a source.

Equation: ``loss = mean_u -log p(y_u | y_1 .. y_{u-1}, x)`` over the tokens of the answers, the end mark among them.

B batch, S source length, U answer length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orrery.core.config import Config, require
from orrery.core.errors import ConfigError
from orrery.core.registry import register
from orrery.models.corruption import shifted
from orrery.models.reading import Reading, report
from orrery.models.scoring import score
from orrery.nn.contract import Aux, Context
from orrery.ops.losses.cross_entropy import IGNORE


@dataclass(frozen=True, kw_only=True)
class TextToTextConfig(Config):
    """z_loss: weight of the squared log-partition, 0 for none."""

    z_loss: float = 0.0

    def __post_init__(self) -> None:
        require(self.z_loss >= 0, f"z_loss must be 0 or more, not {self.z_loss}")


class TextToText:
    """`objective(model, batch) -> (loss, metrics)`."""

    Config = TextToTextConfig

    def __init__(self, config: TextToTextConfig | None = None) -> None:
        self.config = config or TextToTextConfig()

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Loss of a batch: "tokens" and "segments" (B,S) of the sources, "answer" and "answer_segments" (B,U) with the end mark.

        Raises:
            ConfigError: for a model that is no encoder-decoder.
        """
        start = getattr(getattr(model, "config", None), "start", None)
        if start is None or not hasattr(model, "encode"):
            raise ConfigError(f"{type(model).__name__} is no encoder-decoder; text-to-text needs one, such as t5")
        answer: Tensor = batch["answer"]
        marks: Tensor | None = batch.get("answer_segments")
        target, wanted = shifted(answer, torch.zeros_like(answer) if marks is None else marks, start)
        aux = Aux()
        out = model(batch["tokens"], target, batch.get("segments"), marks, ctx=Context(aux=aux))
        result = score(model, out, wanted, z_loss=self.config.z_loss, ignore_index=None if marks is None else IGNORE)
        return report(Reading(out, wanted, IGNORE, aux, False), result)


register(
    "text-to-text",
    objective="TextToText",
    summary="write the answer to a source (encoder-decoder)",
    tags=("encoder-decoder", "labels"),
)
