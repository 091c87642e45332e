"""Counting models behind the frame's interface, so that they stand in tables and can generate.

    model = orrery.create_model("kneser-ney", vocab_size=257, order=5)      also good-turing, stupid-backoff, bigram
    model.fit(tokens, document=256)
    model(tokens (B,T)).logits       log-probabilities (B,T,V)

Papers and equations: :mod:`orrery.ngram.smoothing`. The scores of stupid back-off are divided by their sum here.

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
from orrery.ngram.counts import ARRAYS, BackoffModel, check_tables
from orrery.ngram.trie import LONGEST, token_type
from orrery.nn.contract import Context
from orrery.nn.state import state


@dataclass(frozen=True, kw_only=True)
class KneserNeyConfig(Config):
    """order: the longest n-gram. document: the id that begins a document (None: there are none)."""

    vocab_size: int = 257
    order: int = 5
    document: int | None = None

    def __post_init__(self) -> None:
        require(1 <= self.order <= LONGEST, f"order must lie between 1 and {LONGEST}, not {self.order}")


@dataclass(frozen=True, kw_only=True)
class BigramConfig(KneserNeyConfig):
    """A Kneser-Ney model of order 2."""

    order: int = 2


@state
class CountState(NamedTuple):
    """The last order - 1 tokens (B,order-1), -1 where there are none yet, and the clock (B,2)."""

    tokens: Tensor
    clock: Tensor


class Rows(NamedTuple):
    """A batch as rows of text: `text` (N,) with what the state remembers before each row, `starts` of its documents, and the
    place in the text of every token of the batch (B,T), -1 at padding; histories and clocks (per row) to go on from."""

    text: np.ndarray
    starts: np.ndarray
    places: np.ndarray
    histories: list[list[int]]
    clocks: list[list[int]]


def lay_out(tokens: Tensor, state: CountState | None, segments: Tensor | None, keep: int) -> Rows:
    """Rows of a batch (B,T) for models that remember the last `keep` tokens.

    Raises:
        StateError: when there are no tokens, or the state is of another model or batch.
    """
    if state is not None and (not isinstance(state, CountState) or len(state.clock) != len(tokens)):
        raise StateError("the state belongs to another model or batch size")
    if not tokens.numel():
        raise StateError(f"tokens of shape {tuple(tokens.shape)} are empty; pass at least one")
    text: list[int] = []
    starts: list[int] = []
    places = np.full(tuple(tokens.shape), -1, dtype=np.int64)
    histories, clocks = [], []
    for b, row in enumerate(tokens.tolist()):
        past = [] if state is None else [token for token in state.tokens[b].tolist() if token >= 0]
        segment, position = [0, 0] if state is None else state.clock[b].tolist()
        marks = [segment] * len(row) if segments is None else segments[b].tolist()
        starts.append(len(text))
        text += past
        begun = len(text) - len(past)
        for t, (token, mark) in enumerate(zip(row, marks, strict=True)):
            if mark < 0:
                continue
            if mark != segment:
                segment, position, begun = mark, 0, len(text)
                starts.append(begun)
            places[b, t] = len(text)
            text.append(token)
            position += 1
        histories.append(text[max(begun, len(text) - keep) :] if keep else [])
        clocks.append([segment, position])
    return Rows(np.array(text, dtype=np.int64), np.unique(starts), places, histories, clocks)


def remembered(rows: Rows, keep: int) -> CountState:
    """The state behind a batch."""
    history = [[-1] * (keep - len(past)) + past for past in rows.histories]
    kept = torch.tensor(history, dtype=torch.int64).reshape(len(history), keep)
    return CountState(kept, torch.tensor(rows.clocks))


class KneserNeyLM(nn.Module):
    """Interpolated modified Kneser-Ney. Counted by :meth:`fit`; gradient descent has nothing to do here."""

    Config: ClassVar[type[Config]] = KneserNeyConfig
    registered_name = "kneser-ney"
    method: ClassVar[str] = "kneser-ney"

    def __init__(self, config: KneserNeyConfig) -> None:
        super().__init__()
        self.config, self.vocab_size = config, config.vocab_size
        self.counts: BackoffModel | None = None

    def fit(self, tokens: Any, document: int | None = None) -> KneserNeyLM:
        """Count a stream (N,) of ids (array or tensor)."""
        if document is not None:
            self.config = self.config.replace(document=document)
        array = tokens.numpy() if isinstance(tokens, Tensor) else np.asarray(tokens)
        self.counts = BackoffModel.fit(array, self.vocab_size, self.config.order, self.config.document, method=self.method)
        return self

    def forward(
        self, tokens: Tensor, state: CountState | None = None, ctx: Context | None = None, segments: Tensor | None = None
    ) -> Output:
        """tokens (B,T) -> Output whose logits are log-probabilities of the next token (B,T,V), zeros at padding."""
        if self.counts is None:
            raise StateError(f"this {self.registered_name} has counted nothing yet; call fit(tokens) first")
        if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= self.vocab_size):
            raise ConfigError(f"tokens reach {int(tokens.max())}, outside the vocabulary of {self.vocab_size}")
        segments = segments if segments is not None else (ctx.segments if ctx is not None else None)
        keep = self.config.order - 1
        rows = lay_out(tokens, state, segments, keep)
        nodes = self.counts.score(rows.text, rows.starts).context
        here = rows.places >= 0
        different, which = np.unique(nodes[rows.places[here]], return_inverse=True)
        table = self.counts.distributions(different, dtype=np.float32)
        if self.method == "stupid-backoff":
            table /= table.sum(1, keepdims=True)
        logits = np.zeros((*rows.places.shape, self.vocab_size), dtype=np.float32)
        with np.errstate(divide="ignore"):
            logits[here] = np.log(table)[which]
        return Output(torch.from_numpy(logits), remembered(rows, keep), None, lambda hidden: hidden)

    def num_parameters(self, embedding: bool = False) -> int:
        """Stored n-grams of the orders above the first (all, with `embedding`): what a table has in place of weights."""
        if self.counts is None:
            return 0
        return sum(self.counts.sizes[0 if embedding else 1 :])

    def state_bytes(self, length: int) -> int:
        """The last order - 1 tokens."""
        return 8 * (self.config.order - 1)

    def flops(self, length: int) -> int:
        """Three operations per vocabulary entry and order."""
        return 3 * self.config.order * self.vocab_size * length

    def stored_tensors(self) -> dict[str, Tensor]:
        """The tables as tensors, for `orrery.save`; restored by :meth:`restore_tensors`."""
        if self.counts is None:
            return {}
        tables = {name: np.ascontiguousarray(getattr(self.counts, name)) for name in ARRAYS}
        tables["word"] = tables["word"].astype(np.int32)
        return {name: torch.from_numpy(table) for name, table in tables.items()}

    def restore_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take the tables back.

        Raises:
            CorruptionError: when a table is missing or they do not fit each other.
        """
        if not tensors:
            self.counts = None
            return
        if missing := [name for name in ARRAYS if name not in tensors]:
            raise CorruptionError(f"the table '{missing[0]}' of this {self.registered_name} is missing")
        tables = {name: tensors[name].numpy() for name in ARRAYS}
        tables["word"] = tables["word"].astype(token_type(self.vocab_size))
        check_tables(tables, self.vocab_size, f"the tables of this {self.registered_name}")
        self.counts = BackoffModel(tables, self.vocab_size, self.config.document, method=self.method)


class BigramLM(KneserNeyLM):
    """The token before decides: Kneser-Ney of order 2."""

    Config = BigramConfig
    registered_name = "bigram"


class GoodTuringLM(KneserNeyLM):
    """Katz's back-off with simple Good-Turing discounts."""

    registered_name = method = "good-turing"


class StupidBackoffLM(KneserNeyLM):
    """Relative frequencies, and 0.4 of those of the context without its first token where there are none."""

    registered_name = method = "stupid-backoff"


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
register(
    "good-turing",
    model="GoodTuringLM",
    summary="Katz back-off n-grams with simple Good-Turing discounts (order 5): counted, not trained",
    paper="Katz 1987",
    year=1987,
    tags=("causal", "counted"),
)
register(
    "stupid-backoff",
    model="StupidBackoffLM",
    summary="Stupid back-off n-grams (order 5), divided by their sum: counted, not trained",
    paper="Brants et al. 2007",
    year=2007,
    tags=("causal", "counted"),
)
