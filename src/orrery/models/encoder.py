"""The encoder frame: every token of a document sees the whole of it. Written once; a model differs by its blocks and its head.

    h = drop(norm(E[tokens] + P[position] + S[type]));  h = block_l(h) for every layer;  hidden = norm(h);  logits = head(hidden)

Padding is never computed where all parts allow it: the valid tokens of the batch become one packed row, once, before the
first layer, and are spread again behind the last (:mod:`orrery.nn.packing`). Recurrent layers run over rows instead.

B batch, T time, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from orrery.core.errors import ConfigError, StateError
from orrery.models.config import EncoderConfig
from orrery.models.frame import check_input, count_parameters, run_blocks
from orrery.models.heads import MaskedLM, TaskHead, make_head
from orrery.models.output import Output
from orrery.models.reader import reader_of
from orrery.nn.beside import Beside, BesideConfig
from orrery.nn.block import Block, BlockState
from orrery.nn.contract import Context, Place
from orrery.nn.norms import make_norm
from orrery.nn.packing import pack
from orrery.nn.sharing import tie_layers
from orrery.nn.timeline import Timeline, gather_time, plan, spread_time


class Encoder(nn.Module):
    """An encoder: `model(tokens, segments=...) -> Output`; `.hidden` (B,T,D), `.logits` what the head makes of it."""

    checkpoint_blocks = False  # recompute each block in the backward pass; set by the trainer
    prepare = False  # lay weights out once while there are no gradients (:mod:`orrery.models.reader`); set by `encode`

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        own, width = config.embedding, config.width
        self.embed_width = own.width or width
        self.embed = nn.Embedding(config.vocab_size, self.embed_width)
        self.position_embed = nn.Embedding(own.max_positions, self.embed_width) if own.positions == "learned" else None
        self.type_embed = nn.Embedding(own.types, self.embed_width) if own.types else None
        self.embed_norm = make_norm(config.norm, self.embed_width, config.eps) if own.norm else None
        self.embed_map = nn.Linear(self.embed_width, width) if self.embed_width != width else None
        self.blocks = nn.ModuleList(
            Block(config.blocks[kind], Place(width=width, layer=layer, depth=config.depth)) for layer, kind in enumerate(config.layout)
        )
        self.beside: Beside | None = None
        if config.beside is not None:
            self.beside = Beside(BesideConfig.from_dict(config.beside, where="beside"), width, config.norm, config.eps)
        self.norm = make_norm(config.norm, width, config.eps) if config.final_norm else None
        self.head: TaskHead | None = make_head(config, self.embed) if config.head else None
        self.asks = getattr(self.head, "absolute", None) is not None  # the last layer asks by absolute positions, too
        last = cast(Block, self.blocks[-1])
        if self.asks and not (getattr(last.mixer, "queries_apart", False) and last.config.placement == "post" and not last.config.canon):
            raise ConfigError(
                f"head.positions needs a last layer whose queries may be others than its keys, as in deberta, not {config.architecture}'s"
            )
        if any(block.guide for block in config.blocks):
            raise ConfigError(f"a layer with a guide reads forward only and cannot be an encoder's; {config.architecture} has some")
        if any(getattr(part, "recalls", False) for part in self.modules()):
            raise ConfigError(f"a mixer that reads the embedding again needs a decoder, which hands it on; {config.architecture} has one")
        self.packs = all(cast(Block, block).packs for block in self.blocks)
        tie_layers(self.blocks, config.layout)
        self._reset_frame()

    def tie(self) -> None:
        """Let a head that scores the vocabulary have the embedding's matrix, and layers what they have in common, where configs say so."""
        tie_layers(self.blocks, self.config.layout)
        if self.head is not None:
            self.head.tie(self.embed)

    def forward(
        self, tokens: Tensor | None = None, state: Any = None, ctx: Context | None = None,
        segments: Tensor | None = None, embeds: Tensor | None = None, types: Tensor | None = None,
    ) -> Output:
        """Read tokens (B,T) int64, or embeds (B,T,E) in their place.

        Args:
            tokens: ids below the vocabulary size.
            state: must be None: an encoder carries none.
            ctx: anything beside (see :class:`Context`).
            segments: (B,T) document ids, -1 padding anywhere; a shorthand for ctx.segments. None: every row is one document.
            embeds: (B,T,E), E the embedding's width.
            types: (B,T) int64 token types; None: all 0.

        Raises:
            StateError: for a state, empty input, or segments that do not fit.
            ConfigError: for tokens or types outside their tables, or more positions than the model has.
        """
        if state is not None:
            raise StateError(f"{self.config.architecture} is an encoder: it reads whole documents and carries no state")
        ctx = ctx or Context()
        if segments is not None:
            ctx = ctx.replace(segments=segments)
        batch, length, device = check_input(tokens, embeds, self.vocab_size, self.embed_width)
        self._check_types(types, batch, length)
        if batch == 0 or length == 0:
            raise StateError(f"an input of batch {batch} and length {length} is empty; pass at least one token")
        if any(field is not None for field in (ctx.positions, ctx.bias, ctx.memory, ctx.cond)):
            self.check_honoured(ctx)
        given = (tokens, embeds, types)
        if ctx.segments is not None and self.packs and ctx.bias is None and ctx.cond is None:
            hidden = self._packed(given, ctx, batch, length)
        else:
            hidden = self._rows(given, ctx, batch, length, device)
        return Output(hidden, None, ctx.aux, self._head(ctx.segments))

    def _packed(self, given: tuple[Tensor | None, ...], ctx: Context, batch: int, length: int) -> Tensor:
        """Hidden (B,T,D) by way of one row that holds the valid tokens only."""
        packing, time = pack(self._checked_segments(ctx.segments, batch, length))
        tokens, embeds, types = (None if x is None else packing.gather(x) for x in given)
        ctx = _at(ctx, packing.gather, time, tokens)
        return packing.spread(self._layers(self._embed(tokens, embeds, types, ctx), ctx))

    def _layers(self, h: Tensor, ctx: Context) -> Tensor:
        """All blocks and the final norm."""
        reader = reader_of(self) if self.prepare and not self.asks else None
        h = reader(h, ctx) if reader is not None else self.run(h, 0, len(self.blocks), None, ctx)[0]
        return h if self.norm is None else self.norm(h)

    def _rows(self, given: tuple[Tensor | None, ...], ctx: Context, batch: int, length: int, device: torch.device) -> Tensor:
        """Hidden (B,T,D) row by row, padding behind."""
        time, order = plan(ctx.segments, None, batch, length, device)
        tokens, embeds, types = (None if x is None or order is None else gather_time(x, order) for x in given)
        if order is None:
            (tokens, embeds, types), ctx = given, _at(ctx, lambda x: x, time, given[0])
        else:
            ctx = _at(ctx, lambda x: gather_time(x, order), time, tokens)
        h = self._layers(self._embed(tokens, embeds, types, ctx), ctx)
        valid = time.valid(length)
        h = h if valid is None else h.masked_fill(~valid[..., None], 0.0)
        return h if order is None else spread_time(h, order)

    def _head(self, segments: Tensor | None) -> Any:
        head = self.head
        return None if head is None else lambda hidden: head(hidden, segments)

    def run(
        self, h: Tensor, start: int, stop: int, state: None, ctx: Context
    ) -> tuple[Tensor, tuple[BlockState, ...]]:
        """Blocks start..stop-1 on h (B,T,D) of a prepared ctx; early exit and layerwise distillation stand on it."""
        ctx = ctx if ctx.shared is not None else ctx.replace(shared={})
        recompute = self.checkpoint_blocks and self.training
        if self.beside is not None and start == 0 < stop:
            after, first = run_blocks(list(self.blocks)[:1], h, (None,), ctx, recompute)
            h, rest = self.run(self.beside(h, after, ctx), 1, stop, None, ctx)
            return h, first + rest
        blocks = list(self.blocks)[start:stop]
        if self.asks and start < stop == len(self.blocks):
            h, found = run_blocks(blocks[:-1], h, (None,) * (len(blocks) - 1), ctx, recompute)
            h = cast(MaskedLM, self.head).asked(h, lambda q, own: run_blocks(blocks[-1:], q, (None,), own, recompute)[0], ctx)
            return h, (*found, (None,) * 4)
        return run_blocks(blocks, h, (None,) * len(blocks), ctx, recompute)

    def hidden_states(self, tokens: Tensor, segments: Tensor | None = None, types: Tensor | None = None) -> list[Tensor]:
        """What the embedding and every layer give, depth + 1 tensors (B,T,D), the last behind the final norm; for distillation."""
        batch, length = tokens.shape
        segments = torch.zeros_like(tokens) if segments is None else segments
        if self.packs:
            packing, time = pack(self._checked_segments(segments, batch, length))
            gather, spread = packing.gather, packing.spread
        else:
            time, order = plan(segments, None, batch, length, tokens.device)
            gather = (lambda x: x) if order is None else (lambda x: gather_time(x, order))
            spread = (lambda x: x) if order is None else (lambda x: spread_time(x, order))
        tokens = gather(tokens)
        ctx = Context(segments=gather(segments), tokens=tokens, time=time, shared={})
        h = self._embed(tokens, None, None if types is None else gather(types), ctx)
        found = [h]
        for layer in range(len(self.blocks)):
            h, _ = self.run(h, layer, layer + 1, None, ctx)
            found.append(h)
        if self.norm is not None:
            found[-1] = self.norm(found[-1])
        valid = time.valid(length)
        return [spread(each if valid is None else each.masked_fill(~valid[..., None], 0.0)) for each in found]

    def _embed(self, tokens: Tensor | None, embeds: Tensor | None, types: Tensor | None, ctx: Context) -> Tensor:
        own = self.config.embedding
        h = embeds if embeds is not None else self.embed(tokens)
        if self.position_embed is not None:
            positions = ctx.timeline.positions
            self.check_position(int(positions.max()) if ctx.segments is not None or ctx.positions is not None else h.shape[1] - 1)
            h = h + self.position_embed(positions)
        if self.type_embed is not None:
            h = h + (self.type_embed.weight[0] if types is None else self.type_embed(types))
        if self.embed_norm is not None:
            h = self.embed_norm(h)
        h = nn.functional.dropout(h, own.dropout, self.training) if own.dropout else h
        return h if self.embed_map is None else self.embed_map(h)

    def check_position(self, most: int) -> None:
        """Raise unless there is a learned position `most`."""
        known = self.config.embedding.max_positions
        if self.position_embed is not None and most >= known:
            raise ConfigError(
                f"{self.config.architecture} has {known} learned positions and cannot read position {most}; "
                "pass fewer tokens or build it with a larger max_positions"
            )

    def _check_types(self, types: Tensor | None, batch: int, length: int) -> None:
        if types is None:
            return
        known = self.config.embedding.types
        if not known:
            raise ConfigError(f"{self.config.architecture} has no token types; leave `types` out or build it with embedding.types=2")
        if types.shape != (batch, length) or types.dtype != torch.int64:
            raise ConfigError(f"types must be int64 of shape ({batch}, {length}), not {types.dtype} of {tuple(types.shape)}")
        if types.device.type == "cpu" and (int(types.min()) < 0 or int(types.max()) >= known):
            raise ConfigError(f"token type {int(types.max())} is outside the {known} that {self.config.architecture} has")

    def _checked_segments(self, segments: Tensor | None, batch: int, length: int) -> Tensor:
        assert segments is not None
        if segments.shape != (batch, length):
            raise StateError(f"segments have shape {tuple(segments.shape)}, the input has batch {batch} and length {length}")
        return segments

    def check_honoured(self, ctx: Context) -> None:
        """Raise for a context field that some layer would ignore."""
        for block in self.blocks:
            cast(Block, block).check_honoured(ctx)

    def state_bytes(self, length: int) -> int:
        """0: an encoder carries no state."""
        return 0

    def flops(self, length: int, head: bool = True) -> int:
        """Forward operations for one document of `length` tokens."""
        own = 0 if self.embed_map is None else 2 * self.embed_map.weight.numel() * length
        own += self.head.flops(length) if head and self.head is not None else 0
        own += 0 if self.beside is None else self.beside.flops(length)
        again = cast(MaskedLM, self.head).config.passes - 1 if self.asks else 0
        return own + sum(cast(Block, block).flops(length) for block in (*self.blocks, *[self.blocks[-1]] * again))

    def num_parameters(self, embedding: bool = False, active: bool = False) -> int:
        """Parameters; without `embedding`, those of the tables and the head are left out (the size ladder's count)."""
        outside = (self.embed, self.head, self.position_embed, self.type_embed)
        return count_parameters(self, outside, embedding, active)

    def _reset_frame(self) -> None:
        std = self.config.embedding.std
        for table in (self.embed, self.position_embed, self.type_embed):
            if table is not None:
                nn.init.normal_(table.weight, std=std)
        if self.embed_map is not None:
            nn.init.normal_(self.embed_map.weight, std=std)
            nn.init.zeros_(self.embed_map.bias)

    def reset_parameters(self) -> None:
        """Draw every parameter anew, in a fixed order, from torch's global generator."""
        self._reset_frame()
        for part in (self.embed_norm, *self.blocks, self.beside, self.norm, self.head):
            if part is not None:
                cast(Any, part).reset_parameters()


def _at(ctx: Context, gather: Any, time: Timeline, tokens: Tensor | None) -> Context:
    """The context of a call whose tokens were put into another order."""
    positions = None if ctx.positions is None else gather(ctx.positions)
    if positions is not None:
        time = time._replace(positions=positions)
    segments = None if ctx.segments is None else gather(ctx.segments)
    own = None if ctx.tokens is None else gather(ctx.tokens)
    return ctx.replace(time=time, positions=positions, segments=segments, tokens=tokens if own is None else own, shared={})


