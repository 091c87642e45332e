"""Rotary position embedding (RoFormer, arXiv 2104.09864).

    (q_{2i}, q_{2i+1})_t  is turned by the angle  t * theta^(-2i/R),  i = 0 .. R/2-1;  dimensions from R on stay

Pairs are neighbours, as in the paper, so that a turn is one complex product; models that pair i with i + R/2 (Llama's
code) differ by a fixed permutation of the projection's rows, which the exchange maps apply.

B batch, T time, H heads, K head dimension, R rotated dimensions.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from orrery.ops.fused.rotation import turn


def rotary_table(positions: Tensor, rotated: int, theta: float, double: bool = False) -> Tensor:
    """Unit complex numbers for positions (T,) or (B,T): (T,R/2) or (B,T,R/2), computed in float64.

    They are kept in single precision unless `double`.
    """
    rates = theta ** (-torch.arange(0, rotated, 2, dtype=torch.float64, device=positions.device) / rotated)
    angles = positions.to(torch.float64)[..., None] * rates
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex128 if double else torch.complex64)


@functools.lru_cache(maxsize=16)
def _table(length: int, rotated: int, theta: float, device: torch.device, double: bool) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return rotary_table(torch.arange(length, device=device), rotated, theta, double)


def cached_table(positions: Tensor, length: int, rotated: int, theta: float, dtype: torch.dtype) -> Tensor:
    """The same as :func:`rotary_table`, looked up: one table per size serves all layers and calls.

    Args:
        positions: (T,) counting from 0, or (B,T).
        length: a bound: every position is below it.
        dtype: of what will be rotated; float64 gets a table in double precision.
    """
    size = 1 << max(6, (length - 1).bit_length())
    table = _table(size, rotated, theta, positions.device, dtype == torch.float64)
    return table[: len(positions)] if positions.dim() == 1 else table[positions]


def rotate(x: Tensor, table: Tensor, heads: int | None = None) -> Tensor:
    """Turn the first R of K dimensions of x (B,T,H,K) by table (T,R/2) or (B,T,R/2); with `heads`, of the first so many only."""
    return turn(x, table, x.shape[2] if heads is None else heads)


def rotate_by_reals(x: Tensor, positions: Tensor, rotated: int, theta: float, heads: int) -> Tensor:
    """:func:`rotate` in operations that every runtime has (no complex numbers, no table of a fixed length), for exported graphs.

    Args:
        x: (B,T,H,K). positions: (T,) or (B,T). rotated: R. heads: the first so many are turned.
    """
    rates = theta ** (-torch.arange(0, rotated, 2, dtype=torch.float64, device=positions.device) / rotated)
    angles = positions.to(torch.float64)[..., None] * rates
    cos, sin = (part.to(x.dtype)[..., None, :] for part in (angles.cos(), angles.sin()))
    even, odd = x[:, :, :heads, :rotated].unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
    turned = torch.cat([turned, x[:, :, :heads, rotated:]], -1)
    return torch.cat([turned, x[:, :, heads:]], 2)
