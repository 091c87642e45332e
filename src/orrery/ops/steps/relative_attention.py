"""Transformer-XL's attention of one token over its memory, as one compiled pass: decoding on a CPU, in float32.

    cache <- k, v;   a_s = ((q + u) . k_s + (q + w) . r_{t-s}) / sqrt(K)   for 0 <= t - s < S;   y = sum_s softmax_s(a_s) v_s

The cache is a ring of S slots, the token itself and its memory: the key of position p lies in slot p mod S (1901.02860).
Rows may stand at different positions. No gradient.

B batch, S slots, H heads, K head dimension.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from orrery.ops.compiled import compiled, dot, exp, prepare_blocks
from orrery.ops.steps.attention import _most
from orrery.ops.steps.row_linear import array


def relative_attention_step(
    p: Tensor, k: Tensor, v: Tensor, positions: Tensor, content: Tensor, position: Tensor, relative: Tensor, y: Tensor
) -> Callable[[], None]:
    """A function that takes one token of every row further each time it is called.

    Args:
        p: (B,3HK), queries, keys, values; written before each call.
        k, v: (B,H,K,S), the caches, overwritten.
        positions: (B,) int64, of the token, raised before each call.
        content, position: (H,K), u and w. relative: (H,K,S), r of every distance.
        y: (B,H*K), the result.
    """
    arrays = [array(t, p) for t in (p, k, v, positions, content, position, relative, y)]
    return prepare_blocks(_step, k.shape[0] * k.shape[1], 6 * k.numel(), *arrays)


@compiled
def _step(first, last, p, k, v, positions, content, position, relative, y):  # type: ignore[no-untyped-def]
    heads, size, slots = k.shape[1:]
    scale = np.float32(1.0 / np.sqrt(np.float64(size)))
    scores, apart, ones = np.empty(slots, np.float32), np.empty(slots, np.float32), np.ones(slots, np.float32)
    for block in range(first, last):
        b, h = block // heads, block % heads
        at = positions[b]
        slot, count = at % slots, min(at + 1, slots)
        keys, values, by_distance = k[b, h], v[b, h], relative[h]
        query, key, value = h * size, (heads + h) * size, (2 * heads + h) * size
        found, far = scores[:count], apart[:count]
        found[:], far[:] = 0.0, 0.0
        for i in range(size):
            keys[i, slot], values[i, slot] = p[b, key + i], p[b, value + i]
            near, along = (p[b, query + i] + content[h, i]) * scale, (p[b, query + i] + position[h, i]) * scale
            one, other = keys[i, :count], by_distance[i, :count]
            for n in range(count):
                found[n] += near * one[n]
                far[n] += along * other[n]
        for n in range(slot + 1):
            found[n] += far[slot - n]
        for n in range(slot + 1, count):
            found[n] += far[slot - n + slots]
        top = _most(found)
        for n in range(count):
            found[n] = np.float32(exp(np.float64(found[n] - top)))
        inverse, out = np.float32(1.0) / dot(found, ones[:count]), y[b, query : query + size]
        for i in range(size):
            out[i] = inverse * dot(found, values[i, :count])
