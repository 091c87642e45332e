"""The comparison: budget -> runs -> paired statistics -> table, pictures, HTML.

    result = orrery.compare(["transformer", "mamba2"], corpus="stdlib", budget="2Mtok", seeds=6)
    result.save("folder"); orrery.compare.result.load("folder")

Importing this room imports no torch, so that results can be read and drawn without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from orrery.core.rooms import make_callable

if TYPE_CHECKING:
    from orrery.compare.events import Observer, Plan
    from orrery.compare.result import ComparisonResult, load
    from orrery.compare.session import compare

_HOME = {
    "ComparisonResult": "result",
    "Observer": "events",
    "Plan": "events",
    "compare": "session",
    "load": "result",
}
__all__ = ["ComparisonResult", "Observer", "Plan", "compare", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'orrery.compare' has no attribute '{name}'")
    return getattr(importlib.import_module(f"orrery.compare.{_HOME[name]}"), name)


make_callable(__name__)
