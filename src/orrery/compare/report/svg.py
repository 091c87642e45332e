"""Inline SVG as text: elements with escaped attributes, marks, clipped lines. No namespace, no style attributes, no ids,
so that a picture may stand several times in one page under a strict content security policy."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence

from orrery.compare.report.scales import Box

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
Point = tuple[float, float]


def clean(text: str) -> str:
    """Text without the characters that neither XML nor a terminal can hold."""
    return _CONTROL.sub("\ufffd", text)


def el(name: str, attributes: Mapping[str, object], *children: str) -> str:
    """An element; attribute values are escaped, children are markup already."""
    inside = "".join(f' {key}="{html.escape(_value(value))}"' for key, value in attributes.items() if value is not None)
    body = "".join(children)
    return f"<{name}{inside}>{body}</{name}>" if body or name in ("g", "svg", "text") else f"<{name}{inside}/>"


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start", title: str = "", s: int | None = None) -> str:
    """A text element; `title` is shown on hover where the content was shortened; `s` binds it to an architecture."""
    inner = html.escape(clean(content), quote=False)
    if title and title != content:
        inner += el("title", {}, html.escape(clean(title), quote=False))
    return el("text", {"x": x, "y": y, "class": kind or None, "text-anchor": None if anchor == "start" else anchor, "data-s": s}, inner)


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}".removesuffix(".0") if math.isfinite(value) else "0"
    return clean(str(value))


def _polygon(count: int, radius: float, turn: float) -> str:
    corners = [(radius * math.sin(turn + 2 * math.pi * k / count), -radius * math.cos(turn + 2 * math.pi * k / count)) for k in range(count)]
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in corners) + "Z"


def mark_path(shape: str, radius: float = 5.0) -> str:
    """Path data of a mark around the origin; areas look alike, so that no shape seems larger."""
    if shape == "circle":
        return f"M{-radius:.2f} 0a{radius:.2f} {radius:.2f} 0 1 0 {2 * radius:.2f} 0a{radius:.2f} {radius:.2f} 0 1 0 {-2 * radius:.2f} 0Z"
    count, size, turn = {
        "square": (4, 1.25, math.pi / 4),
        "triangle": (3, 1.42, 0.0),
        "diamond": (4, 1.28, 0.0),
        "wedge": (3, 1.42, math.pi),
        "hexagon": (6, 1.1, 0.0),
    }[shape]
    return _polygon(count, radius * size, turn)


def clip(points: Sequence[Point], frame: Box) -> list[list[Point]]:
    """Pieces of a line inside a frame."""
    pieces: list[list[Point]] = []
    for a, b in zip(points, points[1:]):
        part = _segment(a, b, frame)
        if part is None:
            continue
        if pieces and math.dist(pieces[-1][-1], part[0]) < 1e-6:
            pieces[-1].append(part[1])
        else:
            pieces.append(list(part))
    return pieces


def _segment(a: Point, b: Point, frame: Box) -> tuple[Point, Point] | None:
    """The part of a segment inside the frame (Liang and Barsky 1984), None when there is none."""
    (x, y), dx, dy = a, b[0] - a[0], b[1] - a[1]
    enter, leave = 0.0, 1.0
    for p, q in ((-dx, x - frame.x0), (dx, frame.x1 - x), (-dy, y - frame.y0), (dy, frame.y1 - y)):
        if abs(p) < 1e-12:
            if q < -1e-9:
                return None
            continue
        if p < 0:
            enter = max(enter, q / p)
        else:
            leave = min(leave, q / p)
    if enter > leave:
        return None
    return (x + enter * dx, y + enter * dy), (x + leave * dx, y + leave * dy)


def line_path(points: Sequence[Point]) -> str:
    """Path data of a polyline."""
    return "M" + "L".join(f"{_value(float(x))} {_value(float(y))}" for x, y in points)


def shorten(name: str, limit: int) -> str:
    """A name of at most `limit` characters: its beginning and its end, for patterns differ at either."""
    name = " ".join(name.split())
    if len(name) <= limit:
        return name
    tail = min(6, max(2, limit // 3))
    return f"{name[: limit - tail - 1]}…{name[-tail:]}"


def text_width(content: str, size: float) -> float:
    """About how wide a text is, in the unit of its size; generous, since the reader's font is not known."""
    narrow = sum(char in "iljftr.,:;|()[]'!1 " for char in content)
    broad = sum(char in "mwMW@%…+=" for char in content)
    return size * (0.56 * len(content) - 0.2 * narrow + 0.26 * broad)
