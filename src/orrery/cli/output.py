"""How commands speak: tables for people, JSON for machines, always to stdout; remarks to stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def say_json(value: Any) -> None:
    """One JSON document; numbers that are not finite, which JSON has no word for, are null."""
    print(json.dumps(_finite(value), indent=1, ensure_ascii=False, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def say_table(headings: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[int] = ()) -> None:
    """A table that fits its content; columns listed in `right` are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell).replace("[", "\\[") for cell in row))
    console = Console(soft_wrap=False)
    if not console.is_terminal:
        console = Console(width=max(console.width, 110))
    console.print(table)


def remark(text: str) -> None:
    """A line for people that is no part of the result."""
    print(text, file=sys.stderr)


def count(number: float) -> str:
    """A number with three digits and a prefix: `1234567` -> `1.23M`."""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.3g}{letter}"
    return f"{number:.3g}"


def size(number: float) -> str:
    """Bytes in decimal units: `1530` -> `1.53 kB`."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(number) >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number:.0f} B"
