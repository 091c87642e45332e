"""The astrocyte-modulated spiking mixer, recurrent form, channel by channel in float64."""

from __future__ import annotations

import math

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def astro_snn(parameters, config, x, segments=None):
    """parameters by name, config as a dict, x (B,T,D), segments (B,T) -> y (B,T,D)."""
    size = len(parameters["theta"])
    y = np.zeros_like(x)
    for b in range(x.shape[0]):
        before, u, c = np.zeros(x.shape[2]), np.zeros(size), np.zeros(size)
        for t in range(x.shape[1]):
            if segments is not None and t and segments[b, t] != segments[b, t - 1]:
                before, u, c = np.zeros(x.shape[2]), np.zeros(size), np.zeros(size)
            mixed = [mu * x[b, t] + (1 - mu) * before for mu in parameters["shares"]]
            before = x[b, t]
            v, r = parameters["value.weight"] @ mixed[0], parameters["receptance.weight"] @ mixed[1]
            k = parameters["key.weight"] @ mixed[2] if config["astrocyte"] else None
            sent = np.zeros(size)
            for i in range(size):
                u[i] = math.exp(-math.exp(parameters["fast_rate"][i])) * u[i] + v[i]
                spike = 1.0 if u[i] > parameters["theta"][i] else 0.0
                gain = 1.0
                if config["astrocyte"]:
                    keep = math.exp(-math.exp(parameters["slow_rate"][i]))
                    c[i] = keep * c[i] + (1 - keep) * spike * math.exp(min(k[i], 8.0))
                    gain = sigmoid(parameters["gain"][0, i] * c[i] + parameters["gain"][1, i])
                sent[i] = gain * spike * sigmoid(r[i])
            y[b, t] = parameters["out.weight"] @ sent
    return y
