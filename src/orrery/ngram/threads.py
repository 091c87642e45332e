"""Loops that release the interpreter lock, spread over threads of our own."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

R = TypeVar("R")


def workers() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """One pool for each process: a forked child has none of its parent's threads."""
    return ThreadPoolExecutor(workers(), thread_name_prefix="orrery-ngram")


def spread(part: Callable[[int, int], R], total: int, least: int) -> list[R]:
    """Call `part(first, last)` over the whole of 0..total, in order, on all processors; `least` is worth a thread."""
    count = min(4 * workers(), max(1, total // least))
    if count == 1 or workers() == 1:
        return [part(0, total)]
    edges = [total * k // count for k in range(count + 1)]
    return list(_pool(os.getpid()).map(part, edges[:-1], edges[1:]))
