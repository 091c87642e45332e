"""RWKV-6's time mix in float64, token by token, from the equations of 2404.05892; RWKV-5 where ranks are 0."""

from __future__ import annotations

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rwkv6(parameters, config, x, segments=None):
    """parameters by name, config as a dict, x (B,T,D), segments (B,T) -> y (B,T,D)."""
    size, width, p = config["head_dim"], config["width"], parameters
    heads, rank, letters = width // size, config["mix_rank"], "wkvrg" if config["decay_rank"] else "kvrg"
    y = np.zeros_like(x)
    for b in range(x.shape[0]):
        memory, before, last = np.zeros((heads, size, size)), np.zeros(width), None
        for t in range(x.shape[1]):
            document = None if segments is None else segments[b, t]
            if document is not None and document < 0:
                continue
            if document != last:
                memory, before, last = np.zeros_like(memory), np.zeros(width), document
            now, gap = x[b, t], before - x[b, t]
            mixed = {}
            for n, letter in enumerate(letters):
                weight = p["mixture"][n]
                if rank:
                    low = np.tanh(p["mix_in"][n * rank : (n + 1) * rank] @ (now + p["mix_share"] * gap))
                    weight = weight + low @ p["mix_out"][n]
                mixed[letter] = now + weight * gap
            r, k = p["receptance.weight"] @ mixed["r"], p["keys.weight"] @ mixed["k"]
            v, g = p["values.weight"] @ mixed["v"], p["gate.weight"] @ mixed["g"]
            rate = p["decay"]
            if config["decay_rank"]:
                rate = rate + p["decay_out"] @ np.tanh(p["decay_in"] @ mixed["w"])
            decay = np.exp(-np.exp(rate))
            o = np.zeros(width)
            for h in range(heads):
                part = slice(h * size, (h + 1) * size)
                new = np.outer(k[part], v[part])
                read = r[part] @ (memory[h] + np.diag(p["bonus"][h]) @ new)
                memory[h] = np.diag(decay[part]) @ memory[h] + new
                read = (read - read.mean()) / np.sqrt(read.var() + 64e-5)
                o[part] = read * p["norm.weight"][part] + p["norm.bias"][part]
            y[b, t] = p["out.weight"] @ (o * g * sigmoid(g))
            before = now
    return y
