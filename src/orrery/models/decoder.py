"""The decoder frame: embedding, blocks, final norm, head. Written once; a model differs by its blocks.

    h = E[tokens] (+ P[positions]);  h = block_l(h) for every layer;  hidden = norm(h);  logits = W hidden

B batch, T time, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from orrery.core.errors import ConfigError, StateError
from orrery.models.config import DecoderConfig
from orrery.models.frame import check_input, count_parameters, run_blocks
from orrery.models.output import Output
from orrery.models.stepper import Stepper, forget, make_stepper
from orrery.nn.block import Block, BlockState
from orrery.nn.contract import Context, Place
from orrery.nn.norms import make_norm
from orrery.nn.packing import pack
from orrery.nn.sharing import tie_layers
from orrery.nn.state import state
from orrery.nn.timeline import fresh_clock, gather_time, plan, spread_time


@state
class DecoderState(NamedTuple):
    """One block state per layer, and the clock (B,2)."""

    blocks: tuple[BlockState, ...]
    clock: Tensor


class Head(nn.Linear):
    """Logits z = W h; with a softcap s, s tanh(z / s) (arXiv 2408.00118)."""

    def __init__(self, width: int, vocab_size: int, softcap: float | None = None) -> None:
        super().__init__(width, vocab_size, bias=False)
        self.softcap = softcap

    def forward(self, h: Tensor) -> Tensor:
        """H (...,D) -> (...,V)."""
        z = super().forward(h)
        return z if self.softcap is None else torch.tanh(z / self.softcap) * self.softcap


class DecoderLM(nn.Module):
    """A causal language model: `model(tokens) -> Output`; pass `out.state` back to continue."""

    checkpoint_blocks = False  # recompute each block in the backward pass; set by the trainer

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.embed = nn.Embedding(config.vocab_size, config.width)
        learned = config.positions == "learned"
        self.position_embed = nn.Embedding(config.max_positions, config.width) if learned else None
        kind = "layernorm" if config.norm == "none" else config.norm
        self.embed_norm = make_norm(kind, config.width, config.eps) if config.embed_norm else None
        self.blocks = nn.ModuleList(
            Block(config.blocks[kind], Place(width=config.width, layer=layer, depth=config.depth))
            for layer, kind in enumerate(config.layout)
        )
        self.norm = make_norm(config.norm, config.width, config.eps)
        self.head = Head(config.width, config.vocab_size, config.softcap)
        self.recalls = any(getattr(part, "recalls", False) for part in self.modules())
        self.tie()
        self._reset_frame()

    def tie(self) -> None:
        """Let the head have the embedding's matrix, and layers what they have in common, where the config says so."""
        tie_layers(self.blocks, self.config.layout)
        if self.config.tied:
            self.head.weight = self.embed.weight

    def forward(
        self, tokens: Tensor | None = None, state: DecoderState | None = None, ctx: Context | None = None,
        segments: Tensor | None = None, embeds: Tensor | None = None,
    ) -> Output:
        """Run on tokens (B,T) int64, or on embeds (B,T,D) in their place.

        Args:
            tokens: ids below the vocabulary size.
            state: what an earlier call returned, to continue it.
            ctx: anything beside (see :class:`Context`).
            segments: (B,T) document ids, -1 padding; a shorthand for ctx.segments.
            embeds: (B,T,D).

        Raises:
            StateError: for a state of another model or batch size, or for empty input.
            ConfigError: for tokens outside the vocabulary, or more positions than the model has.
        """
        ctx = ctx or Context()
        if segments is not None:
            ctx = ctx.replace(segments=segments)
        if ctx.last and (ctx.segments is not None or ctx.aux is not None):
            raise ConfigError("the last token alone can be asked for in a call without segments and reports")
        batch, length, device = check_input(tokens, embeds, self.vocab_size, self.config.width)
        self._check_state(state, batch)
        for block in self.blocks:
            cast(Block, block).check_honoured(ctx)
        time, order = plan(ctx.segments, None if state is None else state.clock, batch, length, device)
        if ctx.positions is not None:
            time = time._replace(positions=ctx.positions)
        if order is not None:
            tokens = tokens.gather(1, order) if tokens is not None else None
            ctx = ctx if ctx.tokens is None else ctx.replace(tokens=ctx.tokens.gather(1, order))
            ctx = ctx if ctx.segments is None else ctx.replace(segments=ctx.segments.gather(1, order))
            embeds = gather_time(embeds, order) if embeds is not None else None
        ctx = ctx.replace(time=time, tokens=ctx.tokens if tokens is None else tokens, shared={})
        h, blocks = self.run(self._embed(tokens, embeds, ctx), 0, len(self.blocks), None if state is None else state.blocks, ctx)
        h = self.norm(h[:, -1:] if ctx.last else h)
        valid = time.valid(length)
        if valid is not None:
            h = h.masked_fill(~valid[..., None], 0.0)
        if order is not None:
            h = spread_time(h, order)
        return Output(h, DecoderState(blocks, time.clock), ctx.aux, self.head)

    def read_packed(self, tokens: Tensor, segments: Tensor, ctx: Context) -> Tensor:
        """Hidden (B,T,D) of whole documents, by way of one row that holds the valid tokens only; without a state.

        Where all blocks pack, as an encoder does it (:mod:`orrery.nn.packing`): what training on padded targets takes.
        """
        packing, time = pack(segments)
        row = packing.gather(tokens)
        ctx = ctx.replace(time=time, tokens=row, segments=packing.gather(segments), shared={}, packing=packing)
        h, _ = self.run(self._embed(row, None, ctx), 0, len(self.blocks), None, ctx)
        return packing.spread(self.norm(h))

    @property
    def packs(self) -> bool:
        """Whether all blocks may meet a packed row."""
        return all(cast(Block, block).packs for block in self.blocks)

    def run(
        self, h: Tensor, start: int, stop: int, state: tuple[BlockState, ...] | None, ctx: Context
    ) -> tuple[Tensor, tuple[BlockState, ...]]:
        """Blocks start..stop-1 on h (B,T,D); `state` holds one entry per layer of the whole model, or is None.

        Returns h and the new states of these blocks. Early exit and layerwise distillation stand on it. Where the layers of
        one call are run in several goes, one ctx with a `shared` of its own goes with all of them.
        """
        ctx = ctx if ctx.shared is not None else ctx.replace(shared={})
        if ctx.last and start < len(self.blocks) - 1:  # later layers read all tokens of this one
            end = min(stop, len(self.blocks) - 1)
            h, before = self.run(h, start, end, state, ctx.replace(last=False))
            h, after = self.run(h, end, stop, state, ctx)
            return h, before + after
        states = state[start:stop] if state is not None else (None,) * (stop - start)
        return run_blocks(list(self.blocks)[start:stop], h, states, ctx, self.checkpoint_blocks and self.training)

    def _embed(self, tokens: Tensor | None, embeds: Tensor | None, ctx: Context) -> Tensor:
        h = embeds if embeds is not None else self.embed(tokens)
        if self.position_embed is not None:
            positions, time = ctx.timeline.positions, ctx.timeline
            most = int(positions.max()) if time.past or ctx.positions is not None or time.groups else h.shape[1] - 1
            self.check_position(most)
            h = h + self.position_embed(positions)
        if self.embed_norm is not None:
            h = self.embed_norm(h)
        h = nn.functional.dropout(h, self.config.dropout, self.training) if self.config.dropout else h
        if self.recalls and ctx.shared is not None:
            ctx.shared["embedding"] = h
        return h

    def check_position(self, most: int) -> None:
        """Raise unless there is a learned position `most`."""
        if most >= self.config.max_positions:
            raise ConfigError(
                f"{self.config.architecture} has {self.config.max_positions} learned positions and cannot read position {most}; "
                "pass fewer tokens or build it with a larger max_positions"
            )

    def stepper(self, state: DecoderState, capacity: int) -> Stepper | None:
        """The quickest way to decode from `state`, which the caller gives away: :func:`orrery.models.stepper.make_stepper`."""
        return make_stepper(self, state, capacity) if type(self) is DecoderLM and not self.training else None

    def _apply(self, fn: Any, recurse: bool = True) -> DecoderLM:
        """Every move and cast of the weights comes by here; a step that is kept would hold those of before."""
        forget(self)
        return super()._apply(fn, recurse)

    def _check_state(self, state: DecoderState | None, batch: int) -> None:
        if state is None:
            return
        if not isinstance(state, DecoderState) or len(state.blocks) != len(self.blocks):
            raise StateError(f"the state does not belong to a {self.config.architecture} of {len(self.blocks)} layers")
        for block, held in zip(self.blocks, state.blocks, strict=True):
            cast(Block, block).check_state(held, batch)

    def init_state(self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> DecoderState:
        """The state before the first token."""
        blocks = tuple(cast(Block, block).init_state(batch, device, dtype) for block in self.blocks)
        return DecoderState(blocks, fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Bytes of state per sequence after `length` tokens."""
        return sum(cast(Block, block).state_bytes(length) for block in self.blocks)

    def flops(self, length: int, head: bool = True) -> int:
        """Forward operations for one sequence of `length` tokens; training takes about three times as many."""
        own = 2 * self.config.width * self.vocab_size * length if head else 0
        return own + sum(cast(Block, block).flops(length) for block in self.blocks)

    def num_parameters(self, embedding: bool = False, active: bool = False) -> int:
        """Parameters; without `embedding`, those of embedding, positions and head are left out (the size ladder's count).

        `active` leaves out what one token does not use: the experts that are not chosen.
        """
        return count_parameters(self, (self.embed, self.head, self.position_embed), embedding, active)

    def _reset_frame(self) -> None:
        nn.init.normal_(self.embed.weight, std=self.config.embed_std)
        if self.position_embed is not None:
            nn.init.normal_(self.position_embed.weight, std=0.01)
        if not self.config.tied:
            nn.init.normal_(self.head.weight, std=self.config.width**-0.5)

    def reset_parameters(self) -> None:
        """Draw every parameter anew, in a fixed order, from torch's global generator."""
        self._reset_frame()
        for part in (self.embed_norm, *self.blocks, self.norm):
            if part is not None:
                cast(Any, part).reset_parameters()
