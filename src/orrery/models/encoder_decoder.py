"""The encoder-decoder frame: a decoder whose blocks read what an encoder has made of a source.

    memory = encoder(source);   hidden = decoder(target, memory);   logits = W hidden

The target is the decoder's input, already shifted: it begins with `config.start`. The decoder's state keeps the memory's
keys and values, so the memory is read once and not needed for the steps that follow.

B batch, S source length, U target length, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from orrery.core.errors import ConfigError, StateError
from orrery.models.config import EncoderDecoderConfig
from orrery.models.decoder import DecoderLM, DecoderState
from orrery.models.encoder import Encoder
from orrery.models.frame import check_input, count_parameters
from orrery.models.output import Output
from orrery.models.stepper import Stepper, make_stepper
from orrery.nn.contract import Context


class Memory(NamedTuple):
    """What the encoder made of a source: hidden (B,S,D); segments (B,S) int64, -1 padding, or None (all of it is one document)."""

    hidden: Tensor
    segments: Tensor | None

    def select(self, index: Tensor) -> Memory:
        """Chosen rows."""
        return Memory(self.hidden[index], None if self.segments is None else self.segments[index])


class EncoderDecoder(nn.Module):
    """`model(source, target) -> Output`: `.logits` (B,U,V), `.state` to continue the target with."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.encoder = Encoder(config.encoder)
        self.decoder = DecoderLM(config.decoder)
        self.tie()
        self._reset_frame()

    def tie(self) -> None:
        """Let the stacks share one embedding, and the head the decoder's, where the config says so."""
        self.decoder.tie()
        if self.config.shared:
            self.encoder.embed.weight = self.decoder.embed.weight

    @property
    def head(self) -> nn.Module:
        """The decoder's."""
        return self.decoder.head

    @property
    def embed(self) -> nn.Embedding:
        """The decoder's, which is the encoder's too where they share it."""
        return self.decoder.embed

    @property
    def checkpoint_blocks(self) -> bool:
        """Whether blocks are recomputed in the backward pass."""
        return self.decoder.checkpoint_blocks

    @checkpoint_blocks.setter
    def checkpoint_blocks(self, value: bool) -> None:
        self.encoder.checkpoint_blocks = self.decoder.checkpoint_blocks = value

    def forward(
        self, source: Tensor, target: Tensor, source_segments: Tensor | None = None, segments: Tensor | None = None,
        state: DecoderState | None = None, ctx: Context | None = None,
    ) -> Output:
        """Read source (B,S) and predict what follows every token of target (B,U).

        Args:
            source, target: int64 ids; the target begins with `config.start`.
            source_segments, segments: document ids of source and target, -1 padding. Where rows hold several pairs, a target's
                document reads the source's document of the same id.
            state: of an earlier call on the same source, to continue the target; the source is not read again.
            ctx: of the decoder; its `aux` serves both.

        Raises:
            StateError: when the two do not fit.
            ConfigError: as of either stack.
        """
        if source.dim() == 2 and target.dim() == 2 and len(source) != len(target):
            raise StateError(f"{len(source)} sources and {len(target)} targets do not make pairs")
        memory = None if state is not None else self.encode(source, source_segments, ctx)
        return self.decode(target, memory, segments, state, ctx)

    def encode(self, source: Tensor, segments: Tensor | None = None, ctx: Context | None = None) -> Memory:
        """What the decoder reads of source (B,S)."""
        own = Context(aux=None if ctx is None else ctx.aux)
        return Memory(self.encoder(source, ctx=own, segments=segments).hidden, segments)

    def decode(
        self, target: Tensor, memory: Memory | None, segments: Tensor | None = None, state: DecoderState | None = None,
        ctx: Context | None = None,
    ) -> Output:
        """The decoder on target (B,U), reading `memory`, or what `state` has kept of it.

        In training, padded targets are packed as an encoder's texts are; there is no state then.
        """
        if memory is None and state is None:
            raise ConfigError("the decoder has nothing to read: pass a memory, or the state of an earlier call")
        ctx = ctx or Context()
        if memory is not None:
            marks = memory.segments
            if marks is None and segments is not None:
                marks = torch.zeros(memory.hidden.shape[:2], dtype=torch.int64, device=target.device)
            ctx = ctx.replace(memory=memory.hidden, memory_segments=marks)
        if self._packable(segments, memory, state, ctx):
            check_input(target, None, self.vocab_size, self.decoder.config.width)
            hidden = self.decoder.read_packed(target, cast(Tensor, segments), ctx)
            return Output(hidden, None, ctx.aux, self.decoder.head)
        return self.decoder(target, state=state, ctx=ctx, segments=segments)

    def _packable(self, segments: Tensor | None, memory: Memory | None, state: DecoderState | None, ctx: Context) -> bool:
        """Whether targets are only trained on, so that no state is asked for and padding need not be computed."""
        if not (self.training and torch.is_grad_enabled()) or segments is None or memory is None or state is not None:
            return False
        plain = ctx.positions is None and ctx.bias is None and ctx.cond is None
        return plain and self.decoder.packs and bool((segments < 0).any())

    def stepper(self, state: DecoderState, capacity: int) -> Stepper | None:
        """The quickest way to continue targets from `state`, which the caller gives away."""
        return None if self.training else make_stepper(self.decoder, state, capacity)

    def init_state(self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> DecoderState:
        """The decoder's state before the first token and before any source."""
        return self.decoder.init_state(batch, device, dtype)

    def state_bytes(self, length: int) -> int:
        """Bytes of state per pair of `length` tokens each: the decoder's own cache and the memory's."""
        return self.decoder.state_bytes(length)

    def flops(self, length: int, head: bool = True) -> int:
        """Forward operations for a pair of `length` tokens each."""
        return self.encoder.flops(length) + self.decoder.flops(length, head)

    def num_parameters(self, embedding: bool = False, active: bool = False) -> int:
        """Parameters; without `embedding`, those of tables and head are left out (the size ladder's count)."""
        encoder, decoder = self.encoder, self.decoder
        outside = (encoder.embed, encoder.position_embed, encoder.type_embed, decoder.embed, decoder.position_embed, decoder.head)
        return count_parameters(self, outside, embedding, active)

    def _reset_frame(self) -> None:
        if self.config.small_logits:
            nn.init.constant_(self._last_norm(), self.config.width**-0.5)

    def _last_norm(self) -> Tensor:
        weight: Any = getattr(self.decoder.norm, "weight", None)
        if weight is None:
            raise ConfigError(f"small_logits needs a last norm with a weight, which '{self.config.decoder.norm}' has not")
        return weight

    def reset_parameters(self) -> None:
        """Draw every parameter anew: encoder, then decoder."""
        self.encoder.reset_parameters()
        self.decoder.reset_parameters()
        self._reset_frame()
