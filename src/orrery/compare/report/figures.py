"""Pictures for files (PNG and SVG) by matplotlib, without its global state: safe in threads, deterministic in content.

Four pictures: learning curves with seed bands, quality against cost with the Pareto front, speed and state over length,
capability between chance and optimum. Colour, mark and a direct label name each architecture; every axis has its unit.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from orrery.compare.report import digits, palette
from orrery.compare.report.columns import Column, Table, build_table
from orrery.compare.report.scales import Box, Scale, domain, pareto, place_labels, spread, staircase, wants_log
from orrery.compare.report.series import Y_TICKS, Panel, capability, cost_axes, indices, learning, lengths
from orrery.compare.report.words import caveat
from orrery.compare.result import CapabilityTask, ComparisonResult
from orrery.core.files import write_bytes

INK, QUIET, HAIR = "#23262e", "#6b6f78", "#dedbd3"
TRADE_OFFS = ("train", "decode", "memory", "state")
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.unicode_minus": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.minor.bottom": False,
    "ytick.minor.left": False,
    "svg.hashsalt": "orrery",
    "svg.fonttype": "path",
}


def write_pictures(result: ComparisonResult, directory: str | Path, reference: ComparisonResult | None = None) -> list[Path]:
    """Write every picture that the result has data for as PNG and SVG into `directory`; returns the paths.

    Raises:
        StorageError: when the place cannot be written.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in draw_all(result, reference):
        for kind in ("png", "svg"):
            paths.append(write_bytes(folder / f"{name}.{kind}", render(figure, kind)))
    return paths


def draw_all(result: ComparisonResult, reference: ComparisonResult | None = None) -> Iterator[tuple[str, Any]]:
    """(name, matplotlib Figure) of every picture that the result has data for."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        panel = learning(result, reference)
        if panel is not None:
            yield "learning", draw_learning(panel, caveat(result))
        table = build_table(result)
        columns = [column for column in cost_axes(table) if column.key in TRADE_OFFS]
        if columns:
            yield "quality-cost", draw_trade_offs(columns, table, result)
        if panels := lengths(result):
            yield "length", draw_panels(panels)
        tasks = [task for task in result.capabilities if any(row.mean is not None for row in task.rows)]
        if tasks:
            yield "capability", draw_capability(tasks, result)


def render(figure: Any, kind: str) -> bytes:
    """A figure as the bytes of a PNG (160 dots per inch) or SVG file, without dates so that equal results are equal files."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        metadata = {"Date": None, "Creator": "orrery"} if kind == "svg" else {"Software": "orrery"}
        figure.savefig(buffer, format=kind, dpi=160, facecolor="white", metadata=metadata)
    return buffer.getvalue()


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def draw_learning(panel: Panel, caption: str) -> Any:
    """Mean curves, bands from the smallest to the largest seed, levels for orientation."""
    figure = _figure(8.2, 4.6)
    axes = figure.add_axes((0.075, 0.19, 0.64, 0.71))
    draw_panel(axes, panel)
    lines = ["Line: mean over seeds. Band: smallest to largest seed.", f"{panel.note} {caption[:1].upper()}{caption[1:]}.".strip()]
    figure.text(0.075, 0.02, "\n".join(lines), color=QUIET, fontsize=8, linespacing=1.5, parse_math=False)
    return figure


def draw_panels(panels: list[Panel]) -> Any:
    """Panels side by side, each with its own labels."""
    figure = _figure(4.4 * len(panels), 3.5)
    share = 1 / len(panels)
    for k, panel in enumerate(panels):
        axes = figure.add_axes((share * (k + 0.14), 0.16, share * 0.50, 0.68))
        draw_panel(axes, panel, 20)
    return figure


def draw_panel(axes: Any, panel: Panel, longest: int = 28) -> None:
    """Lines of a panel into axes, labels of at most `longest` characters at their right ends."""
    scale_x, scale_y = panel.scales
    many = len([line for line in panel.lines if not line.faint]) > 8
    for line in panel.lines:
        colour = palette.LIGHT[palette.hue(line.index)]
        shape, filled = palette.mark(line.index)
        xs, ys = zip(*line.points, strict=True)
        if line.band:
            x, low, high = zip(*line.band, strict=True)
            axes.fill_between(x, low, high, color=colour, alpha=0.10 if many else 0.16, linewidth=0)
        every = max(1, len(xs) // 6)
        axes.plot(
            xs, ys, color=colour, linewidth=1.0 if line.faint else 1.6, alpha=0.35 if line.faint else 1.0,
            marker=None if line.faint else palette.MATPLOTLIB[shape], markevery=slice((len(xs) - 1) % every, None, every),
            markersize=4.2, markerfacecolor=colour if filled else "white", markeredgewidth=1.0, clip_on=True, zorder=2 if line.faint else 3,
        )  # fmt: skip
    for _, value in panel.levels:
        axes.axhline(value, color=QUIET, linewidth=0.8, dashes=(4, 3), zorder=1)
    for _, points in panel.floors:
        axes.plot([x for x, _ in points], [y for _, y in points], color=QUIET, linewidth=0.9, dashes=(4, 3), zorder=1)
    _frame(axes, scale_x, scale_y, panel)
    _end_labels(axes, panel, longest)


def _frame(axes: Any, scale_x: Any, scale_y: Any, panel: Panel) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log" if scale_x.log else "linear")
    axes.set_yscale("log" if scale_y.log else "linear")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.set_xlim(scale_x.low, scale_x.high)
    axes.set_ylim(scale_y.low, scale_y.high)
    x_ticks, y_ticks = panel.marks(scale_x, 5), scale_y.ticks(Y_TICKS)
    axes.set_xticks(x_ticks, [panel.x_text(v) for v in x_ticks])
    axes.set_yticks(y_ticks, [panel.tick(v, scale_y) for v in y_ticks])
    axes.grid(axis="y", color=HAIR, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=4)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(panel.x_title, parse_math=False)
    if panel.title:
        axes.set_title(panel.title, parse_math=False, pad=20)
    axes.annotate(panel.y_title, (0, 1), (0, 6), "axes fraction", "offset points", color=QUIET, fontsize=8.5, parse_math=False)


def _end_labels(axes: Any, panel: Panel, longest: int) -> None:
    """Names at the right edge, moved apart, each joined to its curve's end by a hair line."""
    _, scale_y = panel.scales
    ends: list[tuple[str, float, float, str]] = []
    x_low, x_high = axes.get_xlim()
    for line in panel.lines:
        if not line.faint:
            x, y = line.points[-1]
            at = Scale(x_low, x_high, axes.get_xscale() == "log")(x)
            ends.append((line.label, at, scale_y(y), palette.LIGHT[palette.hue(line.index)]))
    ends += [(name, 1.0, scale_y(value), QUIET) for name, value in panel.levels]
    ends += [(name, min(1.0, panel.scales[0](points[-1][0])), scale_y(points[-1][1]), QUIET) for name, points in panel.floors]
    inches = axes.get_position().height * axes.figure.get_figheight()
    places = spread([min(1.0, max(0.0, y)) for _, _, y, _ in ends], 0.145 / inches, 0.0, 1.0)
    for (name, x, y, colour), place in zip(ends, places):
        axes.plot([x, 1.02, 1.05], [y, place, place], transform=axes.transAxes, color=colour, linewidth=0.6, clip_on=False, alpha=0.7)
        axes.text(1.06, place, _short(name, longest), transform=axes.transAxes, color=QUIET if colour == QUIET else INK,
                  fontsize=8, va="center", parse_math=False)  # fmt: skip


def _short(name: str, limit: int) -> str:
    return name if len(name) <= limit else f"{name[: limit - 9]}…{name[-8:]}"


def draw_trade_offs(columns: list[Column], table: Table, result: ComparisonResult) -> Any:
    """Quality over each cost in a grid; architectures that nothing dominates are joined by the Pareto front."""
    rows = (len(columns) + 1) // 2
    wide = min(2, len(columns))
    figure = _figure(5.2 * wide, 3.7 * rows + 0.3)
    share = 3.7 / (3.7 * rows + 0.3)
    for k, column in enumerate(columns):
        left, low = (k % 2 + 0.11) / wide, 1 - (k // 2 + 1 - 0.16) * share
        axes = figure.add_axes((left, low, 0.84 / wide, 0.68 * share))
        _trade_off(axes, column, table.column("quality"), indices(result))
    figure.text(0.11 / wide, 0.012, "Dashed: Pareto front, names of the dominated in grey. Bars: 95 % t-interval over seeds.",
                color=QUIET, fontsize=8)  # fmt: skip
    return figure


def _trade_off(axes: Any, column: Column, quality: Column, order: dict[str, int]) -> None:
    labels = [k for k, cell in column.cells.items() if cell.value is not None and quality.cells[k].value is not None]
    xs = [float(column.cells[k].value or 0.0) for k in labels]
    ys = [float(quality.cells[k].value or 0.0) for k in labels]
    ends = [v for k in labels for v in (quality.cells[k].low, quality.cells[k].high) if v is not None]
    log = wants_log(xs, 5)
    scale_x, scale_y = domain(xs, log, pad=0.16), domain([*ys, *ends], pad=0.08)
    panel = Panel("", f"Quality against {column.noun}", axis_title(column), "validation bits per byte", [], y_kind="bits")
    _frame(axes, scale_x, scale_y, panel)
    x_ticks = scale_x.ticks(4)
    axes.set_xticks(x_ticks, [axis_tick(column, v) for v in x_ticks])
    front = pareto(list(zip(xs, ys)), (column.better, "low"))
    place = [(scale_x(x), 1 - scale_y(y)) for x, y in zip(xs, ys)]
    path = staircase([place[i] for i in front], (column.better, "low"), Box(0, 0, 1, 1))
    axes.plot([x for x, _ in path], [1 - y for _, y in path], transform=axes.transAxes, color=QUIET, linewidth=0.8, dashes=(2, 2), zorder=1)
    for i, label in enumerate(labels):
        colour, (shape, filled) = palette.LIGHT[palette.hue(order[label])], palette.mark(order[label])
        cell = quality.cells[label]
        if cell.low is not None and cell.high is not None:
            axes.plot([xs[i], xs[i]], [cell.low, cell.high], color=colour, linewidth=1.0, alpha=0.6)
        axes.plot([xs[i]], [ys[i]], marker=palette.MATPLOTLIB[shape], color=colour, markersize=7,
                  markerfacecolor=colour if filled else "white", linestyle="none", zorder=4)  # fmt: skip
    _scatter_labels(axes, labels, place, set(front))


def _scatter_labels(axes: Any, labels: list[str], place: list[tuple[float, float]], front: set[int]) -> None:
    from matplotlib.patheffects import withStroke

    box = axes.get_position()
    wide, high = box.width * axes.figure.get_figwidth() * 72, box.height * axes.figure.get_figheight() * 72
    points = [(x * wide, y * high) for x, y in place]
    names = [_short(label, 26) for label in labels]
    halo = [withStroke(linewidth=2.5, foreground="white")]
    spots = place_labels(points, [(len(name) * 4.4, 10.0) for name in names], Box(0, 0, wide, high), reach=7.0)
    align = {"start": "left", "end": "right", "middle": "center"}
    for i, (name, (x, y, anchor)) in enumerate(zip(names, spots)):
        axes.text(x / wide, 1 - y / high, name, transform=axes.transAxes, ha=align[anchor], va="center", fontsize=8,
                  color=INK if i in front else QUIET, path_effects=halo, zorder=5, parse_math=False)  # fmt: skip


def axis_tick(column: Column, value: float) -> str:
    """A value on the axis of a cost."""
    if not column.base_unit:
        return f"{100 * value:.0f}" if column.unit.startswith("%") else digits.count(value)
    return digits.with_prefix(value, "B", 1) if column.base_unit == "B" else digits.count(value)


def axis_title(column: Column) -> str:
    """Noun, unit, length, how it was obtained, and which side is better."""
    unit = "" if column.base_unit == "B" else column.base_unit or column.unit
    parts = [column.noun + (f" {column.at} tokens" if column.at.startswith("at ") else "")]
    parts += [unit] if unit else []
    parts += ["estimated"] if column.how == "estimated" else []
    return f"{', '.join(parts)} ({'more' if column.better == 'high' else 'less'} is better)"


def draw_capability(tasks: list[CapabilityTask], result: ComparisonResult) -> Any:
    """One row per task: final accuracy of every seed, and the way there, between chance and optimum."""
    most = max(len(task.rows) for task in tasks)
    height = max(3.0, 1.5 + 0.24 * most)
    figure = _figure(9.6, height * len(tasks))
    for k, task in enumerate(tasks):
        size = 1 / len(tasks)
        low, inch = 1 - (k + 1) * size, size / height
        figure.text(0.03, low + size - 0.30 * inch, task.title, fontsize=10, fontweight="bold", parse_math=False)
        figure.text(0.03, low + size - 0.50 * inch, task.question, color=QUIET, fontsize=8.5, parse_math=False)
        dots = figure.add_axes((0.235, low + 0.5 * inch, 0.265, size - 1.3 * inch))
        _dots(dots, task, indices(result))
        panel = capability(task, result)
        if panel is not None:
            axes = figure.add_axes((0.565, low + 0.5 * inch, 0.24, size - 1.3 * inch))
            draw_panel(axes, replace(panel, title=""), 22)
    return figure


def _dots(axes: Any, task: CapabilityTask, order: dict[str, int]) -> None:
    rows = sorted(task.rows, key=lambda row: -(row.mean if row.mean is not None else -1.0))
    for level in (task.chance, task.optimum):
        axes.axvline(level, color=QUIET, linewidth=0.8, dashes=(4, 3), zorder=1)
    for place, row in enumerate(rows):
        index = order.get(row.architecture, 0)
        colour, (shape, filled) = palette.LIGHT[palette.hue(index)], palette.mark(index)
        if row.mean is None:
            axes.text(task.chance, place, "  no result", color=QUIET, fontsize=8, va="center")
            continue
        axes.plot([task.chance, row.mean], [place, place], color=colour, linewidth=1.2, alpha=0.5)
        axes.plot(list(row.seeds.values()), [place] * len(row.seeds), marker="|", linestyle="none", color=colour, markersize=8)
        axes.plot([row.mean], [place], marker=palette.MATPLOTLIB[shape], markersize=6, color=colour,
                  markerfacecolor=colour if filled else "white", linestyle="none")  # fmt: skip
    axes.set_yticks(range(len(rows)), [_short(row.architecture, 30) for row in rows], parse_math=False, color=INK, fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-0.03, 1.05 * max(1.0, task.optimum))
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    axes.set_xticks(ticks, [f"{100 * t:.0f} %" for t in ticks])
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"{task.metric} after {task.steps:,} steps; dashed: chance and optimum", parse_math=False)
