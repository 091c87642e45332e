"""RMSNorm of a gated input in float64 loops."""

from __future__ import annotations

import math

import numpy as np


def gated_rms_norm(x, gate, weight, eps, groups=1):
    """x, gate (N,D), weight (D,) -> (N,D)."""
    rows, width = x.shape
    out = np.zeros((rows, width))
    part = width // groups
    for n in range(rows):
        h = [float(x[n, d]) * float(gate[n, d]) / (1.0 + math.exp(-float(gate[n, d]))) for d in range(width)]
        for g in range(groups):
            mean = sum(h[d] ** 2 for d in range(g * part, (g + 1) * part)) / part
            for d in range(g * part, (g + 1) * part):
                out[n, d] = h[d] / math.sqrt(mean + eps) * float(weight[d])
    return out
