"""What a comparison tells while it works: the terminal draws live curves from it, a notebook may print it.

Subclass :class:`Observer` and override what you want; every method does nothing by default. All of them are called from
the thread that called `compare`, one at a time, so that nothing needs a lock.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from orrery.compare.result import ArchitectureRow, CapabilityRow, CapabilityTask, ComparisonResult, Floor, RunRow


@dataclass
class Plan:
    """What is about to be done and what it will cost, told before anything long starts."""

    architectures: list[str]
    seeds: list[int]
    runs: int  # training runs still to do
    reused: int  # finished runs found in the store
    tokens: dict[str, int] = field(default_factory=dict)  # label -> training tokens per run
    steps: dict[str, int] = field(default_factory=dict)
    seconds: float | None = None  # estimated wall time of what is still to do; None before the calibration
    sentences: list[str] = field(default_factory=list)  # the same for people


class Observer:
    """Receives the events of a comparison, in this order: plan, costs, capabilities, plan again, runs, floors, result."""

    def plan(self, plan: Plan) -> None:
        """The plan is known, or known better (after the calibration)."""

    def phase(self, name: str, detail: str) -> None:
        """A part begins: "costs", "capabilities", "calibration", "training", "floors", "statistics"."""

    def costs(self, row: ArchitectureRow) -> None:
        """The costs of one architecture have been measured."""

    def capability_point(self, task: CapabilityTask, architecture: str, seed: int, step: int, accuracy: float) -> None:
        """One more point of a capability curve."""

    def capability(self, task: CapabilityTask, row: CapabilityRow) -> None:
        """One architecture has finished one capability task."""

    def run_started(self, run: RunRow) -> None:
        """A training run has begun or been resumed."""

    def progress(self, run: RunRow, step: int, steps: int, tokens_per_second: float | None) -> None:
        """A training run has come so far."""

    def point(self, run: RunRow, tokens: int, bits_per_byte: float) -> None:
        """One more point of a learning curve."""

    def run_ended(self, run: RunRow) -> None:
        """A training run has ended, one way or another; also told for every run that was found finished."""

    def floor(self, floor: Floor) -> None:
        """A counting model's line is known."""

    def note(self, text: str) -> None:
        """A sentence that will stand in the result's notes."""

    def result(self, result: ComparisonResult) -> None:
        """The comparison has ended, in full or interrupted; this is what is saved."""
