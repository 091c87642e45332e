"""RWKV-4's time mix with mediums in float64, from the sums over all pairs of a stream of tokens and mediums."""

from __future__ import annotations

import numpy as np

from oracles.rwkv4 import documents, shifted, sigmoid


def medium_of(parameters, tokens):
    z = np.mean(tokens, 0)
    hidden = np.maximum(parameters["mediums.squeeze.weight"] @ z + parameters["mediums.squeeze.bias"], 0)
    return sigmoid(parameters["mediums.excite.weight"] @ hidden + parameters["mediums.excite.bias"]) * z


def rrwkv(parameters, config, x, segments=None):
    """parameters by name, config as a dict, x (B,T,D), segments (B,T) -> y (B,T,D)."""
    y, length = np.zeros_like(x), config["segment"]
    decay, bonus = np.exp(parameters["time_decay"]), parameters["time_first"]
    for b in range(x.shape[0]):
        for places in documents([None] * x.shape[1] if segments is None else segments[b]):
            stream, latest = [], np.zeros(x.shape[2])
            for n, t in enumerate(places):
                mixed = {}
                for i, name in enumerate("kvr"):
                    ratio = parameters[f"mix_{name}"]
                    mixed[name] = ratio * x[b, t] + (1 - ratio) * shifted(x[b], places, n) + parameters["reads"][i] * latest
                key, value = parameters["key.weight"] @ mixed["k"], parameters["value.weight"] @ mixed["v"]
                weights = [np.exp(k - (len(stream) - 1 - s) * decay) for s, (k, _) in enumerate(stream)] + [np.exp(bonus + key)]
                stream.append((key, value))
                average = sum(w * v for w, (_, v) in zip(weights, stream, strict=True)) / sum(weights)
                y[b, t] = parameters["out.weight"] @ (sigmoid(parameters["receptance.weight"] @ mixed["r"]) * average)
                if (n + 1) % length == 0:
                    latest = medium_of(parameters, [x[b, s] for s in places[n + 1 - length : n + 1]])
                    stream.append((parameters["key.weight"] @ latest, parameters["value.weight"] @ latest))
    return y
