"""Instruments: median times after a warm-up, peak memory of a process, and the machine's own matrix-product rate.

A time is the median of repetitions; the first calls, in which libraries compile, allocate and fill caches, are timed
apart and never mixed in. Peak memory is the kernel's own high-water mark of the process, so it needs a fresh process:
what an earlier model left behind would hide a smaller one.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

MATMUL = 1024  # side of the square float32 product that the machine's rate is measured with


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the first (warm-up), then the median of `count` further ones."""

    first: float
    median: float
    count: int


def timed(work: Callable[[], object], seconds: float, least: int = 5, most: int = 200, warm: int = 2) -> Timing:
    """Repeat `work` for about `seconds`, at least `least` times after `warm` calls, and take the median.

    Args:
        work: one repetition; it must finish its own asynchronous work on the CPU, CUDA is waited for here.
    """
    first = _once(work)
    for _ in range(warm - 1):
        _once(work)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or (time.perf_counter() < end and len(times) < most):
        times.append(_once(work))
    return Timing(first, statistics.median(times), len(times))


def _once(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def matmul_rate(seconds: float = 0.5, device: torch.device | str = "cpu") -> float:
    """Floating-point operations per second of a square float32 matrix product on this machine with these threads."""
    a, b = (torch.randn(MATMUL, MATMUL, device=device) for _ in range(2))
    out = torch.empty(MATMUL, MATMUL, device=device)
    return 2.0 * MATMUL**3 / timed(lambda: torch.mm(a, b, out=out), seconds).median


def peak_memory() -> int:
    """The largest resident size this process ever had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would include the parent's size at the time of the fork
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(used) if sys.platform == "darwin" else int(used) * 1024
