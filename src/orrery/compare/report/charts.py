"""The pictures of the page, as inline SVG: lines over an axis, quality over cost, differences, capability, intervals.

Geometry is computed here; colours come from the page's style sheet by class (`s0` to `s7` carry the architecture's hue
in light and dark), so that one picture serves both. `data-s` binds a shape to its architecture for highlighting,
`data-frame` tells the page's script where the plot lies. Without the script everything is readable as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orrery.compare.report import digits, palette, words
from orrery.compare.report.columns import Column
from orrery.compare.report.scales import (
    Box,
    Scale,
    decimals,
    domain,
    pareto,
    place_labels,
    spread,
    staircase,
    wants_log,
)
from orrery.compare.report.series import Y_TICKS, Line, Panel
from orrery.compare.report.svg import Point, clip, el, line_path, mark_path, shorten, text, text_width
from orrery.compare.result import CapabilityRow, CapabilityTask, Contrast, NoiseFloor, Quality


@dataclass(frozen=True)
class Size:
    """Outer size of a picture in user units and how long its names may be."""

    name: str  # class of the svg: "wide", "narrow" or "small"
    width: float
    height: float
    font: float
    names: int  # characters of a name


WIDE = Size("wide", 820, 450, 13, 30)
NARROW = Size("narrow", 360, 360, 12, 15)
SMALL = Size("small", 356, 285, 12, 15)


def mark(index: int, x: float, y: float, radius: float = 5.0, title: str = "") -> str:
    """The mark of an architecture at a place."""
    shape, filled = palette.mark(index)
    kind = f"mark s{palette.hue(index)}{'' if filled else ' hollow'}"
    path = mark_path(shape, radius)
    inner = el("title", {}, _escape(title)) if title else ""
    return el("path", {"class": kind, "d": path, "transform": f"translate({x:.1f} {y:.1f})", "data-s": index}, inner)


def bar(low: float, high: float, y: float, frame: Box, kind: str) -> str:
    """An interval from low to high in pixels; an end outside the frame is an arrow at its edge."""
    inside = [min(max(x, frame.x0), frame.x1) for x in (low, high)]
    path, open_ends = line_path([(x, y) for x in inside]), 0
    for x, wanted, back in ((inside[0], low, 6.0), (inside[1], high, -6.0)):
        if abs(x - wanted) > 0.5:
            path, open_ends = path + line_path([(x + back, y - 4), (x, y), (x + back, y + 4)]), open_ends + 1
    return el("path", {"class": f"{kind} open" if open_ends else kind, "d": path})


def open_intervals(pictures: Sequence[str]) -> list[str]:
    """What a legend says of pictures in which an interval leaves the frame."""
    return ["An arrow: the interval goes on outside the picture."] if any(' open"' in str(one) for one in pictures) else []


def _escape(content: str) -> str:
    import html

    from orrery.compare.report.svg import clean

    return html.escape(clean(content), quote=False)


def line_chart(panel: Panel, size: Size, about: str) -> str:
    """A panel of lines with direct labels at the right.

    Args:
        panel: lines, levels, scales.
        size: of the picture.
        about: what it shows, in words, for those who cannot see it.
    """
    scale_x, scale_y = panel.scales
    shown = [line for line in panel.lines if line.points]
    ticks = [(scale_y(v), panel.tick(v, scale_y)) for v in scale_y.ticks(Y_TICKS)]
    left = 10 + max([text_width(label, size.font) for _, label in ticks] + [20.0])
    names = [shorten(name, size.names) for name in [line.label for line in shown if not line.faint] + [n for n, _ in (*panel.levels, *panel.floors)]]
    room = 30 + max([text_width(name, size.font) for name in names] + [0.0])
    frame = Box(left, 30, size.width - room, size.height - 44)
    parts = [*_axes(frame, scale_x, panel, ticks, size)]
    for _, value in panel.levels:
        y = _y(frame, scale_y(value))
        parts.append(el("path", {"class": "level", "d": line_path([(frame.x0, y), (frame.x1, y)])}))
    for _, points in panel.floors:
        placed = [(_x(frame, scale_x(x)), _y(frame, scale_y(y))) for x, y in points]
        parts.append(el("path", {"class": "level", "d": "".join(line_path(piece) for piece in clip(placed, frame))}))
    for line in shown:
        parts.append(_line(line, frame, scale_x, scale_y))
    parts += _end_labels(panel, frame, scale_x, scale_y, size)
    return picture(parts, size, about, frame, panel.key)


def picture(parts: Sequence[str], size: Size, about: str, frame: Box, key: str, height: float | None = None) -> str:
    """Parts as a picture of the page; `key` names it to the script."""
    attributes = {
        "class": f"chart {size.name}",
        "viewBox": f"0 0 {size.width:g} {height or size.height:g}",
        "role": "img",
        "aria-label": about,
        "data-chart": key,
        "data-frame": f"{frame.x0:.1f} {frame.y0:.1f} {frame.x1:.1f} {frame.y1:.1f}",
    }
    return el("svg", attributes, *parts)


def _y(frame: Box, place: float) -> float:
    return frame.y1 - place * (frame.y1 - frame.y0)


def _x(frame: Box, place: float) -> float:
    return frame.x0 + place * (frame.x1 - frame.x0)


def _axes(frame: Box, scale_x: Scale, panel: Panel, y_ticks: Sequence[tuple[float, str]], size: Size) -> list[str]:
    wanted = max(2, round((frame.x1 - frame.x0) / 75))
    x_ticks = [(scale_x(v), panel.x_text(v)) for v in panel.marks(scale_x, wanted)]
    return axes(frame, x_ticks, y_ticks, panel.x_title, panel.y_title, size)


def axes(
    frame: Box,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    x_title: str,
    y_title: str,
    size: Size,
) -> list[str]:
    """Hair lines at the ticks of y, a base line, tick texts, the title of y above and that of x below the plot."""
    parts = [text(0, 14, y_title, "axis-title")]
    for place, label in y_ticks:
        y = _y(frame, place)
        parts.append(el("path", {"class": "grid", "d": line_path([(frame.x0, y), (frame.x1, y)])}))
        parts.append(text(frame.x0 - 8, y + size.font * 0.35, label, "tick", "end"))
    parts.append(el("path", {"class": "base", "d": line_path([(frame.x0, frame.y1), (frame.x1, frame.y1)])}))
    end = -1e9
    for place, label in sorted(x_ticks):
        x, half = _x(frame, place), text_width(label, size.font) / 2
        if x - half > end:
            parts.append(text(x, frame.y1 + 18, label, "tick", "middle"))
            end = x + half + 6
    parts.append(text((frame.x0 + frame.x1) / 2, frame.y1 + 37, x_title, "axis-title", "middle"))
    return parts


def _line(line: Line, frame: Box, scale_x: Scale, scale_y: Scale) -> str:
    """Band, seeds, mean and marks of one architecture."""

    def at(x: float, y: float) -> Point:
        return _x(frame, scale_x(x)), _y(frame, scale_y(y))

    hue = f"s{palette.hue(line.index)}"
    points = [at(x, y) for x, y in line.points]
    whole = "".join(line_path(piece) for piece in clip(points, frame))
    if line.faint:
        return el("g", {"class": f"{hue} behind"}, el("path", {"class": "line", "d": whole})) if whole else ""
    parts = []
    if line.band:
        corners = [(item, at(item[0], item[1])) for item in line.band]
        seen = [item for item, (x, y) in corners if x >= frame.x0 and y >= frame.y0]  # what lies outside the plot is left out
        upper = [at(x, high) for x, _, high in seen]
        lower = [at(x, low) for x, low, _ in seen][::-1]
        area = [(x, min(max(y, frame.y0), frame.y1)) for x, y in [*upper, *lower]]
        if len(seen) > 1:
            parts.append(el("path", {"class": "band", "d": line_path(area) + "Z"}))
    for seed in line.seeds.values() if len(line.seeds) > 1 else ():
        thin = "".join(line_path(piece) for piece in clip([at(x, y) for x, y in seed], frame))
        if thin:
            parts.append(el("path", {"class": "seed", "d": thin}))
    if whole:
        parts.append(el("path", {"class": "line", "d": whole}))
    every = max(1, len(points) // 5)
    for k in range((len(points) - 1) % every, len(points), every):
        x, y = points[k]
        if frame.y0 <= y <= frame.y1:
            parts.append(mark(line.index, x, y, 3.6))
    return el("g", {"class": f"series {hue}", "data-s": line.index}, *parts)


def _end_labels(panel: Panel, frame: Box, scale_x: Scale, scale_y: Scale, size: Size) -> list[str]:
    """Names at the right edge, moved apart, each joined to its curve's end by a hair line."""
    ends: list[tuple[str, Point, int | None]] = []
    for line in panel.lines:
        if not line.faint and line.points:
            x, y = line.points[-1]
            ends.append((line.label, (_x(frame, scale_x(x)), _y(frame, scale_y(y))), line.index))
    ends += [(name, (frame.x1, _y(frame, scale_y(value))), None) for name, value in panel.levels]
    ends += [(name, (_x(frame, min(1.0, scale_x(points[-1][0]))), _y(frame, scale_y(points[-1][1]))), None) for name, points in panel.floors]
    gap = size.font * 1.28
    wanted = [min(max(y, frame.y0), frame.y1) for _, (_, y), _ in ends]
    places = spread(wanted, gap, frame.y0, frame.y1 + 6)
    parts = []
    for (name, (x, y), index), place in zip(ends, places):
        y = min(max(y, frame.y0), frame.y1)
        hue = "" if index is None else f" s{palette.hue(index)}"
        path = line_path([(x, y), (frame.x1 + 8, place), (frame.x1 + 20, place)])
        parts.append(el("path", {"class": f"leader{hue}", "d": path, "data-s": index}))
        kind = "name quiet" if index is None else "name"
        parts.append(text(frame.x1 + 24, place + size.font * 0.35, shorten(name, size.names), kind, title=name, s=index))
    return parts


@dataclass(frozen=True)
class CostAxis:
    """One column as an axis: places in [0, 1], so that Python and the page's script draw alike."""

    key: str
    name: str  # for a list to choose from
    title: str  # with unit and length, for the axis
    better: str
    places: dict[str, float]  # label -> place
    texts: dict[str, str]
    ticks: list[tuple[float, str]]
    ends: dict[str, tuple[float, float]]  # label -> places of the interval's ends


def cost_axis(column: Column, title: str, labels: Sequence[str]) -> CostAxis:
    """The axis of a column over `labels`."""
    cells = {label: column.cells[label] for label in labels if column.cells[label].value is not None}
    values = [float(cell.value or 0.0) for cell in cells.values()]
    log = wants_log(values, 5)
    ends = [v for cell in cells.values() for v in (cell.low, cell.high) if v is not None]
    scale = domain([*values, *ends], log, pad=0.12)
    ticks = [(scale(v), _cost_tick(column, v, scale)) for v in scale.ticks(5)]
    texts = {label: f"{cell.text} {column.unit}".strip() for label, cell in cells.items()}
    places = {label: scale(float(cell.value or 0.0)) for label, cell in cells.items()}
    spans = {k: (scale(c.low), scale(c.high)) for k, c in cells.items() if c.low is not None and c.high is not None}
    return CostAxis(column.key, column.noun, title, column.better, places, texts, ticks, spans)


def _cost_tick(column: Column, value: float, scale: Scale) -> str:
    if column.key == "quality":
        return f"{value:.{decimals(scale.ticks(5))}f}"
    if not column.base_unit and column.unit.startswith("%"):
        return f"{100 * value:.0f} %"
    return digits.with_prefix(value, "B", 1) if column.base_unit == "B" else digits.count(value)


def scatter(x: CostAxis, y: CostAxis, order: dict[str, int], size: Size, about: str) -> str:
    """One architecture per mark; what nothing dominates is joined by the Pareto front."""
    left = 10 + max([text_width(label, size.font) for _, label in y.ticks] + [20.0])
    frame = Box(left, 30, size.width - 12, size.height - 44)
    labels = [label for label in order if label in x.places and label in y.places]
    points = [(_x(frame, x.places[k]), _y(frame, y.places[k])) for k in labels]
    front = pareto([(x.places[k], y.places[k]) for k in labels], (x.better, y.better))
    parts = axes(frame, x.ticks, y.ticks, x.title, y.title, size)
    path = staircase([points[i] for i in front], (x.better, y.better), frame)
    if len(path) > 1:
        parts.append(el("path", {"class": "front", "d": line_path(path)}))
    names = [shorten(label, size.names) for label in labels]
    spots = place_labels(points, [(text_width(name, size.font), size.font) for name in names], frame, 10)
    for i, label in enumerate(labels):
        index, (px, py), (tx, ty, anchor) = order[label], points[i], spots[i]
        inside = []
        if label in y.ends:
            low, high = (_y(frame, end) for end in y.ends[label])
            inside.append(el("path", {"class": "bar", "d": line_path([(px, low), (px, high)])}))
        inside.append(mark(index, px, py, 6.0, f"{label}: {x.texts[label]}, {y.texts[label]}"))
        inside.append(text(tx, ty + size.font * 0.35, names[i], f"name halo{'' if i in front else ' quiet'}", anchor, label, index))
        parts.append(el("g", {"class": f"series s{palette.hue(index)}", "data-s": index}, *inside))
    return picture([el("g", {"class": "plot"}, *parts)], size, about, frame, "scatter")


def interval(quality: Quality, index: int, low: float, high: float) -> str:
    """The quality of one row as a tiny picture: interval, seeds, mean; all rows share [low, high]."""
    width, height = 108.0, 22.0
    scale = Scale(low, high) if high > low else Scale(low - 1, high + 1)

    def at(value: float) -> float:
        return 6 + min(1.0, max(0.0, scale(value))) * (width - 12)

    mean = quality.mean
    if mean is None:
        return ""
    parts = []
    if quality.low is not None and quality.high is not None:
        parts.append(el("path", {"class": "bar", "d": line_path([(at(quality.low), height / 2), (at(quality.high), height / 2)])}))
    for value in quality.seeds.values():
        parts.append(el("path", {"class": "tickmark", "d": line_path([(at(value), 5), (at(value), height - 5)])}))
    parts.append(mark(index, at(mean), height / 2, 3.4))
    attributes = {"class": f"mini s{palette.hue(index)}", "viewBox": f"0 0 {width:g} {height:g}", "aria-hidden": "true", "focusable": "false"}
    return el("svg", attributes, *parts)


BITS = ("← first needs fewer bits", "second needs fewer →", "difference in bits per byte, first minus second")


def forest(
    contrasts: Sequence[Contrast], margin: float, order: dict[str, int], size: Size, about: str, said: tuple[str, str, str] = BITS
) -> str:
    """Paired differences: every seed, the interval, the margin inside which a difference does not matter.

    Args:
        said: what stands over the left and the right half, and under the axis.
    """
    narrow = size.name == "narrow"
    row = 46.0 if narrow else 34.0
    left = 8.0 if narrow else 270.0
    right = size.width - 8 if narrow else size.width - 170
    frame = Box(left, 30, right, 34 + row * len(contrasts))
    values = [v for one in contrasts for v in (*one.deltas, one.low, one.high, one.mean) if v is not None]
    scale = domain([*_middle(values, contrasts), margin, -margin, 0.0], pad=0.05)
    parts = []
    band = [(_x(frame, scale(side)), y) for side, y in ((-margin, frame.y0), (margin, frame.y0), (margin, frame.y1), (-margin, frame.y1))]
    if margin > 0:
        parts.append(el("path", {"class": "margin", "d": line_path(band) + "Z"}))
    zero = _x(frame, scale(0.0))
    parts.append(el("path", {"class": "base", "d": line_path([(zero, frame.y0), (zero, frame.y1)])}))
    parts.append(text(frame.x0, 18, said[0], "axis-title"))
    parts.append(text(frame.x1, 18, said[1], "axis-title", "end"))
    for v in scale.ticks(4 if narrow else 6):
        parts.append(text(_x(frame, scale(v)), frame.y1 + 18, digits.signed(v, 2, digits.MINUS) if v else "0", "tick", "middle"))
    parts.append(text((frame.x0 + frame.x1) / 2, frame.y1 + 37, said[2], "axis-title", "middle"))
    for k, one in enumerate(contrasts):
        y = frame.y0 + row * (k + (0.72 if narrow else 0.5)) + 4
        parts.append(_forest_row(one, y, frame, scale, order.get(one.first, 0), size))
    return picture(parts, size, about, frame, "differences", frame.y1 + 44)


def against_itself(floor: NoiseFloor | None) -> list[Contrast]:
    """The noise floor as one more row: what a difference of nothing looks like."""
    if floor is None or floor.mean is None or not floor.deltas:
        return []
    seeds = list(range(1, len(floor.deltas) + 1))
    return [Contrast(floor.architecture, "itself", seeds=seeds, deltas=floor.deltas, mean=floor.mean, primary=False, verdict="noise floor")]


def _middle(values: Sequence[float], contrasts: Sequence[Contrast]) -> list[float]:
    """Values for the scale: an interval far wider than all differences (two seeds) may leave the picture."""
    inner = [v for one in contrasts for v in (*one.deltas, one.mean) if v is not None]
    reach = 2.5 * max([abs(v) for v in inner] + [0.0])
    return [v for v in values if abs(v) <= reach] or list(values)


def _forest_row(one: Contrast, y: float, frame: Box, scale: Scale, index: int, size: Size) -> str:
    narrow = size.name == "narrow"
    name = f"{one.first} {digits.MINUS} {one.second}"
    short = shorten(name, 30 if narrow else 38)
    parts = []
    label_y, label_x, anchor = (y - 15, frame.x0, "start") if narrow else (y + size.font * 0.35, frame.x0 - 14, "end")
    parts.append(text(label_x, label_y, short, "name", anchor, name))
    verdict_x, verdict_anchor = (frame.x1, "end") if narrow else (frame.x1 + 14, "start")
    said = short_verdict(one.verdict, narrow)
    parts.append(text(verdict_x, label_y if narrow else y + size.font * 0.35, said, "name quiet", verdict_anchor, one.verdict))
    if one.mean is None:
        return el("g", {"class": f"series s{palette.hue(index)}", "data-s": index}, *parts)

    def at(value: float) -> float:
        return min(max(_x(frame, scale(value)), frame.x0), frame.x1)

    if one.low is not None and one.high is not None:
        parts.append(bar(_x(frame, scale(one.low)), _x(frame, scale(one.high)), y, frame, "bar strong"))
    for delta in one.deltas:
        parts.append(el("path", {"class": "tickmark", "d": line_path([(at(delta), y - 6), (at(delta), y + 6)])}))
    parts.append(mark(index, at(one.mean), y, 5.0, f"{name}: {words.difference(one, digits.MINUS)}, {one.verdict}"))
    return el("g", {"class": f"series s{palette.hue(index)}", "data-s": index}, *parts)


def short_verdict(verdict: str, short: bool) -> str:
    """A verdict that fits beside a row on a phone."""
    return {"no difference shown": "no difference", "too few seeds to say": "too few seeds"}.get(verdict, verdict) if short else verdict


def dots(task: CapabilityTask, order: dict[str, int], size: Size, about: str) -> str:
    """Final accuracy of every architecture on a task, between chance and optimum; best on top."""
    rows = sorted(task.rows, key=lambda row: -(row.mean if row.mean is not None else -1.0))
    left = 14 + max([text_width(shorten(row.architecture, size.names + 3), size.font) for row in rows] + [40.0])
    frame = Box(left, 30, size.width - 46, 34 + 25.0 * len(rows))
    scale = Scale(0.0, max(1.0, task.optimum))
    parts = []
    for place, name in ((task.chance, "chance"), (task.optimum, "optimum")):
        x = _x(frame, scale(place))
        parts.append(el("path", {"class": "level", "d": line_path([(x, frame.y0), (x, frame.y1)])}))
        parts.append(text(x, 18, name, "tick", "middle"))
    for v in (0.0, 0.5, 1.0):
        parts.append(text(_x(frame, scale(v)), frame.y1 + 18, f"{100 * v:.0f} %", "tick", "middle"))
    parts.append(text((frame.x0 + frame.x1) / 2, frame.y1 + 37, f"{task.metric} after {task.steps:,} steps", "axis-title", "middle"))
    for k, row in enumerate(rows):
        parts.append(_dot_row(task, k, row, frame, scale, order, size))
    return picture(parts, size, about, frame, f"dots-{task.name}", frame.y1 + 44)


def _dot_row(
    task: CapabilityTask, k: int, row: CapabilityRow, frame: Box, scale: Scale, order: dict[str, int], size: Size
) -> str:
    label = row.architecture
    index, y = order.get(label, 0), frame.y0 + 25.0 * (k + 0.5) + 4
    name = shorten(label, size.names + 3)
    parts = [text(frame.x0 - 12, y + size.font * 0.35, name, "name", "end", label, index)]
    if row.mean is None:
        parts.append(text(_x(frame, scale(task.chance)) + 6, y + size.font * 0.35, "no result", "name quiet", title=row.error))
    else:
        x = _x(frame, scale(row.mean))
        parts.append(el("path", {"class": "bar", "d": line_path([(_x(frame, scale(task.chance)), y), (x, y)])}))
        for value in row.seeds.values() if len(row.seeds) > 1 else ():
            at = _x(frame, scale(value))
            parts.append(el("path", {"class": "tickmark", "d": line_path([(at, y - 5), (at, y + 5)])}))
        parts.append(mark(index, x, y, 5.0, f"{label}: {digits.percent(row.mean)}"))
        parts.append(text(frame.x1 + 10, y + size.font * 0.35, f"{100 * row.mean:.0f} %", "tick"))
    return el("g", {"class": f"series s{palette.hue(index)}", "data-s": index}, *parts)
