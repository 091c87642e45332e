"""Mixing the ∞-gram with another model: per token, by how long a suffix matched and whether it was always continued alike.

    P(w | h) = l P_inf(w | h) + (1 - l) P_model(w | h)          l = l(bucket of the effective n, sparse?)

Paper: Infini-gram (2401.17377), section 5, which has one l for sparse and one for other contexts; here each is divided further
by the effective n (the length of the longest suffix that occurs). The weights maximise the likelihood of text that neither
model was made from, by EM: each bucket's likelihood is concave in its l, so there is one answer.

    mixture = fit_mixture(p_inf, p_model, n, sparse)             arrays (N,) over held-out tokens
    mixture.mix(p_inf, p_model, n, sparse)                       (N,)
    report = evaluate_mix(model, index, windows)                 bits per byte of both and of the mix, cross-fitted
    mixed = MixedLM(model, index, report.mixture)                a model of the frame's interface; it can generate

N tokens, K buckets, B batch, T time, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from orrery.core.errors import ConfigError, DataError, StateError
from orrery.data.validation import ValidationWindows
from orrery.models.output import Output
from orrery.models.scoring import nats
from orrery.ngram.lookup import Suffixes
from orrery.ngram.models import CountState, lay_out, remembered
from orrery.nn.contract import Context

EDGES = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)  # effective n at which a bucket begins; the first holds n = 0
_ROUNDS = 200
_PRIOR = 10.0  # tokens: how much a bucket leans on the weight of all sparse (or of all other) tokens
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Mixture:
    """Weights of the ∞-gram: weights[s][k] for sparse (s=1) or other contexts and bucket k; tokens: how many it was fitted on."""

    edges: tuple[int, ...]
    weights: tuple[tuple[float, ...], tuple[float, ...]]
    tokens: tuple[tuple[int, ...], tuple[int, ...]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def weight(self, n: Any, sparse: Any) -> Floats:
        """l of every token, (N,)."""
        table = np.array(self.weights)
        return table[np.asarray(sparse, dtype=np.int64), np.searchsorted(self.edges, np.asarray(n), side="right")]

    def mix(self, p_inf: Any, p_model: Any, n: Any, sparse: Any) -> Floats:
        """Probabilities of the mix, (N,)."""
        weight = self.weight(n, sparse)
        return weight * np.asarray(p_inf, dtype=np.float64) + (1 - weight) * np.asarray(p_model, dtype=np.float64)


def fit_mixture(p_inf: Any, p_model: Any, n: Any, sparse: Any, edges: tuple[int, ...] = EDGES) -> Mixture:
    """Weights that make held-out tokens likeliest.

    Args:
        p_inf, p_model: (N,) probabilities that both gave the tokens; p_model above 0.
        n, sparse: (N,) effective n and sparsity of the contexts.
        edges: ascending effective n at which buckets begin.

    Raises:
        DataError: for no tokens, or a model that gives one of them probability 0.
        ConfigError: when the edges do not ascend.
    """
    a, b = np.asarray(p_inf, dtype=np.float64), np.asarray(p_model, dtype=np.float64)
    if not a.size or not (len(a) == len(b) == len(np.asarray(n)) == len(np.asarray(sparse))):
        raise DataError("a mixture needs held-out tokens, and as many numbers of each kind")
    if not bool((b > 0).all()) or not bool(np.isfinite(a).all()):
        raise DataError("the model gives a held-out token probability 0: only the ∞-gram may")
    if list(edges) != sorted(set(edges)):
        raise ConfigError(f"the edges of the buckets must ascend, not {edges}")
    buckets = len(edges) + 1
    kind = np.asarray(sparse, dtype=np.int64)
    place = kind * buckets + np.searchsorted(edges, np.asarray(n), side="right")
    pooled = _expect(a, b, kind, 2, np.full(2, 0.5), 0.0)
    count = np.bincount(place, minlength=2 * buckets)
    weights = _expect(a, b, place, 2 * buckets, np.repeat(pooled, buckets), _PRIOR)
    table, tokens = weights.reshape(2, buckets).tolist(), count.reshape(2, buckets).tolist()
    return Mixture(tuple(edges), (tuple(table[0]), tuple(table[1])), (tuple(tokens[0]), tuple(tokens[1])))


def _expect(a: Floats, b: Floats, place: Any, groups: int, start: Floats, prior: float) -> Floats:
    """EM for one weight per group: l <- (sum of l a / (l a + (1-l) b) + prior * start) / (tokens + prior)."""
    count, weight = np.bincount(place, minlength=groups), start.copy()
    for _ in range(_ROUNDS):
        first = weight[place] * a
        share = np.bincount(place, weights=first / (first + (1 - weight[place]) * b), minlength=groups)
        new = np.where(count + prior > 0, (share + prior * start) / np.maximum(count + prior, 1e-12), start)
        if float(np.abs(new - weight).max()) < 1e-7:
            break
        weight = new
    return np.clip(weight, 1e-6, 1 - 1e-6)


@dataclass(frozen=True)
class MixReport:
    """Held-out text under a model, the ∞-gram, and their mix.

    bits_per_byte, perplexity: "model" and "mix" (perplexity per token). The ∞-gram alone has neither: it gives `zero` of the
    tokens (a share) probability 0; `agreement` is how often it gives the true token more than half.
    Every token of the mix is scored with weights that were fitted on other documents (two halves, each with the other's
    weights); `mixture` is fitted on all. sparse: share of tokens whose context was sparse. mean_n: mean effective n.
    """

    tokens: int
    bytes: int
    documents: int
    bits_per_byte: dict[str, float]
    perplexity: dict[str, float]
    zero: float
    agreement: float
    sparse: float
    mean_n: float
    mixture: Mixture

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


@dataclass(frozen=True)
class TokenScores:
    """Of every held-out target (N,): probabilities of both, effective n, sparsity, number of the document."""

    p_inf: Floats
    p_model: Floats
    n: Any
    sparse: Any
    document: Any


def score_windows(model: Any, index: Any, windows: ValidationWindows) -> TokenScores:
    """Both models on the windows of the evaluation protocol; the ∞-gram sees no more of a document than the model does."""
    parts: list[tuple[Any, ...]] = []
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in windows:
                tokens, scored = batch["tokens"], batch["segments"][:, 1:] == 0
                found = nats(model, model(tokens[:, :-1]), tokens[:, 1:].masked_fill(~scored, -100))
                likely = torch.exp(-found.double()).numpy()
                for row, good, p, document in zip(tokens.numpy(), scored.numpy(), likely, batch["documents"].tolist(), strict=True):
                    length = int(good.sum()) + 1
                    scores = index.score(row[:length])
                    rest = (scores.prob[1:], p[: length - 1], scores.n[1:], scores.sparse[1:])
                    parts.append((*rest, np.full(length - 1, document)))
    finally:
        model.train(training)
    if not parts:
        raise DataError("there is no held-out text to score")
    return TokenScores(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def evaluate_mix(model: Any, index: Any, windows: ValidationWindows, edges: tuple[int, ...] = EDGES) -> MixReport:
    """Score held-out text with a model, an index of the training text, and their mix.

    Args:
        model: of the frame's interface (create_model, wrap); its head's probabilities are normalised here.
        index: :func:`orrery.ngram.open`, of the model's own tokens.
        windows: :func:`orrery.data.validation_windows`.
        edges: of the buckets.
    """
    scores = score_windows(model, index, windows)
    return report(scores, windows.bytes, edges)


def report(scores: TokenScores, text_bytes: int, edges: tuple[int, ...] = EDGES) -> MixReport:
    """The report of :func:`evaluate_mix` from scores that are there already."""
    p, q = scores.p_inf, np.maximum(scores.p_model, 1e-300)
    numbers = np.unique(scores.document)
    half = np.searchsorted(numbers, scores.document) % 2 == 0
    if len(numbers) < 2:  # one document: its first part and its second
        half = np.arange(len(p)) < len(p) // 2
    mixed = np.empty(len(p))
    for side in (half, ~half):
        chosen = fit_mixture(p[~side], q[~side], scores.n[~side], scores.sparse[~side], edges)
        mixed[side] = chosen.mix(p[side], q[side], scores.n[side], scores.sparse[side])
    total = {"model": float(-np.log(q).sum()), "mix": float(-np.log(mixed).sum())}
    return MixReport(
        tokens=len(p), bytes=text_bytes, documents=len(numbers),
        bits_per_byte={name: nat / math.log(2) / text_bytes for name, nat in total.items()},
        perplexity={name: math.exp(nat / len(p)) for name, nat in total.items()},
        zero=float((p == 0).mean()), agreement=float((p > 0.5).mean()), sparse=float(np.mean(scores.sparse)),
        mean_n=float(np.mean(scores.n)), mixture=fit_mixture(p, q, scores.n, scores.sparse, edges),
    )  # fmt: skip


class MixedLM(nn.Module):
    """A model and an index as one model: `Output.logits` are log-probabilities of the mix.

    Args:
        model: of the frame's interface; its logits are normalised by softmax.
        index: of the same tokens.
        mixture: :func:`fit_mixture`.
        context: tokens before a position that the ∞-gram looks at, kept in the state.
    """

    def __init__(self, model: nn.Module, index: Any, mixture: Mixture, context: int = 256) -> None:
        super().__init__()
        vocabulary = int(model.vocab_size)  # type: ignore[arg-type]
        if index.vocab_size > vocabulary:
            raise ConfigError(
                f"the index knows {index.vocab_size} ids and the model {vocabulary}: they are not of one tokenizer"
            )
        if context < 1:
            raise ConfigError(f"context must be 1 or more tokens, not {context}")
        self.model, self.mixture, self.context, self.vocab_size = model, mixture, context, vocabulary
        self.suffixes = Suffixes(index, vocabulary)

    def forward(
        self, tokens: Tensor, state: Any = None, ctx: Context | None = None, segments: Tensor | None = None
    ) -> Output:
        """tokens (B,T) -> Output with logits (B,T,V); the state is the model's and the last `context` tokens."""
        segments = segments if segments is not None else (ctx.segments if ctx is not None else None)
        if state is not None and not (isinstance(state, tuple) and len(state) == 2):
            raise StateError("the state belongs to another model")
        inner, past = (None, None) if state is None else state
        out = self.model(tokens, state=inner) if segments is None else self.model(tokens, state=inner, segments=segments)
        rows = lay_out(tokens, past, segments, self.context)
        log_p = torch.log_softmax(out.logits.double(), -1)
        here = rows.places >= 0
        p_inf, n, sparse = self.suffixes.distributions(rows.text, rows.starts, rows.places[here], self.context)
        weight = torch.from_numpy(self.mixture.weight(n, sparse))[:, None]
        chosen = torch.from_numpy(here)
        mixed = torch.logaddexp(torch.log(weight) + torch.log(torch.from_numpy(p_inf)), torch.log1p(-weight) + log_p[chosen])
        logits = torch.zeros(*tokens.shape, self.vocab_size)
        logits[chosen] = mixed.float()
        kept: CountState = remembered(rows, self.context)
        return Output(logits, (out.state, kept), out.aux, lambda hidden: hidden)

    def num_parameters(self, embedding: bool = False) -> int:
        """Of the model inside."""
        return int(self.model.num_parameters(embedding))  # type: ignore[operator]
