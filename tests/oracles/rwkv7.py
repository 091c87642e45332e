"""RWKV-7's time mix and channel mix in float64, token by token, written from the equations of 2503.14456, section 4."""

from __future__ import annotations

import math

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _previous(x, segments, b, t):
    """The token before t in its document, padding left out; zero at the start."""
    for s in range(t - 1, -1, -1):
        if segments is None or segments[b, s] == segments[b, t]:
            return x[b, s]
        if segments[b, s] >= 0:
            break
    return np.zeros(x.shape[-1])


def _low_rank(parameters, name, x, inner=lambda h: h):
    hidden = inner(parameters[f"{name}.down.weight"] @ x)
    return parameters[f"{name}.up.weight"] @ hidden + parameters.get(f"{name}.up.bias", 0.0)


def rwkv7(parameters, config, x, segments=None, first=None):
    """The time mix: parameters by name, config as a dict, x (B,T,D), segments (B,T), the first layer's v (B,T,D) -> y (B,T,D)."""
    size = config["head_dim"]
    heads = x.shape[-1] // size
    y = np.zeros_like(x)
    for b in range(x.shape[0]):
        memory, seen = [np.zeros((size, size)) for _ in range(heads)], None
        for t in range(x.shape[1]):
            if segments is not None:
                if segments[b, t] < 0:
                    continue
                if segments[b, t] != seen:
                    memory, seen = [np.zeros((size, size)) for _ in range(heads)], segments[b, t]
            before = _previous(x, segments, b, t)
            xr, xw, xk, xv, xa, xg = (m * x[b, t] + (1 - m) * before for m in parameters["mix_ratios"])
            r, k, v = (parameters[f"{n}.weight"] @ z for n, z in (("receptance", xr), ("key", xk), ("value", xv)))
            if "residual.up.weight" in parameters:
                mine = sigmoid(_low_rank(parameters, "residual", xv))
                v = v + ((0.0 if first is None else first[b, t]) - v) * mine
            w = np.exp(-math.exp(-0.5) * sigmoid(_low_rank(parameters, "decay", xw, np.tanh)))
            a = sigmoid(_low_rank(parameters, "rate", xa))
            gate = _low_rank(parameters, "gate", xg, sigmoid)
            removal = k * parameters["key_scale"]
            k = k * (1 + (a - 1) * parameters["key_rate"])
            out = np.zeros(x.shape[-1])
            for h in range(heads):
                at = slice(h * size, (h + 1) * size)
                kk = removal[at] / max(math.sqrt(removal[at] @ removal[at]), 1e-12)
                memory[h] = memory[h] @ (np.diag(w[at]) - np.outer(kk, a[at] * kk)) + np.outer(v[at], k[at])
                o = memory[h] @ r[at]
                o = (o - o.mean()) / math.sqrt(o.var() + size * 1e-5)
                o = o * parameters["norm_weight"][at] + parameters["norm_bias"][at]
                out[at] = o + (r[at] * parameters["bonus"][at]) @ k[at] * v[at]
            y[b, t] = parameters["out.weight"] @ (gate * out)
    return y


def rwkv7_channel(parameters, config, x, segments=None):
    """The channel mix, likewise."""
    y, ratio = np.zeros_like(x), parameters["mix_k"]
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            if segments is None or segments[b, t] >= 0:
                mixed = ratio * x[b, t] + (1 - ratio) * _previous(x, segments, b, t)
                y[b, t] = parameters["value.weight"] @ np.maximum(parameters["key.weight"] @ mixed, 0) ** 2
    return y
