"""How numbers are written for people: few digits, thousands apart, units with decimal prefixes. Never parsed again."""

from __future__ import annotations

import math
from collections.abc import Iterable

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
MINUS = "\u2212"
ABSENT = "\u2014"


def plain(value: float, digits: int = 3) -> str:
    """`2290.4` -> `2,290`; `0.01234` -> `0.0123`; at least `digits` digits are kept, whole numbers stay whole."""
    size = abs(value)
    if not math.isfinite(value):
        return ABSENT
    if size >= 10 ** (digits - 1) or value == 0:
        return f"{value:,.0f}"
    before = math.floor(math.log10(size)) + 1 if size >= 1 else 1
    if size >= 1e-3:
        text = f"{value:.{digits - before if size >= 1 else digits - 1 - math.floor(math.log10(size))}f}"
    else:
        text = f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e")
    return text


def prefix(value: float) -> tuple[float, str]:
    """The decimal prefix under which a value reads as 1 to 999."""
    size = abs(value) * (1 + 1e-9)
    for factor, letter in _PREFIXES:
        if size >= factor:
            return factor, letter
    return 1.0, ""


def with_prefix(value: float, unit: str = "", digits: int = 3) -> str:
    """`1_620_000, "FLOP"` -> `1.62 MFLOP`; without a unit `1.62M`."""
    factor, letter = prefix(value)
    number = plain(value / factor, digits)
    return f"{number} {letter}{unit}" if unit else f"{number}{letter}"


def count(value: float) -> str:
    """A count with a short prefix and no needless zeros: `600_000` -> `600k`, `2_097_152` -> `2.1M`, `253_952` -> `254k`."""
    factor, letter = prefix(value)
    number = plain(value / factor) if factor > 1 else f"{value:g}"
    if "." in number:
        number = number.rstrip("0").rstrip(".")
    return f"{number}{letter}"


def common_prefix(values: Iterable[float]) -> tuple[float, str] | None:
    """One prefix for a column, or None when the values lie too far apart for one."""
    found = [abs(v) for v in values if v and math.isfinite(v)]
    if not found:
        return 1.0, ""
    if max(found) / min(found) > 3e4:
        return None
    middle = math.exp(sum(math.log(v) for v in found) / len(found))
    return prefix(max(middle, max(found) / 300))


def percent(value: float) -> str:
    """`0.9834` -> `98.3 %`; whole from 99.95 % on and below 0.05 %."""
    number = 100 * value
    return f"{number:.0f} %" if abs(number - round(number)) < 0.05 else f"{number:.1f} %"


def signed(value: float, digits: int = 3, minus: str = "-") -> str:
    """A difference with its sign: `+0.012`."""
    text = f"{abs(value):.{digits}f}"
    return f"{minus if value < 0 else '+'}{text}"


def seconds(value: float) -> str:
    """`0.0032` -> `3.2 ms`; `95` -> `1 min 35 s`."""
    if value < 1:
        return f"{plain(value * 1000, 2)} ms"
    if value < 60:
        return f"{plain(value, 2)} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    return f"{whole // 3600} h" + (f" {whole % 3600 // 60} min" if whole % 3600 // 60 else "")
