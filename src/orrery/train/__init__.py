"""Training: one loop, checkpoints and exact resume, budgets, meters."""

from __future__ import annotations

from orrery.core.rooms import make_callable
from orrery.train.config import (
    CheckpointSpec,
    DataSpec,
    ModelSpec,
    ObjectiveSpec,
    OptimSpec,
    SystemSpec,
    TrainConfig,
    ValidationSpec,
)
from orrery.train.run import train

__all__ = [
    "CheckpointSpec",
    "DataSpec",
    "ModelSpec",
    "ObjectiveSpec",
    "OptimSpec",
    "SystemSpec",
    "TrainConfig",
    "ValidationSpec",
    "train",
]

make_callable(__name__)
