"""Objectives: `objective(model, batch) -> (loss, metrics)`; one file per loss or pretext task, each by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from orrery.core import registry

Batch = dict[str, Any]  # tensors by name, and "state" (a nested state or None) where one is carried from batch to batch
Objective = Callable[[nn.Module, Batch], tuple[Tensor, dict[str, Any]]]


def create_objective(name: str, **settings: Any) -> Objective:
    """The registered objective `name`, with settings of its own: `create_objective("next-token", z_loss=1e-4)`.

    Dotted settings reach into nested ones (`{"task.share": 0.3}`).

    Raises:
        UnknownNameError, ConfigError: with near matches.
    """
    cls = registry.load(name, "objective")
    nested = {key: settings.pop(key) for key in [key for key in settings if "." in key]}
    config = cls.Config.from_dict(settings, where=name)
    built: Objective = cls(config.replace(**nested) if nested else config)
    return built


__all__ = ["Batch", "Objective", "create_objective"]
