"""The encoder-decoder frame: a decoder whose blocks read what an encoder has made of a source.

    memory = encoder(source);   hidden = decoder(target, memory);   logits = W hidden

The target is the decoder's input, already shifted: it begins with `config.start`. The decoder's state keeps the memory's
keys and values, so the memory is read once and not needed for the steps that follow.

With a head (`config.head`) nothing is written. Both stacks read the same text, the decoder one token late, and the head answers
(BART, arXiv 1910.13461, section 3; T5's classes of that kind in transformers do the same):

    hidden_t = decoder((start, x_1 .. x_{t-1}), encoder(x));   logits = head(hidden)

A head of documents that pools "last" takes the state where the document's last `config.stop` stands.

B batch, T time, S source length, U target length, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from orrery.core.errors import ConfigError, DataError, StateError
from orrery.models.config import EncoderDecoderConfig
from orrery.models.decoder import DecoderLM, DecoderState
from orrery.models.encoder import Encoder
from orrery.models.frame import check_input, count_parameters
from orrery.models.heads import TaskHead, make_head
from orrery.models.output import Output
from orrery.models.pooling import documents
from orrery.models.stepper import Stepper, make_stepper
from orrery.nn.contract import Context


class Memory(NamedTuple):
    """What the encoder made of a source: hidden (B,S,D); segments (B,S) int64, -1 padding, or None (all of it is one document)."""

    hidden: Tensor
    segments: Tensor | None

    def select(self, index: Tensor) -> Memory:
        """Chosen rows."""
        return Memory(self.hidden[index], None if self.segments is None else self.segments[index])


class PairFrame(nn.Module):
    """Both stacks: what models that write and models that answer with a head have in common."""

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

    def num_parameters(self, embedding: bool = False, active: bool = False) -> int:
        """Parameters; without `embedding`, those of tables and heads are left out (the size ladder's count)."""
        encoder, decoder = self.encoder, self.decoder
        outside = (encoder.embed, encoder.position_embed, encoder.type_embed, decoder.embed, decoder.position_embed, decoder.head)
        return count_parameters(self, (*outside, getattr(self, "head", None)), embedding, active)

    def _reset_frame(self) -> None:
        if self.config.small_logits:
            nn.init.constant_(self.last_gain(), self.config.width**-0.5)

    def last_gain(self) -> Tensor:
        """The weight of the decoder's last norm."""
        weight: Any = getattr(self.decoder.norm, "weight", None)
        if weight is None:
            raise ConfigError(f"small_logits needs a last norm with a weight, which '{self.config.decoder.norm}' has not")
        return weight

    def reset_parameters(self) -> None:
        """Draw every parameter anew: encoder, then decoder."""
        self.encoder.reset_parameters()
        self.decoder.reset_parameters()
        self._reset_frame()


class EncoderDecoder(PairFrame):
    """`model(source, target) -> Output`: `.logits` (B,U,V), `.state` to continue the target with."""

    @property
    def head(self) -> nn.Module:
        """The decoder's."""
        return self.decoder.head

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


class PairReader(PairFrame):
    """An encoder-decoder that answers with a head: `model(tokens, segments=...) -> Output`; `.hidden` (B,T,D) of the decoder,
    `.logits` what the head makes of it."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__(config)
        self.head: TaskHead = make_head(config.encoder.replace(head=config.head, width=config.width), None)

    def forward(
        self, tokens: Tensor, state: Any = None, ctx: Context | None = None, segments: Tensor | None = None, types: Tensor | None = None
    ) -> Output:
        """Read tokens (B,T) int64 with both stacks.

        Args:
            tokens, segments, types: as an encoder's (:class:`Encoder`); `types` are the encoder's alone.
            state: must be None. ctx: its `segments` and `aux` are used; aux serves both stacks.

        Raises:
            StateError: for a state, empty input, or segments that do not fit.
            ConfigError: as of either stack, and for positions, biases, memory or conditions in ctx.
            DataError: when `.logits` are asked for, and a document lacks the token at whose state the head reads.
        """
        name, ctx = self.config.architecture, ctx or Context()
        if state is not None:
            raise StateError(f"{name} with a head reads whole texts and carries no state")
        if any(field is not None for field in (ctx.positions, ctx.bias, ctx.memory, ctx.cond)):
            raise ConfigError(f"{name} with a head makes positions, biases and memory itself; pass tokens and segments alone")
        segments = ctx.segments if segments is None else segments
        memory = self.encoder(tokens, ctx=Context(aux=ctx.aux), segments=segments, types=types).hidden
        marks = torch.zeros_like(tokens) if segments is None else segments
        own = Context(aux=ctx.aux, memory=memory, memory_segments=segments)
        shifted = self.shifted(tokens, marks)
        if self.decoder.packs:
            hidden = self.decoder.read_packed(shifted, marks, own)
        else:
            hidden = self.decoder(shifted, ctx=own, segments=marks).hidden
        return Output(hidden, None, ctx.aux, lambda h: self.head(h, self._marked(tokens, segments)))

    @property
    def reads_end(self) -> bool:
        """Whether the head takes the state at each document's last `config.stop`."""
        return self.config.stop is not None and self.head.level in ("document", "choice") and self.head.config.pool == "last"

    def shifted(self, tokens: Tensor, segments: Tensor) -> Tensor:
        """What the decoder reads of tokens (B,T): in each document `config.start`, then all of its tokens but the last."""
        ids, _ = documents(tokens.shape, segments, tokens.device)
        valid = ids >= 0
        number, given = ids[valid], tokens[valid]
        found = given.roll(1)
        begins = torch.ones_like(number, dtype=torch.bool)
        begins[1:] = number[1:] != number[:-1]
        found[begins] = self.config.start
        return torch.zeros_like(tokens).masked_scatter(valid, found)

    def _marked(self, tokens: Tensor, segments: Tensor | None) -> Tensor | None:
        """Segments for the head: where it takes a document's last state, what follows the document's last `config.stop` is padding."""
        if not self.reads_end:
            return segments
        stop = self.config.stop
        marks = torch.zeros_like(tokens) if segments is None else segments
        ids, count = documents(tokens.shape, marks, tokens.device)
        number, valid, places = ids.flatten(), (ids >= 0).flatten(), torch.arange(ids.numel(), device=ids.device)
        ends = valid & (tokens.flatten() == stop)
        last = places.new_full((count,), -1).scatter_reduce(0, number[ends], places[ends], "amax")
        lost = (last < 0) & (number[valid].bincount(minlength=count) > 0)
        if bool(lost.any()):
            raise DataError(
                f"text {int(lost.nonzero()[0])} of the batch does not hold the token {stop} (config.stop), at whose state the head "
                f"'{(self.config.head or {}).get('name')}' of {self.config.architecture} reads; end every text with it"
            )
        return marks.masked_fill(~(valid & (places <= last[number.clamp(min=0)])).view_as(marks), -1)

    def state_bytes(self, length: int) -> int:
        """0: nothing is carried from text to text."""
        return 0

    def flops(self, length: int, head: bool = True) -> int:
        """Forward operations for one document of `length` tokens."""
        own = self.head.flops(length) if head else 0
        return self.encoder.flops(length) + self.decoder.flops(length, head=False) + own

    def reset_parameters(self) -> None:
        """Draw every parameter anew: encoder, decoder, head."""
        super().reset_parameters()
        self.head.reset_parameters()


def pair_frame(config: EncoderDecoderConfig) -> PairFrame:
    """The frame that a config describes: a reader where it has a head."""
    return EncoderDecoder(config) if config.head is None else PairReader(config)
