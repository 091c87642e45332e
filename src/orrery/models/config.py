"""The resolved configs of the frames: everything that is needed to build a model again, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orrery.core.config import Config, require
from orrery.nn.block import BlockConfig

POSITIONS = ("none", "learned")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(Config):
    """A decoder language model.

    architecture: the name or pattern it was built from.
    vocab_size, width: V and D.
    blocks: the distinct layers; layout: which of them stands at each depth.
    tied: the head shares the embedding's matrix.
    norm, eps: the final norm ("none": there is none); embed_norm: a norm of the same kind (LayerNorm for "none") after the embedding.
    positions: "none" (the mixer knows) or "learned", up to max_positions.
    dropout: on the embedding. embed_std: of the embedding's normal initialisation.
    softcap: logits are s tanh(z / s) with this s; None: z as they are.
    """

    architecture: str
    vocab_size: int
    width: int
    blocks: tuple[BlockConfig, ...]
    layout: tuple[int, ...]
    tied: bool = True
    norm: str = "rmsnorm"
    eps: float = 1e-6
    embed_norm: bool = False
    positions: str = "none"
    max_positions: int = 1024
    dropout: float = 0.0
    embed_std: float = 0.02
    softcap: float | None = None

    def __post_init__(self) -> None:
        require(self.vocab_size > 0, f"vocab_size must be positive, not {self.vocab_size}")
        require(self.width > 0, f"width must be positive, not {self.width}")
        require(self.softcap is None or self.softcap > 0, f"softcap must be positive, not {self.softcap}")
        require(len(self.layout) > 0, "a model needs at least one layer")
        require(all(0 <= i < len(self.blocks) for i in self.layout), "layout names a block that is not there")
        require(self.positions in POSITIONS, f"positions '{self.positions}' must be one of {', '.join(POSITIONS)}")

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layout)


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig(Config):
    """What an encoder makes of tokens before its first layer: E[token] (+ P[position]) (+ S[type]), norm, dropout, map to D.

    width: of the table; None: D. positions: "none" (the mixer knows) or "learned", up to max_positions. types: how many token
    types there are (sentence A, sentence B), 0 for none. norm: one of the model's kind behind the sum. std: of the tables.
    padding: the id that takes no position where RoBERTa is written for others to read; None: every id takes one.
    """

    width: int | None = None
    positions: str = "none"
    max_positions: int = 512
    types: int = 0
    norm: bool = False
    dropout: float = 0.0
    std: float = 0.02
    padding: int | None = None

    def __post_init__(self) -> None:
        require(self.width is None or self.width > 0, f"embedding.width must be positive, not {self.width}")
        require(self.positions in POSITIONS, f"positions '{self.positions}' must be one of {', '.join(POSITIONS)}")
        require(self.types >= 0, f"embedding.types must be 0 or more, not {self.types}")
        require(0 <= self.dropout < 1, f"embedding.dropout must lie in [0, 1), not {self.dropout}")
        require(self.padding is None or self.padding >= 0, f"embedding.padding must be an id or None, not {self.padding}")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Config):
    """An encoder.

    architecture, vocab_size, width, blocks, layout: as a decoder's.
    norm, eps: of the final norm, where there is one (final_norm), and of the embedding's.
    head: {"name": one of `orrery.models.heads.HEADS`, **its settings}, or None: only `hidden`.
    beside: {"kernel", "groups", "activation"} of a convolution beside the first layer (:mod:`orrery.nn.beside`), or None.
    """

    architecture: str
    vocab_size: int
    width: int
    blocks: tuple[BlockConfig, ...]
    layout: tuple[int, ...]
    norm: str = "layernorm"
    eps: float = 1e-6
    final_norm: bool = True
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    head: dict[str, Any] | None = None
    beside: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        require(self.vocab_size > 0, f"vocab_size must be positive, not {self.vocab_size}")
        require(self.width > 0, f"width must be positive, not {self.width}")
        require(len(self.layout) > 0, "a model needs at least one layer")
        require(all(0 <= i < len(self.blocks) for i in self.layout), "layout names a block that is not there")
        require(self.head is None or isinstance(self.head.get("name"), str), "head needs a name: {'name': 'classification', ...}")

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layout)


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(Config):
    """An encoder and a decoder whose blocks read it.

    shared: both have one embedding. small_logits: the decoder's last norm starts at 1/sqrt(D), which a tied head with an
    embedding of unit variance needs (T5). start: the token that a target begins with; stop: the one that ends it, or None.
    head: as an encoder's, of one that reads with both stacks and answers with a head (:class:`orrery.models.encoder_decoder.PairReader`);
    None: it writes.
    """

    architecture: str
    encoder: EncoderConfig
    decoder: DecoderConfig
    shared: bool = True
    small_logits: bool = False
    start: int = 0
    stop: int | None = 1
    head: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        require(self.encoder.head is None, "the encoder of an encoder-decoder has no head of its own")
        require(self.head is None or isinstance(self.head.get("name"), str), "head needs a name: {'name': 'classification', ...}")
        silent = self.decoder.tied and not self.small_logits
        require(self.head is None or silent, "with a head there are no logits of tokens; leave tied and small_logits as they are")
        require(all(block.cross for block in self.decoder.blocks), "every block of the decoder needs a part that reads the memory (cross)")
        if self.shared:
            same = self.encoder.vocab_size == self.decoder.vocab_size
            widths = (self.encoder.embedding.width or self.encoder.width) == self.decoder.width
            require(same and widths, "a shared embedding needs one vocabulary and one width; set shared=false")

    @property
    def vocab_size(self) -> int:
        """V of the target."""
        return self.decoder.vocab_size

    @property
    def width(self) -> int:
        """D of the decoder."""
        return self.decoder.width
