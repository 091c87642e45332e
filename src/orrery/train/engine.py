"""One optimizer step: forward and backward over micro-batches, norm, check, clip, update. The only place that takes one.

The gradient of a step is that of the mean loss over all targets of the step, however they are spread over micro-batches:
``g = sum_i (n_i / n) g_i`` with n_i targets in micro-batch i. A loss or gradient that is not finite stops the step before
the parameters are touched.

With a carried state every micro-batch keeps its rows' state from step to step. Its history ends with the step, and
within it every `span` tokens: truncated backpropagation through time, in memory for `span` tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from orrery.core.errors import ConfigError, CorruptionError, NonFiniteError, StateError
from orrery.models.diagnose import find_broken
from orrery.nn.state import map_state, rebuild, settled, state_tensors
from orrery.objectives import Batch, Objective
from orrery.optim.groups import set_learning_rate


class Pair(nn.Module):
    """Model and objective as one module `batch -> (loss, metrics)`: what parallel wrappers wrap, and what is saved."""

    def __init__(self, model: nn.Module, objective: Objective, tokenizer: Any = None) -> None:
        super().__init__()
        self.model = model
        self.objective = objective  # registered as a submodule when it has parameters of its own
        if hasattr(objective, "meet"):  # it keeps something of the untrained model, or needs ids of the tokenizer
            objective.meet(model, tokenizer)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        loss, metrics = self.objective(self.model, batch)
        return loss, metrics

    def settle(self) -> None:
        """Let the objective bring the model up to date behind the last step, where it keeps a part of it."""
        if hasattr(self.objective, "settle"):
            self.objective.settle(self.model)


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
        carry: continue every step from the state that the step before left.
        span: with carry, tokens over which gradients flow; 0: over the whole of a batch.
    """

    def __init__(
        self,
        pair: nn.Module,
        optimizer: torch.optim.Optimizer,
        rate: Callable[[int], float],
        clip: float = 1.0,
        accumulate: int = 1,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        carry: bool = False,
        span: int = 0,
    ) -> None:
        self.pair, self.optimizer, self.rate = pair, optimizer, rate
        self.clip, self.accumulate, self.context = clip, accumulate, context
        self.carry, self.span = carry, span
        self.states: list[Any] = [None] * accumulate  # of each micro-batch's rows, after the last step taken
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device

    def step(self, number: int, batch: Batch) -> Step:
        """Take step `number` (0-based) on a batch.

        Raises:
            NonFiniteError: before anything is changed.
        """
        self.optimizer.zero_grad(set_to_none=True)
        states = list(self.states)
        loss, tokens = self._backward(batch, states)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteError(self._complaint(number, loss, norm, batch))
        if self.clip and norm > self.clip:
            torch._foreach_mul_(gradients, self.clip / norm)
        rate = self.rate(number)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.states = states
        return Step(loss, tokens, norm, rate)

    def carried(self) -> dict[str, Tensor]:
        """The carried states as tensors by name, for a checkpoint; empty when nothing is carried."""
        return {
            f"{part}.{place}": tensor
            for part, state in enumerate(self.states)
            for place, tensor in enumerate(state_tensors(state))
        }

    def resume(self, tensors: dict[str, Tensor], model: Any, rows: int) -> None:
        """Take up what :meth:`carried` gave.

        Args:
            model: the bare model of the pair. rows: of a step, over all micro-batches.

        Raises:
            CorruptionError: when it is not a state of this model.
        """
        if not self.carry:
            return
        states = []
        for part in range(self.accumulate):
            count = sum(name.startswith(f"{part}.") for name in tensors)
            kept = [tensors[f"{part}.{place}"].to(self.device) for place in range(count)]
            try:
                state = rebuild(model.init_state(rows // self.accumulate), kept)
            except StateError as error:
                raise CorruptionError(f"the checkpoint's carried state does not fit the model: {error}") from error
            states.append(map_state(torch.clone, state))  # off the file's map, into aligned memory
        self.states = states

    def _backward(self, batch: Batch, states: list[Any]) -> tuple[float, int]:
        """Leave the step's gradient in the parameters, and the new states in `states`; mean loss and number of targets."""
        if self.accumulate == 1 and not self.carry:
            loss, metrics = self._forward(batch)
            loss.backward()
            return _mean(loss, metrics), int(metrics["tokens"])
        pieces = list(self._pieces(batch))
        nominal, nats, tokens = 0.0, 0.0, 0
        for part, piece in pieces:
            if self.carry:
                piece["state"] = states[part]
            loss, metrics = self._forward(piece)
            count = int(metrics["tokens"])
            nominal = nominal or float(len(pieces) * max(1, count))  # exact when all hold equally many targets
            (loss * (count / nominal)).backward()
            if self.carry:
                states[part] = self._after(metrics)
            nats += _mean(loss, metrics) * count
            tokens += count
        if tokens and tokens != nominal:
            torch._foreach_mul_([p.grad for p in self.parameters if p.grad is not None], nominal / tokens)
        return (nats / tokens if tokens else nats), tokens

    def _pieces(self, batch: Batch) -> Iterator[tuple[int, Batch]]:
        """Micro-batches by number, each cut into spans of time that follow one another."""
        rows = len(next(iter(batch.values()))) // self.accumulate
        for part in range(self.accumulate):
            own = {name: value[part * rows : (part + 1) * rows] for name, value in batch.items()}
            if not (self.carry and self.span):
                yield part, own
                continue
            length = own["tokens"].shape[1] - 1
            for start in range(0, length, self.span):
                stop = min(start + self.span, length) + 1  # the last target of a span is the first input of the next
                yield part, {name: value[:, start:stop] for name, value in own.items()}

    def _after(self, metrics: dict[str, Any]) -> Any:
        """The state that an objective hands back, without its history."""
        if metrics.get("state") is None:
            raise ConfigError("the objective or the model gives no state back to carry on; train it with data.stream=false")
        return settled(metrics["state"])

    def _forward(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        if self.device.type != "cpu":
            move = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
            batch = {**batch, **{name: value.to(self.device, non_blocking=True) for name, value in move.items()}}
        with self.context():
            loss, metrics = self.pair(batch)
        return loss, metrics

    def _complaint(self, number: int, loss: float, norm: float, batch: Batch) -> str:
        """One sentence: what is not finite, at which step, and where it began, found by a second pass."""
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
        begun = find_broken(self.pair, lambda: self._again(batch))
        if begun is None:
            broken = [name for name, p in self.pair.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
            begun = f"the gradient of {broken[-1].removeprefix('model.')}" if broken else None  # gradients come from behind
        where = f", first in {begun}" if begun else ""
        return f"{what} at step {number} on batch {number}{where}; the step was not taken"

    def _again(self, batch: Batch) -> None:
        """The forward passes of a step once more, from the states before it."""
        states = list(self.states)
        for part, piece in self._pieces(batch):
            if self.carry:
                piece["state"] = states[part]
            metrics = self._forward(piece)[1]
            if self.carry:
                states[part] = metrics["state"]


def _mean(loss: Tensor, metrics: dict[str, Any]) -> float:
    """The metric to report; a loss that is not finite because of its additions shows too."""
    total, plain = float(loss.detach()), float(metrics.get("loss", loss))
    return plain if math.isfinite(total) else total
