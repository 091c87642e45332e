"""Lightning attention in float64 loops, written from the equations (arXiv 2307.14995; 2501.08313 for its settings).

The contract checks build layer 1 of a model of 2 layers, which is what the decay depends on.
"""

from __future__ import annotations

import numpy as np

LAYER, DEPTH = 1, 2


def _silu(x):
    return x / (1.0 + np.exp(-x))


def lightning(parameters, config, x, segments=None):
    """The mixer on x (B,T,D); parameters by name, config as a dict with `width`."""
    p = {name: np.asarray(value, dtype=np.float64) for name, value in parameters.items()}
    K = config["head_dim"]
    H = config["heads"] or config["width"] // K
    E = H * K
    slopes = [2.0 ** (-8.0 * (h + 1) / H) * (1 - LAYER / (DEPTH - 1 + 1e-5) + 1e-5) for h in range(H)]
    placed = config["lrpe"] == "all"
    taps = p.get("inputs.conv.weight")
    batch, time, _ = x.shape
    out = np.zeros((batch, time, p["out.weight"].shape[0]))
    for b in range(batch):
        S, position, window = np.zeros((H, 2 * K if placed else K, K)), 0, None
        for t in range(time):
            if segments is not None and segments[b, t] < 0:
                continue
            if segments is not None and t > 0 and segments[b, t] != segments[b, t - 1]:
                S[:], position, window = 0.0, 0, None
            projected = p["inputs.linear.weight"] @ x[b, t]
            if taps is not None:
                window = np.zeros((taps.shape[1], 4 * E)) if window is None else window
                window = np.concatenate([window[1:], projected[None]])
                projected = projected + (taps.T * window).sum(0)
            q, k, v, u = projected.reshape(4, H, K)
            q, k = _silu(q), _silu(k)
            v = _silu(v) if config["activate_values"] else v
            y = np.zeros((H, K))
            for h in range(H):
                query, key = q[h], k[h]
                if placed:
                    theta = 10000.0 ** (-2 * np.arange(h * K, (h + 1) * K) / E) * np.exp(p["theta_log"][h])
                    turn = np.concatenate([np.cos(theta * position), np.sin(theta * position)])
                    query, key = np.tile(query, 2) * turn, np.tile(key, 2) * turn
                S[h] = np.exp(-slopes[h]) * S[h] + np.outer(key, v[h])
                y[h] = query @ S[h]
            y = y.ravel() / np.sqrt(np.mean(y**2) + config["eps"])
            if config["gain"]:
                y = y * p["norm"]
            u = u.ravel()
            gated = y / (1.0 + np.exp(-u)) if config["output_gate"] == "sigmoid" else y * u
            out[b, t] = p["out.weight"] @ gated
            position += 1
    return out
