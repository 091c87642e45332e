"""An SQLite index over run folders: fast answers, no truth of its own.

Every query first compares the folders (inode, time and size of `run.json` and `result.json`) with what the index has
seen, reads what is new or changed, and forgets what is gone. So the index is never stale, a training process never
touches it, and deleting it loses nothing.

Two processes may do so at once: folders are read and written down in one immediate transaction with a busy timeout.
The journal is SQLite's rollback journal, never WAL, because WAL needs shared memory that network disks do not have.
Where the file cannot be written or locked (read-only folder, full disk, a network disk without locks) the answer comes
from an index in memory, and a note says so. A damaged index (SQLite's integrity check, and a digest per row) is deleted
and rebuilt, with a note.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from orrery.core.errors import OrreryError
from orrery.runs import folder as run_folder

FILE = "index.sqlite"
SCHEMA = 1
BUSY_SECONDS = 30.0
_COLUMNS = ("folder", "signature", "problem", "id", "name", "config_hash", "status", "created", "document")
_FIELDS = ", ".join(f"{name} TEXT NOT NULL" for name in _COLUMNS)
_CREATE = f"""
CREATE TABLE IF NOT EXISTS runs ({_FIELDS}, digest TEXT NOT NULL, PRIMARY KEY (folder));
CREATE INDEX IF NOT EXISTS by_hash ON runs (config_hash);
CREATE INDEX IF NOT EXISTS by_status ON runs (status);
CREATE INDEX IF NOT EXISTS by_created ON runs (created);
CREATE INDEX IF NOT EXISTS by_id ON runs (id);
PRAGMA user_version = {SCHEMA};
"""
T = TypeVar("T")


class DamagedIndex(Exception):
    """A row whose digest is not its content's; never leaves this module."""


@dataclass(frozen=True)
class Problem:
    """A folder that is skipped, and why."""

    folder: str
    why: str


class Index:
    """The index of one root folder. Connections are opened per question and closed: safe across forks and disks."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.path = self.root / FILE
        self.notes: list[str] = []

    def rows(self, where: str = "", values: tuple[Any, ...] = ()) -> list[dict[str, Any]]:
        """Documents of readable runs that match an SQL condition over the columns, newest first."""

        def ask(connection: sqlite3.Connection) -> list[dict[str, Any]]:
            condition = f"problem = '' AND ({where})" if where else "problem = ''"
            found = connection.execute(f"SELECT * FROM runs WHERE {condition} ORDER BY created DESC, folder", values)
            return [json.loads(row["document"]) for row in _checked(found)]

        return self._ask(ask)

    def problems(self) -> list[Problem]:
        """Folders that hold a damaged run."""

        def ask(connection: sqlite3.Connection) -> list[Problem]:
            found = connection.execute("SELECT * FROM runs WHERE problem != '' ORDER BY folder")
            return [Problem(row["folder"], row["problem"]) for row in _checked(found)]

        return self._ask(ask)

    def rebuild(self) -> int:
        """Forget everything and read all folders again; the number of folders read."""

        def ask(connection: sqlite3.Connection) -> int:
            self._refresh(connection, forget=True)
            return int(connection.execute("SELECT COUNT(*) FROM runs").fetchone()[0])

        return self._ask(ask)

    def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        for attempt in range(3):
            try:
                return self._on_disk(question)
            except sqlite3.OperationalError as error:
                return self._in_memory(question, error)
            except (sqlite3.DatabaseError, DamagedIndex) as error:
                if attempt == 2:
                    return self._in_memory(question, error)
                self.notes.append(f"the index '{self.path}' was damaged ({error}); it was rebuilt from the run folders")
                if not self._discard():
                    return self._in_memory(question, error)
        raise AssertionError("unreachable")

    def _on_disk(self, question: Callable[[sqlite3.Connection], T]) -> T:
        if not self.root.is_dir():
            raise sqlite3.OperationalError("no such folder")
        with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = DELETE")
            if connection.execute("PRAGMA user_version").fetchone()[0] not in (0, SCHEMA):
                raise DamagedIndex("written by another version")
            check = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if check != "ok":
                raise DamagedIndex(str(check).splitlines()[0])
            if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                connection.executescript(_CREATE)
            self._refresh(connection)
            return question(connection)

    def _in_memory(self, question: Callable[[sqlite3.Connection], T], why: Exception) -> T:
        if self.root.is_dir():
            self.notes.append(f"the index '{self.path}' cannot be used ({why}); the folders were read without it")
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            connection.executescript(_CREATE)
            self._refresh(connection)
            return question(connection)

    def _discard(self) -> bool:
        try:
            self.path.unlink(missing_ok=True)
            self.path.with_name(FILE + "-journal").unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def _refresh(self, connection: sqlite3.Connection, forget: bool = False) -> None:
        """Bring the table in line with the folders; `forget`: read every folder again.

        What changed is looked for without a lock first, so a question that finds nothing new never waits. The folders are
        then read *inside* the write transaction: read before it, they could overwrite what another process has read since,
        and a reader between a deletion and its refill would be told that there are no runs.
        """
        if not forget and self._stale(connection) == ({}, []):
            return
        marks = ", ".join("?" * (len(_COLUMNS) + 1))
        with _transaction(connection):
            if forget:
                connection.execute("DELETE FROM runs")
            changed, gone = self._stale(connection)
            rows = [_row(self.root, name, signature) for name, signature in changed.items()]
            connection.executemany(f"INSERT OR REPLACE INTO runs VALUES ({marks})", rows)
            connection.executemany("DELETE FROM runs WHERE folder = ?", [(name,) for name in gone])

    def _stale(self, connection: sqlite3.Connection) -> tuple[dict[str, str], list[str]]:
        """Folders (and signatures) that the table has not seen as they are now, and folders that are gone."""
        known = {row["folder"]: row["signature"] for row in connection.execute("SELECT folder, signature FROM runs")}
        here = dict(scan(self.root))
        return {name: sign for name, sign in here.items() if known.get(name) != sign}, [n for n in known if n not in here]


class _transaction:
    """BEGIN IMMEDIATE ... COMMIT: the write lock is taken at once, so two writers queue instead of deadlocking."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def __enter__(self) -> None:
        self.connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.connection.execute("ROLLBACK" if kind else "COMMIT")


def scan(root: Path) -> Iterator[tuple[str, str]]:
    """Run folders directly under `root`, with a signature that changes when `run.json` or `result.json` does.

    A folder that has lost its `run.json` but holds a log or a result is yielded too, and becomes a problem.
    """
    try:
        names = sorted(item.name for item in root.iterdir() if not item.name.startswith(".") and item.is_dir())
    except OSError:
        return
    for name in names:
        run, result = (_signature(root / name / file) for file in (run_folder.RUN, run_folder.RESULT))
        if run or result or (root / name / run_folder.LOG).exists():
            yield name, f"{run} {result}"


def _signature(file: Path) -> str | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return f"{found.st_ino}:{found.st_mtime_ns}:{found.st_size}"


def _row(root: Path, name: str, signature: str) -> tuple[str, ...]:
    try:
        document = summarise(root / name)
        facts = {**document, "problem": "", "document": json.dumps(document, sort_keys=True)}
    except OrreryError as error:
        facts = {**dict.fromkeys(_COLUMNS, ""), "problem": str(error), "document": "{}"}
    values = tuple(str({**facts, "folder": name, "signature": signature}[column]) for column in _COLUMNS)
    return (*values, _digest(values))


def summarise(path: Path) -> dict[str, Any]:
    """What listings show of a run: identity, status, config, and its result's plain numbers.

    Raises:
        OrreryError: when the folder is damaged.
    """
    run = run_folder.Run.open(path)
    record = run.record
    result = run.result() or {}
    numbers = {key: value for key, value in result.items() if isinstance(value, (int, float, str)) or value is None}
    keys = ("id", "name", "config_hash", "status", "created", "finished", "seed", "config", "facts")
    holder = {key: record.get(key) for key in ("host", "process", "process_started")}
    return {"folder": path.name, **{key: record.get(key) for key in keys}, **holder, "result": numbers}


def _checked(rows: sqlite3.Cursor) -> Iterator[sqlite3.Row]:
    for row in rows:
        if row["digest"] != _digest(tuple(row[column] for column in _COLUMNS)):
            raise DamagedIndex(f"the row of '{row['folder']}' has another digest than it carries")
        yield row


def _digest(values: tuple[str, ...]) -> str:
    return hashlib.blake2b("\x1f".join(values).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
