"""Kimi Delta Attention in float64, token by token, written from 2510.26692, section 3."""

from __future__ import annotations

import math

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def kda(parameters, config, x, segments=None):
    """parameters by name, config as a dict, x (B,T,D), segments (B,T) -> y (B,T,D)."""
    head, taps = config["head_dim"], config["conv"]
    heads = config["heads"] or max(1, round(config["width"] / head))
    inner = heads * head
    y = np.zeros_like(x)
    for b in range(x.shape[0]):
        convolved, memory = [], np.zeros((heads, head, head))
        for t in range(x.shape[1]):
            if segments is not None and segments[b, t] < 0:
                continue
            if t and segments is not None and segments[b, t] != segments[b, t - 1]:
                convolved, memory = [], np.zeros((heads, head, head))
            p = parameters["inputs.weight"] @ x[b, t]
            convolved.append(p[: 3 * inner])
            between = head if config["low_rank"] else inner
            f, z, raw = np.split(p[3 * inner :], [between, 2 * between])
            mixed = np.zeros(3 * inner)
            for j in range(min(taps, len(convolved))):
                mixed += parameters["conv.weight"][:, taps - 1 - j] * convolved[-1 - j]
            mixed = mixed * sigmoid(mixed)
            if config["low_rank"]:
                f, z = parameters["decay.weight"] @ f, parameters["gate.weight"] @ z
            decay, gate = f + parameters["decay_bias"], z
            out = np.zeros(inner)
            for h in range(heads):
                at = slice(h * head, (h + 1) * head)
                q, k, v = mixed[:inner][at], mixed[inner : 2 * inner][at], mixed[2 * inner :][at]
                q, k = q / math.sqrt(q @ q + 1e-6) / math.sqrt(head), k / math.sqrt(k @ k + 1e-6)
                rate = math.exp(parameters["decay_log"][h])
                alpha = np.exp(-rate * np.log1p(np.exp(decay[at])))
                if config["bound"]:  # Ling 3.0
                    alpha = np.exp(config["bound"] * sigmoid(rate * decay[at]))
                beta = sigmoid(raw[h]) * (2 if config["negative"] else 1)
                memory[h] = (np.eye(head) - beta * np.outer(k, k)) @ np.diag(alpha) @ memory[h] + beta * np.outer(k, v)
                o = memory[h].T @ q
                out[at] = o / math.sqrt(o @ o / head + config["norm_eps"]) * parameters["norm.weight"] * sigmoid(gate[at])
            y[b, t] = parameters["out.weight"] @ out
    return y
