"""Orrery: every language architecture as a working model, and a fair way to compare them.

    import orrery
    model = orrery.create_model("mamba2", size="tiny", vocab_size=8192)
    result = orrery.compare(["transformer", "mamba2"], budget="2Mtok", seeds=3)

Names are resolved on first use, so that `import orrery` stays quick and imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from orrery.core.version import VERSION as __version__

_PUBLIC = {
    "list_models": "orrery.core.registry:names",
    "create_model": "orrery.models.build:create_model",
    "save": "orrery.models.storage:save",
    "load": "orrery.models.storage:load",
    "wrap": "orrery.models.wrap:wrap",
    "from_transformers": "orrery.models.exchange:from_transformers",
    "to_transformers": "orrery.models.exchange:to_transformers",
    "to_onnx": "orrery.models.onnx:to_onnx",
    "create_objective": "orrery.objectives:create_objective",
    "generate": "orrery.generate:generate",
    "compare": "orrery.compare:compare",
    "train": "orrery.train:train",
}
_ROOMS = ("ngram", "data", "testing", "runs", "evaluate")

if TYPE_CHECKING:
    from orrery import ngram
    from orrery.compare import compare
    from orrery.core.registry import names as list_models
    from orrery.generate import generate
    from orrery.models.build import create_model
    from orrery.models.exchange import from_transformers, to_transformers
    from orrery.models.onnx import to_onnx
    from orrery.models.storage import load, save
    from orrery.models.wrap import wrap
    from orrery.objectives import create_objective
    from orrery.train import train


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        module, attribute = _PUBLIC[name].split(":")
        value = getattr(importlib.import_module(module), attribute)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f"orrery.{name}")
    raise AttributeError(f"module 'orrery' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*_PUBLIC, *_ROOMS, "__version__"])


__all__ = [
    "__version__",
    "compare",
    "create_model",
    "create_objective",
    "from_transformers",
    "generate",
    "list_models",
    "load",
    "ngram",
    "save",
    "to_onnx",
    "to_transformers",
    "train",
    "wrap",
]
