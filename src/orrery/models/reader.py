"""Reading through a whole encoder with weights laid out once: what :func:`orrery.models.encode.encode` stands on.

Every part that can gives a function `f(x, residual, ctx) = residual + part(x)` in which biases, activations and residuals
need no pass of their own (`Part.prepared`); one that cannot is called as always. One short text is read in place instead
(:mod:`orrery.nn.short_text`), where all parts can (`Part.short`). The layouts are copies, made when they are first needed and
anew as soon as a parameter has changed.

N tokens of a packed row, D width.
"""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from orrery.models.frame import check_input
from orrery.nn.block import Block
from orrery.nn.contract import Context, Part
from orrery.nn.norms import NoNorm
from orrery.nn.short_text import MOST_TOKENS, ShortLinear, ShortText, Step, short_embedding, short_mean, short_norm
from orrery.nn.stepping import norm_of, plain_linear
from orrery.nn.unchanged import Unchanged, listened_to
from orrery.ops.backend import choose
from orrery.ops.fused.packed_linear import available
from orrery.ops.program import joined
from orrery.ops.steps.row_linear import RowNorm, norm_of_rows

Layer = Callable[[Tensor, Context], Tensor]
Bind = Callable[[ShortText], list[Step]]
_version = operator.attrgetter("_version")
SMALL = 1 << 15  # numbers that one thread norms sooner than two


class Reader:
    """The layers of an encoder, prepared: in one way for a short text, in another for everything else."""

    def __init__(self, model: Any) -> None:
        named = [(m._parameters, name, p) for m in model.modules() for name, p in m._parameters.items() if p is not None]
        self.homes, self.names, self.parameters = (list(each) for each in zip(*named, strict=True))
        self.seen, self.unchanged = self._state(), Unchanged(model)
        self.blocks = [cast(Block, block) for block in model.blocks]
        self.ends = Ends(model.embed, model.position_embed, model.type_embed, model.embed_norm, model.embed_map, model.norm)

    def __reduce__(self) -> Any:
        """A model that is copied or stored prepares its own."""
        return type(None), ()

    def current(self) -> bool:
        """Whether every part, setting and parameter is what it was and nobody listens; loops in C, since this is asked before every text."""
        if self.unchanged.listened_to() or not self.unchanged():
            return False
        return all(map(operator.is_, map(dict.get, self.homes, self.names), self.parameters)) and self._state() == self.seen

    def _state(self) -> tuple[list[int], list[int]]:
        """What changes with a parameter that is written, and with one that is given another memory."""
        return list(map(_version, self.parameters)), list(map(Tensor.data_ptr, self.parameters))

    @functools.cached_property
    def layers(self) -> list[Layer]:
        """For rows of any kind."""
        return [_layer(block) for block in self.blocks]

    @functools.cached_property
    def short(self) -> Short | None:
        """For one short text, where all parts have such a form."""
        return short_of(self.blocks, self.ends)

    def __call__(self, h: Tensor, ctx: Context) -> Tensor:
        """H (B,T,D) behind the last layer, before the final norm."""
        if h.shape[0] == 1 and h.shape[1] <= MOST_TOKENS and _plain(ctx) and self.short is not None:
            return self.short(h)
        for layer in self.layers:
            h = layer(h, ctx)
        return h


def _plain(ctx: Context) -> bool:
    """Whether the row is one text whose positions count from 0, with nothing beside."""
    time = ctx.timeline
    one = time.groups is None or (len(time.groups) == 1 and time.groups[0][0] == 1)
    return one and time.starts is None and time.lengths is None and ctx.positions is None and ctx.bias is None and ctx.cond is None


class Ends(NamedTuple):
    """What stands before an encoder's layers, in order, and the norm behind them; each may be missing but the first."""

    embed: nn.Embedding
    positions: nn.Embedding | None
    types: nn.Embedding | None
    norm: nn.Module | None
    map: nn.Linear | None
    last: nn.Module | None


class Short:
    """A whole encoder for one short text. Texts read at the same time, by several threads, have buffers of their own.

    Args:
        parts: what binds each part (`Part.short`), and its norm, in order.
        width: D. before: norms stand before their parts.
        ends: what stands around the layers; None: only layers can be read.
    """

    def __init__(self, parts: list[tuple[Bind, RowNorm]], width: int, before: bool, ends: Ends | None) -> None:
        self.parts, self.width, self.before, self.ends = parts, width, before, ends
        self.free: list[tuple[ShortText, dict[int, list[Step]]]] = []
        self.process = os.getpid()
        if ends is not None:
            self.table = ends.embed.weight.detach()
            self.map = None if ends.map is None else ShortLinear(ends.map)
            self.added = None if ends.types is None else ends.types.weight.detach()[:1].expand(MOST_TOKENS, -1)
            if ends.positions is not None:
                positions = ends.positions.weight.detach()[:MOST_TOKENS]
                self.added = positions if self.added is None else positions + self.added[: len(positions)]

    def __call__(self, h: Tensor) -> Tensor:
        """H (1,N,D) behind the layers."""
        run, known = self._free()
        if h.shape[1] not in known:
            known[h.shape[1]] = joined(self._bind(run.at(h.shape[1])))
        x = run.buffer("x", self.width, h.shape[1])
        x.copy_(h[0])
        for step in known[h.shape[1]]:
            step()
        found = x.clone()[None]
        self.free.append((run, known))
        return found

    def read(self, ids: Any, mean: bool) -> Tensor:
        """Hidden (1,N,D) of the text `ids` (N,), or its mean (1,D), with embedding and last norm; its ids and length are those of the model."""
        run, known = self._free()
        length = len(ids)
        if -length not in known:
            known[-length] = joined(self._bind_ends(run.at(length)))
        run.ids[:length] = ids
        for step in known[-length]:
            step()
        found = run.mean.clone() if mean else run.buffer("x", self.width, length).clone()
        self.free.append((run, known))
        return found[None]

    def _free(self) -> tuple[ShortText, dict[int, list[Step]]]:
        """Buffers that nobody uses, and what is bound to them: layers by length, whole models by its negative. A forked process
        binds its own: what was bound before runs on threads that it does not have."""
        if self.process != os.getpid():
            self.free, self.process = [], os.getpid()
        try:
            return self.free.pop()
        except IndexError:
            return ShortText(self.width, self.before), {}

    def _bind_ends(self, run: ShortText) -> list[Step]:
        """From ids to the mean behind the last norm."""
        assert self.ends is not None
        h = run.x if self.map is None else run.buffer("embedded", self.table.shape[1])
        ids = torch.from_numpy(run.ids)[: run.length]
        steps = [short_embedding(ids, self.table, None if self.added is None else self.added[: run.length], h)]
        if self.ends.norm is not None:
            steps.append(short_norm(h, None, cast(RowNorm, norm_of(self.ends.norm)), h))
        if self.map is not None:
            steps.append(self.map.step(h, run.x))
        steps += self._bind(run)
        if self.ends.last is not None:
            steps.append(short_norm(run.x, None, cast(RowNorm, norm_of(self.ends.last)), run.x))
        return [*steps, short_mean(run.x, run.mean)]

    def _bind(self, run: ShortText) -> list[Step]:
        norms = [norm for _, norm in self.parts]
        steps: list[Step] = []
        if self.before:
            steps.append(short_norm(run.x, None, norms[0], run.given))
            norms = [*norms[1:], RowNorm()]
        for (bind, _), norm in zip(self.parts, norms, strict=True):
            steps += [*bind(run), short_norm(run.x, run.y, norm, run.given)]
        return steps


def short_of(blocks: list[Block], ends: Ends | None = None) -> Short | None:
    """All blocks for one short text; None where one has a part, a norm or a place for them that is not bound plainly."""
    found: list[tuple[Bind, RowNorm]] = []
    for block in blocks:
        if not _is_plain(block) or block.config.placement != blocks[0].config.placement:
            return None
        for part, norm in ((block.mixer, block.mixer_norm), (block.channel, block.channel_norm)):
            if part is None or norm is None:
                continue
            bind, known = part.short(), RowNorm() if isinstance(norm, NoNorm) else norm_of(norm)
            if bind is None or known is None:
                return None
            found.append((bind, known))
    if ends is not None and (norm_of(ends.norm) is None or norm_of(ends.last) is None or not plain_linear(*([ends.map] if ends.map else []))):
        ends = None
    return Short(found, blocks[0].place.width, blocks[0].config.placement == "pre", ends) if found else None


def read_text(model: Any, ids: Tensor | Sequence[int], mean: bool) -> Tensor | None:
    """Hidden (1,N,D) of one whole text `ids` (N,) of a CPU, or the mean (1,D) of them, in the way of short texts; None where that does not serve.

    Raises:
        ConfigError: for ids outside the vocabulary, or more positions than the model has.
    """
    if not 0 < len(ids) <= MOST_TOKENS or (isinstance(ids, Tensor) and (ids.dim() > 1 or ids.device.type != "cpu")):
        return None
    reader = reader_of(model)
    if reader is None or reader.short is None or reader.short.ends is None:
        return None
    numbers = ids.tolist() if isinstance(ids, Tensor) else ids  # of few numbers Python finds the least sooner than torch
    if min(numbers) < 0 or max(numbers) >= model.vocab_size:
        check_input(torch.as_tensor(ids)[None], None, model.vocab_size, model.embed_width)
    if model.position_embed is not None:
        model.check_position(len(ids) - 1)
    return reader.short.read(numbers, mean)


def reader_of(model: Any) -> Reader | None:
    """The model's reader, kept until a parameter changes; None where layouts would not serve: gradients, another device or
    dtype, hooks, parts that nobody has prepared."""
    if torch.is_grad_enabled() or model.training or not available() or torch.is_autocast_enabled("cpu"):
        return None
    if model.beside is not None:
        return None
    held = model.__dict__.get("_reader")
    if held is not None and held.current():
        return cast(Reader, held)
    model.__dict__["_reader"] = None
    if listened_to(model.modules()):
        return None
    if any(p.dtype != torch.float32 or p.device.type != "cpu" or p.is_inference() for p in model.parameters()):
        return None
    model.__dict__["_reader"] = Reader(model)
    return cast(Reader, model.__dict__["_reader"])


def _layer(block: Block) -> Layer:
    """One block; its general form where a part stands in it that is not placed plainly."""
    placement, parts = block.config.placement, [(block.mixer, block.mixer_norm), (block.channel, block.channel_norm)]
    if not _is_plain(block):
        return lambda h, ctx: cast(Tensor, block(h, None, ctx)[0])
    steps = [(_part(part), _norm(norm)) for part, norm in parts if part is not None and norm is not None]

    def before(h: Tensor, ctx: Context) -> Tensor:
        for part, norm in steps:
            h = part(norm(h), h, ctx)
        return h

    def behind(h: Tensor, ctx: Context) -> Tensor:
        for part, norm in steps:
            h = norm(part(h, h, ctx))
        return h

    return before if placement == "pre" else behind


def _is_plain(block: Block) -> bool:
    canons = block.canon_a is not None or block.canon_c is not None
    return type(block) is Block and block.cross is None and not block.gates and not canons and block.config.placement in ("pre", "post")


def _norm(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """A norm, which for few tokens runs in one thread."""
    known, weight = norm_of(norm), next(norm.parameters(), None)
    if known is None or weight is None or choose(None, weight, op="reader") != "numba":
        return norm
    few = norm_of_rows(known, weight.detach())
    return lambda x: few(x) if x.numel() <= SMALL else cast(Tensor, norm(x))


def _part(part: Part) -> Callable[[Tensor, Tensor, Context], Tensor]:
    return part.prepared() or (lambda x, residual, ctx: residual + part(x, None, ctx)[0])
