"""Curves in a terminal, drawn with braille dots (2 x 4 per character) by a pure function of numbers.

`sparkchart(curves, width, height)` gives exactly `height` rows of `width` cells: a scale on the left, the plot, names at
the right ends of the curves, a scale below. A cell knows which architecture it belongs to, so that the caller may colour
it; faint curves lie behind the others and never hide them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from orrery.compare.report import digits
from orrery.compare.report.scales import Scale, decimals, domain, focus, spread, wants_log
from orrery.compare.report.svg import clean

BRAILLE = 0x2800
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # [row][column] of a braille character
_LETTERS = "ox+*#@%&"
LEAST = (24, 5)  # a plot below that says nothing


@dataclass(frozen=True)
class SparkCurve:
    """A curve to draw: points in order of x; `index` chooses its colour; `faint` puts it behind the others."""

    label: str
    points: Sequence[tuple[float, float]]
    index: int | None = 0  # None: no architecture, a line for orientation
    faint: bool = False


@dataclass(frozen=True)
class SparkCell:
    """One character; `index` of the architecture it belongs to, or None for scales and levels."""

    char: str = " "
    index: int | None = None
    faint: bool = False


Rows = list[list[SparkCell]]


def sparkchart(
    curves: Sequence[SparkCurve],
    width: int,
    height: int,
    levels: Sequence[tuple[str, float]] = (),
    y_range: tuple[float, float] | None = None,
    ascii_only: bool = False,
) -> Rows:
    """A chart of `width` x `height` characters.

    Args:
        curves: to draw; those without points only wait.
        width: of the whole, at least 24.
        height: of the whole, at least 5; the last row holds the x scale.
        levels: named horizontal lines for orientation.
        y_range: instead of the one found from the data.
        ascii_only: letters instead of braille.
    """
    width, height = max(width, LEAST[0]), max(height, LEAST[1])
    shown = [_clean(curve) for curve in curves]
    scale_x, scale_y = _scales(shown, levels, y_range)
    marks = scale_y.ticks(max(2, min(5, (height - 1) // 3)))
    ticks = [(v, f"{v:.{decimals(marks)}f}") for v in marks]
    gutter = max([len(text) for _, text in ticks] + [3]) + 1
    names = _names(shown, levels)
    margin = min(max([len(name) for name, *_ in names] + [0]) + 1, max(0, width // 3)) if width >= 48 else 0
    plot_width, plot_height = width - gutter - margin, height - 1
    rows: Rows = [[SparkCell()] * width for _ in range(height)]
    plot = draw(shown, plot_width, plot_height, scale_x, scale_y, [y for _, y in levels], ascii_only)
    for r, line in enumerate(plot):
        rows[r][gutter : gutter + plot_width] = line
    for value, text in ticks:
        _write(rows[_row(scale_y(value), plot_height)], 0, text.rjust(gutter - 1))
    _write_x(rows[-1], scale_x, gutter, plot_width)
    if margin:
        _write_names(rows, names, scale_y, gutter + plot_width + 1, plot_height, margin - 1)
    return rows


def draw(
    curves: Sequence[SparkCurve],
    width: int,
    height: int,
    scale_x: Scale,
    scale_y: Scale,
    levels: Sequence[float] = (),
    ascii_only: bool = False,
) -> Rows:
    """The plot alone: `height` rows of `width` cells. Segments are interpolated; what lies outside is left out."""
    mask = [[0] * width for _ in range(height)]
    owner: list[list[SparkCell]] = [[SparkCell()] * width for _ in range(height)]
    for level in levels:
        y = _dot(scale_y(level), height * 4)
        if y is not None:
            for x in range(0, width * 2, 4):
                _set(mask, owner, x, y, None, True)
    for curve in sorted(curves, key=lambda c: not c.faint):
        for x, y in _path(curve, scale_x, scale_y, width * 2, height * 4):
            _set(mask, owner, x, y, curve.index, curve.faint)
    rows: Rows = []
    for r in range(height):
        line = []
        for c in range(width):
            one = owner[r][c]
            if ascii_only:
                letter = "." if one.index is None or one.faint else _LETTERS[one.index % len(_LETTERS)]
                char = letter if mask[r][c] else " "
            else:
                char = chr(BRAILLE + mask[r][c]) if mask[r][c] else " "
            line.append(SparkCell(char, one.index, one.faint))
        rows.append(line)
    return rows


def as_text(rows: Rows) -> str:
    """Rows as lines of text."""
    return "\n".join("".join(cell.char for cell in row).rstrip() for row in rows)


def _clean(curve: SparkCurve) -> SparkCurve:
    points = [(float(x), float(y)) for x, y in curve.points if math.isfinite(x) and math.isfinite(y)]
    return SparkCurve(clean(curve.label), points, curve.index, curve.faint)


def _scales(
    curves: Sequence[SparkCurve], levels: Sequence[tuple[str, float]], y_range: tuple[float, float] | None
) -> tuple[Scale, Scale]:
    xs = [x for curve in curves for x, _ in curve.points]
    log = wants_log(xs)
    scale_x = domain(xs, log, pad=0.0)
    if scale_x.low == scale_x.high:
        scale_x = domain(xs, log, pad=0.1)
    if y_range is not None:
        return scale_x, Scale(*y_range)
    seen = focus([curve.points for curve in curves])
    ys = [*(seen or ()), *(y for _, y in levels if math.isfinite(y))]
    return scale_x, domain(ys, pad=0.04)


def _set(mask: list[list[int]], owner: list[list[SparkCell]], x: int, y: int, index: int | None, faint: bool) -> None:
    r, c = y // 4, x // 2
    before = owner[r][c]
    if mask[r][c] and before.faint and not faint:
        mask[r][c] = 0  # what is measured now is not mixed with what lies behind it
    mask[r][c] |= _DOTS[y % 4][x % 2]
    owner[r][c] = SparkCell("", index, faint)


def _dot(place: float, count: int) -> int | None:
    """Dot row (0 at the top) of a place in [0, 1]; None outside."""
    if not -1e-9 <= place <= 1 + 1e-9:
        return None
    return min(count - 1, max(0, round((1 - place) * (count - 1))))


def _path(curve: SparkCurve, scale_x: Scale, scale_y: Scale, width: int, height: int) -> list[tuple[int, int]]:
    """Dots of a curve: one per dot column between its points, and the steps between columns filled vertically."""
    placed = [(scale_x(x) * (width - 1), (1 - scale_y(y)) * (height - 1)) for x, y in curve.points if scale_x(x) > -1]
    dots: list[tuple[int, int]] = []
    if len(placed) == 1:
        placed = placed * 2
    for (x0, y0), (x1, y1) in zip(placed, placed[1:]):
        steps = max(1, math.ceil(max(abs(x1 - x0), abs(y1 - y0))))
        steps = min(steps, 4 * (width + height))
        for k in range(steps + 1):
            x, y = x0 + (x1 - x0) * k / steps, y0 + (y1 - y0) * k / steps
            if -0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5:
                dots.append((min(width - 1, max(0, round(x))), min(height - 1, max(0, round(y)))))
    return dots


def _row(place: float, height: int) -> int:
    return min(height - 1, max(0, round((1 - place) * (height - 1))))


def _write(row: list[SparkCell], at: int, text: str, index: int | None = None, faint: bool = False) -> None:
    for k, char in enumerate(text):
        if 0 <= at + k < len(row):
            row[at + k] = SparkCell(char, index, faint)


def _write_x(row: list[SparkCell], scale: Scale, gutter: int, width: int) -> None:
    end = -1
    for value in scale.ticks(max(2, width // 14)):
        text = digits.count(value)
        at = gutter + min(max(0, round(scale(value) * (width - 1)) - len(text) // 2), width - len(text))
        if at > end:
            _write(row, at, text)
            end = at + len(text)


def _names(curves: Sequence[SparkCurve], levels: Sequence[tuple[str, float]]) -> list[tuple[str, float, int | None, bool]]:
    """Labels at the right: one per name, that of the brighter and longer curve; then the levels."""
    best: dict[str, SparkCurve] = {}
    for curve in curves:
        before = best.get(curve.label)
        if curve.points and (before is None or (not curve.faint, curve.points[-1][0]) > (not before.faint, before.points[-1][0])):
            best[curve.label] = curve
    out: list[tuple[str, float, int | None, bool]] = [(c.label, c.points[-1][1], c.index, c.faint) for c in best.values()]
    return out + [(name, y, None, True) for name, y in levels if math.isfinite(y)]


def _write_names(
    rows: Rows, names: list[tuple[str, float, int | None, bool]], scale: Scale, left: int, height: int, room: int
) -> None:
    names = sorted(names, key=lambda item: item[3])[:height]  # too many for the height: the faint ones go first
    wanted = [min(1.0, max(0.0, 1 - scale(y))) * (height - 1) for _, y, _, _ in names]
    for (name, _, index, faint), place in zip(names, spread(wanted, 1.0, 0.0, height - 1.0)):
        text = name if len(name) <= room else name[: max(1, room - 1)] + "…"
        _write(rows[min(height - 1, math.floor(place + 0.5))], left, text, index, faint)
