"""minGRU and minLSTM in float64 loops, in the linear form of the paper (arXiv 2410.01201), token by token."""

from __future__ import annotations

import numpy as np


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def mingru(parameters, config, x, segments=None):
    """The layer on x (B,T,D); parameters by name, config as a dict."""
    p, C = parameters, config["conv"]
    H = p["out.weight"].shape[1]
    batch, time, width = x.shape
    out = np.zeros((batch, time, width))
    for b in range(batch):
        taps, h = np.zeros((C, width)), np.zeros(H)
        for t in range(time):
            if segments is not None and segments[b, t] < 0:
                continue
            if segments is not None and t > 0 and segments[b, t] != segments[b, t - 1]:
                taps[:], h[:] = 0.0, 0.0
            taps = np.concatenate([taps[1:], x[b, t][None]])
            u = x[b, t] if C == 1 else sum(p["conv.weight"][:, j] * taps[j] for j in range(C))
            parts = (p["inputs.weight"] @ u + p.get("inputs.bias", 0.0)).reshape(-1, H)
            candidate = np.where(parts[0] >= 0, parts[0] + 0.5, _sigmoid(parts[0]))
            if config["cell"] == "gru":
                keep, write = 1 - _sigmoid(parts[1]), _sigmoid(parts[1])
            else:
                f, i = _sigmoid(parts[1]), _sigmoid(parts[2])
                keep, write = f / (f + i), i / (f + i)
            h = keep * h + write * candidate
            out[b, t] = p["out.weight"] @ h
    return out
