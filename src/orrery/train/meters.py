"""What a run counts while it trains: time of steps, with the warm-up apart, and the loss between two log lines."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

WARMUP = 3  # first steps of a process, left out of the speed: allocation, lazy compilation, cold caches


@dataclass
class Meters:
    """Sums over a whole run, interruptions included, but for the speed, which is this process's."""

    seconds: float = 0.0  # of steps, without validation and saving
    tokens: int = 0
    warmup_seconds: float = 0.0  # of the steps left out of the speed, in this process
    timed_seconds: float = 0.0
    timed_tokens: int = 0
    steps: int = 0  # taken by this process
    nats: float = 0.0  # since the last log line
    targets: int = 0

    def add(self, loss: float, tokens: int, seconds: float) -> None:
        """Count one step."""
        self.seconds += seconds
        self.tokens += tokens
        self.nats += loss * tokens
        self.targets += tokens
        self.steps += 1
        if self.steps <= WARMUP:
            self.warmup_seconds += seconds
        else:
            self.timed_seconds += seconds
            self.timed_tokens += tokens

    def mean_loss(self) -> float:
        """Mean nats per target since the last call; the sums begin anew."""
        mean = self.nats / max(1, self.targets)
        self.nats, self.targets = 0.0, 0
        return mean

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of this process after its warm-up; None before there is one."""
        return self.timed_tokens / self.timed_seconds if self.timed_seconds > 0 else None

    def kept(self) -> dict[str, Any]:
        """What a checkpoint keeps: the sums of the whole run and of the open log line."""
        return {key: value for key, value in asdict(self).items() if key in ("seconds", "tokens", "nats", "targets")}

    @classmethod
    def resumed(cls, kept: dict[str, Any]) -> Meters:
        """Meters of a process that continues a run."""
        return cls(**kept)
