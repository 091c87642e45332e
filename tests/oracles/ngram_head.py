"""N-gram heads in float64, comparing every pair of tokens (2401.12973, section 6)."""

from __future__ import annotations

import numpy as np


def ngram_head(parameters, config, x, segments=None, tokens=None):
    """parameters by name, config as a dict, x (B,T,D), segments and tokens (B,T) -> y (B,T,D)."""
    order = config["order"]
    y = np.zeros_like(x)
    for b in range(x.shape[0]):
        for i in range(x.shape[1]):
            followed = []
            for j in range(1, i):
                if i - order + 1 < 0 or j - order < 0:
                    continue
                span = [*range(j - order, j + 1), *range(i - order + 1, i + 1)]
                if segments is not None and len({int(segments[b, s]) for s in span}) > 1:
                    continue
                if all(tokens[b, i - k] == tokens[b, j - 1 - k] for k in range(order)):
                    followed.append(x[b, j])
            mean = np.mean(followed, 0) if followed else np.zeros(x.shape[2])
            y[b, i] = (
                parameters["followed.weight"] @ mean + parameters["followed.bias"]
                + parameters["present.weight"] @ x[b, i] + parameters["present.bias"]
            )  # fmt: skip
    return y
