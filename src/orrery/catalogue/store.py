"""The store: a folder with a journal (the truth) and an SQLite index over it (which answers, and can be made again).

There is one way to change anything, :meth:`Store.record`: under the writers' lock the event is applied to the index,
written to the journal, flushed to the disk, and only then committed. A crash before the journal leaves nothing; a crash
between journal and commit leaves an event that the index has not seen, and whoever opens the store next applies it. So
the journal holds exactly what happened, and two writers lose nothing.

A damaged index (SQLite finds its pages broken, or a row is not what its digest says) is moved aside under a dated name
and built anew from the shipped papers and the journal; :attr:`Store.notes` says so once. The index uses SQLite's
write-ahead log, so that readers never wait, except on network disks, which lack the shared memory that it needs.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, cast

from orrery.catalogue import events, merge, record, schema, shipped
from orrery.catalogue.events import Event, Unchanged
from orrery.catalogue.journal import Journal, Position
from orrery.catalogue.record import Paper
from orrery.core import files
from orrery.core.errors import CorruptionError, DataError, StorageError

FILE = "papers.sqlite"
BUSY_SECONDS = 30.0
CHECKED_BYTES = 4 << 20  # an index up to this size is checked whole when it is opened: 5 ms
_SIDE_FILES = ("-wal", "-shm", "-journal")
_NETWORK = ("nfs", "cifs", "smb", "9p", "afs", "lustre", "gpfs", "ceph", "fuse.sshfs", "fuse.glusterfs", "beegfs", "ncpfs", "davfs")
T = TypeVar("T")


def default_folder() -> Path:
    """`$ORRERY_PAPERS`, else `papers` in the user's data folder."""
    own = os.environ.get("ORRERY_PAPERS")
    return Path(own) if own else files.data_dir() / "papers"


class Store:
    """The papers of one folder. Open it with :meth:`open`; threads may share it, and processes may open it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / FILE
        self.journal = Journal(folder)
        self.notes: list[str] = []  # what had to be mended, for the user
        self._thread = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._writer: tuple[tuple[int, int], sqlite3.Connection] | None = None
        self._lock = threading.RLock()
        self._closed = False

    @classmethod
    def open(cls, folder: str | Path | None = None) -> Store:
        """The store of a folder (None: :func:`default_folder`); made with the shipped papers when there is none.

        Raises:
            StorageError: when the folder cannot be written.
            CorruptionError: when a line of the journal is damaged and the index cannot be brought up to date without it.
        """
        store = cls(Path(folder) if folder is not None else default_folder())
        try:
            store.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make the papers' folder '{store.folder}': {error.strerror or error}") from error
        try:
            store._bring_up()
        except sqlite3.DatabaseError as error:
            raise StorageError(f"cannot use '{store.path}': {error}") from error
        return store

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give all connections back."""
        with self._lock:
            self._closed = True
            self._drop_connections(close=True)

    # ------------------------------------------------------------ reading

    def connection(self) -> sqlite3.Connection:
        """This thread's connection for reading; rows have names, writing is refused."""
        if self._closed:
            raise StorageError(f"the store '{self.folder}' is closed")
        place = _place(self.path)
        known = getattr(self._thread, "reader", None)
        if known and known[0] == place and known[1] in self._readers:
            return cast(sqlite3.Connection, known[1])
        connection = _connect(self.path, readonly=True)
        with self._lock:
            self._readers.append(connection)
        self._thread.reader = (place, connection)
        return connection

    def ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """The answer to a question about the index. If the index turns out to be damaged, it is mended and asked again."""
        try:
            return question(self.connection())
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise StorageError(f"cannot read '{self.path}': {error}") from error
            self.rebuild(str(error))
            return question(self.connection())

    def paper(self, key: str) -> Paper:
        """The paper of a slug, an arXiv id (with or without version), a DOI, or an address of either.

        Raises:
            UnknownNameError: with the slugs that are near.
        """

        def question(connection: sqlite3.Connection) -> Paper:
            number = merge.paper_id(connection, key)
            row = connection.execute("SELECT * FROM papers WHERE id = ?", (number,)).fetchone()
            return record.from_row(row, _topics(connection, [number]).get(number, ()))

        return self.ask(question)

    def papers(self, slugs: Iterable[str]) -> list[Paper]:
        """Papers by their slugs, in that order; slugs that no paper has are left out."""
        wanted = list(slugs)

        def question(connection: sqlite3.Connection) -> list[Paper]:
            rows = [row for part in _parts(wanted) for row in _rows(connection, "slug", part)]
            topics = _topics(connection, [row["id"] for row in rows])
            found = {row["slug"]: record.from_row(row, topics.get(row["id"], ())) for row in rows}
            return [found[slug] for slug in wanted if slug in found]

        return self.ask(question)

    def all(self) -> Iterator[Paper]:
        """Every paper in the order in which it entered, read in pieces, so that any number fits the memory."""
        last = 0
        while True:

            def question(connection: sqlite3.Connection, after: int = last) -> tuple[list[Paper], int]:
                rows = connection.execute("SELECT * FROM papers WHERE id > ? ORDER BY id LIMIT 500", (after,)).fetchall()
                topics = _topics(connection, [row["id"] for row in rows])
                return [record.from_row(row, topics.get(row["id"], ())) for row in rows], rows[-1]["id"] if rows else 0

            found, last = self.ask(question)
            if not found:
                return
            yield from found

    def count(self) -> int:
        """Number of papers."""
        return self.ask(lambda connection: int(connection.execute("SELECT COUNT(*) FROM papers").fetchone()[0]))

    # ------------------------------------------------------------ writing

    def record(self, kind: str, facts: dict[str, Any], at: datetime | str | None = None) -> Any:
        """Let something happen: apply an event of a kind of `events.HANDLERS`, and write it down for good.

        Args:
            facts: JSON-able; what the kind's handler reads.
            at: when (None: now).

        Returns:
            What the handler returns.

        Raises:
            DataError: when the facts are not JSON-able.
            StorageError: when the disk is full or the folder cannot be written; nothing has changed then.
            OrreryError: what the handler refuses; nothing has changed then.
        """
        try:
            facts = json.loads(json.dumps(facts, ensure_ascii=False, allow_nan=False).encode("utf-8"))
        except (TypeError, ValueError) as error:
            raise DataError(f"the facts of '{kind}' cannot be written down: {error}") from error
        moment = record.second(at)
        try:
            return self._record(kind, facts, moment)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise StorageError(f"cannot write '{self.path}': {error}; nothing was changed") from error
            self.rebuild(str(error))
            return self._record(kind, facts, moment)

    def _record(self, kind: str, facts: dict[str, Any], at: str) -> Any:
        apply = events.handler(kind)
        with self._writing() as connection:
            position = self._catch_up(connection)
            event = Event(position.seq + 1, at, kind, facts)
            try:
                result = apply(connection, event)
            except Unchanged as nothing:
                connection.execute("ROLLBACK")
                return nothing.result
            position = self.journal.append(event, position)
            _set_position(connection, position)
            connection.execute("COMMIT")
            return result

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """The write connection inside an immediate transaction; the body commits, everything else is undone."""
        with self._lock, self.journal.locked():
            connection = self._write_connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    with suppress(sqlite3.DatabaseError):
                        connection.execute("ROLLBACK")

    def _write_connection(self) -> sqlite3.Connection:
        if self._closed:
            raise StorageError(f"the store '{self.folder}' is closed")
        place = _place(self.path)
        if self._writer is None or self._writer[0] != place:
            if self._writer:
                self._writer[1].close()
            self._writer = (place, _connect(self.path))
        return self._writer[1]

    def _catch_up(self, connection: sqlite3.Connection) -> Position:
        """Apply what the journal holds and the index has not seen, inside the open transaction; the journal's end.

        Raises:
            CorruptionError: when the journal lacks what the index has seen, or a new line is damaged.
        """
        position = _position(connection)
        if self.journal.ends_at(position):
            return position
        if self.journal.size() < position.size:
            raise CorruptionError(
                f"'{self.journal.path}' holds less than the index has seen ({position.seq} events): it was cut or replaced. "
                f"Restore it from a backup, or delete '{self.path}' to go on with what the journal holds"
            )
        for line in self.journal.lines(position):
            events.replay(connection, line.event)
            position = line.end
        if self.journal.size() > position.size:
            self.journal.cut(position)
            self.notes.append(f"an unfinished last line of '{self.journal.path}' was removed; it was never confirmed")
        _set_position(connection, position)
        return position

    # ------------------------------------------------------------ making and mending the index

    def _bring_up(self) -> None:
        """Make the index if there is none, mend it if it is damaged, and bring it up to date with journal and package."""
        if not self.path.exists():
            with self.journal.locked():
                if not self.path.exists():
                    self._build()
        try:
            state = self._state()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            self.rebuild(str(error))
            state = self._state()
        version, position, known = state
        if version != schema.VERSION:
            self.rebuild(f"it has version {version}, this version of orrery uses {schema.VERSION}", damaged=False)
        elif not self.journal.ends_at(position):
            with self._writing() as connection:
                self._catch_up(connection)
                connection.execute("COMMIT")
        if known != shipped.checksum():
            self.record("shipped", {"checksum": shipped.checksum()})

    def _state(self) -> tuple[int, Position, str]:
        """Schema version, position in the journal and checksum of the shipped papers that the index has seen."""
        connection = self.connection()
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version != schema.VERSION:
            return version, Position(), shipped.checksum()
        if self.path.stat().st_size <= CHECKED_BYTES:
            check = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
            if check != "ok":
                raise sqlite3.DatabaseError(f"malformed: {check.splitlines()[-1]}")
        known = connection.execute("SELECT value FROM meta WHERE key = 'shipped'").fetchone()
        return version, _position(connection), known[0] if known else ""

    def rebuild(self, why: str, *, damaged: bool = True) -> None:
        """Move the index aside under a dated name and make it anew from the shipped papers and the journal.

        Args:
            why: for the note that the user gets.
            damaged: False: it is whole, but of another version.

        Raises:
            CorruptionError: when a line of the journal is damaged; the index stays as it is then.
        """
        with self._lock:
            before = _place(self.path) if self.path.exists() else None
            with self.journal.locked():
                if before is not None and before != _place(self.path):
                    return  # another process has just done it
                self._build(why, damaged)

    def _build(self, why: str = "", damaged: bool = True) -> None:
        """Make the index under a temporary name and rename it into place. The caller holds the journal's lock."""
        building = self.path.with_name(f".{FILE}.building")
        _remove(building)
        with closing(_connect(building, scratch=True)) as connection:
            connection.executescript(schema.TABLES)
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"PRAGMA user_version = {schema.VERSION}")
            position = Position()
            for line in self.journal.lines():
                events.replay(connection, line.event)
                position = line.end
            if position.seq == 0:
                position = self._begin(connection)
            _set_position(connection, position)
            connection.execute("COMMIT")
        self._drop_connections(close=os.name == "nt")  # which cannot rename an open file; other threads may be reading
        if why:
            aside = self._move_aside()
            self.notes.append(
                f"the papers' index was {'damaged' if damaged else 'made by another orrery'} ({why}); "
                f"it was kept as '{aside.name}' and made anew from the shipped papers "
                f"and {position.seq:,} events of the journal"
            )
        os.replace(building, self.path)

    def _begin(self, connection: sqlite3.Connection) -> Position:
        """The first events of a new journal."""
        position, at = Position(), record.second()
        files.write_bytes(self.journal.path, b"")
        for kind, facts in (("create", {"format": shipped.FORMAT}), ("shipped", {"checksum": shipped.checksum()})):
            event = Event(position.seq + 1, at, kind, facts)
            events.handler(kind)(connection, event)
            position = self.journal.append(event, position)
        return position

    def _move_aside(self) -> Path:
        stamp = record.second().replace(":", "").replace("-", "")
        aside = self.path.with_name(f"papers.damaged-{stamp}.sqlite")
        number = 1
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"papers.damaged-{stamp}-{number}.sqlite")
        for suffix in ("", *_SIDE_FILES):
            with suppress(FileNotFoundError):
                os.replace(str(self.path) + suffix, str(aside) + suffix)
        return aside

    def verify(self) -> list[str]:
        """Check everything: every line of the journal, the index's pages, its search index, every paper's digest.

        Returns:
            What is wrong, in sentences; empty when nothing is.
        """
        problems = []
        try:
            end = self.journal.verify()
            if end != _position(self.connection()):
                problems.append(f"the index has seen {_position(self.connection()).seq} events, the journal holds {end.seq}")
        except CorruptionError as error:
            problems.append(str(error))
        try:
            problems += [f"index: {row[0]}" for row in self.connection().execute("PRAGMA integrity_check") if row[0] != "ok"]
            for row in self.connection().execute("SELECT * FROM papers"):
                if row["digest"] != record.digest(row):
                    problems.append(f"index: the row of '{row['slug']}' is not what its digest says")
            with self._writing() as connection:
                connection.execute("INSERT INTO papers_fts (papers_fts, rank) VALUES ('integrity-check', 1)")
        except sqlite3.DatabaseError as error:
            problems.append(f"index: {error}")
        return problems

    def mend(self) -> list[str]:
        """Keep the whole lines of a damaged journal, the original under a dated name, and make the index anew.

        Returns:
            What was wrong with which line.
        """
        with self._lock, self.journal.locked():
            kept, problems = self.journal.salvage()
            if problems:
                stamp = record.second().replace(":", "").replace("-", "")
                os.replace(self.journal.path, self.journal.path.with_name(f"journal.damaged-{stamp}.jsonl"))
                position = Position()
                files.write_bytes(self.journal.path, b"")
                for number, event in enumerate(kept, 1):
                    position = self.journal.append(Event(number, event.at, event.kind, event.facts), position)
            self._build("the journal was mended" if problems else "asked for")
        return problems

    def _drop_connections(self, close: bool) -> None:
        with self._lock:
            for connection in self._readers if close else ():
                with suppress(sqlite3.Error):
                    connection.close()
            self._readers.clear()
            if self._writer:
                self._writer[1].close()
                self._writer = None


def _connect(path: Path, readonly: bool = False, scratch: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.row_factory = sqlite3.Row
        if scratch:
            connection.execute("PRAGMA journal_mode = MEMORY")
            connection.execute("PRAGMA synchronous = OFF")
            return connection
        if not on_network(path.parent):
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # the journal is the truth, and it is flushed
        connection.execute("PRAGMA cache_size = -16000")
        if readonly:
            connection.execute("PRAGMA query_only = ON")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def on_network(folder: Path) -> bool:
    """Whether a folder lies on a disk of another machine, where SQLite's write-ahead log does not work."""
    if os.name == "nt":
        return str(folder.resolve()).startswith("\\\\")
    if not sys.platform.startswith("linux"):
        return False
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    here, best, kind = str(folder.resolve()), -1, ""
    for line in mounts:
        _, point, name, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        if (here == point or here.startswith(point.rstrip("/") + "/")) and len(point) >= best:
            best, kind = len(point), name
    return kind.startswith(_NETWORK)


def _place(path: Path) -> tuple[int, int]:
    """Which file a path names now: another one after the index was made anew."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise StorageError(f"the index '{path}' is gone: {error.strerror or error}; open the store again") from error
    return found.st_dev, found.st_ino


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether SQLite says that the file is broken, rather than busy, full or asked wrongly."""
    if type(error) is sqlite3.DatabaseError:
        return True
    return isinstance(error, sqlite3.OperationalError) and any(word in str(error) for word in ("malformed", "corrupt", "no such table"))


def _position(connection: sqlite3.Connection) -> Position:
    found = dict(connection.execute("SELECT key, value FROM meta WHERE key LIKE 'journal_%'").fetchall())
    try:
        return Position(int(found["journal_seq"]), int(found["journal_bytes"]), str(found["journal_check"]))
    except (KeyError, ValueError) as error:
        raise sqlite3.DatabaseError(f"malformed: it does not say how much of the journal it has seen ({error})") from error


def _set_position(connection: sqlite3.Connection, position: Position) -> None:
    values = (("journal_seq", position.seq), ("journal_bytes", position.size), ("journal_check", position.check))
    connection.executemany("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", [(key, str(value)) for key, value in values])


def _parts(items: list[T], size: int = 500) -> Iterator[list[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _rows(connection: sqlite3.Connection, column: str, values: list[Any]) -> list[sqlite3.Row]:
    marks = ", ".join("?" * len(values))
    return connection.execute(f"SELECT * FROM papers WHERE {column} IN ({marks})", values).fetchall()


def _topics(connection: sqlite3.Connection, numbers: list[int]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for part in _parts(numbers):
        marks = ", ".join("?" * len(part))
        query = f"SELECT paper, topic FROM paper_topics WHERE paper IN ({marks}) ORDER BY paper, topic"
        for row in connection.execute(query, part):
            found.setdefault(row[0], []).append(row[1])
    return found


def _remove(path: Path) -> None:
    for suffix in ("", *_SIDE_FILES):
        Path(str(path) + suffix).unlink(missing_ok=True)
