"""DeBERTa's encoder with its masked-lm head in float64 loops, written from 2006.03654 (sections 3.1 and 3.2, figure 2).

The enhanced mask decoder: the last layer is run again and again on queries that begin as its input plus absolute positions;
its keys and values stay those of its input.
"""

from __future__ import annotations

import numpy as np

from oracles.bert import _gelu, _norm, _within
from oracles.disentangled_attention import disentangled_attention


def _layer(p, layer, config, asked, given, segments):
    """One layer whose queries and residual are `asked` (B,T,D), keys and values `given`."""
    block, own = config["blocks"][0], _within(p, f"blocks.{layer}.")
    table = {name: value for name, value in _within(p, "blocks.0.mixer.").items() if name.startswith("position")}
    mixer = {**config["mixer"], "width": config["width"]}
    attended = disentangled_attention({**_within(own, "mixer."), **table}, mixer, given, segments, asked)
    y = np.zeros_like(asked)
    for b, t in np.ndindex(*asked.shape[:2]):
        if segments is not None and segments[b, t] < 0:
            continue
        middle = _norm(asked[b, t] + attended[b, t], own, "mixer_norm", block["eps"])
        wide = own["channel.wide.weight"] @ middle + own["channel.wide.bias"]
        change = own["channel.out.weight"] @ np.array([_gelu(w) for w in wide]) + own["channel.out.bias"]
        y[b, t] = _norm(middle + change, own, "channel_norm", block["eps"])
    return y


def deberta(p, config, tokens, segments=None):
    """Logits (B,T,V) of tokens (B,T) by parameters p; config: the encoder's, with its whole mixer's beside. 0 at padding."""
    x, place = np.zeros((*tokens.shape, config["width"])), np.zeros(tokens.shape, int)
    for b in range(len(tokens)):
        seen: dict[int, int] = {}
        for t in range(tokens.shape[1]):
            mark = 0 if segments is None else int(segments[b, t])
            if mark >= 0:
                place[b, t] = seen[mark] = seen.get(mark, -1) + 1
                x[b, t] = _norm(p["embed.weight"][tokens[b, t]], p, "embed_norm", config["eps"])
    depth = len(config["layout"])
    for layer in range(depth - 1):
        x = _layer(p, layer, config, x, x, segments)
    asked, passes = x, 1
    if config["head"]["positions"]:
        asked, passes = x + p["head.absolute"][place], config["head"]["passes"]
    for _ in range(passes):
        asked = _layer(p, depth - 1, config, asked, x, segments)
    logits = np.zeros((*tokens.shape, len(p["head.out.weight"])))
    for b, t in np.ndindex(*tokens.shape):
        if segments is None or segments[b, t] >= 0:
            middle = np.array([_gelu(w) for w in p["head.dense.weight"] @ asked[b, t] + p["head.dense.bias"]])
            logits[b, t] = p["head.out.weight"] @ _norm(middle, p, "head.norm", config["eps"]) + p["head.out.bias"]
    return logits
