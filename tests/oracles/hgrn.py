"""The HGRN layer in float64 loops over complex numbers, from the paper's equations (arXiv 2311.04823), token by token."""

from __future__ import annotations

import numpy as np


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def hgrn(parameters, config, x, segments=None):
    """The layer on x (B,T,D); parameters by name, config as a dict."""
    p = parameters
    H = len(p["angle"])
    gamma = _sigmoid(p["bound"]) if "bound" in p else 0.0
    batch, time, width = x.shape
    out = np.zeros((batch, time, width))
    for b in range(batch):
        h = np.zeros(H, dtype=complex)
        for t in range(time):
            if segments is not None and segments[b, t] < 0:
                continue
            if segments is not None and t > 0 and segments[b, t] != segments[b, t - 1]:
                h = np.zeros(H, dtype=complex)
            parts = p["inputs.linear.weight"] @ x[b, t] + p["inputs.linear.bias"]
            c = parts[: 2 * H] * _sigmoid(parts[: 2 * H])
            f = gamma + (1 - gamma) * _sigmoid(parts[2 * H : 3 * H])
            h = f * np.exp(1j * p["angle"]) * h + (1 - f) * (c[:H] + 1j * c[H:])
            s = _sigmoid(parts[3 * H :]) * np.concatenate([h.real, h.imag])
            s = (s - s.mean()) / np.sqrt(s.var() + config["norm_eps"]) * p["norm.weight"] + p["norm.bias"]
            out[b, t] = p["out.weight"] @ s + p["out.bias"]
    return out
