"""Joules: read from the processor's own counter where the machine tells, else estimated and labelled so.

Linux exposes Intel's and AMD's running average power limit (RAPL) counters under /sys/class/powercap, mostly readable by
root only. They count the whole package, so they are read around work that is timed alone. Without them the estimate is
processor seconds times an assumed 10 W per busy core: good for comparing runs of one machine with each other, not for
paying a bill.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
WATTS_PER_CORE = 10.0


@dataclass(frozen=True)
class Joules:
    """Energy of a piece of work."""

    value: float
    how: str  # measured | estimated
    note: str


def counters(root: Path = POWERCAP) -> list[Path]:
    """Readable package counters; empty where there are none (other systems, virtual machines, no permission)."""
    found = []
    for zone in sorted(root.glob("*-rapl:*")):
        name = zone.name.rpartition("-rapl:")[2]
        if ":" not in name and _read(zone / "energy_uj") is not None:  # "intel-rapl:0" is a package, "...:0:1" a part of it
            found.append(zone)
    return found


def meter(root: Path = POWERCAP) -> Callable[[], Joules]:
    """Start measuring; the returned function says how much energy has gone since."""
    zones = counters(root)
    if zones:
        before = [_read(zone / "energy_uj") for zone in zones]

        def measured() -> Joules:
            total = 0.0
            for zone, start in zip(zones, before, strict=True):
                end, wrap = _read(zone / "energy_uj"), _read(zone / "max_energy_range_uj")
                if start is None or end is None:
                    continue
                total += end - start if end >= start or wrap is None else end + wrap - start
            return Joules(total / 1e6, "measured", f"RAPL counter of {len(zones)} processor package(s), idle power included")

        return measured
    started = time.process_time()  # of all threads, in nanoseconds: a token may take a fiftieth of a millisecond

    def estimated() -> Joules:
        seconds = time.process_time() - started
        return Joules(seconds * WATTS_PER_CORE, "estimated", f"no meter: processor seconds x {WATTS_PER_CORE:g} W per core")

    return estimated


def _read(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
