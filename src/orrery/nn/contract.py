"""The contract of every part of a model: `y, state = part(x, state=None, ctx=None)`; x and y (B,T,D).

Mixers, channel mixers and bricks alike obey it. A part is written as `mix`, which may count on three things: padding is
trailing, documents and positions are worked out (`ctx.time`), and outputs at padding are zeroed for it. Any T continues
a state: T = 1 is a decode step. A state is a value (:mod:`orrery.nn.state`); parts never detach.

B batch, T time, D width, H heads, K key or head dimension, V value dimension, S cache length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from orrery.core.config import Config
from orrery.core.errors import ConfigError, StateError
from orrery.nn.state import state_tensors
from orrery.nn.timeline import Timeline, fresh_clock, gather_time, plan, spread_time

if TYPE_CHECKING:
    from orrery.nn.packing import Packing


class Aux:
    """What a caller asks parts to report, and where they leave it.

    `Aux("attention_mass", "routing")` requests two reports; a part calls `ctx.aux.put("routing", layer, value)` for
    what it has. `losses` collects additional training losses (load balancing) by name.

    Reports with a fixed form: "decay_log", of a part whose state has fields that obey S_t = exp(g_t) S_{t-1} + (what the
    tokens write): {field: g (B,T,H) or (B,T,H,K)} for fields (B,H,K,V).
    """

    def __init__(self, *wanted: str) -> None:
        self.wanted = frozenset(wanted)
        self.reports: dict[str, dict[int, Any]] = {}
        self.losses: dict[str, Tensor] = {}

    def put(self, name: str, layer: int, value: Any) -> None:
        """Leave a report, if anybody asked for it."""
        if name in self.wanted:
            self.reports.setdefault(name, {})[layer] = value

    def add_loss(self, name: str, value: Tensor) -> None:
        """Add to a training loss that objectives put on top of their own."""
        self.losses[name] = self.losses[name] + value if name in self.losses else value


@dataclass(frozen=True)
class Context:
    """What a call knows beside its input. The frame makes one and hands it to every part.

    segments: (B,T) int64, document ids, -1 padding (see :mod:`orrery.nn.timeline`).
    positions: (B,T) or (B,T,2) int64 given by the user in place of those that segments imply.
    tokens: (B,T) int64, for token-aware parts.
    bias: (B,H|1,T,T) float, added to attention scores.
    memory, memory_segments: (B,M,D) and (B,M), what cross-attention reads.
    cond: (B,D) or (B,T,D), conditioning (diffusion time, class).
    aux: reports and extra losses, both ways.
    time: derived once per call.
    donate: the caller gives its state away; buffers may be overwritten in place (only `generate` sets it).
    shared: what a layer leaves for later ones of the same call, by name (RWKV-7's first values); the frame makes it anew
        for every call. It holds activations of these very tokens, so it is no state: cuts and steps need nothing of it.
        "embedding" (B,T,D) is what the first layer was given; frames leave it where a part `recalls` it.
    last: only the last token's output is asked for, of a call without padding: a part may give y (B,1,D). States are the same.
    packing: of a decoder's packed row (:mod:`orrery.nn.packing`): where its tokens stood, for parts that read a memory row by row.
    """

    segments: Tensor | None = None
    positions: Tensor | None = None
    tokens: Tensor | None = None
    bias: Tensor | None = None
    memory: Tensor | None = None
    memory_segments: Tensor | None = None
    cond: Tensor | None = None
    aux: Aux | None = None
    time: Timeline | None = None
    donate: bool = False
    shared: dict[str, Tensor] | None = None
    packing: Packing | None = None
    last: bool = False

    def replace(self, **changes: Any) -> Context:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def wants(self, report: str) -> bool:
        """Whether the caller asked for a report."""
        return self.aux is not None and report in self.aux.wanted

    def report_decay(self, layer: int, **decays: Tensor) -> None:
        """Leave the report "decay_log" of a layer, where it is asked for: by state field, g (B,T,H) or (B,T,H,K)."""
        if self.aux is not None and "decay_log" in self.aux.wanted:
            self.aux.put("decay_log", layer, decays)

    @property
    def timeline(self) -> Timeline:
        """`time`, which the base class has always filled in before `mix` runs."""
        assert self.time is not None
        return self.time


@dataclass(frozen=True, kw_only=True)
class Place(Config):
    """Where a part stands: width D, layer index (0-based), depth of the model, which Canon layers are on, and the width of what
    it puts out where that is another (out)."""

    width: int
    layer: int = 0
    depth: int = 1
    canon: str = ""
    out: int | None = None

    def __post_init__(self) -> None:
        if set(self.canon) - set("abcd") or len(set(self.canon)) < len(self.canon):
            raise ConfigError(f"canon '{self.canon}' must be some of the letters a, b, c, d, each once")


@dataclass(frozen=True, kw_only=True)
class PartConfig(Config):
    """Base of every mixer's and channel mixer's config."""


class Part(nn.Module):
    """Base of all parts. Subclasses set `Config`, build themselves in `__init__(config, place)`, and write `mix`."""

    Config: ClassVar[type[PartConfig]] = PartConfig
    State: ClassVar[Any] = None  # the NamedTuple that `mix` returns; None for a stateless part
    honours: ClassVar[frozenset[str]] = frozenset()  # of: positions, bias, memory, cond; others raise when set
    reach: int | None = None  # of a channel mixer with a state: earlier tokens that an output and the state need; None for all
    recalls: bool = False  # reads ctx.shared["embedding"]
    packs: bool = False  # a row of many documents costs it no more than rows of one each (:mod:`orrery.nn.packing`)
    examples: ClassVar[tuple[dict[str, Any], ...]] = ()  # small settings (for width 32) that the contract checks run with

    _fitting: tuple[torch.Size, ...] | None = None  # shapes of the state that was last found to fit

    def __init__(self, config: PartConfig, place: Place) -> None:
        super().__init__()
        self.config = config
        self.place = place

    def mix(self, x: Tensor, state: Any, ctx: Context) -> tuple[Tensor, Any]:
        """The part itself: x (B,T,D) -> y (B,T,D) and the state after the last valid token."""
        raise NotImplementedError(f"{type(self).__name__} must define mix(x, state, ctx)")

    def forward(self, x: Tensor, state: Any = None, ctx: Context | None = None) -> tuple[Tensor, Any]:
        """Run on x (B,T,D), continuing `state`; returns y (B,T,D) and the new state.

        Raises:
            StateError: for a state of another part or batch size, or an input of another width.
            ConfigError: when ctx sets a field that this part cannot honour.
        """
        if ctx is not None and ctx.time is not None:
            return self._checked(x, state, ctx)
        ctx = ctx or Context()
        self._check_call(x, state, ctx)
        batch, length, _ = x.shape
        clock = None if state is None or self.State is None else state.clock
        time, order = plan(ctx.segments, clock, batch, length, x.device)
        if ctx.positions is not None:
            time = time._replace(positions=ctx.positions)
        ctx = ctx.replace(time=time)
        if order is None:
            return self._checked(x, state, ctx)
        if ctx.tokens is not None:
            ctx = ctx.replace(tokens=ctx.tokens.gather(1, order))
        if ctx.segments is not None:
            ctx = ctx.replace(segments=ctx.segments.gather(1, order))
        y, state = self._checked(gather_time(x, order), state, ctx)
        return spread_time(y, order), state

    def _checked(self, x: Tensor, state: Any, ctx: Context) -> tuple[Tensor, Any]:
        y, state = self.mix(x, state, ctx)
        valid = ctx.timeline.valid(x.shape[1])
        return (y if valid is None else y.masked_fill(~valid[..., None], 0.0)), state

    def _check_call(self, x: Tensor, state: Any, ctx: Context) -> None:
        name = type(self).__name__
        if x.dim() != 3 or x.shape[-1] != self.place.width:
            raise StateError(f"{name} takes an input of shape (batch, time, {self.place.width}), not {tuple(x.shape)}")
        self.check_honoured(ctx)
        self.check_state(state, x.shape[0])

    def check_honoured(self, ctx: Context) -> None:
        """Raise for a context field that would otherwise be ignored in silence."""
        for field in ("positions", "bias", "memory", "cond"):
            if getattr(ctx, field) is not None and field not in self.honours:
                raise ConfigError(f"{type(self).__name__} cannot honour '{field}'; leave it out or use a part that can")

    def check_state(self, state: Any, batch: int) -> None:
        """Raise unless `state` is one of this part's for `batch` rows."""
        if state is None:
            return
        if self.State is None or not isinstance(state, self.State):
            raise StateError(f"{type(self).__name__} was given a state of {type(state).__name__}, which belongs to another architecture")
        if len(state.clock) != batch:
            raise StateError(f"the state holds {len(state.clock)} rows, the input {batch}; use state.select(index) to choose rows")
        shapes = _shapes(state)
        if shapes != self._fitting and not torch.compiler.is_compiling():
            self._check_shapes(state, shapes)
            object.__setattr__(self, "_fitting", shapes)

    def _check_shapes(self, state: Any, shapes: tuple[torch.Size, ...]) -> None:
        """Raise for a state of this part at another width or with other settings; a cache may have any length."""
        known = _shapes(self.init_state(1, device="meta"))
        for given, wanted in zip(shapes, known, strict=False):
            same = len(given) == len(wanted) and all(b in (a, 0) for a, b in zip(given[1:], wanted[1:], strict=True))
            if not same:
                expected = ", ".join(str(size) if size else "any" for size in wanted[1:])
                raise StateError(
                    f"{type(self).__name__} was given a state of shape {tuple(given)}, which belongs to another width or other settings; "
                    f"here a row's shape is ({expected})"
                )

    def stepper(self, norm: Any, state: Any, run: Any) -> Callable[[], None] | None:
        """A function that does `x += part(norm(x))` for one token in place (:mod:`orrery.nn.stepping`); None: no such form.

        Args:
            norm: a :class:`~orrery.ops.steps.row_linear.RowNorm`.
            state: where to go on from; the caller gives it away.
            run: the :class:`~orrery.nn.stepping.Stepping` that holds x and the positions.
        """
        return None

    def prepared(self) -> Callable[[Tensor, Tensor, Context], Tensor] | None:
        """`f(x, residual, ctx) = residual + part(x)` with weights laid out once (:mod:`orrery.models.reader`); None: no such form.

        For a part without a state, in evaluation, without gradients, in float32 on a CPU; ctx.time is made.
        """
        return None

    def short(self) -> Callable[[Any], list[Callable[[], Any]]] | None:
        """A function that binds the part to a :class:`~orrery.nn.short_text.ShortText` and gives the steps that do
        `run.y = part(run.given)` for one text of `run.length` tokens; None: no such form. As for `prepared`."""
        return None

    def init_state(self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Any:
        """The state before the first token, for `batch` rows (None for a stateless part)."""
        return None

    def state_bytes(self, length: int) -> int:
        """Bytes of state per sequence after `length` tokens, clock not counted."""
        return 0

    def flops(self, length: int) -> int:
        """Forward floating-point operations for one sequence of `length` tokens (a multiply-add is two)."""
        return 0

    def step_flops(self, length: int) -> int:
        """The same for `length` tokens one at a time, of a part whose step computes otherwise than a whole sequence; else `flops`."""
        return self.flops(length)

    def reset_parameters(self) -> None:
        """Draw the parameters anew, as the paper initialises them."""


def _shapes(state: Any) -> tuple[torch.Size, ...]:
    try:
        return tuple([item.shape for item in state])
    except AttributeError:  # a state of states
        return tuple([tensor.shape for tensor in state_tensors(state)])


class Mixer(Part):
    """A part that mixes over time."""


__all__ = ["Aux", "Context", "Mixer", "Part", "PartConfig", "Place", "fresh_clock"]
