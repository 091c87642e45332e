"""Budgets per run: tokens, floating-point operations, or time; every one of them becomes a number of steps, once.

    "2Mtok"     two million training tokens               steps = tokens / tokens per step
    "1e13flop"  training FLOPs by the model's own formula  steps = flops / flops per step
    "2min"      time on this machine when idle             steps = seconds / median seconds per step (a calibration)

Steps, not the clock, end a run: so the schedule is known from the first step, a resumed run equals an uninterrupted
one, and a busy machine makes a run longer but not worse. Tokens and steps are then the same under one token budget;
under FLOPs or time an architecture that costs less sees more of the same token stream.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from orrery.core.errors import BudgetError

_PREFIX = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12, "p": 1e15, "e": 1e18}
_SECONDS = {"s": 1.0, "sec": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0}
_FORM = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_HELP = "write it like 2Mtok, 1e13flop or 2min"


@dataclass(frozen=True)
class Budget:
    """What one training run may spend."""

    kind: str  # tokens | flops | time
    amount: float  # tokens, FLOPs, or seconds
    text: str  # as the user wrote it

    def steps(self, tokens_per_step: int, flops_per_step: float, seconds_per_step: float | None = None) -> int:
        """Optimizer steps of a run under this budget.

        Args:
            tokens_per_step: rows times length of one step.
            flops_per_step: forward and backward, analytic.
            seconds_per_step: from a calibration; needed for a time budget.

        Raises:
            BudgetError: when it does not pay for one step.
        """
        if self.kind == "tokens":
            cost, unit = float(tokens_per_step), "tokens"
        elif self.kind == "flops":
            cost, unit = float(flops_per_step), "FLOPs"
        elif seconds_per_step is None:
            raise ValueError("a time budget needs a calibration")
        else:
            cost, unit = float(seconds_per_step), "seconds"
        steps = math.floor(self.amount / cost * (1 + 1e-9))
        if steps < 1:
            raise BudgetError(
                f"the budget {self.text} does not pay for one step, which takes {cost:,.4g} {unit}; "
                "give more, or make batch, length or size smaller"
            )
        return steps


def parse_budget(text: str) -> Budget:
    """`"2Mtok"`, `"500ktok"`, `"1e13flop"`, `"3Pflop"`, `"2min"`, `"90s"`, `"1.5h"`.

    Raises:
        BudgetError: on anything else, and on zero.
    """
    match = _FORM.fullmatch(str(text))
    if match is None:
        raise BudgetError(f"budget '{text}' is not a number with a unit; {_HELP}")
    number, unit = float(match[1]), match[2].lower()
    kind, factor = _unit(unit, match[2], str(text))
    amount = number * factor
    if not math.isfinite(amount) or amount <= 0:
        raise BudgetError(f"budget '{text}' must be larger than zero; {_HELP}")
    return Budget(kind, amount, str(text).strip())


def _unit(unit: str, written: str, text: str) -> tuple[str, float]:
    singular = unit[:-1] if len(unit) > 3 and unit.endswith("s") and unit != "flops" else unit
    if singular in _SECONDS:
        return "time", _SECONDS[singular]
    for kind, names in (("tokens", ("tokens", "token", "toks", "tok")), ("flops", ("flops", "flop"))):
        for name in names:
            if unit.endswith(name) and (prefix := unit[: -len(name)]) in _PREFIX:
                if written[:1] == "m" and prefix == "m":
                    raise BudgetError(f"budget '{text}': 'm' could be milli or minutes; write M for million; {_HELP}")
                return kind, _PREFIX[prefix]
    raise BudgetError(f"budget '{text}' has {'no unit' if not unit else f'the unknown unit {written!r}'}; {_HELP}")
