"""A recurrence run forward and backward over every document (Schuster and Paliwal 1997), for LSTM and GRU layers."""

from __future__ import annotations

import numpy as np

from oracles.gru import gru
from oracles.lstm import lstm

KNOWN = {
    "lstm": (lstm, {"hidden": None, "forget_bias": 1.0}),
    "gru": (gru, {"hidden": None, "update_bias": 1.0}),
}


def two_way(parameters, config, x, segments=None):
    """The mixer on x (B,T,D); parameters by name, config as a dict with `width`."""
    branch = dict(config["branches"][0])
    oracle, defaults = KNOWN[branch.pop("name")]
    settings = {**defaults, **branch, "width": config["width"], "canon": config.get("canon", "")}
    ahead, back = (
        {name.removeprefix(side): value for name, value in parameters.items() if name.startswith(side)} for side in ("ahead.", "back.")
    )
    y = np.zeros_like(x)
    for b in range(len(x)):
        marks = np.zeros(x.shape[1]) if segments is None else segments[b]
        for mark in np.unique(marks[marks >= 0]):
            here = x[b, marks == mark][None]
            f, r = oracle(ahead, settings, here)[0], oracle(back, settings, here[:, ::-1])[0][::-1]
            if config["join"] == "concat":
                y[b, marks == mark] = np.concatenate([f, r], -1) @ parameters["out.weight"].T
            else:
                y[b, marks == mark] = (f + r) / (2 if config["join"] == "mean" else 1)
    return y
