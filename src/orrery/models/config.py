"""The resolved config of a decoder language model: everything that is needed to build it again, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

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
    norm, eps: the final norm; embed_norm: a norm of the same kind after the embedding.
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
