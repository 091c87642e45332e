"""Tables of examples as people keep them: CSV, TSV, JSON lines, CoNLL columns, parallel lines, labels before text.

    FILE.csv  FILE.tsv      a header names the columns; without one they are "1", "2", ...; a CSV may be separated by semicolons
                            or tabs (spreadsheets write them where 1,5 is a number): :func:`guess_separator`
    FILE.jsonl              one object a line; its keys are the columns
    FILE.conll  FILE.conllu one token a line, an empty line ends a sentence; columns are "1", "2", ..., each a list
    FILE.json               a list of objects, or SQuAD's layout: columns id, context, question, answers
    words=A,tags=B          parallel files, one example a line; columns by the names given
    label-text:FILE         each line a label, white space, and the text; columns "label" and "text"
    jsonl:FILE, csv:FILE .. a file whose name does not say what it is
    cp1250:FILE             any of these in an encoding other than UTF-8

Every file may be compressed (.gz, .bz2, .xz). Text that is not of its encoding is replaced and counted, or refused when strict.
What is wrong with a file is said with its line; a row that cannot be an example is never guessed at.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from orrery.core.errors import DataError, suggest
from orrery.data.encodings import UTF_8, find_encoding, split_source
from orrery.data.text import Tally, file_pieces

FORMATS = ("csv", "tsv", "jsonl", "json", "conll", "label-text")
_SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".conll": "conll", ".conllu": "conll"}
_PACKED = (".gz", ".bz2", ".xz")
SAMPLE = 200  # lines by which a separator is guessed
LONGEST = 1 << 26  # characters of one field; more is a file that is no table


_QUOTED = re.compile('"[^"]*"')


class Row(NamedTuple):
    """An example as it stands in the file. A value is a string, a number, or (CoNLL) a list of strings."""

    where: str  # file and line, for messages
    values: dict[str, Any]


@dataclass
class Table:
    """Rows and their columns, in the order of the file."""

    name: str
    columns: tuple[str, ...]
    rows: list[Row]
    tally: Tally = field(default_factory=Tally)

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> list[Any]:
        """The values of a column, one for each row.

        Raises:
            DataError: no such column, or a row that lacks it.
        """
        self.check(name)
        for row in self.rows:
            if name not in row.values:
                raise DataError(f"{row.where} has no '{name}'; every row needs it")
        return [row.values[name] for row in self.rows]

    def check(self, name: str) -> None:
        """Whether there is such a column.

        Raises:
            DataError: there is none; the message names those there are.
        """
        if name not in self.columns:
            listed = ", ".join(f"'{column}'" for column in self.columns[:12])
            raise DataError(f"'{self.name}' has no column '{name}'.{suggest(name, self.columns)} Its columns: {listed}")


def read_table(
    source: str | Path, *, header: bool = True, separator: str = "", strict: bool = False, limit: int | None = None, encoding: str = ""
) -> Table:
    """Read a table.

    Args:
        source: see the list above.
        header: whether the first row of a CSV or TSV names the columns.
        separator: between a CSV's columns; "": what its first lines say (tab for TSV).
        strict: refuse text that is not of its encoding.
        limit: at most so many rows, from the top.
        encoding: of a source that does not say its own; "": UTF-8.

    Raises:
        DataError: a file that cannot be read, is empty, or has a broken row (with its line). ConfigError: no such encoding.
    """
    tally = Tally(strict)
    name, columns, rows = open_rows(source, tally, header, separator, encoding)
    held: list[Row] = []
    for row in rows:
        if limit is not None and len(held) >= limit:
            break
        held.append(row)
    if not held:
        raise DataError(f"'{name}' holds no row")
    found = tuple(columns) or tuple(dict.fromkeys(key for row in held for key in row.values))
    return Table(name, found, held, tally)


def open_rows(
    source: str | Path, tally: Tally, header: bool = True, separator: str = "", encoding: str = ""
) -> tuple[str, Sequence[str], Iterator[Row]]:
    """A table's name, its columns where they are known before its rows, and its rows, one at a time; see :func:`read_table`."""
    own, text = split_source(str(source))
    encoding = own or (find_encoding(encoding) if encoding else UTF_8)
    form, parts = _form(text)
    if form == "lines":
        return text, tuple(parts), _parallel(parts, tally, encoding)
    path = Path(next(iter(parts.values()))).expanduser()
    name = path.name
    if not path.is_file():
        raise DataError(f"cannot read '{path}': {'it is a folder' if path.is_dir() else 'no such file'}")
    stream = _stream(path, tally, encoding)
    if form in ("csv", "tsv"):
        return name, *_separated(stream, name, header, separator or ("\t" if form == "tsv" else ""))
    if form == "label-text":
        return name, ("label", "text"), _labelled(stream, name)
    return name, (), {"jsonl": _objects, "json": _document, "conll": _tokens}[form](stream, name)


def _form(text: str) -> tuple[str, dict[str, str]]:
    """The format of a source, and its files by column."""
    named, colon, file = text.partition(":")
    if colon and named in FORMATS and not os.path.exists(text):
        return named, {"": file}
    if not os.path.exists(text) and "=" in text:
        pairs = [item.partition("=") for item in text.split(",")]
        if all(name and path for name, _, path in pairs):
            return "lines", {name.strip(): path.strip() for name, _, path in pairs}
    path = Path(text)
    suffix = Path(path.stem).suffix if path.suffix.lower() in _PACKED else path.suffix
    form = _SUFFIXES.get(suffix.lower())
    if form is None and path.is_file() and not path.stat().st_size:
        raise DataError(f"'{text}' is empty")
    if form is None:
        raise DataError(
            f"'{text}' is no table that is known by its name; use .csv, .tsv, .jsonl, .json, .conll (or .conllu), "
            f"FORMAT:FILE ({', '.join(FORMATS)}), or NAME=FILE,NAME=FILE for parallel lines"
        )
    return form, {"": text}


def _stream(path: Path, tally: Tally, encoding: str) -> Iterator[str]:
    """The lines of a file with their endings, as csv wants them."""
    rest: list[str] = []
    for piece in file_pieces(path, path.name, tally, encoding):
        *lines, last = piece.split("\n")
        for line in lines:
            yield "".join((*rest, line, "\n"))
            rest = []
        rest.append(last)
    if any(rest):
        yield "".join(rest)


def _separated(stream: Iterator[str], name: str, header: bool, separator: str) -> tuple[tuple[str, ...], Iterator[Row]]:
    if len(separator) > 1:
        raise DataError(f"a separator is one character, not {separator!r}")
    csv.field_size_limit(LONGEST)
    sample, more = list(_sample(stream)), list(itertools.islice(stream, 1))
    stream, bare = itertools.chain(sample, more, stream), _QUOTED.sub("", sample[0] if sample else "")
    if "\r" in bare.rstrip("\r\n"):
        raise DataError(f"'{name}' ends its lines with carriage returns alone; save it with line feeds, as UTF-8")
    separator = separator or guess_separator(sample, header, not more)
    if separator == "\t":  # a quotation mark in such a file is one
        reader = csv.reader(stream, delimiter=separator, quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(stream, delimiter=separator, strict=True)
    first = _next(reader, name)
    while first == []:
        first = _next(reader, name)
    if first is None:
        raise DataError(f"'{name}' is empty")
    columns = tuple(cell.strip() for cell in first) if header else tuple(str(n + 1) for n in range(len(first)))
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise DataError(f"'{name}' names the column '{twice}' twice")

    def rows() -> Iterator[Row]:
        row, line = (None if header else first), reader.line_num
        while True:
            if row is None:
                line = reader.line_num + 1
                row = _next(reader, name)
                if row is None:
                    return
            if row:
                if len(row) != len(columns):
                    raise DataError(f"{name}, line {line}: {_miscounted(len(row), len(columns))}")
                yield Row(f"{name}, line {line}", dict(zip(columns, row, strict=True)))
            row = None

    return columns, rows()


def _miscounted(fields: int, columns: int) -> str:
    if columns > 1:
        return f"{fields} fields, but there are {columns} columns"
    return (
        f"{fields} fields, but there is 1 column; a text that holds commas stands in quotation marks in a CSV, and a file of plain lines is "
        "read as text=FILE"
    )


def _sample(stream: Iterator[str]) -> Iterator[str]:
    """The first lines of a table, about 256 kB of them."""
    size = 0
    for line in itertools.islice(stream, SAMPLE):
        yield line
        size += len(line)
        if size > 1 << 18:
            return


def guess_separator(lines: Sequence[str], header: bool = True, whole: bool = True) -> str:
    """What separates the columns of a CSV, by its first lines: of comma, semicolon and tab the one that cuts most rows, and more than half
    of them, into as many fields as the first (two or more); the first of equals.

    Where none does, a header with commas is cut at these, else at semicolons or tabs, and the row that does not follow is told. Without a
    header such lines are texts of one column.

    Args:
        header: whether the first row names the columns. whole: whether these lines are all that there are.
    """
    best, most = "", 0.5
    first = next((line for line in lines if line.strip()), "")
    signs = [sign for sign in ",;\t" if sign in _QUOTED.sub("", first)]
    for sign in signs:
        counts = _fields(lines, sign)
        counts = counts if whole else counts[:-1] or counts  # the last row may go on
        share = sum(count == counts[0] for count in counts) / len(counts) if counts and counts[0] > 1 else 0.0
        if share > most:
            best, most = sign, share
    return best or (signs[0] if signs and header else ",")


def _fields(lines: Sequence[str], sign: str) -> list[int]:
    """Fields of every row under a separator."""
    reader = csv.reader(lines, delimiter=sign, quoting=csv.QUOTE_NONE if sign == "\t" else csv.QUOTE_MINIMAL)
    found: list[int] = []
    with suppress(csv.Error):
        found += (len(row) for row in reader if row)
    return found


def _next(reader: Any, name: str) -> list[str] | None:
    try:
        row: list[str] | None = next(reader, None)
    except csv.Error as error:
        reason = str(error)
        if "unexpected end" in reason:
            reason = "a quote that is opened is never closed"
        elif "field limit" in reason:
            reason = f"a field of more than {LONGEST:,} characters; is a quote before it never closed?"
        raise DataError(f"{name}, line {reader.line_num}: {reason}") from error
    if row and any("\0" in cell for cell in row):
        raise DataError(f"{name}, line {reader.line_num}: a NUL character, as UTF-16 has them; if it is that, say so with --encoding utf-16")
    return row


@contextmanager
def _json(name: str, line: int = 0) -> Iterator[None]:
    """Say where a file (or its given line) is no JSON, or nests deeper than it can be read."""
    try:
        yield
    except json.JSONDecodeError as error:
        raise DataError(f"{name}, line {line or error.lineno}: no JSON ({error.msg} at character {error.colno})") from error
    except RecursionError as error:
        raise DataError(f"{name}{f', line {line}' if line else ''}: brackets within brackets, deeper than can be read") from error


def _objects(stream: Iterator[str], name: str) -> Iterator[Row]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        with _json(name, number):
            value = json.loads(line)
        if not isinstance(value, dict):
            raise DataError(f"{name}, line {number}: a row must be an object in braces, not {type(value).__name__}")
        yield Row(f"{name}, line {number}", value)


def _document(stream: Iterator[str], name: str) -> Iterator[Row]:
    """Rows of one JSON value: a list of objects, or articles of paragraphs of questions as SQuAD (1606.05250, 1806.03822) has them."""
    with _json(name):
        value = json.loads("".join(stream))
    if isinstance(value, list):
        for number, row in enumerate(value, 1):
            if not isinstance(row, dict):
                raise DataError(f"{name}, item {number}: a row must be an object in braces, not {type(row).__name__}")
            yield Row(f"{name}, item {number}", row)
        return
    try:
        for article in value["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = [] if question.get("is_impossible") else question.get("answers", [])
                    found = {"id": question.get("id", ""), "context": paragraph["context"], "question": question["question"]}
                    yield Row(f"{name}, question {found['id']}", {**found, "answers": answers})
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"'{name}' is neither a list of rows nor laid out as SQuAD is: {error!r} is missing") from error


def _tokens(stream: Iterator[str], name: str) -> Iterator[Row]:
    """Sentences of token lines; comments (#) and ranges of the CoNLL-U format (1-2, 1.1) are passed over."""
    columns: list[list[str]] = []
    begin = 0
    for number, line in enumerate(stream, 1):
        text = line.rstrip("\n\r")
        if not text.strip():
            if columns:
                yield _sentence(name, begin, columns)
            columns = []
            continue
        if text.startswith("#") and "\t" not in text:
            continue
        cells = text.split("\t") if "\t" in text else text.split()
        if len(cells) == 10 and not cells[0].isdecimal():
            continue
        if not columns:
            begin, columns = number, [[] for _ in cells]
        if len(cells) != len(columns):
            raise DataError(f"{name}, line {number}: {len(cells)} columns, but the sentence began with {len(columns)}")
        for column, cell in zip(columns, cells, strict=True):
            column.append(cell)
    if columns:
        yield _sentence(name, begin, columns)


def _sentence(name: str, line: int, columns: list[list[str]]) -> Row:
    return Row(f"{name}, line {line}", {str(number): cells for number, cells in enumerate(columns, 1)})


def _labelled(stream: Iterator[str], name: str) -> Iterator[Row]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        label, *rest = line.strip().split(None, 1)
        yield Row(f"{name}, line {number}", {"label": label, "text": rest[0] if rest else ""})


def _parallel(parts: dict[str, str], tally: Tally, encoding: str) -> Iterator[Row]:
    paths = {column: Path(path).expanduser() for column, path in parts.items()}
    for path in paths.values():
        if not path.is_file():
            raise DataError(f"cannot read '{path}': no such file")
    streams = {column: _stream(path, tally, encoding) for column, path in paths.items()}
    number = 0
    while True:
        number += 1
        lines = {column: next(stream, None) for column, stream in streams.items()}
        ended = [column for column, line in lines.items() if line is None]
        if len(ended) == len(lines):
            return
        if ended:
            names = " and ".join(path.name for path in paths.values())
            raise DataError(
                f"'{paths[ended[0]].name}' ends at line {number - 1}, before the others: {names} must be parallel"
            )
        where = f"{next(iter(paths.values())).name}, line {number}"
        yield Row(where, {column: (line or "").rstrip("\n\r") for column, line in lines.items()})
