"""Synthetic tasks: data made by a rule, so that chance and optimum are known and no two batches share an example.

A task gives batches {"tokens", "targets"}, both (B, T) int64: `targets[b, t]` is what the model's output at position t
has to be, -100 where nothing is scored. Training batches are a pure function of (seed, step), test batches of their number
alone, from a stream that no training seed reaches: every model and every seed is tested on the same examples.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from orrery.core.config import Config, parse_overrides
from orrery.core.errors import ConfigError
from orrery.core.registry import load
from orrery.core.seeds import numpy_generator

if TYPE_CHECKING:
    import numpy as np
    import torch

UNSCORED = -100
_SPEC = re.compile(r"^\s*(?P<name>[^()\s]+)\s*(?:\((?P<settings>.*)\))?\s*$", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class TaskConfig(Config):
    """Settings that every task has."""

    length: int  # T, tokens of an example


class Task(ABC):
    """A synthetic task. A subclass has a `Config`, generates examples, and states chance and optimum."""

    name: ClassVar[str]
    Config: ClassVar[type[TaskConfig]]

    def __init__(self, config: TaskConfig | None = None) -> None:
        self.config = config if config is not None else self.Config()  # type: ignore[call-arg]  # subclasses have defaults

    @property
    def length(self) -> int:
        """T, tokens of an example."""
        return self.config.length

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Token ids of inputs and targets are below this."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """Expected accuracy of the best guess that does not do what the task asks for."""

    @property
    @abstractmethod
    def optimum(self) -> float:
        """Expected accuracy of a model that does it perfectly."""

    @abstractmethod
    def generate(self, random: np.random.Generator, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Fresh examples: tokens and targets, (B, T) int64 each."""

    def arrays(self, step: int, batch_size: int, seed: int) -> dict[str, np.ndarray]:
        """:meth:`batch` as numpy arrays."""
        return self._arrays(batch_size, seed, "train", step)

    def batch(self, step: int, batch_size: int, seed: int) -> dict[str, torch.Tensor]:
        """The training batch of a step: "tokens" and "targets", (B, T) int64."""
        return _tensors(self._arrays(batch_size, seed, "train", step))

    def test_arrays(self, number: int, batch_size: int) -> dict[str, np.ndarray]:
        """:meth:`test_batch` as numpy arrays."""
        return self._arrays(batch_size, 0, "test", number)

    def test_batch(self, number: int, batch_size: int) -> dict[str, torch.Tensor]:
        """Test batch `number`, the same for every training seed. Another batch size makes other examples."""
        return _tensors(self._arrays(batch_size, 0, "test", number))

    def _arrays(self, batch_size: int, seed: int, stream: str, number: int) -> dict[str, np.ndarray]:
        if batch_size < 1 or number < 0:
            raise ConfigError(f"batch size {batch_size} must be at least 1 and step {number} at least 0")
        tokens, targets = self.generate(numpy_generator(seed, "task", self.name, stream, number), batch_size)
        return {"tokens": tokens, "targets": targets}

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value}" for key, value in self.config.to_dict().items())
        return f"<task {self.name}({settings}): {self.vocab_size} ids, chance {self.chance:.3g}>"


def _tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def accuracy(predictions: np.ndarray, targets: np.ndarray) -> float:
    """Share of the scored positions at which predictions (B, T) equal targets (B, T)."""
    scored = targets != UNSCORED
    return float((predictions[scored] == targets[scored]).mean())


def create_task(spec: str, **settings: Any) -> Task:
    """A task from `"mqar"` or `"mqar(pairs=16, length=128)"`; keyword settings go on top.

    Raises:
        UnknownNameError: no such task.
        ConfigError: a malformed spec or an impossible setting.
    """
    match = _SPEC.match(spec)
    if match is None:
        raise ConfigError(f"'{spec}' is not of the form NAME or NAME(key=value, ...)")
    cls = load(match["name"], "task")
    given = parse_overrides([item for item in (match["settings"] or "").split(",") if item.strip()])
    return cls(cls.Config.from_dict({**given, **settings}, match["name"]))
