"""Heads: what an encoder's hidden states are turned into, how that is scored, and how an answer is read off.

A head is chosen by the config field `head` of an encoder: {"name": one of HEADS, **settings}. All obey one interface:

    head(hidden, segments) -> scores          what `out.logits` is
    head.loss(scores, targets, segments)      mean loss, differentiable
    head.predict(scores, segments)            the answer, without gradient

    name            scores        targets                      loss
    masked-lm       (B,T,V)       (B,T) ids, -100 elsewhere    cross-entropy
    classification  (N,C)         (N,) int64                   cross-entropy, by class weights
    multi-label     (N,C)         (N,C) 0 or 1                 binary cross-entropy
    regression      (N,C)         (N,) or (N,C) float          squared error
    ordinal         (N,C) log p   (N,) int64                   -log p(y), proportional odds
    tagging         (B,T,C)       (B,T) int64, -100 elsewhere  cross-entropy, or a CRF's (crf=True)
    replaced-tokens (B,T)         (B,T) 0, 1, -100 elsewhere   binary cross-entropy
    span            (B,T,2)       (N,2) first and last place   mean cross-entropy of both
    embedding       (N,E)         (none)                       (none: similarity objectives take the vectors)
    pairs           (B,C) or (B,) (B,) int64 or float          cross-entropy, or squared error of the cosine
    multiple-choice (B,C)         (B,) int64                   cross-entropy over the row's documents, C at most

N are the documents of the batch in order, B where no row holds several. A cross-encoder is `classification` or `regression`
over two texts in one document; a bi-encoder is `pairs` over two documents in one row, which never see each other. Choices are
documents of one row, too.

B batch, T time, D width, V vocabulary, C classes, N documents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core.config import Config, require
from orrery.core.errors import ConfigError, DataError, suggest
from orrery.models.config import EncoderConfig
from orrery.models.crf import CRF, scheme_allows
from orrery.models.pooling import POOLS, documents, pool
from orrery.nn.contract import Context
from orrery.nn.feedforward import activation
from orrery.nn.norms import make_norm

IGNORE = -100


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Config):
    """labels: C. names: of the labels, in order, or none. pool: which vector stands for a document (first, last, mean, max).
    transform: activation of a layer D -> D before the last one; "": no such layer. norm: of the model's kind behind it.
    bias: of the last layer; transform_bias: of the one before. dropout: before the last layer; dropout_twice: before both, in heads
    of documents. std: of the initialisation."""

    labels: int = 2
    names: tuple[str, ...] = ()
    pool: str = "first"
    transform: str = ""
    norm: bool = False
    bias: bool = True
    transform_bias: bool = True
    dropout: float = 0.0
    dropout_twice: bool = False
    std: float = 0.02

    def __post_init__(self) -> None:
        require(self.labels > 0, f"head.labels must be positive, not {self.labels}")
        require(not self.names or len(self.names) == self.labels, f"{len(self.names)} label names were given for {self.labels} labels")
        require(self.pool in POOLS, f"pool '{self.pool}' must be one of {', '.join(POOLS)}")
        require(0 <= self.dropout < 1, f"head.dropout must lie in [0, 1), not {self.dropout}")


class TaskHead(nn.Module):
    """Base of all heads; see the top of this file."""

    Config: ClassVar[type[HeadConfig]] = HeadConfig
    level: ClassVar[str] = "document"  # of the scores: document | token | vocabulary | pair | choice

    def __init__(self, config: HeadConfig, frame: EncoderConfig, embed: nn.Embedding | None = None) -> None:
        super().__init__()
        self.config, self.width = config, frame.width
        out = self._transform_width(frame)
        self.dense = nn.Linear(frame.width, out, bias=config.transform_bias) if config.transform else None
        self.act = activation(config.transform) if config.transform else None
        self.norm = make_norm(frame.norm, out, frame.eps) if config.norm else None
        self.out = self._out(out, frame, embed)
        self.reset_parameters()

    def _transform_width(self, frame: EncoderConfig) -> int:
        return frame.width

    def _out(self, width: int, frame: EncoderConfig, embed: nn.Embedding | None) -> nn.Linear | None:
        return nn.Linear(width, self.config.labels, bias=self.config.bias)

    def tie(self, embed: nn.Embedding) -> None:
        """Share the embedding's matrix, where the config says so."""

    def transform(self, h: Tensor) -> Tensor:
        """What the last layer gets: (...,D) -> (...,D)."""
        if self.dense is not None and self.act is not None:
            h = self.act(self.dense(h))
        if self.norm is not None:
            h = self.norm(h)
        return F.dropout(h, self.config.dropout, self.training) if self.config.dropout else h

    def forward(self, hidden: Tensor, segments: Tensor | None = None) -> Tensor:
        """Scores of hidden (B,T,D): of documents."""
        h = pool(hidden, segments, self.config.pool)
        if self.config.dropout and self.config.dropout_twice and self.dense is not None:
            h = F.dropout(h, self.config.dropout, self.training)
        return cast(Tensor, cast(nn.Linear, self.out)(self.transform(h)))

    def loss(self, scores: Tensor, targets: Tensor, segments: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Mean loss of scores; `weights` (C,) are those of the classes where there are any."""
        raise NotImplementedError(f"{type(self).__name__} must define loss(scores, targets, segments, weights)")

    def predict(self, scores: Tensor, segments: Tensor | None = None) -> Tensor:
        """The answers that scores stand for."""
        raise NotImplementedError(f"{type(self).__name__} must define predict(scores, segments)")

    def reset_parameters(self) -> None:
        """Normal with the configured std, biases 0; a matrix that is the embedding's is left to it."""
        for linear in (self.dense, self.out):
            if linear is not None:
                if not getattr(linear, "tied", False):
                    nn.init.normal_(linear.weight, std=self.config.std)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
        if self.norm is not None:
            cast(Any, self.norm).reset_parameters()

    def flops(self, length: int) -> int:
        """Forward operations for a document of `length` tokens."""
        rows = length if self.level in ("token", "vocabulary") else 1
        return rows * sum(2 * linear.weight.numel() for linear in (self.dense, self.out) if linear is not None)


@dataclass(frozen=True, kw_only=True)
class MaskedLMConfig(HeadConfig):
    """tied: the last matrix is the embedding's. positions: absolute ones that the last layer asks by (0: none), in `passes` runs of
    it (:meth:`MaskedLM.asked`)."""

    transform: str = "gelu"
    norm: bool = True
    tied: bool = True
    positions: int = 0
    passes: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.positions >= 0, f"head.positions must be 0 or more, not {self.positions}")
        require(self.passes > 0, f"head.passes must be positive, not {self.passes}")


class MaskedLM(TaskHead):
    """Scores of the vocabulary at every token."""

    Config = MaskedLMConfig
    config: MaskedLMConfig
    level = "vocabulary"

    def __init__(self, config: MaskedLMConfig, frame: EncoderConfig, embed: nn.Embedding | None = None) -> None:
        super().__init__(config, frame, embed)
        self.absolute = nn.Parameter(torch.empty(config.positions, frame.width)) if config.positions else None
        if self.absolute is not None:
            nn.init.normal_(self.absolute, std=config.std)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        table = getattr(self, "absolute", None)  # the base class draws before there is one
        if table is not None:
            nn.init.normal_(table, std=self.config.std)

    def asked(self, h: Tensor, block: Callable[[Tensor, Context], Tensor], ctx: Context) -> Tensor:
        """The last layer as DeBERTa's enhanced mask decoder (arXiv 2006.03654, section 3.2): h (B,T,D) before it -> behind it.

        q = h + P[position], then `passes` times q = layer(q), whose queries and residual are q's, keys and values h's.

        Raises:
            ConfigError: for a position outside the table.
        """
        assert self.absolute is not None
        positions = ctx.timeline.positions[..., : h.shape[1]]
        if (most := int(positions.max())) >= len(self.absolute):
            raise ConfigError(f"the masked-lm head has {len(self.absolute)} absolute positions and cannot read position {most}; "
                              "pass fewer tokens or build it with a larger head.positions")  # fmt: skip
        query, ctx = h + self.absolute[positions], ctx.replace(memory=h)
        for _ in range(self.config.passes):
            query = block(query, ctx)
        return query

    def _transform_width(self, frame: EncoderConfig) -> int:
        return frame.embedding.width or frame.width

    def _out(self, width: int, frame: EncoderConfig, embed: nn.Embedding | None) -> nn.Linear:
        self.out: nn.Linear | None = nn.Linear(width, frame.vocab_size, bias=self.config.bias)
        if embed is not None:
            self.tie(embed)
        return self.out

    def tie(self, embed: nn.Embedding) -> None:
        if self.config.tied and self.out is not None:
            require(embed.weight.shape == self.out.weight.shape, "a tied head needs an embedding of its own width")
            self.out.weight = embed.weight
            self.out.tied = True  # type: ignore[assignment]

    def forward(self, hidden: Tensor, segments: Tensor | None = None) -> Tensor:
        return cast(Tensor, cast(nn.Linear, self.out)(self.transform(hidden)))

    def loss(self, scores: Tensor, targets: Tensor, segments: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Of logits (B,T,V); :func:`orrery.models.scoring.score` computes the same without holding them."""
        return F.cross_entropy(scores.flatten(0, -2), targets.flatten(), weights, ignore_index=IGNORE)

    def predict(self, scores: Tensor, segments: Tensor | None = None) -> Tensor:
        return scores.argmax(-1)


class Classification(TaskHead):
    """One of C classes for every document."""

    def loss(self, scores: Tensor, targets: Tensor, segments: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        return F.cross_entropy(scores, targets, weights, ignore_index=IGNORE)

    def predict(self, scores: Tensor, segments: Tensor | None = None) -> Tensor:
        return scores.argmax(-1)


class MultiLabel(TaskHead):
    """Any of C labels for every document; predicted where the probability is above a half."""

    def loss(self, scores: Tensor, targets: Tensor, segments: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """`weights` (C,) multiply what a present label counts."""
        return F.binary_cross_entropy_with_logits(scores, targets.to(scores.dtype), pos_weight=weights)

    def predict(self, scores: Tensor, segments: Tensor | None = None) -> Tensor:
        return (scores > 0).long()


@dataclass(frozen=True, kw_only=True)
class RegressionConfig(HeadConfig):
    """labels: how many numbers."""

    labels: int = 1


class Regression(TaskHead):
    """Numbers for every document."""

    Config = RegressionConfig

    def loss(self, scores: Tensor, targets: Tensor, segments: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        return F.mse_loss(scores, targets.to(scores.dtype).view(scores.shape))

    def predict(self, scores: Tensor, segments: Tensor | None = None) -> Tensor:
        return scores[:, 0] if scores.shape[-1] == 1 else scores


class Ordinal(TaskHead):
    """Ordered classes: p(y > k) = sigmoid(w.h - b_k) with b_1 < .. < b_{C-1} (proportional odds, McCullagh 1980)."""

    def _out(self, width: int, frame: EncoderConfig, embed: nn.Embedding | None) -> nn.Linear:
        require(self.config.labels > 1, f"an ordinal head needs two classes or more, not {self.config.labels}")
        self.gaps = nn.Parameter(torch.empty(self.config.labels - 1))  # the first bound, then softplus-gaps between them
        return nn.Linear(width, 1, bias=False)

    def reset_parameters(self) -> None:
        """Bounds one apart, around 0."""
        super().reset_parameters()
        nn.init.constant_(self.gaps, 0.5413)  # softplus(0.5413) = 1
        nn.init.constant_(self.gaps[:1], -(self.config.labels - 2) / 2)

    def bounds(self) -> Tensor:
        """The bounds b (C-1,), ascending."""
        return torch.cat([self.gaps[:1], F.softplus(self.gaps[1:])]).cumsum(0)

    def forward(self, hidden: Tensor, segments: Tensor | None = None) -> Tensor:
        """log p(y = k) (N,C): log(s(a) - s(b)) = log s(a) + log s(-b) + log(1 - exp(b - a)) for neighbouring bounds."""
        above = super().forward(hidden, segments) - self.bounds()  # (N,C-1): logit of y > k
        inner = F.logsigmoid(above[:, :-1]) + F.logsigmoid(-above[:, 1:])
        inner = inner + torch.log(-torch.expm1(above[:, 1:] - above[:, :-1]))
        return torch.cat([F.logsigmoid(-above[:, :1]), inner, F.logsigmoid(above[:, -1:])], 1)

    def loss(self, scores: Tensor, targets: Tensor, segments: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        return F.nll_loss(scores, targets, weights, ignore_index=IGNORE)

    def predict(self, scores: Tensor, segments: Tensor | None = None) -> Tensor:
        """The median class, the answer of least absolute error."""
        return (scores.exp().cumsum(-1) < 0.5).sum(-1).clamp(max=scores.shape[-1] - 1)


@dataclass(frozen=True, kw_only=True)
class TaggingConfig(HeadConfig):
    """crf: tags are scored as sequences. scheme "bio" with `names` forbids I-X that follows neither B-X nor I-X; "": none."""

    crf: bool = False
    scheme: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.scheme in ("", "bio"), f"scheme '{self.scheme}' must be 'bio' or empty")
        require(not self.scheme or bool(self.names), "the scheme 'bio' needs the names of the labels")


class Tagging(TaskHead):
    """A tag for every token; with `crf`, for the tokens that carry one (targets not -100), as a chain per document."""

    Config = TaggingConfig
    config: TaggingConfig
    level = "token"

    def _out(self, width: int, frame: EncoderConfig, embed: nn.Embedding | None) -> nn.Linear:
        allowed = scheme_allows(self.config.names) if self.config.scheme else None
        self.crf = CRF(self.config.labels, allowed) if self.config.crf else None
        return nn.Linear(width, self.config.labels, bias=self.config.bias)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.crf is not None:
            self.crf.reset_parameters()

    def forward(self, hidden: Tensor, segments: Tensor | None = None) -> Tensor:
        return cast(Tensor, cast(nn.Linear, self.out)(self.transform(hidden)))

    def loss(self, scores: Tensor, targets: Tensor, segments: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Mean over tags; -100 counts for nothing, and texts without a word make 0. A CRF takes no class weights."""
        if not bool((targets != IGNORE).any()):
            return scores.sum() * 0.0
        if self.crf is None:
            return F.cross_entropy(scores.flatten(0, 1), targets.flatten(), weights, ignore_index=IGNORE)
        index, lengths = _chains(targets != IGNORE, segments)
        emissions, tags = scores.flatten(0, 1)[index], targets.flatten()[index]
        return self.crf.nats(emissions, tags, lengths).sum() / lengths.sum()

    def predict(self, scores: Tensor, segments: Tensor | None = None, where: Tensor | None = None) -> Tensor:
        """Tags (B,T) int64, -100 at tokens without one. `where` (B,T) bool: which carry one; None: all that are not padding."""
        if where is None:
            where = torch.ones(scores.shape[:2], dtype=torch.bool, device=scores.device) if segments is None else segments >= 0
        if self.crf is None or not bool(where.any()):
            return scores.argmax(-1).masked_fill(~where, IGNORE)
        index, lengths = _chains(where, segments)
        best = self.crf.best(scores.detach().flatten(0, 1)[index], lengths)
        tags = torch.full((where.numel(),), IGNORE, dtype=torch.int64, device=scores.device)
        valid = torch.arange(index.shape[1], device=index.device) < lengths[:, None]
        tags[index[valid]] = best[valid]
        return tags.view(where.shape)


def _chains(where: Tensor, segments: Tensor | None) -> tuple[Tensor, Tensor]:
    """Places (N,L) in the flattened batch of each document's tokens `where` (B,T), one or more, padded with 0, and the lengths (N,)."""
    ids = documents(where.shape, segments, where.device)[0].masked_fill(~where, -1).flatten()
    places = (ids >= 0).nonzero()[:, 0]
    _, number, lengths = ids[places].unique_consecutive(return_inverse=True, return_counts=True)
    index = places.new_zeros(len(lengths), int(lengths.max()))
    index[number, torch.arange(len(places), device=places.device) - (lengths.cumsum(0) - lengths)[number]] = places
    return index, lengths


class ReplacedTokens(TaskHead):
    """Whether every token was put in the place of another (ELECTRA, arXiv 2003.10555); predicted above a probability of a half."""

    level = "token"

    def _out(self, width: int, frame: EncoderConfig, embed: nn.Embedding | None) -> nn.Linear:
        return nn.Linear(width, 1, bias=self.config.bias)

    def forward(self, hidden: Tensor, segments: Tensor | None = None) -> Tensor:
        return cast(Tensor, cast(nn.Linear, self.out)(self.transform(hidden)))[..., 0]

    def loss(self, scores: Tensor, targets: Tensor, segments: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Mean over the tokens asked for. `weights` has no meaning here."""
        asked = targets != IGNORE
        return F.binary_cross_entropy_with_logits(scores[asked], targets[asked].to(scores.dtype))

    def predict(self, scores: Tensor, segments: Tensor | None = None) -> Tensor:
        """0 or 1 (B,T) int64."""
        return (scores > 0).long()


@dataclass(frozen=True, kw_only=True)
class SpanConfig(HeadConfig):
    """longest: tokens that an answer may have."""

    longest: int = 30


class Span(TaskHead):
    """The first and last token of an answer in every document; the document's first token stands for "no answer"."""

    Config = SpanConfig
    config: SpanConfig
    level = "token"

    def _out(self, width: int, frame: EncoderConfig, embed: nn.Embedding | None) -> nn.Linear:
        return nn.Linear(width, 2, bias=self.config.bias)

    def forward(self, hidden: Tensor, segments: Tensor | None = None) -> Tensor:
        scores = cast(Tensor, cast(nn.Linear, self.out)(self.transform(hidden)))
        return scores if segments is None else scores.masked_fill((segments < 0)[..., None], torch.finfo(scores.dtype).min)

    def loss(self, scores: Tensor, targets: Tensor, segments: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """One document per row; targets (B,2) are places in the row, -100 for rows that count for nothing."""
        first, last = (F.cross_entropy(scores[..., side], targets[:, side], ignore_index=IGNORE) for side in (0, 1))
        return (first + last) / 2

    def predict(self, scores: Tensor, segments: Tensor | None = None, where: Tensor | None = None) -> Tensor:
        """The best places (B,2) with first <= last, both in `where` (B,T) bool (None: anywhere but padding)."""
        length = scores.shape[1]
        steps = torch.arange(length, device=scores.device)
        gap = steps - steps[:, None]
        both = scores[:, :, None, 0] + scores[:, None, :, 1]
        both = both.masked_fill((gap < 0) | (gap >= self.config.longest), -torch.inf)
        if where is not None:
            both = both.masked_fill(~(where[:, :, None] & where[:, None, :]), -torch.inf)
        best = both.flatten(1).argmax(1)
        return torch.stack([best // length, best % length], 1)


@dataclass(frozen=True, kw_only=True)
class EmbeddingHeadConfig(HeadConfig):
    """normalise: to length 1. size: of the vector, by a linear map; None: D."""

    pool: str = "mean"
    normalise: bool = False
    size: int | None = None


class EmbeddingHead(TaskHead):
    """A vector for every document."""

    Config = EmbeddingHeadConfig
    config: EmbeddingHeadConfig

    def _out(self, width: int, frame: EncoderConfig, embed: nn.Embedding | None) -> nn.Linear | None:
        return nn.Linear(width, self.config.size, bias=self.config.bias) if self.config.size else None

    def forward(self, hidden: Tensor, segments: Tensor | None = None) -> Tensor:
        h = self.transform(pool(hidden, segments, self.config.pool))
        h = h if self.out is None else self.out(h)
        return F.normalize(h, dim=-1) if self.config.normalise else h

    def predict(self, scores: Tensor, segments: Tensor | None = None) -> Tensor:
        return scores


@dataclass(frozen=True, kw_only=True)
class PairsConfig(HeadConfig):
    """join: "features" (u, v and |u - v| into a linear map; Sentence-BERT, 1908.10084) or "cosine"."""

    pool: str = "mean"
    join: str = "features"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.join in ("features", "cosine"), f"join '{self.join}' must be 'features' or 'cosine'")


class Pairs(TaskHead):
    """A bi-encoder: every row holds two documents, which are read apart and compared."""

    Config = PairsConfig
    config: PairsConfig
    level = "pair"

    def _out(self, width: int, frame: EncoderConfig, embed: nn.Embedding | None) -> nn.Linear | None:
        return nn.Linear(3 * width, self.config.labels, bias=self.config.bias) if self.config.join == "features" else None

    def forward(self, hidden: Tensor, segments: Tensor | None = None) -> Tensor:
        vectors = self.transform(pool(hidden, segments, self.config.pool))
        if len(vectors) != 2 * len(hidden):
            raise DataError(f"a bi-encoder needs two documents in every row; the {len(hidden)} rows hold {len(vectors)}")
        u, v = vectors.unflatten(0, (-1, 2)).unbind(1)
        if self.out is None:
            return F.cosine_similarity(u, v)
        return self.out(torch.cat([u, v, (u - v).abs()], -1))

    def loss(self, scores: Tensor, targets: Tensor, segments: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        if self.out is None:
            return F.mse_loss(scores, targets.to(scores.dtype))
        return F.cross_entropy(scores, targets, weights, ignore_index=IGNORE)

    def predict(self, scores: Tensor, segments: Tensor | None = None) -> Tensor:
        return scores if self.out is None else scores.argmax(-1)


@dataclass(frozen=True, kw_only=True)
class MultipleChoiceConfig(HeadConfig):
    """labels: 1, the score of a choice."""

    labels: int = 1
    pool: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.labels == 1, f"a choice has one score: head.labels must be 1, not {self.labels}")


class MultipleChoice(TaskHead):
    """One of the documents of every row, which are its choices, by the softmax of their scores (SWAG, 1808.05326, as BERT learns it)."""

    Config = MultipleChoiceConfig
    level = "choice"

    def forward(self, hidden: Tensor, segments: Tensor | None = None) -> Tensor:
        """Scores (B,C) in the order of the documents; where a row has fewer than C, a number whose probability is 0."""
        scores = super().forward(hidden, segments)[:, 0]
        if segments is None:
            return scores[:, None]
        last = documents(segments.shape, segments, segments.device)[0].amax(1)
        if bool((last < 0).any()):
            raise DataError(f"row {int((last < 0).nonzero()[0])} of the batch holds no choice")
        counts = torch.diff(last, prepend=last.new_tensor([-1]))
        there = torch.arange(int(counts.max()), device=counts.device) < counts[:, None]
        return scores.new_full(there.shape, torch.finfo(scores.dtype).min / 16).masked_scatter(there, scores)

    def loss(self, scores: Tensor, targets: Tensor, segments: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """Of the right choices' numbers. `weights` has no meaning here."""
        return F.cross_entropy(scores, targets, ignore_index=IGNORE)

    def predict(self, scores: Tensor, segments: Tensor | None = None) -> Tensor:
        """The number of the best choice of every row, (B,) int64."""
        return scores.argmax(-1)


HEADS: dict[str, type[TaskHead]] = {
    "masked-lm": MaskedLM,
    "classification": Classification,
    "multi-label": MultiLabel,
    "regression": Regression,
    "ordinal": Ordinal,
    "tagging": Tagging,
    "replaced-tokens": ReplacedTokens,
    "span": Span,
    "embedding": EmbeddingHead,
    "pairs": Pairs,
    "multiple-choice": MultipleChoice,
}


def head_class(name: str) -> type[TaskHead]:
    """A head by its name in configs."""
    if name not in HEADS:
        raise ConfigError(f"unknown head '{name}'.{suggest(name, HEADS)} Known: {', '.join(HEADS)}")
    return HEADS[name]


def make_head(frame: EncoderConfig, embed: nn.Embedding | None) -> TaskHead:
    """The head that an encoder's config asks for."""
    spec = dict(frame.head or {})
    cls = head_class(str(spec.pop("name", "")))
    return cls(cls.Config.from_dict(spec, where="head"), frame, embed)
