"""The mLSTM recurrence as a float64 loop without a stabiliser (arXiv 2405.04517, equations 19 to 27).

With eps the denominator is that of the stabilised form, where eps stands beside numbers divided by e^m; m is the running
maximum max(m + f, i) from 0 on.
"""

from __future__ import annotations

import numpy as np


def mlstm_cell(q, k, v, i_log, f_log, starts=None, scale=1.0, eps=0.0):
    """q, k (B,T,H,K), v (B,T,H,V), gates (B,T,H) -> h (B,T,H,V), C (B,H,K,V), n (B,H,K), m (B,H), all unscaled."""
    batch, time, heads, keys = q.shape
    h = np.zeros(v.shape)
    C, n, m = np.zeros((batch, heads, keys, v.shape[-1])), np.zeros((batch, heads, keys)), np.zeros((batch, heads))
    for b in range(batch):
        for t in range(time):
            if starts is not None and starts[b, t]:
                C[b], n[b], m[b] = 0.0, 0.0, 0.0
            for a in range(heads):
                forget, write = np.exp(f_log[b, t, a]), np.exp(i_log[b, t, a])
                C[b, a] = forget * C[b, a] + write * np.outer(k[b, t, a], v[b, t, a])
                n[b, a] = forget * n[b, a] + write * k[b, t, a]
                m[b, a] = max(f_log[b, t, a] + m[b, a], i_log[b, t, a])
                query = scale * q[b, t, a]
                h[b, t, a] = query @ C[b, a] / (max(abs(query @ n[b, a]), 1.0) + eps * np.exp(m[b, a]))
    return h, C, n, m
