"""Gated linear attention in float64, token by token, from the equations of 2312.06635."""

from __future__ import annotations

import math

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gla(parameters, config, x, segments=None):
    """parameters by name, config as a dict, x (B,T,D), segments (B,T) -> y (B,T,D)."""
    value = config["head_dim"]
    key, heads = round(config["expand_k"] * value), config["heads"] or config["width"] // value
    y = np.zeros_like(x)
    for b in range(x.shape[0]):
        memory, last = np.zeros((heads, key, value)), None
        for t in range(x.shape[1]):
            document = None if segments is None else segments[b, t]
            if document is not None and document < 0:
                continue
            if document != last:
                memory, last = np.zeros((heads, key, value)), document
            p = parameters["inputs.linear.weight"] @ x[b, t]
            cuts = np.cumsum([heads * key, heads * key, heads * value, heads * value])
            q, k, v, z, low = np.split(p, cuts)
            alpha = sigmoid(parameters["gate.weight"] @ low + parameters["gate.bias"]) ** (1 / config["gate_norm"])
            outs = []
            for h in range(heads):
                part, values = slice(h * key, (h + 1) * key), slice(h * value, (h + 1) * value)
                memory[h] = alpha[part, None] * memory[h] + np.outer(k[part], v[values])
                o = q[part] @ memory[h] / math.sqrt(key)
                o = o / math.sqrt(o @ o / value + config["norm_eps"]) * parameters["norm.weight"]
                outs.append(o * z[values] * sigmoid(z[values]))
            y[b, t] = parameters["out.weight"] @ np.concatenate(outs)
    return y
