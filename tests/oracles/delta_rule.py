"""The gated delta rule in float64, one number after another, written from the equations of 2412.06464."""

from __future__ import annotations

import math

import numpy as np


def delta_rule(q, k, v, beta, g_log=None, state=None, starts=None, scale=1.0):
    """q, k (B,T,H,K), v (B,T,H,V), beta and g_log (B,T,H), state (B,H,K,V), starts (B,T) -> y (B,T,H,V), state."""
    (batch, time, heads, key), value = k.shape, v.shape[-1]
    s = np.zeros((batch, heads, key, value)) if state is None else np.array(state, dtype=np.float64)
    y = np.zeros((batch, time, heads, value))
    for b in range(batch):
        for t in range(time):
            for h in range(heads):
                memory = s[b, h]
                if starts is not None and starts[b, t]:
                    memory = np.zeros((key, value))
                keep = 1.0 if g_log is None else math.exp(g_log[b, t, h])
                # alpha S (I - beta k k^T) + beta v k^T, transposed: keys are rows here
                turn = np.eye(key) - beta[b, t, h] * np.outer(k[b, t, h], k[b, t, h])
                memory = keep * (turn @ memory) + beta[b, t, h] * np.outer(k[b, t, h], v[b, t, h])
                s[b, h] = memory
                y[b, t, h] = scale * (q[b, t, h] @ memory)
    return y, s
