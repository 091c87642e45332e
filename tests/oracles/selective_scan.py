"""The selective scan of Mamba in float64 loops, number by number, written from the equation."""

from __future__ import annotations

import math

import numpy as np


def selective_scan(x, dt, A, B, C, D, z, dt_bias, state=None, starts=None, lengths=None):
    """x, dt, z (B,T,E), A (E,N), B and C (B,T,N), D and dt_bias (E,), state (B,N,E) -> y (B,T,E), the last state."""
    batch, time, width = x.shape
    size = A.shape[1]
    y, after = np.zeros((batch, time, width)), np.zeros((batch, size, width))
    for row in range(batch):
        end = time if lengths is None else int(lengths[row])
        for e in range(width):
            h = [0.0 if state is None else float(state[row, n, e]) for n in range(size)]
            for t in range(end):
                if starts is not None and starts[row, t]:
                    h = [0.0] * size
                raw = dt[row, t, e] + dt_bias[e]
                delta = math.log1p(math.exp(raw)) if raw < 30 else raw
                s = D[e] * x[row, t, e]
                for n in range(size):
                    h[n] = math.exp(delta * A[e, n]) * h[n] + delta * x[row, t, e] * B[row, t, n]
                    s += C[row, t, n] * h[n]
                y[row, t, e] = s * z[row, t, e] / (1 + math.exp(-z[row, t, e]))
            after[row, :, e] = h
    return y, after
