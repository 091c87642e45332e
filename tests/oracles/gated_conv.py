"""The gated short convolution in float64 loops, from its equation (arXiv 2511.23404), token by token and tap by tap."""

from __future__ import annotations

import numpy as np


def gated_conv(parameters, config, x, segments=None):
    """The mixer on x (B,T,D); parameters by name, config as a dict."""
    p = {name: np.asarray(value, dtype=np.float64) for name, value in parameters.items()}
    K = config["kernel"]
    batch, time, D = x.shape
    out = np.zeros((batch, time, D))
    for b in range(batch):
        seen = []  # b u of the present document, oldest first
        for t in range(time):
            if segments is not None and segments[b, t] < 0:
                continue
            if segments is not None and t > 0 and segments[b, t] != segments[b, t - 1]:
                seen = []
            before, behind, u = np.split(p["inputs.weight"] @ x[b, t] + p.get("inputs.bias", 0.0), 3)
            seen.append(before * u)
            h = np.zeros(D) + p.get("conv.bias", 0.0)
            for back in range(min(K, len(seen))):
                h += p["conv.weight"][:, K - 1 - back] * seen[-1 - back]
            out[b, t] = p["out.weight"] @ (behind * h) + p.get("out.bias", 0.0)
    return out
