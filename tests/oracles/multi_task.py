"""The uncertainty-weighed sum of losses (1705.07115), and its gradient in the log-variances."""

from __future__ import annotations

import math


def weighed(losses, weights, logs, squared):
    """Dicts by name -> (total, gradient by name)."""
    total, gradient = 0.0, {}
    for name, loss in losses.items():
        sigma = math.exp(logs[name] / 2)
        share = (0.5 if squared[name] else 1.0) / sigma**2
        total += weights[name] * (share * loss + math.log(sigma))
        gradient[name] = weights[name] * (0.5 - share * loss)
    return total, gradient
