"""Branches on one input, normed and averaged (2411.13676), for branches that are attention."""

from __future__ import annotations

import numpy as np

from oracles.attention import attention

DEFAULTS = {
    "heads": None, "kv_heads": None, "head_dim": 64, "window": None, "rope": 1.0, "rope_theta": 10000.0, "qk_norm": False
}  # fmt: skip


def parallel(parameters, config, x, segments=None):
    """The mixer on x (B,T,D); parameters by name, config as a dict with `width`."""
    total = np.zeros_like(x)
    for i, branch in enumerate(config["branches"]):
        start = f"branches.{i}."
        own = {name.removeprefix(start): value for name, value in parameters.items() if name.startswith(start)}
        y = attention(own, {**DEFAULTS, **branch, "width": config["width"]}, x, segments)
        if config["fusion"] == "norm":
            size = np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + config["eps"])
            y = parameters[f"norms.{i}.weight"] * y / size
        total += y
    return total / len(config["branches"])
