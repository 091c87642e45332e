"""Text out of files: streamed in pieces, decompressed, decoded, and counted where it was not UTF-8.

A *piece* is at most one MiB of UTF-8, cut behind a line end where there is one and never inside a character, so that
a document of any size passes through memory in pieces. Where a piece ends depends on the content alone, so tokens do
not depend on the machine.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from orrery.core.errors import DataError

PIECE = 1 << 20  # bytes
HEAD = 1 << 16  # bytes looked at to tell text from binary
_BOM = b"\xef\xbb\xbf"
_REPLACEMENT = "\ufffd"
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = bytes(set(range(32)) - set(b"\t\n\r\f\x1b")) + b"\x7f"
_UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)


@dataclass
class Tally:
    """What reading a corpus met. `strict` refuses text that is not UTF-8 instead of replacing and counting it."""

    strict: bool = False
    replaced: int = 0  # U+FFFD put in place of bytes that are not UTF-8
    replaced_in: str = ""  # the first document where that happened
    binary: int = 0  # files left out of a folder because they are not text
    empty: int = 0  # files or records without a character

    def replace(self, count: int, name: str, detail: str) -> None:
        """Count replaced characters of a document, or refuse it.

        Raises:
            DataError: in strict mode.
        """
        if self.strict:
            raise DataError(
                f"'{name}' is not UTF-8 text: {detail}; convert it, or run without --strict to replace such bytes"
            )
        self.replaced_in = self.replaced_in or name
        self.replaced += count


@dataclass(frozen=True)
class Document:
    """A named text. `pieces(tally)` streams it; joined, the pieces are the text."""

    name: str
    pieces: Callable[[Tally], Iterator[str]]

    @property
    def text(self) -> str:
        """The whole text at once; not UTF-8 is replaced."""
        return "".join(self.pieces(Tally()))


def open_binary(path: Path) -> BinaryIO:
    """Open a file for reading, decompressed by its suffix (.gz, .bz2, .xz).

    Raises:
        DataError: when it cannot be opened.
    """
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    try:
        return cast(BinaryIO, openers.get(path.suffix.lower(), open)(path, "rb"))
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}") from error


def why_not_text(head: bytes) -> str:
    """Why the first bytes of a file do not look like text; empty when they do."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) and len(head) >= 4:
        return "it looks like UTF-16; convert it to UTF-8 first"
    if b"\0" in head:
        return "it holds NUL bytes"
    if sum(map(head.count, (bytes([code]) for code in _CONTROL))) > 0.1 * len(head):
        return "more than a tenth of it are control characters"
    text = head.decode("utf-8", "replace")
    if text.count(_REPLACEMENT) > 0.3 * len(text):
        return "most of it is not UTF-8; convert it from its encoding first"
    return ""


def read_head(path: Path) -> bytes:
    """The first 64 KiB of a file, decompressed, without a byte order mark.

    Raises:
        DataError: when it cannot be read.
    """
    with guarded(path), open_binary(path) as file:
        return file.read(HEAD).removeprefix(_BOM)


def file_pieces(path: Path, name: str, tally: Tally) -> Iterator[str]:
    """Stream a text file.

    Raises:
        DataError: when it cannot be read or is damaged inside (a broken gzip), or in strict mode is not UTF-8.
    """
    with guarded(path), open_binary(path) as file:
        yield from stream_pieces(file, name, tally)


def text_pieces(text: str, name: str, tally: Tally) -> Iterator[str]:
    """Stream a text that is in memory already. Lone surrogates, which UTF-8 cannot hold, are replaced and counted."""
    text, lone = _SURROGATE.subn(_REPLACEMENT, text)
    if lone:
        tally.replace(lone, name, f"{lone} lone surrogates")
    if len(text) <= PIECE // 4:
        yield text
    else:
        yield from stream_pieces(io.BytesIO(text.encode("utf-8")), name, tally, keep_mark=True)


def stream_pieces(file: BinaryIO, name: str, tally: Tally, keep_mark: bool = False) -> Iterator[str]:
    """Pieces of a binary stream, decoded. A byte order mark at the start is dropped unless `keep_mark`."""
    position, rest, first = 0, b"", not keep_mark
    while True:
        data = file.read(PIECE - len(rest))
        full = len(rest) + len(data) == PIECE
        data = rest + data
        end = _piece_end(data) if full else len(data)
        data, rest = data[:end], data[end:]
        if data:
            text = decode(data.removeprefix(_BOM) if first else data, name, tally, position)
            if text:
                yield text
        if not full:
            return
        position, first = position + end, False


def _piece_end(data: bytes) -> int:
    """Where to cut a full piece: behind its last line end if that is in its second half, else between characters."""
    line = data.rfind(b"\n") + 1
    if line > len(data) // 2:
        return line
    return character_start(data, len(data) - 1)


def character_start(data: bytes, position: int) -> int:
    """The start of the UTF-8 character that holds `position` (at most three bytes earlier)."""
    for back in range(4):
        if position - back > 0 and data[position - back] & 0xC0 != 0x80:
            return position - back
    return position


def decode(data: bytes, name: str, tally: Tally, position: int = 0) -> str:
    """UTF-8 bytes as text; what is not UTF-8 becomes U+FFFD and is counted in `tally`."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        text = data.decode("utf-8", "replace")
        count = text.count(_REPLACEMENT) - data.count(_REPLACEMENT.encode())
        tally.replace(count, name, f"byte 0x{data[error.start]:02x} at position {position + error.start}")
        return text


def records(path: Path, name: str, field: str, tally: Tally) -> Iterator[Document]:
    """One document per line of a JSON-lines file: the text in `field` (`a.b` reaches into objects). null is empty.

    Raises:
        DataError: naming the line that is not JSON or has no such text.
    """
    with guarded(path), open_binary(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            label = f"{name}:{number}"
            decoded = decode(line.removeprefix(_BOM) if number == 1 else line, label, tally)
            text = _field(decoded, field, path, number)
            if text:
                yield memory_document(label, text)
            else:
                tally.empty += 1


def memory_document(name: str, text: str) -> Document:
    """A document whose text is in memory."""
    return Document(name, lambda tally: text_pieces(text, name, tally))


def _field(line: str, field: str, path: Path, number: int) -> str:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(
            f"'{path}' line {number} is not JSON; give the file another suffix if it is plain text"
        ) from error
    for key in field.split("."):
        if not isinstance(value, dict) or key not in value:
            known = ", ".join(sorted(map(str, value))) if isinstance(value, dict) else f"a {type(value).__name__}"
            raise DataError(
                f"'{path}' line {number} has no field '{field}' (it holds: {known}); write the path as FILE.jsonl:FIELD"
            )
        value = value[key]
    if value is not None and not isinstance(value, str):
        raise DataError(f"'{path}' line {number}: the field '{field}' is a {type(value).__name__}, not text")
    return value or ""


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Turn what reading a file can raise into one DataError that names the file."""
    try:
        yield
    except _UNREADABLE as error:
        raise DataError(f"cannot read '{path}': {getattr(error, 'strerror', None) or error}") from error
