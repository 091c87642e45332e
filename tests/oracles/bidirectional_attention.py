"""Attention of every token to its whole document, in float64 loops, written from 1706.03762 and 2104.09864."""

from __future__ import annotations

import math

import numpy as np

from oracles.attention import _turn


def bidirectional_attention(parameters, config, x, segments=None):
    """The mixer on x (B,T,D); parameters by name, config as a dict with `width`."""
    size = config["head_dim"]
    heads = config["heads"] or config["width"] // size
    groups = config["kv_heads"] or heads
    y = np.zeros_like(x)
    for b in range(len(x)):
        marks = np.zeros(x.shape[1]) if segments is None else segments[b]
        for mark in np.unique(marks[marks >= 0]):
            places = np.flatnonzero(marks == mark)
            vectors = []
            for position, t in enumerate(places):
                p = parameters["inputs.linear.weight"] @ x[b, t] + parameters.get("inputs.linear.bias", 0.0)
                rows = p.reshape(heads + 2 * groups, size)
                vectors.append([_turn(row, position, config["rope"], config["rope_theta"]) if h < heads + groups else row
                                for h, row in enumerate(rows)])  # fmt: skip
            for i, t in enumerate(places):
                out = np.zeros(heads * size)
                near = [s for s in range(len(places)) if config["window"] is None or abs(s - i) <= config["window"]]
                for h in range(heads):
                    g = h // (heads // groups)
                    scores = [math.exp(vectors[i][h] @ vectors[s][heads + g] / math.sqrt(size)) for s in near]
                    for s, score in zip(near, scores, strict=True):
                        out[h * size : (h + 1) * size] += score / sum(scores) * vectors[s][heads + groups + g]
                y[b, t] = parameters["out.weight"] @ out + parameters.get("out.bias", 0.0)
    return y
