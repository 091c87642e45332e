"""The contract checks of mixers: the list, and how a name or class is put through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from orrery.nn.contract import Mixer
from orrery.testing import mixer_costs, mixer_numbers, mixer_values
from orrery.testing.check import Check, run_all
from orrery.testing.subject import WIDTH, Oracle, Subject, subjects
from orrery.testing.tags import disabled


@dataclass(frozen=True)
class _Kind:
    run: Callable[[Subject], None]
    every_variant: bool = True  # else only the first: slow, and hardly touched by settings


MIXER_CHECKS: dict[str, _Kind] = {
    "interface": _Kind(mixer_values.interface),
    "oracle": _Kind(mixer_numbers.oracle),
    "gradients": _Kind(mixer_numbers.gradients),
    "split": _Kind(mixer_values.split),
    "steps": _Kind(mixer_values.steps),
    "lengths": _Kind(mixer_values.lengths),
    "state_twice": _Kind(mixer_values.state_twice),
    "state_select": _Kind(mixer_values.state_select),
    "donated": _Kind(mixer_values.donated),
    "padding": _Kind(mixer_values.padding),
    "packing": _Kind(mixer_values.packing),
    "batch": _Kind(mixer_values.batch),
    "causality": _Kind(mixer_values.causality),
    "nan_future": _Kind(mixer_values.nan_future),
    "transfer": _Kind(mixer_values.transfer),
    "update": _Kind(mixer_values.update),
    "extremes": _Kind(mixer_numbers.extremes),
    "uninitialised_memory": _Kind(mixer_numbers.uninitialised_memory),
    "every_parameter": _Kind(mixer_numbers.every_parameter),
    "initialisation": _Kind(mixer_numbers.initialisation),
    "precision": _Kind(mixer_numbers.precision),
    "determinism": _Kind(mixer_numbers.determinism),
    "state_bytes": _Kind(mixer_costs.state_bytes),
    "flops": _Kind(mixer_costs.flops),
    "save_load": _Kind(mixer_costs.save_load, every_variant=False),
    "compile": _Kind(mixer_costs.compile_, every_variant=False),
}


def checks_for(
    name_or_class: str | type[Mixer],
    oracle: Oracle | None = None,
    settings: Mapping[str, Any] | None = None,
    width: int = WIDTH,
) -> list[Check]:
    """The checks of one mixer, to be run or handed to `pytest.mark.parametrize`.

    Args:
        name_or_class: a registered name, or a subclass of :class:`Mixer`.
        oracle: `oracle(parameters, config, x, segments) -> y`: an independent float64 implementation. It gets numpy
            arrays: parameters by name, the config as a dict (with `width` and `canon`), x (B,T,D), segments (B,T) int64
            or None, and returns y (B,T,D). Without one the `oracle` check is marked as not available.
        settings: of the config; by default the class's `examples` (a tuple of such dicts), else small sizes.
        width: D; 32.
    """
    found = []
    for number, subject in enumerate(subjects(name_or_class, settings, width, oracle)):
        for name, kind in MIXER_CHECKS.items():
            if number and not kind.every_variant:
                continue
            reason = disabled(name, subject.tags)
            if name == "oracle" and oracle is None:
                reason = "no oracle was given"
            elif name == "oracle" and subject.canon:
                reason = "oracles are written from papers, which have no Canon layer"
            found.append(Check(subject.label, name, partial(kind.run, subject), reason))
    return found


def check_mixer(
    name_or_class: str | type[Mixer],
    oracle: Oracle | None = None,
    settings: Mapping[str, Any] | None = None,
    width: int = WIDTH,
) -> list[Check]:
    """Run every check that the mixer's tags allow; see :func:`checks_for` for the arguments.

    Returns:
        The checks, run; their `disabled` says which were not.

    Raises:
        AssertionError: with one paragraph for each failed check.
    """
    return run_all(checks_for(name_or_class, oracle, settings, width))
