"""HyperMixing (2203.03691), document by document and head by head in float64 loops."""

from __future__ import annotations

import math

import numpy as np


def _gelu(z):
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in z.ravel()]).reshape(z.shape)


def _sinusoid(position, width):
    half = (width + 1) // 2
    angles = [position / 10000.0 ** (2 * i / width) for i in range(half)]
    return np.array([math.sin(a) for a in angles] + [math.cos(a) for a in angles[: width - half]])


def hypermixer(parameters, config, x, segments=None):
    """The mixer on x (B,T,D); parameters by name, config as a dict with `width`."""
    width, heads = config["width"], config["heads"]
    size = width // heads
    y = np.zeros_like(x)
    for b in range(len(x)):
        marks = np.zeros(x.shape[1]) if segments is None else segments[b]
        for mark in np.unique(marks[marks >= 0]):
            places = np.flatnonzero(marks == mark)
            joined = np.zeros((len(places), width))
            for h in range(heads):
                cut = slice(h * size, (h + 1) * size)
                rows = {"into": [], "back": []}
                for position, t in enumerate(places):
                    seen = x[b, t].copy()
                    if config["positions"] == "sinusoid":
                        seen = seen + _sinusoid(position, width)
                    for side in rows:
                        name = "into" if config["tied"] else side
                        hidden = _gelu(parameters[f"{name}.inner"][h].T @ seen[cut])
                        rows[side].append(parameters[f"{name}.outer"][h].T @ hidden)
                for feature in range(size):
                    column = x[b, places, h * size + feature]
                    hidden = sum(value * row for value, row in zip(column, rows["into"], strict=True))
                    joined[:, h * size + feature] = [row @ _gelu(hidden) for row in rows["back"]]
            for row, t in enumerate(places):
                centred = joined[row] - joined[row].mean()
                scaled = centred / math.sqrt((centred**2).mean() + 1e-5)
                y[b, t] = scaled * parameters["norm.weight"] + parameters["norm.bias"]
    return y
