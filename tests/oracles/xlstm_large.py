"""xLSTM-7B's mLSTM layer in float64 loops, written from the equations (arXiv 2503.13427, 2405.04517), token by token."""

from __future__ import annotations

import math

import numpy as np


def xlstm_large(parameters, config, x, segments=None):
    """The mixer on x (B,T,D); parameters by name, config as a dict with `width`."""
    p = {name: np.asarray(value, dtype=np.float64) for name, value in parameters.items()}
    V = config["head_dim"]
    H = config["heads"] or config["width"] // V
    K = config["key_dim"] or V // 2
    cap = config["gate_cap"]
    taps = p.get("inputs.conv.weight")
    batch, time, _ = x.shape
    out = np.zeros((batch, time, p["out.weight"].shape[0]))
    for b in range(batch):
        for t in range(time):
            if segments is not None and segments[b, t] < 0:
                continue
            if t == 0 or (segments is not None and segments[b, t] != segments[b, t - 1]):
                C, n, m, window = np.zeros((H, K, V)), np.zeros((H, K)), np.zeros(H), None
            projected = p["inputs.linear.weight"] @ x[b, t]
            if taps is not None:
                window = np.zeros((taps.shape[1], len(projected))) if window is None else window
                window = np.concatenate([window[1:], projected[None]])
                projected = projected + (taps.T * window).sum(0)
            q, k = projected[: 2 * H * K].reshape(2, H, K)
            v, o = projected[2 * H * K : 2 * H * (K + V)].reshape(2, H, V)
            i, f = cap * np.tanh((projected[2 * H * (K + V) :] + p["gate_bias"]).reshape(2, H) / cap)
            y = np.zeros((H, V))
            for h in range(H):
                forget = 1.0 / (1.0 + math.exp(-f[h]))
                C[h] = forget * C[h] + math.exp(i[h]) * np.outer(k[h], v[h])
                n[h] = forget * n[h] + math.exp(i[h]) * k[h]
                m[h] = max(math.log(forget) + m[h], i[h])  # eps stands beside numbers divided by e^m
                query = q[h] / math.sqrt(K)
                y[h] = query @ C[h] / (max(abs(query @ n[h]), 1.0) + config["eps"] * math.exp(m[h]))
                y[h] = (y[h] - y[h].mean()) / math.sqrt(y[h].var() + config["norm_eps"])
            out[b, t] = p["out.weight"] @ (p["norm"] * y.ravel() / (1.0 + np.exp(-o.ravel())))
    return out
