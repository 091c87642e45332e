"""The sLSTM layer in float64 loops, written from the equations (arXiv 2405.04517), token by token, without a stabiliser."""

from __future__ import annotations

import math

import numpy as np


def slstm(parameters, config, x, segments=None):
    """The mixer on x (B,T,D); parameters by name, config as a dict with `width`."""
    p = {name: np.asarray(value, dtype=np.float64) for name, value in parameters.items()}
    D, H = config["width"], config["heads"]
    K, taps = D // H, p["conv.weight"]
    batch, time, _ = x.shape
    out = np.zeros((batch, time, D))
    for b in range(batch):
        for t in range(time):
            if segments is not None and segments[b, t] < 0:
                continue
            if t == 0 or (segments is not None and segments[b, t] != segments[b, t - 1]):
                h, c, n, window = np.zeros((H, K)), np.zeros((H, K)), np.zeros((H, K)), np.zeros((taps.shape[1], D))
            window = np.concatenate([window[1:], x[b, t][None]])
            smooth = (taps.T * window).sum(0) + p["conv.bias"]
            smooth = (smooth / (1.0 + np.exp(-smooth))).reshape(H, K)
            given = x[b, t].reshape(H, K)
            for a in range(H):
                raw = np.concatenate([smooth[a] @ p["gates"][0, a], given[a] @ p["gates"][1, a]])
                i, f, z, o = (raw + h[a] @ p["recurrent"][a] + p["bias"][a]).reshape(4, K)
                forget = 1.0 / (1.0 + np.exp(-f))
                c[a] = forget * c[a] + np.exp(i) * np.tanh(z)
                n[a] = forget * n[a] + np.exp(i)
                h[a] = c[a] / n[a] / (1.0 + np.exp(-o))
                low = a * K
                normed = (h[a] - h[a].mean()) / math.sqrt(h[a].var() + config["eps"])
                out[b, t, low : low + K] = normed * p["norm"][low : low + K]
    return out
