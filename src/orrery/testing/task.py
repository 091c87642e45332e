"""The contract checks of synthetic tasks: batches as pure functions, targets that can be known, honest chance and optimum.

Every check takes a task and raises AssertionError with numbers. B batch, T time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from orrery.core import registry
from orrery.core.errors import ConfigError
from orrery.data.task import UNSCORED, Task, create_task
from orrery.testing.check import Check, run_all

ROWS = 64


def interface(task: Task) -> None:
    """Shapes, types, ids below the vocabulary, some target in every row, and a config that survives as data."""
    batch = task.arrays(0, ROWS, seed=1)
    for name in ("tokens", "targets"):
        array = batch[name]
        assert array.shape == (ROWS, task.length) and array.dtype == np.int64, f"{name} is {array.dtype} {array.shape}"
    tokens, targets = batch["tokens"], batch["targets"]
    scored = targets != UNSCORED
    assert int(tokens.min()) >= 0 and int(tokens.max()) < task.vocab_size, f"tokens reach {int(tokens.max())}"
    assert bool(scored.any(1).all()), "a row has nothing to be scored"
    inside = targets[scored]
    assert int(inside.min()) >= 0 and int(inside.max()) < task.vocab_size, "a target lies outside the vocabulary"
    assert 0 <= task.chance < task.optimum <= 1, f"chance {task.chance} and optimum {task.optimum}"
    assert type(task.config).from_dict(task.config.to_dict()) == task.config, "config -> dict -> config changes it"


def pure(task: Task) -> None:
    """A batch is a function of (seed, step) and nothing else; different ones share no example with it or with tests."""
    first = task.arrays(3, ROWS, seed=1)
    task.arrays(9, ROWS, seed=5)
    again = type(task)(task.config).arrays(3, ROWS, seed=1)
    for name, array in first.items():
        assert np.array_equal(array, again[name]), f"{name} of the same seed and step differ"
    others = {
        "the next step": task.arrays(4, ROWS, seed=1),
        "another seed": task.arrays(3, ROWS, seed=2),
        "a test batch": task.test_arrays(0, ROWS),
    }
    rows = {row.tobytes() for row in first["tokens"]}
    for what, batch in others.items():
        shared = sum(row.tobytes() in rows for row in batch["tokens"])
        assert shared <= ROWS // 8, f"{what} repeats {shared} of {ROWS} examples"
    assert np.array_equal(task.test_arrays(0, ROWS)["tokens"], others["a test batch"]["tokens"]), (
        "test batches differ between calls"
    )


def answerable(task: Task) -> None:
    """Equal inputs up to a scored position have equal targets there, so far as the optimum promises."""
    if task.optimum < 1:
        return
    seen: dict[bytes, int] = {}
    for step in range(8):
        batch = task.arrays(step, ROWS, seed=1)
        for tokens, targets in zip(batch["tokens"], batch["targets"], strict=True):
            for time in np.flatnonzero(targets != UNSCORED):
                key, target = tokens[: time + 1].tobytes(), int(targets[time])
                assert seen.setdefault(key, target) == target, (
                    f"one prefix of length {time + 1} has targets {seen[key]} and {target}"
                )


def chance(task: Task) -> None:
    """Naming always the most frequent target is not better than the stated chance (beyond sampling error)."""
    targets = np.concatenate([task.test_arrays(n, ROWS)["targets"].ravel() for n in range(8)])
    targets = targets[targets != UNSCORED]
    best = float(np.bincount(targets).max()) / len(targets)
    room = 4 * (task.chance * (1 - task.chance) / len(targets)) ** 0.5 + 1e-9
    assert best <= task.chance + room, (
        f"the most frequent target alone scores {best:.4f}; chance is given as {task.chance:.4f}"
    )


def refuses(task: Task) -> None:
    """Impossible settings and batch sizes are errors of the user's kind."""
    for call in (
        lambda: task.arrays(0, 0, 1),
        lambda: task.arrays(-1, 4, 1),
        lambda: create_task(task.name, no_such_setting=1),
    ):
        try:
            call()
        except ConfigError:
            continue
        raise AssertionError("an impossible batch size, step or setting was accepted")


TASK_CHECKS: dict[str, Callable[[Task], None]] = {
    "interface": interface,
    "pure": pure,
    "answerable": answerable,
    "chance": chance,
    "refuses": refuses,
}


def task_checks_for(name: str, settings: Mapping[str, Any] | None = None) -> list[Check]:
    """The checks of a task by name."""
    registry.lookup(name, "task")
    made = create_task(name, **dict(settings or {}))
    return [Check(f"task {name}", key, partial(run, made)) for key, run in TASK_CHECKS.items()]


def check_task(name: str, settings: Mapping[str, Any] | None = None) -> list[Check]:
    """Run every check of a task.

    Raises:
        AssertionError: with one paragraph for each failed check.
    """
    return run_all(task_checks_for(name, settings))
