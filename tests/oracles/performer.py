"""FAVOR+ (2009.14794), pair by pair, with features as they stand in the paper."""

from __future__ import annotations

import numpy as np

from oracles.kernels import kernel_attention


def performer(parameters, config, x, segments=None):
    """parameters by name (`directions` among them), config as a dict, x (B,T,D), segments (B,T) -> y (B,T,D)."""
    directions = parameters["directions"]

    def phi(v):
        v = v / config["head_dim"] ** 0.25
        if config["features"] == "relu":
            return np.maximum(directions @ v, 0) + 1e-3
        return np.exp(directions @ v - v @ v / 2)

    return kernel_attention(parameters, config, x, segments, lambda q, k, t, s: phi(q) @ phi(k))
