"""Linear warm-up, then half a cosine down to the floor. Paper: SGDR (1608.03983), one period without restarts."""

from __future__ import annotations

import math

from orrery.core.registry import register
from orrery.optim.schedule import Plan, warmup_factor


def cosine(step: int, plan: Plan) -> float:
    """``floor + (1 - floor) (1 + cos(pi x)) / 2`` with x from 0 after the warm-up to 1 one step past the last."""
    if step < plan.warmup:
        return warmup_factor(step, plan)
    done = min(1.0, (step - plan.warmup) / max(1, plan.steps - plan.warmup))
    return plan.floor + (1 - plan.floor) * 0.5 * (1 + math.cos(math.pi * done))


register(
    "cosine",
    schedule="cosine",
    summary="linear warm-up, then half a cosine to the floor",
    paper="1608.03983",
    year=2016,
)
