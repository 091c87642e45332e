"""What is checked: a mixer class with small settings, how to build one, and what to feed it.

B batch, T time, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from orrery.core import registry
from orrery.core.errors import ConfigError, OrreryError
from orrery.core.seeds import derive, generator
from orrery.nn.contract import Context, Mixer, Place
from orrery.nn.state import map_state, state_tensors

WIDTH = 32
SMALL = {"head_dim": 8, "key_dim": 8, "value_dim": 8, "state": 8, "rank": 4, "hidden": 24}
"""Settings that are made small for the checks where a class names no `examples` of its own."""

Oracle = Callable[..., Any]


@dataclass(frozen=True)
class Subject:
    """A mixer class under test.

    name: registered name, or the class's. settings: of its config. canon: letters of `Place.canon`.
    oracle: an independent implementation, see :func:`orrery.testing.check_mixer`.
    """

    name: str
    cls: type[Mixer]
    settings: Mapping[str, Any] = field(default_factory=dict)
    width: int = WIDTH
    canon: str = ""
    tags: frozenset[str] = frozenset()
    oracle: Oracle | None = None

    @property
    def label(self) -> str:
        """Name and settings, as they stand in test ids."""
        parts = [f"{key}={value}" for key, value in self.settings.items() if not isinstance(value, list | dict)]
        parts += [f"canon={self.canon}"] if self.canon else []
        return self.name + (f"({','.join(parts)})" if parts else "")

    def build(
        self, dtype: torch.dtype = torch.float64, seed: int = 0, randomise: bool = True, width: int | None = None
    ) -> Mixer:
        """A mixer in evaluation mode; `randomise` moves every parameter off its initial value, which may hide mistakes."""
        place = Place(width=width or self.width, layer=1, depth=2, canon=self.canon)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "build"))
            try:
                mixer = self.cls(self.cls.Config.from_dict(dict(self.settings)), place)
            except OrreryError as problem:
                raise ConfigError(
                    f"{self.name} cannot be built at width {place.width} with {dict(self.settings)}: {problem} "
                    "Give the class `examples = ({...settings that fit width 32...},)`."
                ) from problem
        if randomise:
            perturb(mixer, seed)
        return self.wired(mixer.to(dtype).eval())

    def wired(self, mixer: Mixer) -> Mixer:
        """The mixer itself; what it reads beside x is put in where a check gives it none (:func:`token_ids`, :func:`memory`)."""
        if "tokens" in self.tags:
            mixer.register_forward_pre_hook(_with_tokens, with_kwargs=True)
        if "memory" in self.tags:
            mixer.register_forward_pre_hook(_with_memory, with_kwargs=True)
        return mixer

    def context(self, **fields: Any) -> Context:
        """A context for one call."""
        return Context(**fields)


def token_ids(x: Tensor) -> Tensor:
    """Ids (B,T) below 4 that stand for the tokens of a random input x (B,T,D): the signs of its first two features."""
    return (x[..., 0] > 0).long() + 2 * (x[..., 1] > 0).long()


def _with_tokens(mixer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x, state, ctx = (*args, None, None)[:3]
    ctx = ctx or Context()
    return (x, state, ctx if ctx.tokens is not None else ctx.replace(tokens=token_ids(x))), kwargs


def memory(width: int, like: Tensor) -> Tensor:
    """What every row reads (B,11,D) where a check gives a mixer no memory: standard normal, the same for all rows."""
    drawn = torch.randn(1, 11, width, generator=generator(0, "memory", width), dtype=torch.float64)
    return drawn.to(like).expand(len(like), -1, -1)


def _with_memory(mixer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x, state, ctx = (*args, None, None)[:3]
    ctx = ctx or Context()
    return (x, state, ctx if ctx.memory is not None else ctx.replace(memory=memory(x.shape[-1], x))), kwargs


def perturb(module: nn.Module, seed: int, size: float = 0.1) -> None:
    """Add Gaussian noise to every floating parameter, the same for the same names and shapes."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator(seed, "perturb", name), dtype=torch.float64)
                parameter.add_((size * noise).to(parameter.dtype))


def subjects(
    name_or_class: str | type[Mixer],
    settings: Mapping[str, Any] | None = None,
    width: int = WIDTH,
    oracle: Oracle | None = None,
) -> list[Subject]:
    """The variants of one mixer that are checked: given `settings`, else the class's `examples`, else small defaults.

    Wherever the projection can carry a convolution (`Place.canon`), one variant more has it.
    """
    name, cls, tags = resolve(name_or_class)
    given = [dict(settings)] if settings is not None else [dict(example) for example in cls.examples]
    variants = given or [small_settings(cls)]
    found = [Subject(name, cls, s, width, "", tags, oracle) for s in variants]
    with_canon = Subject(name, cls, variants[0], width, "b", tags, oracle)
    plain = sum(p.numel() for p in found[0].build(randomise=False).parameters())
    if sum(p.numel() for p in with_canon.build(randomise=False).parameters()) > plain:
        found.append(with_canon)
    return found


def resolve(name_or_class: str | type[Mixer]) -> tuple[str, type[Mixer], frozenset[str]]:
    """Name, class and tags of a registered mixer, or of a class (its `tags` attribute; causal when it has none)."""
    if isinstance(name_or_class, str):
        entry = registry.lookup(name_or_class, "mixer")
        return entry.name, cast("type[Mixer]", registry.load(entry.name, "mixer")), frozenset(entry.tags)
    for entry in registry.entries("mixer"):
        if entry.module == name_or_class.__module__ and entry.kinds["mixer"] == name_or_class.__name__:
            return entry.name, name_or_class, frozenset(entry.tags)
    return name_or_class.__name__, name_or_class, frozenset(getattr(name_or_class, "tags", ("causal",)))


def small_settings(cls: type[Mixer]) -> dict[str, Any]:
    """Settings for a quick check: sizes that the config has and :data:`SMALL` names."""
    return {
        f.name: SMALL[f.name] for f in dataclasses.fields(cls.Config) if f.name in SMALL and isinstance(f.default, int)
    }


def inputs(subject: Subject, batch: int, length: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Standard normal x (B,T,D)."""
    shape = (batch, length, subject.width)
    return torch.randn(shape, generator=generator(seed, "x", *shape), dtype=torch.float64).to(dtype)


def run(mixer: Mixer, x: Tensor, state: Any = None, **fields: Any) -> tuple[Tensor, Any]:
    """Call the mixer with a context made of `fields`; random draws inside it repeat."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        y, state = mixer(x, state, Context(**fields) if fields else None)
    return y, state


def floating(state: Any) -> list[Tensor]:
    """The floating tensors of a state (not its clock)."""
    return [tensor for tensor in state_tensors(state) if tensor.is_floating_point()]


def copied(state: Any) -> Any:
    """A state with the same values in memory of its own."""
    return map_state(lambda tensor: tensor.detach().clone(), state)
