"""The contract checks of optimizers: `cls(model, lr, config)`, a torch optimizer over the groups of one rule.

Every check takes an :class:`OptimizerSubject` and raises AssertionError with numbers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from orrery.core import registry
from orrery.core.seeds import generator
from orrery.optim.groups import set_learning_rate
from orrery.testing.check import Check, run_all
from orrery.testing.tolerance import assert_finite, assert_same


class _Small(nn.Module):
    """An embedding tied to the head, two matrices, a bias, a frozen matrix, and a parameter that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden = nn.Embedding(11, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = nn.Linear(8, 8, bias=False).requires_grad_(False)
        self.idle = nn.Linear(8, 8, bias=False)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator(0, name)))

    def forward(self, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.head(torch.tanh(self.hidden(self.embed(tokens)) + self.frozen(self.embed(tokens)))))


@dataclass(frozen=True)
class OptimizerSubject:
    """An optimizer by name or class, its settings, and a learning rate at which it should make progress."""

    cls: Any
    settings: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 1e-2

    def make(self, model: nn.Module, rate: float | None = None) -> Any:
        """An optimizer of the model's parameters."""
        return self.cls(model, self.rate if rate is None else rate, self.cls.Config.from_dict(dict(self.settings)))


def train(model: nn.Module, optimizer: Any, steps: int, start: int = 0) -> list[float]:
    """Steps of a fixed small problem; step t sees batch t."""
    losses = []
    for step in range(start, start + steps):
        tokens = torch.randint(11, (16,), generator=generator(1, "problem", step))
        loss = nn.functional.cross_entropy(model(tokens), (3 * tokens + 1) % 11)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def descends(subject: OptimizerSubject) -> None:
    """Two hundred steps halve the loss of a small problem, and everything stays finite."""
    model = _Small()
    losses = train(model, subject.make(model), 200)
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    assert last < 0.5 * first, f"the loss went from {first:.4f} to {last:.4f}"
    for name, parameter in model.named_parameters():
        assert_finite(parameter, name)


def determinism(subject: OptimizerSubject) -> None:
    """Two runs give the same bits."""
    models = [_Small(), _Small()]
    for model in models:
        train(model, subject.make(model), 10)
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert_same(b, a, f"{name} of a second run")


def resume(subject: OptimizerSubject) -> None:
    """Stopped, stored as tensors and numbers, loaded into a new optimizer and continued: bitwise the uninterrupted run."""
    whole, first = _Small(), _Small()
    train(whole, subject.make(whole), 12)
    optimizer = subject.make(first)
    train(first, optimizer, 7)
    stored = copy.deepcopy(optimizer.state_dict())
    for state in stored["state"].values():
        for key, value in state.items():
            assert isinstance(value, Tensor | int | float | bool), (
                f"state '{key}' is a {type(value).__name__}, not data"
            )
    second = _Small()
    second.load_state_dict(first.state_dict())
    resumed = subject.make(second)
    resumed.load_state_dict(stored)
    train(second, resumed, 5, start=7)
    for (name, a), b in zip(whole.named_parameters(), second.parameters(), strict=True):
        assert_same(b, a, f"{name} after an interruption at step 7")


def groups(subject: OptimizerSubject) -> None:
    """Every trainable parameter stands in one group, once; frozen ones in none."""
    model = _Small()
    optimizer = subject.make(model)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    wanted = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    assert len(held) == len(set(held)), "a parameter stands in two groups"
    missing = [name for key, name in wanted.items() if key not in held]
    assert not missing, f"no group holds {missing}"
    assert set(held) <= set(wanted), "a frozen parameter is optimized"


def untouched(subject: OptimizerSubject) -> None:
    """Frozen parameters and those without a gradient keep their bits; a rate of zero moves nothing."""
    model = _Small()
    before = copy.deepcopy(model.state_dict())
    train(model, subject.make(model), 5)
    for name in ("frozen.weight", "idle.weight"):
        assert_same(model.state_dict()[name], before[name], f"{name}, which has no gradient,")
    assert not torch.equal(model.state_dict()["hidden.weight"], before["hidden.weight"]), "nothing moved"
    still = _Small()
    optimizer = subject.make(still)
    set_learning_rate(optimizer, 0.0)
    train(still, optimizer, 3)
    for name, value in still.state_dict().items():
        assert_same(value, before[name], f"{name} at learning rate 0")


def rate_scales(subject: OptimizerSubject) -> None:
    """The first step at half the rate goes half as far, and `lr_scale` does the same for one parameter."""
    moves = []
    for rate, scale in ((1e-3, 1.0), (5e-4, 1.0), (1e-3, 0.5)):
        model = _Small()
        cast(Any, model.hidden.weight).lr_scale = scale
        before = model.hidden.weight.detach().clone()
        train(model, subject.make(model, rate), 1)
        moves.append((model.hidden.weight.detach() - before).double())
    for number, what in ((1, "half the rate"), (2, "lr_scale 0.5")):
        ratio = float(moves[number].norm() / moves[0].norm())
        assert math.isclose(ratio, 0.5, rel_tol=1e-3), (
            f"with {what} the first step is {ratio:.4f} times as long, not 0.5"
        )


def decay(subject: OptimizerSubject) -> None:
    """Weight decay shrinks matrices, not biases and not the embedding."""
    if "weight_decay" not in subject.cls.Config.__dataclass_fields__:
        return
    model = _Small()
    config = {**subject.settings, "weight_decay": 0.5}
    optimizer = OptimizerSubject(subject.cls, config, 0.1).make(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    for name, parameter in model.named_parameters():
        ratio = float(parameter.detach().norm() / before[name].norm())
        if name in ("hidden.weight", "idle.weight"):
            assert 0.9 < ratio < 0.99, (
                f"{name} under weight decay 0.5 at rate 0.1 shrank to {ratio:.4f}, not to about 0.95"
            )
        else:
            assert ratio == 1, f"{name} decays (to {ratio:.4f})"


OPTIMIZER_CHECKS: dict[str, Callable[[OptimizerSubject], None]] = {
    "descends": descends,
    "determinism": determinism,
    "resume": resume,
    "groups": groups,
    "untouched": untouched,
    "rate_scales": rate_scales,
    "decay": decay,
}


def optimizer_checks_for(
    name_or_class: str | type, settings: Mapping[str, Any] | None = None, rate: float = 1e-2
) -> list[Check]:
    """The checks of an optimizer: its registered name or class, settings, and a rate at which it should make progress."""
    named = isinstance(name_or_class, str)
    cls = registry.load(name_or_class, "optimizer") if isinstance(name_or_class, str) else name_or_class
    label = f"optimizer {name_or_class if named else cls.__name__}"
    subject = OptimizerSubject(cls, dict(settings or {}), rate)
    return [Check(label, key, partial(run, subject)) for key, run in OPTIMIZER_CHECKS.items()]


def check_optimizer(
    name_or_class: str | type, settings: Mapping[str, Any] | None = None, rate: float = 1e-2
) -> list[Check]:
    """Run every check of an optimizer.

    Raises:
        AssertionError: with one paragraph for each failed check.
    """
    return run_all(optimizer_checks_for(name_or_class, settings, rate))
