"""Decoding through a whole decoder without a torch call between its parts (:mod:`orrery.nn.stepping` says why and how).

B batch, D width, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn

from orrery.nn.block import Block
from orrery.nn.stepping import Step, Stepping, can_step, norm_of
from orrery.ops.program import Program, joined
from orrery.ops.steps.row_linear import norm_in_place, row_linear
from orrery.ops.steps.row_steps import best_rows, cap_rows, copy_rows, embed_rows, keep_rows, next_rows

AHEAD = 16  # tokens that are written without coming back, some 10 ms: so long an interrupt may wait


class Stepper:
    """`stepper(tokens (B,)) -> scores (B,V)`, the same as one call of the model and its head, token after token.

    `best` (B,) int64 holds the first best token of every row then, -1 where a score is not a number. Both are overwritten by
    the next call; the state that the stepper was made from belongs to it.
    """

    def __init__(self, model: Any, state: Any, capacity: int) -> None:
        self.model = model
        batch = len(state.clock)
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
        count = min(count, AHEAD)
        self.run.ahead(count)
        if self.limited:
            self.model.check_position(self.run.last)
        self._best[:], self._count[0] = tokens.numpy(), 0
        self.ahead(count)
        return self.kept[:count].clone()

    def __call__(self, tokens: Tensor) -> Tensor:
        """Scores (B,V) of what follows `tokens` (B,)."""
        self.run.advance(tokens)
        self._tokens[:] = tokens.numpy()  # the same memory; a tenth of the time
        if self.limited:
            self.model.check_position(self.run.last)
        for step in self.steps:
            step()
        return self.scores


def make_stepper(model: Any, state: Any, capacity: int) -> Stepper | None:
    """A stepper that goes on from `state`, which the caller gives away; None where one call of the model is the only way.

    Args:
        model: a decoder in evaluation mode.
        state: what the model returned for the prompt.
        capacity: no row will hold more tokens.
    """
    return Stepper(model, state, capacity) if can_step(model, len(state.clock)) else None
