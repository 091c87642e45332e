"""RWKV-4's time mix and channel mix in float64, from the sums over all pairs of tokens (no recurrence, no running maximum)."""

from __future__ import annotations

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def documents(row):
    """The pieces of one row: lists of positions that share a document, padding left out."""
    pieces, last = [], object()
    for t, document in enumerate(row):
        if document is not None and document < 0:
            continue
        if document != last:
            pieces.append([])
            last = document
        pieces[-1].append(t)
    return pieces


def shifted(x, places, n):
    """The token before the n-th of a document."""
    return x[places[n - 1]] if n else np.zeros(x.shape[1])


def rwkv4(parameters, config, x, segments=None):
    """The time mix: parameters by name, config as a dict, x (B,T,D), segments (B,T) -> y (B,T,D)."""
    y = np.zeros_like(x)
    decay, bonus = np.exp(parameters["time_decay"]), parameters["time_first"]
    for b in range(x.shape[0]):
        for places in documents([None] * x.shape[1] if segments is None else segments[b]):
            keys, values = [], []
            for n, t in enumerate(places):
                mixed = {}
                for name in "kvr":
                    ratio = parameters[f"mix_{name}"]
                    mixed[name] = ratio * x[b, t] + (1 - ratio) * shifted(x[b], places, n)
                keys.append(parameters["key.weight"] @ mixed["k"])
                values.append(parameters["value.weight"] @ mixed["v"])
                weights = [np.exp(keys[s] - (n - 1 - s) * decay) for s in range(n)] + [np.exp(bonus + keys[n])]
                average = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
                y[b, t] = parameters["out.weight"] @ (sigmoid(parameters["receptance.weight"] @ mixed["r"]) * average)
    return y


def rwkv4_channel(parameters, config, x, segments=None):
    """The channel mix, likewise."""
    y = np.zeros_like(x)
    for b in range(x.shape[0]):
        for places in documents([None] * x.shape[1] if segments is None else segments[b]):
            for n, t in enumerate(places):
                mixed = {}
                for name in "kr":
                    ratio = parameters[f"mix_{name}"]
                    mixed[name] = ratio * x[b, t] + (1 - ratio) * shifted(x[b], places, n)
                wide = np.maximum(parameters["key.weight"] @ mixed["k"], 0) ** 2
                y[b, t] = sigmoid(parameters["receptance.weight"] @ mixed["r"]) * (parameters["value.weight"] @ wide)
    return y
