"""The Mamba mixer in float64 loops, written from the paper's equations (arXiv 2312.00752), token by token."""

from __future__ import annotations

import math

import numpy as np


def _silu(x):
    return x / (1.0 + np.exp(-x))


def _normed(x, eps):
    return x if eps is None else x / math.sqrt(np.mean(x**2) + eps)


def mamba(parameters, config, x, segments=None):
    """The mixer on x (B,T,D); parameters by name, config as a dict."""
    p = {name: np.asarray(value, dtype=np.float64) for name, value in parameters.items()}
    E, N = p["A_log"].shape
    K, eps = config["conv"], config["norm_eps"]
    R, H = p["dt.weight"].shape[1], config["heads"]
    batch, time, width = x.shape
    out = np.zeros((batch, time, width))
    for b in range(batch):
        taps, h = np.zeros((K, E)), np.zeros((E, N))
        for t in range(time):
            if segments is not None and segments[b, t] < 0:
                continue
            if segments is not None and t > 0 and segments[b, t] != segments[b, t - 1]:
                taps[:], h[:] = 0.0, 0.0
            projected = p["inputs.linear.weight"] @ x[b, t] + p.get("inputs.linear.bias", 0.0)
            u, z = projected[:E], projected[E:]
            taps = np.concatenate([taps[1:], u[None]])
            u = _silu(sum(p["conv.weight"][:, j] * taps[j] for j in range(K)) + p.get("conv.bias", 0.0))
            s = np.zeros(E)
            for e in range(E):
                own = slice(e // (E // H) * (E // H), (e // (E // H) + 1) * (E // H))
                selected = np.split(p["select.weight"], H)[e // (E // H)] @ u[own]
                low, B, C = (
                    _normed(part, eps) * p.get(f"gains.{i}", 1.0) for i, part in enumerate((selected[:R], selected[R : R + N], selected[R + N :]))
                )
                delta = math.log1p(math.exp(p["dt.weight"][e] @ low + p["dt.bias"][e]))
                for n in range(N):
                    h[e, n] = math.exp(-delta * math.exp(p["A_log"][e, n])) * h[e, n] + delta * u[e] * B[n]
                    s[e] += C[n] * h[e, n]
                s[e] += p["D"][e] * u[e]
            out[b, t] = p["out.weight"] @ (s * _silu(z)) + p.get("out.bias", 0.0)
    return out
