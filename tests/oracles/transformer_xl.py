"""Relative attention over the last M tokens in float64 loops, from 1901.02860, section 3.3."""

from __future__ import annotations

import math

import numpy as np


def sinusoid(distance, width):
    rates = [10000.0 ** (-i / width) for i in range(0, width, 2)]
    return np.array([math.sin(distance * f) for f in rates] + [math.cos(distance * f) for f in rates])


def transformer_xl(parameters, config, x, segments=None):
    """parameters by name, config as a dict, x (B,T,D), segments (B,T) -> y (B,T,D)."""
    size, width = config["head_dim"], config["width"]
    heads = config["heads"] or width // size
    u, v = parameters["content_bias"], parameters["position_bias"]
    y = np.zeros_like(x)
    for b in range(len(x)):
        past = []
        for t in range(x.shape[1]):
            if segments is not None and t and segments[b, t] != segments[b, t - 1]:
                past = []
            p = parameters["inputs.linear.weight"] @ x[b, t] + parameters.get("inputs.linear.bias", 0.0)
            query, key, value = p.reshape(3, heads, size)
            past.append((key, value))
            seen = past[-config["memory"] - 1 :]
            out = np.zeros((heads, size))
            for h in range(heads):
                weights = []
                for s, (k, _) in enumerate(seen):
                    r = (parameters["relative.weight"] @ sinusoid(len(seen) - 1 - s, width)).reshape(heads, size)[h]
                    weights.append(math.exp(((query[h] + u[h]) @ k[h] + (query[h] + v[h]) @ r) / math.sqrt(size)))
                for weight, (_, content) in zip(weights, seen, strict=True):
                    out[h] += weight / sum(weights) * content[h]
            y[b, t] = parameters["out.weight"] @ out.reshape(-1) + parameters.get("out.bias", 0.0)
    return y
