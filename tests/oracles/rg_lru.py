"""Griffin's recurrent block in float64 loops, written from the paper's equations (arXiv 2402.19427), token by token."""

from __future__ import annotations

import math

import numpy as np


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rg_lru(parameters, config, x, segments=None):
    """The mixer on x (B,T,D); parameters by name, config as a dict."""
    p = parameters
    R = len(p["pace"])
    heads, size = p["input_bias"].shape
    taps_kept = config["conv"]
    batch, time, width = x.shape
    out = np.zeros((batch, time, width))
    for b in range(batch):
        taps, h, fresh = np.zeros((taps_kept, R)), np.zeros(R), True
        for t in range(time):
            if segments is not None and segments[b, t] < 0:
                continue
            if segments is not None and t > 0 and segments[b, t] != segments[b, t - 1]:
                taps[:], h[:], fresh = 0.0, 0.0, True
            both = p["inputs.linear.weight"] @ x[b, t] + p["inputs.linear.bias"]
            g, u = both[:R], both[R:]
            taps = np.concatenate([taps[1:], u[None]])
            u = sum(p["conv.weight"][:, j] * taps[j] for j in range(taps_kept)) + p["conv.bias"]
            gates = {}
            for name in ("input", "recurrence"):
                parts = [
                    u[n * size : (n + 1) * size] @ p[f"{name}_gate"][n] + p[f"{name}_bias"][n] for n in range(heads)
                ]
                gates[name] = _sigmoid(np.concatenate(parts))
            a = np.exp(-8 * gates["recurrence"] * np.log1p(np.exp(p["pace"])))
            h = a * h + (1.0 if fresh else np.sqrt(1 - a**2)) * gates["input"] * u
            fresh = False
            out[b, t] = p["out.weight"] @ (_gelu(g) * h) + p["out.bias"]
    return out
