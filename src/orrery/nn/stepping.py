"""Decoding one token of a few rows at a time, prepared once: what parts, blocks and the frame share while it lasts.

Reading a weight takes a decode step longer than anything it computes, if nothing else gets in the way; but a torch call
takes some microseconds, and a block of some twenty calls more than its weights. So whoever decodes asks for a *stepper*:
every part looks up its weights and buffers once and returns a function of no arguments, which adds the part's output for
one token to the residual stream in place. A part that has no such form is called as always, by `general`.

    x += part(norm(x))    for every part of every block;  B rows at once, each at its own position

A stepper changes the state it was given, so only the owner of a state may ask for one (`generate` does).

What a step carries from token to token it asks of :meth:`Stepping.own`, which copies it out of the state; so a prepared step can go
on from another state of the same model, once that is written into the same memory (:mod:`orrery.models.stepper` keeps them).

B batch, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from orrery.nn.contract import Context, Part
from orrery.nn.low_rank import LowRankLinear
from orrery.nn.normed_linear import NormedLinear
from orrery.nn.norms import LayerNorm, RMSNorm, SimpleRMSNorm
from orrery.nn.rotary import LONGEST, RopeScaling, step_table
from orrery.nn.state import reserve
from orrery.nn.timeline import Timeline
from orrery.nn.unchanged import all_modules, listened_to
from orrery.ops.backend import choose
from orrery.ops.program import Steps
from orrery.ops.steps.row_linear import MOST_ROWS, RowNorm, row_linear, row_norm

Step = Callable[[], None]
Write = Callable[[Tensor, Tensor], Any]


class Stepping:
    """One decoding under way.

    x: (B,D), the residual stream of the present token. positions: (B,) int64, the present token's. capacity: positions stay
    below it. ctx: for parts without a form of their own; made only where `general` is set, because some part asked for it.
    """

    def __init__(self, batch: int, width: int, clock: Tensor, capacity: int) -> None:
        self.x = torch.empty(batch, width)
        self.clock, self.capacity = clock.clone(), capacity
        self.positions = clock[:, 1].clone()
        self._numbers = self.positions.numpy()
        self.general = False
        self.bound = False  # whether what was prepared is of these positions only
        self.shared: dict[str, Tensor] = {}  # buffers that a layer fills for later ones, as `ctx.shared` between calls of parts
        self.ctx = Context(donate=True)
        self.owned: list[tuple[Tensor, Tensor, Write]] = []  # the state's tensor, what stands for it here, and how it is written
        self._begin()

    def _begin(self) -> None:
        self._first = True
        self._past, self._even = int(self._numbers.max()), bool((self._numbers == self._numbers[0]).all())

    def restart(self, clock: Tensor) -> None:
        """Go on from other rows: the clock (B,2) of their state. What is `owned` is written by the caller, then."""
        self.clock = clock.clone()
        self.positions.copy_(clock[:, 1])
        self._begin()

    def own(self, held: Tensor, buffer: Tensor | None = None, write: Write = Tensor.copy_) -> Tensor:
        """What a step carries of the state's tensor `held`, as float32 in memory of its own, contiguous.

        Args:
            held: one of the state's very tensors, not a view of it.
            buffer: the memory, where it is not laid out as `held` is.
            write: `write(buffer, held)` lays `held` (of this state, or of one that comes later) out in it.
        """
        if buffer is None:
            buffer = held.new_empty(held.shape, dtype=torch.float32)
        write(buffer, held)
        self.owned.append((held, buffer, write))
        return buffer

    def turns(self, rotated: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
        """The rotary table of the positions to come (:func:`orrery.nn.rotary.step_table`).

        Far on in a stream it holds none of those that are past, and the step is bound to them.
        """
        least = int(self._numbers.min())
        begin = least if self.capacity > LONGEST >= self.capacity - least else 0
        self.bound = self.bound or begin > 0 < rotated
        return step_table(self.capacity, rotated, theta, scaling, begin)

    @property
    def last(self) -> int:
        """The greatest position of the present token over the rows."""
        return self._past - 1

    def advance(self, tokens: Tensor) -> None:
        """Go on to the next token, `tokens` (B,)."""
        if not self._first:
            self._numbers += 1  # the same memory; a tenth of the time
        self._first = False
        if self.general:
            after = self.clock.clamp(min=0)  # a document without an id so far is document 0
            after[:, 1] += 1
            time = Timeline(None, self.positions[:, None].clone(), None, after, self._past, self._even)
            shared = {name: buffer[:, None] for name, buffer in self.shared.items()}
            self.ctx = Context(tokens=tokens[:, None], time=time, donate=True, shared=shared)
            self.clock = after
        self._past += 1

    def ahead(self, count: int) -> None:
        """`count` tokens are about to be written, each by a pass that raises the positions first."""
        if self._first:
            self._numbers -= 1
        self._first = False
        self._past += count


class Beside(Stepping):
    """The same decoding with a residual stream of its own, for one of several parts that read the same input."""

    def __init__(self, run: Stepping) -> None:
        vars(self).update(run=run, x=torch.empty_like(run.x))

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["run"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.run, name, value)


def can_step(model: nn.Module, batch: int) -> bool:
    """Whether compiled passes may run: few rows, float32 on a CPU, the rule for backends, and nobody listening inside."""
    modules, some = all_modules(model), None
    plain = batch <= MOST_ROWS and not torch.is_autocast_enabled("cpu") and not listened_to(modules)
    for module in modules:
        for some in (p for p in module._parameters.values() if p is not None):
            if some.dtype != torch.float32 or some.device.type != "cpu" or not some.is_contiguous():
                plain = False
    offered = ("numba", "torch") if plain else ("torch",)
    return some is not None and choose(None, some, op="stepper", offered=offered) == "numba"


def norm_of(module: nn.Module | None) -> RowNorm | None:
    """A norm as kernels take it; None for a module that they do not know."""
    if module is None:
        return RowNorm()
    if type(module) is RMSNorm:
        return RowNorm("rmsnorm", module.weight, None, module.eps)
    if type(module) is SimpleRMSNorm:
        return RowNorm("rmsnorm", None, None, module.eps)
    if type(module) is LayerNorm:
        return RowNorm("layernorm", module.weight, module.bias, module.eps)
    return None


def plain_linear(*modules: nn.Module | None) -> bool:
    """Whether all of these are linear maps and nothing more (an adapter or a quantised layer is not)."""
    return all(type(module) is nn.Linear for module in modules)


def plain_out(module: nn.Module) -> bool:
    """Whether :func:`linear_step` knows this way out of the heads: a linear map, or one with a norm of the heads before it."""
    return type(module) in (nn.Linear, NormedLinear)


def linear_step(x: Tensor, module: nn.Module, y: Tensor, norm: RowNorm | None = None, activation: str = "", add: bool = False) -> Step:
    """:func:`orrery.ops.steps.row_linear.row_linear` of a linear map for which :func:`plain_linear` holds, of one with a norm of
    groups before it, or, without activation, of one with a map of low rank beside it."""
    linear = cast(nn.Linear, module)
    if isinstance(linear, NormedLinear):
        assert norm is None
        groups, given = linear, torch.empty_like(x)
        return in_order(lambda: _copy(groups.normed(x), given), row_linear(given, linear.weight, linear.bias, y, None, activation, add))
    own = row_linear(x, linear.weight, linear.bias, y, norm, activation, add)
    if not isinstance(linear, LowRankLinear):
        return own
    assert not activation
    low = y.new_empty(len(y), linear.rank * linear.parts)
    return in_order(own, row_linear(x, linear.down, None, low, norm), row_linear(low, linear.wide_up(), None, y, add=True))


def _copy(source: Tensor, target: Tensor) -> None:
    target.copy_(source)


def in_order(*steps: Step) -> Step:
    """All of these, one after the other."""
    return Steps(steps)


def part_step(part: nn.Module, norm: nn.Module | None, state: Any, run: Stepping) -> Step:
    """x += part(norm(x)) as a step: the part's own form, or its general one."""
    own = part.stepper(norm_of(norm), state, run) if isinstance(part, Part) and norm_of(norm) is not None else None
    return own or _general(part, norm, state, run)


def _general(part: nn.Module, norm: nn.Module | None, state: Any, run: Stepping) -> Step:
    held, known = reserve(state, run.capacity), norm_of(norm)
    run.general = True
    normed = row_norm(run.x, known) if known is not None and known.kind else (lambda: run.x.clone() if norm is None else norm(run.x))

    def step() -> None:
        nonlocal held
        y, held = part(normed()[:, None], held, run.ctx)
        run.x.add_(y[:, 0])

    return step


def block_step(block: nn.Module, state: Any, run: Stepping) -> Step:
    """x = block(x) as a step, for a block without a form of its own."""
    held = reserve(state, run.capacity)
    run.general = True

    def step() -> None:
        nonlocal held
        y, held = block(run.x[:, None].clone(), held, run.ctx)
        run.x.copy_(y[:, 0])

    return step
