"""Budgets: what a run may spend, as text, and how many steps that is.

    "2Mtok"     tokens seen (k, M, G, T multiply)
    "1e13flop"  operations of training, three times the forward pass of the model's own formula
    "90s" "2min" "1.5h"   time of training steps on this machine; measured once, then fixed as a number of steps
    "500steps"  optimizer steps

A budget always becomes a number of steps before the first step is taken, so that schedules have an end, every run of a
comparison sees the same data, and an interrupted run resumes exactly.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from orrery.core.errors import BudgetError

_NUMBER = r"(?P<number>\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?)"
_PATTERN = re.compile(rf"^\s*{_NUMBER}\s*(?P<unit>[a-z]+)\s*$", re.IGNORECASE)
_SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12, "p": 1e15}
_TIME = {"s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "min": 60.0, "minute": 60.0, "minutes": 60.0}
_TIME |= {"h": 3600.0, "hour": 3600.0, "hours": 3600.0}
_COUNTED = {
    "tok": "tokens",
    "token": "tokens",
    "tokens": "tokens",
    "flop": "flops",
    "flops": "flops",
    "step": "steps",
    "steps": "steps",
}


@dataclass(frozen=True)
class Budget:
    """An amount of one kind: "tokens", "flops", "time" (seconds) or "steps"."""

    kind: str
    amount: float
    text: str

    def steps(
        self, tokens_per_step: int, flops_per_step: float | None = None, seconds_per_step: float | None = None
    ) -> int:
        """Whole steps that fit.

        Args:
            tokens_per_step: targets of one optimizer step, over all micro-batches and machines.
            flops_per_step: operations of one step, forward and backward; needed for a budget of operations.
            seconds_per_step: needed for a budget of time.

        Raises:
            BudgetError: when not even one step fits.
        """
        if self.kind == "tokens":
            cost, unit = float(tokens_per_step), "tokens"
        elif self.kind == "flops":
            cost, unit = flops_per_step or math.nan, "operations"
        elif self.kind == "time":
            cost, unit = seconds_per_step or math.nan, "seconds"
        else:
            cost, unit = 1.0, "steps"
        if math.isnan(cost):
            raise BudgetError(f"the budget '{self.text}' needs to know what a step costs, which this model cannot tell")
        count = math.floor(self.amount / cost * (1 + 1e-12))
        if count < 1:
            raise BudgetError(
                f"the budget '{self.text}' is too small for one step, which takes {cost:,.4g} {unit}; "
                "give more, or make the batch or the model smaller"
            )
        return count


def parse_budget(text: str) -> Budget:
    """Read a budget.

    Raises:
        BudgetError: when the text is none, or names nothing to spend.
    """
    match = _PATTERN.match(text)
    if match is None:
        raise BudgetError(f"'{text}' is not a budget; write for example 2Mtok, 1e13flop, 2min or 500steps")
    amount, unit = float(match["number"]), match["unit"].lower()
    if unit in _TIME:
        kind, amount = "time", amount * _TIME[unit]
    else:
        name = next((name for name in sorted(_COUNTED, key=len, reverse=True) if unit.endswith(name)), None)
        prefix = unit.removesuffix(name) if name else None
        if name is None or prefix not in _SCALE:
            raise BudgetError(
                f"'{text}' has the unknown unit '{match['unit']}'; units are tok, flop, s, min, h, steps (k, M, G, T multiply)"
            )
        if match["unit"][0] == "m" and prefix == "m":
            raise BudgetError(f"'{text}': a small m could be milli or minutes; write M for million")
        kind, amount = _COUNTED[name], amount * _SCALE[prefix]
    if not math.isfinite(amount) or amount <= 0:
        raise BudgetError(f"the budget '{text}' holds nothing to spend")
    return Budget(kind, amount, text)


def training_flops(forward: float) -> float:
    """Operations of a training step from those of its forward pass: one forward, two backward (2001.08361, section 2.1)."""
    return 3 * forward
