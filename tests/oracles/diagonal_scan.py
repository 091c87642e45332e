"""The diagonal recurrence h_t = exp(a_log_t) h_{t-1} + b_t in float64 loops, written from the equation."""

from __future__ import annotations

import math

import numpy as np


def diagonal_scan(a_log, b, state=None, starts=None, lengths=None):
    """a_log, b (B,T,D), state (B,D), starts (B,T), lengths (B,) -> h (B,T,D), state after the last valid token (B,D)."""
    batch, time, width = b.shape
    out, after = np.zeros((batch, time, width)), np.zeros((batch, width))
    for row in range(batch):
        for d in range(width):
            h = 0.0 if state is None else float(state[row, d])
            for t in range(time):
                if lengths is None or t < lengths[row]:
                    if starts is not None and starts[row, t]:
                        h = 0.0
                    gate = float(a_log[row, t, d])
                    h = (0.0 if gate == -math.inf else math.exp(gate) * h) + float(b[row, t, d])
                out[row, t, d] = h
            after[row, d] = h
    return out, after
