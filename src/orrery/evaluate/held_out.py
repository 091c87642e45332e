"""The loss of a pretext task on text that is never trained on: what there is in place of bits per byte where a model does
not predict the next token.

The noise of the task is drawn from one seed each time, so that two validations, and two models, are asked the same.

B batch, T time.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from orrery.data.loader import Loader
from orrery.data.shards import TokenFile

SEED = 20_260_101
_NO_PARTS = {"loss", "tokens", "state"}


@torch.no_grad()
def held_out_loss(
    pair: nn.Module, file: TokenFile, length: int, batch: int, tokens: int, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Mean loss of a model with its objective.

    Args:
        pair: `batch -> (loss, metrics)`, on its device.
        file: the validation side. length: T of a window. batch: windows at a time. tokens: about so many are read.

    Returns:
        "loss" (nats per target), "targets", "tokens" read, and where the objective tells more than one thing, "parts": each task's
        own loss (nats per its own targets) or each term, by name.
    """
    loader = Loader(file, batch, length, SEED)
    device = next(pair.parameters()).device
    training = pair.training
    pair.eval()
    nats, targets, batches = 0.0, 0, max(1, tokens // (batch * length))
    sums: dict[str, list[float]] = {}  # of a part: its loss times its targets, its targets
    with torch.random.fork_rng(devices=[]), _cast(device, dtype):
        torch.manual_seed(SEED)
        for number in range(batches):
            moved = {name: value.to(device) for name, value in loader.batch(number).items()}
            metrics = pair(moved)[1]
            count = int(metrics["tokens"])
            nats, targets = nats + float(metrics["loss"]) * count, targets + count
            for name in metrics.keys() - _NO_PARTS:
                if "/" not in name:
                    own = int(metrics.get(f"tokens/{name}", count))
                    before = sums.setdefault(name, [0.0, 0.0])
                    sums[name] = [before[0] + float(metrics[name]) * own, before[1] + own]
    pair.train(training)
    parts = {name: total / max(1, own) for name, (total, own) in sorted(sums.items())}
    return {"loss": nats / max(1, targets), "targets": targets, "tokens": batches * batch * length, **({"parts": parts} if parts else {})}


def _cast(device: torch.device, dtype: torch.dtype) -> Any:
    return torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()
