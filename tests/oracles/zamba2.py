"""Zamba2's shared attention in float64, written from 2405.16712 and 2411.15242: attention and an MLP that read a stream beside itself."""

from __future__ import annotations

import math

import numpy as np

from oracles.attention import attention

PLAIN = {"qk_norm": False, "norm_whole": False, "gate": False}
ACTS = {
    "gelu": lambda v: v * (1 + math.erf(v / math.sqrt(2))) / 2,
    "gelu-tanh": lambda v: v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) / 2,
    "silu": lambda v: v / (1 + math.exp(-v)),
}


def _norm(x, gain, eps):
    return gain * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)


def _whole(parameters, name, parts):
    """A matrix with the maps of low rank beside it added, part by part of its rows."""
    weight = parameters[f"{name}.weight"].copy()
    if f"{name}.down" in parameters:
        downs, ups = (np.split(parameters[f"{name}.{each}"], parts) for each in ("down", "up"))
        weight += np.concatenate([up @ down for up, down in zip(ups, downs, strict=True)])
    return weight


def zamba2(parameters, config, x, segments=None):
    """The mixer on x (B,T,D), which stands for the embedding, too; parameters by name, config as a dict with `width`."""
    width, heads = config["width"], config["heads"]
    size = 2 * width // heads
    both = _norm(np.concatenate([x, x], -1), parameters["entry_norm.weight"], config["eps"])
    weight = _whole(parameters, "attention.inputs.linear", 3)
    weight[: heads * size] *= math.sqrt(2)  # q . k / sqrt(K / 2)
    out = parameters["attention.out.weight"]
    own = {"inputs.linear.weight": weight, "out.weight": np.concatenate([out, np.zeros_like(out)])}
    settings = {key: config[key] for key in ("heads", "kv_heads", "rope", "rope_theta", "window")}
    s = attention(own, {**PLAIN, **settings, "head_dim": size, "width": 2 * width}, both, segments)[..., :width]
    if segments is not None:
        s[segments < 0] = 0.0
    s = _norm(s, parameters["norm.weight"], config["eps"])
    hidden = s @ _whole(parameters, "mlp.wide", 1).T + parameters.get("mlp.wide.bias", 0.0)
    gate, up = np.split(hidden, 2, axis=-1)
    y = (np.vectorize(ACTS[config["activation"]])(gate) * up) @ parameters["mlp.out.weight"].T + parameters.get("mlp.out.bias", 0.0)
    y = y @ parameters["back.weight"].T
    if segments is not None:
        y[segments < 0] = 0.0
    return y
