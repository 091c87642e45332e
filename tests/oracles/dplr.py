"""The diagonal-plus-low-rank recurrence in float64, one token and head at a time, from equation (3) of 2503.14456."""

from __future__ import annotations

import numpy as np


def dplr(q, k, v, a, b, g_log, state=None, starts=None, scale=1.0):
    """q, k, a, b, g_log (B,T,H,K), v (B,T,H,V), state (B,H,K,V), starts (B,T) -> y (B,T,H,V), state."""
    (batch, time, heads, key), value = k.shape, v.shape[-1]
    s = np.zeros((batch, heads, key, value)) if state is None else np.array(state, dtype=np.float64)
    y = np.zeros((batch, time, heads, value))
    for r in range(batch):
        for t in range(time):
            for h in range(heads):
                memory = np.zeros((key, value)) if starts is not None and starts[r, t] else s[r, h]
                transition = np.diag(np.exp(g_log[r, t, h])) + np.outer(b[r, t, h], a[r, t, h])
                memory = transition @ memory + np.outer(k[r, t, h], v[r, t, h])
                s[r, h] = memory
                y[r, t, h] = scale * (q[r, t, h] @ memory)
    return y, s


def vector_delta_rule(q, k, v, beta, g_log, state=None, starts=None, scale=1.0):
    """The delta rule with a decay per channel, (I - beta k k^T) diag(alpha), from equation (1) of 2510.26692."""
    (batch, time, heads, key), value = k.shape, v.shape[-1]
    s = np.zeros((batch, heads, key, value)) if state is None else np.array(state, dtype=np.float64)
    y = np.zeros((batch, time, heads, value))
    for r in range(batch):
        for t in range(time):
            for h in range(heads):
                memory = np.zeros((key, value)) if starts is not None and starts[r, t] else s[r, h]
                turn = np.eye(key) - beta[r, t, h] * np.outer(k[r, t, h], k[r, t, h])
                memory = turn @ np.diag(np.exp(g_log[r, t, h])) @ memory
                memory = memory + beta[r, t, h] * np.outer(k[r, t, h], v[r, t, h])
                s[r, h] = memory
                y[r, t, h] = scale * (q[r, t, h] @ memory)
    return y, s
