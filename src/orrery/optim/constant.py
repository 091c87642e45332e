"""Constant learning rate after a linear warm-up."""

from __future__ import annotations

from orrery.core.registry import register
from orrery.optim.schedule import Plan, warmup_factor


def constant(step: int, plan: Plan) -> float:
    """Warm-up, then 1."""
    return warmup_factor(step, plan)


register("constant", schedule="constant", summary="linear warm-up, then constant")
