"""A mixture of experts token by token, choice by choice (2101.03961, 2401.06066, 2412.19437)."""

from __future__ import annotations

import numpy as np


def _glu(x, wide, out, gated):
    h = wide @ x
    if not gated:
        return out @ (h / (1 + np.exp(-h)))
    a, b = np.split(h, 2)
    return out @ (a / (1 + np.exp(-a)) * b)


def moe(parameters, config, x):
    """The channel mixer with SiLU on x (B,T,D); returns y, the balance loss and the router z-loss, without weights."""
    experts, k = config["experts"], config["top_k"]
    y = np.zeros_like(x)
    counts, mass, squares, tokens = np.zeros(experts), np.zeros(experts), 0.0, x.shape[0] * x.shape[1]
    for b, t in np.ndindex(*x.shape[:2]):
        u = x[b, t]
        logits = parameters["router.weight"] @ u
        if config["score"] == "softmax":
            p = np.exp(logits - logits.max())
            p /= p.sum()
        else:
            p = 1 / (1 + np.exp(-logits))
        rank = p + parameters.get("selection_bias", 0.0)
        if "group_count" in config:  # 2412.19437, section 2.1.2: node-limited routing
            groups = np.split(np.arange(experts), config["group_count"])
            groups.sort(key=lambda group: -np.sort(rank[group])[-2:].sum())
            for group in groups[config["group_top"] :]:
                rank[group] = -np.inf
        chosen = np.argsort(-rank)[:k]
        normaliser = 1.0
        if config["normalise"]:
            normaliser = p[chosen].sum() + (0.0 if config["normalise"] is True else config["normalise"])
        gates = p[chosen] / normaliser * config["scale"]
        for expert, gate in zip(chosen, gates, strict=True):
            y[b, t] += gate * _glu(u, parameters["wide"][expert], parameters["out"][expert], config["gated"])
            counts[expert] += 1
        if config["shared"]:
            together = _glu(u, parameters["shared.wide.weight"], parameters["shared.out.weight"], config["gated"])
            if config["shared_gate"]:
                together = together / (1 + np.exp(-(parameters["shared_gate.weight"] @ u)))
            y[b, t] += together
        mass += p / p.sum()
        squares += np.log(np.exp(logits).sum()) ** 2
    return y, experts * np.sum(counts / tokens * mass / tokens), squares / tokens
