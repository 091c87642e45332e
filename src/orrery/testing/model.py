"""The contract checks of whole models: one function of tokens, however it is called, stored, or grown.

Every check takes a :class:`ModelSubject` and raises AssertionError with numbers. B batch, T time, D width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from orrery.core import registry
from orrery.core.errors import ConfigError, StateError
from orrery.core.seeds import generator
from orrery.models.build import create_model
from orrery.models.decoder import DecoderLM
from orrery.models.encoder import Encoder
from orrery.models.encoder_decoder import EncoderDecoder
from orrery.models.wrap import wrap
from orrery.nn.contract import Context
from orrery.nn.state import state_bytes
from orrery.testing.check import Check, run_all
from orrery.testing.count import step_flops
from orrery.testing.encoder import ENCODER_CHECKS, PAIR_CHECKS
from orrery.testing.subject import perturb
from orrery.testing.tags import disabled
from orrery.testing.tolerance import assert_close, assert_finite, assert_same
from orrery.testing.whole import (
    check_flops,
    check_gradients,
    check_parameters,
    check_recomputed,
    check_stored,
    halves,
    ladder,
    must_raise,
    refuses_settings,
)

VOCAB = 61


@dataclass(frozen=True)
class ModelSubject:
    """A model's name or pattern, and the settings it is built with; or an instance, which is copied."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=lambda: {"width": 32, "depth": 2})
    tags: frozenset[str] = frozenset()
    instance: nn.Module | None = None
    vocab: int = VOCAB

    def build(self, dtype: torch.dtype = torch.float64, seed: int = 1, randomise: bool = True, **overrides: Any) -> Any:
        """A model in evaluation mode, its parameters moved off their initial values."""
        if self.instance is not None:
            return copy.deepcopy(self.instance).to(dtype).eval()
        model: Any = create_model(self.name, vocab_size=self.vocab, seed=seed, **{**self.settings, **overrides})
        if hasattr(model, "fit"):
            model.fit(self.tokens(1, 2000, seed=7)[0])
        if randomise:
            perturb(model, seed)
        return model.to(dtype).eval()

    def tokens(self, batch: int, length: int, seed: int = 0) -> Tensor:
        """Uniform tokens (B,T) int64 below the vocabulary."""
        return torch.randint(self.vocab, (batch, length), generator=generator(seed, "tokens", batch, length))


def interface(subject: ModelSubject) -> None:
    """Shapes, lazy logits, and clear errors for tokens, states and settings that do not fit."""
    model, tokens = subject.build(torch.float32), subject.tokens(2, 7)
    out = model(tokens)
    assert model.vocab_size == subject.vocab, f"vocab_size is {model.vocab_size}, not {subject.vocab}"
    assert out.logits.shape == (2, 7, subject.vocab), f"logits have shape {tuple(out.logits.shape)}"
    assert_finite(out.logits, "the logits")
    assert out.hidden.shape[:2] == (2, 7), f"hidden has shape {tuple(out.hidden.shape)}"
    too_large, empty = tokens.clone(), tokens[:, :0]
    too_large[1, 3] = subject.vocab
    must_raise(lambda: model(too_large), ConfigError, "a token outside the vocabulary")
    must_raise(lambda: model(empty), StateError, "an empty input")
    must_raise(lambda: model(tokens[:1], state=out.state), StateError, "a state of another batch size")
    must_raise(lambda: model(tokens, state=(1, 2, 3)), StateError, "a state of another kind")
    refuses_settings(subject, no_such_setting=1)


def split(subject: ModelSubject) -> None:
    """Cut anywhere, or token by token, a sequence has the same logits."""
    model, tokens = subject.build(), subject.tokens(2, 40)
    with torch.no_grad():
        whole = model(tokens)
        for cuts in ([0, 17, 40], [0, 1, 2, 33, 40], list(range(41))):
            state, found = None, []
            for begin, stop in pairwise(cuts):
                out = model(tokens[:, begin:stop], state=state)
                state = out.state
                found.append(out.logits)
            assert_close(torch.cat(found, 1), whole.logits, f"the logits of a sequence cut at {cuts[1:-1]}")


def documents(subject: ModelSubject) -> None:
    """Packed and padded rows have the logits of each document alone; a document may cross a cut."""
    model = subject.build()
    sizes = [9, 1, 14]
    texts = [subject.tokens(1, n, seed=n) for n in sizes]
    packed = torch.cat([*texts, subject.tokens(1, 4)], 1)
    segments = torch.repeat_interleave(torch.tensor([0, 2, 3, -1]), torch.tensor([*sizes, 4]))[None]
    with torch.no_grad():
        out = model(packed, segments=segments)
        begin = 0
        for text in texts:
            assert_close(
                out.logits[:, begin : begin + text.shape[1]],
                model(text).logits,
                f"the document at {begin} of a packed row",
            )
            begin += text.shape[1]
        assert not bool(out.hidden[:, begin:].any()), "hidden is not zero at padding"
        first = model(packed[:, :12], segments=segments[:, :12])
        second = model(packed[:, 12:], state=first.state, segments=segments[:, 12:])
        assert_close(torch.cat([first.hidden, second.hidden], 1), out.hidden, "a packed row cut inside a document")
        left = model(torch.cat([subject.tokens(1, 3), texts[0]], 1), segments=torch.tensor([[-1] * 3 + [0] * 9]))
        assert_close(left.logits[:, 3:], model(texts[0]).logits, "a row with padding on the left")


def causality(subject: ModelSubject) -> None:
    """Logits do not depend on later tokens."""
    model, tokens = subject.build(), subject.tokens(2, 70)
    with torch.no_grad():
        whole = model(tokens).logits
        for time in (0, 30, 63, 64):
            other = tokens.clone()
            other[:, time + 1 :] = subject.tokens(2, 70, seed=4)[:, time + 1 :]
            assert_close(
                model(other).logits[:, : time + 1],
                whole[:, : time + 1],
                f"the logits up to {time} under another future",
            )


def batch(subject: ModelSubject) -> None:
    """A row's logits do not depend on the rows beside it."""
    model, tokens = subject.build(torch.float32), subject.tokens(4, 20)
    with torch.no_grad():
        together = model(tokens).logits
        for row in range(4):
            assert_close(
                together[row : row + 1],
                model(tokens[row : row + 1]).logits,
                f"row {row} of a batch, compared to the row alone,",
            )


def seeds(subject: ModelSubject) -> None:
    """A seed names the initial parameters, leaves the global generator alone, and repeated calls give the same bits."""
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first, again, other = (subject.build(torch.float32, seed, randomise=False) for seed in (5, 5, 6))
    assert_same(torch.rand(3), expected, "torch's global generator after create_model(seed=...)")
    for name, value in first.state_dict().items():
        assert_same(again.state_dict()[name], value, f"{name} of a second model with the same seed")
        assert_finite(value, name)
    drawn = [name for name, value in first.state_dict().items() if not torch.equal(value, other.state_dict()[name])]
    assert drawn or not list(first.parameters()), "two seeds build the same model"
    tokens = subject.tokens(3, 33)
    assert_same(first(tokens).logits, first(tokens).logits, "the logits of a second call")


def saved(subject: ModelSubject) -> None:
    """save and load keep every bit, and what is loaded is independent of what was saved."""
    model, tokens = subject.build(torch.float32), subject.tokens(2, 20)
    with torch.no_grad():
        check_stored(model, lambda each: cast(Tensor, each(tokens).logits), "the logits")


def every_parameter(subject: ModelSubject) -> None:
    """Every parameter receives a finite gradient that is not zero."""
    model, tokens = subject.build(torch.float32), subject.tokens(3, 30)
    logits = model(tokens).logits
    nn.functional.cross_entropy(logits.flatten(0, 1)[:-1], tokens.flatten()[1:]).backward()
    check_gradients(model)


def parts(subject: ModelSubject) -> None:
    """embed, run and norm put together are the model; embeds may stand for tokens; recomputed blocks change no gradient."""
    model, tokens = subject.build(), subject.tokens(2, 12)
    whole = model(tokens)
    ctx = Context(tokens=tokens)  # for parts that read ids
    assert_close(model(embeds=model.embed(tokens), ctx=ctx).hidden, whole.hidden, "embeds in place of tokens")
    check_recomputed(model, lambda: cast(Tensor, model(tokens).hidden))


def costs(subject: ModelSubject) -> None:
    """state_bytes and flops are what is held and counted; the parameters without embedding are counted right."""
    model, tokens = subject.build(torch.float32), subject.tokens(2, 24)
    out = model(tokens)
    held, declared = state_bytes(out.state) / 2, model.state_bytes(24)
    assert declared == held, f"state_bytes(24) says {declared}, the state holds {held:g} bytes per sequence"

    def read() -> None:
        state = None
        for time in range(24):
            out = model(tokens[:, time : time + 1], state=state)
            state = out.state
            assert out.logits is not None

    check_flops(read, step_flops(model, 24), 24)
    check_parameters(model, (model.embed, model.head, model.position_embed))


def canon(subject: ModelSubject) -> None:
    """`canon="abcd"` adds parameters to any architecture, and keeps cuts, documents and time's arrow."""
    wide = ModelSubject(subject.name, {**subject.settings, "canon": "abcd"}, subject.tags)
    plain, layered = (s.build(torch.float32).num_parameters() for s in (subject, wide))
    assert layered > plain, f"canon='abcd' adds no parameter ({layered} and {plain})"
    for check in (split, documents, causality, saved, every_parameter, costs):
        check(wide)


def learns(subject: ModelSubject) -> None:
    """Forty steps of plain AdamW on a repeating text at least halve its loss."""
    model = subject.build(torch.float32, randomise=False).train()
    tokens = ((torch.arange(33) % 7)[None].expand(4, -1) * 3 + torch.arange(4)[:, None]) % subject.vocab
    halves(model, lambda: nn.functional.cross_entropy(model(tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten()))


MODEL_CHECKS: dict[str, Callable[[ModelSubject], None]] = {
    "interface": interface,
    "split": split,
    "documents": documents,
    "causality": causality,
    "batch": batch,
    "seeds": seeds,
    "saved": saved,
    "every_parameter": every_parameter,
    "parts": parts,
    "costs": costs,
    "ladder": ladder,
    "canon": canon,
    "learns": learns,
}


def model_checks_for(model: str | nn.Module, settings: Mapping[str, Any] | None = None) -> list[Check]:
    """The checks of a model, to be run or handed to `pytest.mark.parametrize`; arguments as in :func:`check_model`."""
    subject = _instance(model) if isinstance(model, nn.Module) else _named(model, settings)
    checks = ENCODER_CHECKS if "encoder" in subject.tags else PAIR_CHECKS if "encoder-decoder" in subject.tags else MODEL_CHECKS
    return [
        Check(f"model {subject.name}", key, partial(run, subject), disabled(key, subject.tags, "model"))
        for key, run in checks.items()
    ]


def _instance(module: nn.Module) -> ModelSubject:
    """A subject that is an instance: one of the frames' own models, or anything that `orrery.wrap` takes."""
    kind = {Encoder: "encoder", EncoderDecoder: "encoder-decoder", DecoderLM: "causal"}.get(type(module))
    model: Any = module if kind or isinstance(module, DecoderLM) else wrap(module)
    name = getattr(model, "name", None) or model.config.architecture
    return ModelSubject(name, {}, frozenset({"built", kind} if kind else {"instance"}), copy.deepcopy(model), model.vocab_size)


def _named(name: str, settings: Mapping[str, Any] | None) -> ModelSubject:
    tags: set[str] = set()
    small: Mapping[str, Any] = {"width": 32, "depth": 2}
    if all(c.isalnum() or c in "-_." for c in name):
        entry = registry.lookup(name)
        tags |= set(entry.tags)
        if "model" in entry.kinds:
            tags.add("whole")
            small = next(iter(getattr(registry.load(name, "model"), "examples", ())), {})
    return ModelSubject(name, small if settings is None else settings, frozenset(tags))


def check_model(model: str | nn.Module, settings: Mapping[str, Any] | None = None) -> list[Check]:
    """Run every check of a model.

    Args:
        model: a registered name, a pattern such as "mamba2 + attention", a model of `create_model`, or any module that
            `orrery.wrap` takes (of which less can be asked: no documents, no sizes, no storage).
        settings: arguments of `create_model` that make it small; by default width 32 and depth 2, and for a whole model
            the first of its class's `examples`. A model with a method `fit(tokens)` is fitted before it is checked.

    Raises:
        AssertionError: with one paragraph for each failed check.
    """
    return run_all(model_checks_for(model, settings))
