"""cosFormer (2202.08791), pair by pair, with the cosine of the distance itself."""

from __future__ import annotations

import math

import numpy as np

from oracles.kernels import kernel_attention


def cosformer(parameters, config, x, segments=None):
    """parameters by name, config as a dict, x (B,T,D), segments (B,T) -> y (B,T,D)."""
    horizon = config["horizon"]

    def weight(q, k, t, s):
        distance = min(t, horizon) - min(s, horizon)
        return np.maximum(q, 0) @ np.maximum(k, 0) * math.cos(math.pi / 2 * distance / horizon)

    return kernel_attention(parameters, config, x, segments, weight)
