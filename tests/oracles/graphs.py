"""Attention as a causal graph in float64 loops, for the graph-aware mixers (2501.02393)."""

from __future__ import annotations

import math

import numpy as np

from oracles.kernels import turn


def head_network(parameters, h, z, eps):
    hidden = z @ parameters["network.wide"][h] + parameters["network.wide_bias"][h]
    if "network.norm" in parameters:
        hidden = hidden / math.sqrt(np.mean(hidden**2) + eps) * parameters["network.norm"][h]
    hidden = hidden / (1 + np.exp(-hidden))
    return hidden @ parameters["network.narrow"][h] + parameters["network.narrow_bias"][h]


def graph_attention(parameters, config, x, segments, aggregate):
    """`aggregate(h, weights, values, inputs)` makes z from what one query sees, oldest first; returns y (B,T,D)."""
    size = config["head_dim"]
    heads = config["heads"] or config["width"] // size
    sharpness = parameters["sharpness"][0] if config["sharpen"] else 1.0
    y = np.zeros_like(x)
    for b in range(len(x)):
        past = []
        for t in range(x.shape[1]):
            if segments is not None and t and segments[b, t] != segments[b, t - 1]:
                past = []
            p = (parameters["inputs.linear.weight"] @ x[b, t] + parameters.get("inputs.linear.bias", 0.0)).reshape(-1, heads, size)
            q, k = ([turn(p[i, h], len(past), config["rope"], config["rope_theta"]) for h in range(heads)] for i in (0, 1))
            past.append((k, p[-1], x[b, t].reshape(-1, size)))
            out = []
            for h in range(heads):
                raw = [math.exp(sharpness * (q[h] @ k[h]) / math.sqrt(size) / config["temperature"]) for k, _, _ in past]
                weights = [w / sum(raw) for w in raw]
                z = aggregate(h, weights, [v[h] for _, v, _ in past], [own[h] for _, _, own in past] if len(past[0][2]) > h else None)
                out.append(head_network(parameters, h, z, config["eps"]))
            out = np.concatenate(out)
            y[b, t] = parameters["out.weight"] @ out + parameters.get("out.bias", 0.0) if "out.weight" in parameters else out
    return y
