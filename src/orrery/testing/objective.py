"""The contract checks of objectives: `objective(model, batch) -> (loss, metrics)`.

Every check takes an :class:`ObjectiveSubject` and raises AssertionError with numbers. B batch, T time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from orrery.core import registry
from orrery.core.seeds import generator
from orrery.models.build import create_model
from orrery.objectives import create_objective
from orrery.testing.check import Check, run_all
from orrery.testing.mixer_numbers import compare_with_differences
from orrery.testing.subject import perturb
from orrery.testing.tags import DISABLED
from orrery.testing.tolerance import TOLERANCES, assert_close, assert_same

VOCAB = 29
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class ObjectiveSubject:
    """An objective by name, the model it is tried on, and the batch it is given: tokens, and segments with padding."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""  # an architecture; "": one that the objective's tags ask for

    @property
    def feed(self) -> Feed:
        """The kind of batches and models that the objective is for."""
        tags = registry.lookup(self.name, "objective").tags
        return next((FEEDS[tag] for tag in FEEDS if tag in tags), CAUSAL)

    def objective(self) -> Callable[[nn.Module, Batch], tuple[Tensor, dict[str, Any]]]:
        """A fresh objective; one that needs a teacher gets a deeper model of the same kind."""
        tags = registry.lookup(self.name, "objective").tags
        example = next((EXAMPLES[tag] for tag in tags if tag in EXAMPLES and not self.settings), {})
        built: Any = create_objective(self.name, **{**example, **self.settings})
        if "teacher" in tags and "teacher" not in self.settings:
            built.teach(self._model(torch.float64, True, depth=2, seed=2))
        return built

    def build(self, dtype: torch.dtype = torch.float64, randomise: bool = True) -> nn.Module:
        """A small model."""
        return self._model(dtype, randomise)

    def _model(self, dtype: torch.dtype, randomise: bool, depth: int = 1, seed: int = 1) -> nn.Module:
        feed = self.feed
        model = create_model(self.model or feed.model, vocab_size=VOCAB, width=16, depth=depth, seed=seed, **feed.settings)
        if randomise:
            perturb(model, seed, 0.3)
        return model.to(dtype)

    def call(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """The objective on a batch; random draws inside it repeat."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.objective()(model, batch)


def make_batch(rows: int = 4, length: int = 17, seed: int = 0) -> Batch:
    """Uniform tokens (B,T+1) and segments that put two documents and some padding into every row."""
    tokens = torch.randint(VOCAB, (rows, length), generator=generator(seed, "batch", rows, length))
    segments = torch.zeros(rows, length, dtype=torch.int64)
    for row in range(rows):
        segments[row, 5 + row :] = 1
        segments[row, length - row :] = -1
    return {"tokens": tokens, "segments": segments}


def make_labelled(rows: int = 4, length: int = 17, seed: int = 0) -> Batch:
    """Texts of several lengths with a class each, one of them without."""
    batch = make_batch(rows, length, seed)
    batch["segments"] = batch["segments"].clamp(max=0)
    batch["targets"] = torch.arange(rows) % CLASSES
    batch["targets"][-1] = -100
    return batch


def make_pairs(rows: int = 4, length: int = 17, seed: int = 0) -> Batch:
    """Sources and answers of several lengths."""
    source, answer = make_batch(rows, length, seed), make_batch(rows, length - 5, seed + 1)
    answer["segments"], source["segments"] = (batch["segments"].clamp(max=0) for batch in (answer, source))
    return {**source, "answer": answer["tokens"], "answer_segments": answer["segments"]}


@dataclass(frozen=True)
class Feed:
    """What an objective of some kind is tried on. make(rows, length, seed) gives a batch; `padded` are its sequences, each
    with the name of its segments."""

    model: str
    make: Callable[..., Batch]
    settings: Mapping[str, Any] = field(default_factory=dict)
    padded: Mapping[str, str] = field(default_factory=lambda: {"tokens": "segments"})


CLASSES = 3
EXAMPLES: dict[str, dict[str, Any]] = {  # settings without which there is nothing to try, by tag
    "composed": {
        "parts": {"next-token": {}, "bounded": {"objective": "next-token", "settings": {"z_loss": 0.01}, "weight": 0.5}},
        "weighting": "uncertainty",
    }
}
CAUSAL = Feed("transformer", make_batch)
FEEDS = {  # by tag, the first that an objective has
    "encoder-decoder": Feed("t5", make_pairs, padded={"tokens": "segments", "answer": "answer_segments"}),
    "labels": Feed("bert", make_labelled, {"head": "classification", "labels": CLASSES}),
    "discriminator": Feed("electra", make_batch),
    "bidirectional": Feed("bert", make_batch),
}


def rows_of(batch: Batch, index: Tensor | slice) -> Batch:
    """Some rows of a batch."""
    return {name: value[index] for name, value in batch.items()}


def interface(subject: ObjectiveSubject) -> None:
    """A finite scalar that can be differentiated, and metrics that are numbers and hold no graph."""
    model, batch = subject.build(torch.float32), subject.feed.make()
    kept = {name: value.clone() for name, value in batch.items()}
    loss, metrics = subject.call(model, batch)
    assert loss.dim() == 0 and loss.requires_grad, (
        f"the loss has shape {tuple(loss.shape)}, requires_grad={loss.requires_grad}"
    )
    assert math.isfinite(loss.item()), f"the loss is {loss.item()}"
    for name in ("loss", "tokens"):
        assert name in metrics, f"metrics lack '{name}': {sorted(metrics)}"
    for name, value in metrics.items():
        if isinstance(value, Tensor):
            assert value.dim() == 0 and not value.requires_grad, f"metric '{name}' is no detached scalar"
        assert math.isfinite(float(value)), f"metric '{name}' is {value}"
    for name, value in batch.items():
        assert_same(value, kept[name], f"the batch's {name} after the call")


def gradients(subject: ObjectiveSubject) -> None:
    """The gradient of every parameter equals central differences."""
    model, batch = subject.build(), subject.feed.make()
    leaves: dict[str, Tensor] = {f"parameter {name}": p for name, p in model.named_parameters()}

    def scalar() -> Tensor:
        return subject.call(model, batch)[0].double()

    compare_with_differences(scalar, leaves)


def padding(subject: ObjectiveSubject) -> None:
    """More padding, whatever tokens stand there, and rows of nothing else change neither loss nor count nor gradient."""
    model, batch = subject.build(), subject.feed.make()
    expected, metrics = subject.call(model, batch)
    gradient = torch.autograd.grad(expected, list(model.parameters()))
    wide = dict(batch)
    empty = int("targets" not in batch)  # a row without a text has no label either
    for name, marks in subject.feed.padded.items():
        rows, length = batch[name].shape
        segments = torch.full((rows + empty, length + 6), -1)
        segments[:rows, :length] = batch[marks]
        other = make_batch(rows + empty, length + 6, seed=8)["tokens"]
        kept = torch.nn.functional.pad(batch[name], (0, 6, 0, empty))
        wide[name], wide[marks] = torch.where(segments < 0, other, kept), segments
    found, more = subject.call(model, wide)
    assert_close(found, expected, "the loss of a batch with more padding")
    assert float(more["tokens"]) == float(metrics["tokens"]), (
        f"{float(more['tokens'])} targets instead of {float(metrics['tokens'])}"
    )
    again = torch.autograd.grad(found, list(model.parameters()))
    for (name, _), a, b in zip(model.named_parameters(), again, gradient, strict=True):
        assert_close(a, b, f"the gradient of {name} with more padding", gradient=True)


def accumulation(subject: ObjectiveSubject) -> None:
    """Loss and gradient of a batch are the means, weighted by tokens, of its parts': accumulation changes nothing."""
    model, batch = subject.build(), subject.feed.make(6)
    whole, metrics = subject.call(model, batch)
    gradient = torch.autograd.grad(whole, list(model.parameters()))
    total, loss = float(metrics["tokens"]), 0.0
    summed = [torch.zeros_like(p) for p in model.parameters()]
    for index in (slice(0, 1), slice(1, 4), slice(4, 6)):
        part, facts = subject.call(model, rows_of(batch, index))
        share = float(facts["tokens"]) / total
        loss += share * float(part.detach())
        for held, value in zip(summed, torch.autograd.grad(part, list(model.parameters())), strict=True):
            held += share * value
    assert_close(
        torch.tensor(loss), torch.tensor(float(whole.detach())), "the loss summed over parts of the batch", limit=1e-6
    )
    for (name, _), a, b in zip(model.named_parameters(), summed, gradient, strict=True):
        assert_close(a, b, f"the gradient of {name} summed over parts of the batch", limit=1e-6)


def one_document(subject: ObjectiveSubject) -> None:
    """Segments that are all alike mean what no segments mean."""
    model, batch = subject.build(), subject.feed.make()
    tokens = batch["tokens"]
    without, _ = subject.call(model, {"tokens": tokens})
    with_ids, _ = subject.call(model, {"tokens": tokens, "segments": torch.full_like(tokens, 7)})
    assert_close(with_ids, without, "the loss with one segment id for all")


def determinism(subject: ObjectiveSubject) -> None:
    """The same call gives the same bits."""
    model, batch = subject.build(torch.float32), subject.feed.make()
    first, again = (subject.call(model, batch)[0] for _ in range(2))
    assert_same(again, first, "the loss of a second call")
    a, b = (torch.autograd.grad(loss, list(model.parameters())) for loss in (first, again))
    for (name, _), x, y in zip(model.named_parameters(), a, b, strict=True):
        assert_same(x, y, f"the gradient of {name} of a second call")


def precision(subject: ObjectiveSubject) -> None:
    """Float32 and autocast to bfloat16 agree with float64."""
    batch = subject.feed.make()
    exact, _ = subject.call(subject.build(), batch)
    plain, _ = subject.call(subject.build(torch.float32), batch)
    assert_close(plain.float(), exact.float(), "the loss in float32")
    with torch.autocast("cpu", torch.bfloat16):
        cast, _ = subject.call(subject.build(torch.float32), batch)
    assert_close(cast.float(), exact.float(), "the loss under autocast", limit=TOLERANCES[torch.bfloat16].value)


def learns(subject: ObjectiveSubject) -> None:
    """Thirty steps of AdamW on one batch lower its loss by a fifth."""
    model, batch = subject.build(torch.float32, randomise=False), subject.feed.make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss, _ = subject.call(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0], f"the loss went from {losses[0]:.4f} to {losses[-1]:.4f}"


def carry(subject: ObjectiveSubject) -> None:
    """Two windows with the state handed on have the loss of the whole; an objective that hands none back is left alone."""
    model, batch = subject.build(), subject.feed.make()
    tokens, segments = batch["tokens"], torch.zeros_like(batch["segments"])
    whole = subject.call(model, {"tokens": tokens, "segments": segments})[1]
    state: Any = None
    nats = count = 0.0
    for start, stop in ((0, 9), (8, tokens.shape[1])):
        window = {"tokens": tokens[:, start:stop], "segments": segments[:, start:stop], "state": state}
        metrics = subject.call(model, window)[1]
        if "state" not in metrics:
            return
        state, targets = metrics["state"], float(metrics["tokens"])
        nats, count = nats + float(metrics["loss"]) * targets, count + targets
    assert count == float(whole["tokens"]), f"{count} targets in two windows instead of {float(whole['tokens'])}"
    found, expected = (torch.tensor(float(value), dtype=torch.float64) for value in (nats / count, whole["loss"]))
    assert_close(found, expected, "the loss of two windows with a carried state")


OBJECTIVE_CHECKS: dict[str, Callable[[ObjectiveSubject], None]] = {
    "interface": interface,
    "gradients": gradients,
    "padding": padding,
    "accumulation": accumulation,
    "one_document": one_document,
    "determinism": determinism,
    "precision": precision,
    "learns": learns,
    "carry": carry,
}


def objective_checks_for(name: str, settings: Mapping[str, Any] | None = None, model: str = "") -> list[Check]:
    """The checks of an objective by name, tried on a small model of the named architecture, or one that fits its tags."""
    subject = ObjectiveSubject(name, dict(settings or {}), model)
    tags = registry.lookup(name, "objective").tags
    label = " ".join((f"objective {name}", *(f"{key}={value}" for key, value in subject.settings.items())))
    return [
        Check(
            label, key, partial(run, subject), next((DISABLED[t][key] for t in tags if key in DISABLED.get(t, {})), "")
        )
        for key, run in OBJECTIVE_CHECKS.items()
    ]


def check_objective(name: str, settings: Mapping[str, Any] | None = None, model: str = "") -> list[Check]:
    """Run every check of an objective.

    Raises:
        AssertionError: with one paragraph for each failed check.
    """
    return run_all(objective_checks_for(name, settings, model))
