"""Schedules: exact values, and what holds of all of them."""

from __future__ import annotations

import itertools
import math

import pytest

from orrery.core import registry
from orrery.core.errors import ConfigError, UnknownNameError
from orrery.optim.schedule import Plan, create_schedule, make_plan

NAMES = registry.names(kind="schedule")


def values(name, plan):
    schedule = create_schedule(name, plan)
    return [schedule(step) for step in range(plan.steps)]


def test_constant_values():
    assert values("constant", Plan(5, warmup=2)) == [0.5, 1.0, 1.0, 1.0, 1.0]
    assert values("constant", Plan(3)) == [1.0, 1.0, 1.0]


def test_cosine_values():
    got = values("cosine", Plan(6, warmup=2, floor=0.1))
    wanted = [
        0.5,
        1.0,
        1.0,
        0.1 + 0.45 * (1 + math.cos(math.pi / 4)),
        0.55,
        0.1 + 0.45 * (1 + math.cos(3 * math.pi / 4)),
    ]
    assert got == pytest.approx(wanted, rel=1e-15)
    assert create_schedule("cosine", Plan(6, warmup=2, floor=0.1))(6) == pytest.approx(0.1)


def test_wsd_values():
    assert values("wsd", Plan(8, warmup=2, decay=4)) == [0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert values("wsd", Plan(4, decay=2, floor=0.5)) == [1.0, 1.0, 1.0, 0.75]
    assert values("wsd-sqrt", Plan(4, decay=4)) == pytest.approx([1.0, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75)])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "plan", [Plan(1), Plan(1, warmup=1), Plan(50, 7, 20, 0.1), Plan(10, 5, 5), Plan(1000, 10, 0, 1.0)]
)
def test_every_schedule_is_a_positive_share_and_pure(name, plan):
    first = values(name, plan)
    assert first == values(name, plan)
    assert all(0 < value <= 1 for value in first)
    assert max(first) == 1.0
    rising = first[: plan.warmup]
    assert rising == pytest.approx([(i + 1) / plan.warmup for i in range(plan.warmup)])
    falling = first[plan.warmup :]
    assert all(a >= b for a, b in itertools.pairwise(falling))


def test_plans_take_shares_or_steps():
    assert make_plan(1000, 0.02, 0.2, 0.1) == Plan(1000, 20, 200, 0.1)
    assert make_plan(1000, 30, 100) == Plan(1000, 30, 100, 0.0)
    assert make_plan(7, 0.01) == Plan(7, 0, 0, 0.0)


def test_impossible_plans_are_refused():
    with pytest.raises(ConfigError, match="do not fit into 100 steps"):
        make_plan(100, 90, 20)
    with pytest.raises(ConfigError, match="at least 1 step"):
        make_plan(0)
    with pytest.raises(ConfigError, match="floor"):
        make_plan(10, floor=2.0)
    with pytest.raises(ConfigError, match="warmup"):
        make_plan(10, warmup=-1)
    with pytest.raises(UnknownNameError, match="cosine"):
        create_schedule("cosin", Plan(3))
