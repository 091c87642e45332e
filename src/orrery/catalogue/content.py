"""Answers that only change when papers do, remembered until then: counts over the whole store that pages ask for often."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
MOST = 64  # answers that a process remembers
_known: dict[tuple[Path, str], tuple[tuple[Any, ...], Any]] = {}
_lock = threading.Lock()


class Index(Protocol):
    """What is needed of a store: its folder, the file of its index, and a connection for reading."""

    folder: Path
    path: Path

    def connection(self) -> sqlite3.Connection:
        """This thread's."""


def key(store: Index, connection: sqlite3.Connection) -> tuple[Any, ...]:
    """What changes whenever the papers may have: the index's file, the last paper, import and submission, the shipped data.

    Votes and other doings of readers leave it as it is.
    """
    row = connection.execute(
        "SELECT (SELECT MAX(id) FROM papers), (SELECT MAX(seq) FROM imports),"
        " (SELECT COUNT(*) FROM submissions WHERE paper IS NOT NULL), (SELECT value FROM meta WHERE key = 'shipped')"
    ).fetchone()
    return (os.stat(store.path).st_ino, *row)


def remembered(store: Index, question: str, answer: Callable[[sqlite3.Connection], T]) -> T:
    """The answer to a question about the papers, asked again only after they have changed. Do not change what is returned."""
    connection = store.connection()
    now, place = key(store, connection), (store.folder, question)
    with _lock:
        held = _known.get(place)
    if held is not None and held[0] == now:
        return held[1]
    found = answer(connection)
    with _lock:
        _known.pop(place, None)
        _known[place] = now, found
        while len(_known) > MOST:
            del _known[next(iter(_known))]
    return found
