"""One self-contained HTML page of a comparison: no request to anywhere, readable without its script, safe for any name.

Everything that came from outside (labels, errors, corpus names) passes jinja2's autoescape, the SVG builder's escaping,
or the JSON block with `<`, `>`, `&` written as escapes. A content security policy in the page itself allows its own
style and script by their hashes and nothing else, so that even an escape that was missed could not run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import urllib.parse
from importlib import metadata, resources
from typing import Any

from orrery.compare.report import charts, digits, facts, palette, words
from orrery.compare.report.columns import ESTIMATED, SHORT_HOW, Cell, Column, Table, build_table
from orrery.compare.report.series import Panel, capability, cost_axes, indices, learning, lengths
from orrery.compare.report.svg import clean, mark_path
from orrery.compare.report.terminal import table_notes
from orrery.compare.result import ArchitectureRow, ComparisonResult
from orrery.core.progress import counted

LIGHT = {
    "paper": palette.PAPER_LIGHT, "raise": "#ffffff", "ink": "#23262e", "quiet": "#5c626d", "hair": "#e6e2d9", "hair-strong": "#bdb8ac",
    "brass": "#8d641f", "wash": "#f4f1ea", "wash-strong": "#ece8de", "focus": "#0454b1",
}  # fmt: skip
DARK = {
    "paper": palette.PAPER_DARK, "raise": "#1a202a", "ink": "#e9e7e1", "quiet": "#a3a9b4", "hair": "#272e39", "hair-strong": "#4a5361",
    "brass": "#d8a94f", "wash": "#181e28", "wash-strong": "#222a36", "focus": "#8ab4ff",
}  # fmt: skip


def render_page(result: ComparisonResult, reference: ComparisonResult | None = None) -> str:
    """The whole page as text.

    Args:
        result: of any completeness; what is missing is left out or said in words.
        reference: results of the same protocol drawn faintly behind the learning curves.
    """
    return fill_template("report.html", _context(result, reference))


def fill_template(name: str, context: dict[str, Any]) -> str:
    """One of this room's templates as a page."""
    return clean(_environment().get_template(name).render(**context))


@functools.cache
def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@functools.cache
def _file(name: str) -> str:
    return resources.files("orrery.compare.report").joinpath("templates", name).read_text(encoding="utf-8")


def _context(result: ComparisonResult, reference: ComparisonResult | None) -> dict[str, Any]:
    table = build_table(result)
    pictures = Pictures(result, table, reference)
    groups = pictures.groups()
    named = [("table", "Table"), ("pictures", "Pictures"), ("recommendation", "Recommendation"), ("meaning", "Meaning"), ("protocol", "Protocol"),
             ("statistics", "Statistics"), ("repeat", "Repeat")]  # fmt: skip
    missing = {"pictures": not groups, "recommendation": result.recommendation is None}
    return {
        **frame(pictures.data()),
        "title": f"{len(result.architectures)} architectures compared, {facts.date(result.created)}".rstrip(", "),
        "sections": [(key, name) for key, name in named if not missing.get(key)],
        "eyebrow": eyebrow(result),
        "lead": facts.lead(result),
        "facts": facts.lead_facts(result),
        "caveat": facts.sentence(words.caveat(result)),
        "unfinished": result.status != "complete",
        "failures": words.failures(result),
        "table": _main_table(result, table),
        "intervals": any(row.quality.low is not None for row in table.rows),
        "footnotes": table_notes(table),
        "pictures": groups,
        "names": [{"index": i, "label": row.label, "swatch": swatch(i)} for i, row in enumerate(result.architectures)],
        "advice": facts.advice(result),
        "can": words.can_tell(result),
        "cannot": words.cannot_tell(result),
        "protocol": facts.protocol(result),
        "rates": facts.rates(result),
        "rule": words.verdict_rule(result),
        "noise": f"Noise floor: {words.noise(result)}".rstrip(". ") + "." if words.noise(result) else "",
        "orientation": [] if pictures.learning else words.orientation(result),
        "statistics": facts.statistics(result),
        "environment": facts.environment(result),
        "command": result.command or "orrery compare",
        "runs": facts.runs(result),
        "notes": result.notes,
        "version": version(result.environment),
    }


def frame(data: dict[str, Any]) -> dict[str, Any]:
    """What every page of this room has: style, script and their policy, icon, emblem, and what the script reads."""
    from markupsafe import Markup

    css, script = theme_css() + _file("report.css"), _file("report.js")
    return {
        "policy": policy(css, script), "icon": icon(), "css": Markup(css), "script": Markup(script), "data": Markup(embed(data)),
        "emblem": Markup(_file("emblem.svg").strip()),
    }  # fmt: skip


def eyebrow(result: ComparisonResult) -> str:
    """What kind of page this is, above the sentence."""
    many = len(result.architectures)
    kind = "Reference comparison" if result.kind == "reference" else "Comparison"
    parts = [f"{kind} of {counted(many, 'language-model architecture')}", facts.date(result.created)]
    return " · ".join(part for part in parts if part)


def version(environment: dict[str, Any]) -> str:
    """Of this package when the result was made, else now."""
    packages = environment.get("packages")
    found = packages.get("orrery-lm") if isinstance(packages, dict) else None
    if found:
        return str(found)
    try:
        return metadata.version("orrery-lm")
    except metadata.PackageNotFoundError:
        return ""


def policy(css: str, script: str) -> str:
    """The content security policy: this style, this script, pictures from the page's own text, and nothing else."""
    return (
        f"default-src 'none'; style-src '{_digest(css)}'; script-src '{_digest(script)}'; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def icon() -> str:
    """A small sun with one orbit, as a data address, so that no browser asks for a file."""
    drawing = (
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'><circle cx='16' cy='16' r='12' fill='none' stroke='#8d641f' "
        "stroke-width='1.5'/><circle cx='16' cy='16' r='5' fill='#8d641f'/><circle cx='26' cy='9.5' r='3.2' fill='#23262e'/></svg>"
    )
    return "data:image/svg+xml," + urllib.parse.quote(drawing)


def theme_css() -> str:
    """Colours of both papers as variables: by the reader's setting, by choice, and light again on paper."""

    def block(theme: dict[str, str], hues: tuple[str, ...]) -> str:
        names = [f"--{key}: {value};" for key, value in theme.items()] + [f"--c{i}: {value};" for i, value in enumerate(hues)]
        return " ".join(names)

    light, dark = block(LIGHT, palette.LIGHT), block(DARK, palette.DARK)
    series = "".join(f".s{i} {{ --c: var(--c{i}); }}\n" for i in range(len(palette.LIGHT)))
    return (
        f":root {{ color-scheme: light; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ color-scheme: dark; {dark} }} }}\n"
        f":root[data-theme=dark] {{ color-scheme: dark; {dark} }}\n"
        f"@media print {{ :root:root:root {{ {light} }} }}\n{series}"
    )


def embed(data: Any) -> str:
    """JSON for a script block: no `<`, `>` or `&`, nor line separators that end a script's line, can stand in it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return clean(text)


def swatch(index: int) -> Any:
    """The mark of an architecture for names in tables."""
    from markupsafe import Markup

    shape, filled = palette.mark(index)
    kind = f"mark s{palette.hue(index)}{'' if filled else ' hollow'}"
    inner = f'<path class="{kind}" d="{mark_path(shape)}"/>'
    return Markup(f'<svg class="swatch" viewBox="-8 -8 16 16" aria-hidden="true" focusable="false">{inner}</svg>')


# ---------------------------------------------------------------------------------------------------- the table


def _main_table(result: ComparisonResult, table: Table) -> dict[str, Any]:
    columns = [column for column in table.columns if not column.minor]
    order = indices(result)
    ends = [v for row in table.rows for v in (*row.quality.seeds.values(), row.quality.low, row.quality.high) if v is not None]
    means = [row.quality.mean for row in table.rows if row.quality.mean is not None]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    best = {column.key: set(column.best()) - ({*order} if column.key == "parameters" else set()) for column in columns}
    return {
        "minis": len(means) > 1,
        "columns": [
            {"key": c.key, "title": c.title, "unit": c.unit, "qualifiers": qualifiers(c), "about": about(c)} for c in columns
        ],
        "rows": [_table_row(row, place, order[row.label], columns, best, (low, high)) for place, row in enumerate(table.rows)],
    }  # fmt: skip


def qualifiers(column: Column) -> list[str]:
    """Length and origin under the unit; how energies were obtained is always named, and so is every estimate."""
    how = {"estimated": "estimated", "analytic": "by formula"}.get(column.how, "")
    if column.key.endswith("_energy"):
        how = column.how
    return [part for part in (column.at, how) if part]


def about(column: Column) -> str:
    """What a column is, for its tooltip."""
    how = f" {column.how.capitalize()}." if column.how in ("measured", "estimated", "counted") else ""
    return f"{column.about}{how}"


def _table_row(
    row: ArchitectureRow, place: int, index: int, columns: list[Column], best: dict[str, set[str]], span: tuple[float, float]
) -> dict[str, Any]:
    from markupsafe import Markup

    paper = None
    if row.paper and all(part.isdigit() for part in row.paper.split(".", 1)) and "." in row.paper:
        paper = {"text": f"arXiv {row.paper}", "url": f"https://arxiv.org/abs/{row.paper}"}
    return {
        "index": index,
        "place": place,
        "label": row.label,
        "spec": row.spec if row.spec != row.label else "",
        "paper": paper,
        "swatch": swatch(index),
        "mini": Markup(charts.interval(row.quality, index, *span)),
        "cells": [_table_cell(c, c.cells[row.label], row.label in best[c.key]) for c in columns],
    }


def _table_cell(column: Column, cell: Cell, is_best: bool) -> dict[str, Any]:
    main, _, rest = cell.text.partition(" ±") if column.key == "quality" and cell.value is not None else (cell.text, "", "")
    for short in SHORT_HOW.values():
        if main.endswith(f" {short}"):
            main, rest = main.removesuffix(f" {short}"), ESTIMATED if short == ESTIMATED else short
    note = ". ".join(part for part in (cell.how if cell.value is not None else "", cell.note) if part)
    kind = "absent" if cell.value is None else "best" if is_best else ""
    if column.key == "quality" and rest:
        rest = f"±{rest}"
    return {"key": column.key, "main": main, "rest": rest, "note": note, "kind": kind, "value": cell.value}


# ---------------------------------------------------------------------------------------------------- pictures


class Pictures:
    """The figures of a result with what the page's script needs to know of them."""

    def __init__(self, result: ComparisonResult, table: Table, reference: ComparisonResult | None) -> None:
        self.result, self.table, self.order = result, table, indices(result)
        self.panels: dict[str, Panel] = {}
        self.learning = learning(result, reference)
        self.lengths = lengths(result)
        self.tasks = [(task, capability(task, result)) for task in result.capabilities if any(r.mean is not None for r in task.rows)]
        self.axes = self._axes()

    def groups(self) -> list[dict[str, Any]]:
        """Figures in reading order; small ones of one kind stand in a grid."""
        out: list[dict[str, Any]] = []
        if self.learning is not None:
            out.append({"kind": "figure", "figure": self._learning(self.learning)})
        if (trade_off := self._trade_off()) is not None:
            out.append({"kind": "figure", "figure": trade_off})
        if self.lengths:
            out.append({"kind": "grid", "figures": [self._small(panel, [facts.sentence(panel.note)]) for panel in self.lengths]})
        for task, panel in self.tasks:
            shown = f"Final {task.metric} of each architecture: " + "; ".join(
                f"{row.architecture} {digits.percent(row.mean) if row.mean is not None else 'no result'}" for row in task.rows
            )
            figures = [figure(f"dots-{task.name}", task.title, [charts.dots(task, self.order, charts.SMALL, shown)], [task.question])]
            if panel is not None:
                figures.append(self._small(panel, [facts.sentence(task.note)], "The way there"))
            out.append({"kind": "grid", "figures": figures})
        if any(one.mean is not None for one in self.result.contrasts):
            out.append({"kind": "figure", "figure": self._differences()})
        return out

    def _learning(self, panel: Panel) -> dict[str, Any]:
        self.panels[panel.key] = panel
        seeds = max([len(line.seeds) for line in panel.lines] + [0])
        text = ["Line: mean over seeds. Band: smallest to largest seed." if seeds > 1 else "One seed each."]
        text += [*([panel.note] if panel.note else []), *words.orientation(self.result)]
        if any(line.faint for line in panel.lines):
            text.append("Faint: reference results of the same protocol.")
        text.append(facts.sentence(words.caveat(self.result)))
        toggles = [{"kind": "show-bands", "name": "bands", "on": True}, {"kind": "show-seeds", "name": "single seeds", "on": False}]
        toggles = toggles if seeds > 1 else []
        svgs = [charts.line_chart(panel, size, self._says(panel)) for size in (charts.WIDE, charts.NARROW)]
        return figure("learning", panel.title, svgs, text, toggles=toggles, table=facts.numbers_of(panel, list(self.order)), beside=True)

    def _small(self, panel: Panel, text: list[str], title: str = "") -> dict[str, Any]:
        self.panels[panel.key] = panel
        svg = charts.line_chart(panel, charts.SMALL, self._says(panel))
        table = facts.numbers_of(panel, list(self.order))
        return figure(panel.key, title or panel.title, [svg], [], table=table, below=[line for line in text if line])

    def _says(self, panel: Panel) -> str:
        ends = "; ".join(f"{line.label} {panel.write(line.points[-1][1])}" for line in panel.lines if line.points and not line.faint)
        return f"{panel.title}: {panel.y_title} over {panel.x_title}. At the end: {ends}."

    def _axes(self) -> list[charts.CostAxis]:
        columns = cost_axes(self.table)
        quality = self.table.column("quality")
        if not columns or not quality.values:
            return []
        labels = list(self.order)
        made = [charts.cost_axis(quality, "validation bits per byte (less is better)", labels)]
        return made + [charts.cost_axis(column, self._axis_title(column), labels) for column in columns]

    @staticmethod
    def _axis_title(column: Column) -> str:
        unit = "" if column.base_unit == "B" else column.base_unit or column.unit
        at = f" {column.at} tokens" if column.at.startswith("at ") else ""
        title = ", ".join(part for part in (f"{column.noun}{at}", unit, "estimated" if column.how == "estimated" else "") if part)
        return f"{title} ({'more' if column.better == 'high' else 'less'} is better)"

    def _trade_off(self) -> dict[str, Any] | None:
        if len(self.axes) < 2 or len(self.axes[0].places) < 2:
            return None
        y, x = self.axes[0], self._default_cost()
        shared = [label for label in self.order if label in x.places and label in y.places]
        said = f"{y.title} against {x.title}. " + "; ".join(f"{k}: {x.texts[k]}, {y.texts[k]}" for k in shared) + "."
        svgs = [charts.scatter(x, y, self.order, size, said) for size in (charts.WIDE, charts.NARROW)]
        text = ["Dashed: the Pareto front, what nothing beats on both axes. Names of what is beaten are grey."]
        return figure("trade-off", "Quality against cost", svgs, text, axes=True, beside=True)

    def _default_cost(self) -> charts.CostAxis:
        for key in ("train", "decode", "state", "memory", "flops"):
            for axis in self.axes[1:]:
                if axis.key == key and len(axis.places) > 1:
                    return axis
        return self.axes[1]

    def _differences(self) -> dict[str, Any]:
        margin = self.result.protocol.margin
        contrasts = [*self.result.contrasts, *charts.against_itself(self.result.noise_floor)]
        said = "Paired differences: " + "; ".join(
            f"{c.first} minus {c.second} {words.difference(c)}, {c.verdict}" for c in contrasts
        )
        svgs = [charts.forest(contrasts, margin, self.order, size, said) for size in (charts.WIDE, charts.NARROW)]
        text = [
            "Strokes: single seeds. Line: 95 % interval.",
            f"Shaded: the margin of {margin:g} bits per byte, within which a difference does not matter.",
        ]
        return figure("differences", "Differences", svgs, text, beside=True)

    def data(self) -> dict[str, Any]:
        """What the script reads."""
        default = {"x": self._default_cost().key, "y": "quality"} if len(self.axes) > 1 else {}
        return script_data(self.order, self.panels, self.axes, default)


def script_data(
    order: dict[str, int], panels: dict[str, Panel], axes: list[charts.CostAxis], default: dict[str, str]
) -> dict[str, Any]:
    """What the page's script reads: places and texts are computed here, so that no number is formatted twice.

    Args:
        order: label -> place in the order asked.
        panels: the line charts whose values can be read off. axes: to choose from. default: "x" and "y", keys of two.
    """
    chosen = [
        {
            "key": a.key, "name": a.name, "title": a.title, "better": a.better, "ticks": [[round(p, 4), t] for p, t in a.ticks],
            "places": {str(order[k]): round(v, 4) for k, v in a.places.items()},
            "texts": {str(order[k]): v for k, v in a.texts.items()},
            "ends": {str(order[k]): [round(low, 4), round(high, 4)] for k, (low, high) in a.ends.items()},
        }
        for a in axes
    ]  # fmt: skip
    marks = [{"path": mark_path(palette.mark(i)[0], 6.0), "filled": palette.mark(i)[1]} for i in range(len(order))]
    hover = {key: _hover(panel) for key, panel in panels.items()}
    return {"names": list(order), "hues": len(palette.LIGHT), "marks": marks, "panels": hover, "axes": chosen, "scatter": default}


def _hover(panel: Panel) -> dict[str, Any]:
    scale_x, scale_y = panel.scales
    rows = []
    for line in panel.lines:
        if line.points and not line.faint:
            points = [[round(scale_x(x), 4), round(scale_y(y), 4), f"{x:,.0f}", panel.write(y)] for x, y in line.points if scale_x(x) >= 0]
            rows.append({"s": line.index, "points": points})
    return {"unit": panel.x_title, "rows": [row for row in rows if row["points"]]}


def figure(
    key: str,
    title: str,
    svgs: list[str],
    text: list[str],
    toggles: list[dict[str, Any]] | None = None,
    axes: bool = False,
    table: Any = None,
    beside: bool = False,
    below: list[str] | None = None,
) -> dict[str, Any]:
    """A picture as the templates take it: with its words beside or below it, and its numbers as a table."""
    from markupsafe import Markup

    return {
        "id": "figure-" + "".join(char if char.isalnum() else "-" for char in key),
        "title": title, "svgs": [Markup(svg) for svg in svgs], "text": text, "toggles": toggles or [], "axes": axes, "table": table,
        "beside": beside, "below": below or [],
    }  # fmt: skip
