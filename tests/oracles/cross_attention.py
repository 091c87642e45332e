"""Attention to a memory, in float64 loops, written from 1706.03762, section 3.2.3."""

from __future__ import annotations

import math

import numpy as np


def cross_attention(parameters, config, x, segments=None, memory=None):
    """The mixer on x (B,T,D), reading memory (B,M,C), all of it whatever the segments."""
    size = config["head_dim"]
    heads = config["heads"] or config["width"] // size
    groups = config["kv_heads"] or heads
    y = np.zeros_like(x)
    for b in range(len(x)):
        read = [parameters["memory.weight"] @ m + parameters.get("memory.bias", 0.0) for m in memory[b]]
        keys, values = ([row.reshape(2, groups, size)[side] for row in read] for side in (0, 1))
        for t in range(x.shape[1]):
            q = (parameters["query.weight"] @ x[b, t] + parameters.get("query.bias", 0.0)).reshape(heads, size)
            out = np.zeros((heads, size))
            for h in range(heads):
                g = h // (heads // groups)
                weights = [math.exp(q[h] @ key[g] / math.sqrt(size)) for key in keys]
                for weight, value in zip(weights, values, strict=True):
                    out[h] += weight / sum(weights) * value[g]
            y[b, t] = parameters["out.weight"] @ out.ravel() + parameters.get("out.bias", 0.0)
    return y
