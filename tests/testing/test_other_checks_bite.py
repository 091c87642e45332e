"""The checks of models, objectives, optimizers and tasks fail for what breaks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from orrery.data.task import UNSCORED, Task, TaskConfig
from orrery.models.build import create_model
from orrery.models.output import Output
from orrery.objectives.next_token import NextToken
from orrery.optim.adamw import AdamW, AdamWConfig
from orrery.testing import encoder as encoders
from orrery.testing import model as models
from orrery.testing import objective as objectives
from orrery.testing import optimizer as optimizers
from orrery.testing import task as tasks

# ---------------------------------------------------------------- models


class Broken(models.ModelSubject):
    """A transformer whose forward is wrapped by `spoil`."""

    def spoil(self, model: Any) -> Any:
        return model

    def build(self, dtype: torch.dtype = torch.float64, seed: int = 1, randomise: bool = True, **overrides: Any) -> Any:
        model = super().build(dtype, seed, randomise, **overrides)
        return self.spoil(model) or model


def wrapped(change: Any) -> type[Broken]:
    class Spoiled(Broken):
        def spoil(self, model: Any) -> Any:
            original = model.forward
            model.forward = lambda *args, **kwargs: change(original, *args, **kwargs)
            return model

    return Spoiled


def _forget(forward: Any, tokens: Any = None, state: Any = None, **kwargs: Any) -> Any:
    return forward(tokens, state=None if tokens.shape[1] == 31 else state, **kwargs)


def _one_document(forward: Any, tokens: Any = None, segments: Any = None, **kwargs: Any) -> Any:
    return forward(tokens, segments=None if segments is None else segments.clamp(max=0), **kwargs)


def _see_ahead(forward: Any, tokens: Any = None, **kwargs: Any) -> Any:
    out = forward(tokens, **kwargs)
    return Output(out.hidden + 1e-3 * out.hidden.roll(-1, 1), out.state, None, out._head)


def _mix_rows(forward: Any, tokens: Any = None, **kwargs: Any) -> Any:
    out = forward(tokens, **kwargs)
    return Output(out.hidden + 1e-3 * out.hidden.mean(0, keepdim=True), out.state, None, out._head)


def _ignore_embeds(forward: Any, tokens: Any = None, embeds: Any = None, **kwargs: Any) -> Any:
    return forward(tokens, embeds=None if embeds is None else 0.9 * embeds, **kwargs)


def _accept_anything(forward: Any, tokens: Any = None, **kwargs: Any) -> Any:
    return forward(tokens % models.VOCAB, **kwargs)


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (_forget, models.split),
        (_one_document, models.documents),
        (_see_ahead, models.causality),
        (_mix_rows, models.batch),
        (_ignore_embeds, models.parts),
        (_accept_anything, models.interface),
    ],
)
def test_broken_call_fails(change: Any, check: Any) -> None:
    check(models.ModelSubject("transformer"))
    with pytest.raises(AssertionError):
        check(wrapped(change)("transformer"))


class Unseeded(Broken):
    def spoil(self, model: Any) -> None:
        torch.rand(1)


class DeadHead(Broken):
    def spoil(self, model: Any) -> None:
        model.extra = torch.nn.Parameter(torch.zeros(3))


class Overstated(Broken):
    def spoil(self, model: Any) -> None:
        flops = model.flops
        model.flops = lambda length: 3 * flops(length)


class Hidden(Broken):
    def spoil(self, model: Any) -> None:
        noise = torch.randn(1).item()
        model.blocks[0].register_forward_hook(lambda module, args, out: (out[0] + noise, out[1]))


class Stuck(Broken):
    def spoil(self, model: Any) -> None:
        for parameter in model.parameters():
            parameter.register_hook(torch.zeros_like)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (Unseeded, models.seeds),
        (DeadHead, models.every_parameter),
        (Overstated, models.costs),
        (Hidden, models.saved),
        (Stuck, models.learns),
    ],
)
def test_broken_model_fails(broken: type[Broken], check: Any) -> None:
    check(models.ModelSubject("transformer"))
    with pytest.raises(AssertionError):
        check(broken("transformer"))


def test_ladder_and_canon_bite(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = models.ModelSubject("transformer")
    monkeypatch.setattr("orrery.testing.whole.TOLERANCE", 1e-9)
    with pytest.raises(AssertionError, match="parameters"):
        models.ladder(subject)
    deaf = models.ModelSubject("transformer", {"width": 32, "depth": 2, "canon": "abcd"})
    with pytest.raises(AssertionError, match="adds no parameter"):
        models.canon(deaf)


class Strange(torch.nn.Module):
    """A stranger's module: causal average of embeddings, or (broken) one that sees the whole row."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal, self.embed, self.head = causal, torch.nn.Embedding(19, 64), torch.nn.Linear(64, 19)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = self.embed(tokens)
        counts = torch.arange(1, h.shape[1] + 1, dtype=h.dtype)[:, None]
        return self.head(h + (h.cumsum(1) / counts if self.causal else h.mean(1, keepdim=True)))


def test_a_wrapped_module_is_checked() -> None:
    ran = models.check_model(Strange(causal=True))
    assert [check.name for check in ran if not check.disabled] == ["split", "causality", "batch", "learns"]
    with pytest.raises(AssertionError, match="Strange, causality: the logits up to 0 under another future"):
        models.check_model(Strange(causal=False))


def test_models_that_are_built_already_are_checked_as_what_they_are() -> None:
    encoder = create_model("bert", width=32, depth=2, vocab_size=61, seed=1)
    ran = {check.name for check in models.check_model(encoder) if not check.disabled}
    assert ran == set(encoders.ENCODER_CHECKS) - {"seeds", "ladder"}
    pair = {check.name for check in models.model_checks_for(create_model("t5", width=32, depth=1, vocab_size=61, head_dim=8))}
    assert pair == set(encoders.PAIR_CHECKS)
    sees_padding = encoder.blocks[0].mixer
    sees_padding.packs = False
    sees_padding.mix = lambda x, state, ctx: (x.mean(1, keepdim=True).expand_as(x), None)
    encoder.packs = False
    with pytest.raises(AssertionError, match="bert, padding"):
        models.check_model(encoder)


# ---------------------------------------------------------------- objectives


class CountsPadding(NextToken):
    def __call__(self, model, batch):
        return super().__call__(model, {"tokens": batch["tokens"]})


class SumsInsteadOfMeans(NextToken):
    def __call__(self, model, batch):
        loss, metrics = super().__call__(model, batch)
        return loss * metrics["tokens"], metrics


class KeepsTheGraph(NextToken):
    def __call__(self, model, batch):
        loss, metrics = super().__call__(model, batch)
        return loss, {**metrics, "loss": loss}


class HalvesTheGradient(NextToken):
    def __call__(self, model, batch):
        loss, metrics = super().__call__(model, batch)
        return 0.5 * loss + 0.5 * loss.detach(), metrics


class MindsTheId(NextToken):
    def __call__(self, model, batch):
        loss, metrics = super().__call__(model, batch)
        return loss * (1 + 1e-3 * float(batch.get("segments", torch.zeros(1)).max())), metrics


class Rolls(NextToken):
    def __call__(self, model, batch):
        loss, metrics = super().__call__(model, batch)
        return loss * (1 + 1e-4 * np.random.default_rng().random()), metrics


class Coarse(NextToken):
    def __call__(self, model, batch):
        loss, metrics = super().__call__(model, batch)
        return (loss.bfloat16().float() if loss.dtype == torch.float32 else loss) * 1.001, metrics


class Forgets(NextToken):
    def __call__(self, model, batch):
        return super().__call__(model, {**batch, "state": None} if "state" in batch else batch)


class Frozen(NextToken):
    def __call__(self, model, batch):
        loss, metrics = super().__call__(model, batch)
        return loss * 0 + loss.detach(), metrics


@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (KeepsTheGraph, objectives.interface),
        (HalvesTheGradient, objectives.gradients),
        (CountsPadding, objectives.padding),
        (SumsInsteadOfMeans, objectives.accumulation),
        (MindsTheId, objectives.one_document),
        (Rolls, objectives.determinism),
        (Coarse, objectives.precision),
        (Frozen, objectives.learns),
        (Forgets, objectives.carry),
    ],
)
def test_broken_objective_fails(cls: type[NextToken], check: Any) -> None:
    class Subject(objectives.ObjectiveSubject):
        def objective(self) -> Any:
            return cls()

    check(objectives.ObjectiveSubject("next-token"))
    with pytest.raises(AssertionError):
        check(Subject("next-token"))


# ---------------------------------------------------------------- optimizers


class Climbs(AdamW):
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.neg_()
        return super().step(closure)


class Shakes(AdamW):
    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(1 + 1e-3 * float(np.random.default_rng().random()))


class HidesState(AdamW):
    count = 0

    def step(self, closure=None):
        self.count += 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(1 + 0.1 * self.count)
        return super().step(closure)


class TakesFrozen(AdamW):
    def __init__(self, model, lr, config=None):
        super().__init__(model, lr, config)
        self.add_param_group({"params": [p for p in model.parameters() if not p.requires_grad]})


class IgnoresTheRate(AdamW):
    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] = 1e-2
        return super().step(closure)


class DecaysEverything(AdamW):
    def __init__(self, model, lr, config=None):
        super().__init__(model, lr, config)
        for group in self.param_groups:
            group["weight_decay"] = config.weight_decay if config else 0.1


@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (Climbs, optimizers.descends),
        (Shakes, optimizers.determinism),
        (HidesState, optimizers.resume),
        (TakesFrozen, optimizers.groups),
        (IgnoresTheRate, optimizers.untouched),
        (IgnoresTheRate, optimizers.rate_scales),
        (DecaysEverything, optimizers.decay),
    ],
)
def test_broken_optimizer_fails(cls: type, check: Any) -> None:
    check(optimizers.OptimizerSubject(AdamW))
    with pytest.raises(AssertionError):
        check(optimizers.OptimizerSubject(cls))


def test_optimizer_settings_reach_the_class() -> None:
    model = create_model("transformer", width=32, depth=1, vocab_size=11)
    made = optimizers.OptimizerSubject(AdamW, {"beta1": 0.5}).make(model)
    assert made.defaults["betas"][0] == 0.5
    assert AdamWConfig().beta1 == 0.9


# ---------------------------------------------------------------- tasks


@dataclass(frozen=True, kw_only=True)
class CopyConfig(TaskConfig):
    """length of the copied text."""

    length: int = 8


class Copy(Task):
    """The target at t is the token at t."""

    name = "mqar"  # a registered name, so that settings can be refused
    Config = CopyConfig
    vocab_size, chance, optimum = 16, 1 / 16, 1.0

    def generate(self, random, batch_size):
        tokens = random.integers(0, 16, (batch_size, self.length))
        return tokens, tokens.copy()


class Outside(Copy):
    vocab_size = 12


class Remembers(Copy):
    calls = 0

    def generate(self, random, batch_size):
        Remembers.calls += 1
        tokens = (random.integers(0, 16, (batch_size, self.length)) + Remembers.calls) % 16
        return tokens, tokens.copy()


class Repeats(Copy):
    def generate(self, random, batch_size):
        tokens = np.arange(batch_size * self.length).reshape(batch_size, self.length) % 16
        return tokens, tokens.copy()


class Unanswerable(Copy):
    def generate(self, random, batch_size):
        tokens = random.integers(0, 2, (batch_size, self.length))
        return tokens, random.integers(0, 16, tokens.shape)


class OneAnswer(Copy):
    def generate(self, random, batch_size):
        tokens = random.integers(0, 16, (batch_size, self.length))
        return tokens, np.where(np.arange(self.length) % 2 == 0, 5, UNSCORED) + np.zeros_like(tokens)


class TakesAnySize(Copy):
    def arrays(self, step, batch_size, seed):
        return super().arrays(max(step, 0), max(batch_size, 1), seed)


@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (Outside, tasks.interface),
        (Remembers, tasks.pure),
        (Repeats, tasks.pure),
        (Unanswerable, tasks.answerable),
        (OneAnswer, tasks.chance),
        (TakesAnySize, tasks.refuses),
    ],
)
def test_broken_task_fails(cls: type[Task], check: Any) -> None:
    check(Copy())
    with pytest.raises(AssertionError):
        check(cls())
