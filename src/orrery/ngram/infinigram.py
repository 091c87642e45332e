"""`infinigram`: the ∞-gram as a language model that stands in tables, is trained on a stream, and generates.

    P(w | h) = l P_inf(w | h) + (1 - l) P_KN(w | h)            l = sigmoid(weights[sparse][bucket of the effective n])

The ∞-gram alone gives many true tokens probability zero, so it is mixed with interpolated modified Kneser-Ney of the same
text (see :mod:`orrery.ngram.mixing` and :mod:`orrery.ngram.smoothing`).

    model = orrery.create_model("infinigram", vocab_size=257).fit(tokens, document=256)

`fit` counts the first 95 % of a text, finds the weights on the rest (by EM), and counts all of it. In a training loop the
model needs no `fit`: in training mode every batch is scored by what was counted before it, the weights get their gradient,
and then its rows are added to the text, each as a document of its own. The text is counted anew whenever it has doubled,
and before the first answer in evaluation mode. So a budget of tokens means here what it means to every other model.

Paper: Infini-gram (2401.17377). B batch, T time, V vocabulary, K buckets.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from orrery.core.config import Config, require
from orrery.core.errors import ConfigError, CorruptionError, StateError
from orrery.core.registry import register
from orrery.models.output import Output
from orrery.ngram.builder import build_index
from orrery.ngram.counts import BackoffModel
from orrery.ngram.lookup import Suffixes
from orrery.ngram.mixing import EDGES, fit_mixture
from orrery.ngram.models import CountState, lay_out, remembered
from orrery.ngram.trie import LONGEST
from orrery.nn.contract import Context

_HELD_OUT = 0.05  # of the text of `fit`, for the weights
_LEAST = 4096  # tokens that are worth counting anew
_START = -1.0  # weights before anything is known: the ∞-gram counts for 27 %


@dataclass(frozen=True, kw_only=True)
class InfinigramConfig(Config):
    """order: of the Kneser-Ney model below. context: tokens that the ∞-gram looks back at most. document: the id that begins
    a document (None: there are none)."""

    vocab_size: int = 257
    order: int = 5
    context: int = 256
    document: int | None = None

    def __post_init__(self) -> None:
        require(1 <= self.order <= LONGEST, f"order must lie between 1 and {LONGEST}, not {self.order}")
        require(self.context >= self.order, f"context must be at least the order {self.order}, not {self.context}")


class _Tables:
    """What is counted of a text: an index in a folder of its own, removed with it, and the Kneser-Ney model."""

    def __init__(self, text: np.ndarray, starts: np.ndarray, config: InfinigramConfig) -> None:
        folder = tempfile.mkdtemp(prefix="orrery-infinigram-")
        weakref.finalize(self, shutil.rmtree, folder, True)
        size, mark = config.vocab_size, config.document
        rows = np.split(text, starts[1:])
        documents = [part for row in rows for part in _documents(row, mark)]
        index = build_index(documents, Path(folder) / "index", vocab_size=size, document=mark, quiet=True)
        self.suffixes = Suffixes(index, size)
        joined = np.concatenate([np.insert(row, 0, size) for row in rows]) if len(rows) > 1 else text
        # Rows begin with a mark of their own, id V, which is context only and so takes no probability.
        extra, begin = (size + 1, size) if len(rows) > 1 else (size, mark)
        self.counts = BackoffModel.fit(joined, extra, config.order, begin, ends=len(rows) == 1)

    def __deepcopy__(self, memo: Any) -> _Tables:
        """Counts are a value; copies of a model share them."""
        return self


def _documents(row: np.ndarray, mark: int | None) -> list[np.ndarray]:
    if mark is None:
        return [row]
    return [part[part != mark] for part in np.split(row, np.flatnonzero(row == mark))]


class InfinigramLM(nn.Module):
    """∞-gram over Kneser-Ney. Parameters: the weights of the mix, (2,K)."""

    Config: ClassVar[type[Config]] = InfinigramConfig
    registered_name = "infinigram"

    def __init__(self, config: InfinigramConfig) -> None:
        super().__init__()
        self.config, self.vocab_size = config, config.vocab_size
        self.weights = nn.Parameter(torch.full((2, len(EDGES) + 1), _START))
        self._tables: _Tables | None = None
        self._counted = 0  # tokens of the text that the tables know
        self._rows: list[np.ndarray] = []

    @property
    def text(self) -> np.ndarray:
        """All tokens that were seen, row after row."""
        return np.concatenate(self._rows) if self._rows else np.empty(0, dtype=np.int64)

    def fit(self, tokens: Any, document: int | None = None) -> InfinigramLM:
        """Count a stream (N,) of ids (array or tensor) and find the weights on its end."""
        if document is not None:
            self.config = self.config.replace(document=document)
        array = tokens.numpy() if isinstance(tokens, Tensor) else np.asarray(tokens)
        array = array.astype(np.int64)
        if array.ndim != 1 or not array.size or array.min() < 0 or array.max() >= self.vocab_size:
            raise ConfigError(f"a text is one row of ids below {self.vocab_size}, and at least one")
        cut = len(array) - max(1, int(_HELD_OUT * len(array)))
        if cut > 0:
            self._rows = [array[:cut]]
            self._count()
            self._weigh(array[cut:])
        self._rows = [array]
        self._count()
        return self

    def _count(self) -> None:
        starts = np.cumsum([0, *(len(row) for row in self._rows[:-1])])
        self._tables = _Tables(self.text, starts, self.config)
        self._counted = sum(len(row) for row in self._rows)

    def _weigh(self, held: np.ndarray) -> None:
        assert self._tables is not None
        scores = self._tables.suffixes.index.score(held)
        below = np.exp(self._tables.counts.log_probabilities(held))
        mixture = fit_mixture(scores.prob, np.maximum(below, 1e-30), np.minimum(scores.n, self.config.context), scores.sparse)
        with torch.no_grad():
            self.weights.copy_(torch.logit(torch.tensor(mixture.weights), eps=1e-6))

    def forward(
        self, tokens: Tensor, state: CountState | None = None, ctx: Context | None = None, segments: Tensor | None = None
    ) -> Output:
        """tokens (B,T) -> Output whose logits are log-probabilities of the next token (B,T,V), zeros at padding."""
        if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= self.vocab_size):
            raise ConfigError(f"tokens reach {int(tokens.max())}, outside the vocabulary of {self.vocab_size}")
        segments = segments if segments is not None else (ctx.segments if ctx is not None else None)
        rows = lay_out(tokens, state, segments, self.config.context)
        learning = self.training and torch.is_grad_enabled()
        seen = sum(len(row) for row in self._rows)
        if seen - self._counted >= (max(_LEAST, self._counted) if learning else 1):
            self._count()
        here = rows.places >= 0
        mixed = self._mixed(rows.text, rows.starts, rows.places[here])
        logits = torch.zeros(*tokens.shape, self.vocab_size, dtype=self.weights.dtype)
        logits[torch.from_numpy(here)] = mixed
        if learning:
            self._rows += [part.copy() for part in np.split(rows.text, rows.starts[1:]) if len(part)]
        return Output(logits, remembered(rows, self.config.context), None, lambda hidden: hidden)

    def _mixed(self, text: np.ndarray, starts: np.ndarray, places: np.ndarray) -> Tensor:
        """Log-probabilities behind the tokens at `places`, (P,V)."""
        if self._tables is None:
            uniform = torch.full((len(places), self.vocab_size), -float(np.log(self.vocab_size)), dtype=self.weights.dtype)
            return uniform + 0 * self.weights.sum()
        counts, suffixes = self._tables.counts, self._tables.suffixes
        nodes = counts.score(text, starts).context
        different, which = np.unique(nodes[places], return_inverse=True)
        below = np.maximum(counts.distributions(different)[:, : self.vocab_size], 1e-30)[which]
        p_inf, n, sparse = suffixes.distributions(text, starts, places, self.config.context)
        bucket = np.searchsorted(EDGES, n, side="right")
        weight = torch.sigmoid(self.weights)[torch.from_numpy(sparse.astype(np.int64)), torch.from_numpy(bucket)][:, None]
        both = (p_inf, below / below.sum(1, keepdims=True))
        first, second = (torch.from_numpy(p).to(weight.dtype) for p in both)
        return torch.log(weight * first + (1 - weight) * second)

    def num_parameters(self, embedding: bool = False) -> int:
        """Stored tokens: what a table has in place of weights; with `embedding`, the weights of the mix as well."""
        return sum(len(row) for row in self._rows) + (self.weights.numel() if embedding else 0)

    def state_bytes(self, length: int) -> int:
        """The last `context` tokens."""
        return 8 * self.config.context

    def flops(self, length: int) -> int:
        """Per token three operations per vocabulary entry and order, and three for the mix."""
        return 3 * (self.config.order + 1) * self.vocab_size * length

    def init_state(self, batch: int, device: Any = None, dtype: Any = None) -> CountState:
        """Nothing seen yet."""
        return CountState(torch.full((batch, self.config.context), -1), torch.zeros(batch, 2, dtype=torch.int64))

    def stored_tensors(self) -> dict[str, Tensor]:
        """The text and the weights; the tables are counted again when they are needed."""
        lengths = torch.tensor([len(row) for row in self._rows], dtype=torch.int64)
        return {"text": torch.from_numpy(self.text.astype(np.int32)), "rows": lengths, "weights": self.weights.detach().clone()}

    def restore_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take text and weights back.

        Raises:
            CorruptionError: when one is missing or they do not fit.
        """
        missing = [name for name in ("text", "rows", "weights") if name not in tensors]
        if missing:
            raise CorruptionError(f"'{missing[0]}' of this infinigram is missing")
        text, rows = tensors["text"].numpy().astype(np.int64), tensors["rows"].numpy()
        fits = int(rows.sum()) == len(text) and tensors["weights"].shape == self.weights.shape
        if not fits or (len(text) and not 0 <= int(text.min()) <= int(text.max()) < self.vocab_size):
            raise CorruptionError("text, rows and weights of this infinigram do not fit each other")
        self._rows = np.split(text, np.cumsum(rows)[:-1]) if len(rows) else []
        self._tables, self._counted = None, 0
        with torch.no_grad():
            self.weights.copy_(tensors["weights"])

    def get_extra_state(self) -> Tensor:
        """The text, so that a checkpoint of a training run holds it: number of rows, their lengths, their tokens."""
        lengths = np.array([len(row) for row in self._rows], dtype=np.int64)
        return torch.from_numpy(np.concatenate([[len(lengths)], lengths, self.text]))

    def set_extra_state(self, state: Tensor) -> None:
        """Inverse of :meth:`get_extra_state`.

        Raises:
            StateError: when it is not such a state.
        """
        values = state.numpy()
        rows = int(values[0]) if values.size else -1
        if rows < 0 or len(values) != 1 + rows + int(values[1 : 1 + rows].sum()):
            raise StateError("the stored text of this infinigram is not whole")
        text = values[1 + rows :]
        self._rows = np.split(text, np.cumsum(values[1 : 1 + rows])[:-1]) if rows else []
        self._tables, self._counted = None, 0


register(
    "infinigram",
    model="InfinigramLM",
    summary="The longest suffix that occurs in the training text decides, over Kneser-Ney (order 5): counted, only the mix is trained",
    paper="2401.17377",
    year=2024,
    tags=("causal", "counted"),
)
