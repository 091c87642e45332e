"""What the checks of every frame share: decoders, encoders and encoder-decoders are stored, sized, counted and trained alike.

T time. A subject is a :class:`~orrery.testing.model.ModelSubject`.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from orrery.core.errors import ConfigError
from orrery.models.build import build, resolve
from orrery.models.ladder import LADDER, TOLERANCE
from orrery.models.shapes import shapes_only
from orrery.models.storage import load, save
from orrery.testing.count import counting
from orrery.testing.tolerance import FLOPS, assert_close, assert_finite, assert_same


def must_raise(call: Callable[[], Any], error: type[Exception], what: str) -> None:
    """`call` raises an `error`."""
    try:
        call()
    except error:
        return
    raise AssertionError(f"{what} was accepted without a {error.__name__}")


def refuses_settings(subject: Any, **settings: Any) -> None:
    """Every one of these settings raises ConfigError when it is built with; an instance is built already."""
    for key, value in settings.items() if subject.instance is None else ():
        must_raise(functools.partial(subject.build, **{key: value}), ConfigError, f"the unknown setting {key}={value}")


def check_stored(model: nn.Module, answer: Callable[[Any], Tensor], what: str) -> None:
    """A saved model answers the same when it is loaded, and again after the first one loaded was changed."""
    expected = answer(model)
    with tempfile.TemporaryDirectory() as folder:
        save(model, folder + "/model")
        other = cast(Any, load(folder + "/model")).eval()
        assert_same(answer(other), expected, f"{what} after save and load")
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        again = cast(Any, load(folder + "/model")).eval()
    assert_same(answer(again), expected, f"{what} after a second load")


def check_gradients(model: nn.Module) -> None:
    """Every parameter has received a finite gradient that is not zero."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} receives no gradient"
            assert_finite(parameter.grad, f"the gradient of {name}")
            assert bool(parameter.grad.any()), f"the gradient of {name} is zero everywhere"


def check_recomputed(model: Any, hidden: Callable[[], Tensor]) -> None:
    """Blocks that are recomputed in the backward pass change no gradient."""
    found = []
    for recompute in (False, True):
        model.train().checkpoint_blocks = recompute
        found.append(torch.autograd.grad(hidden().square().sum(), list(model.parameters()), allow_unused=True))
    for (name, _), a, b in zip(model.named_parameters(), *found, strict=True):
        assert (a is None) == (b is None), f"{name} has a gradient only with or without recomputed blocks"
        if a is not None and b is not None:
            assert_close(b, a, f"the gradient of {name} with recomputed blocks", gradient=True)


def check_flops(run: Callable[[], Any], declared: int, length: int) -> None:
    """What a model declares for one of two sequences of `length` tokens is what is counted while `run` reads both."""
    with counting() as counter:
        run()
    least = counter.products / 2
    most = least + counter.elementwise / 2
    fits = (1 - FLOPS) * least <= declared <= (1 + FLOPS) * most
    assert fits, f"flops({length}) says {declared}; counted {least:.0f} to {most:.0f}"


def check_parameters(model: Any, outside: Iterable[nn.Module | None]) -> None:
    """num_parameters counts everything, and without `embedding` everything but these parts."""
    every = sum(p.numel() for p in model.parameters())
    assert model.num_parameters(embedding=True) == every, f"num_parameters says {model.num_parameters(embedding=True)}, there are {every}"
    left = {id(p): p.numel() for part in outside if part is not None for p in part.parameters()}
    assert model.num_parameters() == every - sum(left.values()), "num_parameters() does not leave out tables and head alone"


def ladder(subject: Any) -> None:
    """Every rung of the size ladder is met within its tolerance."""
    for size, step in LADDER.items():
        config = resolve(subject.name, size, vocab_size=subject.vocab)
        with shapes_only():
            count = cast(Any, build(config)).num_parameters()
        share = count / step.parameters - 1
        assert abs(share) <= TOLERANCE, f"size {size} has {count} parameters, {100 * share:+.1f} % from {step.parameters}"


def halves(model: nn.Module, loss: Callable[[], Tensor], steps: int = 40) -> None:
    """So many steps of plain AdamW at least halve the loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert losses[-1] < 0.5 * losses[0], f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f} in {steps} steps"
