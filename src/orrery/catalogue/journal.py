"""The journal: one event a line, appended and never changed, each line sealed to the line before it.

A line is JSON: `{"seq": 7, "at": "...", "kind": "vote", "facts": {...}, "before": CHECK, "check": CHECK}`. `before` is
the check of the line before (zeros for the first) and `check` covers all that stands before it in its own line, so a line
that was changed fails its own check, and one that was removed, added or moved breaks the chain at a line that is named.
A line without an end (a process killed while writing) was never promised to anybody and is cut off.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orrery.catalogue.events import Event
from orrery.catalogue.lock import exclusive
from orrery.core.errors import CorruptionError, StorageError

FILE = "journal.jsonl"
LOCK = "journal.lock"
FIRST = "0" * 32  # what the first line names as the check of the line before it
LOCK_SECONDS = 60.0
_MARK = b', "check": "'
_TAIL = len(_MARK) + 32 + len(b'"}\n')


@dataclass(frozen=True)
class Position:
    """A place after a line: how many events, how many bytes, and the check of the last line."""

    seq: int = 0
    size: int = 0
    check: str = FIRST


@dataclass(frozen=True)
class Line:
    """A whole line: its event, and the position after it."""

    event: Event
    end: Position


class Journal:
    """The journal of one folder. Every writer holds :meth:`locked`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / FILE

    def locked(self) -> AbstractContextManager[object]:
        """Be the only writer of this folder, among threads and processes.

        Raises:
            StorageError: when another process keeps it for longer than a minute, or the folder cannot be written.
        """
        busy = f"another process has been writing in '{self.folder}' for a minute; end it, or try again"
        return exclusive(self.folder / LOCK, LOCK_SECONDS, busy)

    def size(self) -> int:
        """Bytes, 0 when there is no journal."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise StorageError(f"cannot read '{self.path}': {error.strerror or error}") from error

    def ends_at(self, position: Position) -> bool:
        """Whether the last line is the one that `position` stands after, with nothing behind it."""
        if self.size() != position.size:
            return False
        return position.size == 0 or self._tail(position.size) == seal(position.check)

    def _tail(self, size: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(max(0, size - _TAIL))
            return file.read(_TAIL)

    def append(self, event: Event, after: Position) -> Position:
        """Write one event behind `after` and wait until the disk has it.

        Raises:
            StorageError: when it cannot be written; the journal is as before.
        """
        line = encode(event, after.check)
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                _write(handle, line, after.size)
            except OSError:
                os.ftruncate(handle, after.size)
                raise
            finally:
                os.close(handle)
        except OSError as error:
            raise StorageError(f"cannot write '{self.path}': {error.strerror or error}; nothing was changed") from error
        return Position(event.seq, after.size + len(line), line[-35:-3].decode())

    def cut(self, position: Position) -> None:
        """Remove an unfinished line behind `position`."""
        with open(self.path, "rb+") as file:
            file.truncate(position.size)
            os.fsync(file.fileno())

    def lines(self, after: Position = Position()) -> Iterator[Line]:
        """The whole lines behind `after`, checked. A last line without its end is left out.

        Raises:
            CorruptionError: naming the first line that is not as it was written.
        """
        position = after
        try:
            with open(self.path, "rb") as file:
                file.seek(after.size)
                for raw in file:
                    if not raw.endswith(b"\n"):
                        return
                    line = decode(raw, position, self.path)
                    yield line
                    position = line.end
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"cannot read '{self.path}': {error.strerror or error}") from error

    def verify(self) -> Position:
        """Check every line; the position after the last.

        Raises:
            CorruptionError: naming the first line that is not as it was written.
        """
        position = Position()
        for line in self.lines():
            position = line.end
        return position

    def salvage(self) -> tuple[list[Event], list[str]]:
        """Events of all lines that pass their own check, wherever they stand, and what is wrong with the others."""
        events, problems = [], []
        position = Position()
        for number, raw in enumerate(self.path.read_bytes().splitlines(keepends=True), 1):
            try:
                line = decode(raw, position, self.path)
            except CorruptionError:
                try:
                    line = decode(raw, Position(_seq(raw) - 1, position.size, _before(raw)), self.path)
                except CorruptionError:
                    problems.append(f"line {number} was changed or damaged and is left out")
                    continue
                problems.append(f"line {number} does not follow the line before it; what stood between them is missing")
            events.append(line.event)
            position = line.end
        return events, problems


def seal(check: str) -> bytes:
    """The end of a line."""
    return _MARK + check.encode() + b'"}\n'


def encode(event: Event, before: str) -> bytes:
    """The line of an event."""
    facts = {"seq": event.seq, "at": event.at, "kind": event.kind, "facts": event.facts, "before": before}
    body = json.dumps(facts, ensure_ascii=False, allow_nan=False).encode("utf-8")[:-1]
    return body + seal(_check(body))


def decode(raw: bytes, after: Position, path: Path) -> Line:
    """The event of a line that stands behind `after`.

    Raises:
        CorruptionError: when the line was changed, or is not the one that follows.
    """
    where = f"line {after.seq + 1} of '{path}'"
    body, mark, rest = raw.rpartition(_MARK)
    if not mark or rest != _check(body).encode() + b'"}\n':
        raise CorruptionError(f"{where} was changed or damaged: its checksum is not its content's; {_ADVICE}")
    try:
        facts = json.loads(body + b"}")
        event = Event(int(facts["seq"]), str(facts["at"]), str(facts["kind"]), dict(facts["facts"]))
        before = facts["before"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError(f"{where} is not an event of the papers' journal ({error}); {_ADVICE}") from error
    if before != after.check or event.seq != after.seq + 1:
        raise CorruptionError(f"{where} does not follow the line before it: a line was removed, added or moved; {_ADVICE}")
    return Line(event, Position(event.seq, after.size + len(raw), rest[:32].decode()))


_ADVICE = "restore the file from a backup, or let `orrery papers mend` keep the lines that are whole"


def _check(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=16).hexdigest()


def _facts(raw: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(raw)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _seq(raw: bytes) -> int:
    seq = _facts(raw).get("seq")
    return seq if isinstance(seq, int) else 0


def _before(raw: bytes) -> str:
    return str(_facts(raw).get("before"))


def _write(handle: int, data: bytes, at: int) -> None:
    os.ftruncate(handle, at)  # an unfinished line of a process that was killed
    os.lseek(handle, at, os.SEEK_SET)
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
    os.fsync(handle)
