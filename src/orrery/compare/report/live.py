"""A comparison while it runs: curves growing in the terminal, or plain lines where there is none.

    with LiveView(reference=shipped) as view:
        result = compare(..., observer=view)

On a terminal one picture stands below the lines already printed and is redrawn at most ten times a second: costs as
they come, capability curves between chance and optimum, then learning curves with the reference results faintly behind
them and a counting model's line for orientation. Elsewhere every event becomes at most one line.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

from orrery.compare.events import Observer, Plan
from orrery.compare.report import digits, palette
from orrery.compare.report.columns import STATUS, Table, build_table
from orrery.compare.report.series import floor_lines
from orrery.compare.report.spark import Rows, SparkCurve, sparkchart
from orrery.compare.report.svg import clean
from orrery.compare.report.terminal import Block, _plain_block, table_blocks, wrap
from orrery.compare.report.words import CAVEAT
from orrery.compare.result import ArchitectureRow, CapabilityRow, CapabilityTask, ComparisonResult, Floor, RunRow

REDRAW, SAY = 0.1, 5.0  # least seconds between pictures and between plain lines of progress


@dataclass
class _TaskView:
    """What is known of a capability task so far."""

    task: CapabilityTask
    curves: dict[tuple[str, int], list[tuple[float, float]]] = field(default_factory=dict)
    rows: dict[str, CapabilityRow] = field(default_factory=dict)


class LiveView(Observer):
    """Draws the events of a comparison; a context manager.

    Args:
        reference: a finished comparison of the same protocol whose curves are drawn faintly behind.
        stream: where to draw; standard error by default, so that results can be piped.
        terminal: draw pictures; None asks the stream.
        caveat: said below the learning curves.
    """

    def __init__(
        self,
        reference: ComparisonResult | None = None,
        stream: TextIO | None = None,
        terminal: bool | None = None,
        caveat: str = CAVEAT,
    ) -> None:
        self.stream = stream or sys.stderr
        self.terminal = bool(self.stream.isatty()) if terminal is None else terminal
        self.caveat = caveat
        self.name, self.detail = "", ""
        self.order: list[str] = []
        self.measured: dict[str, ArchitectureRow] = {}
        self.curves: dict[tuple[str, int], list[tuple[float, float]]] = {}
        self.tasks: dict[str, _TaskView] = {}
        self.task = ""
        self.floors: list[Floor] = []
        self.running: dict[tuple[str, int, str], tuple[int, int, float | None]] = {}
        self.ended: list[RunRow] = []
        self.asked: Plan | None = None
        self.reference = _reference_curves(reference)
        self._live: Any = None
        self._drawn = self._said = 0.0
        self._told: set[str] = set()
        self._training_since: float | None = None

    def __enter__(self) -> LiveView:
        if self.terminal:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self.stream, force_terminal=True)
            self._live = Live(_Picture(self), console=console, auto_refresh=False, transient=False)
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    # ------------------------------------------------------------------------------------------------ events

    def plan(self, plan: Plan) -> None:
        """Say what will be done and what it will cost."""
        self.asked = plan
        self.order += [label for label in plan.architectures if label not in self.order]
        for sentence in plan.sentences:
            if sentence not in self._told:
                self._told.add(sentence)
                self._print(sentence)

    def phase(self, name: str, detail: str) -> None:
        """Leave the last picture of the part that ends on the screen and begin the next."""
        if self._live is not None and self.name == "costs" and self.measured:
            self._keep(self._cost_lines)
        if self._live is not None and self.name == "capabilities" and self.tasks:
            self._keep(self._task_lines)
        self.name, self.detail = name, detail
        if name == "training" and self._training_since is None:
            self._training_since = time.perf_counter()
        if self._live is None:
            self._print(f"{name}: {detail}" if detail else name)
        self._redraw(force=True)

    def costs(self, row: ArchitectureRow) -> None:
        """One more row of the cost table."""
        self.measured[row.label] = row
        if self._live is None:
            self._print(f"costs of {row.label}: {_cost_line(row)}")
        self._redraw(force=True)

    def capability_point(self, task: CapabilityTask, architecture: str, seed: int, step: int, accuracy: float) -> None:
        """Let a capability curve grow."""
        self.task = task.name
        view = self.tasks.setdefault(task.name, _TaskView(task))
        view.curves.setdefault((architecture, seed), []).append((float(step), accuracy))
        self._redraw()

    def capability(self, task: CapabilityTask, row: CapabilityRow) -> None:
        """Say how an architecture did on a task."""
        self.task = task.name
        self.tasks.setdefault(task.name, _TaskView(task)).rows[row.architecture] = row
        if self._live is None:
            self._print(_task_line(task, row, f"{task.name}: {row.architecture}"))
        self._redraw(force=True)

    def run_started(self, run: RunRow) -> None:
        """A run appears in the status line."""
        self.running[_key(run)] = (0, 0, None)
        self._redraw()

    def progress(self, run: RunRow, step: int, steps: int, tokens_per_second: float | None) -> None:
        """Move the status line."""
        self.running[_key(run)] = (step, steps, tokens_per_second)
        if self._live is None and time.perf_counter() - self._said > SAY:
            self._print(self._status())
        self._redraw()

    def point(self, run: RunRow, tokens: int, bits_per_byte: float) -> None:
        """Let a learning curve grow; noise-floor runs are not drawn."""
        if run.role == "comparison":
            self.curves.setdefault((run.architecture, run.seed), []).append((float(tokens), bits_per_byte))
        self._redraw()

    def run_ended(self, run: RunRow) -> None:
        """Count a run as done and say how it went."""
        self.running.pop(_key(run), None)
        self.ended.append(run)
        if self._live is None or run.status != "done":
            self._print(_run_line(run))
        self._redraw(force=True)

    def floor(self, floor: Floor) -> None:
        """Draw a counting model's line."""
        self.floors.append(floor)
        if self._live is None and floor.bits_per_byte is not None:
            self._print(f"{floor.label}: {floor.bits_per_byte:.3f} bits per byte, for orientation")
        self._redraw(force=True)

    def note(self, text: str) -> None:
        """Print a sentence that will stand in the result."""
        self._print(text)

    # ------------------------------------------------------------------------------------------------ drawing

    def _print(self, text: str) -> None:
        text = clean(text)
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
            return
        self._said = time.perf_counter()
        print(text, file=self.stream, flush=True)

    def _redraw(self, force: bool = False) -> None:
        now = time.perf_counter()
        if self._live is not None and (force or now - self._drawn > REDRAW):
            self._drawn = now
            self._live.refresh()

    def _keep(self, lines: Callable[[int], list[Any]]) -> None:
        from rich.text import Text

        console = self._live.console
        for line in lines(console.width):
            console.print(line if isinstance(line, Text) else Text(line), highlight=False)
        console.print()

    def picture(self, width: int, height: int) -> list[Any]:
        """The lines of the picture as rich texts, at most `height` of them: what is being done, a chart, a status line."""
        head = f"{self.name}: {self.detail}" if self.detail else self.name
        lines: list[Any] = list(wrap(head, width)) if self.name else []
        if self.name == "costs":
            return (lines + self._cost_lines(width))[:height]
        room = max(5, min(18, height - len(lines) - 4))
        if self.name == "capabilities":
            lines += self._task_chart(width, room)
        elif self.curves or self.reference:
            lines += colour(self.chart(width, room), faint="dim")
            lines += wrap(f"bits per byte over training tokens; {self.caveat}", width)
        if self.running:
            lines += wrap(self._status(), width)
        return lines[:height]

    def chart(self, width: int, height: int) -> Rows:
        """Learning curves of every seed, reference behind, counting models as levels."""
        live = [SparkCurve(label, points, self._index(label)) for (label, _), points in self.curves.items()]
        behind = [SparkCurve(label, points, self._index(label), faint=True) for label, points in self.reference]
        levels, counted = floor_lines(self.floors)
        behind += [SparkCurve(label, points, None, faint=True) for label, points in counted]
        return sparkchart([*behind, *live], width, height, levels)

    def _task_chart(self, width: int, height: int) -> list[Any]:
        """The task that was heard of last."""
        if self.task not in self.tasks:
            return []
        view = self.tasks[self.task]
        task = view.task
        lines = [SparkCurve(label, points, self._index(label)) for (label, _), points in view.curves.items()]
        rows = sparkchart(lines, width, height, [("chance", task.chance), ("optimum", task.optimum)], y_range=(0.0, 1.02))
        return [*wrap(f"{task.title}. {task.question}", width), *colour(rows, faint="dim")]

    def _cost_lines(self, width: int) -> list[Any]:
        lines: list[Any] = []
        for block in cost_blocks(list(self.measured.values()), width):
            lines += [*_plain_block(block), ""]
        return lines[:-1]

    def _task_lines(self, width: int) -> list[Any]:
        lines: list[Any] = []
        for view in self.tasks.values():
            room = min(max([len(label) for label in view.rows] + [0]), width // 3)
            lines += wrap(view.task.title, width)
            lines += [_task_line(view.task, row, label[:room].ljust(room)) for label, row in view.rows.items()]
        return lines

    def _index(self, label: str) -> int:
        if label not in self.order:
            self.order.append(label)
        return self.order.index(label)

    def _status(self) -> str:
        """How many runs are done, what runs now, and about how long it will take."""
        parts = []
        if self.asked is not None:
            done = len([run for run in self.ended if run.role == "comparison"])
            parts.append(f"{done} of {self.asked.runs + self.asked.reused} runs done")
        for (label, seed, _), (step, steps, speed) in self.running.items():
            text = f"{label} seed {seed}"
            if steps:
                text += f" {100 * step / steps:.0f} %"
            if speed:
                text += f" ({digits.plain(speed)} tokens/s)"
            parts.append(text)
        if (left := self._seconds_left()) is not None:
            parts.append(f"about {digits.seconds(left)} left")
        return " · ".join(parts)

    def _seconds_left(self) -> float | None:
        """From the plan's estimate before anything has run, then from the share that is done."""
        if self.asked is None or self._training_since is None:
            return None
        elapsed = time.perf_counter() - self._training_since
        fresh = [run for run in self.ended if not run.resumed]
        share = (len(fresh) + sum(step / steps for step, steps, _ in self.running.values() if steps)) / max(1, self.asked.runs)
        if share > 0.05:
            return max(1.0, elapsed * (1 - share) / share)
        return None if self.asked.seconds is None else max(1.0, self.asked.seconds - elapsed)


class _Picture:
    """What rich draws: asked anew for the size of the console each time."""

    def __init__(self, view: LiveView) -> None:
        self.view = view

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich.text import Text

        for line in self.view.picture(options.max_width, max(8, console.height - 2)):
            yield line if isinstance(line, Text) else Text(line)


def colour(rows: Rows, faint: str = "dim") -> list[Any]:
    """Rows of a chart as rich texts in the architectures' colours."""
    from rich.text import Text

    lines = []
    for row in rows:
        text = Text(no_wrap=True)
        for cell in row:
            style = "" if cell.index is None else palette.RICH[palette.hue(cell.index)]
            text.append(cell.char, style=f"{faint} {style}".strip() if cell.faint else style)
        text.rstrip()
        lines.append(text)
    return lines


def cost_blocks(rows: list[ArchitectureRow], width: int) -> list[Block]:
    """The cost columns of architectures that have not been trained yet."""
    partial = ComparisonResult(architectures=list(rows))
    table = build_table(partial)
    table = Table([c for c in table.columns if c.key not in ("quality", "seeds")], list(rows))
    return table_blocks(table, partial, width)


def _cost_line(row: ArchitectureRow) -> str:
    if row.costs.error:
        return f"not measured ({row.costs.error})"
    table = build_table(ComparisonResult(architectures=[row]))
    skip = ("quality", "seeds", "parameters")
    parts = [
        f"{c.title} {c.cells[row.label].text} {c.unit}{f' {c.at}' if c.at else ''}{' (estimated)' if c.how == 'estimated' else ''}"
        for c in table.columns
        if c.key not in skip and not c.minor
    ]
    return ", ".join(parts)


def _task_line(task: CapabilityTask, row: CapabilityRow, name: str) -> str:
    if row.mean is None:
        return f"{name}  {STATUS.get(row.status, row.status)}"
    return f"{name}  {bar(row.mean, task.chance)} {100 * row.mean:5.1f} %  (chance {digits.percent(task.chance)})"


def bar(value: float, mark: float, width: int = 24) -> str:
    """A share of one as a bar with a mark: `━━━━━━━━┿━━━━        `."""
    full = round(min(1.0, max(0.0, value)) * width)
    at = min(width - 1, round(mark * width))
    return "".join(("┿" if k < full else "┊") if k == at else "━" if k < full else " " for k in range(width))


def _run_line(run: RunRow) -> str:
    head = f"{run.architecture} seed {run.seed}{' (noise floor)' if run.role != 'comparison' else ''}"
    if run.status == "done" and run.bits_per_byte is not None:
        found = ", found finished" if run.resumed else ""
        return f"{head}: {run.bits_per_byte:.3f} bits per byte after {digits.count(run.tokens)} tokens{found}"
    return f"{head}: {STATUS.get(run.status, run.status)}{f' ({run.error})' if run.error else ''}; the rest goes on"


def _key(run: RunRow) -> tuple[str, int, str]:
    return run.architecture, run.seed, run.role


def _reference_curves(result: ComparisonResult | None) -> list[tuple[str, list[tuple[float, float]]]]:
    if result is None:
        return []
    return [(row.label, [(x, y) for x, y in zip(row.curve.x, row.curve.mean) if y is not None]) for row in result.architectures]
