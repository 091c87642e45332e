"""Which format a file has, by its content and never by its name, and the reader of each."""

from __future__ import annotations

import csv
import importlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orrery.catalogue.reading import Found, Records, Refused
from orrery.catalogue.record import FIELDS
from orrery.core.errors import DataError

READERS: dict[str, tuple[str, str]] = {
    "listing": ("orrery.catalogue.listing", "text_records"),
    "html": ("orrery.catalogue.listing", "html_records"),
    "json": ("orrery.catalogue.papers_json", "records"),
    "feed": ("orrery.catalogue.feeds", "records"),
    "bibtex": ("orrery.catalogue.bibtex", "records"),
    "csv": ("orrery.catalogue.formats", "csv_records"),
}
NAMES = "a Daily Papers listing (text or saved HTML), Hugging Face papers JSON, CSL-JSON, arXiv Atom, RSS, BibTeX, or a CSV with a title column"
LONGEST_CELL = 1 << 22  # characters


def decode(data: bytes, name: str) -> str:
    """Text of a file: UTF-8, UTF-16 with its mark, else Latin-1, which old bibliographies use.

    Raises:
        DataError: when it is no text at all.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError:
            raise DataError(f"'{name}' is not text (broken UTF-16)") from None
    if b"\0" in data[:8192]:
        raise DataError(f"'{name}' is not text; orrery reads {NAMES}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def detect(text: str) -> str:
    """Name of the format, a key of :data:`READERS`.

    Raises:
        DataError: when the text has none of them.
    """
    head = text.lstrip("\ufeff \t\r\n")[:4000]
    if re.match(r"[\[{]\s*[\[{\"\]}]", head):
        return "json"
    if head.startswith("<"):
        bare = re.sub(r"(?s)<!--.*?-->|<\?.*?\?>", "", head)
        if re.search(r"<(?:\w+:)?(?:feed|rss|RDF)\b", bare):
            return "feed"
        if re.search(r"(?i)<!doctype html|<html\b|<body\b|<article\b|<main\b", bare):
            return "html"
    if re.search(r"^[ \t]*@[ \t]*[A-Za-z]\w*\s*[{(]", text, re.MULTILINE):
        return "bibtex"
    if _csv_columns(head.partition("\n")[0]):
        return "csv"
    from orrery.catalogue.listing import looks_like

    if looks_like(text):
        return "listing"
    raise DataError(f"its format is not known; orrery reads {NAMES}")


def records(text: str, kind: str | None = None) -> Records:
    """Records of a text in the format `kind` (None: found by content).

    Raises:
        DataError: when the format is not known.
    """
    kind = kind or detect(text)
    if kind not in READERS:
        raise DataError(f"there is no reader '{kind}'; there are {', '.join(READERS)}")
    module, name = READERS[kind]
    read: Callable[[str], Records] = getattr(importlib.import_module(module), name)
    return read(text)


def read_file(path: str | Path) -> str:
    """Text of a file.

    Raises:
        DataError: when it cannot be read or is no text.
    """
    try:
        return decode(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}") from error


def _csv_columns(line: str) -> list[str]:
    """Columns of a CSV's first line, or nothing when it has none called title beside another."""
    try:
        columns = [name.strip().lower() for name in next(csv.reader([line]), [])]
    except csv.Error:
        return []
    return columns if "title" in columns and len(columns) > 1 else []


def csv_records(text: str) -> Records:
    """Rows of a CSV with a header; authors are parted by `;`, rooms and names by spaces, unknown columns are passed over."""
    csv.field_size_limit(LONGEST_CELL)
    rows = csv.reader(io.StringIO(text.lstrip("\ufeff"), newline=""))
    columns = [name.strip().lower() for name in next(rows, [])]
    while True:
        line = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Refused(line, f"not valid CSV: {error}")
            continue
        if not any(row):
            continue
        if len(row) > len(columns):
            yield Refused(line, f"{len(row)} cells, but the header has {len(columns)} columns")
            continue
        yield _from_cells(line, dict(zip(columns, row, strict=False)))


def _from_cells(line: int, cells: dict[str, str]) -> Found | Refused:
    cells = {name: re.sub(r"^'(?='?[=+@\t\r-])", "", cell) for name, cell in cells.items()}  # see `writers`: formulas are quoted
    fields: dict[str, Any] = {name: cells[name] for name in FIELDS if cells.get(name, "").strip()}
    if "authors" in fields:
        parts = re.findall(r"(?:[^;\\]|\\.|\\$)+", fields["authors"])
        fields["authors"] = [re.sub(r"\\([;\\])", r"\1", part) for part in parts]
    for name in ("rooms", "names"):
        if name in fields:
            fields[name] = fields[name].split()
    for name in ("core", "curated"):
        if name in fields:
            fields[name] = fields[name].strip().lower() in ("1", "true", "yes")
    upvotes = fields.get("upvotes", "0").strip()
    if not upvotes.isdecimal():
        return Refused(line, f"its number of votes is '{upvotes[:30]}', not a count")
    return Found(line, {**fields, "upvotes": int(upvotes)})
