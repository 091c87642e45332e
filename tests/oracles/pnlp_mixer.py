"""pNLP-Mixer (2202.04350) on one text in float64 loops, from counts in Bloom filters to the vector of the document."""

from __future__ import annotations

import math

import numpy as np

from oracles.minhash import bloom, fingerprint, words


def _gelu(z):
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in z])


def _norm(row, weight, bias):
    centred = row - row.mean()
    return centred / math.sqrt((centred**2).mean() + 1e-5) * weight + bias


def pnlp_mixer(parameters, config, text):
    """(hidden of every word (W,D), vector of the document (D,))."""
    p, width, window, room = parameters, config["width"], config["window"], config["words"]
    counts = [bloom(fingerprint(word, config["hashes"]), config["buckets"]) for word in words(text)]
    zero = np.zeros(config["buckets"], dtype=int)
    x = []
    for t in range(len(counts)):
        row = p["bias"].copy()
        for offset in range(-window, window + 1):
            c = counts[t + offset] if 0 <= t + offset < len(counts) else zero
            row = row + c @ p["bottleneck"][:, (offset + window) * width : (offset + window + 1) * width]
        x.append(row)
    for begin in range(0, len(x), room):
        piece = x[begin : begin + room]
        for layer in range(config["depth"]):
            name = f"layers.{layer}"
            seen = np.zeros((room, width))
            for t, row in enumerate(piece):
                seen[t] = _norm(row, p[f"{name}.time_norm.weight"], p[f"{name}.time_norm.bias"])
            for feature in range(width):
                hidden = _gelu(p[f"{name}.time_in.weight"] @ seen[:, feature] + p[f"{name}.time_in.bias"])
                mixed = p[f"{name}.time_out.weight"] @ hidden + p[f"{name}.time_out.bias"]
                for t, row in enumerate(piece):
                    row[feature] += mixed[t]
            for t, row in enumerate(piece):
                inner = _norm(row, p[f"{name}.norm.weight"], p[f"{name}.norm.bias"])
                hidden = _gelu(p[f"{name}.wide.weight"] @ inner + p[f"{name}.wide.bias"])
                piece[t] = row + p[f"{name}.out.weight"] @ hidden + p[f"{name}.out.bias"]
        x[begin : begin + room] = piece
    scores = np.array([p["attend.weight"] @ row for row in x])
    values = np.array([p["value.weight"] @ row + p["value.bias"] for row in x])
    weights = np.exp(scores) / np.exp(scores).sum(0)
    return np.array(x), (weights * values).sum(0)
