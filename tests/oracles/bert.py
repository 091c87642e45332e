"""BERT's encoder without a head, in float64 loops over documents, written from 1706.03762 (figure 1, encoder) and 1810.04805."""

from __future__ import annotations

import math

import numpy as np

from oracles.bidirectional_attention import bidirectional_attention


def _norm(vector, parameters, name, eps):
    centred = vector - vector.mean()
    return parameters[f"{name}.weight"] * centred / math.sqrt(np.mean(centred**2) + eps) + parameters[f"{name}.bias"]


def _gelu(number):
    return number * (1 + math.erf(number / math.sqrt(2))) / 2


def _within(parameters, prefix):
    return {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}


def bert(parameters, config, tokens, types=None, segments=None):
    """Hidden states (B,T,D) of tokens (B,T); types (B,T) are 0 where not given, segments (B,T) name documents, -1 is padding."""
    x = np.zeros((*tokens.shape, config["width"]))
    for b in range(tokens.shape[0]):
        seen: dict[int, int] = {}
        for t in range(tokens.shape[1]):
            mark = 0 if segments is None else int(segments[b, t])
            if mark < 0:
                continue
            position = seen[mark] = seen.get(mark, -1) + 1
            kind = 0 if types is None else types[b, t]
            row = parameters["embed.weight"][tokens[b, t]] + parameters["position_embed.weight"][position]
            x[b, t] = _norm(row + parameters["type_embed.weight"][kind], parameters, "embed_norm", config["eps"])
    for layer, which in enumerate(config["layout"]):
        block, own = config["blocks"][which], _within(parameters, f"blocks.{layer}.")
        mixer = {"heads": None, "kv_heads": None, "window": None, "rope_theta": 10000.0, "width": config["width"], **block["mixer"]}
        attended = bidirectional_attention(_within(own, "mixer."), mixer, x, segments)
        for b, t in np.ndindex(*tokens.shape):
            if segments is not None and segments[b, t] < 0:
                continue
            middle = _norm(x[b, t] + attended[b, t], own, "mixer_norm", block["eps"])
            wide = own["channel.wide.weight"] @ middle + own["channel.wide.bias"]
            change = own["channel.out.weight"] @ np.array([_gelu(w) for w in wide]) + own["channel.out.bias"]
            x[b, t] = _norm(middle + change, own, "channel_norm", block["eps"])
    return x
