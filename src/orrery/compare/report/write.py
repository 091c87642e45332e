"""A report as files: the result itself, the page, the pictures, and the table for people and programs."""

from __future__ import annotations

from pathlib import Path

from orrery.compare.report.exports import to_csv, to_markdown
from orrery.compare.report.figures import write_pictures
from orrery.compare.report.page import render_page
from orrery.compare.report.terminal import render_text
from orrery.compare.result import ComparisonResult
from orrery.core.errors import StorageError
from orrery.core.files import write_text

PAGE, PICTURES = "report.html", "pictures"


def write_report(result: ComparisonResult, directory: str | Path, reference: ComparisonResult | None = None) -> dict[str, Path]:
    """Write everything a reader may want of a result into `directory` (made if needed); files of the same name are replaced.

    Args:
        result: of any completeness.
        directory: gets comparison.json, report.html, table.txt, table.csv, table.md and pictures/.
        reference: a finished comparison of the same protocol, drawn faintly behind the learning curves.

    Returns:
        Paths by name relative to `directory`; "report.html" is the page.

    Raises:
        StorageError: when the place cannot be written; each file is whole or absent.
    """
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the report's folder '{folder}': {error.strerror or error}") from error
    paths = [result.save(folder)]
    texts = {PAGE: render_page(result, reference), "table.txt": render_text(result), "table.csv": to_csv(result), "table.md": to_markdown(result)}
    for name, content in texts.items():
        paths.append(write_text(folder / name, content))
    paths += write_pictures(result, folder / PICTURES, reference)
    return {path.relative_to(folder).as_posix(): path for path in paths}
