"""Disentangled attention in float64 loops, written from 2006.03654 (equations 2 to 4) and 2111.09543."""

from __future__ import annotations

import math

import numpy as np


def _bucket(distance, buckets, most):
    mid = buckets // 2
    if not mid or abs(distance) <= mid:
        return distance
    far = mid + math.ceil(math.log(abs(distance) / mid) / math.log((most - 1) / mid) * (mid - 1))
    return far if distance > 0 else -far


def disentangled_attention(parameters, config, x, segments=None, queries=None):
    """The mixer on x (B,T,D), asked by queries (B,T,D) or x; parameters by name, config as a dict with `width`."""
    size, width, terms = config["head_dim"], config["width"], config["terms"]
    weight, bias = parameters["inputs.linear.weight"], parameters.get("inputs.linear.bias", np.zeros(3 * width))
    maps = [(weight[p * width : (p + 1) * width], bias[p * width : (p + 1) * width]) for p in range(3)]
    table = parameters["positions"]
    if config["norm_positions"]:
        centred = table - table.mean(1, keepdims=True)
        table = centred / np.sqrt((centred**2).mean(1, keepdims=True) + config["eps"])
        table = table * parameters["position_norm.weight"] + parameters["position_norm.bias"]
    side = len(table) // 2
    of_keys, of_queries = maps[1], maps[0]
    if not config["shared_key"]:
        of_keys, of_queries = ((parameters[f"{n}.weight"], parameters.get(f"{n}.bias", 0.0)) for n in ("position_key", "position_query"))
    scale = math.sqrt(size * (1 + len(terms)))
    y = np.zeros_like(x)
    for b in range(len(x)):
        marks = np.zeros(x.shape[1]) if segments is None else segments[b]
        for mark in np.unique(marks[marks >= 0]):
            places = np.flatnonzero(marks == mark)
            asked = x if queries is None else queries
            q, k, v = ([w @ given[b, t] + c for t in places] for given, (w, c) in zip((asked, x, x), maps, strict=True))
            for i, t in enumerate(places):
                out = np.zeros(width)
                for h in range(width // size):
                    own, scores = slice(h * size, (h + 1) * size), []
                    for j in range(len(places)):
                        row = table[min(max(_bucket(i - j, config["buckets"], config["max_positions"]) + side, 0), 2 * side - 1)]
                        score = q[i][own] @ k[j][own]
                        if "c2p" in terms:
                            score += q[i][own] @ (of_keys[0] @ row + of_keys[1])[own]
                        if "p2c" in terms:
                            score += k[j][own] @ (of_queries[0] @ row + of_queries[1])[own]
                        scores.append(math.exp(score / scale))
                    for j, score in enumerate(scores):
                        out[own] += score / sum(scores) * v[j][own]
                y[b, t] = parameters["out.weight"] @ out + parameters.get("out.bias", 0.0)
    return y
