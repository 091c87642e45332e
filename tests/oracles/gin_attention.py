"""GIN-attention in float64 loops."""

from __future__ import annotations

from oracles.graphs import graph_attention


def gin_attention(parameters, config, x, segments=None):
    """parameters by name, config as a dict, x (B,T,D), segments (B,T) -> y (B,T,D)."""

    def aggregate(h, weights, values, inputs):
        itself = parameters["itself"][h] + (1 if config["one_plus"] else 0)
        return itself * inputs[-1] + sum(w * node for w, node in zip(weights, inputs, strict=True))

    return graph_attention(parameters, config, x, segments, aggregate)
