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

_LANES = 16  # partial sums side by side: a single running sum cannot be vectorised without reordering it
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


class Pair(NamedTuple):
    """One tensor in both of its layouts."""

    natural: Tensor  # (B,T,H,V)
    heads: Tensor  # (N*H,C,V)


class TorchLoops:
    """The parts that are not matrix products, in torch: any device, any type."""

    @staticmethod
    def lay_out(x: Tensor, weight: Tensor, size: Sizes) -> tuple[Tensor, Tensor]:
        """From x (B,T,H,V) and weight (N,C,H): x as (N*H,C,V), and the product of both as (N*G,C,R*V)."""
        n, c, g, r, v = size.all, size.chunk, size.groups, size.repeat, size.values
        heads = x.reshape(n, c, size.heads, v).transpose(1, 2).reshape(n * size.heads, c, v)
        weighted = _in_order(
            torch.mul, x.reshape(n, c, g, r, v).transpose(1, 2), weight.view(n, c, g, r, 1).transpose(1, 2)
        )
        return heads, weighted.view(n * g, c, r * v)

    @staticmethod
    def outputs(
        by_head: Tensor, by_group: Tensor, inner: Tensor, skip: Tensor | None, v: Tensor, vh: Tensor, size: Sizes
    ) -> tuple[Tensor, Tensor]:
        """From M V (N*H,C,V) and Q P (N*G,C,R*V): what was read, and the outputs, (B,T,H,V); without d they are one tensor."""
        read = TorchLoops._natural(by_head, by_group, inner, size)
        return read, read if skip is None else torch.addcmul(read, v, skip[:, None])

    @staticmethod
    def _natural(by_head: Tensor, by_group: Tensor, weight: Tensor, size: Sizes) -> Tensor:
        n, c, g, r, v = size.all, size.chunk, size.groups, size.repeat, size.values
        first = by_head.view(n, g, r, c, v).permute(0, 3, 1, 2, 4)
        out = _in_order(torch.addcmul, first, by_group.view(n, g, c, r, v).transpose(1, 2), weight.view(n, c, g, r, 1))
        return out.view(size.batch, size.chunks * c, size.heads, v)

    @staticmethod
    def values_gradient(
        by_head: Tensor,
        by_group: Tensor,
        outer: Tensor,
        write: Tensor,
        skip: Tensor | None,
        v: Pair,
        dy: Pair,
        read: Tensor,
        size: Sizes,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """From (M/b)^T dY (N*H,C,V) and K dS (N*G,C,R*V): dv (B,T,H,V), db and r.dy - b db (B,T,H), dd (H,)."""
        u = TorchLoops._natural(by_head, by_group, outer, size)
        b = write.view(u.shape[:3])
        dbeta = (u * v.natural).sum(-1)
        direct = (read * dy.natural).sum(-1) - dbeta * b
        dv = u.mul_(b[..., None])
        if skip is None:
            return dv, dbeta, direct, None
        return dv.addcmul_(dy.natural, skip[:, None]), dbeta, direct, (dy.natural * v.natural).sum((0, 1, 3))

    @staticmethod
    def scan(rows: Tensor, whole: Tensor, first: Tensor | None, backwards: bool, size: Sizes) -> Tensor:
        """Turns what each chunk adds (B,chunks,G,K,R,V) into the state before it, in place; returns the last state.

        `backwards`: from the last chunk to the first, the state after it. `first` and the result are (B,H,K,V).
        """
        carry = rows.new_zeros(size.batch, *size.row, dtype=torch.float64)  # float32 would round always the same way
        if first is not None:
            carry.copy_(first.reshape(size.batch, size.groups, size.repeat, size.keys, size.values).transpose(2, 3))
        decay = whole.view(size.batch, size.chunks, size.groups, 1, size.repeat, 1)
        for n in reversed(range(size.chunks)) if backwards else range(size.chunks):
            after = torch.addcmul(rows[:, n].double(), carry, decay[:, n])
            rows[:, n] = carry
            carry = after
        return carry.to(rows.dtype).transpose(2, 3).reshape(size.batch, size.heads, size.keys, size.values)

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


def _in_order(function: Any, first: Tensor, *others: Tensor) -> Tensor:
    """function(first, ...) in contiguous memory, of the shape of the first; operands may be permuted."""
    if torch.compiler.is_compiling():
        return function(first, *others).contiguous()
    return function(first, *others, out=first.new_empty(first.shape))


class CompiledLoops(TorchLoops):
    """The same parts as loops that numba compiles: one pass each, no exponentials, rows of the mask in registers."""

    @staticmethod
    def lay_out(x: Tensor, weight: Tensor, size: Sizes) -> tuple[Tensor, Tensor]:
        """As in torch; x is read once."""
        steps = [x.stride(0) == x.shape[1] * x.stride(1), x.stride(2) == x.shape[3], x.stride(3) == 1]
        x = x if all(steps) else x.contiguous()
        span = (x.shape[0] * x.shape[1] - 1) * x.stride(1) + size.heads * size.values
        heads = x.new_empty(size.all * size.heads, size.chunk, size.values)
        weighted = x.new_empty(size.all * size.groups, size.chunk, size.repeat * size.values)
        flat = x.detach().as_strided((span,), (1,))
        arrays = (flat.numpy(), x.stride(1), *(t.numpy() for t in (weight, heads, weighted)))
        run_blocks(_lay_out, size.all, 2 * heads.numel(), *arrays)
        return heads, weighted

    @staticmethod
    def outputs(
        by_head: Tensor, by_group: Tensor, inner: Tensor, skip: Tensor | None, v: Tensor, vh: Tensor, size: Sizes
    ) -> tuple[Tensor, Tensor]:
        """As in torch; one pass."""
        shape = (size.batch, size.chunks * size.chunk, size.heads, size.values)
        read = by_head.new_empty(shape)
        y = read if skip is None else by_head.new_empty(shape)
        d = inner.new_zeros(0) if skip is None else skip.contiguous()
        views = (t.view(size.all, size.chunk, -1) for t in (read, y))
        arrays = (t.detach().numpy() for t in (by_head, by_group, inner, d, vh, *views))
        run_blocks(_outputs, size.all, 2 * read.numel(), *arrays)
        return read, y

    @staticmethod
    def values_gradient(
        by_head: Tensor,
        by_group: Tensor,
        outer: Tensor,
        write: Tensor,
        skip: Tensor | None,
        v: Pair,
        dy: Pair,
        read: Tensor,
        size: Sizes,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """As in torch; one pass."""
        dv, sums = torch.empty_like(read), read.new_empty(2, *write.shape)
        d = write.new_zeros(size.heads) if skip is None else skip.contiguous()
        dskip = write.new_empty(size.all, size.heads)
        views = (t.view(size.all, size.chunk, -1) for t in (read, dv))
        arrays = (by_head, by_group, outer, write, d, v.heads, dy.heads, *views, sums[0], sums[1], dskip)
        run_blocks(_values_gradient, size.all, 4 * read.numel(), *(t.detach().numpy() for t in arrays))
        dbeta, direct = sums.view(2, size.batch, -1, size.heads)
        return dv, dbeta, direct, None if skip is None else dskip.sum(0)

    @staticmethod
    def scan(rows: Tensor, whole: Tensor, first: Tensor | None, backwards: bool, size: Sizes) -> Tensor:
        """As in torch; one pass over the rows."""
        shape = (size.batch, size.groups, size.repeat, size.keys, size.values)
        before = rows.new_zeros(0, *shape[1:]) if first is None else first.detach().contiguous().view(shape)
        after = rows.new_empty(shape)
        decay = whole.view(size.batch, size.chunks, size.groups, size.repeat)
        arrays = (x.numpy() for x in (rows, decay, before, after))
        run_blocks(_scan, size.batch * size.groups * size.keys, rows.numel(), *arrays, backwards)
        return after.view(size.batch, size.heads, size.keys, size.values)

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
def _lay_out(first: int, last: int, x: Any, step: int, weight: Any, heads: Any, weighted: Any) -> None:
    chunk, count = weight.shape[1:]
    values = heads.shape[2]
    repeat = weighted.shape[2] // values
    for n in range(first, last):
        for t in range(chunk):
            at = (n * chunk + t) * step
            for h in range(count):
                given, w = x[at + h * values : at + (h + 1) * values], weight[n, t, h]
                plain = heads[n * count + h, t]
                low = (h % repeat) * values
                scaled = weighted[(n * count + h) // repeat, t, low : low + values]
                for j in range(values):
                    plain[j] = given[j]
                    scaled[j] = given[j] * w


@compiled
def _outputs(
    first: int, last: int, by_head: Any, by_group: Any, inner: Any, skip: Any, v: Any, read: Any, y: Any
) -> None:
    chunk, count = inner.shape[1:]
    values = by_head.shape[2]
    repeat = by_group.shape[2] // values
    for n in range(first, last):
        for t in range(chunk):
            for h in range(count):
                w, low, at = inner[n, t, h], (h % repeat) * values, h * values
                own, passed = by_head[n * count + h, t], v[n * count + h, t]
                shared = by_group[(n * count + h) // repeat, t, low : low + values]
                out = read[n, t, at : at + values]
                for j in range(values):
                    out[j] = own[j] + w * shared[j]
                if len(skip):
                    total, d = y[n, t, at : at + values], skip[h]
                    for j in range(values):
                        total[j] = out[j] + d * passed[j]


@compiled
def _values_gradient(  # type: ignore[no-untyped-def]
    first, last, by_head, by_group, outer, write, skip, v, dy, read, dv, dbeta, direct, dskip
):
    chunk, count = outer.shape[1:]
    values = by_head.shape[2]
    repeat = by_group.shape[2] // values
    even = values - values % _LANES
    lanes = np.empty((3, _LANES), by_head.dtype)
    for n in range(first, last):
        dskip[n] = 0
        for t in range(chunk):
            for h in range(count):
                w, b, d = outer[n, t, h], write[n, t, h], skip[h]
                low, at = (h % repeat) * values, h * values
                u, x, grad = by_head[n * count + h, t], v[n * count + h, t], dy[n * count + h, t]
                shared = by_group[(n * count + h) // repeat, t, low : low + values]
                seen, out = read[n, t, at : at + values], dv[n, t, at : at + values]
                for j in range(values):
                    u[j] += w * shared[j]
                    out[j] = b * u[j] + d * grad[j]
                lanes[:] = 0
                for begin in range(0, even, _LANES):
                    for j in range(_LANES):
                        i = begin + j
                        lanes[0, j] += u[i] * x[i]
                        lanes[1, j] += grad[i] * seen[i]
                        lanes[2, j] += grad[i] * x[i]
                for i in range(even, values):
                    lanes[0, 0] += u[i] * x[i]
                    lanes[1, 0] += grad[i] * seen[i]
                    lanes[2, 0] += grad[i] * x[i]
                written = lanes[0].sum()
                dbeta[n, t, h] = written
                direct[n, t, h] = lanes[1].sum() - b * written
                dskip[n, h] += lanes[2].sum()


@compiled
def _scan(first: int, last: int, rows: Any, decay: Any, before: Any, after: Any, backwards: bool) -> None:
    chunks, groups, keys, repeat, values = rows.shape[1:]
    carry = np.zeros((repeat, values))  # in float64: in float32 a slow decay is rounded always the same way
    for block in range(first, last):
        b, g, i = block // (groups * keys), block // keys % groups, block % keys
        carry[:] = 0
        if len(before):
            carry[:] = before[b, g, :, i]
        for step in range(chunks):
            n = chunks - 1 - step if backwards else step
            for r in range(repeat):
                d, held, row = decay[b, n, g, r], carry[r], rows[b, n, g, i, r]
                for j in range(values):
                    added = row[j]
                    row[j] = held[j]
                    held[j] = held[j] * d + added
        after[b, g, :, i] = carry


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
