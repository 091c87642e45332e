"""One token of Lizard's mixer (arXiv 2507.09025) between its projections, in one compiled pass: decoding on a CPU, in float32.

    phi(x) = [exp(x A), exp(-x A)], or [softmax(x A), softmax(-x A)];  S = sigmoid(g) S + phi(k) [v, 1]^T;  [far, w] = phi(q) S
    near = softmax attention to the last W tokens and the sinks, whose logarithm of the denominator is t
    y = near + sigmoid(log w - t) (far / w - near),  or far / w + alpha near,  or far + alpha near

A head's memory is read and written once. The window is a ring of W slots: the key of position p lies in slot p mod W. Prepared
once for a whole decoding (:mod:`orrery.nn.stepping`); the mixer says the same in torch, for gradients, other types and devices.

B rows, H heads, K head dimension, F features (2 F numbers of phi), W window, P positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from orrery.ops.compiled import compiled, dot, exp, inlined, prepare_blocks, sigmoid
from orrery.ops.steps.row_linear import array

JOINS = ("joint", "row", "none")
"""How memory and window are put together, in the order of the equation."""


class LizardWeights(NamedTuple):
    """maps A (2,H,K,F) of queries and keys, sinks (H,s) or None, alpha (), or None where it is joint; whether phi is a softmax;
    one of JOINS; the greatest size of x A; the least denominator."""

    maps: Tensor
    sinks: Tensor | None
    alpha: Tensor | None
    softmax: bool
    join: str
    highest: float
    least: float


def lizard_stepper(
    p: Tensor, gate: Tensor, memory: Tensor, window: tuple[Tensor, Tensor], positions: Tensor, table: Tensor, y: Tensor, weights: LizardWeights
) -> Callable[[], None]:
    """A function that takes one token of every row further each time it is called.

    Args:
        p: (B,3HK), queries, keys, values as the projection leaves them. gate: g (B,H) or (B,1).
        memory: (B,H,2F,K+1), moved on. window: keys and values (B,H,K,W), rings, moved on.
        positions: (B,) int64, of the token. table: (P,K/2) complex, row p mod P the turns of position p, or (0,0) for none.
        y: (B,HK), the result.
    """
    alpha = p.new_zeros(1) if weights.alpha is None else weights.alpha.reshape(1)
    sinks = p.new_zeros(weights.maps.shape[1], 0) if weights.sinks is None else weights.sinks
    held = (p, gate, memory, *window, positions, torch.view_as_real(table), weights.maps, sinks, alpha, y)
    numbers = weights.softmax, JOINS.index(weights.join), np.float32(weights.highest), np.float32(weights.least)
    return prepare_blocks(_step, memory.shape[0] * memory.shape[1], 4 * memory.numel(), *(array(t, p) for t in held), *numbers)


def ring(cached: Tensor, positions: Tensor) -> Tensor:
    """The last W-1 tokens (B,W-1,H,K), the newest last, of rows that stand at `positions` (B,), as a ring (B,H,K,W)."""
    batch, past, heads, size = cached.shape
    found = cached.new_zeros(batch, heads, size, past + 1, dtype=torch.float32)
    back = torch.arange(1, past + 1)
    for b, position in enumerate(positions.tolist()):
        kept = back[:position]
        found[b, :, :, (position - kept) % (past + 1)] = cached[b, past - kept].permute(1, 2, 0).float()
    return found


@inlined
def _phi(x, maps, softmax, highest, out):  # type: ignore[no-untyped-def]
    features = maps.shape[1]
    u = out[:features]
    u[:] = np.float32(0.0)
    for i in range(len(x)):
        row, value = maps[i], x[i]
        for f in range(features):
            u[f] += value * row[f]
    high, low = np.float64(0.0), np.float64(0.0)
    for f in range(features):
        u[f] = min(max(u[f], -highest), highest)
    if softmax:
        high, low = np.float64(u[0]), np.float64(u[0])
        for f in range(1, features):
            high, low = max(high, np.float64(u[f])), min(low, np.float64(u[f]))
    for f in range(features):
        v = np.float64(u[f])
        out[f], out[features + f] = np.float32(exp(v - high)), np.float32(exp(low - v))
    if softmax:
        above, below = np.float32(0.0), np.float32(0.0)
        for f in range(features):
            above += out[f]
            below += out[features + f]
        for f in range(features):
            out[f] /= above
            out[features + f] /= below


@inlined
def _turn(x, table, at):  # type: ignore[no-untyped-def]
    for i in range(table.shape[1]):
        c, s, even, odd = table[at, i, 0], table[at, i, 1], x[2 * i], x[2 * i + 1]
        x[2 * i] = even * c - odd * s
        x[2 * i + 1] = even * s + odd * c


@compiled
def _step(  # type: ignore[no-untyped-def]
    first, last, p, gate, memory, keys, values, positions, table, maps, sinks, alpha, y, softmax, join, highest, least
):
    heads, twice, wide = memory.shape[1:]
    size, slots = wide - 1, keys.shape[3]
    q, k, v = np.empty(size, np.float32), np.empty(size, np.float32), np.ones(wide, np.float32)
    of_q, of_k, read = np.empty(twice, np.float32), np.empty(twice, np.float32), np.empty(wide, np.float32)
    scores, ones = np.empty(slots, np.float32), np.ones(slots, np.float32)
    for block in range(first, last):
        b, h = block // heads, block % heads
        low = h * size
        q[:], k[:] = p[b, low : low + size], p[b, (heads * size) + low : (heads * size) + low + size]
        v[:size] = p[b, 2 * heads * size + low : 2 * heads * size + low + size]
        _phi(q, maps[0, h], softmax, highest, of_q)
        _phi(k, maps[1, h], softmax, highest, of_k)
        keep = sigmoid(gate[b, h if gate.shape[1] > 1 else 0])
        read[:] = np.float32(0.0)
        for f in range(twice):
            row, key, query = memory[b, h, f], of_k[f], of_q[f]
            for j in range(wide):
                s = keep * row[j] + key * v[j]
                row[j] = s
                read[j] += query * s
        at = positions[b]
        slot, count = at % slots, min(at + 1, slots)
        if len(table) > 0:
            _turn(q, table, at % len(table))
            _turn(k, table, at % len(table))
        found, scale = scores[:count], np.float32(1.0 / np.sqrt(np.float64(size)))
        found[:] = np.float32(0.0)
        for i in range(size):
            keys[b, h, i, slot], values[b, h, i, slot] = k[i], v[i]
            row, value = keys[b, h, i, :count], q[i] * scale
            for n in range(count):
                found[n] += value * row[n]
        most = np.float32(-np.inf)
        for n in range(count):
            most = max(most, found[n])
        for n in range(sinks.shape[1]):
            most = max(most, sinks[h, n])
        for n in range(count):
            found[n] = np.float32(exp(np.float64(found[n] - most)))
        mass = np.float64(dot(found, ones[:count]))
        for n in range(sinks.shape[1]):
            mass += exp(np.float64(sinks[h, n] - most))
        weight, inverse = max(read[size], least), np.float32(1.0 / mass)
        share = np.float32(sigmoid(np.log(np.float64(weight)) - (np.float64(most) + np.log(mass))))
        out = y[b, low : low + size]
        for i in range(size):
            near = inverse * dot(found, values[b, h, i, :count])
            far = read[i] if join == 2 else read[i] / weight
            out[i] = near + share * (far - near) if join == 0 else far + alpha[0] * near
