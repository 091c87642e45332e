"""What a model returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from orrery.nn.contract import Aux


class Output:
    """hidden (B,T,D) after the final norm; state to continue from; aux reports; logits (B,T,V), computed when asked for."""

    __slots__ = ("_head", "_logits", "aux", "hidden", "state")

    def __init__(self, hidden: Tensor, state: Any, aux: Aux | None = None, head: Callable[[Tensor], Tensor] | None = None) -> None:
        self.hidden, self.state, self.aux = hidden, state, aux
        self._head = head
        self._logits: Tensor | None = None

    @property
    def logits(self) -> Tensor | None:
        """Scores over the vocabulary, or None for a model without a head. Computed once, kept."""
        if self._logits is None and self._head is not None:
            self._logits = self._head(self.hidden)
        return self._logits

    def __repr__(self) -> str:
        return f"Output(hidden={tuple(self.hidden.shape)}, state={type(self.state).__name__})"
