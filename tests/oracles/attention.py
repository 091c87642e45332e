"""Softmax attention in float64 loops, one query and one key at a time, written from 1706.03762, 2104.09864 and 2505.06708."""

from __future__ import annotations

import math

import numpy as np


def _turn(vector, position, share, theta):
    """Rotate neighbouring pairs of the first `share` of a vector by position * theta^(-2i/n) (2104.09864, eq. 15)."""
    turned, count = vector.copy(), 2 * int(share * len(vector) / 2)
    for i in range(0, count, 2):
        angle = position * theta ** (-i / count)
        a, b = vector[i], vector[i + 1]
        turned[i] = a * math.cos(angle) - b * math.sin(angle)
        turned[i + 1] = a * math.sin(angle) + b * math.cos(angle)
    return turned


def _norm(vector, gain, eps):
    return gain * vector / math.sqrt(np.mean(vector**2) + eps)


def attention(parameters, config, x, segments=None):
    """The mixer on x (B,T,D); parameters by name, config as a dict with `width`."""
    size = config["head_dim"]
    heads = config["heads"] or config["width"] // size
    groups = config["kv_heads"] or heads
    eps = 1e-6 if config["qk_norm"] is True else config["qk_norm"]
    y = np.zeros_like(x)
    for b in range(len(x)):
        keys, values = [], []
        for t in range(x.shape[1]):
            if segments is not None and t and segments[b, t] != segments[b, t - 1]:
                keys, values = [], []
            p = parameters["inputs.linear.weight"] @ x[b, t] + parameters.get("inputs.linear.bias", 0.0)
            p, gate = p[: (heads + 2 * groups) * size], p[(heads + 2 * groups) * size :]
            position, vectors = len(keys), p.reshape(heads + 2 * groups, size)
            if config["qk_norm"] and config["norm_whole"]:
                for low, high, name in ((0, heads, "q_norm.weight"), (heads, heads + groups, "k_norm.weight")):
                    vectors[low:high] = _norm(vectors[low:high].ravel(), parameters[name], eps).reshape(-1, size)
            turned = []
            for h in range(heads + groups):
                vector = vectors[h]
                if config["qk_norm"] and not config["norm_whole"]:
                    vector = _norm(vector, parameters["q_norm.weight" if h < heads else "k_norm.weight"], eps)
                turned.append(_turn(vector, position, config["rope"], config["rope_theta"]))
            keys.append(turned[heads:])
            values.append(vectors[heads + groups :])
            first = 0 if config["window"] is None else max(0, position + 1 - config["window"])
            out = np.zeros(heads * size)
            for h in range(heads):
                g = h // (heads // groups)
                weights = [math.exp(turned[h] @ keys[s][g] / math.sqrt(size)) for s in range(first, position + 1)]
                for s, weight in zip(range(first, position + 1), weights, strict=True):
                    out[h * size : (h + 1) * size] += weight / sum(weights) * values[s][g]
            if config["gate"]:
                out = out / (1 + np.exp(-gate if config["gate"] is True else -gate.repeat(size)))
            y[b, t] = parameters["out.weight"] @ out + parameters.get("out.bias", 0.0)
    return y
