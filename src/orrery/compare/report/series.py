"""What the pictures show, as data: panels of lines over an axis, read from a result once for files and for the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from orrery.compare.report import digits
from orrery.compare.report.columns import Column, Table
from orrery.compare.report.scales import Scale, decimals, domain, focus, wants_log
from orrery.compare.result import CapabilityTask, ComparisonResult, Curve, Floor, Series

VALIDATION = "validation"  # what a curve shows unless it says otherwise
MOST_POINTS = 160  # of a line in a picture: more than a screen can show
Y_TICKS = 6  # about how many; the texts need the same ticks that are drawn
BEYOND = 4.0  # how far a reference behind may stretch the x axis beyond what was measured now
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One architecture in a panel."""

    label: str
    index: int  # place in the order asked: colour and mark
    points: Points
    band: list[tuple[float, float, float]] = field(default_factory=list)  # (x, smallest seed, largest seed)
    seeds: dict[str, Points] = field(default_factory=dict)
    faint: bool = False


@dataclass(frozen=True)
class Panel:
    """One picture of lines."""

    key: str
    title: str
    x_title: str
    y_title: str
    lines: list[Line]
    levels: list[tuple[str, float]] = field(default_factory=list)  # named horizontal lines
    floors: list[tuple[str, Points]] = field(default_factory=list)  # named curves of counting models
    log_x: bool = False
    log_y: bool = False
    y_range: tuple[float, float] | None = None
    x_ticks: tuple[float, ...] = ()  # where the x values themselves are the better marks
    note: str = ""
    y_kind: str = "number"  # how values are written: number | bits | share | bytes

    @property
    def scales(self) -> tuple[Scale, Scale]:
        """Scales that hold every line; the steep start of long learning curves may leave the top."""
        shown = [line for line in self.lines if line.points]
        xs = [x for line in shown if not line.faint for x, _ in line.points]
        behind = [x for line in shown if line.faint for x, _ in line.points]
        if behind and xs:
            xs.append(min(max(behind), BEYOND * max(xs)))
        scale_x = domain(xs, self.log_x, pad=0.02 if len(set(xs)) > 1 else 0.1)
        if self.y_range is not None:
            return scale_x, Scale(*self.y_range)
        if self.log_y:
            return scale_x, domain([y for line in shown for _, y in line.points], True)
        seen = [[(x, y) for x, y in line.points if x <= scale_x.high] for line in shown]
        found = focus([points for points in seen if points])
        ys = [*(found or ()), *(y for _, y in self.levels), *(points[-1][1] for _, points in self.floors)]
        ys += [value for line in shown if not line.faint for _, low, high in line.band[-1:] for value in (low, high)]
        scale_y = domain(ys)
        entered = [x for line in shown if not line.faint for x, y in line.points if y <= scale_y.high]
        if entered and min(entered) > min(xs):  # nothing would be seen left of where the first curve comes down into view
            scale_x = domain([min(entered), *(x for x in xs if x >= min(entered))], self.log_x, pad=0.02)
        return scale_x, scale_y

    def write(self, value: float) -> str:
        """A value of the y axis for people."""
        if self.y_kind == "bits":
            return f"{value:.3f}"
        if self.y_kind == "share":
            return digits.percent(value)
        if self.y_kind == "bytes":
            return digits.with_prefix(value, "B")
        return digits.plain(value)

    def marks(self, scale: Scale, wanted: int) -> list[float]:
        """Ticks of the x axis: the lengths that were measured where they are few, else round numbers."""
        own = self.x_ticks[:: -(-len(self.x_ticks) // max(2, wanted + 1))] if self.x_ticks else ()
        return list(own) or scale.ticks(wanted)

    def x_text(self, value: float) -> str:
        """A value of the x axis on its scale."""
        return f"{value:,.0f}" if self.x_ticks else digits.count(value)

    def tick(self, value: float, scale: Scale) -> str:
        """A value of the y axis on its scale."""
        if self.y_kind == "share":
            return f"{100 * value:.0f} %"
        if self.y_kind == "bytes":
            return digits.with_prefix(value, "B", 1)
        if scale.log or abs(value) >= 100:
            return digits.count(value)
        return f"{value:.{decimals(scale.ticks(Y_TICKS))}f}"


def indices(result: ComparisonResult) -> dict[str, int]:
    """Place of every architecture in the order asked."""
    return {row.label: index for index, row in enumerate(result.architectures)}


def _pairs(xs: Sequence[float], ys: Sequence[float | None]) -> Points:
    return [(x, y) for x, y in zip(xs, ys) if y is not None and math.isfinite(y)]


def _line(label: str, index: int, curve: Curve, faint: bool = False) -> Line:
    band = [
        (x, low, high) for x, low, high in zip(curve.x, curve.low, curve.high) if low is not None and high is not None and high > low
    ]
    seeds = {seed: thin(_pairs(curve.x, values)) for seed, values in curve.values.items()}
    return Line(label, index, thin(_mean(curve)), [] if faint else thin(band), {} if faint else seeds, faint)


def _mean(curve: Curve) -> Points:
    """The mean curve; where a seed broke off, the mean of those that went on to the end, so that the line does not."""
    whole = [values for values in curve.values.values() if values and values[-1] is not None]
    if not whole or len(whole) == len(curve.values):
        return _pairs(curve.x, curve.mean) or next((p for v in curve.values.values() if (p := _pairs(curve.x, v))), [])
    means = [
        sum(v for v in column if v is not None) / len(column) if all(v is not None for v in column) else None
        for column in zip(*whole, strict=True)
    ]
    return _pairs(curve.x, means)


T = TypeVar("T")


def thin(points: list[T], most: int = MOST_POINTS) -> list[T]:
    """At most `most` of the points, evenly chosen, the last one always among them."""
    step = -(-len(points) // most)
    return points[::-1][::step][::-1] if step > 1 else points


def learning(result: ComparisonResult, reference: ComparisonResult | None = None) -> Panel | None:
    """Learning curves with the band that the seeds span; counting models as levels; a reference faintly behind."""
    order = indices(result)
    lines = [_line(row.label, order[row.label], row.curve) for row in result.architectures]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    behind = [
        _line(row.label, order[row.label], row.curve, faint=True)
        for row in (reference.architectures if reference else ())
        if row.label in order
    ]
    worst = max(y for line in lines for _, y in line.points[-1:])
    levels, floors = floor_lines(result.floors, worst + 0.5)  # a floor far above every curve would only flatten them
    xs = [x for line in (*lines, *behind) for x, _ in line.points]
    curve = next(row.curve for row in result.architectures if row.curve.x)
    note = "" if curve.split == VALIDATION else f"Curves, those of counting models too: {curve.split}. Quality: the validation sample."
    return Panel(
        "learning", "Learning curves", curve.x_unit, f"{curve.y_unit}, {curve.split}", [*behind, *lines], levels, floors,
        log_x=wants_log(xs), note=note, y_kind="bits",
    )  # fmt: skip


def floor_lines(floors: Sequence[Floor], worst: float = math.inf) -> tuple[list[tuple[str, float]], list[tuple[str, Points]]]:
    """Counting models as horizontal lines, or as curves over the tokens they counted where those are known."""
    levels: list[tuple[str, float]] = []
    curves: list[tuple[str, Points]] = []
    for floor in floors:
        points = _line(floor.label, 0, floor.curve).points if floor.curve is not None else []
        if floor.bits_per_byte is None or floor.bits_per_byte > worst:
            continue
        if len(points) > 1:
            curves.append((floor.label, points))
        else:
            levels.append((floor.label, floor.bits_per_byte))
    return levels, curves


def lengths(result: ComparisonResult) -> list[Panel]:
    """Speed and state over the length of the context; both axes logarithmic where the numbers spread."""
    order = indices(result)
    out = []
    for key, title, unit, kind in (
        ("prefill", "Reading a prompt", "tokens/s", "number"),
        ("decode", "Writing a token", "ms/token", "number"),
        ("state", "State kept per sequence", "bytes", "bytes"),
    ):
        lines, notes, how = [], {}, set()
        for row in result.architectures:
            series: Series | None = getattr(row.costs, key)
            points = [(p.x, p.y) for p in series.points if p.y is not None and p.y > 0] if series else []
            if series is not None and points:
                lines.append(Line(row.label, order[row.label], points))
                unit = series.unit or unit
                notes[row.label] = series.note
                how.add(series.how)
        if not lines:
            continue
        ys = [y for line in lines for _, y in line.points]
        xs = [x for line in lines for x, _ in line.points]
        origin = ["by the formulas of the models" if one == "analytic" else one for one in sorted(how) if one != "measured"]
        note = "; ".join([*origin, *shared_notes(notes)])
        ticks = tuple(sorted(set(xs))) if len(set(xs)) <= 12 else ()
        out.append(
            Panel(key, title, "context length, tokens", unit, lines, log_x=wants_log(xs, 4), log_y=wants_log(ys, 4), x_ticks=ticks,
                  note=note, y_kind=kind)
        )  # fmt: skip
    return out


def shared_notes(notes: dict[str, str]) -> list[str]:
    """What all architectures' notes say once, then what only some say, under their names."""
    parts = {label: [part for part in note.split("; ") if part] for label, note in notes.items()}
    common = [part for part in next(iter(parts.values()), []) if all(part in other for other in parts.values())]
    own = [f"{label}: {part}" for label, found in parts.items() for part in found if part not in common]
    return common + own


def capability(task: CapabilityTask, result: ComparisonResult) -> Panel | None:
    """Accuracy over training steps between chance and optimum."""
    order = indices(result)
    lines = [_line(row.architecture, order[row.architecture], row.curve) for row in task.rows if row.architecture in order]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    levels = [("chance", task.chance), ("optimum", task.optimum)]
    top = max(1.0, task.optimum)
    return Panel(
        f"task-{task.name}", task.title, "training steps", task.metric, lines, levels, y_range=(-0.02 * top, 1.04 * top), y_kind="share"
    )


def cost_axes(table: Table) -> list[Column]:
    """Columns that can stand against quality: a better side, and numbers for at least one architecture with a quality."""
    scored = {label for label, cell in table.column("quality").cells.items() if cell.value is not None}
    out = []
    for column in table.columns:
        usable = [label for label, cell in column.cells.items() if cell.value is not None and label in scored]
        if column.better and usable and column.key != "quality":
            out.append(column)
    return out
