"""LSTM and GRU in float64 loops, written from the equations."""

from __future__ import annotations

import math

import numpy as np


def sigmoid(x):
    """1 / (1 + e^-x) of one number, without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def lstm(gates_x, weight_hh, bias, h0, c0, starts=None, lengths=None):
    """gates_x (B,T,4H) in order i, f, g, o, weight_hh (4H,H), bias (4H,), h0, c0 (B,H) -> y (B,T,H), h, c (B,H)."""
    batch, time, total = gates_x.shape
    width = total // 4
    y, h_after, c_after = np.zeros((batch, time, width)), np.zeros((batch, width)), np.zeros((batch, width))
    for row in range(batch):
        h, c = np.array(h0[row], dtype=np.float64), np.array(c0[row], dtype=np.float64)
        for t in range(time if lengths is None else int(lengths[row])):
            if starts is not None and starts[row, t]:
                h, c = np.zeros(width), np.zeros(width)
            raw = gates_x[row, t] + weight_hh @ h + bias
            h, before = np.zeros(width), c
            c = np.zeros(width)
            for j in range(width):
                enter, keep = sigmoid(raw[j]), sigmoid(raw[width + j])
                c[j] = keep * before[j] + enter * math.tanh(raw[2 * width + j])
                h[j] = sigmoid(raw[3 * width + j]) * math.tanh(c[j])
            y[row, t] = h
        h_after[row], c_after[row] = h, c
    return y, h_after, c_after


def gru(gates_x, weight_hh, bias, h0, starts=None, lengths=None):
    """gates_x (B,T,3H) in order r, z, n, weight_hh (3H,H), bias (3H,), h0 (B,H) -> y (B,T,H), h (B,H)."""
    batch, time, total = gates_x.shape
    width = total // 3
    y, after = np.zeros((batch, time, width)), np.zeros((batch, width))
    for row in range(batch):
        h = np.array(h0[row], dtype=np.float64)
        for t in range(time if lengths is None else int(lengths[row])):
            if starts is not None and starts[row, t]:
                h = np.zeros(width)
            inner, before = weight_hh @ h + bias, h
            h = np.zeros(width)
            for j in range(width):
                r = sigmoid(gates_x[row, t, j] + inner[j])
                z = sigmoid(gates_x[row, t, width + j] + inner[width + j])
                n = math.tanh(gates_x[row, t, 2 * width + j] + r * inner[2 * width + j])
                h[j] = (1 - z) * n + z * before[j]
            y[row, t] = h
        after[row] = h
    return y, after
