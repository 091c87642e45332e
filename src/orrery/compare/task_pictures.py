"""The pictures of a page about a comparison over a task: the figure itself, differences, learning, costs, learning rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from orrery.compare.report import charts, digits, facts, palette
from orrery.compare.report.columns import STATUS, Column
from orrery.compare.report.page import figure, script_data
from orrery.compare.report.scales import Box, Scale, decimals, domain
from orrery.compare.report.series import Line, Panel
from orrery.compare.report.svg import el, line_path, shorten, text, text_width
from orrery.compare.task_report import ranked
from orrery.compare.task_result import TaskComparison, TaskRow, Words

ROWS = 34.0  # height of a row of a picture


class Pictures:
    """The figures, and what the page's script needs to know of them."""

    def __init__(self, result: TaskComparison, order: dict[str, int], columns: Sequence[Column]) -> None:
        self.result, self.order = result, order
        self.panels: dict[str, Panel] = {}
        labels = list(order)
        shown = [column for column in columns if column.key not in ("lr", "parameters") and len(column.values) > 1]
        self.axes = [charts.cost_axis(column, _axis_title(column), labels) for column in shown]
        self.axes = self.axes if len(self.axes) > 1 and self.axes[0].key == "quality" else []

    def all(self) -> list[dict[str, Any]]:
        """In reading order."""
        if not any(row.quality.mean is not None for row in self.result.architectures):
            return []
        out = [self._qualities()]
        if any(one.mean is not None for one in self.result.contrasts):
            out.append(self._differences())
        if (panel := learning(self.result, self.order)) is not None:
            self.panels[panel.key] = panel
            out.append(
                self._lines(
                    panel,
                    [
                        "Line: mean over seeds. Band: smallest to largest seed.",
                        "The validation table, which chose the epoch.",
                    ],
                )
            )
        if self.axes:
            out.append(self._trade_off())
        if (panel := rate_panel(self.result, self.order)) is not None:
            out.append(
                self._lines(
                    panel,
                    [
                        "One run each, under a seed that no compared run has.",
                        "Tried until the best has a worse or equal one on either side.",
                    ],
                )
            )
        return out

    def _qualities(self) -> dict[str, Any]:
        said = "; ".join(f"{row.label} {written(row.quality.mean) or row.status}" for row in ranked(self.result))
        bare = "; ".join(f"{one.label} {written(one.value)}" for one in floors(self.result))
        about = f"{figure_name(self.result)} on the test table: {said}. Without a network: {bare}."
        svgs = [quality_chart(self.result, self.order, size, about) for size in (charts.WIDE, charts.NARROW)]
        lines = [
            "Mark: mean over seeds. Strokes: single seeds. Upper line: 95 % over seeds. Lower line: 95 % over test rows."
        ]
        lines.append("Dashed: " + "; ".join(one.label for one in floors(self.result)) + ".")
        lines += charts.open_intervals(svgs)
        return figure("quality", f"{figure_name(self.result)} on the test table".capitalize(), svgs, lines, beside=True)

    def _differences(self) -> dict[str, Any]:
        p = self.result.protocol
        said = "Paired differences: " + "; ".join(
            f"{one.first} minus {one.second} {signed(one.mean)}, {one.verdict}" for one in self.result.contrasts
        )
        name = figure_name(self.result)
        sides = ("← first is lower", "first is higher →", f"difference in {name}, first minus second")
        svgs = [
            charts.forest(self.result.contrasts, p.margin, self.order, size, said, sides)
            for size in (charts.WIDE, charts.NARROW)
        ]
        better = "lower" if p.lower_is_better else "higher"
        lines = [
            f"Strokes: single seeds. Line: 95 % interval. Of {name}, {better} is better.",
            f"Shaded: the margin of {p.margin:.4g}.",
            *charts.open_intervals(svgs),
        ]
        return figure("differences", "Differences", svgs, lines, beside=True)

    def _lines(self, panel: Panel, lines: list[str]) -> dict[str, Any]:
        ends = "; ".join(f"{line.label} {panel.write(line.points[-1][1])}" for line in panel.lines if line.points)
        about = f"{panel.title}: {panel.y_title} over {panel.x_title}. At the end: {ends}."
        svgs = [charts.line_chart(panel, size, about) for size in (charts.WIDE, charts.NARROW)]
        seeds = max(len(line.seeds) for line in panel.lines)
        toggles = [
            {"kind": "show-bands", "name": "bands", "on": True},
            {"kind": "show-seeds", "name": "single seeds", "on": False},
        ]
        table = facts.numbers_of(panel, list(self.order)) if panel.key in self.panels else None
        return figure(
            panel.key, panel.title, svgs, lines, toggles=toggles if seeds > 1 else [], table=table, beside=True
        )

    def _trade_off(self) -> dict[str, Any]:
        y, x = self.axes[0], self._cost()
        shared = [label for label in self.order if label in x.places and label in y.places]
        said = f"{y.title} against {x.title}. " + "; ".join(f"{k}: {x.texts[k]}, {y.texts[k]}" for k in shared) + "."
        svgs = [charts.scatter(x, y, self.order, size, said) for size in (charts.WIDE, charts.NARROW)]
        lines = ["Dashed: the Pareto front, what nothing beats on both axes. Names of what is beaten are grey."]
        return figure("trade-off", "Quality against cost", svgs, lines, axes=True, beside=True)

    def _cost(self) -> charts.CostAxis:
        return next((axis for axis in self.axes if axis.key == "seconds"), self.axes[1])

    def data(self) -> dict[str, Any]:
        """What the script reads."""
        return script_data(
            self.order, self.panels, self.axes, {"x": self._cost().key, "y": "quality"} if self.axes else {}
        )


def _axis_title(column: Column) -> str:
    if column.key == "quality":
        return column.noun
    unit = "" if column.unit == "B" else column.unit
    more = "more" if column.better == "high" else "less"
    return f"{', '.join(filter(None, (column.noun, unit)))} ({more} is better)"


def learning(result: TaskComparison, order: dict[str, int]) -> Panel | None:
    """The main figure on the validation table over epochs; None where no run has two."""
    lines = []
    for label, index in order.items():
        runs = [run for run in result.runs if run.architecture == label and len(run.history) > 1]
        if not runs:
            continue
        length = min(len(run.history) for run in runs)
        columns = [[run.history[k] for run in runs] for k in range(length)]
        points = [(k + 1.0, sum(column) / len(column)) for k, column in enumerate(columns)]
        band = [(k + 1.0, min(column), max(column)) for k, column in enumerate(columns)] if len(runs) > 1 else []
        seeds = {str(run.seed): [(k + 1.0, value) for k, value in enumerate(run.history)] for run in runs}
        lines.append(Line(label, index, points, band, seeds))
    if not lines:
        return None
    values = [value for line in lines for points in line.seeds.values() for _, value in points]
    ticks = tuple(float(k + 1) for k in range(max(len(line.points) for line in lines)))
    ends = domain(values)
    title = f"{figure_name(result)} on the validation table"
    return Panel(
        "learning", "Learning", "epochs", title, lines, y_range=(ends.low, ends.high), x_ticks=ticks, y_kind="bits"
    )


def rate_panel(result: TaskComparison, order: dict[str, int]) -> Panel | None:
    """What the sweeps found."""
    lines = []
    for sweep in result.sweeps:
        points = sorted((float(rate), value) for rate, value in sweep.tried.items() if value is not None)
        if sweep.architecture in order and len(points) > 1:
            lines.append(Line(sweep.architecture, order[sweep.architecture], points))
    if not lines:
        return None
    ends = domain([value for line in lines for _, value in line.points])
    title = f"{figure_name(result)} on the validation table"
    return Panel(
        "rates",
        "Learning rates tried",
        "learning rate",
        title,
        lines,
        log_x=True,
        y_range=(ends.low, ends.high),
        y_kind="bits",
    )


def quality_chart(result: TaskComparison, order: dict[str, int], size: charts.Size, about: str) -> str:
    """The main figure of every architecture, best on top: over seeds, over rows, every seed, and the floors."""
    rows, narrow = ranked(result), size.name == "narrow"
    names = [shorten(row.label, size.names) for row in rows]
    left = 8.0 if narrow else 14 + max(text_width(name, size.font) for name in names)
    height = 46.0 if narrow else ROWS
    box = Box(left, 34, size.width - (12 if narrow else 76), 40 + height * len(rows))
    held = [
        v
        for row in rows
        for v in (row.items_low, row.items_high, row.quality.mean, *row.quality.seeds.values())
        if v is not None
    ]
    near = [one for one in floors(result) if _near(one.value or 0.0, held)]
    scale = domain([*held, *(one.value for one in near if one.value is not None)])
    parts = []
    for number, one in enumerate(near):
        x = _x(box, scale, one.value or 0.0)
        parts.append(el("path", {"class": "level", "d": line_path([(x, box.y0), (x, box.y1)])}))
        at, anchor = (box.x1, "end") if x > (box.x0 + box.x1) / 2 else (max(x, 0.0), "start")
        parts.append(
            text(at, 14 + 14 * number, shorten(one.label, 44 if not narrow else 40), "tick", anchor, one.label)
        )
    ticks = scale.ticks(3 if narrow else 6)
    parts.append(el("path", {"class": "base", "d": line_path([(box.x0, box.y1), (box.x1, box.y1)])}))
    parts += [text(_x(box, scale, v), box.y1 + 18, f"{v:.{decimals(ticks)}f}", "tick", "middle") for v in ticks]
    title = f"{figure_name(result)}, {'lower' if result.protocol.lower_is_better else 'higher'} is better"
    parts.append(text((box.x0 + box.x1) / 2, box.y1 + 37, title, "axis-title", "middle"))
    for k, row in enumerate(rows):
        y = box.y0 + height * (k + (0.68 if narrow else 0.5)) + 4
        parts.append(_quality_row(row, order[row.label], y, box, scale, size))
    return charts.picture(parts, size, about, box, "qualities", box.y1 + 44)


def _near(value: float, held: Sequence[float]) -> bool:
    """Whether a floor can stand in the picture without pressing all else together."""
    return not held or min(abs(value - v) for v in held) <= 3 * max(max(held) - min(held), 0.02 * abs(max(held)))


def _quality_row(row: TaskRow, index: int, y: float, box: Box, scale: Scale, size: charts.Size) -> str:
    narrow, q = size.name == "narrow", row.quality
    name_at = (box.x0, y - 15, "start") if narrow else (box.x0 - 14, y + size.font * 0.35, "end")
    parts = [text(name_at[0], name_at[1], shorten(row.label, size.names), "name", name_at[2], row.label, index)]
    said = written(q.mean) or STATUS.get(row.status, row.status)
    said_at = (box.x1, y - 15, "end") if narrow else (box.x1 + 14, y + size.font * 0.35, "start")
    parts.append(text(*said_at[:2], said, "name quiet", said_at[2], row.error))
    if q.mean is not None:
        for kind, low, high, drop in (("bar strong", q.low, q.high, -3.0), ("bar", row.items_low, row.items_high, 3.0)):
            if low is not None and high is not None:
                parts.append(charts.bar(_x(box, scale, low), _x(box, scale, high), y + drop, box, kind))
        for value in q.seeds.values() if len(q.seeds) > 1 else ():
            x = _x(box, scale, value)
            parts.append(el("path", {"class": "tickmark", "d": line_path([(x, y - 8), (x, y - 1)])}))
        parts.append(charts.mark(index, _x(box, scale, q.mean), y, 5.0, f"{row.label}: {said}"))
    return el("g", {"class": f"series s{palette.hue(index)}", "data-s": index}, *parts)


def _x(box: Box, scale: Scale, value: float) -> float:
    return box.x0 + scale(value) * (box.x1 - box.x0)


def floors(result: TaskComparison) -> list[Words]:
    """What needs no network."""
    return [one for one in (result.floor, result.trivial) if one is not None and one.value is not None]


def figure_name(result: TaskComparison) -> str:
    """The main figure, for people."""
    return result.protocol.figure.replace("_", " ") or "quality"


def written(value: float | None) -> str:
    """A figure with its digits; empty where there is none."""
    return "" if value is None or not math.isfinite(value) else f"{value:.4f}"


def signed(value: float | None) -> str:
    """A difference."""
    return digits.ABSENT if value is None else digits.signed(value, 4, digits.MINUS)


def span(low: float | None, high: float | None, write: Any) -> str:
    """Both ends of an interval."""
    return digits.ABSENT if low is None or high is None else f"{write(low)} to {write(high)}"
