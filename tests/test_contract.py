"""The contract checks over everything that is registered: a new name is checked because it exists."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from orrery.core import registry
from orrery.testing import (
    Check,
    checks_for,
    model_checks_for,
    objective_checks_for,
    optimizer_checks_for,
    task_checks_for,
)

HYBRIDS = ("transformer*2 + gpt2", "transformer | gpt2")


def oracle_of(name: str) -> Any:
    """tests/oracles/NAME.py holds `NAME(parameters, config, x, segments)`, with underscores for hyphens."""
    plain = name.replace("-", "_")
    try:
        return getattr(importlib.import_module(f"oracles.{plain}"), plain)
    except ModuleNotFoundError:
        return None


def everything() -> list[Check]:
    found = [check for name in registry.names(kind="mixer") for check in checks_for(name, oracle=oracle_of(name))]
    models = [e.name for e in registry.entries() if {"architecture", "model"} & set(e.kinds)]
    found += [check for name in (*models, *HYBRIDS) for check in model_checks_for(name)]
    found += [check for name in registry.names(kind="objective") for check in objective_checks_for(name)]
    found += [check for name in registry.names(kind="optimizer") for check in optimizer_checks_for(name)]
    found += [check for name in registry.names(kind="task") for check in task_checks_for(name)]
    return [check for check in found if not check.disabled]  # benchmarks/PARITY.md counts the others


@pytest.mark.parametrize("check", everything(), ids=str)
def test_contract(check: Check) -> None:
    check()


def test_every_mixer_of_ours_has_an_oracle() -> None:
    ours = [entry.name for entry in registry.entries("mixer") if entry.room == "mixers"]
    assert ours
    missing = [name for name in ours if oracle_of(name) is None]
    assert not missing, f"no tests/oracles/NAME.py for {missing}"
