"""pNLP-Mixer: an encoder of bytes without an embedding table; words are hashed, and mixed by MLPs.

Paper: pNLP-Mixer: an Efficient all-MLP Architecture for Language (arXiv 2202.04350).

Equation: c_t the counting Bloom filter of word t (:mod:`orrery.ops.minhash`), n hashes in m buckets
    x_t = V [c_{t-w}; ..; c_{t+w}] + b   (zero beyond the document)
    layer:  X = X + W2 gelu(W1 LN(X) + b1) + b2  over S words,   x_t = x_t + MLP(LN(x_t))
    document:  r = sum_t softmax_t(A x)_t * (F x)_t   feature by feature, then the head;  tag: the head of x_t

Shapes: B batch, T bytes, W words, D width, n hashes, m buckets, S words that are mixed together, P pieces of S words at most.

Cost: O(W n D) for the projection, O(W (S + D) F) for the layers, linear in the length; no state. Parameters do not grow with
    a vocabulary: there is none.

Differs from the paper: words are not cut into a vocabulary's pieces first, so that the model needs none: the trigrams are
    those of the word. Hashes are polynomials, not SHA. A document longer than S words is read in pieces of S, not cut off;
    rows of padding are zero in every layer (there they carry the bias of V), so short texts cost less.

Oracle: tests/oracles/minhash.py (fingerprints and filters), tests/oracles/pnlp_mixer.py (float64 loops).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core.config import Config, require
from orrery.core.errors import ConfigError, CorruptionError, StateError
from orrery.core.registry import register
from orrery.models.frame import check_input
from orrery.models.heads import head_class
from orrery.models.ladder import rung
from orrery.models.output import Output
from orrery.models.pooling import documents
from orrery.nn.contract import Context
from orrery.nn.norms import LayerNorm
from orrery.ops.minhash import cut_words, distinct, fingerprints

BITS = (8, 32)
MANY = 256  # spellings from which on parts of V are laid out apart


@dataclass(frozen=True, kw_only=True)
class PNLPMixerConfig(Config):
    """vocab_size: bytes and the marks behind them. width D, depth. hashes n, buckets m, window w on either side. words S.
    hidden: of both MLPs. types: token types that are told apart (0: none). lower: fold case. bits: 8 keeps matrices as
    8-bit integers with a scale per row in files. head: {"name": ..., **settings} or None."""

    vocab_size: int = 257
    width: int = 256
    depth: int = 2
    hashes: int = 64
    buckets: int = 1024
    window: int = 1
    words: int = 64
    hidden: int = 256
    types: int = 0
    lower: bool = True
    bits: int = 32
    head: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "depth", "hashes", "buckets", "words", "hidden"):
            require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        require(self.window >= 0 and self.types >= 0, "window and types must be 0 or more")
        require(self.bits in BITS, f"bits must be 8 or 32, not {self.bits}")
        if self.head is not None:
            require(self.head.get("name") != "masked-lm", "pnlp-mixer has no vocabulary, so it fills in no masked words")
            require("pool" not in self.head, "pnlp-mixer pools by weights of its own; leave head.pool out")

    @classmethod
    def from_dict(cls, data: Any, where: str = "") -> PNLPMixerConfig:
        """As of any config; also with `head` as a name beside `labels`, "head.X" and "embedding.types", as encoders take them."""
        data = dict(data)
        settings = {key.partition(".")[2]: data.pop(key) for key in list(data) if str(key).startswith("head.")}
        if "labels" in data:
            settings["labels"] = data.pop("labels")
        if "embedding.types" in data:
            data["types"] = data.pop("embedding.types")
        head = data.get("head", "classification")
        if head is None and settings:
            raise ConfigError(f"head is None, so it has no setting '{next(iter(settings))}'")
        if head is not None:
            data["head"] = {**({"name": head} if isinstance(head, str) else head), **settings}
        return super().from_dict(data, where=where)

    @property
    def norm(self) -> str:
        """Of the head's norm, where it has one."""
        return "layernorm"

    @property
    def eps(self) -> float:
        """Of all norms."""
        return 1e-5

    @property
    def parameters(self) -> int:
        """Those outside the head."""
        d, spread = self.width, 2 * self.window + 1
        layer = self.hidden * 2 * (self.words + d) + 2 * self.hidden + self.words + d + 4 * d
        return self.buckets * spread * d + d + self.depth * layer + 2 * d * d + d + self.types * d


class Reading(NamedTuple):
    """A batch as words. place (B,T): word of every byte, -1 at padding. document (W,), origin (W,): first token.

    buckets (U,n): of the U words that are spelled differently. spelling (W,): which of them each word is. total: documents.
    piece, position (W,): where a word stands in the pieces; pieces, longest: their number and length.
    """

    place: Tensor
    document: Tensor
    origin: Tensor
    buckets: Tensor
    spelling: Tensor
    total: int
    piece: Tensor
    position: Tensor
    pieces: int
    longest: int


class MixerLayer(nn.Module):
    """Mixing over words, then over features."""

    def __init__(self, config: PNLPMixerConfig) -> None:
        super().__init__()
        self.time_norm, self.norm = (LayerNorm(config.width, config.eps) for _ in range(2))
        self.time_in, self.time_out = nn.Linear(config.words, config.hidden), nn.Linear(config.hidden, config.words)
        self.wide, self.out = nn.Linear(config.width, config.hidden), nn.Linear(config.hidden, config.width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """X (P,L,D), L <= S, and mask (P,L,1) -> (P,L,D)."""
        length = x.shape[1]
        seen = (self.time_norm(x) * mask).transpose(1, 2)
        h = F.gelu(F.linear(seen, self.time_in.weight[:, :length], self.time_in.bias))
        x = x + F.linear(h, self.time_out.weight[:length], self.time_out.bias[:length]).transpose(1, 2)
        return x + self.out(F.gelu(self.wide(self.norm(x))))


class PNLPMixer(nn.Module):
    """`model(tokens, segments=...) -> Output`: hidden (B,T,D), each byte with its word's; logits what the head makes of words."""

    Config = PNLPMixerConfig
    registered_name = "pnlp-mixer"
    tokenizer = "bytes"  # what it reads
    position_embed = type_embed = None
    examples = (
        {"width": 16, "depth": 2, "hashes": 16, "buckets": 64, "words": 8, "hidden": 24},
    )

    def __init__(self, config: PNLPMixerConfig) -> None:
        super().__init__()
        self.config, self.vocab_size = config, config.vocab_size
        self.spread = 2 * config.window + 1
        self.bottleneck = nn.Parameter(torch.empty(config.buckets, self.spread * config.width))
        self.bias = nn.Parameter(torch.empty(config.width))
        self.types = nn.Parameter(torch.empty(config.types, config.width)) if config.types else None
        self.layers = nn.ModuleList(MixerLayer(config) for _ in range(config.depth))
        self.attend = nn.Linear(config.width, config.width, bias=False)
        self.value = nn.Linear(config.width, config.width)
        self.head: Any = None
        if config.head is not None:
            spec = dict(config.head)
            cls = head_class(str(spec.pop("name", "")))
            self.head = cls(cls.Config.from_dict(spec, where="head"), config, None)  # type: ignore[arg-type]
        self.reset_parameters()

    @classmethod
    def sized(cls, size: str) -> dict[str, Any]:
        """The width that brings a size of the ladder nearest, all else being the paper's."""
        wanted = rung(size).parameters
        width = min(range(8, 4096, 8), key=lambda w: abs(PNLPMixerConfig(width=w).parameters - wanted))
        return {"width": width}

    def reset_parameters(self) -> None:
        """The projection so that words have unit variance; linear maps uniform +-1/sqrt(fan-in), biases 0."""
        nn.init.normal_(self.bottleneck, std=(self.config.hashes * self.spread) ** -0.5)
        nn.init.zeros_(self.bias)
        if self.types is not None:
            nn.init.normal_(self.types, std=0.02)
        for module in self.modules():
            if isinstance(module, LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                nn.init.uniform_(module.weight, -(module.in_features**-0.5), module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.head is not None:
            self.head.reset_parameters()

    def forward(
        self, tokens: Tensor, state: Any = None, ctx: Context | None = None, segments: Tensor | None = None, types: Tensor | None = None
    ) -> Output:
        """Read bytes (B,T) int64.

        Args:
            tokens: bytes, and marks from 256 up.
            state: must be None.
            ctx: segments and aux count; positions, bias, memory and conditioning are refused.
            segments: (B,T) document ids, -1 padding anywhere; None: every row is one document.
            types: (B,T) int64; None: all 0.

        Raises:
            StateError: for a state, empty input, or segments that do not fit.
            ConfigError: for tokens or types outside what there is.
        """
        if state is not None:
            raise StateError("pnlp-mixer is an encoder: it reads whole documents and carries no state")
        ctx = ctx or Context()
        for field in ("positions", "bias", "memory", "cond"):
            if getattr(ctx, field) is not None:
                raise ConfigError(f"pnlp-mixer cannot honour '{field}'; leave it out")
        segments = ctx.segments if segments is None else segments
        batch, length, _ = check_input(tokens, None, self.vocab_size, self.config.width)
        if batch == 0 or length == 0:
            raise StateError(f"an input of batch {batch} and length {length} is empty; pass at least one token")
        if types is not None and self.types is None:
            raise ConfigError("pnlp-mixer has no token types; leave `types` out or build it with types=2")
        reading = self.read(tokens, segments)
        words = self.words(reading, types)
        padded = torch.cat([words, words.new_zeros(1, words.shape[1])])  # the last row is padding's, place -1
        return Output(padded[reading.place], None, ctx.aux, self._head(words, reading, batch))

    @torch.no_grad()
    def read(self, tokens: Tensor, segments: Tensor | None = None) -> Reading:
        """Words and their buckets: what the model knows of a text before its first weight.

        Raises:
            StateError: for segments of another shape, or that decrease along a row.
        """
        if segments is not None:
            if segments.shape != tokens.shape:
                raise StateError(f"segments have shape {tuple(segments.shape)}, the tokens {tuple(tokens.shape)}")
            running = segments.cummax(1).values
            if bool(((segments >= 0) & (segments < running)).any()):
                raise StateError("segments decrease along a row; document ids may only grow (padding is -1)")
        ids, count = documents(tokens.shape, segments, tokens.device)
        found = cut_words(tokens.flatten().cpu().numpy(), ids.flatten().cpu().numpy(), self.config.lower)
        if not len(found.document):
            raise StateError("every token of the batch is padding; pass at least one token")
        spelled, which = distinct(found)
        buckets = torch.from_numpy(fingerprints(spelled, self.config.hashes) % self.config.buckets)
        device = tokens.device
        document = torch.from_numpy(found.document.copy()).to(device)
        sizes = torch.bincount(document, minlength=count)
        rank = torch.arange(len(document), device=device) - (sizes.cumsum(0) - sizes)[document]
        parts = (sizes + self.config.words - 1) // self.config.words
        piece = (parts.cumsum(0) - parts)[document] + rank // self.config.words
        position = rank % self.config.words
        place = torch.from_numpy(found.place).to(device).view(tokens.shape)
        origin = torch.from_numpy(found.origin.copy()).to(device)
        spelling = torch.from_numpy(which).to(device)
        longest = int(position.max()) + 1
        return Reading(place, document, origin, buckets.to(device), spelling, count, piece, position, int(parts.sum()), longest)

    def words(self, reading: Reading, types: Tensor | None = None) -> Tensor:
        """Hidden states of words (W,D)."""
        x = self._projected(reading, types)
        shape = (reading.pieces, reading.longest)
        where = reading.piece * reading.longest + reading.position
        dense = x.new_zeros(shape[0] * shape[1], x.shape[1]).index_copy(0, where, x).unflatten(0, shape)
        mask = x.new_zeros(shape[0] * shape[1], 1).index_fill(0, where, 1.0).unflatten(0, shape)
        for layer in self.layers:
            dense = layer(dense, mask)
        return dense.flatten(0, 1).index_select(0, where)

    def _projected(self, reading: Reading, types: Tensor | None) -> Tensor:
        """V [c_{t-w} .. c_{t+w}] + b (W,D); a sum of n rows of V, once a spelling, in the place of a product with counts."""
        document, window, spread = reading.document, self.config.window, self.spread
        found = self._summed(reading.buckets).view(-1, self.config.width)
        found = torch.cat([found, found.new_zeros(1, found.shape[1])])  # row U * spread: beyond the document
        own = F.pad(reading.spelling * spread, (window, window), value=len(found) - 1)
        where = F.pad(document, (window, window), value=-1)
        near = where.unfold(0, spread, 1) == document[:, None]  # (W,spread): is word t + j - w of the same document?
        parts = own.unfold(0, spread, 1) + torch.arange(spread, device=own.device)
        x = F.embedding_bag(torch.where(near, parts, len(found) - 1), found, mode="sum") + self.bias
        if self.types is not None:
            kinds = torch.zeros_like(document) if types is None else types.flatten()[reading.origin]
            if int(kinds.max()) >= self.config.types or int(kinds.min()) < 0:
                raise ConfigError(f"token type {int(kinds.max())} is outside the {self.config.types} that there are")
            x = x + self.types[kinds]
        return x

    def _summed(self, buckets: Tensor) -> Tensor:
        """The n rows of V that every spelling has, summed (U,spread D); by parts of V that fit a cache, where they are worth a copy."""
        parts = self.bottleneck.split(self.config.width, 1) if len(buckets) >= MANY else (self.bottleneck,)
        return torch.cat([F.embedding_bag(buckets, part.contiguous(), mode="sum") for part in parts], 1)

    def pool(self, words: Tensor, reading: Reading) -> Tensor:
        """Vectors of documents (N,D): sum over words of softmax(A x) * (F x), feature by feature."""
        index = reading.document[:, None].expand_as(words)
        scores = self.attend(words)
        most = scores.detach().new_full((reading.total, words.shape[1]), -torch.inf)
        most = most.scatter_reduce(0, index, scores.detach(), "amax")
        weights = (scores - most[reading.document]).exp()
        total = weights.new_zeros(most.shape).index_add(0, reading.document, weights)
        summed = weights.new_zeros(most.shape).index_add(0, reading.document, weights * self.value(words))
        return summed / total.clamp(min=torch.finfo(total.dtype).tiny)

    def _head(self, words: Tensor, reading: Reading, batch: int) -> Any:
        head = self.head
        if head is None:
            return None
        if head.level == "token":
            return lambda hidden: head(hidden, torch.where(reading.place < 0, -1, 0))
        pairs = head.level == "pair" and reading.total == 2 * batch
        shape = (batch, 2) if pairs else (reading.total, 1)
        marks = reading.place.new_tensor([[0, 1]]).expand(batch, -1) if pairs else None
        return lambda hidden: head(self.pool(words, reading).unflatten(0, shape), marks)

    def with_head(self, head: str | dict[str, Any] | None, **settings: Any) -> PNLPMixer:
        """A new model with the same body and another head, freshly drawn (:func:`orrery.models.convert.with_head`)."""
        keys = {key if key == "labels" else f"head.{key}": value for key, value in settings.items()}
        made = PNLPMixer(PNLPMixerConfig.from_dict({**self.config.to_dict(), "head": head, **keys}))
        body = {name: value for name, value in self.state_dict().items() if not name.startswith("head.")}
        made.load_state_dict(body, strict=False)
        return made.to(self.bottleneck.dtype).train(self.training)

    def num_parameters(self, embedding: bool = False, active: bool = False) -> int:
        """Parameters; without `embedding`, those of the head are left out."""
        outside = 0 if embedding or self.head is None else sum(p.numel() for p in self.head.parameters())
        return sum(p.numel() for p in self.parameters()) - outside

    def state_bytes(self, length: int) -> int:
        """0: an encoder carries no state."""
        return 0

    def flops(self, length: int) -> int:
        """Forward operations for one document of `length` words, the hashing apart."""
        own, d = self.config, self.config.width
        layer = 4 * own.hidden * (own.words + d)
        return length * (self.spread * own.hashes * d + own.depth * layer + 4 * d * d)

    def stored_tensors(self) -> dict[str, Tensor]:
        """For files: parameters, or, of 8 bits, matrices as integers with "NAME.scale" beside them."""
        found = {}
        for name, value in self.state_dict().items():
            if self.config.bits == 8 and value.dim() == 2:
                scale = value.abs().amax(1).clamp(min=1e-12).float() / 127
                found[name] = (value.float() / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
                found[f"{name}.scale"] = scale
            else:
                found[name] = value.detach().contiguous()
        return found

    def restore_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take them back.

        Raises:
            CorruptionError: when one is missing, unexpected, or of another shape.
        """
        wanted = self.stored_tensors()
        if odd := sorted(wanted.keys() ^ tensors.keys()):
            raise CorruptionError(f"the tensors are not those of this pnlp-mixer: '{odd[0]}' is missing or unexpected")
        for name, value in tensors.items():
            if value.shape != wanted[name].shape or value.is_floating_point() != wanted[name].is_floating_point():
                raise CorruptionError(f"{name} has shape {tuple(value.shape)}, the config implies {tuple(wanted[name].shape)}")
        own = self.state_dict()
        with torch.no_grad():
            for name, target in own.items():
                scale = tensors.get(f"{name}.scale")
                target.copy_(tensors[name] if scale is None else tensors[name].float() * scale[:, None])


register(
    "pnlp-mixer",
    model="PNLPMixer",
    summary="pNLP-Mixer: words hashed into Bloom filters and mixed by MLPs; reads bytes, no vocabulary, a megabyte in 8 bits",
    paper="2202.04350",
    year=2022,
    tags=("bidirectional", "parallel", "encoder", "bytes"),
)
