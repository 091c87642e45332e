"""Budgets: what people write, what it pays for, and what is refused in one sentence."""

from __future__ import annotations

import pytest

from orrery.compare.budget import parse_budget
from orrery.core.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("2Mtok", "tokens", 2e6),
        ("500ktok", "tokens", 5e5),
        ("600Ktokens", "tokens", 6e5),
        ("1 Btok", "tokens", 1e9),
        ("4096tok", "tokens", 4096),
        ("1e13flop", "flops", 1e13),
        ("1E13 FLOPs", "flops", 1e13),
        ("3Pflop", "flops", 3e15),
        ("2min", "time", 120),
        ("90s", "time", 90),
        ("1.5h", "time", 5400),
        (".5minutes", "time", 30),
        ("10 secs", "time", 10),
    ],
)
def test_what_people_write(text, kind, amount):
    budget = parse_budget(text)
    assert (budget.kind, budget.amount, budget.text) == (kind, pytest.approx(amount), text.strip())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2", "no unit"),
        ("", "not a number"),
        ("fast", "not a number"),
        ("2parsecs", "unknown unit 'parsecs'"),
        ("2mtok", "M for million"),
        ("0min", "larger than zero"),
        ("-2min", "not a number"),
        ("1e999tok", "larger than zero"),
        ("2Mtok please now", "not a number"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(BudgetError, match=message):
        parse_budget(text)


def test_steps():
    assert parse_budget("2Mtok").steps(4096, 1e9) == 488
    assert parse_budget("4096tok").steps(4096, 1e9) == 1
    assert parse_budget("1e12flop").steps(4096, 1e9) == 1000
    assert parse_budget("1min").steps(4096, 1e9, 0.5) == 120
    with pytest.raises(BudgetError, match="does not pay for one step"):
        parse_budget("4095tok").steps(4096, 1e9)
    with pytest.raises(BudgetError, match="seconds"):
        parse_budget("1s").steps(4096, 1e9, 2.0)
    with pytest.raises(ValueError, match="calibration"):
        parse_budget("1s").steps(4096, 1e9)
