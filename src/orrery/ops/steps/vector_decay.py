"""One token of GLA, HGRN2 or RWKV-6 between its projections, in one compiled pass: decoding on a CPU, in float32.

Equation, per head (2312.06635, 2404.07904, 2404.05892; the mixers of these names have it for whole sequences):

    gla     S = diag(sigmoid(G low + b)^(1/c)) S + k v^T;   o = scale q S;                y = RMSNorm(o) silu(z)
    hgrn2   f = gamma + (1 - gamma) sigmoid(f);  S = diag(f) S + (1 - f) v^T;              o = silu(q) S
    rwkv6   o = r (S + diag(u) k v^T);  S = diag(exp(-exp(d))) S + k v^T;                  y = LayerNorm(o) silu(g)

A head's memory is read and written once while it is in the cache. Prepared once, every call reads its inputs, moves the
memory on in place and writes its output. There is no gradient: what needs one takes the mixer's general path.

B rows, H heads, K key dimension, V value dimension, D width, N mixtures, R rank.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from orrery.ops.compiled import compiled, exp, prepare_blocks, sigmoid, softplus

_ONE = np.float32(1.0)  # in a kernel, a Python 1 would turn float32 into float64


def gla_stepper(
    p: Tensor, memory: Tensor, y: Tensor, gate: tuple[Tensor, Tensor], norm: Tensor, eps: float, gate_norm: float
) -> Callable[[], None]:
    """GLA: p (B, 2 H K + 2 H V + R), memory (B,H,K,V), y (B,H*V), gate (H*K,R) and its bias, norm (V,)."""
    batch, heads, key, _ = memory.shape
    arrays = [t.detach().numpy() for t in (p, memory, y, *gate, norm)]
    numbers = np.float32(eps), np.float32(1 / gate_norm), np.float32(key**-0.5)
    return prepare_blocks(_gla, batch * heads, 2 * memory.numel(), *arrays, *numbers)


def hgrn2_stepper(p: Tensor, memory: Tensor, y: Tensor, bound: Tensor) -> Callable[[], None]:
    """HGRN2: p (B,3 D), memory (B,H,K,K), y (B,D), the lower bounds gamma (D,)."""
    arrays = [t.detach().contiguous().numpy() for t in (bound,)]
    held = [t.numpy() for t in (p, memory, y)]
    return prepare_blocks(_hgrn2, memory.shape[0] * memory.shape[1], 2 * memory.numel(), *held, *arrays)


def shift_stepper(
    now: Tensor, before: Tensor, mixture: Tensor, low: Tensor | None, up: Tensor | None, mixed: Tensor
) -> Callable[[], None]:
    """RWKV-6's token shift: mixed[n] = x + (lambda_n + low_n up_n) (x' - x), from now and before (B,D).

    Args:
        now, before: x and x' (B,D).
        mixture: lambda (N,D). low: (B,N R), up: (N,R,D), or None for mixtures that are the same for every token.
        mixed: (N,B,D), written.
    """
    none = now.new_empty(0, 0)
    arrays = [t.detach().numpy() for t in (now, before, mixture, none if low is None else low)]
    last = [t.detach().numpy() for t in (none[None] if up is None else up, mixed)]
    return prepare_blocks(_shift, len(mixed) * len(now), 0 if up is None else 2 * up.numel(), *arrays, *last)


def rwkv6_stepper(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    memory: Tensor,
    y: Tensor,
    bonus: Tensor,
    norm: tuple[Tensor, Tensor],
    eps: float,
) -> Callable[[], None]:
    """RWKV-6: inputs r, k, v, silu(g), d (B,D) each (d may have one row), memory (B,H,K,K), y (B,D), bonus (H,K), norm (D,)."""
    arrays = [t.detach().numpy() for t in (*inputs, memory, y, bonus, *norm)]
    return prepare_blocks(_rwkv6, memory.shape[0] * memory.shape[1], 2 * memory.numel(), *arrays, np.float32(eps))


@compiled
def _gla(first, last, p, memory, y, gate, bias, norm, eps, power, scale):  # type: ignore[no-untyped-def]
    heads, key, value = memory.shape[1:]
    keys, values, ranks = heads * key, heads * value, gate.shape[1]
    for block in range(first, last):
        b, h = block // heads, block % heads
        token, out = p[b], y[b, h * value : (h + 1) * value]
        q, k = token[h * key : (h + 1) * key], token[keys + h * key : keys + (h + 1) * key]
        v = token[2 * keys + h * value : 2 * keys + (h + 1) * value]
        z = token[2 * keys + values + h * value : 2 * keys + values + (h + 1) * value]
        low = token[2 * keys + 2 * values :]
        for j in range(value):
            out[j] = 0
        for i in range(key):
            raw, weights = bias[h * key + i], gate[h * key + i]
            for n in range(ranks):
                raw += weights[n] * low[n]
            fade = np.float32(exp(-np.float64(softplus(-raw) * power)))
            row, k_i, q_i = memory[b, h, i], k[i], q[i] * scale
            for j in range(value):
                s = fade * row[j] + k_i * v[j]
                row[j] = s
                out[j] += q_i * s
        squares = np.float32(0.0)
        for j in range(value):
            squares += out[j] * out[j]
        size = _ONE / np.sqrt(squares / np.float32(value) + eps)
        for j in range(value):
            out[j] = out[j] * size * norm[j] * z[j] * sigmoid(z[j])


@compiled
def _hgrn2(first, last, p, memory, y, bound):  # type: ignore[no-untyped-def]
    heads, key = memory.shape[1:3]
    width = heads * key
    for block in range(first, last):
        b, h = block // heads, block % heads
        low, high = h * key, (h + 1) * key
        q, f, v = p[b, low:high], p[b, width + low : width + high], p[b, 2 * width + low : 2 * width + high]
        out, least = y[b, low:high], bound[low:high]
        for j in range(key):
            out[j] = 0
        for i in range(key):
            added = (_ONE - least[i]) * sigmoid(-f[i])
            fade, read = least[i] + (_ONE - least[i]) * sigmoid(f[i]), q[i] * sigmoid(q[i])
            row = memory[b, h, i]
            for j in range(key):
                s = fade * row[j] + added * v[j]
                row[j] = s
                out[j] += read * s


@compiled
def _shift(first, last, now, before, mixture, low, up, mixed):  # type: ignore[no-untyped-def]
    batch, width = now.shape
    weight = np.empty(width, now.dtype)
    ranks = low.shape[1] // len(mixture)
    for block in range(first, last):
        n, b = block // batch, block % batch
        x, earlier, out, fixed = now[b], before[b], mixed[n, b], mixture[n]
        for i in range(width):
            weight[i] = fixed[i]
        for r in range(ranks):
            share, row = low[b, n * ranks + r], up[n, r]
            for i in range(width):
                weight[i] += share * row[i]
        for i in range(width):
            out[i] = x[i] + weight[i] * (earlier[i] - x[i])


@compiled
def _rwkv6(first, last, r, k, v, gate, rate, memory, y, bonus, scale, shift, eps):  # type: ignore[no-untyped-def]
    heads, key = memory.shape[1:3]
    for block in range(first, last):
        b, h = block // heads, block % heads
        low, high = h * key, (h + 1) * key
        read, keys, values, z, out = r[b, low:high], k[b, low:high], v[b, low:high], gate[b, low:high], y[b, low:high]
        d = rate[b if len(rate) > 1 else 0, low:high]
        for j in range(key):
            out[j] = 0
        for i in range(key):
            fade, u = np.float32(exp(-exp(np.float64(d[i])))), bonus[h, i]
            row, k_i, r_i = memory[b, h, i], keys[i], read[i]
            for j in range(key):
                new = k_i * values[j]
                out[j] += r_i * (row[j] + u * new)
                row[j] = fade * row[j] + new
        mean = np.float32(0.0)
        for j in range(key):
            mean += out[j]
        mean /= np.float32(key)
        spread = np.float32(0.0)
        for j in range(key):
            spread += (out[j] - mean) * (out[j] - mean)
        size = _ONE / np.sqrt(spread / np.float32(key) + eps)
        for j in range(key):
            out[j] = ((out[j] - mean) * size * scale[low + j] + shift[low + j]) * z[j]
