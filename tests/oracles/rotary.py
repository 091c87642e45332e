"""Rotary rates and their scalings pair by pair, in plain floats (2104.09864, 2306.15595, 2309.00071, 2402.13753, Llama 3.1)."""

from __future__ import annotations

import math

import numpy as np


def rate(i, rotated, theta, length=0, **s):
    """The angle per token of pair i, of a text of `length` tokens."""
    kind, factor, trained = s.get("kind", "none"), s.get("factor", 1.0), s.get("original")
    if kind == "dynamic":
        stretch = factor * max(length, trained) / trained - (factor - 1)
        theta = theta * stretch ** (rotated / (rotated - 2))
    own = 1.0 / theta ** (2 * i / rotated)
    if kind == "linear":
        return own / factor
    if kind == "longrope":
        return own / (s["long"] if length > trained else s["short"])[i]
    if kind == "llama3":
        wave, low, high = 2 * math.pi / own, s.get("slow", 1.0), s.get("fast", 4.0)
        if wave < trained / high:
            return own
        if wave > trained / low:
            return own / factor
        smooth = (trained / wave - low) / (high - low)
        return (1 - smooth) * own / factor + smooth * own
    if kind == "yarn":
        begin, end = (rotated * math.log(trained / (2 * math.pi * n)) / (2 * math.log(theta)) for n in (s.get("fast", 32.0), s.get("slow", 1.0)))
        if s.get("truncate", True):
            begin, end = math.floor(begin), math.ceil(end)
        begin, end = max(begin, 0), min(end, rotated - 1)
        if begin == end:
            end += 0.001
        inside = min(max((i - begin) / (end - begin), 0.0), 1.0)
        return own / factor * inside + own * (1 - inside)
    return own


def gain(**s):
    """What queries and keys are multiplied by as they are turned."""
    kind, factor = s.get("kind", "none"), s.get("factor", 1.0)
    if "attention" in s:
        return s["attention"]
    if kind == "yarn":
        if s.get("mscale") and s.get("mscale_all"):
            return (0.1 * s["mscale"] * math.log(factor) + 1) / (0.1 * s["mscale_all"] * math.log(factor) + 1)
        return 0.1 * math.log(factor) + 1
    return math.sqrt(1 + math.log(factor) / math.log(s["original"])) if kind == "longrope" else 1.0


def turned(x, positions, rotated, theta, length=0, **s):
    """x (T,K), each pair of its first R numbers turned by its token's position (T,)."""
    y = np.array(x, dtype=np.float64)
    for t, position in enumerate(positions):
        for i in range(rotated // 2):
            angle, a, b = position * rate(i, rotated, theta, length, **s), x[t][2 * i], x[t][2 * i + 1]
            y[t, 2 * i] = gain(**s) * (a * math.cos(angle) - b * math.sin(angle))
            y[t, 2 * i + 1] = gain(**s) * (a * math.sin(angle) + b * math.cos(angle))
    return y


def attention(q, k, v, theta, scale, lengths, **s):
    """Causal attention of one head, q, k, v (T,K); token t and its key are turned as of a text of lengths[t] tokens."""
    size, size_v = np.shape(q)[1], np.shape(v)
    q, k = ([turned([row], [t], size, theta, lengths[t], **s)[0] for t, row in enumerate(part)] for part in (q, k))
    y = np.zeros(size_v)
    for t in range(len(q)):
        scores = [scale * sum(q[t] * k[j]) for j in range(t + 1)]
        weights = [math.exp(score - max(scores)) for score in scores]
        y[t] = sum(w * np.asarray(v[j]) for j, w in enumerate(weights)) / sum(weights)
    return y
