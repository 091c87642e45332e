"""The table of a comparison as data: one list of columns that terminal, CSV, Markdown, page and scatter pictures read.

A column knows its unit, at which length it was taken, which side is better, and how its numbers were obtained, so that
an estimate is never shown as a measurement. Numbers stay in base units (`Cell.value`); `Cell.text` is for people.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from orrery.compare.report import digits
from orrery.compare.result import ArchitectureRow, ComparisonResult, Quantity, Series

STATUS = {
    "done": "done",
    "failed": "failed",
    "oom": "out of memory",
    "interrupted": "interrupted",
    "running": "running",
    "pending": "waiting",
}
ESTIMATED = "est."
SHORT_HOW = {"estimated": ESTIMATED, "analytic": "formula", "counted": "counted"}


@dataclass(frozen=True)
class Cell:
    """One number: base-unit value, its text without the unit, how it was obtained, and why it is absent."""

    value: float | None = None
    text: str = digits.ABSENT
    how: str = ""
    note: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Column:
    """One column: `title` and `unit` for its head, `at` for the length it was taken at."""

    key: str
    title: str
    unit: str  # as printed: with the prefix that the texts were divided by
    base_unit: str  # of `Cell.value`
    cells: dict[str, Cell] = field(default_factory=dict)  # label -> cell
    at: str = ""
    better: str = ""  # "low" | "high" | ""
    about: str = ""  # one sentence: what it is
    noun: str = ""  # for sentences and axes: "training speed"
    minor: bool = False  # left to the files; terminal and page show it elsewhere or not at all

    @property
    def how(self) -> str:
        """How the numbers were obtained when that is the same for all of them, else "mixed"; "" when there are none."""
        found = {cell.how for cell in self.cells.values() if cell.value is not None and cell.how}
        return found.pop() if len(found) == 1 else "mixed" if found else ""

    @property
    def values(self) -> list[float]:
        """The numbers that are there."""
        return [cell.value for cell in self.cells.values() if cell.value is not None]

    def best(self) -> list[str]:
        """Labels that hold the best value; empty where neither side is better or nothing is there to beat."""
        if not self.better or len(self.values) < 2:
            return []
        best = min(self.values) if self.better == "low" else max(self.values)
        if all(value == best for value in self.values):
            return []
        return [label for label, cell in self.cells.items() if cell.value == best]


@dataclass(frozen=True)
class Table:
    """Columns, and the rows by quality (those without one last, in the order asked)."""

    columns: list[Column]
    rows: list[ArchitectureRow]

    def column(self, key: str) -> Column:
        """A column by its key (KeyError when absent)."""
        for column in self.columns:
            if column.key == key:
                return column
        raise KeyError(key)

    def keys(self) -> list[str]:
        """Keys of the columns in order."""
        return [column.key for column in self.columns]


def build_table(result: ComparisonResult) -> Table:
    """Every column for which at least one architecture has a number; quality, seeds and parameters always."""
    rows = result.ranked()
    columns = [_quality(rows), _seeds(result, rows), *_parameters(rows)]
    columns += _tokens(result, rows)
    columns += _costs(rows)
    columns += _tasks(result)
    columns += _energies(rows)
    columns.append(_learning_rate(rows))
    return Table([c for c in columns if c.values or c.key in ("quality", "seeds", "parameters")], rows)


def interval_text(mean: float, low: float | None, high: float | None, places: int = 3) -> str:
    """`2.634 ±0.021`, or with both ends where they are not symmetric; the bare mean without an interval."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return f"{mean:.{places}f}"
    if abs((high - mean) - (mean - low)) < 10**-places:
        return f"{mean:.{places}f} ±{(high - low) / 2:.{places}f}"
    return f"{mean:.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def _quality(rows: list[ArchitectureRow]) -> Column:
    cells = {}
    for row in rows:
        q = row.quality
        if q.mean is None or not math.isfinite(q.mean):
            word = STATUS.get(row.status, row.status)
            cells[row.label] = Cell(None, word if word != "done" else digits.ABSENT, "", row.error)
        else:
            cells[row.label] = Cell(q.mean, interval_text(q.mean, q.low, q.high), "measured", row.error, q.low, q.high)
    about = "Validation bits per byte of text, mean over seeds with its 95 % t-interval; lower is better."
    return Column("quality", "quality", "bits/byte", "bits per byte", cells, better="low", about=about, noun="quality")


def _seeds(result: ComparisonResult, rows: list[ArchitectureRow]) -> Column:
    asked = len(result.protocol.seeds)
    cells = {}
    for row in rows:
        done = len(row.quality.seeds)
        cells[row.label] = Cell(float(done), str(done) if done >= asked else f"{done} of {asked}", "counted")
    complete = all(cell.value is not None and cell.value >= asked for cell in cells.values())
    return Column("seeds", "seeds", "runs", "runs", cells, about="Runs that finished, of those asked for.", minor=complete)


def _parameters(rows: list[ArchitectureRow]) -> list[Column]:
    raw = {row.label: row.parameters or row.costs.parameters or None for row in rows}
    notes = {row.label: "" if row.matched else "not matched in size" for row in rows}
    about = "Parameters without embedding and head; the size that is held equal."
    whole = {row.label: (row.costs.parameters_total or None, "counted", "") for row in rows}
    return [
        _column("parameters", "parameters", "", {k: (v, "counted", notes[k]) for k, v in raw.items()}, "low", about=about),
        _column("parameters_total", "all parameters", "", whole, "low", about="Embedding and head included.", minor=True,
                noun="parameters with embedding"),
    ]


def _tokens(result: ComparisonResult, rows: list[ArchitectureRow]) -> list[Column]:
    """Training tokens per run, shown only where the budget gave different numbers."""
    tokens = {row.label: float(result.protocol.tokens[row.label]) for row in rows if row.label in result.protocol.tokens}
    if len(set(tokens.values())) < 2:
        return []
    raw = {row.label: (tokens.get(row.label), "counted", "") for row in rows}
    about = f"Training tokens that the budget {result.protocol.budget} paid for; they differ between architectures."
    return [_column("tokens", "trained on", "tokens", raw, about=about)]


def _quantities(rows: list[ArchitectureRow], pick: Callable[[ArchitectureRow], Quantity | None]) -> dict[str, tuple]:
    raw = {}
    for row in rows:
        quantity = pick(row)
        raw[row.label] = (quantity.value, quantity.how, quantity.note) if quantity else (None, "", row.costs.error)
    return raw


def shared_length(series: list[Series]) -> float | None:
    """The longest length at which most of the series have a value."""
    counts: dict[float, int] = {}
    for one in series:
        for point in one.points:
            if point.y is not None:
                counts[point.x] = counts.get(point.x, 0) + 1
    return max(counts, key=lambda x: (counts[x], x)) if counts else None


def _at_length(
    rows: list[ArchitectureRow],
    pick: Callable[[ArchitectureRow], Series | None],
    change: Callable[[float, str], float] = lambda y, unit: y,
) -> tuple[dict[str, tuple], str]:
    found = {row.label: series for row in rows if (series := pick(row)) is not None}
    length = shared_length(list(found.values()))
    raw: dict[str, tuple] = {}
    for row in rows:
        series = found.get(row.label)
        if series is None:
            raw[row.label] = (None, "", row.costs.error)
            continue
        here = [p.y for p in series.points if p.x == length and p.y is not None]
        value = change(here[0], series.unit) if here else None
        raw[row.label] = (value, series.how, series.note if here else series.note or "no value at this length")
    return raw, "" if length is None else f"at {digits.plain(length, 1)}"


def tokens_per_second(y: float, unit: str) -> float:
    """Decode speed from milliseconds per token (values in another unit are speeds already)."""
    return 1000.0 / y if unit == "ms/token" and y > 0 else y


def _costs(rows: list[ArchitectureRow]) -> list[Column]:
    prefill, prefill_at = _at_length(rows, lambda r: r.costs.prefill)
    decode, decode_at = _at_length(rows, lambda r: r.costs.decode, tokens_per_second)
    state, state_at = _at_length(rows, lambda r: r.costs.state)
    q = _quantities
    return [
        _column("train", "train", "tokens/s", q(rows, lambda r: r.costs.train_speed), "high", scaled=False,
                noun="training speed",
                about="Tokens per second of whole optimizer steps at the protocol's batch and length, timed alone."),
        _column("prefill", "prefill", "tokens/s", prefill, "high", prefill_at, scaled=False,
                noun="prefill speed",
                about="Tokens per second of reading a prompt of the stated length."),
        _column("decode", "decode", "tokens/s", decode, "high", decode_at, scaled=False,
                noun="decoding speed",
                about="Tokens per second of writing one token after another at batch 1 after a context of the stated length."),
        _column("memory", "memory", "B", q(rows, lambda r: r.costs.train_memory), "low",
                noun="peak training memory",
                about="Peak memory of a training step above the idle process."),
        _column("state", "state", "B", state, "low", state_at,
                noun="state per sequence",
                about="Bytes that one sequence keeps between two tokens after the stated number of tokens."),
        _column("flops", "compute", "FLOP/token", q(rows, lambda r: r.costs.train_flops), "low",
                noun="training compute",
                about="Floating-point operations per training token, forward and backward, by formula."),
        _column("matmul", "use", "% of matmul", q(rows, lambda r: r.costs.matmul_fraction), "high", share=True, minor=True,
                noun="share of the matrix-product rate",
                about="Share of the machine's measured matrix-product rate that training reaches."),
    ]  # fmt: skip


def _energies(rows: list[ArchitectureRow]) -> list[Column]:
    q = _quantities
    return [
        _column("train_energy", "energy", "J/Mtoken", q(rows, lambda r: r.costs.train_energy), "low", "training", scaled=False,
                noun="training energy",
                about="Energy per million training tokens."),
        _column("decode_energy", "energy", "J/ktoken", q(rows, lambda r: r.costs.decode_energy), "low", "decoding", scaled=False,
                noun="decoding energy",
                about="Energy per thousand decoded tokens."),
    ]  # fmt: skip


def _tasks(result: ComparisonResult) -> list[Column]:
    columns = []
    for task in result.capabilities:
        by_label = {row.architecture: row for row in task.rows}
        raw: dict[str, tuple] = {}
        for row in result.architectures:
            one = by_label.get(row.label)
            word = STATUS.get(one.status, one.status) if one and one.status != "done" else ""
            raw[row.label] = (one.mean if one else None, "measured", (one.error or word) if one else "")
        about = f"{task.title}: {task.metric} after {task.steps:,} steps."
        at = f"chance {digits.percent(task.chance)}"
        noun = f"{task.name} {task.metric}"
        columns.append(_column(f"task:{task.name}", task.name, f"% {task.metric}", raw, "high", at, about, share=True, noun=noun))
    return columns


def _learning_rate(rows: list[ArchitectureRow]) -> Column:
    cells = {}
    for row in rows:
        rate = row.learning_rate
        cells[row.label] = Cell(rate.value, f"{rate.value:.2g}", "", rate.source) if rate else Cell()
    about = "Peak learning rate, tuned per architecture."
    return Column("learning_rate", "learning", "peak rate", "", cells, about=about, minor=True)


def _column(
    key: str,
    title: str,
    unit: str,
    raw: dict[str, tuple],
    better: str = "",
    at: str = "",
    about: str = "",
    scaled: bool = True,
    share: bool = False,
    minor: bool = False,
    noun: str = "",
) -> Column:
    """Give every number its text: under one prefix where that reads well (`scaled`), or as a share of one."""
    clean = {k: (v if v is not None and math.isfinite(v) else None, how, note) for k, (v, how, note) in raw.items()}
    values = [float(v) for v, _, _ in clean.values() if v is not None]
    one = digits.common_prefix(values) if scaled and not share else (1.0, "")
    cells = {}
    mixed = len({how for v, how, _ in clean.values() if v is not None}) > 1
    for label, (value, how, note) in clean.items():
        if value is None:
            cells[label] = Cell(None, digits.ABSENT, how, note)
            continue
        if share:
            text = f"{100 * value:.1f}"
        elif one is None:
            text = digits.with_prefix(value).replace(" ", "")
        else:
            text = digits.plain(value / one[0])
        if mixed and how in SHORT_HOW:
            text += f" {SHORT_HOW[how]}"
        cells[label] = Cell(float(value), text, how, note)
    shown = unit if one is None else _prefixed(unit, one[1])
    return Column(key, title, shown, "" if share else unit, cells, at, better, about, noun or title, minor)


def _prefixed(unit: str, letter: str) -> str:
    if not unit:
        return {"k": "thousands", "M": "millions", "G": "billions"}.get(letter, letter)
    return f"{letter} {unit}".strip() if unit == "tokens" else f"{letter}{unit}"
