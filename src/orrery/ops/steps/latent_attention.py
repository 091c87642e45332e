"""Latent attention of one token over its compressed cache, as one compiled pass: decoding on a CPU, in float32.

    c = RMSNorm(c'), r turned by the token's position;  cache <- [c, r];  per head, with the query [a, b], a turned:
    u = [W_k^T b, a];  m = sum_s softmax_s( u . cache_s / sqrt(R + N) ) c_s;  y = W_v m;  with a gate z: y <- sigmoid(z) y

Nothing is expanded: W_k and W_v are read once for the token, not once for a cached one. The cache is a ring of S slots: position p
lies in slot p mod S, so that a sliding window of S needs no moving; without a window S is large enough for every position. A
block is one head of one row; each makes the new slot for itself, and the first head writes it, so that none waits for another.
Rows may stand at different positions. No gradient.

B batch, S slots, H heads, N own part of a head's key, R shared part, V value size, C rank.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from orrery.ops.compiled import compiled, dot, exp, inlined, prepare_blocks, sigmoid
from orrery.ops.steps.row_linear import array


def latent_step(
    q: Tensor, p: Tensor, begin: int, cache: Tensor, positions: Tensor, table: Tensor, weight: Tensor, norm: tuple[Tensor, float], y: Tensor,
    scale: float | None = None,
) -> Callable[[], None]:
    """A function that takes one token of every row further each time it is called.

    Args:
        q: (B,H*(R+N)) or wider: queries, head by head [a, b]; written before each call.
        p: (B,P), with c' and r (C+R numbers) from number `begin` on and, where P goes on, a gate per head; may be q.
        cache: (B,S,C+R), overwritten.
        positions: (B,) int64, of the token, raised before each call.
        table: (P',R/2) complex, row p mod P' the turns of position p; (P',0) turns nothing.
        weight: (H,N+V,C), W_k and W_v of every head.
        norm: its weight (C,), and eps.
        y: (B,H*V), the result.
        scale: of the scores; None: 1/sqrt(R + N).
    """
    gain, eps = norm
    arrays = [array(t, y) for t in (cache, positions, torch.view_as_real(table), weight, gain, y)]
    work = weight.numel() + 2 * len(weight) * cache.numel()
    size = weight.shape[1] - y.shape[1] // len(weight) + cache.shape[2] - weight.shape[2]
    scaled = np.float32(scale or size**-0.5)
    return prepare_blocks(_step, cache.shape[0] * len(weight), work, q.numpy(), p.numpy(), begin, *arrays, eps, scaled)


@inlined
def _turn(x, angles):  # type: ignore[no-untyped-def]
    for i in range(len(angles)):
        c, s, even, odd = angles[i, 0], angles[i, 1], x[2 * i], x[2 * i + 1]
        x[2 * i] = even * c - odd * s
        x[2 * i + 1] = even * s + odd * c


@compiled
def _step(first, last, q, p, begin, cache, positions, table, weight, gain, y, eps, scale):  # type: ignore[no-untyped-def]
    batch, slots, wide = cache.shape
    heads, both, rank = weight.shape
    shared, values = wide - rank, y.shape[1] // heads
    own = both - values
    size, gate = shared + own, begin + wide
    new, asked = np.empty(wide, np.float32), np.empty(wide, np.float32)
    scores, mean = np.empty(slots, np.float32), np.empty(rank, np.float32)
    for block in range(first, last):
        h, b = block // batch, block % batch
        at = positions[b]
        slot, count = at % slots, min(at + 1, slots)
        given = p[b, begin : begin + rank]
        inverse = np.float32(1.0 / np.sqrt(np.float64(dot(given, given)) / rank + eps))
        for i in range(rank):
            new[i] = given[i] * inverse * gain[i]
        for i in range(shared):
            new[rank + i] = p[b, begin + rank + i]
            asked[rank + i] = q[b, h * size + i] * scale
        turns = table[at % len(table)]
        _turn(new[rank:], turns)
        _turn(asked[rank:], turns)
        if h == 0:
            cache[b, slot, :] = new
        u = asked[:rank]
        u[:] = 0.0
        for n in range(own):
            share, row = q[b, h * size + shared + n] * scale, weight[h, n]
            for i in range(rank):
                u[i] += share * row[i]
        most = np.float32(-np.inf)
        for s in range(count):
            scores[s] = dot(asked, new if s == slot else cache[b, s])
            most = max(most, scores[s])
        mean[:] = 0.0
        mass = np.float32(0.0)
        for s in range(count):
            share, row = np.float32(exp(np.float64(scores[s] - most))), new if s == slot else cache[b, s]
            mass += share
            for i in range(rank):
                mean[i] += share * row[i]
        inverse = np.float32(1.0) / mass
        if p.shape[1] > gate:
            inverse *= sigmoid(p[b, gate + h])
        for v in range(values):
            y[b, h * values + v] = inverse * dot(mean, weight[h, own + v])
