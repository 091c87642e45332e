"""An EGRU layer in float64, unit by unit where it matters (2206.06178)."""

from __future__ import annotations

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def egru(parameters, config, x, segments=None):
    """parameters by name, config as a dict, x (B,T,D), segments (B,T) -> y (B,T,D)."""
    hidden = config["hidden"] or x.shape[2]
    theta = np.clip(parameters["theta"], 0, 1)
    y = np.zeros_like(x)
    for b in range(x.shape[0]):
        h, sent = np.zeros(hidden), np.zeros(hidden)
        for t in range(x.shape[1]):
            if segments is not None and t and segments[b, t] != segments[b, t - 1]:
                h, sent = np.zeros(hidden), np.zeros(hidden)
            own = np.split(parameters["inputs.linear.weight"] @ x[b, t] + parameters["inputs.linear.bias"], 3)
            heard = np.split(parameters["recurrent"] @ sent, 3)
            z, r = sigmoid(own[0] + heard[0]), sigmoid(own[1] + heard[1])
            g = np.tanh(own[2] + r * (heard[2] + parameters["inner_bias"]))
            c = z * h + (1 - z) * g
            for i in range(hidden):
                sent[i] = c[i] if c[i] > theta[i] else 0.0
                h[i] = c[i] - theta[i] if c[i] > theta[i] else c[i]
            y[b, t] = parameters["out.weight"] @ sent if "out.weight" in parameters else sent
    return y
