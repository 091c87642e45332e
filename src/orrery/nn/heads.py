"""The heads of a mixer: what its config may say of them, how many there are, how attention's projections start and turn.

D width, H query heads, G key-value heads, K head dimension.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from orrery.core.config import require
from orrery.nn.contract import Context, Place
from orrery.nn.projection import Projection
from orrery.nn.rotary import RopeScaling, cached_table, check_turns, outgrown, rotary_table
from orrery.nn.timeline import Timeline
from orrery.ops.losses.relations import Scored


def check_heads(config: Any, even: bool = True) -> None:
    """Raise unless head_dim (even, where pairs of it are rotated), heads, kv_heads and rope are possible, as far as a config has them."""
    size = config.head_dim
    fits = size > 0 and (size % 2 == 0 or not even)
    require(fits, f"head_dim must be even and positive, not {size}" if even else f"head_dim must be positive, not {size}")
    for name in ("heads", "kv_heads"):
        count = getattr(config, name, None)
        require(count is None or count > 0, f"{name} must be positive, not {count}")
    check_turns(getattr(config, "rope", 1.0), getattr(config, "rope_theta", 10000.0))


def count_heads(config: Any, place: Place) -> int:
    """H: as many as configured, or as many as make up the width."""
    width, size = place.width, config.head_dim
    fits = config.heads is not None or (width % size == 0 and width >= size)
    require(fits, f"width {width} is not a multiple of head_dim {size}; set heads or another head_dim")
    return int(config.heads or width // size)


def count_groups(config: Any, heads: int) -> int:
    """G: as many as configured, or one for each query head."""
    groups = config.kv_heads or heads
    require(heads % groups == 0, f"kv_heads {groups} must divide heads {heads}")
    return int(groups)


def reset_projections(inputs: Projection, out: nn.Linear, std: float | None, place: Place, scaled: bool = True) -> None:
    """Normal with `std`, or sqrt(2 / 5D) (1910.05895); the way out by 1/sqrt(2 depth) less (GPT-2) where `scaled`; biases 0."""
    std = std or math.sqrt(2 / (5 * place.width))
    nn.init.normal_(inputs.linear.weight, std=std)
    nn.init.normal_(out.weight, std=std / math.sqrt(2 * place.depth) if scaled else std)
    for linear in (inputs.linear, out):
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
    if inputs.conv is not None:
        inputs.conv.reset_parameters()


def turns(x: Tensor, ctx: Context, rotated: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """The rotary table of the positions of x (B,T,...) (2104.09864 eq. 34)."""
    time = ctx.timeline
    length = int(ctx.positions.max()) + 1 if ctx.positions is not None else time.past + x.shape[1]
    if outgrown(scaling, length):
        return rotary_table(time.positions, rotated, theta, x.dtype == torch.float64, scaling, _spans(time))
    return cached_table(time.positions, length, rotated, theta, x.dtype, scaling)


def _spans(time: Timeline) -> Tensor:
    """Of every token the length of its document, as far as it is read: (1,), (B,1) or (B,T)."""
    if time.starts is None:
        return time.positions.amax(-1, keepdim=True) + 1
    document, positions = time.starts.cumsum(1), time.positions.expand(time.starts.shape)
    last = positions.new_zeros(document.shape).scatter_reduce(1, document, positions, "amax")
    return last.gather(1, document) + 1


def scored_heads(q: Tensor, k: Tensor, bias: Tensor | None, window: int | None) -> Scored:
    """What the scores of q (B,T,H,K), scaled, and k (B,T,G,K) are made of; distillation compares them, or what a softmax makes of them."""
    return Scored(q, k.repeat_interleave(q.shape[2] // k.shape[2], 2), bias, window)
