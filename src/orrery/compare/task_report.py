"""A comparison over a task in words: a table for the terminal, `report.md`, `figure.svg`; :mod:`orrery.compare.task_page` writes all.

Colours and marks are those of every report (:mod:`orrery.compare.report.palette`), by the order in which architectures were
named. The picture stands alone: it carries its colours, for light and for dark paper.
"""

from __future__ import annotations

from collections.abc import Sequence

from orrery.compare.report import digits, palette
from orrery.compare.report.charts import mark
from orrery.compare.report.scales import Box, Scale, decimals, domain
from orrery.compare.report.svg import el, line_path, shorten, text
from orrery.compare.result import Contrast
from orrery.compare.task_result import TaskComparison, TaskRow, TaskSweep
from orrery.core.progress import counted
from orrery.models.ladder import TOLERANCE

WIDTH, ROW, LEFT, RIGHT = 820.0, 36.0, 190.0, 24.0


def table(result: TaskComparison) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: one architecture each, best first, then what has no network."""
    name = result.protocol.figure.replace("_", " ")
    heads = [
        "architecture",
        name,
        "over seeds, 95 %",
        "over rows, 95 %",
        "parameters",
        "training",
        "predicted",
        "peak memory",
    ]
    rows = []
    for row in ranked(result):
        q = row.quality
        rows.append([
            row.label,
            _share(q.mean) if q.mean is not None else row.status,
            _span(q.low, q.high) or (counted(len(q.seeds), "seed") if q.seeds else ""),
            _span(row.items_low, row.items_high),
            f"{digits.count(row.matched)} + {digits.count(row.parameters - row.matched)}",
            digits.seconds(row.seconds) if row.seconds is not None else "",
            f"{digits.plain(row.rate)}/s" if row.rate else "",
            digits.with_prefix(row.memory, "B") if row.memory else "",
        ])  # fmt: skip
    for floor in (result.floor, result.trivial):
        if floor is not None:
            took = digits.seconds(floor.seconds) if floor.seconds else ""
            rows.append([floor.label, _share(floor.value), "", _span(floor.low, floor.high), "", took, "", ""])
    return heads, rows


def ranked(result: TaskComparison) -> list[TaskRow]:
    """Best mean first, those without one behind, in the order asked."""
    sign = 1 if result.protocol.lower_is_better else -1
    return sorted(result.architectures, key=lambda row: (row.quality.mean is None, sign * (row.quality.mean or 0.0)))


def sentences(result: TaskComparison) -> list[str]:
    """Verdicts, what beats the bag of words, failures and notes."""
    said = [one.sentence for one in result.contrasts]
    said += [row.beyond_floor.sentence for row in result.architectures if row.beyond_floor is not None]
    for run in result.runs:
        if run.status != "done":
            said.append(f"{run.architecture}, seed {run.seed}: {run.status}{': ' if run.error else ''}{run.error}")
    target = result.protocol.target_parameters
    if target:
        off = [row for row in result.architectures if not row.pretrained and abs(row.matched / target - 1) > TOLERANCE]
        said += [
            f"{row.label} has {row.matched:,} parameters, {row.matched / target - 1:+.1%} of the size asked: not matched"
            for row in off
        ]
    return said


def markdown(result: TaskComparison) -> str:
    """The whole report."""
    p = result.protocol
    heads, rows = table(result)
    lines = [
        f"# {', '.join(row.label for row in result.architectures)} over {p.task.get('kind', 'a task')}: {p.table}",
        "",
        f"{p.figure.replace('_', ' ')} on {p.rows.get('test', 0):,} test rows, {counted(len(p.seeds), 'seed')}; "
        f"{result.status}, {result.created[:10]}.",
        "",
        *_table(heads, rows),
        "",
        "Parameters: matched ones + embedding and head. Training: seconds of a run, validation apart. Predicted: rows of token ids a second.",
        "Peak memory: of the whole process of a run.",
        "",
        "![The main figure of every architecture, and the differences](figure.svg)",
        "",
        "## What may be said",
        "",
        *(f"- {sentence}" for sentence in sentences(result)),
        "",
        *(_differences(result.contrasts) if result.contrasts else []),
        "## How it was done",
        "",
        *(f"- {sentence}" for sentence in p.equal),
        *(f"- learning rates tried for {one.architecture}: {_tried(one)}" for one in result.sweeps),
        f"- primary contrasts, stated before the runs: {p.family}; margin {p.margin:.4g} ({p.margin_reason}); sign-flip test over paired "
        f"seeds, Holm over {p.family_size}, level {p.alpha:g}: at least {p.needed_seeds} seeds",
        "- intervals over rows hold the seeds fixed and draw test rows anew, the same for all; verdicts rest on seeds",
        *(f"- {note}" for note in result.notes),
        "",
        "## Every run",
        "",
        *_table(
            ["architecture", "seed", p.figure.replace("_", " "), "best epoch", "learning rate", "training", "folder"],
            [
                [
                    run.architecture, str(run.seed), _share(run.value) if run.value is not None else run.status, str(run.best_epoch or ""),
                    f"{run.learning_rate:.3g}" if run.learning_rate else "", digits.seconds(run.seconds) if run.seconds is not None else "",
                    f"`{run.folder}`",
                ]
                for run in result.runs
            ],
        ),
        "",
    ]  # fmt: skip
    if result.command:
        lines += ["## Repeat", "", "```", result.command, "```", ""]
    return "\n".join(lines)


def _tried(sweep: TaskSweep) -> str:
    tried = sorted((float(rate), value) for rate, value in sweep.tried.items())
    cells = [f"{rate:.3g} ({'failed' if value is None else _share(value)})" for rate, value in tried]
    return ", ".join(cells) + (f"; taken: {sweep.chosen:.3g}" if sweep.chosen else "")


def _differences(contrasts: Sequence[Contrast]) -> list[str]:
    rows = [
        [
            f"{one.first} {digits.MINUS} {one.second}", "" if one.mean is None else f"{one.mean:+.4f}", _span(one.low, one.high),
            _span(one.documents_low, one.documents_high), "" if one.p_adjusted is None else f"{one.p_adjusted:.3g}", one.verdict,
        ]
        for one in contrasts
    ]  # fmt: skip
    return [*_table(["difference", "mean", "over seeds, 95 %", "over rows, 95 %", "p, adjusted", "verdict"], rows), ""]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (heads, *rows)]
    return [
        f"| {' | '.join(cells[0])} |",
        "|" + " --- |" * len(heads),
        *(f"| {' | '.join(row)} |" for row in cells[1:]),
    ]


def picture(result: TaskComparison) -> str:
    """The main figure with its intervals (wide: over seeds, thin: over rows), and under it the paired differences, as SVG."""
    p, rows = result.protocol, ranked(result)
    order = {row.label: index for index, row in enumerate(result.architectures)}
    top = Box(LEFT, 46, WIDTH - RIGHT, 50 + ROW * max(1, len(rows)))
    name = p.figure.replace("_", " ")
    better = "lower is better" if p.lower_is_better else "higher is better"
    parts = [text(LEFT, 24, f"{name} on {p.rows.get('test', 0):,} test rows, {better}", "title")]
    marks = [
        v
        for row in rows
        for v in (row.items_low, row.items_high, row.quality.mean, *row.quality.seeds.values())
        if v is not None
    ]
    floor = result.floor.value if result.floor else None
    scale = domain([*marks, *([floor] if floor is not None else [])] or [0.0, 1.0])
    parts += _axis(top, scale)
    if floor is not None:
        x = _x(top, scale, floor)
        parts.append(el("path", {"class": "floor", "d": line_path([(x, top.y0), (x, top.y1)])}))
        parts.append(
            text(min(x, top.x1 - 150) + 5, top.y0 - 4, shorten(result.floor.label if result.floor else "", 34), "small")
        )
    for k, row in enumerate(rows):
        y = top.y0 + ROW * (k + 0.5) + 2
        q, index = row.quality, order[row.label]
        drawn = [text(LEFT - 12, y + 5, shorten(row.label, 24), "name", "end", row.label)]
        if q.mean is None:
            drawn.append(text(LEFT + 8, y + 5, row.status, "small"))
        else:
            drawn += _bars(top, scale, y, (q.low, q.high), (row.items_low, row.items_high), list(q.seeds.values()))
            drawn.append(mark(index, _x(top, scale, q.mean), y, 5.5, f"{row.label}: {_share(q.mean)}"))
        parts.append(el("g", {"class": f"s{palette.hue(index)}"}, *drawn))
    height = top.y1 + 34
    shown = [one for one in result.contrasts if one.mean is not None]
    if shown:
        parts += _forest(shown, order, p.margin, height + 34)
        height += 34 + 50 + ROW * len(shown)
    about = f"{name} of {', '.join(row.label for row in rows)}"
    attributes = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": f"0 0 {WIDTH:g} {height:g}",
        "role": "img",
        "aria-label": about,
    }
    return (
        el(
            "svg",
            attributes,
            el("style", {}, _style()),
            el("path", {"class": "paper", "d": f"M0 0H{WIDTH:g}V{height:g}H0Z"}),
            *parts,
        )
        + "\n"
    )


def _forest(contrasts: Sequence[Contrast], order: dict[str, int], margin: float, y0: float) -> list[str]:
    frame = Box(LEFT, y0 + 20, WIDTH - 150, y0 + 24 + ROW * len(contrasts))
    held = [
        v for one in contrasts for v in (*one.deltas, one.mean, one.documents_low, one.documents_high) if v is not None
    ]
    scale = domain([*held, margin, -margin, 0.0])
    corners = [
        (_x(frame, scale, side), y)
        for side, y in ((-margin, frame.y0), (margin, frame.y0), (margin, frame.y1), (-margin, frame.y1))
    ]
    zero = _x(frame, scale, 0.0)
    parts = [
        text(LEFT, y0, "difference from the baseline, same seed (band: the margin)", "title"),
        el("path", {"class": "margin", "d": line_path(corners) + "Z"}),
        el("path", {"class": "floor", "d": line_path([(zero, frame.y0), (zero, frame.y1)])}),
        *_axis(frame, scale),
    ]
    for k, one in enumerate(contrasts):
        y, index = frame.y0 + ROW * (k + 0.5) + 2, order[one.first]
        name = f"{one.first} {digits.MINUS} {one.second}"
        drawn = [
            text(LEFT - 12, y + 5, shorten(name, 24), "name", "end", name),
            text(frame.x1 + 8, y + 5, one.verdict, "small"),
        ]
        drawn += _bars(frame, scale, y, (one.low, one.high), (one.documents_low, one.documents_high), one.deltas)
        drawn.append(mark(index, _x(frame, scale, one.mean or 0.0), y, 5.5, one.sentence))
        parts.append(el("g", {"class": f"s{palette.hue(index)}"}, *drawn))
    return parts


def _bars(
    frame: Box,
    scale: Scale,
    y: float,
    seeds: tuple[float | None, float | None],
    rows: tuple[float | None, float | None],
    ticks: Sequence[float],
) -> list[str]:
    """Interval over seeds (wide), over rows (thin), and every seed."""
    parts = []
    for kind, (low, high) in (("wide", seeds), ("thin", rows)):
        if low is not None and high is not None:
            parts.append(
                el("path", {"class": kind, "d": line_path([(_x(frame, scale, low), y), (_x(frame, scale, high), y)])})
            )
    for value in ticks:
        x = _x(frame, scale, value)
        parts.append(el("path", {"class": "tickmark", "d": line_path([(x, y - 7), (x, y + 7)])}))
    return parts


def _axis(frame: Box, scale: Scale) -> list[str]:
    ticks = scale.ticks(6)
    places = decimals(ticks)
    base = el("path", {"class": "axis", "d": line_path([(frame.x0, frame.y1), (frame.x1, frame.y1)])})
    return [base, *(text(_x(frame, scale, v), frame.y1 + 18, f"{v:.{places}f}", "small", "middle") for v in ticks)]


def _x(frame: Box, scale: Scale, value: float) -> float:
    return min(max(frame.x0 + scale(value) * (frame.x1 - frame.x0), frame.x0), frame.x1)


def _style() -> str:
    def colours(hues: Sequence[str], paper: str, ink: str, quiet: str) -> str:
        rules = f".paper{{fill:{paper}}}text{{fill:{ink}}}.small{{fill:{quiet}}}.axis,.floor{{stroke:{quiet}}}.margin{{fill:{quiet}}}"
        return rules + "".join(f".s{i}{{--c:{hue}}}" for i, hue in enumerate(hues))

    shared = (
        "text{font:14px system-ui,sans-serif}.small{font-size:12px}.title{font-weight:600}path{fill:none}.mark{fill:var(--c)}"
        ".mark.hollow{fill:none;stroke:var(--c);stroke-width:2}.wide{stroke:var(--c);stroke-width:7;opacity:.35}"
        ".thin,.tickmark{stroke:var(--c);stroke-width:1.5}.floor{stroke-dasharray:5 4}.margin{opacity:.15}"
    )
    dark = colours(palette.DARK, palette.PAPER_DARK, "#e8e6df", "#a3a8b3")
    light = colours(palette.LIGHT, palette.PAPER_LIGHT, "#1c2330", "#5b6270")
    return f"{shared}{light}@media(prefers-color-scheme:dark){{{dark}}}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.4f} to {high:.4f}"
