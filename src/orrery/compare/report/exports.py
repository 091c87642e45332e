"""The table for other programs: CSV with bare numbers in base units, Markdown for a README or an issue."""

from __future__ import annotations

import csv
import html
import io
import re

from orrery.compare.report.columns import Table, build_table
from orrery.compare.report.svg import clean
from orrery.compare.report.terminal import head_lines
from orrery.compare.result import ComparisonResult


def to_csv(result: ComparisonResult) -> str:
    """One row per architecture; every number at full precision, an empty field where there is none.

    Heads are `key [unit]`; `key how` beside it says measured, counted, analytic or estimated; quality has its interval.
    """
    table = build_table(result)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_heads(table))
    for row in table.rows:
        line: list[object] = [row.label, row.spec, row.status, row.config_hash]
        for column in table.columns:
            cell = column.cells[row.label]
            line += [_number(cell.value), cell.how]
            if column.key == "quality":
                line += [_number(cell.low), _number(cell.high)]
        writer.writerow(line)
    return clean(out.getvalue())


def _heads(table: Table) -> list[str]:
    heads = ["architecture", "spec", "status", "config_hash"]
    for column in table.columns:
        unit = " ".join(part for part in (column.base_unit, column.at) if part)
        heads += [f"{column.key} [{unit}]" if unit else column.key, f"{column.key} how"]
        if column.key == "quality":
            heads += ["quality low", "quality high"]
    return heads


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def to_markdown(result: ComparisonResult) -> str:
    """A pipe table with the same texts as the terminal's; names are escaped so that none can break out of its cell."""
    table = build_table(result)
    columns = [column for column in table.columns if not column.minor]
    lines = ["| architecture | " + " | ".join(_cell(" ".join(p for p in head_lines(c) if p)) for c in columns) + " |"]
    lines.append("|---|" + "---:|" * len(columns))
    for row in table.rows:
        lines.append(f"| {_cell(row.label)} | " + " | ".join(_cell(c.cells[row.label].text) for c in columns) + " |")
    return clean("\n".join(lines) + "\n")


def _cell(text: str) -> str:
    text = " ".join(text.split())
    text = html.escape(text, quote=False)
    return re.sub(r"([\\|*_`\[\]])", r"\\\1", text)
