"""The parts of the chunked scalar-decay recurrence that are not matrix products, in torch and compiled.

Both forms offer `scan`, `product` and `product_gradient` (:mod:`orrery.ops.scalar_decay` has the equations). The compiled
ones read and write every number once and need no exponentials: a row of the mask exp(a_i - a_j) is the row above it
times the decay of token i, which is also exact behind any gate.

B batch, T time, H heads, G groups of heads that share q and k, R = H/G, K key dimension, V value dimension, C chunk
length, N = B * chunks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.ops.compiled import compiled, run_blocks

FORGET = -1000.0
"""Stands for a gate of -inf: its exponential is 0 in float32 and float64, and float64 sums of it stay exact."""

LEAST = 1e-33
"""Decays below this are taken for 0 in float32: a denormal factor makes a product a hundred times slower."""


class Sizes(NamedTuple):
    """The sizes of a call: chunks per row, tokens per chunk, groups, heads per group, K and V."""

    batch: int
    chunks: int
    chunk: int
    groups: int
    repeat: int
    keys: int
    values: int

    @property
    def all(self) -> int:
        """Chunks of all rows together, N."""
        return self.batch * self.chunks

    @property
    def heads(self) -> int:
        """Heads of all groups together, H."""
        return self.groups * self.repeat

    @property
    def row(self) -> tuple[int, int, int, int]:
        """(G,K,R,V), the layout in which chunks keep their states: for one group it is that of a plain product."""
        return self.groups, self.keys, self.repeat, self.values


class Decays(NamedTuple):
    """What the gates come to: a (N,C,H) and whole = exp(a_C) (B,chunks,H) in float64, the others (N,C,H)."""

    a: Tensor
    whole: Tensor
    token: Tensor  # exp(g)
    inner: Tensor  # exp(a)
    outer: Tensor  # exp(a_C - a)


def _carry(rows: Tensor, state: Tensor | None, size: Sizes) -> Tensor:
    """A state (B,H,K,V) as (B,G,K,R,V) in float64, a copy; zeros for None.

    In float32 the roundings of a slowly decaying state all go the same way: 1e-5 of it after 64k tokens.
    """
    carry = rows.new_zeros(size.batch, *size.row, dtype=torch.float64)
    if state is not None:
        by_head = state.reshape(size.batch, size.groups, size.repeat, size.keys, size.values)
        carry.copy_(by_head.transpose(2, 3))
    return carry


def _from_rows(rows: Tensor, size: Sizes) -> Tensor:
    """(B,G,K,R,V) -> (B,H,K,V), contiguous."""
    return rows.transpose(2, 3).reshape(size.batch, size.heads, size.keys, size.values)


class TorchLoops:
    """The parts that are not matrix products, in torch: any device, any type."""

    @staticmethod
    def scan(rows: Tensor, whole: Tensor, first: Tensor | None, backwards: bool, size: Sizes) -> Tensor:
        """Turns what each chunk adds (B,chunks,G,K,R,V) into the state before it, in place; returns the last state.

        `backwards`: from the last chunk to the first, the state after it. `first` and the result are (B,H,K,V).
        """
        carry = _carry(rows, first, size)
        decay = whole.view(size.batch, size.chunks, size.groups, 1, size.repeat, 1)
        for n in reversed(range(size.chunks)) if backwards else range(size.chunks):
            after = torch.addcmul(rows[:, n].double(), carry, decay[:, n])
            rows[:, n] = carry
            carry = after
        return _from_rows(carry, size).to(rows.dtype)

    @staticmethod
    def mask(decays: Decays, size: Sizes) -> Tensor:
        """exp(a_i - a_j) for j <= i, else 0: (N,H,C,C).

        a travels as a float32 and its rounding error, so that neighbours after a strong gate stay exact.
        """
        a = decays.a.transpose(1, 2).contiguous()
        kind = decays.token.dtype
        high = a.to(kind)
        mask = high[..., :, None] - high[..., None, :]
        if kind == torch.float32:
            low = (a - high).to(kind)
            mask.add_(low[..., :, None]).sub_(low[..., None, :])
            torch.threshold_(mask, -60.0, FORGET)
        return mask.clamp_(max=0.0).exp_().tril_()

    @staticmethod
    def product(scores: Tensor, decays: Decays, write: Tensor, size: Sizes) -> Tensor:
        """From the scores Q K^T (N*G,C,C) of every group, M (N*H,C,C) of every head."""
        shape = (size.all, size.groups, size.repeat, size.chunk, size.chunk)
        mask = TorchLoops.mask(decays, size).mul_(write.transpose(1, 2)[:, :, None, :])
        mask.view(shape).mul_(scores.view(size.all, size.groups, 1, size.chunk, size.chunk))
        return mask.view(-1, size.chunk, size.chunk)

    @staticmethod
    def product_gradient(
        scores: Tensor, dproduct: Tensor, decays: Decays, write: Tensor, size: Sizes
    ) -> tuple[Tensor, Tensor]:
        """From dM (N*H,C,C): M without b (N*H,C,C), and the gradient of the scores (N*G,C,C)."""
        shape = (size.all, size.groups, size.repeat, size.chunk, size.chunk)
        mask = TorchLoops.mask(decays, size)
        dscores = dproduct.view(mask.shape).mul_(write.transpose(1, 2)[:, :, None, :]).mul_(mask).view(shape).sum(2)
        mask.view(shape).mul_(scores.view(size.all, size.groups, 1, size.chunk, size.chunk))
        return mask.view(-1, size.chunk, size.chunk), dscores.view(-1, size.chunk, size.chunk)


class CompiledLoops(TorchLoops):
    """The same parts as loops that numba compiles: one pass each, no exponentials, rows of the mask in registers."""

    @staticmethod
    def scan(rows: Tensor, whole: Tensor, first: Tensor | None, backwards: bool, size: Sizes) -> Tensor:
        """As in torch; one pass over the rows."""
        carry = _carry(rows, first, size)
        decay = whole.view(size.batch, size.chunks, size.groups, size.repeat)
        arrays = (x.numpy() for x in (rows, decay, carry))
        run_blocks(_scan, size.batch * size.groups * size.keys, rows.numel(), *arrays, backwards)
        return _from_rows(carry.to(rows.dtype), size)

    @staticmethod
    def product(scores: Tensor, decays: Decays, write: Tensor, size: Sizes) -> Tensor:
        """As in torch; one pass over the product."""
        product = scores.new_empty(size.all * size.heads, size.chunk, size.chunk)
        arrays = (x.numpy() for x in (scores, decays.token, write, product))
        run_blocks(_product, len(product), product.numel(), *arrays, _smallest(scores))
        return product

    @staticmethod
    def product_gradient(
        scores: Tensor, dproduct: Tensor, decays: Decays, write: Tensor, size: Sizes
    ) -> tuple[Tensor, Tensor]:
        """As in torch; dM is overwritten by the product."""
        dscores = torch.empty_like(scores)
        arrays = (x.numpy() for x in (scores, decays.token, write, dproduct, dscores))
        run_blocks(_product_gradient, len(scores), dproduct.numel(), *arrays, _smallest(scores))
        return dproduct, dscores


TORCH, COMPILED = TorchLoops(), CompiledLoops()


def _smallest(like: Tensor) -> Any:
    return np.float32(LEAST) if like.dtype == torch.float32 else np.float64(0.0)


@compiled
def _scan(first: int, last: int, rows: Any, decay: Any, carry: Any, backwards: bool) -> None:
    chunks, groups, keys, repeat, values = rows.shape[1:]
    for block in range(first, last):
        b, g, i = block // (groups * keys), block // keys % groups, block % keys
        for step in range(chunks):
            n = chunks - 1 - step if backwards else step
            for r in range(repeat):
                d = decay[b, n, g, r]
                for j in range(values):
                    added = rows[b, n, g, i, r, j]
                    rows[b, n, g, i, r, j] = carry[b, g, i, r, j]
                    carry[b, g, i, r, j] = carry[b, g, i, r, j] * d + added


@compiled
def _product(first: int, last: int, scores: Any, decay: Any, write: Any, product: Any, least: Any) -> None:
    chunk, heads = decay.shape[1:]
    repeat = len(product) // len(scores)
    row = np.zeros(chunk, scores.dtype)  # row i of the mask, times b_j: row i-1 times the decay of token i
    for block in range(first, last):
        n, h = block // heads, block % heads
        for i in range(chunk):
            d = decay[n, i, h]
            for j in range(i):
                x = row[j] * d
                row[j] = x if abs(x) > least else x * 0
            row[i] = write[n, i, h]
            for j in range(i + 1):
                product[block, i, j] = row[j] * scores[block // repeat, i, j]
            for j in range(i + 1, chunk):
                product[block, i, j] = 0


@compiled
def _product_gradient(
    first: int, last: int, scores: Any, decay: Any, write: Any, product: Any, dscores: Any, least: Any
) -> None:
    chunk, heads = decay.shape[1:]
    repeat = len(product) // len(scores)
    row = np.zeros(chunk, scores.dtype)
    for group in range(first, last):
        dscores[group] = 0
        for block in range(group * repeat, (group + 1) * repeat):
            n, h = block // heads, block % heads
            for i in range(chunk):
                d = decay[n, i, h]
                for j in range(i):
                    x = row[j] * d
                    row[j] = x if x > least else x * 0
                row[i] = 1
                for j in range(i + 1):
                    dscores[group, i, j] += product[block, i, j] * row[j] * write[n, j, h]
                    product[block, i, j] = row[j] * scores[group, i, j]
                for j in range(i + 1, chunk):
                    product[block, i, j] = 0
