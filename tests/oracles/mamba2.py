"""The Mamba-2 mixer in float64 loops, written from the paper's equations (arXiv 2405.21060), token by token."""

from __future__ import annotations

import math

import numpy as np


def _silu(x):
    return x / (1.0 + np.exp(-x))


def mamba2(parameters, config, x, segments=None):
    """The mixer on x (B,T,D); parameters by name, config as a dict with `width`."""
    p = {name: np.asarray(value, dtype=np.float64) for name, value in parameters.items()}
    P, N, G, K = config["head_dim"], config["state"], config["groups"], config["conv"]
    H = len(p["A_log"])
    E = H * P
    batch, time, _ = x.shape
    out = np.zeros((batch, time, p["out.weight"].shape[0]))
    for b in range(batch):
        taps = np.zeros((K, E + 2 * G * N))
        S = np.zeros((H, N, P))
        for t in range(time):
            if segments is not None and segments[b, t] < 0:
                continue
            if segments is not None and t > 0 and segments[b, t] != segments[b, t - 1]:
                taps[:], S[:] = 0.0, 0.0
            projected = p["inputs.linear.weight"] @ x[b, t] + p.get("inputs.linear.bias", 0.0)
            z, xbc, raw = projected[:E], projected[E : E + E + 2 * G * N], projected[E + E + 2 * G * N :]
            taps = np.concatenate([taps[1:], xbc[None]])
            mixed = _silu(sum(p["conv.weight"][:, j] * taps[j] for j in range(K)) + p.get("conv.bias", 0.0))
            inner, B, C = mixed[:E], mixed[E : E + G * N].reshape(G, N), mixed[E + G * N :].reshape(G, N)
            y = np.zeros(E)
            for h in range(H):
                g = h // (H // G)
                dt = math.log1p(math.exp(raw[h] + p["dt_bias"][h]))
                if config["dt_limit"] is not None:
                    dt = min(max(dt, config["dt_limit"][0]), config["dt_limit"][1])
                value = inner[h * P : (h + 1) * P]
                S[h] = math.exp(-math.exp(p["A_log"][h]) * dt) * S[h] + dt * np.outer(B[g], value)
                y[h * P : (h + 1) * P] = C[g] @ S[h] + p["D"][h] * value
            gated = y * (1.0 if config["gate_norm"] == "before" else _silu(z))
            for g in range(G) if config["gate_norm"] != "none" else ():
                part = slice(g * E // G, (g + 1) * E // G)
                gated[part] /= math.sqrt(np.mean(gated[part] ** 2) + config["eps"])
                gated[part] *= p["norm"][part] * (_silu(z[part]) if config["gate_norm"] == "before" else 1.0)
            out[b, t] = p["out.weight"] @ gated + p.get("out.bias", 0.0)
    return out
