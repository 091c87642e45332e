"""RWKV-4's weighted average in float64 loops over pairs of tokens, without recurrence and without a running maximum."""

from __future__ import annotations

import math

import numpy as np


def wkv4(k, v, w_log, u, state=None, starts=None, lengths=None):
    """k, v (B,T,D), w_log, u (D,), state (num, den, peak) of (B,D), starts (B,T), lengths (B,) -> y (B,T,D), (NUM, DEN).

    NUM and DEN (B,D) are the sums after the last valid token without the factor e^-peak that a running maximum takes out.
    """
    batch, time, width = k.shape
    y = np.zeros((batch, time, width))
    num_after, den_after = np.zeros((batch, width)), np.zeros((batch, width))
    for row in range(batch):
        end = time if lengths is None else int(lengths[row])
        for d in range(width):
            for t in range(end + 1):  # t = end asks for the sums only
                num = den = 0.0
                first, alive = 0, state is not None
                for s in range(min(t + 1, end)):
                    if starts is not None and starts[row, s]:
                        first, alive = s, False
                if alive:
                    scale = math.exp(float(state[2][row, d]) + t * float(w_log[d]))
                    num, den = float(state[0][row, d]) * scale, float(state[1][row, d]) * scale
                for s in range(first, t):
                    weight = math.exp(float(k[row, s, d]) + (t - 1 - s) * float(w_log[d]))
                    num, den = num + weight * float(v[row, s, d]), den + weight
                if t == end:
                    num_after[row, d], den_after[row, d] = num, den
                    continue
                now = math.exp(float(u[d]) + float(k[row, t, d]))
                y[row, t, d] = (num + now * float(v[row, t, d])) / (den + now)
    return y, (num_after, den_after)
