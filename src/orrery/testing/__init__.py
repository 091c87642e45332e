"""Public contract checks: what every mixer, model, objective, optimizer and task must keep, third parties' too.

    from orrery.testing import check_mixer, checks_for

    check_mixer("mamba2")                     # or a class; raises AssertionError with numbers

    @pytest.mark.parametrize("check", checks_for("my-mixer"), ids=str)
    def test_contract(check):
        check()

`check_KIND` runs everything and raises once; `KIND_checks_for` (for mixers: `checks_for`) gives the named checks one by
one. Which tag disables which check, and why, stands in :mod:`orrery.testing.tags`; how near is equal, in
:mod:`orrery.testing.tolerance`.
"""

from __future__ import annotations

from orrery.testing.check import Check
from orrery.testing.mixers import check_mixer, checks_for
from orrery.testing.model import check_model, model_checks_for
from orrery.testing.objective import check_objective, objective_checks_for
from orrery.testing.optimizer import check_optimizer, optimizer_checks_for
from orrery.testing.tags import DISABLED, KNOWN_TAGS
from orrery.testing.task import check_task, task_checks_for
from orrery.testing.tolerance import TOLERANCES, Tolerance

__all__ = [
    "DISABLED",
    "KNOWN_TAGS",
    "TOLERANCES",
    "Check",
    "Tolerance",
    "check_mixer",
    "check_model",
    "check_objective",
    "check_optimizer",
    "check_task",
    "checks_for",
    "model_checks_for",
    "objective_checks_for",
    "optimizer_checks_for",
    "task_checks_for",
]
