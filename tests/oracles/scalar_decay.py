"""The scalar-decay recurrence in float64 loops, written from the equation."""

from __future__ import annotations

import math

import numpy as np


def scalar_decay(q, k, v, g_log, state=None, starts=None, scale=1.0, beta=None, skip=None):
    """q, k (B,T,G,K), v (B,T,H,V), g_log and beta (B,T,H), state (B,H,K,V), starts (B,T), skip (H,) -> y (B,T,H,V), state."""
    batch, time, heads, values = v.shape
    groups, keys = q.shape[2:]
    out = np.zeros((batch, time, heads, values))
    after = np.zeros((batch, heads, keys, values))
    for b in range(batch):
        for h in range(heads):
            g = h // (heads // groups)
            S = np.zeros((keys, values)) if state is None else np.array(state[b, h], dtype=np.float64)
            for t in range(time):
                decay = 0.0 if starts is not None and starts[b, t] else math.exp(float(g_log[b, t, h]))
                strength = 1.0 if beta is None else float(beta[b, t, h])
                for i in range(keys):
                    kept = decay * S[i] if decay else np.zeros(values)
                    S[i] = kept + strength * float(k[b, t, g, i]) * v[b, t, h].astype(np.float64)
                y = np.zeros(values)
                for i in range(keys):
                    y += scale * float(q[b, t, g, i]) * S[i]
                out[b, t, h] = y if skip is None else y + float(skip[h]) * v[b, t, h].astype(np.float64)
            after[b, h] = S
    return out, after
