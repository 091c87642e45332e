"""PNA-attention in float64 loops; the variance as the weighted mean of squared deviations."""

from __future__ import annotations

import numpy as np

from oracles.graphs import graph_attention


def pna_attention(parameters, config, x, segments=None):
    """parameters by name, config as a dict, x (B,T,D), segments (B,T) -> y (B,T,D)."""

    def aggregate(h, weights, values, inputs):
        mean = sum(w * v for w, v in zip(weights, values, strict=True))
        var = sum(w * (v - mean) ** 2 for w, v in zip(weights, values, strict=True))
        found = {"mean": mean, "max": np.max(values, 0), "min": np.min(values, 0), "var": var, "std": np.sqrt(var + 1e-5)}
        return np.concatenate([found[name] for name in config["aggregators"]])

    return graph_attention(parameters, config, x, segments, aggregate)
