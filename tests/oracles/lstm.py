"""An LSTM layer in float64, token by token."""

from __future__ import annotations

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(parameters, config, x, segments=None):
    """parameters by name, config as a dict, x (B,T,D), segments (B,T) -> y (B,T,D)."""
    hidden = config["hidden"] or x.shape[2]
    taps = parameters.get("inputs.conv.weight")
    y = np.zeros_like(x)
    for b in range(x.shape[0]):
        h, c, projected, last = np.zeros(hidden), np.zeros(hidden), [], None
        for t in range(x.shape[1]):
            document = None if segments is None else segments[b, t]
            if document is not None and document < 0:
                continue
            if document != last:
                h, c, projected, last = np.zeros(hidden), np.zeros(hidden), [], document
            p = parameters["inputs.linear.weight"] @ x[b, t] + parameters["inputs.linear.bias"]
            projected.append(p)
            if taps is not None:
                p = p + sum(taps[:, -1 - j] * projected[-1 - j] for j in range(min(taps.shape[1], len(projected))))
            i, f, g, o = np.split(p + parameters["recurrent"] @ h, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            y[b, t] = parameters["out.weight"] @ h if "out.weight" in parameters else h
    return y
