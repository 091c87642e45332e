"""Learning-rate schedules as pure functions of the step, so that a resumed run needs no schedule state.

`schedule(step, plan)` is a factor in [0, 1] on the peak learning rate for the step about to be taken (0-based).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from orrery.core import registry
from orrery.core.errors import ConfigError


class Plan(NamedTuple):
    """Length and shape of a run's schedule, in steps."""

    steps: int
    warmup: int = 0  # steps of linear warm-up; the peak is reached at step `warmup - 1`
    decay: int = 0  # steps of the final decay, for schedules that have one
    floor: float = 0.0  # the factor that the decay runs towards, reached one step after the last


def make_plan(steps: int, warmup: float = 0.0, decay: float = 0.0, floor: float = 0.0) -> Plan:
    """A plan; `warmup` and `decay` below 1 are shares of the steps, otherwise numbers of steps.

    Raises:
        ConfigError: negative numbers, a floor outside [0, 1], or a warm-up longer than the run.
    """
    if steps < 1:
        raise ConfigError(f"a schedule needs at least 1 step, not {steps}")
    if warmup < 0 or decay < 0 or not 0 <= floor <= 1:
        raise ConfigError(f"warmup {warmup} and decay {decay} must be 0 or more, floor {floor} in [0, 1]")
    warm, last = (round(steps * x) if x < 1 else round(x) for x in (warmup, decay))
    if warm + last > steps:
        raise ConfigError(f"a warm-up of {warm} and a decay of {last} steps do not fit into {steps} steps")
    return Plan(steps, warm, last, floor)


def warmup_factor(step: int, plan: Plan) -> float:
    """(step + 1) / warmup during the warm-up, 1 after it."""
    return min(1.0, (step + 1) / plan.warmup) if plan.warmup else 1.0


def create_schedule(name: str, plan: Plan) -> Callable[[int], float]:
    """The registered schedule `name` for a plan, as a function of the step alone."""
    function = registry.load(name, "schedule")
    return lambda step: function(step, plan)
