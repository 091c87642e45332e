"""The reading list as data: 162 papers, shipped in `papers.jsonl` beside this file, one paper a line.

Titles are those of the listing. An arXiv id, a DOI or authors are given where they are known for certain; a wrong id is
worse than none. `sentence` is ours.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

from orrery.catalogue import merge
from orrery.catalogue.events import Event, Unchanged
from orrery.catalogue.record import clean
from orrery.core.errors import CorruptionError, DataError, StorageError

FILE = Path(__file__).with_name("papers.jsonl")
SOURCE = "reading list"
FORMAT = 1  # of the journal; a store of a newer one is refused


@functools.cache
def _content() -> bytes:
    try:
        return FILE.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read '{FILE}', which orrery ships: {error.strerror or error}; install it again") from error


@functools.cache
def checksum() -> str:
    """Checksum of the shipped file: another one than a store has seen means that orrery was updated."""
    return hashlib.blake2b(_content(), digest_size=8).hexdigest()


@functools.cache
def papers() -> tuple[dict[str, Any], ...]:
    """The shipped papers, in the order of the reading list.

    Raises:
        CorruptionError: naming the line of `papers.jsonl` that is not a paper.
    """
    found = []
    for number, line in enumerate(_content().decode("utf-8").splitlines(), 1):
        try:
            fields = clean(json.loads(line))
        except (ValueError, DataError) as error:
            raise CorruptionError(f"line {number} of '{FILE}' is not a paper: {error}; install orrery again") from error
        found.append(fields)
    return tuple(found)


def apply_create(connection: sqlite3.Connection, event: Event) -> None:
    """The first event of every journal. The one user of a local machine becomes reader 1, the owner.

    Raises:
        CorruptionError: when a newer version of orrery made the store.
    """
    made = event.facts.get("format")
    if made != FORMAT:
        raise CorruptionError(f"the store has format {made}, but this version of orrery reads format {FORMAT}; update orrery")
    connection.execute(
        "INSERT INTO readers (id, email, name, role, created) VALUES (1, NULL, ?, 'owner', ?)",
        (event.facts.get("owner", "owner"), event.at),
    )


def apply_shipped(connection: sqlite3.Connection, event: Event) -> int:
    """Bring the shipped papers into the store, as this version of orrery has them; how many were added or changed."""
    changed = 0
    for fields in papers():
        done = merge.put(connection, {**fields, "curated": True}, at=event.at, source=SOURCE, shipped=True)
        changed += done.outcome != merge.SAME
    known = connection.execute("SELECT value FROM meta WHERE key = 'shipped'").fetchone()
    if known and known[0] == checksum():
        raise Unchanged(changed)
    connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('shipped', ?)", (checksum(),))
    return changed
