"""Attention with any positive kernel in float64, comparing every query with every key of its document."""

from __future__ import annotations

import math

import numpy as np


def turn(vector, position, share, theta):
    """Rotate neighbouring pairs of the first `share` of a vector by position * theta^(-2i/n)."""
    turned, count = vector.copy(), 2 * int(share * len(vector) / 2)
    for i in range(0, count, 2):
        angle = position * theta ** (-i / count)
        a, b = vector[i], vector[i + 1]
        turned[i] = a * math.cos(angle) - b * math.sin(angle)
        turned[i + 1] = a * math.sin(angle) + b * math.cos(angle)
    return turned


def kernel_attention(parameters, config, x, segments, weight):
    """`weight(q, k, t, s)` is the kernel of one query and one key at their positions; returns y (B,T,D)."""
    size = config["head_dim"]
    heads = config["heads"] or config["width"] // size
    y = np.zeros_like(x)
    for b in range(len(x)):
        seen = []
        for t in range(x.shape[1]):
            if segments is not None and t and segments[b, t] != segments[b, t - 1]:
                seen = []
            p = parameters["inputs.linear.weight"] @ x[b, t] + parameters.get("inputs.linear.bias", 0.0)
            q, k, v = p.reshape(3, heads, size)
            now = len(seen)
            q, k = ([turn(h, now, config["rope"], config["rope_theta"]) for h in part] for part in (q, k))
            seen.append((k, v))
            out = np.zeros((heads, size))
            for h in range(heads):
                weights = np.array([weight(q[h], keys[h], now, s) for s, (keys, _) in enumerate(seen)])
                total = sum(weights)
                out[h] = sum(w * values[h] for w, (_, values) in zip(weights, seen, strict=True)) / max(total, config["eps"])
            y[b, t] = parameters["out.weight"] @ out.reshape(-1) + parameters.get("out.bias", 0.0)
    return y
