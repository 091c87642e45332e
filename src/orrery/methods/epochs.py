"""Epochs over tables until nothing is gained, in a run's folder that any kill leaves to be continued exactly.

What fine-tuning on one table and on several have in common: a folder that holds one job and no other, an optimizer and its schedule,
a checkpoint after every epoch, the choice of the best epoch, and the end after `patience` epochs without gain.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from orrery.core import registry
from orrery.core.config import config_hash
from orrery.core.errors import ConfigError
from orrery.core.progress import progress
from orrery.core.seeds import seed_everything
from orrery.optim.schedule import create_schedule, make_plan
from orrery.runs.folder import Run
from orrery.train.checkpoint import Checkpoints
from orrery.train.engine import Engine, Pair


class Epochs(ABC):
    """A job of several epochs; a subclass sets the attributes, and says what an epoch reads and how it is judged."""

    out: Path
    name: str  # for people
    pair: Pair
    config: Any  # batch, seed, patience, warmup, decay
    epochs: int
    steps_per_epoch: int
    lr: float
    history: list[dict[str, Any]]  # of every epoch: "epoch", "value" (higher is better), "figures"
    seconds: float
    quiet: bool

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What makes this job this job: resuming needs all of it to be equal."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the record says beside it."""

    @abstractmethod
    def batches(self, epoch: int) -> list[Any]:
        """What an epoch's steps are about, one thing for each."""

    @abstractmethod
    def batch(self, what: Any) -> dict[str, Any]:
        """The batch of a step."""

    @abstractmethod
    def validate(self, run: Run, epoch: int) -> None:
        """Judge, add to the history, and keep the weights where they are the best so far."""

    def open(self, command: list[str] | None) -> tuple[Run, dict[str, Any] | None]:
        """The run's folder, new or continued; and its result when it is done already.

        Raises:
            ConfigError: the folder holds another run.
        """
        identity = self.identity()
        if not (self.out / "run.json").exists():
            return Run.create(self.out, identity, self.name, self.config.seed, command, self.facts()), None
        run = Run.open(self.out)
        if run.config_hash != config_hash(json.loads(json.dumps(identity))):
            raise ConfigError(f"'{self.out}' holds another run (other settings, data or model); choose another folder")
        if run.record["status"] == "done":
            return run, run.result()
        run.acquire()
        return run, None

    def fit(self, run: Run, interrupted: Any) -> dict[str, Any] | None:
        """Epochs until the end; the best one's record, or None when it was interrupted (all is saved then)."""
        cls = registry.load("adamw", "optimizer")
        optimizer = cls(self.pair, self.lr, cls.Config.from_dict({"weight_decay": self.config.decay}, where="adamw"))
        rate = create_schedule("cosine", make_plan(self.epochs * self.steps_per_epoch, self.config.warmup))
        engine = Engine(self.pair, optimizer, lambda step: self.lr * rate(step))
        checkpoints = Checkpoints(self.out, run.config_hash, keep=1)
        seed_everything(self.config.seed)
        begin = 0
        restored = checkpoints.restore(self.pair, optimizer)
        if restored is not None:
            begin, self.history = restored[1]["epoch"], restored[1]["history"]
            self.seconds = restored[1]["seconds"]
        self.pair.train()
        for epoch in range(begin, self.epochs):
            started = time.perf_counter()
            if not self._epoch(engine, epoch, interrupted):
                return None
            self.seconds += time.perf_counter() - started
            self.validate(run, epoch)
            done = self._exhausted() or epoch + 1 == self.epochs
            record = {"epoch": self.epochs if done else epoch + 1, "history": self.history, "seconds": self.seconds}
            checkpoints.save((epoch + 1) * self.steps_per_epoch, self.pair, optimizer, record)
            if done:
                break
            if interrupted():
                return None
        checkpoints.remove()
        return max(self.history, key=lambda item: (rank(item), -item["epoch"]))

    def gained(self) -> bool:
        """Whether the newest epoch of the history is better than all before it."""
        *before, newest = map(rank, self.history)
        return not before or newest > max(before)

    def stop(self, run: Run) -> dict[str, Any]:
        """End as interrupted: the same command goes on from the last whole epoch."""
        result = {"status": "interrupted", "epochs": len(self.history), "history": self.history}
        run.finish(result, "interrupted")
        return result

    def _epoch(self, engine: Engine, epoch: int, interrupted: Any) -> bool:
        """One pass; whether it came to its end."""
        batches = self.batches(epoch)
        with progress(len(batches), f"epoch {epoch + 1} of at most {self.epochs}", "steps", quiet=self.quiet) as bar:
            for number, what in enumerate(batches):
                step = engine.step(epoch * self.steps_per_epoch + number, self.batch(what))
                bar.update(1, loss=f"{step.loss:.3f}")
                if interrupted():
                    return False
        return True

    def _exhausted(self) -> bool:
        ranks = [rank(item) for item in self.history]
        return bool(self.config.patience) and len(ranks) - 1 - ranks.index(max(ranks)) >= self.config.patience


def rank(item: dict[str, Any]) -> tuple[float, float]:
    """What an epoch is chosen by: the main figure, and where that ties, the probability that truth was given."""
    return item["value"], -item["figures"].get("nats", 0.0)
