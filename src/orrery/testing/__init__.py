"""Public contract checks: what every mixer, model, objective, optimizer and task must keep, third parties' too.

from orrery.testing import check_mixer, checks_for

check_mixer("mamba2")                     # or a class; raises AssertionError with numbers

@pytest.mark.parametrize("check", checks_for("my-mixer"), ids=str)
def test_contract(check):
    check()
"""

from __future__ import annotations

from orrery.testing.check import Check
from orrery.testing.mixers import check_mixer, checks_for
from orrery.testing.tags import DISABLED, KNOWN_TAGS
from orrery.testing.tolerance import TOLERANCES, Tolerance

__all__ = ["DISABLED", "KNOWN_TAGS", "TOLERANCES", "Check", "Tolerance", "check_mixer", "checks_for"]
