"""`kneser-ney` and `bigram`: counting models behind the frame's interface, so that they stand in tables and can generate.

    model = orrery.create_model("kneser-ney", vocab_size=257, order=5)
    model.fit(tokens, document=256)
    model(tokens (B,T)).logits       log-probabilities (B,T,V)

Paper: Chen and Goodman 1998; see :mod:`orrery.ngram.counts` for the equations.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from orrery.core.config import Config, require
from orrery.core.errors import ConfigError, CorruptionError, StateError
from orrery.core.registry import register
from orrery.models.output import Output
from orrery.ngram.counts import KneserNey, Level
from orrery.nn.contract import Context
from orrery.nn.state import state

_FIELDS = ("keys", "counts", "total", "one", "two", "more")


@dataclass(frozen=True, kw_only=True)
class KneserNeyConfig(Config):
    """order: the longest n-gram. document: the id that begins a document (None: there are none)."""

    vocab_size: int = 257
    order: int = 5
    document: int | None = None

    def __post_init__(self) -> None:
        require(1 <= self.order <= 16, f"order must lie between 1 and 16, not {self.order}")


@dataclass(frozen=True, kw_only=True)
class BigramConfig(KneserNeyConfig):
    """A Kneser-Ney model of order 2."""

    order: int = 2


@state
class CountState(NamedTuple):
    """The last order - 1 tokens (B,order-1), -1 where there are none yet, and the clock (B,2)."""

    tokens: Tensor
    clock: Tensor


class KneserNeyLM(nn.Module):
    """Interpolated modified Kneser-Ney. Counted by :meth:`fit`; gradient descent has nothing to do here."""

    Config: ClassVar[type[Config]] = KneserNeyConfig
    registered_name = "kneser-ney"

    def __init__(self, config: KneserNeyConfig) -> None:
        super().__init__()
        self.config, self.vocab_size = config, config.vocab_size
        self.counts: KneserNey | None = None

    def fit(self, tokens: Any, document: int | None = None) -> KneserNeyLM:
        """Count a stream (N,) of ids (array or tensor)."""
        if document is not None:
            self.config = self.config.replace(document=document)
        array = tokens.numpy() if isinstance(tokens, Tensor) else np.asarray(tokens)
        self.counts = KneserNey.fit(array, self.vocab_size, self.config.order, self.config.document)
        return self

    def forward(
        self, tokens: Tensor, state: CountState | None = None, ctx: Context | None = None, segments: Tensor | None = None
    ) -> Output:
        """tokens (B,T) -> Output whose logits are log-probabilities of the next token (B,T,V)."""
        if self.counts is None:
            raise StateError(f"this {self.registered_name} has counted nothing yet; call fit(tokens) first")
        if state is not None and (not isinstance(state, CountState) or len(state.clock) != len(tokens)):
            raise StateError("the state belongs to another model or batch size")
        if not tokens.numel():
            raise StateError(f"tokens of shape {tuple(tokens.shape)} are empty; pass at least one")
        if int(tokens.min()) < 0 or int(tokens.max()) >= self.vocab_size:
            raise ConfigError(f"tokens reach {int(tokens.max())}, outside the vocabulary of {self.vocab_size}")
        segments = segments if segments is not None else (ctx.segments if ctx is not None else None)
        rows, history, clocks = [], [], []
        for b in range(len(tokens)):
            past = [] if state is None else [t for t in state.tokens[b].tolist() if t >= 0]
            clock = [0, 0] if state is None else state.clock[b].tolist()
            scores, past, clock = self._row(tokens[b].tolist(), None if segments is None else segments[b].tolist(), past, clock)
            rows.append(scores)
            keep = self.config.order - 1
            history.append(([-1] * keep + past)[len(past) :] if keep else [])
            clocks.append(clock)
        logits = torch.from_numpy(np.stack(rows)).float()
        kept = torch.tensor(history, dtype=torch.int64).reshape(len(tokens), -1)
        return Output(logits, CountState(kept, torch.tensor(clocks)), None, lambda hidden: hidden)

    def _row(
        self, ids: list[int], segments: list[int] | None, past: list[int], clock: list[int]
    ) -> tuple[np.ndarray, list[int], list[int]]:
        """One row, token by token; equal contexts are looked up once."""
        assert self.counts is not None
        scores, cache = np.zeros((len(ids), self.vocab_size)), {}
        keep, (segment, position) = self.config.order - 1, clock
        for t, token in enumerate(ids):
            if segments is not None and segments[t] < 0:
                continue
            if segments is not None and segments[t] != segment:
                past, segment, position = [], segments[t], 0
            past = [*past, token][-keep:] if keep else []
            key = tuple(past)
            if key not in cache:
                cache[key] = np.log(self.counts.distribution(np.array(past, dtype=np.int64)))
            scores[t] = cache[key]
            position += 1
        return scores, past, [segment, position]

    def num_parameters(self, embedding: bool = False) -> int:
        """Stored counts of the orders above the first (all, with `embedding`): what a table has in place of weights."""
        if self.counts is None:
            return 0
        return sum(len(level.keys) for level in self.counts.levels[0 if embedding else 1 :])

    def state_bytes(self, length: int) -> int:
        """The last order - 1 tokens."""
        return 8 * (self.config.order - 1)

    def flops(self, length: int) -> int:
        """Three operations per vocabulary entry and order."""
        return 3 * self.config.order * self.vocab_size * length

    def stored_tensors(self) -> dict[str, Tensor]:
        """The tables as tensors, for `orrery.save`; restored by :meth:`restore_tensors`."""
        tensors: dict[str, Tensor] = {}
        for n, level in enumerate(self.counts.levels if self.counts else ()):
            tensors |= {f"{n}.{field}": torch.from_numpy(np.ascontiguousarray(getattr(level, field))) for field in _FIELDS}
            tensors[f"{n}.discounts"] = torch.tensor(level.discounts, dtype=torch.float64)
        return tensors

    def restore_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take the tables back.

        Raises:
            CorruptionError: when a table is missing or they do not fit each other.
        """
        levels: list[Level] = []
        for n in range(self.config.order):
            names = [f"{n}.{field}" for field in (*_FIELDS, "discounts")]
            if not any(name in tensors for name in names):
                break
            if missing := [name for name in names if name not in tensors]:
                raise CorruptionError(f"the table '{missing[0]}' of this {self.registered_name} is missing")
            arrays = [tensors[name].numpy() for name in names[:-1]]
            contexts = len(levels[-1].keys) if levels else 1
            if len(arrays[0]) != len(arrays[1]) or any(len(array) != contexts for array in arrays[2:]):
                raise CorruptionError(f"the tables of order {n + 1} of this {self.registered_name} do not fit each other")
            d1, d2, d3 = tensors[names[-1]].tolist()
            keys, counts, total, one, two, more = arrays
            levels.append(Level(keys, counts, total, one, two, more, (d1, d2, d3)))
        self.counts = KneserNey(levels, self.vocab_size, self.config.document) if levels else None


class BigramLM(KneserNeyLM):
    """The token before decides: Kneser-Ney of order 2."""

    Config = BigramConfig
    registered_name = "bigram"


register(
    "kneser-ney",
    model="KneserNeyLM",
    summary="Interpolated modified Kneser-Ney n-grams (order 5): counted, not trained; a floor",
    paper="Chen and Goodman 1998",
    year=1998,
    tags=("causal", "counted"),
)
register(
    "bigram",
    model="BigramLM",
    summary="Kneser-Ney bigrams: the token before decides; a floor",
    paper="Chen and Goodman 1998",
    year=1998,
    tags=("causal", "counted"),
)
