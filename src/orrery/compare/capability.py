"""Capabilities: small synthetic tasks trained here from scratch, whose chance level and optimum are known.

Recall (`mqar`, 2312.04927) asks whether a model can look up what it has seen; state tracking (2404.08819) whether it can
carry out a computation over many steps. Text at a desk's budget shows neither. Every architecture gets the same two
layers of width 64, the same examples in the same order under each seed, the same steps, and its own learning rate from
the recorded sweep. Accuracy is over scored positions of test examples that no seed is trained on. A run stops early
once it has solved the task twice in a row; its curve stays where it ended.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from orrery.compare import rates
from orrery.compare.analyse import band
from orrery.compare.result import CapabilityRow, CapabilityTask
from orrery.core import registry
from orrery.core.config import config_hash
from orrery.core.errors import ConfigError, CorruptionError
from orrery.data.task import Task, accuracy, create_task
from orrery.models.build import create_model
from orrery.objectives import create_objective
from orrery.optim.schedule import create_schedule, make_plan
from orrery.runs import Run
from orrery.runs.folder import slug
from orrery.train.engine import Engine, Pair

FORMAT = 1  # raised when equal settings would no longer give equal runs
WIDTH, DEPTH = 64, 2
RATE = 1e-2  # where no sweep is recorded: LSTM and GRU solve S3 within 400 steps at it, and do not at 3e-3
Point = Callable[[int, float], None]


@dataclass(frozen=True)
class Setting:
    """One task with its training budget."""

    task: str  # spec, as in `create_task`
    title: str
    question: str
    steps: int = 400
    batch: int = 64
    every: int = 50  # steps between tests
    tests: int = 4  # test batches of `batch` examples
    solved_at: float = 0.99
    note: str = ""

    @property
    def name(self) -> str:
        """The task's registered name."""
        return self.task.partition("(")[0]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


SETTINGS = (
    Setting(
        "mqar(pairs=8, length=48, vocab=64)",
        "associative recall: 8 key-value pairs, length 48",
        "Can it name, for each key it is shown again, the value that stood beside it?",
    ),
    Setting(
        "state-tracking(group=S3, length=32)",
        "state tracking: products in S3, length 32",
        "Can it carry a running product of permutations, step by step?",
    ),
)


def table(setting: Setting, seeds: list[int]) -> CapabilityTask:
    """The empty record of a task, with chance and optimum from the task itself."""
    task = create_task(setting.task)
    return CapabilityTask(
        name=setting.name,
        title=setting.title,
        question=setting.question,
        setting={"task": setting.task, "width": WIDTH, "depth": DEPTH, "batch": setting.batch, **task.config.to_dict()},
        chance=task.chance,
        optimum=task.optimum,
        solved_at=setting.solved_at,
        steps=setting.steps,
        seeds=seeds,
        note=setting.note,
    )


def rate(name: str, setting: Setting) -> float:
    """The learning rate of an architecture on a task: the recorded sweep's, else the default."""
    known = rates.table()["architectures"].get(name, {}).get(setting.name)
    return float(known["lr"]) if known else RATE


def folder(label: str, setting: Setting, rate: float, seed: int) -> str:
    """Name of the run's folder: equal names do equal work."""
    key = config_hash([FORMAT, label, setting.to_dict(), rate, seed, WIDTH, DEPTH])
    return f"{slug(label)}-{setting.name}-s{seed}-{key}"


def finished(folder: Path) -> dict[str, Any] | None:
    """The result in a run's folder, None when there is still something to do (or to repeat, where it is damaged)."""
    if not (folder / "run.json").exists():
        return None
    try:
        run = Run.open(folder)
        return run.result() if run.status == "done" else None
    except CorruptionError:
        return None


def build(name: str, setting: Setting, seed: int) -> nn.Module:
    """The small model of an architecture for a task.

    Raises:
        ConfigError: for a model whose tables are counted: it learns nothing by steps.
    """
    plain = name.partition("(")[0].strip()
    if plain in registry.names() and "counted" in registry.lookup(plain).tags:
        raise ConfigError(f"{plain} counts and is not trained by steps, so it takes no part in {setting.task}")
    vocabulary = create_task(setting.task).vocab_size
    return create_model(name, vocab_size=vocabulary, width=WIDTH, depth=DEPTH, seed=seed)


def train(model: Any, setting: Setting, rate: float, seed: int, tell: Point | None = None) -> dict[str, Any]:
    """Train on a task and test along the way.

    Args:
        model: maps tokens (B,T) to an Output; its vocabulary must hold the task's.
        rate: peak learning rate; linear warm-up over a tenth of the steps, cosine decay to a tenth of it.
        seed: of the examples; initial weights are the caller's.
        tell: called with (step, accuracy) at every test.

    Returns:
        {"accuracy", "curve": [[step, accuracy], ...], "steps", "parameters", "seconds", "rate", "solved": step or None}

    Raises:
        NonFiniteError: when training diverges.
    """
    task = create_task(setting.task)
    objective = create_objective("next-token")
    optimizer = registry.load("adamw", "optimizer")(model, rate)
    factor = create_schedule("cosine", make_plan(setting.steps, warmup=0.1, floor=0.1))
    engine = Engine(Pair(model, objective), optimizer, lambda step: rate * factor(step))
    model.train()
    begin = time.perf_counter()
    curve = [[0, test(model, task, setting)]]
    solved: int | None = None
    for step in range(setting.steps):
        engine.step(step, task.batch(step, setting.batch, seed))
        if (step + 1) % setting.every == 0 or step + 1 == setting.steps:
            curve.append([step + 1, test(model, task, setting)])
            if tell is not None:
                tell(*curve[-1])  # type: ignore[arg-type]
            if curve[-1][1] >= setting.solved_at:
                solved = solved if solved is not None else step + 1
                if len(curve) > 1 and curve[-2][1] >= setting.solved_at:
                    break
            else:
                solved = None
    return {
        "accuracy": curve[-1][1],
        "curve": curve,
        "steps": curve[-1][0],
        "parameters": int(model.num_parameters()),
        "seconds": time.perf_counter() - begin,
        "rate": rate,
        "solved": solved,
    }


@torch.no_grad()
def test(model: Any, task: Task, setting: Setting) -> float:
    """Accuracy over the scored positions of the fixed test examples; among the task's own ids."""
    model.eval()
    right: list[float] = []
    for number in range(setting.tests):
        batch = task.test_batch(number, setting.batch)
        logits = model(batch["tokens"]).logits[..., : task.vocab_size]
        right.append(accuracy(logits.argmax(-1).numpy(), batch["targets"].numpy()))
    model.train()
    return float(np.mean(right))


def row(label: str, outcomes: dict[int, dict[str, Any]], setting: Setting) -> CapabilityRow:
    """One architecture's row from the results of its seeds (as :func:`train` returns them)."""
    made = CapabilityRow(label)
    if not outcomes:
        return made
    made.seeds = {str(seed): float(found["accuracy"]) for seed, found in sorted(outcomes.items())}
    made.mean = statistics.fmean(made.seeds.values())
    lines = {str(seed): _held(found["curve"], setting) for seed, found in sorted(outcomes.items())}
    made.curve = band(lines, "training steps", "accuracy", "test")
    solved = [found["solved"] for found in outcomes.values()]
    if all(step is not None for step in solved):
        made.steps_to_solve = float(statistics.median(solved))
    first = next(iter(outcomes.values()))
    made.parameters, made.learning_rate = int(first["parameters"]), float(first["rate"])
    made.seconds, made.status = statistics.fmean(found["seconds"] for found in outcomes.values()), "done"
    return made


def mean_error(result: dict[str, Any], setting: Setting) -> float:
    """One minus the mean accuracy over the tests of a run (as :func:`train` returns it), a solved task held."""
    line = _held(result["curve"], setting)
    return 1.0 - statistics.fmean(value for step, value in line.items() if step > 0)


def _held(curve: list[list[float]], setting: Setting) -> dict[float, float]:
    """Points of one seed; a run that stopped because it had solved the task is held at its last value."""
    line = {float(step): float(value) for step, value in curve}
    last = max(line)
    for step in range(setting.every, setting.steps + 1, setting.every):
        line.setdefault(float(step), line[last]) if step > last else None
    return line
