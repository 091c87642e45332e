"""The size ladder: equal parameters for every architecture, met within 2 %.

    nano 0.3M, micro 1M, tiny 4M, small 15M, base 125M parameters without embedding and head

The ladder fixes depth and head size; width snaps to heads; one fine dimension that the architecture declares (mostly
the channel mixer's hidden size) absorbs the rest. Of the two widths around the target, the one whose fine dimension
stays nearest to its natural value is taken. Parameters are counted on the meta device, so nothing is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from orrery.core.errors import ConfigError, suggest

TOLERANCE = 0.02  # of the parameter budget
STRETCH = 4.0  # the fine dimension stays within this factor of its natural value


@dataclass(frozen=True)
class Rung:
    """One size: parameters without embedding and head, layers of a Transformer, size of a head."""

    parameters: int
    depth: int
    head_dim: int


LADDER = {
    "nano": Rung(300_000, 3, 32),
    "micro": Rung(1_000_000, 4, 32),
    "tiny": Rung(4_000_000, 6, 32),
    "small": Rung(15_000_000, 8, 64),
    "base": Rung(125_000_000, 12, 64),
}


def rung(size: str) -> Rung:
    """A rung by name, with near matches on a mistake."""
    if size not in LADDER:
        raise ConfigError(f"unknown size '{size}'.{suggest(size, LADDER)} Sizes: {', '.join(LADDER)}")
    return LADDER[size]


def solve(count: Callable[[int, float], int], target: int, step: int, width: int | None = None) -> tuple[int, float]:
    """Find a width and a scale of the fine dimension with `count(width, scale)` nearest to `target`.

    Args:
        count: parameters of the model for a width and a scale (1 = natural); grows with both.
        target: wanted parameters.
        step: widths are its multiples.
        width: fixes the width, leaving only the scale.

    Raises:
        ConfigError: when no width and scale come within the tolerance.
    """
    candidates = [width] if width else _bracket(count, target, step)
    solved = []
    for candidate in candidates:
        scale = _scale(count, target, candidate)
        error = abs(count(candidate, scale) / target - 1)
        solved.append((error > TOLERANCE, abs(math.log(scale)), error, candidate, scale))
    missed, _, error, chosen, scale = min(solved)
    if missed and width is None:
        raise ConfigError(
            f"no width meets {target:,} parameters within {TOLERANCE:.0%} (nearest: {count(chosen, scale):,} at width {chosen}, "
            f"off by {error:.1%}); choose another size, or set width and depth yourself"
        )
    return chosen, scale


def _bracket(count: Callable[[int, float], int], target: int, step: int) -> list[int]:
    """A few multiples of `step` around the width whose natural count is the target."""
    low, high = 1, 2
    while count(high * step, 1.0) < target:
        low, high = high, high * 2
        if high * step > 1 << 20:
            raise ConfigError(f"{target:,} parameters cannot be reached by widening")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle * step, 1.0) < target else (low, middle)
    return [k * step for k in (low - 1, low, high, high + 1) if k > 0]


def _scale(count: Callable[[int, float], int], target: int, width: int) -> float:
    """The scale at a width, by bisection in the logarithm; the better side of the last step is returned."""
    low, high = -math.log(STRETCH), math.log(STRETCH)
    for _ in range(14):
        middle = (low + high) / 2
        if count(width, math.exp(middle)) < target:
            low = middle
        else:
            high = middle
    best = min((low, high), key=lambda x: abs(count(width, math.exp(x)) - target))
    return math.exp(best)
