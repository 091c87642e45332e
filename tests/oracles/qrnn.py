"""The QRNN layer in float64 loops, written from the paper's equations (arXiv 1611.01576), token by token."""

from __future__ import annotations

import numpy as np


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def qrnn(parameters, config, x, segments=None):
    """The layer on x (B,T,D); parameters by name, config as a dict."""
    K, pooling = config["window"], config["pooling"]
    weight, bias = parameters["inputs.weight"], parameters["inputs.bias"]
    H = len(bias) // {"f": 2, "fo": 3, "ifo": 4}[pooling]
    batch, time, width = x.shape
    out = np.zeros((batch, time, width))
    for b in range(batch):
        window, c = [np.zeros(width)] * K, np.zeros(H)
        for t in range(time):
            if segments is not None and segments[b, t] < 0:
                continue
            if segments is not None and t > 0 and segments[b, t] != segments[b, t - 1]:
                window, c = [np.zeros(width)] * K, np.zeros(H)
            window = [*window[1:], x[b, t]]
            parts = (weight @ np.concatenate(window) + bias).reshape(-1, H)
            f = _sigmoid(parts[1])
            c = f * c + (_sigmoid(parts[3]) if pooling == "ifo" else 1 - f) * np.tanh(parts[0])
            h = c if pooling == "f" else _sigmoid(parts[2]) * c
            out[b, t] = parameters["out.weight"] @ h if "out.weight" in parameters else h
    return out
