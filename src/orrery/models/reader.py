"""Reading through a whole encoder with weights laid out once: what :func:`orrery.models.encode.encode` stands on.

Every part that can gives a function `f(x, residual, ctx) = residual + part(x)` in which biases, activations and residuals
need no pass of their own (`Part.prepared`); one that cannot is called as always. The layouts are copies, made anew as soon
as a parameter has changed.

N tokens of a packed row, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from orrery.nn.block import Block
from orrery.nn.contract import Context, Part
from orrery.nn.stepping import norm_of
from orrery.ops.backend import choose
from orrery.ops.packed_linear import available
from orrery.ops.row_linear import norm_of_rows

Layer = Callable[[Tensor, Context], Tensor]
SMALL = 1 << 15  # numbers that one thread norms sooner than two


class Reader:
    """The layers of an encoder, prepared."""

    def __init__(self, model: Any) -> None:
        named = [(m._parameters, name, p) for m in model.modules() for name, p in m._parameters.items() if p is not None]
        self.seen = [(home, name, p, p._version, p.data_ptr()) for home, name, p in named]
        self.layers = [_layer(cast(Block, block)) for block in model.blocks]

    def current(self) -> bool:
        """Whether every parameter is what it was."""
        return all(home[name] is p and p._version == version and p.data_ptr() == place for home, name, p, version, place in self.seen)

    def __call__(self, h: Tensor, ctx: Context) -> Tensor:
        """H (B,T,D) behind the last layer, before the final norm."""
        for layer in self.layers:
            h = layer(h, ctx)
        return h


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
    plain = block.cross is None and not block.gates and block.canon_a is None and block.canon_c is None and type(block) is Block
    if not plain or placement not in ("pre", "post"):
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


def _norm(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """A norm, which for few tokens runs in one thread."""
    known, weight = norm_of(norm), next(norm.parameters(), None)
    if known is None or weight is None or choose(None, weight, op="reader") != "numba":
        return norm
    few = norm_of_rows(known, weight.detach())
    return lambda x: few(x) if x.numel() <= SMALL else cast(Tensor, norm(x))


def _part(part: Part) -> Callable[[Tensor, Tensor, Context], Tensor]:
    return part.prepared() or (lambda x, residual, ctx: residual + part(x, None, ctx)[0])
