"""Warm-up, stable, decay. Papers: MiniCPM (2404.06395, section 4); the linear tail: 2405.18392 (also `1 - sqrt`).

The stable part may be prolonged after the fact: only the decay depends on where the run ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from orrery.core.registry import register
from orrery.optim.schedule import Plan, warmup_factor


def wsd(step: int, plan: Plan) -> float:
    """Warm-up, 1, then a straight line to the floor over the last `plan.decay` steps."""
    return _decayed(step, plan, lambda left: left)


def wsd_sqrt(step: int, plan: Plan) -> float:
    """The same with the tail ``1 - sqrt(x)`` (2405.18392, section 4)."""
    return _decayed(step, plan, lambda left: 1 - math.sqrt(1 - left))


def _decayed(step: int, plan: Plan, shape: Callable[[float], float]) -> float:
    left = (plan.steps - step) / plan.decay if plan.decay else 1.0
    if left >= 1:
        return warmup_factor(step, plan)
    return plan.floor + (1 - plan.floor) * shape(max(0.0, left))


register("wsd", schedule="wsd", summary="warm-up, stable, linear decay", paper="2404.06395", year=2024)
register("wsd-sqrt", schedule="wsd_sqrt", summary="warm-up, stable, 1 - sqrt decay", paper="2405.18392", year=2024)
