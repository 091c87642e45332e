"""How a comparison uses the machine: cores, how many runs at once, and what everything will take.

Whether one run with all threads or several runs with fewer threads each finish sooner depends on the sizes and the
machine, so it is measured on the baseline and the faster way is taken; small models mostly gain from separate processes,
because their products are too small to be worth two cores.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from orrery.compare import instruments
from orrery.compare.candidates import Candidate
from orrery.compare.pool import Pool, Task
from orrery.compare.result import ArchitectureRow

SECONDS = 2.0  # of timed steps per way of using the machine
GUESS = 0.2  # of the matrix-product rate that a small model is taken to reach before it has been measured
COST_SECONDS, TASK_SECONDS = 9.0, 25.0  # per architecture: measuring costs; one capability task on one core


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def on_gpu() -> bool:
    """Whether runs go to a GPU, where several at once would only get in each other's way."""
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def choose(runs: int, jobs: int | None, job: dict[str, Any], candidate: Candidate) -> dict[str, Any]:
    """How many worker processes with how many threads each.

    Args:
        runs: training runs still to do.
        jobs: as the user wishes, or None to find out.
        job: of kind "speed" for the baseline.

    Returns:
        {"processes", "threads", "why", "measured": {"1 x 2": steps/s, ...}}
    """
    have = cores()
    if jobs is not None:
        count = max(1, min(jobs, runs or 1))
        return {"processes": count, "threads": max(1, have // count), "why": "as asked", "measured": {}}
    if have == 1 or runs < 2 or on_gpu() or not candidate.portable:
        why = "one core" if have == 1 else "one run" if runs < 2 else "a GPU" if on_gpu() else "modules run in this process"
        return {"processes": 1, "threads": have, "why": why, "measured": {}}
    measured: dict[str, float] = {}
    best, most = (1, have), 0.0
    for count in _ways(have, runs):
        speed = _together(count, have // count, job)  # one after the other: what else runs now may not run in a minute
        measured[f"{count} x {have // count}"] = round(speed, 3)
        if speed > most:
            best, most = (count, have // count), speed
    why = f"finishes soonest: steps/s of {candidate.label}, all processes together (processes x threads)"
    return {"processes": best[0], "threads": best[1], "why": why, "measured": measured}


def _ways(have: int, runs: int) -> list[int]:
    """Numbers of processes to try: one, all cores apart, and one in between on larger machines."""
    ways = {1, min(have, runs)}
    if have >= 8:
        ways.add(min(have // 4, runs))
    return sorted(ways)


def _together(count: int, threads: int, job: dict[str, Any]) -> float:
    """Steps per second of `count` processes at once; 0 when any of them fails."""
    messages = Pool(count, threads).run([Task({**job, "seconds": SECONDS})] * count, lambda number, event: None)
    if any(message["type"] != "done" for message in messages):
        return 0.0
    return sum(float(message["result"]["steps_per_second"]) for message in messages)


def guess_seconds(rows: Sequence[ArchitectureRow], steps: dict[str, int], tokens_per_step: int, seeds: int) -> float:
    """Seconds of all training before anything has been measured: FLOPs over a share of the matrix-product rate."""
    rate = GUESS * instruments.matmul_rate(0.2)
    flops = 0.0
    for row in rows:
        per_token = row.costs.train_flops.value if row.costs.train_flops else None
        flops += (per_token or 0.0) * steps.get(row.label, 0)
    return flops * tokens_per_step * seeds / rate


def expect_seconds(
    todo: Sequence[str],
    steps: dict[str, int],
    tokens_per_step: int,
    rows: Sequence[ArchitectureRow],
    jobs: dict[str, Any],
) -> float | None:
    """Seconds of the runs still to do, from measured speeds and the gain of running several at once; None when unknown."""
    speeds = {row.label: row.costs.train_speed.value for row in rows if row.costs.train_speed}
    if any(not speeds.get(label) for label in todo):
        return None
    alone = sum(steps[label] * tokens_per_step / float(speeds[label] or 1.0) for label in todo)
    measured = list(jobs.get("measured", {}).values())
    return alone / (max(measured) / measured[0] if measured and measured[0] else 1.0)
