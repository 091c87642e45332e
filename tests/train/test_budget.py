"""Budgets: what the texts mean, and how many steps they are."""

from __future__ import annotations

import pytest

from orrery.core.errors import BudgetError
from orrery.train.budget import parse_budget


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("2Mtok", "tokens", 2e6),
        ("600ktok", "tokens", 6e5),
        ("1.5Gtokens", "tokens", 1.5e9),
        ("3btok", "tokens", 3e9),
        ("1Ttok", "tokens", 1e12),
        ("4096tok", "tokens", 4096),
        ("1e13flop", "flops", 1e13),
        ("5Pflops", "flops", 5e15),
        ("2min", "time", 120),
        ("3 minutes", "time", 180),
        (" 90 s ", "time", 90),
        ("1.5h", "time", 5400),
        ("500steps", "steps", 500),
        ("1step", "steps", 1),
        (".5min", "time", 30),
    ],
)
def test_reading(text, kind, amount):
    budget = parse_budget(text)
    assert (budget.kind, budget.amount) == (kind, pytest.approx(amount, rel=1e-15))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tok",
        "2",
        "2 M",
        "2Mtokk",
        "-3tok",
        "2xmin",
        "1e13",
        "nan tok",
        "2min30s",
        "1,000tok",
        "1e400tok",
        "0tok",
        "2mtok",
    ],
)
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(BudgetError):
        parse_budget(text)


def test_steps():
    assert parse_budget("2Mtok").steps(4096) == 488
    assert parse_budget("4096tok").steps(4096) == 1
    assert parse_budget("1e9flop").steps(4096, flops_per_step=3e8) == 3
    assert parse_budget("2min").steps(4096, seconds_per_step=0.5) == 240
    assert parse_budget("7steps").steps(4096) == 7
    assert parse_budget("0.3s").steps(1, seconds_per_step=0.1) == 3


def test_too_small_for_one_step():
    with pytest.raises(BudgetError, match=r"'4095tok' is too small for one step, which takes 4,096 tokens"):
        parse_budget("4095tok").steps(4096)
    with pytest.raises(BudgetError, match="too small"):
        parse_budget("0.5steps").steps(4096)
    with pytest.raises(BudgetError, match="cannot tell"):
        parse_budget("1e9flop").steps(4096)
