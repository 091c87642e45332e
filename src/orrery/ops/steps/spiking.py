"""One token of units that send events, between their linear maps, as compiled passes: decoding on a CPU, in float32.

    EGRU (2206.06178):        z = sigmoid(a + z'), r = sigmoid(b + r'), g = tanh(d + r m);  c = z h + (1 - z) g
                              y = c, h = c - theta  where c > theta;  y = 0, h = c  elsewhere
    astrocytes (2312.07625):  u <- a u + v, s = u > theta;  c <- b c + (1 - b) s e^{min(k, most)};  y = s sigmoid(w c + e) sigmoid(r)

No gradient. B batch, H units.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from orrery.ops.compiled import compiled, exp, prepare_blocks, sigmoid, tanh
from orrery.ops.steps.row_linear import array

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


def event_step(gates: Tensor, product: Tensor, theta: Tensor, h: Tensor, y: Tensor) -> Callable[[], None]:
    """A function that moves an EGRU on: h and y (B,H), potentials and what is sent, overwritten.

    Args:
        gates: (B,3H) a, b, d. product: (B,3H) z', r', m; both written before each call. theta: (H,).
    """
    return prepare_blocks(_event, len(h), 0, *(array(t, h) for t in (gates, product, theta, h, y)))


def astrocyte_step(
    v: Tensor, k: Tensor, r: Tensor, theta: Tensor, rates: Tensor, gain: Tensor, potential: Tensor, calcium: Tensor, y: Tensor, most: float
) -> Callable[[], None]:
    """A function that moves neurons and astrocytes on.

    Args:
        v, k, r: (B,H), written before each call. theta: (H,). rates: (2,H) or (1,H), a and b. gain: (2,H) or (0,H), w and e; without
            b and gain there is no astrocyte.
        potential, calcium: (B,H), overwritten. y: (B,H), the result. most: of k.
    """
    arrays = (array(t, v) for t in (v, k, r, theta, rates, gain, potential, calcium, y))
    return prepare_blocks(_astrocyte, len(v), 0, *arrays, np.float32(most))


@compiled
def _event(first, last, gates, product, theta, h, y):  # type: ignore[no-untyped-def]
    width = h.shape[1]
    for b in range(first, last):
        given, inner = gates[b], product[b]
        for i in range(width):
            z = sigmoid(given[i] + inner[i])
            g = tanh(given[2 * width + i] + sigmoid(given[width + i] + inner[width + i]) * inner[2 * width + i])
            c = z * h[b, i] + (_ONE - z) * g
            y[b, i] = c if c > theta[i] else _ZERO
            h[b, i] = c - theta[i] if c > theta[i] else c


@compiled
def _astrocyte(first, last, v, k, r, theta, rates, gain, potential, calcium, y, most):  # type: ignore[no-untyped-def]
    for b in range(first, last):
        for i in range(v.shape[1]):
            u = rates[0, i] * potential[b, i] + v[b, i]
            potential[b, i] = u
            s = _ONE if u > theta[i] else _ZERO
            if len(gain) > 0:
                c = rates[1, i] * calcium[b, i] + (_ONE - rates[1, i]) * s * exp(min(k[b, i], most))
                calcium[b, i] = c
                s *= sigmoid(gain[0, i] * c + gain[1, i])
            y[b, i] = s * sigmoid(r[b, i])
