"""What may be done to a carried state between windows, so that a model reads on beyond the length it was trained on.

Paper: Stuffed Mamba: State Collapse and State Capacity of RNN-Based Long-Context Modeling (arXiv 2410.07145):
    a state that is large for the length it was trained on never had to learn to forget, and beyond that length it
    collapses. Two of its remedies without training are policies here; the third, forgetting more, changes parameters
    (:mod:`orrery.methods.forget_more`).

    normalise   ||S|| > p:  S <- p S / ||S||, per head
    slide       S^(w)_t = S_t - (prod_{i=t-w+1..t} a_i) S_{t-w}:  what the last w tokens wrote, exactly, since the state
                is linear in what is written
    restart     S <- 0: windows from an empty state, the plain alternative

Differs from the paper: they act between windows, not after every token; with windows of one token they are the paper's.
So `slide:w` keeps between w and w + window - 1 tokens. `normalise:1.5x` takes as p 1.5 times the norm that the head's
state had after the first window, a length that the model knows; `normalise:40` takes 40.

They act on the state fields whose decay a part reports ("decay_log", :class:`orrery.nn.contract.Aux`).

B rows, H heads, K, V dimensions of a head's state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orrery.core.errors import ConfigError, suggest
from orrery.nn.contract import Aux

Place = tuple[int, str]  # layer, field of its mixer's state


class StatePolicy:
    """A policy as :func:`orrery.evaluate.carried.read_carried` calls it: begin, then after every window the state."""

    wanted: tuple[str, ...] = ("decay_log",)

    def begin(self) -> None:
        """New rows begin with the next call."""

    def select(self, index: Tensor) -> None:
        """Only these rows go on."""

    def __call__(self, state: Any, aux: Aux, window: int) -> Any:
        """The state to go on with, from the one after a window of so many tokens."""
        decays = linear_decays(aux)
        for layer, fields in decays.items():
            for name, decay in fields.items():
                old = getattr(state.blocks[layer][1], name)
                state = with_field(state, layer, name, self.change((layer, name), old, decay, window))
        self.end(window)
        return state

    def change(self, place: Place, old: Tensor, decay: Tensor, window: int) -> Tensor:
        """A field (B,H,K,V) after a window; decay (B,H,1|K,1) is what the window multiplied the state by."""
        return old

    def end(self, window: int) -> None:
        """All fields of this window are done."""


class NormaliseState(StatePolicy):
    """Bound each head's norm by `limit`, or by `limit` times its norm after the first window (`relative`)."""

    def __init__(self, limit: float, relative: bool = True) -> None:
        if not limit > 0:
            raise ConfigError(f"the bound of a state's norm must be positive, not {limit}")
        self.limit, self.relative = limit, relative
        self.known: dict[Place, Tensor] = {}

    def begin(self) -> None:
        self.known = {}

    def select(self, index: Tensor) -> None:
        self.known = {place: norm[index] for place, norm in self.known.items()}

    def change(self, place: Place, old: Tensor, decay: Tensor, window: int) -> Tensor:
        norm = torch.linalg.vector_norm(old, dim=(-2, -1), keepdim=True)
        bound = self.limit * self.known.setdefault(place, norm) if self.relative else self.limit
        return old * (bound / norm.clamp(min=1e-30)).clamp(max=1.0)


class _Past(NamedTuple):
    """What one window wrote (B,H,K,V), and what later windows have multiplied it by (B,H,1|K,1)."""

    written: Tensor
    decay: Tensor


class SlideState(StatePolicy):
    """Keep what the last `tokens` tokens wrote (rounded up to whole windows)."""

    def __init__(self, tokens: int) -> None:
        if tokens < 1:
            raise ConfigError(f"a state's window must hold at least one token, not {tokens}")
        self.tokens = tokens
        self.begin()

    def begin(self) -> None:
        self.past: dict[Place, list[_Past]] = {}
        self.before: dict[Place, Tensor] = {}

    def select(self, index: Tensor) -> None:
        self.past = {p: [_Past(*(t[index] for t in one)) for one in kept] for p, kept in self.past.items()}
        self.before = {place: tensor[index] for place, tensor in self.before.items()}

    def change(self, place: Place, old: Tensor, decay: Tensor, window: int) -> Tensor:
        before = self.before.get(place)
        written = old if before is None else old - decay * before
        kept = [_Past(one.written, one.decay * decay) for one in self.past.get(place, [])]
        kept.append(_Past(written, torch.ones_like(decay)))
        while (len(kept) - 1) * window >= self.tokens:
            gone = kept.pop(0)
            old = old - gone.decay * gone.written
        self.past[place], self.before[place] = kept, old
        return old


class RestartState(StatePolicy):
    """Begin from an empty state every `tokens` tokens (rounded up to whole windows)."""

    wanted = ()

    def __init__(self, tokens: int) -> None:
        if tokens < 1:
            raise ConfigError(f"a restart needs at least one token between, not {tokens}")
        self.tokens, self.read = tokens, 0

    def begin(self) -> None:
        self.read = 0

    def __call__(self, state: Any, aux: Aux, window: int) -> Any:
        """None, a state that has seen nothing, once enough was read."""
        self.read += window
        if self.read < self.tokens:
            return state
        self.read = 0
        return None


def linear_decays(aux: Aux) -> dict[int, dict[str, Tensor]]:
    """By layer and state field, the factor (B,H,1|K,1) by which a window has multiplied what stood in the state before it.

    Raises:
        ConfigError: when no layer reports it.
    """
    reports: dict[int, dict[str, Tensor]] = aux.reports.get("decay_log", {})
    if not reports:
        raise ConfigError(
            "no layer of this model reports the decay of a linear state, which this needs; mamba2, retnet and gla do (a mixer "
            "reports it with ctx.report_decay)"
        )
    return {layer: {name: _factor(log) for name, log in fields.items()} for layer, fields in reports.items()}


def _factor(log: Tensor) -> Tensor:
    total = log.to(torch.promote_types(log.dtype, torch.float32)).sum(1).exp()
    return total[..., None, None] if log.dim() == 3 else total[..., None]


def with_field(state: Any, layer: int, name: str, value: Tensor) -> Any:
    """A decoder's state with one field of one layer's mixer changed."""
    block = state.blocks[layer]
    mixer = block[1]._replace(**{name: value})
    changed = (block[0], mixer, *block[2:])
    return state._replace(blocks=(*state.blocks[:layer], changed, *state.blocks[layer + 1 :]))


def _normalise(value: str) -> StatePolicy:
    return NormaliseState(float(value.removesuffix("x")), relative=value.endswith("x"))


_KINDS: dict[str, Callable[[str], StatePolicy]] = {
    "normalise": _normalise,
    "slide": lambda value: SlideState(int(value)),
    "restart": lambda value: RestartState(int(value)),
}


def create_policy(text: str) -> StatePolicy:
    """A policy from `slide:512`, `normalise:1.5x`, `normalise:40` or `restart:256`.

    Raises:
        ConfigError: for anything else.
    """
    name, _, value = text.partition(":")
    if name not in _KINDS:
        known = "slide:TOKENS, normalise:LIMIT, normalise:TIMESx, restart:TOKENS"
        raise ConfigError(f"unknown policy '{name}'.{suggest(name, _KINDS)} Policies: {known}")
    try:
        return _KINDS[name](value)
    except ValueError as error:
        raise ConfigError(f"'{text}' needs a number behind the colon, as in slide:512 or normalise:1.5x") from error
