"""Softmax attention of one token over cached keys and values, as one compiled pass: decoding on a CPU, in float32.

    k, q = turned by the token's position (after their norms);  cache <- k, v;  y = sum_s softmax_s(q . k_s / sqrt(K)) v_s
    with a gate z:  y <- sigmoid(z) y,  z of the size of y or one number a head

The cache is a ring of S slots: the key of position p lies in slot p mod S, so that a sliding window of S needs no moving;
without a window S is large enough for every position. Its slots lie next to each other, so that both loops over them run
along memory. Rows may stand at different positions. No gradient.

B batch, S slots, H query heads, G key-value heads, K head dimension, R rotated dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from orrery.ops.compiled import compiled, dot, exp, inlined, prepare_blocks, sigmoid
from orrery.ops.steps.row_linear import array


def attention_step(
    p: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    table: Tensor,
    y: Tensor,
    norms: tuple[Tensor, Tensor, float] | None = None,
    scale: float | None = None,
) -> Callable[[], None]:
    """A function that takes one token of every row further each time it is called.

    Args:
        p: (B,(H+2G)K), queries, keys, values as the projection leaves them, or (B,(2H+2G)K) or (B,(H+2G)K+H) with a gate
            behind them; written before each call.
        k, v: (B,G,K,S), the caches, overwritten.
        positions: (B,) int64, of the token, raised before each call.
        table: (P,R/2) complex, row p mod P the turns of position p; R may be 0.
        y: (B,H*K), the result.
        norms: weights of the RMSNorms of queries and keys, (K,) each or (H*K,) and (G*K,) over all heads together, and
            their eps; None for none.
        scale: of the scores; None: 1/sqrt(K).
    """
    q_gain, k_gain, eps = norms or (None, None, 0.0)
    arrays = [array(t, p) for t in (p, k, v, positions, torch.view_as_real(table), q_gain, k_gain, y)]
    return prepare_blocks(_step, k.shape[0] * k.shape[1], 4 * k.numel(), *arrays, eps, np.float32(scale or k.shape[2] ** -0.5))


@inlined
def _most(x):  # type: ignore[no-untyped-def]
    """The greatest number of x; sixteen running ones, so that the compiler may compare sixteen at once."""
    lanes = np.full(16, -np.inf, np.float32)
    even = len(x) - len(x) % 16
    for begin in range(0, even, 16):
        part = x[begin : begin + 16]
        for j in range(16):
            lanes[j] = part[j] if part[j] > lanes[j] else lanes[j]
    most = lanes[0]
    for j in range(1, 16):
        most = max(most, lanes[j])
    for i in range(even, len(x)):
        most = max(most, x[i])
    return most


@compiled
def _step(first, last, p, k, v, positions, table, q_gain, k_gain, y, eps, scale):  # type: ignore[no-untyped-def]
    groups, size, slots = k.shape[1:]
    heads, half = y.shape[1] // size, table.shape[1]
    share = heads // groups
    gate = (heads + 2 * groups) * size
    turned, scores, ones = np.empty(size, np.float32), np.empty(slots, np.float32), np.ones(slots, np.float32)
    for block in range(first, last):
        b, g = block // groups, block % groups
        at = positions[b]
        slot, count, row = at % slots, min(at + 1, slots), at % len(table)
        keys, values, new = k[b, g], v[b, g], (heads + groups + g) * size
        for i in range(size):
            values[i, slot] = p[b, new + i]
        for h in range(-1, share):  # -1: the key, which every query of the group meets
            head = heads + g if h < 0 else g * share + h
            turned[:] = p[b, head * size : (head + 1) * size]
            gain = k_gain if h < 0 else q_gain
            if len(gain) > 0:
                begin = head * size if len(gain) == size else (heads * size if h < 0 else 0)
                normed, weights = p[b, begin : begin + len(gain)], gain
                if len(gain) > size:
                    weights = gain[head * size - begin : (head + 1) * size - begin]
                inverse = np.float32(1.0 / np.sqrt(np.float64(dot(normed, normed)) / len(gain) + eps))
                for i in range(size):
                    turned[i] *= inverse * weights[i]
            for i in range(half):
                c, s, even, odd = table[row, i, 0], table[row, i, 1], turned[2 * i], turned[2 * i + 1]
                turned[2 * i] = even * c - odd * s
                turned[2 * i + 1] = even * s + odd * c
            if h < 0:
                for i in range(size):
                    keys[i, slot] = turned[i]
                continue
            found = scores[:count]
            found[:] = 0.0
            for i in range(0, size, 2):
                a, c, one, two = turned[i] * scale, turned[i + 1] * scale, keys[i, :count], keys[i + 1, :count]
                for n in range(count):
                    found[n] += a * one[n] + c * two[n]
            most = _most(found)
            for n in range(count):
                found[n] = np.float32(exp(np.float64(found[n] - most)))
            mass = dot(found, ones[:count])
            inverse = np.float32(1.0) / mass
            out = y[b, head * size : (head + 1) * size]
            for i in range(size):
                out[i] = inverse * dot(found, values[i, :count])
            if p.shape[1] == gate + heads:
                one = sigmoid(p[b, gate + head])
                for i in range(size):
                    out[i] *= one
            elif p.shape[1] > gate:
                z = p[b, gate + head * size : gate + (head + 1) * size]
                for i in range(size):
                    out[i] *= sigmoid(z[i])
