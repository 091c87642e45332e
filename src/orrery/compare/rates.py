"""Learning rates: found by sweeps with this tool, recorded, never assumed equal for all architectures.

`learning_rates.json` holds, per architecture and size, the grid that was tried, the validation bits per byte of every
rate, the one that won, with date and protocol. The rule of a sweep (:func:`next_rates`): rates are powers of two times a
start; the three around the start are tried, and the grid is extended on the side of the best until the best is inside
it; so every architecture gets the same rule and no rate at the edge of its grid is ever taken. A run that diverges counts
as the worst. One seed is enough for the choice of a factor of two: seeds differ less than neighbouring rates do where the
choice matters.

What a comparison takes (:func:`recorded`), first match wins: a rate given or tuned now; the recorded one of that name and
size; beyond the largest recorded size, the recorded one times (recorded width / width), the rule for Adam on matrices of
growing width (Yang et al., Tensor Programs V, 2203.03466, table 3); for a pattern of several names the smallest of theirs;
else a default that is labelled as untuned.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orrery.compare.result import LearningRate
from orrery.core.errors import CorruptionError, OrreryError
from orrery.core.files import read_json, write_json
from orrery.models.build import resolve
from orrery.models.ladder import LADDER
from orrery.models.patterns import parse_pattern

FILE = Path(__file__).with_name("learning_rates.json")
FORMAT = 1
DEFAULT = 2e-3  # where nothing is recorded; also the start of a sweep
FACTOR = 2.0
LARGEST_GRID = 9  # rates in one sweep at most: a factor of 256


@dataclass(frozen=True)
class Sweep:
    """One finished sweep."""

    architecture: str
    size: str
    tried: dict[float, float | None]  # rate -> final bits per byte; None where the run diverged or failed
    width: int | None = None
    date: str = ""

    @property
    def best(self) -> float | None:
        """The rate with the lowest bits per byte, None when no run finished."""
        finished = {rate: value for rate, value in self.tried.items() if value is not None}
        return min(finished, key=lambda rate: finished[rate]) if finished else None

    def to_dict(self) -> dict[str, Any]:
        """As stored: rates as text keys, smallest first."""
        return {
            "lr": self.best,
            "tried": {f"{rate:g}": self.tried[rate] for rate in sorted(self.tried)},
            "width": self.width,
            "date": self.date,
        }


def next_rates(tried: Mapping[float, float | None], start: float = DEFAULT) -> list[float]:
    """Rates still to be tried; empty when the sweep is done.

    Args:
        tried: rate -> bits per byte so far, None for a diverged run.
        start: centre of the first three.
    """
    if not tried:
        return [start / FACTOR, start, start * FACTOR]
    if len(tried) >= LARGEST_GRID:
        return []
    finished = {rate: value for rate, value in tried.items() if value is not None}
    if not finished:
        return [min(tried) / FACTOR]
    best = min(finished, key=lambda rate: finished[rate])
    if best == min(tried):
        return [best / FACTOR]
    if best == max(tried):
        return [best * FACTOR]
    return []


@functools.cache
def table(path: Path = FILE) -> dict[str, Any]:
    """The committed table: {"format", "protocol", "architectures": {name: {size: {"lr", "tried", "width", "date"}}}}.

    Raises:
        CorruptionError: when it is not such a table.
    """
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("architectures"), dict):
        raise CorruptionError(f"'{path}' is not a table of learning rates of format {FORMAT}")
    return found


def record(sweep: Sweep, protocol: dict[str, Any], path: Path = FILE) -> None:
    """Put a finished sweep into a table (the committed one by default), replacing the older of that name and size.

    Raises:
        OrreryError: when no run of the sweep finished.
    """
    if sweep.best is None:
        raise OrreryError(f"no run of the sweep of {sweep.architecture} at {sweep.size} finished; nothing is recorded")
    empty: dict[str, Any] = {"format": FORMAT, "protocol": {}, "architectures": {}}
    found = read_json(path) if path.exists() else empty
    found["protocol"][sweep.size] = protocol
    found["architectures"].setdefault(sweep.architecture, {})[sweep.size] = sweep.to_dict()
    write_json(path, found)
    table.cache_clear()


def recorded(name: str, size: str | None, width: int | None = None, path: Path = FILE) -> LearningRate:
    """The rate that a comparison takes for an architecture or pattern.

    Args:
        name: as in `create_model`; empty for a wrapped module.
        size: rung of the ladder; None for models of their own size.
        width: D of the model, for the width rule.
    """
    known = table(path)["architectures"]
    if not name:
        return LearningRate(DEFAULT, "untuned default", "a module of your own; tune it with --tune or give its rate")
    exact = _of(known, name, size, width)
    if exact is not None:
        return exact
    plain = _plain(name)
    parts = [found for part in plain if (found := _of(known, part, size, width)) is not None]
    if not parts:
        return LearningRate(DEFAULT, "untuned default", f"nothing is recorded for {name}; tune it with --tune")
    least = min(parts, key=lambda item: item.value)
    what = "its settings differ from what was swept" if len(plain) == 1 else "the smallest of its parts' rates"
    return LearningRate(least.value, "nearest recorded architecture", f"{what}; {least.note}")


def _of(known: Mapping[str, Any], name: str, size: str | None, width: int | None) -> LearningRate | None:
    """Recorded or by the width rule."""
    sizes = known.get(name) or next((found for other, found in known.items() if _closed(other) == _closed(name)), None)
    if not sizes:
        return None
    if size in sizes:
        entry = sizes[size]
        return LearningRate(float(entry["lr"]), "recorded sweep", f"swept at {size} on {entry['date']}")
    rungs = [rung for rung in LADDER if rung in sizes]
    if not rungs:
        return None
    nearest = rungs[-1]
    entry = sizes[nearest]
    own = width or _width(name, size)
    if not own or not entry.get("width"):
        return LearningRate(float(entry["lr"]), "nearest recorded architecture", f"swept at {nearest} on {entry['date']}")
    value = _rounded(float(entry["lr"]) * entry["width"] / own)
    note = f"swept at {nearest} (width {entry['width']}) on {entry['date']}, times {entry['width']}/{own}"
    return LearningRate(value, "width rule", note)


def _closed(name: str) -> str:
    """A name or pattern without its spaces, which mean nothing."""
    return name.replace(" ", "")


def _width(name: str, size: str | None) -> int | None:
    try:
        return resolve(name, size).width
    except OrreryError:
        return None


def _plain(name: str) -> list[str]:
    """Names in a pattern, settings left out."""
    return list(dict.fromkeys(branch.name for layer in parse_pattern(name) for branch in layer))


def _rounded(value: float) -> float:
    """Two digits: more would claim a precision that a sweep by factors of two does not have."""
    digits = 1 - math.floor(math.log10(value))
    return round(value, digits)
