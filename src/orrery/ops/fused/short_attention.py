"""Softmax attention of one short text to itself, a head at a time on each thread: reading it on a CPU, in float32.

    y_t = sum_{s: |t - s| <= W} softmax_s( r_t(q_t) . r_s(k_s) / sqrt(K) + b_ts ) v_s;   r: pairs of numbers turned by the position

All of a head, scores included, stays in the caches; keys and values are laid out anew as blocks of
:mod:`orrery.ops.fused.row_tiles`, which multiplies. Torch's fused attention needs some six calls for it. No gradient.

N tokens, H query heads, G key-value heads, K head dimension, R of it rotated.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from orrery.ops.compiled import compiled, dot, expm1, prepare_blocks
from orrery.ops.fused.row_tiles import SIZE, SPARE, install, spared, tiles

_ONE, _LEAST = np.float32(1.0), np.float32(-np.inf)


def short_attention(
    heads: Tensor, groups: int, y: Tensor, bias: Tensor | None = None, turns: Tensor | None = None, window: int | None = None
) -> Any:
    """A function that reads heads and writes y each time it is called.

    Args:
        heads: (N,H+2G,K) float32 contiguous: queries, keys and values. groups: G.
        y: (N,H K), with SPARE more rows behind it that may be overwritten.
        bias: (H,N,N) added to the scores. turns: (N,R/2) complex, by which neighbouring numbers of queries and keys are multiplied.
        window: W, or None.
    """
    length, count, size = heads.shape
    install()
    added = np.zeros((0, 0, 0), np.float32) if bias is None else bias.detach().contiguous().numpy()
    table = np.zeros((0, 0), np.float32) if turns is None else turns.detach().contiguous().numpy().view(np.float32)
    own = count - 2 * groups
    seen = length if window is None else window
    work = own * length * size * (length + 32)
    arrays = [heads.numpy(), spared(y).numpy(), added, table]
    return prepare_blocks(_attend, own, work, *arrays, groups, seen, np.float32(1 / math.sqrt(size)))


@compiled
def _attend(first, last, heads, y, bias, turns, groups, window, scale):  # type: ignore[no-untyped-def]
    rows, count, size = heads.shape
    own, turned = count - 2 * groups, turns.shape[1] if len(turns) > 0 else 0
    columns, parts = -(-rows // SIZE), -(-size // SIZE)
    query = np.empty((rows + SPARE, size), np.float32)
    keys = np.zeros((columns, size, SIZE), np.float32)
    values = np.zeros((parts, rows, SIZE), np.float32)
    scores = np.empty((rows + SPARE, columns * SIZE), np.float32)
    part = np.empty((rows + SPARE, SIZE), np.float32)
    zeros, ones, most = np.zeros(SIZE, np.float32), np.ones(columns * SIZE, np.float32), np.empty(SIZE, np.float32)
    for head in range(first, last):
        group = own + head // (own // groups)
        for t in range(rows):
            q, k, v = heads[t, head], heads[t, group], heads[t, group + groups]
            block, place = t // SIZE, t % SIZE
            for i in range(0, turned, 2):
                real, imaginary = turns[t, i], turns[t, i + 1]
                query[t, i] = (q[i] * real - q[i + 1] * imaginary) * scale
                query[t, i + 1] = (q[i] * imaginary + q[i + 1] * real) * scale
                keys[block, i, place] = k[i] * real - k[i + 1] * imaginary
                keys[block, i + 1, place] = k[i] * imaginary + k[i + 1] * real
            for i in range(turned, size):
                query[t, i] = q[i] * scale
                keys[block, i, place] = k[i]
            for i in range(size):
                values[i // SIZE, t, i % SIZE] = v[i]
        for c in range(columns):
            tiles(query, 0, size, keys, c * size * SIZE, size, zeros, 0, scores, c * SIZE, columns * SIZE, rows)
        for t in range(rows):
            row = scores[t]
            if len(bias) > 0:
                for s in range(rows):
                    row[s] += bias[head, t, s]
            row[rows:] = _LEAST
            row[: max(0, t - window)] = _LEAST
            row[min(rows, t + window + 1) :] = _LEAST
            most[:] = row[:SIZE]
            for c in range(SIZE, columns * SIZE, SIZE):
                for i in range(SIZE):
                    most[i] = row[c + i] if row[c + i] > most[i] else most[i]
            top = most[0]
            for i in range(1, SIZE):
                top = max(top, most[i])
            for s in range(columns * SIZE):
                row[s] = expm1(row[s] - top) + _ONE
            share = _ONE / dot(row, ones)
            for s in range(columns * SIZE):
                row[s] *= share
        for c in range(parts):
            begin = c * SIZE
            here = min(SIZE, size - begin)
            if here == SIZE:
                tiles(scores, 0, columns * SIZE, values, c * rows * SIZE, rows, zeros, 0, y, head * size + begin, own * size, rows)
            else:
                tiles(scores, 0, columns * SIZE, values, c * rows * SIZE, rows, zeros, 0, part, 0, SIZE, rows)
                for t in range(rows):
                    for i in range(here):
                        y[t, head * size + begin + i] = part[t, i]
