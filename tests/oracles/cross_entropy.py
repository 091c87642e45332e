"""Cross-entropy of a linear head in float64 loops, written from the definition."""

from __future__ import annotations

import math

import numpy as np


def linear_cross_entropy(hidden, weight, targets, bias=None, weights=None, z_loss=0.0, softcap=None, ignore=-100):
    """(mean loss, nats per row) of hidden (N,D), weight (V,D), targets (N,)."""
    rows, classes = len(hidden), len(weight)
    nats = np.zeros(rows)
    loss = mass = 0.0
    for n in range(rows):
        if targets[n] == ignore:
            continue
        logits = [
            float(np.dot(hidden[n], weight[v])) + (0.0 if bias is None else float(bias[v])) for v in range(classes)
        ]
        if softcap is not None:
            logits = [softcap * math.tanh(z / softcap) for z in logits]
        peak = max(logits)
        lse = peak + math.log(sum(math.exp(z - peak) for z in logits))
        nats[n] = lse - logits[targets[n]]
        share = 1.0 if weights is None else float(weights[n])
        loss += share * (nats[n] + z_loss * lse * lse)
        mass += share
    return (loss / mass if mass else 0.0), nats
