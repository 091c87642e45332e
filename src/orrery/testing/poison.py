"""Uninitialised memory made visible: within the block, whatever torch and numpy hand out unfilled holds NaN.

A kernel that forgets to write part of its output usually passes tests, because fresh memory tends to be zero.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch.empty, empty_like, new_empty, empty_strided, resize_ (torch's own switch), numpy.empty and empty_like."""
    before = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    originals = {name: getattr(np, name) for name in ("empty", "empty_like")}
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    for name, original in originals.items():
        setattr(np, name, _filled(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(np, name, original)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _filled(make: Callable[..., Any]) -> Callable[..., Any]:
    def poisoned(*args: Any, **kwargs: Any) -> Any:
        array = make(*args, **kwargs)
        if np.issubdtype(array.dtype, np.floating):
            array.fill(np.nan)
        return array

    return poisoned
