"""Decoding through a whole decoder without a torch call between its parts (:mod:`orrery.nn.stepping` says why and how).

B batch, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from orrery.nn.block import Block
from orrery.nn.stepping import Step, Stepping, can_step, norm_of
from orrery.ops.row_linear import norm_in_place, row_linear


class Stepper:
    """`stepper(tokens (B,)) -> scores (B,V)`, the same as one call of the model and its head, token after token.

    The scores are overwritten by the next call; the state that the stepper was made from belongs to it.
    """

    def __init__(self, model: Any, state: Any, capacity: int) -> None:
        self.model = model
        self.run = run = Stepping(len(state.clock), model.config.width, state.clock, capacity)
        self.steps: list[Step] = [] if model.embed_norm is None else [self._embed_norm()]
        for block, held in zip(model.blocks, state.blocks, strict=True):
            self.steps += cast(Block, block).stepper(held, run)
        self.rows, self.x, self.positions = model.embed.weight.detach().numpy(), run.x.numpy(), run.positions.numpy()
        self.places = None if model.position_embed is None else model.position_embed.weight.detach().numpy()
        self.scores = torch.empty(len(state.clock), model.vocab_size)
        self.head = self._head()

    def _embed_norm(self) -> Step:
        norm, x = self.model.embed_norm, self.run.x
        known = norm_of(norm)
        return norm_in_place(x, known, torch.empty_like(x)) if known is not None else lambda: cast(None, x.copy_(norm(x)))

    def _head(self) -> Callable[[], Tensor]:
        head, norm, x = self.model.head, norm_of(self.model.norm), self.run.x
        if norm is None or not isinstance(head, nn.Linear) or type(head).__name__ not in ("Linear", "Head"):
            return lambda: head(self.model.norm(x))
        score, cap = row_linear(x, head.weight, head.bias, self.scores, norm), getattr(head, "softcap", None)

        raw = self.scores.numpy()

        def scores() -> Tensor:
            score()
            if cap is not None:  # in place, and by numpy: torch's three calls take 40 microseconds here
                np.multiply(np.tanh(np.divide(raw, cap, raw), raw), cap, raw)
            return self.scores

        return scores

    def __call__(self, tokens: Tensor) -> Tensor:
        """Scores (B,V) of what follows `tokens` (B,)."""
        model, run = self.model, self.run
        run.advance(tokens)
        self.rows.take(tokens.numpy(), 0, self.x)
        if self.places is not None:
            model.check_position(run.last)
            self.x += self.places[self.positions]
        for step in self.steps:
            step()
        return self.head()


def make_stepper(model: Any, state: Any, capacity: int) -> Stepper | None:
    """A stepper that goes on from `state`, which the caller gives away; None where one call of the model is the only way.

    Args:
        model: a decoder in evaluation mode.
        state: what the model returned for the prompt.
        capacity: no row will hold more tokens.
    """
    return Stepper(model, state, capacity) if can_step(model, len(state.clock)) else None
