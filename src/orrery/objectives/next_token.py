"""Next-token prediction: the plain language-modelling loss.

Equation: ``loss = mean_t -log p(x_{t+1} | x_1 .. x_t)`` over all targets that are not padding, plus what parts of the
model add (load balancing). A batch holds T+1 tokens per row; the model reads the first T. Where a row holds several
documents, `segments` keep them apart in the model; the first token of each (the document token) is a target like any
other: to predict it is to predict that the document before it ends.

B batch, T time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from orrery.core.config import Config, require
from orrery.core.errors import DataError
from orrery.core.registry import register
from orrery.models.scoring import score
from orrery.nn.contract import Aux, Context
from orrery.ops.cross_entropy import IGNORE


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
        """Loss of a batch.

        Args:
            model: any frame; one that gives only logits will do.
            batch: "tokens" (B,T+1) int64, and "segments" (B,T+1) int64, -1 at padding, or absent. Or, for tasks that
                say what to answer where: "tokens" (B,T) and "targets" (B,T), -100 where nothing is asked. With a key "state"
                the model continues it (None: it begins), and "state" of the metrics is what to continue next.

        Returns:
            The loss to minimise, and metrics: "loss" (nats per target, without additions), "tokens" (targets that
            count), and one "aux/NAME" per addition.

        Raises:
            DataError: for a batch without two tokens in a row.
        """
        tokens: Tensor = batch["tokens"]
        segments: Tensor | None = batch.get("segments")
        if tokens.dim() != 2 or (tokens.shape[1] < 2 and "targets" not in batch):
            raise DataError(f"a batch of tokens needs the shape (batch, 2 or more), not {tuple(tokens.shape)}")
        targets = batch.get("targets")
        sparse = targets is not None or segments is not None
        if targets is None:
            tokens, targets = tokens[:, :-1], tokens[:, 1:]
            if segments is not None:
                targets = targets.masked_fill(segments[:, 1:] < 0, IGNORE)
                segments = segments[:, :-1]
        aux = Aux()
        before = {"state": batch["state"]} if "state" in batch else {}
        out = model(tokens, ctx=Context(aux=aux), segments=segments, **before)
        result = score(model, out, targets, z_loss=self.config.z_loss, ignore_index=IGNORE if sparse else None)
        metrics: dict[str, Any] = {"loss": result.nats / result.weight.clamp(min=1), "tokens": result.weight}
        if before:
            metrics["state"] = out.state
        loss = result.loss
        for name, value in aux.losses.items():
            loss = loss + value
            metrics[f"aux/{name}"] = value.detach()
        return loss, metrics


register("next-token", objective="NextToken", summary="predict the next token (cross-entropy)", tags=("causal",))
