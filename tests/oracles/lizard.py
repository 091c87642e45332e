"""Lizard's mixer in float64, from the sums over pairs of tokens (no recurrence, no blocks)."""

from __future__ import annotations

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def turned(x, position, theta):
    """Neighbouring pairs of x, turned by their angles at a position."""
    pairs = x.reshape(-1, 2)
    angle = position * theta ** (-2 * np.arange(len(pairs)) / len(x))
    a, b = pairs[:, 0], pairs[:, 1]
    return np.stack([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], 1).ravel()


def features(x, matrix, kind):
    u = x @ matrix
    above, below = np.exp(u), np.exp(-u)
    return np.concatenate([above, below] if kind == "exp" else [above / above.sum(), below / below.sum()])


def lizard(parameters, config, x, segments=None):
    """parameters by name, config as a dict, x (B,T,D), segments (B,T) -> y (B,T,D)."""
    size = config["head_dim"]
    heads, y, p = config["heads"] or config["width"] // size, np.zeros_like(x), parameters
    for b in range(x.shape[0]):
        documents = np.zeros(x.shape[1]) if segments is None else segments[b]
        for document in np.unique(documents[documents >= 0]):
            places = np.flatnonzero(documents == document)
            tokens = x[b, places]
            q, k, v = ((tokens @ part.T).reshape(-1, heads, size) for part in np.split(p["inputs.linear.weight"], 3))
            gamma = sigmoid(tokens @ p["gate.weight"].T + p["gate.bias"])
            for t in range(len(places)):
                outs = []
                for h in range(heads):
                    g = gamma[:, h if config["gate_per_head"] else 0]
                    phi = features(q[t, h], p["maps"][0, h], config["feature_map"])
                    far = [np.prod(g[j + 1 : t + 1]) * phi @ features(k[j, h], p["maps"][1, h], config["feature_map"]) for j in range(t + 1)]
                    first = max(0, t + 1 - config["window"])
                    near = []
                    for j in range(first, t + 1):
                        a, c = q[t, h], k[j, h]
                        if config["rope"]:
                            a, c = turned(a, t, config["rope_theta"]), turned(c, j, config["rope_theta"])
                        near.append(np.exp(a @ c / np.sqrt(size)))
                    sinks = np.exp(p["sinks"][h]).sum() if config["sinks"] else 0.0
                    up = sum(w * v[j, h] for j, w in enumerate(far))
                    window = sum(w * v[first + j, h] for j, w in enumerate(near))
                    if config["norm"] == "joint":
                        outs.append((up + window) / (sum(far) + sum(near) + sinks))
                    else:
                        up = up if config["norm"] == "none" else up / sum(far)
                        outs.append(up + p["alpha"] * window / (sum(near) + sinks))
                y[b, places[t]] = p["out.weight"] @ np.concatenate(outs)
    return y
