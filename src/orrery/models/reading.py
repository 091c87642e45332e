"""What a causal objective does before and after its loss: read a batch with the model, and report.

A batch holds T+1 tokens per row; the model reads the first T and is asked for the last T. Where a row holds several
documents, `segments` keep them apart in the model; the first token of each (the document token) is a target like any
other: to predict it is to predict that the document before it ends.

B batch, T time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from orrery.core.errors import DataError
from orrery.models.output import Output
from orrery.nn.contract import Aux, Context
from orrery.ops.losses.cross_entropy import IGNORE, CrossEntropy


class Reading(NamedTuple):
    """What the model made of a batch, and what it is asked for."""

    out: Output
    targets: Tensor  # (B,T) int64
    ignore: int | None  # the target that counts for nothing, or None where every target counts
    aux: Aux  # what parts of the model add to the loss
    carried: bool  # whether a state was handed in, so that one is handed back


def read_batch(model: nn.Module, batch: dict[str, Any]) -> Reading:
    """Let the model read.

    Args:
        model: any causal frame; one that gives only logits will do.
        batch: "tokens" (B,T+1) int64, and "segments" (B,T+1) int64, -1 at padding, or absent. Or, for tasks that
            say what to answer where: "tokens" (B,T) and "targets" (B,T), -100 where nothing is asked. With a key "state"
            the model continues it (None: it begins), and "state" of the metrics is what to continue next.

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
    return Reading(out, targets, IGNORE if sparse else None, aux, bool(before))


def report(reading: Reading, result: CrossEntropy) -> tuple[Tensor, dict[str, Any]]:
    """The loss to minimise, and metrics: "loss" (nats per target, without additions), "tokens" (targets that count), one
    "aux/NAME" per addition, and "state" where one is carried."""
    metrics: dict[str, Any] = {"loss": result.nats / result.weight.clamp(min=1), "tokens": result.weight}
    if reading.carried:
        metrics["state"] = reading.out.state
    loss = result.loss
    for name, value in reading.aux.losses.items():
        loss = loss + value
        metrics[f"aux/{name}"] = value.detach()
    return loss, metrics
