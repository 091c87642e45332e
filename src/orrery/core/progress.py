"""Progress of anything longer than two seconds: a bar on a terminal, plain lines elsewhere, nothing when quiet.

Always written to stderr, so that a command's result can be piped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PLAIN_EVERY = 5.0  # seconds between plain lines


class Progress:
    """One running task. `update(n, **fields)` advances it and shows the latest fields (`loss="2.31"`)."""

    def __init__(self, total: float | None, label: str, unit: str = "", quiet: bool = False) -> None:
        self.total, self.label, self.unit, self.quiet = total, label, unit, quiet
        self.done = 0.0
        self.started = time.perf_counter()
        self.fields: dict[str, Any] = {}
        self._last = self.started
        self._bar: Any = None
        self._task: Any = None
        self._said = False

    def __enter__(self) -> Progress:
        if not self.quiet and sys.stderr.isatty():
            self._open_bar()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._said and kind is None:
            self._line()

    def start_at(self, done: float) -> None:
        """Begin at `done` (a resumed task), so that the estimate counts only what is done now."""
        self.done = done
        self._offset = done

    _offset = 0.0

    def update(self, n: float = 1, **fields: Any) -> None:
        """Advance by `n` units."""
        self.done += n
        self.fields.update(fields)
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self._note())
        elif time.perf_counter() - self._last > PLAIN_EVERY:
            self._last = time.perf_counter()
            self._said = True
            self._line()

    def _note(self) -> str:
        return "  ".join(f"{key} {value}" for key, value in self.fields.items())

    def _line(self) -> None:
        elapsed = time.perf_counter() - self.started
        speed = (self.done - self._offset) / elapsed if elapsed > 0 else 0.0
        parts = [f"{self.label}:"]
        if self.total:
            parts.append(f"{100 * self.done / self.total:.0f} %")
        parts.append(f"{self.done:,.0f} {self.unit}".rstrip())
        parts.append(f"{speed:,.0f} {self.unit or 'steps'}/s")
        if self.total and speed > 0 and self.done < self.total:
            parts.append(f"about {duration((self.total - self.done) / speed)} left")
        if self.fields:
            parts.append(self._note())
        print("  ".join(parts), file=sys.stderr, flush=True)

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(self.label, total=self.total, note="", completed=self.done)


@contextmanager
def progress(total: float | None, label: str, unit: str = "", quiet: bool = False) -> Iterator[Progress]:
    """`with progress(steps, "training", "tok") as bar: bar.update(4096, loss="2.31")`."""
    with Progress(total, label, unit, quiet) as bar:
        yield bar


def duration(seconds: float) -> str:
    """`75` -> `1 min 15 s`; made for people, never parsed."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def counted(number: int, noun: str) -> str:
    """`1 seed`, `1,200 seeds`: a count with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
