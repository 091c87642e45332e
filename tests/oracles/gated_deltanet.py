"""Gated DeltaNet and DeltaNet in float64, token by token, written from 2412.06464 and 2406.06484."""

from __future__ import annotations

import math

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gated_deltanet(parameters, config, x, segments=None):
    """parameters by name, config as a dict, x (B,T,D), segments (B,T) -> y (B,T,D)."""
    head, value = config["head_dim"], round(config["head_dim"] * config["expand_v"])
    key_heads = config["heads"] or max(1, round(config["key_ratio"] * config["width"] / head))
    heads = config["value_heads"] or key_heads
    keys, values = key_heads * head, heads * value
    (batch, time, _), taps = x.shape, config["conv"]
    y = np.zeros_like(x)
    for b in range(batch):
        convolved, memory = [], np.zeros((heads, value, head))
        for t in range(time):
            if segments is not None and segments[b, t] < 0:
                continue
            if t and segments is not None and segments[b, t] != segments[b, t - 1]:
                convolved, memory = [], np.zeros((heads, value, head))
            p = parameters["inputs.weight"] @ x[b, t]
            convolved.append(p[: 2 * keys + values])
            gate = p[2 * keys + values : 2 * keys + 2 * values] if config["gate"] else None
            rest = p[2 * keys + (2 if config["gate"] else 1) * values :]
            mixed = np.zeros(2 * keys + values)
            for j in range(taps):
                if j < len(convolved):
                    mixed += parameters["conv.weight"][:, taps - 1 - j] * convolved[-1 - j]
            mixed = mixed * sigmoid(mixed)
            out = np.zeros(values)
            for h in range(heads):
                group = h // (heads // key_heads)
                q = mixed[group * head : (group + 1) * head]
                k = mixed[keys + group * head : keys + (group + 1) * head]
                v = mixed[2 * keys + h * value : 2 * keys + (h + 1) * value]
                q = q / math.sqrt(q @ q + 1e-6) / math.sqrt(head)
                k = k / math.sqrt(k @ k + 1e-6)
                beta = sigmoid(rest[h]) * (2 if config["negative"] else 1)
                alpha = 1.0
                if config["decay"]:
                    step = math.log1p(math.exp(rest[heads + h] + parameters["decay_bias"][h]))
                    alpha = math.exp(-math.exp(parameters["decay_log"][h]) * step)
                memory[h] = alpha * memory[h] @ (np.eye(head) - beta * np.outer(k, k)) + beta * np.outer(v, k)
                o = memory[h] @ q
                o = o / math.sqrt(o @ o / value + config["norm_eps"]) * parameters["norm.weight"]
                if gate is not None:
                    z = gate[h * value : (h + 1) * value]
                    o = o * z * sigmoid(z)
                out[h * value : (h + 1) * value] = o
            y[b, t] = parameters["out.weight"] @ out
    return y
