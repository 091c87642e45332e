"""One optimizer step: forward and backward over micro-batches, norm, check, clip, update. The only place that takes one.

The gradient of a step is that of the mean loss over all targets of the step, however they are spread over micro-batches:
``g = sum_i (n_i / n) g_i`` with n_i targets in micro-batch i. A loss or gradient that is not finite stops the step before
the parameters are touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from orrery.core.errors import NonFiniteError
from orrery.objectives import Batch, Objective
from orrery.optim.groups import set_learning_rate


class Pair(nn.Module):
    """Model and objective as one module `batch -> (loss, metrics)`: what parallel wrappers wrap, and what is saved."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective  # registered as a submodule when it has parameters of its own

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        loss, metrics = self.objective(self.model, batch)
        return loss, metrics


class Step(NamedTuple):
    """What a step was."""

    loss: float  # nats per target, without additions
    tokens: int  # targets
    norm: float  # of the gradient, before clipping
    rate: float


class Engine:
    """Takes steps.

    Args:
        pair: the module that is trained (or its parallel wrapper), on its device.
        optimizer: over its parameters.
        rate: learning rate of a step.
        clip: greatest norm of the gradient; 0 for no clipping.
        accumulate: micro-batches of a step; a batch's rows are split evenly.
        context: made anew for every forward pass (autocast).
    """

    def __init__(
        self,
        pair: nn.Module,
        optimizer: torch.optim.Optimizer,
        rate: Callable[[int], float],
        clip: float = 1.0,
        accumulate: int = 1,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.pair, self.optimizer, self.rate = pair, optimizer, rate
        self.clip, self.accumulate, self.context = clip, accumulate, context
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device

    def step(self, number: int, batch: Batch) -> Step:
        """Take step `number` (0-based) on a batch.

        Raises:
            NonFiniteError: before anything is changed.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss, tokens = self._backward(batch)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteError(self._complaint(number, loss, norm))
        if self.clip and norm > self.clip:
            torch._foreach_mul_(gradients, self.clip / norm)
        rate = self.rate(number)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        return Step(loss, tokens, norm, rate)

    def _backward(self, batch: Batch) -> tuple[float, int]:
        """Leave the step's gradient in the parameters; mean loss and number of targets."""
        if self.accumulate == 1:
            loss, metrics = self._forward(batch)
            loss.backward()
            return _mean(loss, metrics), int(metrics["tokens"])
        rows = len(next(iter(batch.values()))) // self.accumulate
        nominal, nats, tokens = 0.0, 0.0, 0
        for start in range(0, rows * self.accumulate, rows):
            loss, metrics = self._forward({name: value[start : start + rows] for name, value in batch.items()})
            count = int(metrics["tokens"])
            nominal = nominal or float(
                self.accumulate * max(1, count)
            )  # exact when all parts hold equally many targets
            (loss * (count / nominal)).backward()
            nats += _mean(loss, metrics) * count
            tokens += count
        if tokens and tokens != nominal:
            torch._foreach_mul_([p.grad for p in self.parameters if p.grad is not None], nominal / tokens)
        return (nats / tokens if tokens else nats), tokens

    def _forward(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        if self.device.type != "cpu":
            batch = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        with self.context():
            loss, metrics = self.pair(batch)
        return loss, metrics

    def _complaint(self, number: int, loss: float, norm: float) -> str:
        names = {id(p): name.removeprefix("model.") for name, p in self.pair.named_parameters()}
        broken = [
            names.get(id(p), "?") for p in self.parameters if p.grad is not None and not bool(p.grad.isfinite().all())
        ]
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
        where = f"; not finite first in {', '.join(broken[:3])}" if broken else ""
        return f"{what} at step {number} on batch {number}{where}; the step was not taken"


def _mean(loss: Tensor, metrics: dict[str, Any]) -> float:
    """The metric to report; a loss that is not finite because of its additions shows too."""
    total, plain = float(loss.detach()), float(metrics.get("loss", loss))
    return plain if math.isfinite(total) else total
