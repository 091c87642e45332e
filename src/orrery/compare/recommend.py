"""One sentence at the end: what to take, why, and what speaks against believing it.

The choice is the architecture with the best mean among those within the chooser's limits; where the rule says "no
difference shown" between it and another, the one that decodes faster (else holds less state) is taken instead. A choice
is never presented without its doubt: too few seeds, a tie, a floor that no model has beaten, a curve that is still
falling faster than the winner's, the scale of the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from orrery.compare.result import ArchitectureRow, ComparisonResult, Contrast, Exclusion, Recommendation, Series
from orrery.core.progress import counted
from orrery.evaluate.statistics import NO_DIFFERENCE, TOO_FEW, WORSE

OVERTAKES_WITHIN = 4.0  # extrapolating the last half of a curve beyond four times its tokens would be fortune telling
FASTER = 1.25  # a tie is broken by speed only where the speeds differ by this factor: less may be the machine's mood


@dataclass(frozen=True)
class Limits:
    """What a chooser can afford; None means no limit."""

    max_params: float | None = None  # all parameters, embedding and head included
    max_state: float | None = None  # bytes of state per sequence at the longest length measured
    max_ms_per_token: float | None = None  # decoding at batch 1 after the longest context measured

    def to_dict(self) -> dict[str, float]:
        """The limits that are set."""
        return {key: value for key, value in self.__dict__.items() if value is not None}

    def excludes(self, row: ArchitectureRow) -> Exclusion | None:
        """Why this architecture is out, or None. A cost that could not be measured does not pass a limit set on it."""
        costs = row.costs
        checks: list[tuple[str, float | None, float | None, Callable[[float], str]]] = [
            ("max_params", self.max_params, costs.parameters_total or None, lambda v: f"{v:,.0f} parameters"),
            ("max_state", self.max_state, last(costs.state), lambda v: f"{v:,.0f} bytes of state{_at(costs.state)}"),
            ("max_ms_per_token", self.max_ms_per_token, last(costs.decode), lambda v: f"{v:.3g} ms{_at(costs.decode)}"),
        ]
        for name, limit, value, words in checks:
            if limit is None:
                continue
            if value is None:
                return Exclusion(row.label, name, f"its cost is not known, so it cannot be shown to meet {name} {limit:,g}")
            if value > limit:
                return Exclusion(row.label, name, f"{words(value)}, above {name} {limit:,g}")
        return None


def last(series: Series | None) -> float | None:
    """The value at the longest length that was measured."""
    values = [point.y for point in series.points if point.y is not None] if series else []
    return values[-1] if values else None


def _at(series: Series | None) -> str:
    lengths = [point.x for point in series.points if point.y is not None] if series else []
    return f" at {lengths[-1]:,.0f} tokens" if lengths else ""


def recommend(
    result: ComparisonResult, against: Callable[[str, str], Contrast], limits: Limits, next_command: str = ""
) -> Recommendation:
    """The recommendation of a comparison whose qualities and costs are filled in.

    Args:
        against: the paired contrast `(first, second)` of two architectures of the result.
        limits: of the chooser.
        next_command: a longer run that would settle more.
    """
    excluded = [found for row in result.architectures if (found := limits.excludes(row))]
    out = {item.architecture for item in excluded}
    for row in result.architectures:
        if row.label not in out and row.quality.mean is None:
            excluded.append(Exclusion(row.label, "failed", row.error or "no run of it finished"))
            out.add(row.label)
    left = [row for row in result.ranked() if row.label not in out]
    if not left:
        why = "; ".join(f"{item.architecture}: {item.why}" for item in excluded) or "no architecture was compared"
        sentence = f"Nothing can be recommended, because no architecture has a result within the limits ({why})."
        return Recommendation(sentence, None, why, "", limits.to_dict(), excluded, [], next_command)
    contrasts = {row.label: against(row.label, left[0].label) for row in left[1:]}
    tied = [label for label, item in contrasts.items() if item.verdict != WORSE]
    same = [row for row in left[1:] if contrasts[row.label].verdict == NO_DIFFERENCE]
    choice, reason = _break_tie(left[0], same)
    if not reason:
        reason = _reason(left[0], left[1] if len(left) > 1 else None)
    tied = [label for label in (left[0].label, *tied) if label != choice.label]
    doubt = _doubt(result, choice, left, contrasts)
    sentence = f"Take {choice.label}: {reason}; but {doubt}."
    return Recommendation(sentence, choice.label, reason, doubt, limits.to_dict(), excluded, tied, next_command)


def _break_tie(best: ArchitectureRow, same: list[ArchitectureRow]) -> tuple[ArchitectureRow, str]:
    """A cheaper architecture of no shown difference, with the reason; or the best itself and no reason."""
    for costs, words in ((_decode, "{:.3g} ms per decoded token".format), (_state, lambda v: f"{_bytes(v)} of state")):
        own = costs(best)
        cheaper = [(value, row) for row in same if (value := costs(row)) is not None and own and own > FASTER * value]
        if cheaper:
            value, row = min(cheaper, key=lambda item: item[0])
            return row, (
                f"no difference in quality was shown between it and {best.label}, and it needs {words(value)} "
                f"instead of {words(own)}"
            )
    return best, ""


def _decode(row: ArchitectureRow) -> float | None:
    return last(row.costs.decode)


def _state(row: ArchitectureRow) -> float | None:
    return last(row.costs.state)


def _reason(best: ArchitectureRow, second: ArchitectureRow | None) -> str:
    text = f"it reaches {best.quality.mean:.3f} bits per byte"
    if second is not None:
        text += f" where the next best, {second.label}, reaches {second.quality.mean:.3f}"
    decode, state = _decode(best), _state(best)
    if decode is not None:
        text += f", and decodes at {decode:.3g} ms per token{_at(best.costs.decode)}"
    if state is not None:
        text += f" with {_bytes(state)} of state"
    return text


def _either(labels: list[str]) -> str:
    """Names joined; of many the first ones and a number."""
    return " or ".join(labels) if len(labels) <= 3 else f"{', '.join(labels[:2])} or any of {len(labels) - 2} others"


def _doubt(
    result: ComparisonResult, choice: ArchitectureRow, left: list[ArchitectureRow], contrasts: dict[str, Contrast]
) -> str:
    doubts = []
    n, needed = len(result.protocol.seeds), result.protocol.needed_seeds
    few = [label for label, item in contrasts.items() if item.verdict == TOO_FEW]
    if few and n < needed:
        doubts.append(f"{counted(n, 'seed')} cannot decide (a verdict needs {needed})")
    elif few:  # secondary contrasts are a larger family
        doubts.append(f"{n} seeds cannot decide between it and {_either(few)}")
    else:
        open_ones = [label for label, item in contrasts.items() if item.verdict not in (WORSE, NO_DIFFERENCE)]
        if open_ones:
            doubts.append(f"against {' and '.join(open_ones)} the result is inconclusive")
    if result.noise_floor is not None and "FALSE ALARM" in result.noise_floor.sentence:
        doubts.append("the baseline differs from itself by more than the rule allows")
    floors = [floor for floor in result.floors if floor.bits_per_byte is not None]
    if floors and choice.quality.mean is not None:
        floor = min(floors, key=lambda item: item.bits_per_byte or math.inf)
        if floor.bits_per_byte is not None and floor.bits_per_byte < choice.quality.mean:
            doubts.append(f"{floor.label}, which only counts, reaches {floor.bits_per_byte:.3f} on the same tokens")
    catching = [row.label for row in left if row is not choice and overtakes(choice, row)]
    if catching:
        doubts.append(f"{' and '.join(catching)} {'were' if len(catching) > 1 else 'was'} still falling faster")
    doubts.append(result.protocol.caveat or "this was one size, one corpus and one budget")
    return ", ".join(doubts)


def overtakes(best: ArchitectureRow, other: ArchitectureRow) -> bool:
    """Whether `other`'s mean curve, extended straight over log tokens, would cross `best`'s within four times the tokens."""
    a, b = _slope(best), _slope(other)
    if a is None or b is None:
        return False
    gap = b[1] - a[1]  # at the end, b is worse by this much
    closing = a[0] - b[0]  # per natural log of tokens
    return gap > 0 and closing > 0 and gap / closing < math.log(OVERTAKES_WITHIN)


def _slope(row: ArchitectureRow) -> tuple[float, float] | None:
    """Least-squares slope of bits per byte over ln(tokens) on the last half of the mean curve, and its last value."""
    points = [(math.log(x), y) for x, y in zip(row.curve.x, row.curve.mean, strict=False) if y is not None and x > 0]
    points = points[len(points) // 2 :]
    if len(points) < 2:
        return None
    mx, my = (sum(values) / len(points) for values in zip(*points, strict=True))
    spread = sum((x - mx) ** 2 for x, _ in points)
    return (sum((x - mx) * (y - my) for x, y in points) / spread if spread else 0.0), points[-1][1]


def _bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} bytes"
