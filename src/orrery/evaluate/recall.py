"""Accuracy on a synthetic task by its length: how far back a model trained at one length can reach at others.

Examples are read in windows with the state carried, so length is bounded by patience alone. The interval is bootstrapped
over examples, chance is the task's own.

B rows, T tokens of an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from orrery.data.task import UNSCORED, Task
from orrery.evaluate.carried import Policy
from orrery.evaluate.statistics import bootstrap
from orrery.models.carry import check_carries
from orrery.nn.contract import Aux, Context

_RESAMPLES = 2000


def accuracy_by_length(
    model: nn.Module,
    task: Task,
    lengths: Sequence[int],
    examples: int = 256,
    batch_size: int = 32,
    window: int = 1024,
    policy: Policy | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Test a model on the task's fixed test examples at several lengths.

    Args:
        model: whose vocabulary holds the task's.
        task: the task; its length is replaced, its other settings stay unless `settings` change them.
        examples: at each length; in whole batches.
        window: tokens read at once. policy: changes the state between windows.

    Returns:
        For each length: {"length", "accuracy" (of scored positions), "low", "high" (95 %, over examples), "whole" (share
        of examples without a mistake), "examples", "chance"}.

    Raises:
        ConfigError: for a model without a state, or a length that the task cannot have.
    """
    check_carries(model)
    rows = []
    for length in lengths:
        longer = type(task)(task.config.replace(length=length, **settings))
        right = np.concatenate([_right(model, longer, number, batch_size, window, policy) for number in range(max(1, examples // batch_size))])
        interval = bootstrap(right, samples=_RESAMPLES)
        low, high = max(0.0, interval.low), min(1.0, interval.high)
        row = {"length": length, "accuracy": interval.estimate, "low": low, "high": high}
        rows.append({**row, "whole": float((right == 1).mean()), "examples": len(right), "chance": longer.chance})
    return rows


@torch.no_grad()
def _right(model: Any, task: Task, number: int, batch_size: int, window: int, policy: Policy | None) -> np.ndarray:
    """Share of right answers of every example (B,)."""
    batch = task.test_batch(number, batch_size)
    tokens, targets = batch["tokens"], batch["targets"]
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    state: Any = None
    hits, asked = torch.zeros(batch_size), (targets != UNSCORED).sum(1)
    if policy is not None:
        policy.begin()
    for start in range(0, tokens.shape[1], window):
        aux = Aux(*(policy.wanted if policy is not None else ()))
        here = targets[:, start : start + window]
        out = model(tokens[:, start : start + window].to(device), state=state, ctx=Context(aux=aux))
        row, time = (here != UNSCORED).nonzero(as_tuple=True)
        if len(row):
            chosen = model.head(out.hidden[row, time])[:, : task.vocab_size].argmax(-1).cpu()
            hits.index_add_(0, row, (chosen == here[row, time]).float())
        state = out.state if policy is None else policy(out.state, aux, here.shape[1])
    model.train(training)
    return (hits / asked).double().numpy()
