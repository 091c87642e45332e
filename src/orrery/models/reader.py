"""Reading through a whole encoder with weights laid out once: what :func:`orrery.models.encode.encode` stands on.

Every part that can gives a function `f(x, residual, ctx) = residual + part(x)` in which biases, activations and residuals
need no pass of their own (`Part.prepared`); one that cannot is called as always. One short text is read in place instead
(:mod:`orrery.nn.short_text`), where all parts can (`Part.short`). The layouts are copies, made when they are first needed and
anew as soon as a parameter has changed.

N tokens of a packed row, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from orrery.nn.block import Block
from orrery.nn.contract import Context, Part
from orrery.nn.norms import NoNorm
from orrery.nn.short_text import MOST_TOKENS, ShortText, Step, short_norm
from orrery.nn.stepping import norm_of
from orrery.ops.backend import choose
from orrery.ops.packed_linear import available
from orrery.ops.row_linear import RowNorm, norm_of_rows

Layer = Callable[[Tensor, Context], Tensor]
Bind = Callable[[ShortText], Step]
SMALL = 1 << 15  # numbers that one thread norms sooner than two


class Reader:
    """The layers of an encoder, prepared: in one way for a short text, in another for everything else."""

    def __init__(self, model: Any) -> None:
        named = [(m._parameters, name, p) for m in model.modules() for name, p in m._parameters.items() if p is not None]
        self.seen = [(home, name, p, p._version, p.data_ptr()) for home, name, p in named]
        self.blocks = [cast(Block, block) for block in model.blocks]

    def current(self) -> bool:
        """Whether every parameter is what it was."""
        return all(home[name] is p and p._version == version and p.data_ptr() == place for home, name, p, version, place in self.seen)

    @functools.cached_property
    def layers(self) -> list[Layer]:
        """For rows of any kind."""
        return [_layer(block) for block in self.blocks]

    @functools.cached_property
    def short(self) -> Short | None:
        """For one short text, where all parts have such a form."""
        return short_of(self.blocks)

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


class Short:
    """The layers for one short text. Texts read at the same time, by several threads, have buffers of their own.

    Args:
        parts: what binds each part (`Part.short`), and its norm, in order.
        width: D. before: norms stand before their parts.
    """

    def __init__(self, parts: list[tuple[Bind, RowNorm]], width: int, before: bool) -> None:
        self.parts, self.width, self.before = parts, width, before
        self.free: list[tuple[ShortText, dict[int, list[Step]]]] = []

    def __call__(self, h: Tensor) -> Tensor:
        """H (1,N,D) -> (1,N,D)."""
        try:
            run, known = self.free.pop()
        except IndexError:
            run, known = ShortText(self.width, self.before), {}
        length = h.shape[1]
        steps = known.get(length)
        if steps is None:
            steps = known[length] = self._bind(run.at(length))
        x = run.buffer("x", self.width, length)
        x.copy_(h[0])
        for step in steps:
            step()
        found = x.clone()[None]
        self.free.append((run, known))
        return found

    def _bind(self, run: ShortText) -> list[Step]:
        norms = [norm for _, norm in self.parts]
        steps = []
        if self.before:
            steps.append(short_norm(run.x, None, norms[0], run.given))
            norms = [*norms[1:], RowNorm()]
        for (bind, _), norm in zip(self.parts, norms, strict=True):
            steps += [bind(run), short_norm(run.x, run.y, norm, run.given)]
        return steps


def short_of(blocks: list[Block]) -> Short | None:
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
    return Short(found, blocks[0].place.width, blocks[0].config.placement == "pre") if found else None


def reader_of(model: Any) -> Reader | None:
    """The model's reader, kept until a parameter changes; None where layouts would not serve: gradients, another device or
    dtype, hooks, parts that nobody has prepared."""
    if torch.is_grad_enabled() or model.training or not available() or torch.is_autocast_enabled("cpu"):
        return None
    held = model.__dict__.get("_reader")
    if held is not None and held.current():
        return cast(Reader, held)
    model.__dict__["_reader"] = None
    for module in model.modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
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
