"""The vector-decay recurrence in float64, one number after another, from the equations of 2312.06635 and 2404.05892."""

from __future__ import annotations

import math

import numpy as np


def vector_decay(q, k, v, g_log, state=None, starts=None, scale=1.0, bonus=None):
    """q, k, g_log (B,T,H,K), v (B,T,H,V), state (B,H,K,V), starts (B,T), bonus (H,K) -> y (B,T,H,V), state."""
    (batch, time, heads, key), value = k.shape, v.shape[-1]
    s = np.zeros((batch, heads, key, value)) if state is None else np.array(state, dtype=np.float64)
    y = np.zeros((batch, time, heads, value))
    for b in range(batch):
        for t in range(time):
            for h in range(heads):
                if starts is not None and starts[b, t]:
                    s[b, h] = 0.0
                for c in range(key):
                    added = k[b, t, h, c] * v[b, t, h]
                    if bonus is not None:
                        y[b, t, h] += scale * q[b, t, h, c] * (s[b, h, c] + bonus[h, c] * added)
                    s[b, h, c] = math.exp(g_log[b, t, h, c]) * s[b, h, c] + added
                    if bonus is None:
                        y[b, t, h] += scale * q[b, t, h, c] * s[b, h, c]
    return y, s
