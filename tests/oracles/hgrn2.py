"""HGRN2 in float64, token by token, from the equations of 2404.07904. The checks build layer 1 of 2."""

from __future__ import annotations

import math

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def hgrn2(parameters, config, x, segments=None, layer=1, depth=2):
    """parameters by name, config as a dict, x (B,T,D), segments (B,T) -> y (B,T,D)."""
    size, width = config["head_dim"], config["width"]
    gamma = np.zeros(width)
    if config["bound"] and layer > 0:
        odds = np.exp(parameters["bound"]) * layer / (depth - layer)
        gamma = odds / (1 + odds)
    y = np.zeros_like(x)
    for b in range(x.shape[0]):
        memory, last = np.zeros((width // size, size, size)), None
        for t in range(x.shape[1]):
            document = None if segments is None else segments[b, t]
            if document is not None and document < 0:
                continue
            if document != last:
                memory, last = np.zeros_like(memory), document
            q, f, v = np.split(parameters["inputs.linear.weight"] @ x[b, t], 3)
            q, f = q * sigmoid(q), gamma + (1 - gamma) * sigmoid(f)
            o = np.zeros(width)
            for h in range(width // size):
                part = slice(h * size, (h + 1) * size)
                memory[h] = np.diag(f[part]) @ memory[h] + np.outer(1 - f[part], v[part])
                o[part] = q[part] @ memory[h]
            o = o / math.sqrt(o @ o / width + config["norm_eps"]) * parameters["norm.weight"]
            y[b, t] = parameters["out.weight"] @ o
    return y
