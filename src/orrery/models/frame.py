"""What the frames share: checking what they are given, and running blocks one after the other.

B batch, T time, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from orrery.core.errors import ConfigError
from orrery.nn.block import BlockState
from orrery.nn.contract import Context


def check_input(tokens: Tensor | None, embeds: Tensor | None, vocab_size: int, width: int) -> tuple[int, int, torch.device]:
    """B, T and the device of what a frame was given.

    Raises:
        ConfigError: unless it is either tokens (B,T) int64 inside the vocabulary or embeds (B,T,width).
    """
    given = tokens if tokens is not None else embeds
    if given is None or (tokens is not None and embeds is not None):
        raise ConfigError("pass either tokens (B,T) or embeds (B,T,D)")
    if tokens is not None and (tokens.dim() != 2 or tokens.dtype != torch.int64):
        raise ConfigError(f"tokens must be int64 of shape (batch, time), not {tokens.dtype} of shape {tuple(tokens.shape)}")
    if embeds is not None and (embeds.dim() != 3 or embeds.shape[-1] != width):
        raise ConfigError(f"embeds must have shape (batch, time, {width}), not {tuple(embeds.shape)}")
    if tokens is not None and tokens.numel() and tokens.device.type == "cpu":
        least, most = (int(bound) for bound in tokens.aminmax())
        if least < 0 or most >= vocab_size:
            raise ConfigError(f"token {least if least < 0 else most} is outside the vocabulary of {vocab_size}")
    return given.shape[0], given.shape[1], given.device


def run_blocks(
    blocks: Iterable[Any], h: Tensor, states: Iterable[BlockState | None], ctx: Context, recompute: bool
) -> tuple[Tensor, tuple[BlockState, ...]]:
    """Blocks on h (B,T,D), each with its state or None; `recompute` keeps none of their activations for the backward pass."""
    after = []
    for block, before in zip(blocks, states, strict=True):
        if recompute and torch.is_grad_enabled():
            h, state = checkpoint(_AsAtFirst(block, ctx), h, before, use_reentrant=False)
        else:
            h, state = block(h, before, ctx)
        after.append(state)
    return h, tuple(after)


class _AsAtFirst:
    """A block that, run again in the backward pass, finds in `ctx.shared` what it found at first, not what it left there itself."""

    def __init__(self, block: Any, ctx: Context) -> None:
        self.block, self.ctx = block, ctx
        self.found = None if ctx.shared is None else dict(ctx.shared)
        self.again = False

    def __call__(self, h: Tensor, before: BlockState | None) -> tuple[Tensor, BlockState]:
        ctx = self.ctx
        if self.again and self.found is not None:
            ctx = ctx.replace(shared=dict(self.found))
        self.again = True
        h, state = self.block(h, before, ctx)
        return h, state


def count_parameters(model: nn.Module, outside: Iterable[nn.Module | None], embedding: bool, active: bool) -> int:
    """Parameters of a model; without `embedding`, those of the modules `outside` are left out, and with `active` idle experts."""
    total = sum(p.numel() for p in model.parameters())
    if active:
        total -= sum(int(cast(Any, module).idle_parameters()) for module in model.modules() if hasattr(module, "idle_parameters"))
    if embedding:
        return total
    left = {id(p): p.numel() for module in outside if module is not None for p in module.parameters()}
    return total - sum(left.values())
