"""A named contract check, and a list of them run to the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orrery.core.errors import OrreryError


@dataclass(frozen=True)
class Check:
    """`check()` passes silently or raises AssertionError with numbers.

    subject: what is checked, with its settings. name: of the check. run: the check itself.
    disabled: why it does not apply; empty when it does.
    """

    subject: str
    name: str
    run: Callable[[], None]
    disabled: str = ""

    def __str__(self) -> str:
        return f"{self.subject}-{self.name}"

    def __call__(self) -> None:
        """Run the check; a disabled one does nothing."""
        if self.disabled:
            return
        try:
            self.run()
        except AssertionError as failure:
            raise AssertionError(f"{self.subject}, {self.name}: {failure}") from failure


def run_all(checks: list[Check]) -> list[Check]:
    """Run all checks, and raise one AssertionError that tells of every failure."""
    failures = []
    for check in checks:
        try:
            check()
        except AssertionError as failure:
            failures.append(str(failure))
        except (OrreryError, RuntimeError, ValueError, TypeError, IndexError, AttributeError) as failure:
            failures.append(f"{check.subject}, {check.name}: {type(failure).__name__}: {failure}")
    if failures:
        ran = sum(not check.disabled for check in checks)
        raise AssertionError(f"{len(failures)} of {ran} checks failed\n" + "\n".join(failures))
    return checks
