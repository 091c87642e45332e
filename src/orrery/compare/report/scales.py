"""Axes, fronts and label places: the small geometry that all pictures share. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_NICE = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """A mapping of data [low, high] onto [0, 1], linear or logarithmic."""

    low: float
    high: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Place of a value; outside [0, 1] when it lies outside the domain. `-inf` for values no log can hold."""
        if self.log:
            if value <= 0:
                return -math.inf
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values inside the domain, about `wanted` of them."""
        return _log_ticks(self.low, self.high, wanted) if self.log else _linear_ticks(self.low, self.high, wanted)


def _linear_ticks(low: float, high: float, wanted: int) -> list[float]:
    raw = (high - low) / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(nice * power for nice in _NICE if nice * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _log_ticks(low: float, high: float, wanted: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    inside: list[float] = []
    for factors in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), tuple(float(f) for f in range(1, 10))):
        found = [f * 10.0**p for p in range(first, last + 1) for f in factors]
        inside = [v for v in found if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
        if len(inside) >= min(3, wanted):
            break
    if len(inside) < 2:
        return _linear_ticks(low, high, wanted)
    stride = math.ceil(len(inside) / (wanted + 1))
    return inside[::stride]


def decimals(ticks: Sequence[float], most: int = 4) -> int:
    """Digits after the point with which every tick is written as it is."""
    return next((d for d in range(most) if all(abs(round(v, d) - v) < 1e-9 * max(1.0, abs(v)) for v in ticks)), most)


def domain(values: Sequence[float], log: bool = False, pad: float = 0.06) -> Scale:
    """A scale around the values with a little room; a single value gets room too, an empty list a unit scale."""
    found = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    if not found:
        return Scale(1.0, 10.0, True) if log else Scale(0.0, 1.0)
    low, high = min(found), max(found)
    if log:
        span = math.log(high / low) or math.log(2.0)
        return Scale(low * math.exp(-pad * span), high * math.exp(pad * span), True)
    span = (high - low) or abs(high) * 0.2 or 1.0
    return Scale(low - pad * span, high + pad * span)


def wants_log(values: Sequence[float], ratio: float = 8.0) -> bool:
    """Whether positive values spread so far that a linear axis would hide the small ones."""
    found = [v for v in values if math.isfinite(v)]
    return bool(found) and min(found) > 0 and max(found) / min(found) > ratio


def focus(curves: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float] | None:
    """The range of y that shows where curves differ: the first third of a long curve, its steep fall, may leave the top."""
    kept = [y for curve in curves for _, y in (curve[len(curve) // 3 :] if len(curve) > 8 else curve)]
    return (min(kept), max(kept)) if kept else None


def pareto(points: Sequence[tuple[float, float]], better: tuple[str, str]) -> list[int]:
    """Indices of the points that no other point dominates: as good on both axes and better on one.

    Args:
        points: (x, y) pairs.
        better: "low" or "high" for each axis.
    """
    sx, sy = (1.0 if side == "low" else -1.0 for side in better)
    keyed = [(sx * x, sy * y) for x, y in points]
    return [
        i
        for i, (x, y) in enumerate(keyed)
        if not any(a <= x and b <= y and (a < x or b < y) for j, (a, b) in enumerate(keyed) if j != i)
    ]


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move label centres apart so that neighbours are at least `gap` from each other, each as little as it may be.

    Least squares under the ordering (pool adjacent violators), then held inside [low, high] where that is possible; when
    there is no room the gap shrinks evenly.
    """
    n = len(places)
    if not n:
        return []
    gap = min(gap, (high - low) / (n - 1)) if n > 1 else gap
    order = sorted(range(n), key=lambda i: places[i])
    blocks: list[list[float]] = []  # [sum of shifted places, count]
    for rank, index in enumerate(order):
        blocks.append([places[index] - rank * gap, 1.0])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, number = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += number
    flat = [total / number for total, number in blocks for _ in range(int(number))]
    top = high - (n - 1) * gap
    out = [0.0] * n
    for rank, index in enumerate(order):
        out[index] = min(max(flat[rank], low), max(low, top)) + rank * gap
    return out


@dataclass(frozen=True)
class Box:
    """A rectangle in a picture: left, top, right, bottom."""

    x0: float
    y0: float
    x1: float
    y1: float

    def overlap(self, other: Box) -> float:
        """Shared area."""
        return max(0.0, min(self.x1, other.x1) - max(self.x0, other.x0)) * max(0.0, min(self.y1, other.y1) - max(self.y0, other.y0))

    def outside(self, frame: Box) -> float:
        """How far it sticks out of a frame, summed over the sides."""
        return (
            max(0.0, frame.x0 - self.x0) + max(0.0, frame.y0 - self.y0) + max(0.0, self.x1 - frame.x1) + max(0.0, self.y1 - frame.y1)
        )


def place_labels(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], frame: Box, reach: float = 9.0
) -> list[tuple[float, float, str]]:
    """Where to put a label beside each point: (x of its anchor, y of its middle, "start" | "end" | "middle").

    Greedy from the most crowded point on, then twice over again with all others known: of the places around a point the
    one that covers least of marks and other labels and stays inside the frame; near and to the right when all are free.
    """
    marks = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    order = sorted(range(len(points)), key=lambda i: -sum(math.dist(points[i], p) < 60 for p in points))
    taken: dict[int, Box] = {}
    out: list[tuple[float, float, str]] = [(x, y, "start") for x, y in points]
    for i in order * 3:
        taken.pop(i, None)
        best, kept = math.inf, marks[i]
        for rank, (ax, ay, anchor) in enumerate(_spots(points[i], sizes[i][1], reach)):
            w, h = sizes[i]
            left = ax if anchor == "start" else ax - w if anchor == "end" else ax - w / 2
            box = Box(left, ay - h / 2, left + w, ay + h / 2)
            price = sum(box.overlap(other) for other in taken.values())
            price += sum(1.5 * box.overlap(other) for other in marks)
            price += 40 * box.outside(frame) + rank * 4
            if price < best:
                best, out[i], kept = price, (ax, ay, anchor), box
        taken[i] = kept
    return out


def _spots(point: tuple[float, float], height: float, reach: float) -> Iterator[tuple[float, float, str]]:
    x, y = point
    for far in (0.0, height, 2 * height):
        for dx, dy, anchor in ((1.0, 0.0, "start"), (-1.0, 0.0, "end"), (0.0, -1.0, "middle"), (0.0, 1.0, "middle"),
                               (0.8, -0.9, "start"), (0.8, 0.9, "start"), (-0.8, -0.9, "end"), (-0.8, 0.9, "end")):  # fmt: skip
            if dy or not far:
                yield x + dx * reach, y + dy * (reach + height / 2 + far), anchor


def staircase(points: Sequence[tuple[float, float]], better: tuple[str, str], frame: Box) -> list[tuple[float, float]]:
    """Corners of the line that bounds what a front dominates, in picture coordinates (y grows downwards).

    Args:
        points: the front, in picture coordinates.
        better: "low" or "high" of the data on each axis.
        frame: of the plot; the line runs out to its sides.
    """
    if not points:
        return []
    from_right = better[0] == "high"
    bottom_is_good = better[1] == "low"
    ordered = sorted(points, key=lambda p: -p[0] if from_right else p[0])  # from the cheapest on
    worst_y = frame.y0 if bottom_is_good else frame.y1
    worst_x = frame.x0 if from_right else frame.x1
    path = [(ordered[0][0], worst_y)]
    for (x, y), nxt in zip(ordered, [*ordered[1:], None]):
        path.append((x, y))
        if nxt is not None:
            path.append((nxt[0], y))
    path.append((worst_x, ordered[-1][1]))
    return path
