"""Every contract check fails for a mixer that breaks what it guards, and passes for one that does not."""

from __future__ import annotations

import pytest
import torch

from orrery.testing import Check, check_mixer, checks_for
from orrery.testing.mixers import MIXER_CHECKS
from orrery.testing.objective import OBJECTIVE_CHECKS
from orrery.testing.poison import poisoned_memory
from orrery.testing.tags import DISABLED
from orrery.testing.tolerance import assert_close, assert_same
from testing.broken import EXPECTED, Good, good_oracle


def named(cls: type, name: str) -> Check:
    (check,) = [c for c in checks_for(cls, oracle=good_oracle, width=16) if c.name == name]
    return check


@pytest.mark.parametrize("check", checks_for(Good, oracle=good_oracle), ids=str)
def test_good_mixer_passes(check: Check) -> None:
    assert not check.disabled
    check()


@pytest.mark.parametrize(("cls", "name"), EXPECTED.items(), ids=lambda value: getattr(value, "__name__", value))
def test_broken_mixer_fails(cls: type, name: str) -> None:
    check = named(cls, name)
    assert not check.disabled
    with pytest.raises(AssertionError, match=rf"{cls.__name__}, {name}: "):
        check()


def test_every_check_has_a_mixer_that_fails_it() -> None:
    assert set(MIXER_CHECKS) == set(EXPECTED.values())


def test_check_mixer_tells_of_every_failure() -> None:
    class Twice(Good):
        def state_bytes(self, length: int) -> int:
            return 1

        def flops(self, length: int) -> int:
            return 1

    with pytest.raises(AssertionError, match=r"2 of 25 checks failed(.|\n)*Twice, state_bytes(.|\n)*Twice, flops"):
        check_mixer(Twice, width=16)


def test_the_tag_table_names_existing_checks() -> None:
    for tag, checks in DISABLED.items():
        assert set(checks) <= set(MIXER_CHECKS) | set(OBJECTIVE_CHECKS), tag


def test_poison_is_put_in_and_taken_out() -> None:
    with poisoned_memory():
        assert torch.empty(3).isnan().all()
        assert torch.zeros(3).new_empty(2).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_closeness() -> None:
    a = torch.tensor([1.0, 1000.0])
    assert_close(a + torch.tensor([0.0, 0.005]), a, "a")
    with pytest.raises(AssertionError, match=r"differs by 0.0001 .*worst at \[1\]: 1000.09998 instead of 1000"):
        assert_close(a + torch.tensor([0.0, 0.1]), a, "a")
    with pytest.raises(AssertionError, match="inf"):
        assert_close(a * torch.nan, a, "a")
    with pytest.raises(AssertionError, match="shapes"):
        assert_close(a[:1], a, "a")
    assert_same(a * torch.nan, a * torch.nan, "a")
    with pytest.raises(AssertionError, match="bitwise"):
        assert_same(a + 1e-6, a, "a")
