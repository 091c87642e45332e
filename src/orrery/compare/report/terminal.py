"""A result for the terminal: `render_table` for rich, `render_text` for pipes, logs and files.

Both are laid out by the same code: the table is cut into blocks of columns that fit the width, each with the names of
the architectures in front, so that 80 columns stay readable and 200 columns use one block.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orrery.compare.report import palette, words
from orrery.compare.report.columns import ESTIMATED, Column, Table, build_table
from orrery.compare.report.svg import clean
from orrery.compare.result import ComparisonResult, Contrast

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

GAP = 2
LEAST_WIDTH = 40
_ASCII = str.maketrans({"—": "-", "–": "-", "−": "-", "─": "-", "·": ".", "…": "~", "→": ">", "×": "x"})


@dataclass(frozen=True)
class Block:
    """A piece of a table that fits the width: heads and rows of text, names first."""

    heads: list[list[str]]  # per column the lines of its head
    rows: list[list[list[str]]]  # per row and column the lines of the cell
    widths: list[int]
    left: tuple[int, ...] = (0,)  # columns aligned to the left
    best: frozenset[tuple[int, int]] = frozenset()  # (row, column) of the best values
    hues: tuple[int | None, ...] = ()  # colour of each row's name


def render_table(result: ComparisonResult) -> Any:
    """A rich renderable of the whole result: table, contrasts, noise floor, recommendation, notes.

    It lays itself out for the width of the console that prints it.
    """
    return _Report(result)


def render_text(result: ComparisonResult, width: int = 100, ascii_only: bool = False) -> str:
    """The same as plain text.

    Args:
        result: to show; unfinished and failed parts are said in words.
        width: characters per line that are not exceeded (names longer than a line apart).
        ascii_only: for terminals and files that hold nothing else.
    """
    width = max(LEAST_WIDTH, width)
    lines: list[str] = []
    for kind, content in _parts(result, width):
        if kind == "block":
            lines += _plain_block(content)
        elif kind == "title":
            lines += content
            continue
        else:
            lines += content
        lines.append("")
    text = clean("\n".join(line.rstrip() for line in lines).rstrip() + "\n")
    return text.replace(" ±", "+-").translate(_ASCII) if ascii_only else text


def _parts(result: ComparisonResult, width: int) -> Iterator[tuple[str, Any]]:
    """("title", str), ("text" | "quiet" | "strong", lines) and ("block", Block) in reading order."""
    if result.recommendation is None:  # else it stands at the end, where a terminal is read
        yield "strong", wrap(words.headline(result), width)
    yield "text", wrap(words.protocol_line(result), width)
    if result.status != "complete":
        yield "quiet", ["This comparison is not finished; what is there is shown."]
    table = build_table(result)
    for block in table_blocks(table, result, width):
        yield "block", block
    yield "quiet", [line for note in table_notes(table) for line in wrap(note, width)]
    if result.contrasts:
        yield "title", wrap("Differences in bits per byte, first minus second (negative: the first is better)", width)
        yield "block", contrast_block(result.contrasts, width)
        yield "quiet", wrap(words.verdict_rule(result), width)
    if noise := words.noise(result):
        yield "text", wrap(f"Noise floor: {noise}", width)
    if lines := [line for text in words.orientation(result) for line in wrap(text, width)]:
        yield "text", ["For orientation:", *lines]
    if problems := words.failures(result):
        yield "text", ["What did not come through:", *(line for text in problems for line in wrap(text, width, "- "))]
    if result.notes:
        yield "text", ["Notes:", *(line for note in result.notes for line in wrap(note, width, "- "))]
    yield from _recommendation(result, width)


def _recommendation(result: ComparisonResult, width: int) -> Iterator[tuple[str, Any]]:
    advice = result.recommendation
    if advice is None:
        return
    lines = []
    if advice.choice:
        yield "strong", wrap(f"Recommendation: {advice.choice}", width)
    elif advice.sentence:
        yield "strong", wrap(advice.sentence, width)
    if advice.choice and advice.reason:
        lines += wrap(f"Reason: {advice.reason}.".replace("..", "."), width)
    if advice.doubt:
        lines += wrap(f"Doubt: {advice.doubt}.".replace("..", "."), width)
    for item in advice.excluded:
        lines += wrap(f"Left out: {item.architecture} ({item.why})", width)
    if advice.next_command:
        lines += wrap(f"A longer run: {advice.next_command}", width)
    if lines:
        yield "text", lines


def wrap(text: str, width: int, bullet: str = "") -> list[str]:
    """Lines of at most `width` characters; words longer than a line are cut."""
    text = " ".join(text.split())
    return textwrap.wrap(text, width, initial_indent=bullet, subsequent_indent=" " * len(bullet)) or [bullet]


def wrap_name(name: str, width: int) -> list[str]:
    """An architecture's name in lines of at most `width`, cut where a pattern has a joint."""
    lines: list[str] = []
    rest = " ".join(name.split())
    while len(rest) > width:
        cut = _joint(rest[: width + 1], (" + ", " | ", ", ", ",", "/", " "), after=True, least=width // 3)
        cut = cut or _joint(rest[:width], ("(", "["), after=False, least=width // 3)
        cut = cut or _joint(rest[:width], ("-", "_", "=", "."), after=True, least=width // 3) or width
        lines.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return [*lines, rest]


def _joint(text: str, joints: Sequence[str], after: bool, least: int) -> int:
    """Where the last of the joints lets a line end; 0 when that would leave less than `least` characters."""
    ends = [text.rfind(joint) + (len(joint.rstrip()) if after else 0) for joint in joints if joint in text]
    best = max((end for end in ends if end < len(text)), default=0)
    return best if best >= least else 0


def head_lines(column: Column) -> list[str]:
    """Title, unit, and what qualifies it (length, how it was obtained)."""
    how = ESTIMATED if column.how == "estimated" else column.how if column.key.endswith("energy") else ""
    return [column.title, column.unit, " ".join(part for part in (column.at, how) if part)]


def table_blocks(table: Table, result: ComparisonResult, width: int) -> list[Block]:
    """The architecture table in as many blocks as the width asks for."""
    columns = [column for column in table.columns if not column.minor]
    labels = [row.label for row in table.rows]
    name_width = min(max([len(label) for label in labels] + [12]), max(14, round(width * 0.3)))
    order = {row.label: index for index, row in enumerate(result.architectures)}
    blocks: list[Block] = []
    pending = list(columns)
    while pending:
        room = width - name_width
        chosen: list[Column] = []
        while pending and (not chosen or _width(pending[0]) + GAP <= room):
            room -= _width(pending[0]) + GAP
            chosen.append(pending.pop(0))
        best = {(labels.index(label), i + 1) for i, column in enumerate(chosen) for label in column.best() if column.key != "parameters"}
        blocks.append(
            Block(
                heads=[["", "", "architecture"], *(head_lines(column) for column in chosen)],
                rows=[[wrap_name(label, name_width), *([column.cells[label].text] for column in chosen)] for label in labels],
                widths=[name_width, *(_width(column) for column in chosen)],
                best=frozenset(best),
                hues=tuple(palette.hue(order[label]) for label in labels),
            )
        )
    return blocks


def _width(column: Column) -> int:
    return max(len(text) for text in (*head_lines(column), *(cell.text for cell in column.cells.values())))


def contrast_block(contrasts: Sequence[Contrast], width: int) -> Block:
    """One row per contrast: who, difference with interval, seeds, verdict. Narrow widths drop the adjusted p."""
    full = width >= 96
    heads = [["first - second"], ["difference [95 %]"], ["seeds"], *([["adj. p"]] if full else []), ["verdict"]]
    body: list[list[str]] = []
    for one in contrasts:
        p = "" if one.p_adjusted is None else f"{one.p_adjusted:.3f}"
        verdict = one.verdict if one.primary else f"{one.verdict} (secondary)"
        name = f"{one.first} - {one.second}"
        body.append([name, words.difference(one), str(len(one.deltas)), *([p] if full else []), verdict])
    widths = [max(len(row[i]) for row in [*body, [head[0] for head in heads]]) for i in range(len(heads))]
    spare = width - sum(widths[1:]) - GAP * (len(heads) - 1)
    if spare < min(widths[0], 18):  # the verdict gives way before the names do
        widths[-1] = max(12, widths[-1] - (min(widths[0], 18) - spare))
        spare = width - sum(widths[1:]) - GAP * (len(heads) - 1)
    widths[0] = max(10, min(widths[0], spare))
    rows = [
        [wrap_name(row[0], widths[0]), *([text] for text in row[1:-1]), textwrap.wrap(row[-1], widths[-1]) or [""]] for row in body
    ]
    return Block(heads, rows, widths, left=(0, len(heads) - 1))


def table_notes(table: Table) -> list[str]:
    """What the heads only hint at: intervals, and what was not measured but follows from a formula or an estimate."""
    intervals = any(cell.low is not None for column in table.columns if column.key == "quality" for cell in column.cells.values())
    spread = "mean ± 95 % t-interval over seeds" if intervals else "one seed each, so no interval"
    out = [f"Quality: validation bits per byte, {spread}; lower is better."]
    formulas = [column.title for column in table.columns if column.how == "analytic" and not column.minor]
    if formulas:
        names = " and ".join(formulas)
        out.append(f"{names[0].upper()}{names[1:]}: by the formulas of the models, not measured.")
    energies: dict[str, list[str]] = {}
    for column in table.columns:
        if column.key.endswith("_energy") and column.values:
            notes = sorted({cell.note.split("; ")[-1] for cell in column.cells.values() if cell.value is not None and cell.note})
            how = column.how if column.how != "mixed" else "measured or estimated, as marked"
            energies.setdefault(how + (f"; {notes[0]}" if notes else ""), []).append(column.at)
    out += [f"Energy of {' and '.join(kinds)}: {how}." for how, kinds in energies.items()]
    return out


def _aligned(text: str, width: int, left: bool) -> str:
    return text.ljust(width) if left else text.rjust(width)


def _plain_block(block: Block) -> list[str]:
    lines = []
    depth = max(len(head) for head in block.heads)
    for level in range(depth):
        cells = [head[level] if level < len(head) else "" for head in block.heads]
        if any(cells):
            lines.append((" " * GAP).join(_aligned(t, w, i in block.left) for i, (t, w) in enumerate(zip(cells, block.widths))))
    lines.append("─" * (sum(block.widths) + GAP * (len(block.widths) - 1)))
    for row in block.rows:
        for level in range(max(len(cell) for cell in row)):
            cells = [cell[level] if level < len(cell) else "" for cell in row]
            lines.append((" " * GAP).join(_aligned(t, w, i in block.left) for i, (t, w) in enumerate(zip(cells, block.widths))))
    return lines


class _Report:
    """Renders itself when rich asks, at the width that rich has."""

    def __init__(self, result: ComparisonResult) -> None:
        self.result = result

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.padding import Padding
        from rich.text import Text

        styles = {"strong": "bold", "quiet": "dim", "text": "", "title": "bold"}
        for kind, content in _parts(self.result, max(LEAST_WIDTH, options.max_width)):
            if kind == "block":
                yield Padding(_rich_block(content), (0, 0, 1, 0))
            else:
                lines = [content] if isinstance(content, str) else content
                yield Padding(Text(clean("\n".join(lines)), style=styles[kind]), (0, 0, 0 if kind == "title" else 1, 0))


def _rich_block(block: Block) -> Any:
    from rich.text import Text

    text = Text()
    lines = _plain_block(block)
    body = sum(max(len(cell) for cell in row) for row in block.rows)
    for line in lines[: len(lines) - body]:
        text.append(clean(line.rstrip()) + "\n", style="dim")
    for r, row in enumerate(block.rows):
        for level in range(max(len(cell) for cell in row)):
            for c, (cell, width) in enumerate(zip(row, block.widths)):
                piece = _aligned(cell[level] if level < len(cell) else "", width, c in block.left)
                style = "bold" if (r, c) in block.best else ""
                if c == 0 and block.hues:
                    style = palette.RICH[block.hues[r] or 0]
                text.append(("" if c == 0 else " " * GAP) + clean(piece), style=style)
            text.append("\n")
    text.rstrip()
    return text
