"""Whether the blocks of a compiled kernel may run on several threads: asked without any, so that the answer never depends on chance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def check_apart(kernel: Any, blocks: int, given: tuple[Any, ...]) -> None:
    """No half of the blocks writes memory that the other writes or reads. Memory is left as it was found.

    From equal memory each half is run alone, and both one after the other either way round.
    """
    arrays = list(writeable(given))
    if blocks < 2 or not arrays:
        return
    run, low, high = getattr(kernel, "compiled", kernel), (0, blocks // 2), (blocks // 2, blocks)
    before = [array.copy() for array in arrays]

    def left(*edges: tuple[int, int]) -> list[np.ndarray]:
        for array, saved in zip(arrays, before, strict=True):
            np.copyto(array, saved)
        for first, last in edges:
            run(first, last, *given)
        return [array.copy() for array in arrays]

    for held, one, other in zip(before, left(low), left(high), strict=True):
        assert not (_changed(held, one) & _changed(held, other)).any(), f"several blocks of {kernel} write the same memory"
    for one, other in zip(left(low, high), left(high, low), strict=True):
        assert one.tobytes() == other.tobytes(), f"a block of {kernel} reads what another writes"
    left()


def writeable(given: Any) -> Iterator[np.ndarray]:
    for each in given:
        if isinstance(each, tuple):
            yield from writeable(each)
        elif isinstance(each, np.ndarray) and each.flags.writeable and each.size:
            yield each


def _changed(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Where bytes differ: what memory held before need not be a number."""
    return (one.reshape(-1).view(np.uint8) != other.reshape(-1).view(np.uint8)).reshape(one.size, -1).any(1)
