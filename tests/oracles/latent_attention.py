"""Latent attention in float64 loops, one query and one key at a time, every key and value expanded; written from 2405.04434, section 2.1."""

from __future__ import annotations

import math

import numpy as np


def _turn(vector, position, theta):
    """Rotate neighbouring pairs by position * theta^(-2i/n)."""
    turned = vector.copy()
    for i in range(0, len(vector), 2):
        angle = position * theta ** (-i / len(vector))
        turned[i] = vector[i] * math.cos(angle) - vector[i + 1] * math.sin(angle)
        turned[i + 1] = vector[i] * math.sin(angle) + vector[i + 1] * math.cos(angle)
    return turned


def _norm(vector, gain, eps):
    return gain * vector / math.sqrt(np.mean(vector**2) + eps)


def latent_attention(parameters, config, x, segments=None):
    """The mixer on x (B,T,D); parameters by name, config as a dict with `width`."""
    own = config["head_dim"]
    heads, size = config["heads"] or config["width"] // own, config["value_dim"] or own
    rank = config["rank"] or 4 * own
    shared = 2 * (own // 4) if config["shared"] is None else config["shared"]
    first = config["query_rank"] or heads * (shared + own)
    expand = parameters["expand.weight"].reshape(heads, own + size, rank)
    y = np.zeros_like(x)
    for b in range(len(x)):
        past = []
        for t in range(x.shape[1]):
            if segments is not None and segments[b, t] < 0:
                continue
            if segments is not None and t and segments[b, t] != segments[b, t - 1]:
                past = []
            p, position = parameters["inputs.linear.weight"] @ x[b, t], len(past)
            q, c, r, gate = np.split(p, [first, first + rank, first + rank + shared])
            if config["query_rank"]:
                q = parameters["query.weight"] @ _norm(q, parameters["query_norm.weight"], config["norm_eps"])
            if config["rope"]:
                r = _turn(r, position, config["rope_theta"])
            past.append((_norm(c, parameters["norm.weight"], config["norm_eps"]), r))
            low = 0 if config["window"] is None else max(0, position + 1 - config["window"])
            out = np.zeros((heads, size))
            for h, query in enumerate(q.reshape(heads, shared + own)):
                a, own_part = query[:shared], query[shared:]
                if config["rope"]:
                    a = _turn(a, position, config["rope_theta"])
                asked, weights = np.concatenate([a, own_part]), []
                for c, r in past[low:]:
                    key = np.concatenate([r, expand[h, :own] @ c])
                    weights.append(math.exp(asked @ key / math.sqrt(shared + own)))
                for weight, (c, _) in zip(weights, past[low:], strict=True):
                    out[h] += weight / sum(weights) * (expand[h, own:] @ c)
                if config["gate"]:
                    out[h] /= 1 + math.exp(-gate[h])
            y[b, t] = parameters["out.weight"] @ out.ravel()
    return y
