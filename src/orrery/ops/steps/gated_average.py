"""One token of the gated averages between their projections, as compiled loops that are called again and again.

    QRNN (1611.01576):    c = f c + (1 - f) tanh(z), or f c + i tanh(z);  y = c, or o c
    minGRU (2410.01201):  h = (1 - z) h + z g(v);  minLSTM: z = sigmoid(softplus(-f) - softplus(-i)) of its two gates
    HGRN (2311.04823):    h = a e^{i theta} h + w silu(c);  a = gamma + (1 - gamma) f,  w = (1 - gamma)(1 - f);  y = sigmoid(g) h

Each function looks its arrays up once and returns a function of no arguments, which reads and writes them in place (for
:mod:`orrery.ops.steps.row_linear`, which says why). Float32 on a CPU, no gradient.

B batch, H hidden size, D width, K window.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from orrery.ops.compiled import compiled, prepare_blocks, sigmoid, softplus, tanh
from orrery.ops.steps.row_linear import array

_ONE, _HALF, _ZERO = np.float32(1.0), np.float32(0.5), np.float32(0.0)  # in a kernel, a Python 1 would turn float32 into float64


def window_step(h: Tensor, near: Tensor) -> Callable[[], None]:
    """A function that moves near (B,K*D) on by one token, oldest first, and puts h (B,D) at its end."""
    return prepare_blocks(_shift, len(h), 0, h.numpy(), near.numpy())


def qrnn_step(p: Tensor, c: Tensor, y: Tensor, add: bool) -> Callable[[], None]:
    """p (B,2H), (B,3H) or (B,4H): z, f, o, i as they are projected. c (B,H), overwritten. y (B,H), added to with `add`."""
    return prepare_blocks(_qrnn, len(p), 0, p.numpy(), c.numpy(), y.numpy(), add)


def mingru_step(p: Tensor, h: Tensor) -> Callable[[], None]:
    """p (B,2H) v and the gate, or (B,3H) v and the gates k, k' of minLSTM. h (B,H), overwritten: the output as well."""
    return prepare_blocks(_mingru, len(p), 0, p.numpy(), h.numpy())


def hgrn_step(p: Tensor, h: Tensor, angle: Tensor, bound: Tensor | None, y: Tensor) -> Callable[[], None]:
    """p (B,5H): c's parts, f, g's parts. h (B,2H), real parts first, overwritten. angle, bound (the logit of gamma) (H,). y (B,2H)."""
    turns = torch.stack([angle.detach().double().cos(), angle.detach().double().sin()]).float()
    least = None if bound is None else torch.sigmoid(bound.detach())
    return prepare_blocks(_hgrn, len(p), 0, p.numpy(), h.numpy(), turns.numpy(), array(least, p), y.numpy())


@compiled
def _shift(first, last, h, near):  # type: ignore[no-untyped-def]
    width = h.shape[1]
    for b in range(first, last):
        for i in range(near.shape[1] - width):
            near[b, i] = near[b, i + width]
        for i in range(width):
            near[b, near.shape[1] - width + i] = h[b, i]


@compiled
def _qrnn(first, last, p, c, y, add):  # type: ignore[no-untyped-def]
    hidden = c.shape[1]
    parts = p.shape[1] // hidden
    for b in range(first, last):
        z, f, held = p[b, :hidden], p[b, hidden : 2 * hidden], c[b]
        o, i_gate = p[b, (min(parts, 3) - 1) * hidden :], p[b, (parts - 1) * hidden :]
        for i in range(hidden):
            write = sigmoid(i_gate[i]) if parts == 4 else sigmoid(-f[i])
            held[i] = sigmoid(f[i]) * held[i] + write * tanh(z[i])
            out = sigmoid(o[i]) * held[i] if parts > 2 else held[i]
            y[b, i] = y[b, i] + out if add else out


@compiled
def _mingru(first, last, p, h):  # type: ignore[no-untyped-def]
    hidden = h.shape[1]
    both = p.shape[1] > 2 * hidden
    for b in range(first, last):
        v, k, other, held = p[b, :hidden], p[b, hidden : 2 * hidden], p[b, p.shape[1] - hidden :], h[b]
        for i in range(hidden):
            raw = softplus(-k[i]) - softplus(-other[i]) if both else k[i]
            g = v[i] + _HALF if v[i] >= _ZERO else sigmoid(v[i])
            held[i] = sigmoid(-raw) * held[i] + sigmoid(raw) * g


@compiled
def _hgrn(first, last, p, h, turns, least, y):  # type: ignore[no-untyped-def]
    hidden = turns.shape[1]
    for b in range(first, last):
        for i in range(hidden):
            gamma = least[i] if len(least) > 0 else _ZERO
            f = p[b, 2 * hidden + i]
            a, w = gamma + (_ONE - gamma) * sigmoid(f), (_ONE - gamma) * sigmoid(-f)
            real, imaginary, c, d = h[b, i], h[b, hidden + i], p[b, i], p[b, hidden + i]
            cos, sin = a * turns[0, i], a * turns[1, i]
            one = (real * cos - imaginary * sin) + w * c * sigmoid(c)
            two = (real * sin + imaginary * cos) + w * d * sigmoid(d)
            h[b, i], h[b, hidden + i] = one, two
            y[b, i] = sigmoid(p[b, 3 * hidden + i]) * one
            y[b, hidden + i] = sigmoid(p[b, 4 * hidden + i]) * two
