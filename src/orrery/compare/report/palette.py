"""Colours and marks of every picture: told apart by people with colour blindness, in greyscale print, and on both papers.

Eight hues (found by maximising the least OKLab distance under normal vision and under simulated protanopia, deuteranopia
and tritanopia, Machado et al. 2009, doi 10.1109/TVCG.2009.113; the floor is tested), each in a light and a dark variant
with a contrast of at least 3 against its paper. Colour is never alone: every architecture also has its own mark and a
direct label, because no eight greys can be told apart. An architecture keeps its colour in every picture of a result,
by its place in the order asked, however a table is sorted.
"""

from __future__ import annotations

LIGHT = ("#0454b1", "#ca7f2b", "#32886d", "#a5195e", "#753010", "#0f94c0", "#1f2744", "#80741e")
DARK = ("#4a87ee", "#f28d19", "#4ec499", "#d249a2", "#a66f3d", "#a4d2f2", "#f7f7f9", "#e2d853")
PAPER_LIGHT, PAPER_DARK = "#fcfbf8", "#11151c"

# mark, filled: twelve of them, so that colour and mark together repeat only after 24 architectures
MARKS = tuple(
    (shape, filled) for filled in (True, False) for shape in ("circle", "square", "triangle", "diamond", "wedge", "hexagon")
)
MATPLOTLIB = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "wedge": "v", "hexagon": "h"}
RICH = ("bright_blue", "yellow", "green", "magenta", "red", "cyan", "white", "bright_yellow")


def hue(index: int) -> int:
    """Which of the eight colours the architecture at `index` has."""
    return index % len(LIGHT)


def mark(index: int) -> tuple[str, bool]:
    """Shape and whether it is filled."""
    return MARKS[index % len(MARKS)]
