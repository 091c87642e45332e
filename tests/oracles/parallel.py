"""Branches on one input, normed and fused (2510.04800, 2411.13676), for branches that are attention."""

from __future__ import annotations

import numpy as np

from oracles.attention import attention

DEFAULTS = {
    "heads": None, "kv_heads": None, "head_dim": 64, "window": None, "rope": 1.0, "rope_theta": 10000.0, "qk_norm": False,
    "norm_whole": False, "gate": False,
}  # fmt: skip


def parallel(parameters, config, x, segments=None):
    """The mixer on x (B,T,D); parameters by name, config as a dict with `width`."""
    found = []
    for i, branch in enumerate(config["branches"]):
        start = f"branches.{i}."
        own = {name.removeprefix(start): value for name, value in parameters.items() if name.startswith(start)}
        settings = {**DEFAULTS, **branch, "width": config["width"]}
        if config["shares"] is not None:
            settings["heads"] = round(config["shares"][i] * config["width"] / settings["head_dim"])
        if config["norm_at"] == "heads":
            way_out = own["out.weight"]
            size = settings["head_dim"]
            heads = attention({**own, "out.weight": np.eye(way_out.shape[1])}, settings, x, segments)
            for h in range(way_out.shape[1] // size):
                part = heads[..., h * size : (h + 1) * size]
                part /= np.sqrt(np.mean(part**2, axis=-1, keepdims=True) + config["eps"])
            y = heads @ way_out.T
        else:
            y = attention(own, settings, x, segments)
        if config["normed"] and config["norm_at"] == "out":
            size = y.shape[-1] // config["groups"]
            for g in range(config["groups"]):
                part = y[..., g * size : (g + 1) * size]
                part /= np.sqrt(np.mean(part**2, axis=-1, keepdims=True) + config["eps"])
        if config["beta"] != "none":
            y = y * parameters["beta"][i]
        found.append(y)
    if config["fusion"] == "concat":
        return np.concatenate(found, -1) @ parameters["out.weight"].T
    if config["fusion"] == "difference":
        return found[0] - sum(found[1:])
    return sum(found) / (len(found) if config["fusion"] == "mean" else 1)
