"""The RetNet mixer in float64 loops, written from the paper's equations (arXiv 2307.08621), token by token."""

from __future__ import annotations

import math

import numpy as np


def _rotated(x, position, theta):
    """Neighbouring numbers as one complex number, turned by position * theta^(-2i/K)."""
    pairs = x[..., 0::2] + 1j * x[..., 1::2]
    rates = theta ** (-2.0 * np.arange(pairs.shape[-1]) / x.shape[-1])
    pairs = pairs * np.exp(1j * position * rates)
    out = np.empty_like(x)
    out[..., 0::2], out[..., 1::2] = pairs.real, pairs.imag
    return out


def retnet(parameters, config, x, segments=None):
    """The mixer on x (B,T,D); parameters by name, config as a dict with `width`."""
    p = {name: np.asarray(value, dtype=np.float64) for name, value in parameters.items()}
    K = config["head_dim"]
    H = config["heads"] or config["width"] // K
    V = K * config["expand_v"]
    spread = 1.0 if config["slowest"] is None else (config["slowest"] - 5.0) / (H - 1)
    gamma = [1.0 - 2.0 ** (-5.0 - spread * h) for h in range(H)]
    taps = p.get("inputs.conv.weight")
    batch, time, _ = x.shape
    out = np.zeros((batch, time, p["out.weight"].shape[0]))
    for b in range(batch):
        S, position, window = np.zeros((H, K, V)), 0, None
        for t in range(time):
            if segments is not None and segments[b, t] < 0:
                continue
            if segments is not None and t > 0 and segments[b, t] != segments[b, t - 1]:
                S[:], position, window = 0.0, 0, None
            projected = p["inputs.linear.weight"] @ x[b, t]
            if taps is not None:
                window = np.zeros((taps.shape[1], len(projected))) if window is None else window
                window = np.concatenate([window[1:], projected[None]])
                projected = projected + (taps.T * window).sum(0)
            q, k = projected[: 2 * H * K].reshape(2, H, K)
            v, z = projected[2 * H * K :].reshape(2, H, V)
            q, k = _rotated(q, position, config["rope_theta"]), _rotated(k, position, config["rope_theta"])
            y = np.zeros((H, V))
            for h in range(H):
                S[h] = gamma[h] * S[h] + np.outer(k[h], v[h])
                y[h] = q[h] @ S[h] / math.sqrt(K)
                y[h] *= p["norm"] / math.sqrt(np.mean(y[h] ** 2) + config["eps"])
            out[b, t] = p["out.weight"] @ (y * z / (1.0 + np.exp(-z))).ravel()
            position += 1
    return out
