"""Text out of files: streamed in pieces, decompressed, decoded, and counted where it was not what its encoding says.

A *piece* is at most one MiB of UTF-8, cut behind a line end where there is one and never inside a character, so that
a document of any size passes through memory in pieces. Where a piece ends depends on the content alone, so tokens do
not depend on the machine. A file in another encoding is read as the UTF-8 that it would be.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from orrery.core.errors import DataError
from orrery.core.progress import counted
from orrery.data.encodings import MARK, MARKED, UTF_8, bytewise, is_foreign

PIECE = 1 << 20  # bytes
HEAD = 1 << 16  # bytes looked at to tell text from binary
SHOWN = 5  # numbers of lines that are named
_BOM = b"\xef\xbb\xbf"
_REPLACEMENT = "\ufffd"
_CONTROL = bytes(set(range(32)) - set(b"\t\n\r\f\x1b")) + b"\x7f"
_UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)


@dataclass
class Lines:
    """Lines of documents where something was met: how many, the first few numbers, and the document that holds these."""

    name: str = ""
    count: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, name: str, numbers: list[int]) -> None:
        """Lines of a document, in order; the last one may be given again."""
        self.name = self.name or name
        fresh = [n for n in numbers if name != self.name or n not in self.first[-1:]]
        self.count += len(fresh)
        if name == self.name:
            self.first += fresh[: SHOWN - len(self.first)]

    def __str__(self) -> str:
        """As in "'a.csv', lines 3, 9 and 14 (40 lines in all)"."""
        listed = " and ".join(filter(None, (", ".join(map(str, self.first[:-1])), *map(str, self.first[-1:]))))
        lines = f", line{'s' if len(self.first) > 1 else ''} {listed}" if self.first else ""
        return f"'{self.name}'{lines}" + (f" ({self.count:,} lines in all)" if self.count > len(self.first) else "")


@dataclass
class Tally:
    """What reading a corpus met. `strict` refuses text that is not of its encoding instead of replacing and counting it."""

    strict: bool = False
    encoding: str = UTF_8  # of the last file that was read
    replaced: int = 0  # U+FFFD put in place of what is not of the encoding
    where: Lines = field(default_factory=Lines)  # that happened
    foreign: Lines = field(default_factory=Lines)  # lines read in another encoding, though they are UTF-8
    binary: int = 0  # files left out of a folder because they are not text
    empty: int = 0  # files or records without a character

    @property
    def replaced_in(self) -> str:
        """The first document where something was replaced."""
        return self.where.name

    def replace(self, count: int, name: str, detail: str, lines: list[int] | None = None) -> None:
        """Count replaced characters of a document (on these lines), or refuse it.

        Raises:
            DataError: in strict mode.
        """
        if self.strict:
            raise DataError(
                f"'{name}' is not {named(self.encoding)} text: {detail}; convert it, or run without --strict to replace such bytes"
            )
        self.where.add(name, lines or [])
        self.replaced += count

    def notes(self) -> list[str]:
        """What was lost or is doubtful, in words."""
        found = []
        if self.replaced:
            was = "was" if self.replaced == 1 else "were"
            hint = "; if it is in another encoding, name that with --encoding" if self.encoding == UTF_8 else ""
            found.append(
                f"{counted(self.replaced, 'character')} {was} not {named(self.encoding)} and {was} replaced, the first in {self.where}{hint}"
            )
        if self.foreign.count:
            is_one = "is" if self.foreign.count == 1 else "are"
            found.append(
                f"{counted(self.foreign.count, 'line')} {is_one} UTF-8 but {'was' if is_one == 'is' else 'were'} read as "
                f"{named(self.encoding)}, the first in {self.foreign}; --encoding utf-8 reads them so"
            )
        return found


def named(encoding: str) -> str:
    """An encoding as people write it."""
    return encoding.upper() if encoding.startswith(("utf", "ascii")) else encoding


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


class Transcoded(io.RawIOBase):
    """A binary stream of text in a named encoding, read as UTF-8. What cannot be decoded becomes U+FFFD and is counted with its line."""

    def __init__(self, file: BinaryIO, encoding: str, name: str, tally: Tally) -> None:
        self.file, self.name, self.tally, self.line = file, name, tally, 1
        self.encoding = tally.encoding = encoding
        self.decoder = codecs.getincrementaldecoder(encoding)(errors=MARKED)
        self.held, self.rest, self.ended = memoryview(b""), b"", False
        self.watched = bytewise(encoding)

    def readable(self) -> bool:
        """As every such stream."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Some bytes of UTF-8; 0 at the end."""
        while not self.held and not self.ended:
            data = self.file.read(PIECE)
            self.ended = not data
            self._watch(data)
            self.held = memoryview(self._clean(self._decode(data)).encode("utf-8"))
        count = min(len(buffer), len(self.held))
        buffer[:count], self.held = self.held[:count], self.held[count:]
        return count

    def close(self) -> None:
        """The stream below too."""
        self.file.close()
        super().close()

    def _decode(self, data: bytes) -> str:
        try:
            return self.decoder.decode(data, self.ended)
        except UnicodeError as error:  # not of these bytes, which would be marked: UTF-16 and UTF-32 do not say their order
            raise DataError(f"'{self.name}': {error}; name {self.encoding}-le or {self.encoding}-be") from error

    def _clean(self, text: str) -> str:
        if MARK.search(text) is not None:
            text = cleaned(text, self.name, self.tally, self.line)
        self.line += text.count("\n")
        return text

    def _watch(self, data: bytes) -> None:
        """Count lines that are UTF-8. `self.line` is that of the first character not yet decoded, which `rest` stands before."""
        if not self.watched:
            return
        *lines, self.rest = (self.rest + data).split(b"\n")
        if self.ended:
            lines.append(self.rest)
        elif len(self.rest) > PIECE:
            self.rest = b""  # so long a line is judged by its end
        if found := [self.line + number for number, line in enumerate(lines) if is_foreign(line)]:
            self.tally.foreign.add(self.name, found)


def open_text(path: Path, name: str, tally: Tally, encoding: str = UTF_8) -> BinaryIO:
    """A file opened for reading, decompressed, its text as UTF-8 bytes; its document's name and tally are for what cannot be decoded.

    Raises:
        DataError: when it cannot be opened.
    """
    return as_utf_8(open_binary(path), name, tally, encoding)


def as_utf_8(file: BinaryIO, name: str, tally: Tally, encoding: str = UTF_8) -> BinaryIO:
    """A stream whose bytes are UTF-8, or meant to be."""
    if encoding == UTF_8:
        tally.encoding = UTF_8
        return file
    return io.BufferedReader(Transcoded(file, encoding, name, tally), PIECE)


def why_not_text(head: bytes, encoding: str = UTF_8) -> str:
    """Why the first bytes of a file, read as UTF-8, do not look like text; empty when they do."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) and len(head) >= 4:
        return "it looks like UTF-16; say so with --encoding utf-16"
    if b"\0" in head:
        return "it holds NUL bytes"
    if sum(map(head.count, (bytes([code]) for code in _CONTROL))) > 0.1 * len(head):
        return "more than a tenth of it are control characters"
    text = head.decode("utf-8", "replace")
    if text.count(_REPLACEMENT) > 0.3 * len(text):
        return f"most of it is not {named(encoding)}; name its encoding with --encoding"
    return ""


def read_head(path: Path, encoding: str = UTF_8) -> bytes:
    """The first 64 KiB of a file, decompressed, as UTF-8, without a byte order mark.

    Raises:
        DataError: when it cannot be read.
    """
    with guarded(path), open_text(path, path.name, Tally(), encoding) as file:
        return file.read(HEAD).removeprefix(_BOM)


def file_pieces(path: Path, name: str, tally: Tally, encoding: str = UTF_8) -> Iterator[str]:
    """Stream a text file.

    Raises:
        DataError: when it cannot be read or is damaged inside (a broken gzip), or in strict mode is not of its encoding.
    """
    with guarded(path), open_text(path, name, tally, encoding) as file:
        yield from stream_pieces(file, name, tally)


def text_pieces(text: str, name: str, tally: Tally) -> Iterator[str]:
    """Stream a text that is in memory already. Lone surrogates, which UTF-8 cannot hold, are replaced and counted."""
    text, lone = MARK.subn(_REPLACEMENT, text)
    if lone:
        tally.replace(lone, name, f"{lone} lone surrogates")
    if len(text) <= PIECE // 4:
        yield text
    else:
        yield from stream_pieces(io.BytesIO(text.encode("utf-8")), name, tally, keep_mark=True)


def stream_pieces(file: BinaryIO, name: str, tally: Tally, keep_mark: bool = False) -> Iterator[str]:
    """Pieces of a binary stream, decoded. A byte order mark at the start is dropped unless `keep_mark`."""
    position, line, rest, first = 0, 1, b"", not keep_mark
    while True:
        data = file.read(PIECE - len(rest))
        full = len(rest) + len(data) == PIECE
        data = rest + data
        end = _piece_end(data) if full else len(data)
        data, rest = data[:end], data[end:]
        if data:
            text = decode(data.removeprefix(_BOM) if first else data, name, tally, position, line)
            if text:
                yield text
        if not full:
            return
        position, line, first = position + end, line + data.count(b"\n"), False


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


def decode(data: bytes, name: str, tally: Tally, position: int = 0, line: int = 0) -> str:
    """UTF-8 bytes as text; what is not UTF-8 becomes U+FFFD and is counted in `tally`.

    Args:
        position, line: of the first byte in its document; line 0: not known.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        detail = f"byte 0x{data[error.start]:02x} at position {position + error.start}"
        return cleaned(data.decode("utf-8", MARKED), name, tally, line, detail)


def cleaned(text: str, name: str, tally: Tally, line: int, detail: str = "") -> str:
    """A decoded text whose marks become U+FFFD, each counted with its line; line: of its first character, 0 where that is not known."""
    numbers = [line + number for number, part in enumerate(text.split("\n")) if MARK.search(part)] if line else []
    text, count = MARK.subn(_REPLACEMENT, text)
    where = f"line {numbers[0]}" if numbers else ""
    tally.replace(count, name, ", ".join(filter(None, (detail, where))), numbers)
    return text


def records(path: Path, name: str, field: str, tally: Tally, encoding: str = UTF_8) -> Iterator[Document]:
    """One document per line of a JSON-lines file: the text in `field` (`a.b` reaches into objects). null is empty.

    Raises:
        DataError: naming the line that is not JSON or has no such text.
    """
    with guarded(path), open_text(path, name, tally, encoding) as file:
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
