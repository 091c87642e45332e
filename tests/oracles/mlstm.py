"""The mLSTM layer in float64 loops, written from the equations (arXiv 2405.04517), token by token."""

from __future__ import annotations

import math

import numpy as np


def _silu(x):
    return x / (1.0 + np.exp(-x))


def mlstm(parameters, config, x, segments=None):
    """The mixer on x (B,T,D); parameters by name, config as a dict with `width`."""
    p = {name: np.asarray(value, dtype=np.float64) for name, value in parameters.items()}
    E, H, P = config["inner"] or 2 * config["width"], config["heads"], config["block"]
    K, taps = E // H, p["conv.weight"]
    batch, time, _ = x.shape
    out = np.zeros((batch, time, config["width"]))
    for b in range(batch):
        for t in range(time):
            if segments is not None and segments[b, t] < 0:
                continue
            if t == 0 or (segments is not None and segments[b, t] != segments[b, t - 1]):
                C, n, m, window = np.zeros((H, K, K)), np.zeros((H, K)), np.zeros(H), np.zeros((taps.shape[1], E))
            projected = p["inputs.linear.weight"] @ x[b, t]
            u, z = projected[:E], projected[E:]
            window = np.concatenate([window[1:], u[None]])
            smooth = _silu((taps.T * window).sum(0) + p["conv.bias"])
            parts = []
            for source, blocks in zip((smooth, smooth, u), p["blocks"], strict=True):
                parts.append(np.concatenate([source[j * P : (j + 1) * P] @ blocks[j] for j in range(E // P)]))
            gates = p["gates.weight"] @ np.concatenate(parts) + p["gates.bias"]
            q, k, v = (part.reshape(H, K) for part in parts)
            y = np.zeros((H, K))
            for a in range(H):
                write, forget = math.exp(gates[a]), 1.0 / (1.0 + math.exp(-gates[H + a]))
                C[a] = forget * C[a] + write * np.outer(k[a], v[a])
                n[a] = forget * n[a] + write * k[a]
                m[a] = max(math.log(forget) + m[a], gates[a])  # eps stands beside numbers divided by e^m
                query = q[a] / math.sqrt(K)
                y[a] = query @ C[a] / (max(abs(query @ n[a]), 1.0) + config["eps"] * math.exp(m[a]))
                y[a] = (y[a] - y[a].mean()) / math.sqrt(y[a].var() + config["norm_eps"])
            mixed = (p["norm"] * y.ravel() + p["skip"] * smooth) * _silu(z)
            out[b, t] = p["out.weight"] @ mixed
    return out
