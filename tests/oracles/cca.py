"""ZAYA's attention and experts in float64 loops, token by token, from 2510.04476 and 2511.17127."""

from __future__ import annotations

import math

import numpy as np


def _turn(vector, position, share, theta):
    turned, count = vector.copy(), 2 * int(share * len(vector) / 2)
    for i in range(0, count, 2):
        angle = position * theta ** (-i / count)
        a, b = vector[i], vector[i + 1]
        turned[i], turned[i + 1] = a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)
    return turned


def cca(parameters, config, x, segments=None):
    """The mixer on x (B,T,D); parameters by name, config as a dict with `width`."""
    p = {name.removeprefix("attention."): np.asarray(value, dtype=np.float64) for name, value in parameters.items()}
    size, (deep, wide) = config["head_dim"], config["taps"]
    heads = config["heads"]
    groups = config["kv_heads"] or (heads if heads % 4 else heads // 4)
    channels, half = (heads + groups) * size, groups * size // 2
    weight, bias = p["inputs.linear.weight"], p.get("inputs.linear.bias", np.zeros(channels + 2 * half))
    y = np.zeros_like(x)
    for b in range(len(x)):
        document, keys, values = [], [], []
        for t in range(x.shape[1]):
            if segments is not None and segments[b, t] < 0:
                continue
            if segments is not None and t and segments[b, t] != segments[b, t - 1]:
                document, keys, values = [], [], []
            document.append(x[b, t])

            def raw(back, document=document):
                at = len(document) - 1 - back
                return weight[:channels] @ document[at] + bias[:channels] if at >= 0 else np.zeros(channels)

            def first(back):
                return p["inputs.first_bias"] + sum(p["inputs.first"][:, deep - 1 - i] * raw(back + i) for i in range(deep))

            mixed = np.zeros((heads + groups, size))
            for head in range(heads + groups):
                own = slice(head * size, (head + 1) * size)
                mixed[head] = p["inputs.second_bias"][own]
                for j in range(wide):
                    mixed[head] += p["inputs.second"][own, :, wide - 1 - j] @ first(j)[own]
            plain = raw(0).reshape(heads + groups, size)
            means = [(plain[h] + plain[heads + h // (heads // groups)]) / 2 for h in range(heads)]
            q = [mixed[h] + means[h] for h in range(heads)]
            k = [mixed[heads + g] + np.mean(means[g * heads // groups : (g + 1) * heads // groups], axis=0) for g in range(groups)]
            q = [math.sqrt(size) * v / math.sqrt(sum(v * v)) for v in q]
            k = [p["inputs.gain"][g] * math.sqrt(size) * v / math.sqrt(sum(v * v)) for g, v in enumerate(k)]
            before = document[-2] if len(document) > 1 else np.zeros(len(x[b, t]))
            now = weight[channels : channels + half] @ x[b, t] + bias[channels : channels + half]
            late = weight[channels + half :] @ before + bias[channels + half :]
            place = len(keys)
            keys.append([_turn(v, place, config["rope"], config["rope_theta"]) for v in k])
            values.append(np.concatenate([now, late]).reshape(groups, size))
            out, least = [], 0 if config["window"] is None else max(0, place + 1 - config["window"])
            for h in range(heads):
                turned, g = _turn(q[h], place, config["rope"], config["rope_theta"]), h // (heads // groups)
                scores = [turned @ keys[s][g] / math.sqrt(size) for s in range(least, place + 1)]
                weights = np.exp(np.array(scores) - max(scores))
                out.append(sum(w * values[least + s][g] for s, w in enumerate(weights / weights.sum())))
            y[b, t] = p["out.weight"] @ np.concatenate(out) + p.get("out.bias", 0.0)
    return y


def _gelu(x):
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])


def experts(parameters, x, before=None, eps=1e-5):
    """The channel mixer on x (T,D), with what the layer before left (T,R) -> y (T,D), what this one leaves, and its choices."""
    p = {name: np.asarray(value, dtype=np.float64) for name, value in parameters.items()}
    y, left, choices = np.zeros_like(x), [], []
    for t, token in enumerate(x):
        z = p["router.down.weight"] @ token + p["router.down.bias"]
        if before is not None:
            z = z + before[t] * p["router.carry"]
        left.append(z)
        h = p["router.norm.weight"] * z / math.sqrt(np.mean(z * z) + eps)
        h = _gelu(p["router.first.weight"] @ h + p["router.first.bias"])
        h = _gelu(p["router.second.weight"] @ h + p["router.second.bias"])
        scores = p["router.out.weight"] @ h
        chances = np.exp(scores - max(scores)) / np.exp(scores - max(scores)).sum()
        best = int(np.argmax(chances + p["selection_bias"]))
        choices.append(best)
        if best < len(p["wide"]):
            gate, up = np.split(p["wide"][best] @ token, 2)
            y[t] = chances[best] * (p["out"][best] @ (gate / (1 + np.exp(-gate)) * up))
    return y, np.array(left), choices
