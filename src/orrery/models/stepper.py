"""Decoding through a whole decoder without a torch call between its parts (:mod:`orrery.nn.stepping` says why and how).

Preparing a step looks up some hundred arrays. A stepper that is given back (:meth:`Stepper.close`) is kept with its model and goes on
from the next call's state, if that has as many rows and the model is what it was: the same modules with the same settings
(:mod:`orrery.nn.unchanged`), every tensor at the same place and of the same version, and the small ones, from which steps derive
what they need, with the same numbers, whoever wrote them. Weights are read where they lie. It holds one state of the rows and
capacity it was made for; above 64 MB it is not kept, nor are more than two, and it goes with its model.

B batch, D width, V vocabulary.
"""

from __future__ import annotations

import functools
import threading
import weakref
from typing import Any, cast

import torch
from torch import Tensor, nn

from orrery.nn.block import Block
from orrery.nn.low_rank import LowRankLinear
from orrery.nn.state import state_fields
from orrery.nn.stepping import Step, Stepping, Write, can_step, norm_of
from orrery.nn.unchanged import Unchanged, all_modules
from orrery.ops.compiled import Pass, openmp_threads
from orrery.ops.program import Program, flat, joined
from orrery.ops.steps.row_linear import norm_in_place, row_linear
from orrery.ops.steps.row_steps import best_rows, cap_rows, copy_rows, embed_rows, keep_rows, next_rows

AHEAD = 16  # tokens that are written without coming back, some 10 ms: so long an interrupt may wait
_ROOM = 256  # capacities are multiples of it, so that a longer prompt finds room in a step that is kept
_MOST_BYTES, _MOST_KEPT = 1 << 26, 2  # of the states in a step that is kept; how many of a model
_SMALL = 128  # vectors of the greatest side that a tensor may be made of to be compared by its numbers


class Stepper:
    """`stepper(tokens (B,)) -> scores (B,V)`, the same as one call of the model and its head, token after token.

    `best` (B,) int64 holds the first best token of every row then, -1 where a score is not a number. Both are overwritten by
    the next call; the state that the stepper was made from belongs to it.
    """

    def __init__(self, model: Any, state: Any, capacity: int) -> None:
        self.model, self._running = model, False
        self.made_for, self.capacity = _circumstances(state), -(-capacity // _ROOM) * _ROOM
        batch, capacity = len(state.clock), self.capacity
        self.run = run = Stepping(batch, model.config.width, state.clock, capacity)
        self.tokens, self.best = torch.zeros(2, batch, dtype=torch.int64)
        self.kept, self.count = torch.zeros(AHEAD, batch, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        self._tokens, self._best, self._count = self.tokens.numpy(), self.best.numpy(), self.count.numpy()
        self.scores = torch.empty(batch, model.vocab_size)
        places = None if model.position_embed is None else model.position_embed.weight
        self.limited = places is not None
        steps: list[Step] = [embed_rows(self.tokens, model.embed.weight, run.positions, places, run.x)]
        steps += [] if model.embed_norm is None else [self._embed_norm()]
        if model.recalls:
            run.shared["embedding"] = torch.empty_like(run.x)
            steps.append(copy_rows(run.x, run.shared["embedding"]))
        for block, held in zip(model.blocks, state.blocks, strict=True):
            steps += cast(Block, block).stepper(held, run)
        self._passes = [*steps, *self._head(), best_rows(self.scores, self.best)]
        self._writes = self._own_writes(state)
        self._weights = None if self._writes is None else Weights.of(model)

    @functools.cached_property
    def steps(self) -> list[Step]:
        """One token, from `tokens` to `best`."""
        return joined(self._passes)

    @functools.cached_property
    def ahead(self) -> Program | None:
        """One token, from `best` to `best`, with the position raised and `best` kept; None where it cannot be one program."""
        first, last = next_rows(self.tokens, self.best, self.run.positions), keep_rows(self.best, self.kept, self.count)
        steps = joined([first, *self._passes, last])
        return steps[0] if len(steps) == 1 and isinstance(steps[0], Program) else None

    def _own_writes(self, state: Any) -> list[tuple[int, Tensor, Write]] | None:
        """Which of a state's tensors is written where and how; None for a step that cannot go on from another state."""
        places = {id(tensor): place for place, tensor in enumerate(state_fields(state))}
        owned, self.run.owned = self.run.owned, []
        plain = not self.run.general and not self.run.bound and all(isinstance(step, Pass) for step in flat(self._passes))
        held = {id(tensor) for tensor, _, _ in owned}
        whole = held <= places.keys() and all(id(tensor) in held for tensor in state_fields(state) if tensor.numel())
        size = sum(buffer.nbytes for _, buffer, _ in owned)
        if not (plain and whole and size <= _MOST_BYTES):
            return None
        return [(places[id(tensor)], buffer, write) for tensor, buffer, write in owned]

    def fits(self, state: Any, capacity: int) -> bool:
        """Whether this one, made by the same model with the same weights, can go on from `state`."""
        return capacity <= self.capacity and self.made_for == _circumstances(state)

    def resume(self, model: Any, state: Any) -> Stepper | None:
        """Go on from another state that it fits; None where the model is not what it was."""
        assert self._weights is not None and self._writes is not None
        if not self._weights.still_of(model):
            return None
        self.model = model
        self.run.restart(state.clock)
        given = state_fields(state)
        for place, buffer, write in self._writes:
            write(buffer, given[place])
        return self

    def close(self) -> None:
        """Nothing more is written from this state: whoever decodes with the model next may have this."""
        model, self.model = self.model, None  # or the model would never go
        leaving = _lock is None  # the interpreter, which then takes a module's names away before generators end
        if leaving or model is None or self._weights is None or self._running:
            return
        with _lock:
            _kept[model] = [self, *_kept.get(model, ())][:_MOST_KEPT]

    def _embed_norm(self) -> Step:
        norm, x = self.model.embed_norm, self.run.x
        known = norm_of(norm)
        return norm_in_place(x, known, torch.empty_like(x)) if known is not None else lambda: cast(None, x.copy_(norm(x)))

    def _head(self) -> list[Step]:
        head, norm, x, scores = self.model.head, norm_of(self.model.norm), self.run.x, self.scores
        if norm is None or not isinstance(head, nn.Linear) or type(head).__name__ not in ("Linear", "Head"):
            return [lambda: cast(None, scores.copy_(head(self.model.norm(x))))]
        score, cap = row_linear(x, head.weight, head.bias, scores, norm), getattr(head, "softcap", None)
        return [score] if cap is None else [score, cap_rows(scores, cap)]

    def write(self, tokens: Tensor, count: int) -> Tensor:
        """The next first best tokens (n,B) after `tokens` (B,), 1 <= n <= count: as many as are found without coming back; from
        a score on that is not a number they say nothing, and the first is -1."""
        if self.ahead is None:
            self(tokens)
            return self.best[None].clone()
        count, self._running = min(count, AHEAD), True
        self.run.ahead(count)
        if self.limited:
            self.model.check_position(self.run.last)
        self._best[:], self._count[0] = tokens.numpy(), 0
        self.ahead(count)
        self._running = False
        return self.kept[:count].clone()

    def __call__(self, tokens: Tensor) -> Tensor:
        """Scores (B,V) of what follows `tokens` (B,)."""
        self._running = True  # whoever is interrupted here leaves threads' flags behind that do not fit
        self.run.advance(tokens)
        self._tokens[:] = tokens.numpy()  # the same memory; a tenth of the time
        if self.limited:
            self.model.check_position(self.run.last)
        for step in self.steps:
            step()
        self._running = False
        return self.scores


class Weights:
    """What a step was prepared from: a model's modules, their settings and its tensors."""

    def __init__(self, model: nn.Module, tensors: list[Tensor]) -> None:
        self._unchanged, self._places = Unchanged(model), _places(tensors)
        small = (tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel() <= _SMALL * max(tensor.shape, default=1))
        self._small = [tensor.detach() for tensor in small]
        self._copies = [tensor.clone() for tensor in self._small]

    @classmethod
    def of(cls, model: nn.Module) -> Weights | None:
        """Those of a model; None where changes would not be seen."""
        modules = all_modules(model)
        tensors = _tensors(modules)
        unseen = any(tensor.is_inference() for tensor in tensors) or any(isinstance(each, LowRankLinear) and each.rank > _SMALL for each in modules)
        return None if unseen else cls(model, tensors)

    def still_of(self, model: nn.Module) -> bool:
        """Whether the model is what it was."""
        if not self._unchanged() or _places(_tensors([model, *self._unchanged.modules])) != self._places:
            return False
        return all(torch.equal(tensor, copy) for tensor, copy in zip(self._small, self._copies, strict=True))


def _tensors(modules: list[nn.Module]) -> list[Tensor]:
    return [tensor for each in modules for held in (each._parameters, each._buffers) for tensor in held.values() if tensor is not None]


def _places(tensors: list[Tensor]) -> list[tuple[int, int]]:
    return [(tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version) for tensor in tensors]


def _circumstances(state: Any) -> tuple[Any, ...]:
    """What a step depends on beside the model: rows, threads, the process, whether buffers are tensors of inference, and whether
    a row begins (a first token may follow rules of its own)."""
    return len(state.clock), torch.get_num_threads(), openmp_threads(), torch.is_inference_mode_enabled(), int(state.clock[:, 1].min()) > 0


_kept: weakref.WeakKeyDictionary[nn.Module, list[Stepper]] = weakref.WeakKeyDictionary()
_lock = threading.RLock()  # what collects garbage may close a step of the same thread anywhere


def forget(model: nn.Module) -> None:
    """Drop the steps that are kept for a model."""
    with _lock:
        _kept.pop(model, None)


def _take(model: nn.Module, state: Any, capacity: int) -> Stepper | None:
    with _lock:
        known = list(_kept.get(model, ()))
        found = next((each for each in known if each.fits(state, capacity)), None)
        if found is None:
            return None
        _kept[model] = [each for each in _kept.get(model, ()) if each is not found]
    resumed = found.resume(model, state)
    if resumed is None:
        forget(model)
    return resumed


def make_stepper(model: Any, state: Any, capacity: int) -> Stepper | None:
    """A stepper that goes on from `state`, which the caller gives away; None where one call of the model is the only way.

    Args:
        model: a decoder in evaluation mode.
        state: what the model returned for the prompt.
        capacity: no row will hold more tokens.
    """
    if not can_step(model, len(state.clock)):
        return None
    return _take(model, state, capacity) or Stepper(model, state, capacity)
