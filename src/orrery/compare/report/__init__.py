"""How a comparison is shown: in the terminal, as pictures, as one HTML page. Reads the result's schema, measures nothing.

    render_table(result)          a rich renderable that fits the console's width; `render_text` for pipes and files
    LiveView()                    an observer that draws curves while a comparison runs
    write_report(result, folder)  comparison.json, report.html, table.txt | csv | md, pictures/*.png | svg
    render_page(result)           the page alone; `sparkchart(curves, width, height)` the terminal's curves alone

Names are resolved on first use: the room `compare` stays quick to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_WHERE = {
    "LiveView": "live",
    "SparkCurve": "spark",
    "build_table": "columns",
    "render_page": "page",
    "render_table": "terminal",
    "render_text": "terminal",
    "sparkchart": "spark",
    "to_csv": "exports",
    "to_markdown": "exports",
    "write_pictures": "figures",
    "write_report": "write",
}

if TYPE_CHECKING:
    from orrery.compare.report.columns import build_table
    from orrery.compare.report.exports import to_csv, to_markdown
    from orrery.compare.report.figures import write_pictures
    from orrery.compare.report.live import LiveView
    from orrery.compare.report.page import render_page
    from orrery.compare.report.spark import SparkCurve, sparkchart
    from orrery.compare.report.terminal import render_table, render_text
    from orrery.compare.report.write import write_report


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"orrery.compare.report.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'orrery.compare.report' has no attribute '{name}'")


__all__ = [
    "LiveView",
    "SparkCurve",
    "build_table",
    "render_page",
    "render_table",
    "render_text",
    "sparkchart",
    "to_csv",
    "to_markdown",
    "write_pictures",
    "write_report",
]
