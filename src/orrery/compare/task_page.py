"""A comparison over a task as one HTML page, of the family of :mod:`orrery.compare.report.page`: the same style, script and marks.

    write_task_report(result, folder)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orrery.compare.report import charts, digits, facts
from orrery.compare.report.columns import STATUS, Cell, Column
from orrery.compare.report.facts import Pairs, PlainTable
from orrery.compare.report.page import fill_template, frame, swatch, version
from orrery.compare.task_pictures import Pictures, figure_name, floors, signed, span, written
from orrery.compare.task_report import markdown, picture, ranked, sentences
from orrery.compare.task_result import TaskComparison, TaskRow, Words
from orrery.core.files import write_text
from orrery.core.progress import counted


def write_task_report(result: TaskComparison, folder: str | Path) -> dict[str, Path]:
    """`report.html`, `report.md` and `figure.svg` beside `result.json`; returns their paths by name."""
    out = Path(folder)
    return {
        "report.html": write_text(out / "report.html", task_page(result)),
        "figure.svg": write_text(out / "figure.svg", picture(result)),
        "report.md": write_text(out / "report.md", markdown(result)),
    }


def task_page(result: TaskComparison) -> str:
    """The whole page as text; of a result of any completeness."""
    order = {row.label: index for index, row in enumerate(result.architectures)}
    columns = _columns(result)
    pictures = Pictures(result, order, columns)
    drawn = pictures.all()
    named = [
        ("table", "Table"),
        ("pictures", "Pictures"),
        ("verdicts", "Verdicts"),
        ("protocol", "Protocol"),
        ("repeat", "Repeat"),
    ]
    headline, reason = lead(result)
    p, count = result.protocol, len(result.architectures)
    kind = str(p.task.get("kind", "task"))
    return fill_template("task.html", {
        **frame(pictures.data()),
        "title": f"{counted(count, 'architecture')} compared over {p.table}",
        "sections": [(key, name) for key, name in named if drawn or key != "pictures"],
        "eyebrow": " · ".join(filter(None, [f"Comparison of {counted(count, 'architecture')} over a {kind} task", facts.date(result.created)])),
        "headline": headline, "reason": reason, "facts": _facts(result), "caveat": _caveat(result),
        "unfinished": result.status != "complete", "failures": _failures(result), "intro": _intro(result),
        "table": _table(result, columns, order),
        "footnotes": [
            "Parameters: without embedding and head, and with them.", "Training: seconds of a run, validation apart.",
            "Predicted: rows of token ids.", "Memory: the peak of the whole process of a run.", "Costs are medians over seeds.",
        ],
        "pictures": drawn,
        "names": [{"index": i, "label": row.label, "swatch": swatch(i)} for i, row in enumerate(result.architectures)],
        "said": [_ended(line) for line in sentences(result)] or ["Nothing yet."],
        "rule": _rule(result), "statistics": _statistics(result), "protocol": _protocol(result), "rates": _rates(result),
        "notes": [_ended(note) for note in result.notes], "environment": facts.environment(result),
        "command": result.command or "orrery compare",
        "runs": _runs(result), "version": version(result.environment),
    })  # fmt: skip


# ---------------------------------------------------------------------------------------------------- in words


def lead(result: TaskComparison) -> tuple[str, str]:
    """The headline, and what it rests on."""
    rows = [row for row in ranked(result) if row.quality.mean is not None]
    if not rows:
        return "No run has finished yet.", "What was asked is under Protocol."
    best, name = rows[0], figure_name(result)
    beyond = best.beyond_floor
    said = _ended(beyond.sentence) if beyond is not None else ""
    decided = {one.first: one for one in result.contrasts}
    about = decided.get(best.label) or next((decided[row.label] for row in rows[1:] if row.label in decided), None)
    said = " ".join(part for part in (said, "" if about is None else _ended(_begun(about))) if part)
    if beyond is not None and beyond.verdict != "better":
        return f"{best.label} comes out first, and is not shown to beat {beyond.second}.", said
    return f"{best.label}: {name} {written(best.quality.mean)}.", said


def _begun(one: Any) -> str:
    """A difference as a sentence: a capital for its first word, unless that is a name, which keeps its letters."""
    said = str(one.sentence)
    return said if said.startswith(one.first) else said[:1].upper() + said[1:]


def _ended(sentence: str) -> str:
    """With its full stop; the first word may be a name, which keeps its letters."""
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def _caveat(result: TaskComparison) -> str:
    p, n = result.protocol, len(result.protocol.seeds)
    if len(result.architectures) > 1 and n < p.needed_seeds:
        return f"{counted(n, 'seed')} can show no difference between architectures to be real; a verdict needs {p.needed_seeds}."
    return f"Verdicts rest on {counted(n, 'paired seed')}. They hold for this table, this size and {counted(p.epochs, 'epoch')}."


def _intro(result: TaskComparison) -> str:
    better = "lower" if result.protocol.lower_is_better else "higher"
    spread = ", with its 95 % interval over seeds" if len(result.protocol.seeds) > 1 else ""
    return (
        f"Best first. Quality is {figure_name(result)} on {result.protocol.rows.get('test', 0):,} test rows, {better} is better{spread}. "
        "The best of each column is bold; what needs no network stands below."
    )


def _rule(result: TaskComparison) -> str:
    p = result.protocol
    return (
        f"A difference counts as better or worse when its whole {100 * (1 - p.alpha):.0f} % interval over paired seeds lies beyond the margin of "
        f"{p.margin:.4g} ({p.margin_reason}) and the exact sign-flip test agrees, over {counted(p.family_size, 'contrast')} (Holm); that takes "
        f"{counted(p.needed_seeds, 'seed')} or more. Intervals over rows hold the seeds fixed and draw test rows anew, the same for all."
    )


def _failures(result: TaskComparison) -> list[str]:
    lost = [run for run in result.runs if run.status in ("failed", "oom", "interrupted")]
    return [
        f"{run.architecture}, seed {run.seed}: {STATUS[run.status]}{f': {run.error}' if run.error else ''}"
        for run in lost
    ]


def _facts(result: TaskComparison) -> Pairs:
    p = result.protocol
    rows = ", ".join(f"{count:,} {side}" for side, count in p.rows.items())
    machine = str(result.environment.get("gpu") or result.environment.get("cpu") or "").split(" (")[0]
    out: Pairs = [
        ("Table", p.table),
        ("Rows", rows),
        ("Size", f"{p.size}, {digits.count(p.target_parameters)} parameters" if p.target_parameters else p.size),
    ]
    out += [("Each run", f"{counted(p.epochs, 'epoch')}, {p.steps:,} steps"), ("Seeds", str(len(p.seeds)))]
    out += [("Machine", machine)] if machine else []
    return [*out, ("Took", digits.seconds(result.seconds))] if result.seconds else out


def _protocol(result: TaskComparison) -> Pairs:
    p = result.protocol
    task = ", ".join(
        f"{key} {value}" for key, value in p.task.items() if value and key in ("kind", "text", "pair", "label")
    )
    rows: Pairs = [
        ("Held equal", p.equal), ("Table", p.table), ("Task", task),
        ("Labels", ", ".join(p.task.get("names") or [])), ("Rows", ", ".join(f"{side} {count:,}" for side, count in p.rows.items())),
        ("Tokens", f"{p.tokenizer}, vocabulary {p.vocabulary:,}"), ("Budget per run", f"{p.budget}: {counted(p.epochs, 'epoch')}"),
        ("Step", f"{p.batch} rows"), ("Seeds", ", ".join(map(str, p.seeds))), ("Baseline", p.baseline),
        ("Margin", f"{p.margin:.4g}: {p.margin_reason}"), ("Primary contrasts", f"{p.family} ({p.family_size})"),
    ]  # fmt: skip
    return [(name, value) for name, value in rows if value]


def _rates(result: TaskComparison) -> PlainTable | None:
    if not result.sweeps:
        return None
    tried = sorted({float(rate) for sweep in result.sweeps for rate in sweep.tried})
    rows = []
    for sweep in result.sweeps:
        held = {float(rate): value for rate, value in sweep.tried.items()}
        cells = [(written(held[rate]) or "failed") if rate in held else digits.ABSENT for rate in tried]
        rows.append([sweep.architecture, *cells, digits.ABSENT if sweep.chosen is None else f"{sweep.chosen:.3g}"])
    title = f"{figure_name(result)} on the validation table by learning rate"
    return PlainTable(title, ["architecture", *(f"{rate:.3g}" for rate in tried), "taken"], rows)


def _statistics(result: TaskComparison) -> list[PlainTable]:
    out = []
    if result.contrasts:
        heads = [
            "first \u2212 second",
            "difference",
            "over seeds, 95 %",
            "over rows, 95 %",
            "seeds",
            "needed",
            "p",
            "adjusted p",
            "verdict",
        ]
        rows = [
            [
                f"{one.first} \u2212 {one.second}", signed(one.mean), span(one.low, one.high, signed),
                span(one.documents_low, one.documents_high, signed),
                str(len(one.deltas)), str(one.needed_seeds), written(one.p) or digits.ABSENT, written(one.p_adjusted) or digits.ABSENT, one.verdict,
            ]
            for one in result.contrasts
        ]  # fmt: skip
        out.append(PlainTable("Differences between architectures", heads, rows, words=(8,)))
    beyond = [row.beyond_floor for row in result.architectures if row.beyond_floor is not None]
    if beyond:
        rows = [
            [one.first, signed(one.mean), span(one.documents_low, one.documents_high, signed), one.verdict]
            for one in beyond
        ]
        out.append(
            PlainTable(
                f"Against {beyond[0].second}",
                ["architecture", "difference", "over rows, 95 %", "verdict"],
                rows,
                words=(3,),
            )
        )
    names = list(dict.fromkeys(name for row in result.architectures for name in row.figures))
    if names:
        rows = [
            [row.label, *(written(row.figures.get(name)) or digits.ABSENT for name in names)] for row in ranked(result)
        ]
        out.append(
            PlainTable(
                "Every figure, mean over seeds", ["architecture", *(name.replace("_", " ") for name in names)], rows
            )
        )
    return out


def _runs(result: TaskComparison) -> PlainTable:
    heads = [
        "architecture",
        "seed",
        "status",
        figure_name(result),
        "best epoch",
        "learning rate",
        "training",
        "folder",
        "remark",
    ]
    rows = [
        [
            run.architecture, str(run.seed), STATUS.get(run.status, run.status), written(run.value) or digits.ABSENT,
            str(run.best_epoch or digits.ABSENT),
            f"{run.learning_rate:.3g}" if run.learning_rate else digits.ABSENT,
            digits.seconds(run.seconds) if run.seconds is not None else digits.ABSENT,
            run.folder, run.error,
        ]
        for run in result.runs
    ]  # fmt: skip
    return PlainTable("Runs", heads, rows, words=(7, 8))


# ---------------------------------------------------------------------------------------------------- the table


def _columns(result: TaskComparison) -> list[Column]:
    """Quality first; a column without a number is left out, but for the first two."""
    rows = result.architectures
    better = "low" if result.protocol.lower_is_better else "high"
    title = f"{figure_name(result)}, {'lower' if better == 'low' else 'higher'} is better"
    quality = {row.label: _quality(row) for row in rows}
    matched, whole = (
        {row.label: float(row.matched) or None for row in rows},
        {row.label: float(row.parameters) or None for row in rows},
    )
    found = [
        Column(
            "quality",
            figure_name(result),
            "test table",
            "",
            quality,
            better=better,
            noun=title,
            about="The main figure of the task.",
        ),
        _column("parameters", "parameters", "", matched, "", "parameters", digits.count),
        _column("all", "with embedding", "", whole, "low", "parameters with embedding", digits.count),
        _column(
            "seconds", "training", "s", {row.label: row.seconds for row in rows}, "low", "training time", digits.plain
        ),
        _column(
            "rate",
            "predicted",
            "rows/s",
            {row.label: row.rate for row in rows},
            "high",
            "prediction speed",
            digits.plain,
        ),
        _column("memory", "memory", "B", {row.label: row.memory for row in rows}, "low", "peak memory", digits.count),
        _column(
            "lr",
            "learning rate",
            "",
            {row.label: row.learning_rate for row in rows},
            "",
            "learning rate",
            lambda v: f"{v:.2g}",
        ),
    ]
    return [column for column in found if column.values or column.key in ("quality", "parameters")]


def _column(key: str, title: str, unit: str, values: dict[str, Any], better: str, noun: str, write: Any) -> Column:
    cells = {label: Cell() if value is None else Cell(float(value), write(value)) for label, value in values.items()}
    return Column(
        key, title, unit, "B" if unit == "B" else "", cells, better=better, about=facts.sentence(noun), noun=noun
    )


def _quality(row: TaskRow) -> Cell:
    q = row.quality
    if q.mean is None:
        return Cell(None, STATUS.get(row.status, row.status), note=row.error)
    rows = span(row.items_low, row.items_high, written)
    return Cell(q.mean, written(q.mean), f"over rows {rows}" if rows != digits.ABSENT else "", "", q.low, q.high)


def _table(result: TaskComparison, columns: Sequence[Column], order: dict[str, int]) -> dict[str, Any]:
    from markupsafe import Markup

    rows = ranked(result)
    ends = [
        v
        for row in rows
        for v in (*row.quality.seeds.values(), row.quality.low, row.quality.high)
        if v is not None and math.isfinite(v)
    ]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    best = {column.key: set(column.best()) for column in columns}
    found = []
    for place, row in enumerate(rows):
        cells = []
        for column in columns:
            cell = column.cells[row.label]
            kind = "absent" if cell.value is None else "best" if row.label in best[column.key] else ""
            rest = ""
            if column.key == "quality" and cell.low is not None and cell.high is not None and cell.value is not None:
                rest = f"±{(cell.high - cell.low) / 2:.4f}"
            cells.append(
                {
                    "key": column.key,
                    "main": cell.text,
                    "rest": rest,
                    "note": cell.how or cell.note,
                    "kind": kind,
                    "value": cell.value,
                }
            )
        mini = Markup(charts.interval(row.quality, order[row.label], low, high))
        spec = row.source if row.source != row.label else ""
        found.append({"index": order[row.label], "place": place, "label": row.label, "spec": spec, "paper": None, "swatch": swatch(order[row.label]),
                      "mini": mini, "cells": cells})  # fmt: skip
    found += [_floor_row(one, len(rows) + number, columns) for number, one in enumerate(floors(result))]
    heads = [{"key": c.key, "title": c.title, "unit": c.unit, "qualifiers": [], "about": c.about} for c in columns]
    return {"minis": len([row for row in rows if row.quality.mean is not None]) > 1, "columns": heads, "rows": found}


def _floor_row(one: Words, place: int, columns: Sequence[Column]) -> dict[str, Any]:
    about = f"over rows {span(one.low, one.high, written)}"
    shown: dict[str, Any] = {"quality": (written(one.value), about, one.value)}
    if one.seconds:
        shown["seconds"] = (digits.plain(one.seconds), "", one.seconds)
    cells = []
    for column in columns:
        main, note, value = shown.get(column.key, (digits.ABSENT, "", None))
        cells.append(
            {
                "key": column.key,
                "main": main,
                "rest": "",
                "note": note,
                "kind": "absent" if value is None else "",
                "value": value,
            }
        )
    return {
        "index": -1,
        "place": place,
        "label": one.label,
        "spec": "",
        "paper": None,
        "swatch": "",
        "mini": "",
        "cells": cells,
    }
