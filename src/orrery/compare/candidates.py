"""What takes part in a comparison: names, patterns, the user's own files and modules, each with a label of its own.

    "mamba2"                   a name of `orrery list`, brought to the comparison's size
    "mamba2*3 + attention"     a pattern
    "transformer(canon=abcd)"  with settings
    "./my_mixer.py"            a file of yours that holds register lines; it is imported, so name only files you trust
    orrery.wrap(my_module)     a module (or a plain `nn.Module`) of your own size, trained in this process
    lambda: MyModule()         a function that builds one: drawn anew for every seed

A file or module is only ever taken from what the caller passes; nothing in a config or result can name one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from orrery.compare.result import ArchitectureRow, Quantity
from orrery.core import registry
from orrery.core.config import Config, config_hash
from orrery.core.errors import ConfigError, OrreryError
from orrery.core.seeds import derive
from orrery.models.build import create_model
from orrery.models.config import DecoderConfig
from orrery.models.ladder import TOLERANCE, rung
from orrery.models.patterns import parse_pattern
from orrery.models.wrap import Wrapped, wrap
from orrery.train.budget import training_flops

_COUNTS = "its tables grow with the budget, and of its parameters, which its size does not tell, only the weights of its mix are trained"
FLOPS = "three times the forward formula of the model, output layer included"


@dataclass(frozen=True)
class Candidate:
    """One architecture that takes part."""

    label: str
    spec: str  # as the user named it
    name: str = ""  # what `create_model` takes; empty for a module
    file: str = ""  # the user's file that registers the name
    module: Callable[[int], nn.Module] | None = field(default=None, compare=False)  # seed -> a module with fresh weights
    notes: tuple[str, ...] = ()

    @property
    def portable(self) -> bool:
        """Whether another process can build it from text."""
        return self.module is None

    def build(
        self, size: str | None, vocab_size: int, seed: int = 0, settings: Mapping[str, Any] | None = None
    ) -> nn.Module:
        """The model, its initial weights drawn from `seed`; `settings` (width, depth, ...) do not reach a module."""
        if self.module is not None:
            return self.module(seed)
        return create_model(self.name, size, vocab_size=vocab_size, seed=seed, **(settings or {}))


def candidates(architectures: Iterable[Any]) -> list[Candidate]:
    """Resolve what the user listed, in order.

    Raises:
        ConfigError: for nothing to compare, a thing that is no architecture, or one named twice.
        UnknownNameError: with near matches.
    """
    found: list[Candidate] = []
    for item in [architectures] if isinstance(architectures, str) else list(architectures):
        for candidate in _resolve(item):
            labels = [other.label for other in found]
            if candidate.label in labels and candidate.portable:
                raise ConfigError(f"'{candidate.label}' is named twice; name every architecture once")
            found.append(_renamed(candidate, labels))
    if not found:
        raise ConfigError("nothing to compare: name at least one architecture; `orrery list` shows them")
    return found


def _resolve(item: Any) -> list[Candidate]:
    if isinstance(item, nn.Module):
        wrapped = _wrapped(item)
        return [Candidate(wrapped.name, f"module {wrapped.name}", module=_redrawn(wrapped), notes=_own_draws(wrapped))]
    if isinstance(item, str):
        return _named(item.strip())
    if callable(item):
        trial = _wrapped(item())
        return [Candidate(trial.name, f"module {trial.name}", module=_made(item))]
    raise ConfigError(f"an architecture is a name, a pattern, a file or an nn.Module, not {type(item).__name__}")


def _named(text: str) -> list[Candidate]:
    if not text:
        raise ConfigError("an architecture's name is empty; `orrery list` shows the names")
    if text.endswith(".py"):
        entries = [entry for entry in registry.add_file(text) if set(entry.kinds) & set(registry.MODEL_KINDS)]
        if not entries:
            raise ConfigError(f"'{text}' registers no mixer, architecture or model")
        return [Candidate(entry.name, text, entry.name, file=text) for entry in entries]
    for layer in parse_pattern(text):
        for branch in layer:
            _check_predicts(registry.lookup(branch.name))  # unknown names are told now, with near matches
    counted = [branch.name for layer in parse_pattern(text) for branch in layer if "counted" in registry.lookup(branch.name).tags]
    return [Candidate(text, text, text, notes=tuple(f"{name} counts the text that it reads: {_COUNTS}" for name in counted))]


def _check_predicts(entry: registry.Entry) -> None:
    """Raise for what is no language model: an encoder sees what it would have to predict."""
    if "encoder-decoder" in entry.tags:
        raise ConfigError(f"'{entry.name}' is an encoder-decoder: it answers a source and models no text by itself; compare it over tasks")
    if "bidirectional" in entry.tags:
        raise ConfigError(
            f"'{entry.name}' is an encoder: it sees the tokens that a language model has to predict; compare it over a task (--task FILE), "
            "or choose causal architectures (`orrery list --tag causal`)"
        )


def _renamed(candidate: Candidate, taken: Sequence[str]) -> Candidate:
    """Two modules of one class get numbers."""
    label, count = candidate.label, 1
    while label in taken:
        count += 1
        label = f"{candidate.label} ({count})"
    return candidate if label == candidate.label else Candidate(
        label, candidate.spec, candidate.name, candidate.file, candidate.module, candidate.notes
    )


def _made(factory: Callable[[], Any]) -> Callable[[int], nn.Module]:
    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "torch"))
            return _wrapped(factory())

    return build


def _redrawn(wrapped: Wrapped) -> Callable[[int], nn.Module]:
    """Copies of a module whose parts have drawn their weights anew (every part that knows `reset_parameters`)."""

    def build(seed: int) -> nn.Module:
        fresh = copy.deepcopy(wrapped)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "torch"))
            for part in fresh.modules():
                reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
                if callable(reset):
                    reset()
        return fresh

    return build


def _own_draws(wrapped: Wrapped) -> tuple[str, ...]:
    """Name parts whose weights cannot be drawn anew, so that all seeds start from the same values there."""
    fixed = [
        name
        for name, part in wrapped.named_modules()
        if any(True for _ in part.parameters(recurse=False))
        and not callable(getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None)))
    ]
    if not fixed:
        return ()
    kind = type(wrapped.module).__name__
    parts = ", ".join(kind if name == "module" else name.removeprefix("module.") for name in fixed[:3])
    note = (
        f"{wrapped.name}: {parts}{' and others' if len(fixed) > 3 else ''} cannot draw new initial weights (no "
        "reset_parameters), so all seeds start from the same values there; pass a function that builds the module instead"
    )
    return (note,)


def _wrapped(module: Any) -> Wrapped:
    """`orrery.wrap`, with whatever the trial run raises told as one sentence."""
    try:
        return wrap(module)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{type(module).__name__} cannot be called on token ids (B,T) int64: {first}") from error


def describe(
    candidate: Candidate, size: str | None, vocab_size: int, length: int = 256, settings: Mapping[str, Any] | None = None
) -> ArchitectureRow:
    """Identity, size and analytic FLOPs of a candidate; nothing is allocated for what text describes.

    Args:
        length: tokens of a row, for the FLOPs per token.
        settings: of every model beside its size (width, depth, ...).

    Raises:
        OrreryError: when it cannot be built, has nothing to train, or its vocabulary is too small.
    """
    row = ArchitectureRow(candidate.label, candidate.spec)
    with torch.device("meta" if candidate.portable else "cpu"):
        model: Any = candidate.build(size, vocab_size, settings=settings)
    if int(model.vocab_size) < vocab_size:
        raise ConfigError(
            f"'{candidate.label}' has a vocabulary of {model.vocab_size}, but the tokenizer has {vocab_size} ids; "
            "build it with the tokenizer's vocabulary"
        )
    if not any(True for _ in model.parameters()):
        raise ConfigError(
            f"'{candidate.label}' has no parameters to train by steps; counting models stand in every report as lines for orientation, "
            "and 'infinigram' counts as it reads"
        )
    config = getattr(model, "config", None)
    row.config = config.to_dict() if isinstance(config, Config) else {"module": repr(model)[:2000]}
    row.config_hash = config_hash(row.config)
    row.parameters = int(model.num_parameters())
    row.costs.parameters = row.parameters
    row.costs.train_flops = Quantity(training_flops(float(model.flops(length))) / length, "FLOP/token", "analytic", FLOPS)
    row.costs.parameters_total = int(model.num_parameters(embedding=True))
    if candidate.portable:
        row.summary, row.paper = _about(candidate.name)
    if size is not None:
        target = rung(size).parameters
        row.size_error = row.parameters / target - 1
        row.matched = isinstance(config, DecoderConfig) and abs(row.size_error) <= TOLERANCE
    return row


def _about(name: str) -> tuple[str, str]:
    """Summary and papers of a name, or of all names of a pattern."""
    names = list(dict.fromkeys(branch.name for layer in parse_pattern(name) for branch in layer))
    entries = []
    for part in names:
        try:
            entries.append(registry.lookup(part))
        except OrreryError:
            continue
    papers = ", ".join(dict.fromkeys(entry.paper for entry in entries if entry.paper))
    return (entries[0].summary if len(entries) == 1 else "hybrid of " + ", ".join(names)), papers
