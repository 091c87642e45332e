"""What stands around and between the linear maps of a decode step, as passes of their own (:mod:`orrery.ops.program` joins them).

    embed_rows   x = E[token] (+ P[position])           cap_rows    z = c tanh(z / c)
    add_rows     x += y                                 best_rows   the first greatest z of every row, or -1 beside a NaN
    next_rows   token = best;  position += 1           keep_rows   kept[n] = best;  n += 1

Each function looks its arrays up once and returns a function of no arguments, which reads and writes them in place.
Float32 on a CPU, no gradient.

B rows, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from orrery.ops.compiled import compiled, prepare_blocks, tanh
from orrery.ops.steps.row_linear import array

_SHARE = 1024  # numbers of a block


def embed_rows(tokens: Tensor, table: Tensor, positions: Tensor, places: Tensor | None, x: Tensor) -> Callable[[], None]:
    """tokens and positions (B,) int64, table (V,D), places (P,D) or None, x (B,D), written."""
    none = x.new_empty(0, x.shape[1])
    return prepare_blocks(_embed, len(x), 0, *(array(t, x) for t in (tokens, table, positions, none if places is None else places, x)))


def add_rows(x: Tensor, y: Tensor) -> Callable[[], None]:
    """x and y (B,D)."""
    return prepare_blocks(_add, len(x), 0, x.numpy(), y.numpy())


def multiply_rows(x: Tensor, y: Tensor) -> Callable[[], None]:
    """x and y (B,F): x becomes their product."""
    return prepare_blocks(_multiply, len(x), 0, x.numpy(), y.numpy())


def copy_rows(x: Tensor, y: Tensor) -> Callable[[], None]:
    """x (B,D), and y, which becomes the same."""
    return prepare_blocks(_copy, len(x), 0, x.numpy(), y.numpy())


def cap_rows(z: Tensor, cap: float) -> Callable[[], None]:
    """z (B,V), in place."""
    blocks = -(-z.numel() // _SHARE)
    return prepare_blocks(_cap, blocks, 4 * z.numel(), z.view(-1).numpy(), np.float32(cap))


def best_rows(z: Tensor, best: Tensor) -> Callable[[], None]:
    """z (B,V), best (B,) int64, written."""
    return prepare_blocks(_best, len(z), 0, z.numpy(), best.numpy())


def next_rows(tokens: Tensor, best: Tensor, positions: Tensor) -> Callable[[], None]:
    """All (B,) int64; tokens and positions are written."""
    return prepare_blocks(_next, 1, 0, tokens.numpy(), best.numpy(), positions.numpy())


def keep_rows(best: Tensor, kept: Tensor, count: Tensor) -> Callable[[], None]:
    """best (B,) int64; kept (N,B), of which row `count` (1,) is written; count is raised."""
    return prepare_blocks(_keep, 1, 0, best.numpy(), kept.numpy(), count.numpy())


@compiled
def _embed(first, last, tokens, table, positions, places, x):  # type: ignore[no-untyped-def]
    for b in range(first, last):
        row, out = table[tokens[b]], x[b]
        for i in range(len(out)):
            out[i] = row[i]
        if len(places) > 0:
            place = places[positions[b]]
            for i in range(len(out)):
                out[i] += place[i]


@compiled
def _add(first, last, x, y):  # type: ignore[no-untyped-def]
    for b in range(first, last):
        for i in range(x.shape[1]):
            x[b, i] += y[b, i]


@compiled
def _multiply(first, last, x, y):  # type: ignore[no-untyped-def]
    for b in range(first, last):
        for i in range(x.shape[1]):
            x[b, i] *= y[b, i]


@compiled
def _copy(first, last, x, y):  # type: ignore[no-untyped-def]
    for b in range(first, last):
        for i in range(x.shape[1]):
            y[b, i] = x[b, i]


@compiled
def _cap(first, last, z, cap):  # type: ignore[no-untyped-def]
    for i in range(first * _SHARE, min(last * _SHARE, len(z))):
        z[i] = cap * tanh(z[i] / cap)


@compiled
def _next(first, last, tokens, best, positions):  # type: ignore[no-untyped-def]
    for b in range(len(tokens)):
        tokens[b] = max(best[b], 0)  # below 0 there is no token, and whoever asked will say so
        positions[b] += 1


@compiled
def _keep(first, last, best, kept, count):  # type: ignore[no-untyped-def]
    for b in range(len(best)):
        kept[count[0], b] = best[b]
    count[0] += 1


@compiled
def _best(first, last, z, best):  # type: ignore[no-untyped-def]
    for b in range(first, last):
        row = z[b]
        most, sound = np.full(16, -np.inf, np.float32), np.ones(16, np.int32)
        even = len(row) - len(row) % 16
        for begin in range(0, even, 16):  # sixteen running ones, so that the compiler may compare sixteen at once
            part = row[begin : begin + 16]
            for j in range(16):
                sound[j] &= part[j] == part[j]
                most[j] = part[j] if part[j] > most[j] else most[j]
        top, broken = most[0], sound.min() == 0
        for j in range(1, 16):
            top = max(top, most[j])
        for i in range(even, len(row)):
            broken |= row[i] != row[i]
            top = max(top, row[i])
        best[b] = -1
        if not broken:
            for i in range(len(row)):
                if row[i] == top:
                    best[b] = i
                    break
