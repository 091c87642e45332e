"""Which records are the same paper, and what becomes of the fields that two of them disagree about.

The same arXiv id, the same DOI, or the same title (letters and digits only) is the same paper. Equal titles do not count
when the arXiv ids differ, or the DOIs: surveys and editorials share titles, and losing a paper is worse than showing two.
A record that matches two papers (one by its id, another by its title) says that those are one, and they are joined.

Of two values the fuller one stays: the longer abstract, the longer list of authors, the greater number of upvotes; else
the first. What was shipped with orrery (title, kind, sentence, rooms, names) always stays.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orrery.catalogue import filing, keys
from orrery.catalogue.events import Event, Unchanged
from orrery.catalogue.record import CONTENT, TEXTS, digest
from orrery.core.errors import DataError, UnknownNameError, suggest

COLUMNS = (*CONTENT, "upvotes", "curated")
_INSERT = f"INSERT INTO papers ({', '.join(COLUMNS)}, digest) VALUES ({', '.join('?' * (len(COLUMNS) + 1))})"
_UPDATE = f"UPDATE papers SET {', '.join(f'{name} = ?' for name in (*COLUMNS, 'digest'))} WHERE id = ?"
_INDEX = f"INSERT INTO papers_fts (rowid, {', '.join(TEXTS)}) VALUES (?{', ?' * len(TEXTS)})"
_UNINDEX = f"INSERT INTO papers_fts (papers_fts, rowid, {', '.join(TEXTS)}) VALUES ('delete', ?{', ?' * len(TEXTS)})"
_OURS = ("title", "title_key", "kind", "core", "sentence", "rooms", "names", "shipped")
_FIRST = ("arxiv", "doi", "url", "year", "date", "kind", "sentence", "rooms", "names")  # the first value stays
_TEXTUAL = ("title", "sentence", "abstract", "kind")  # what topics are found by
ADDED, MERGED, SAME = "added", "merged", "unchanged"


@dataclass(frozen=True)
class Put:
    """What became of a record: the paper's number and slug, added, merged or unchanged, and why it was that paper."""

    paper: int
    slug: str
    outcome: str
    why: str = ""  # the arXiv id, the DOI, the title
    joined: tuple[str, ...] = ()  # slugs of papers that turned out to be the same one


def apply_import(connection: sqlite3.Connection, event: Event) -> list[Put]:
    """Take in `facts["papers"]` (clean fields), one after the other.

    Raises:
        Unchanged: when no paper was added and none got anything new.
    """
    source = event.facts["source"]
    found = [put(connection, fields, at=event.at, source=source) for fields in event.facts["papers"]]
    outcomes = [each.outcome for each in found]
    if not {ADDED, MERGED} & set(outcomes):
        raise Unchanged(found)
    counts = [outcomes.count(name) for name in (ADDED, MERGED, SAME)]
    connection.execute(
        "INSERT INTO imports (seq, at, source, added, merged, unchanged, refused) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (event.seq, event.at, source, *counts, event.facts.get("refused", 0)),
    )
    return found


def put(connection: sqlite3.Connection, fields: Mapping[str, Any], *, at: str, source: str, shipped: bool = False) -> Put:
    """Add a record as a new paper, or merge it into the paper that it is.

    Args:
        fields: as :func:`orrery.catalogue.record.clean` returns them.
        at: ISO second of UTC, the moment it enters the store.
    """
    new = _row(fields, at, source, shipped)
    matches = _matches(connection, new)
    if not matches:
        new["slug"] = free_slug(connection, fields.get("slug") or keys.slug(new["title"]))
        cursor = connection.execute(_INSERT, (*(new[name] for name in COLUMNS), digest(new)))
        number = int(cursor.lastrowid or 0)
        connection.execute(_INDEX, (number, *(new[name] for name in TEXTS)))
        _assign_topics(connection, number, new, fresh=True)
        return Put(number, new["slug"], ADDED)
    (paper, why), *others = matches
    joined = []
    for other, _ in others:
        gone = _join(connection, other["id"], paper["id"])
        joined.append(gone["slug"])
        paper = _load(connection, paper["id"])
        _store(connection, paper, _merged(paper, gone))
        paper = _load(connection, paper["id"])
    changed = _merged(paper, new)
    if shipped and fields.get("slug") and fields["slug"] != paper["slug"]:
        changed["slug"] = _rename(connection, paper["id"], paper["slug"], fields["slug"])
    stored = _store(connection, paper, changed)
    return Put(paper["id"], changed["slug"], MERGED if stored or joined else SAME, why, tuple(joined))


def paper_id(connection: sqlite3.Connection, key: str) -> int:
    """The number of the paper that a slug (also a former one), an arXiv id, a DOI or an address of either names.

    Raises:
        UnknownNameError: with the slugs that are near.
    """
    text = key.strip() if isinstance(key, str) else ""
    for table, column in (("papers", "slug"), ("aliases", "slug")):
        number = "id" if table == "papers" else "paper"
        found = connection.execute(f"SELECT {number} FROM {table} WHERE {column} = ?", (text,)).fetchone()
        if found:
            return int(found[0])
    for column, value in (("arxiv", keys.arxiv_id(text)), ("doi", keys.doi(text))):
        if column == "doi" and value and (of_arxiv := keys.arxiv_of_doi(value)):
            column, value = "arxiv", of_arxiv
        found = connection.execute(f"SELECT id FROM papers WHERE {column} = ?", (value,)).fetchone() if value else None
        if found:
            return int(found[0])
    raise UnknownNameError(f"no paper '{text[:80]}' in this store.{suggest(text, _near(connection, text))}")


def _near(connection: sqlite3.Connection, text: str) -> list[str]:
    """Slugs that may have been meant: those that begin alike or, there being none, the first ones."""
    start = keys.slug(text)[:2] if text else ""
    query = "SELECT slug FROM papers WHERE slug >= ? AND slug < ? ORDER BY slug LIMIT 2000"
    near = [row[0] for row in connection.execute(query, (start, start + "{"))]
    return near or [row[0] for row in connection.execute("SELECT slug FROM papers ORDER BY id LIMIT 500")]


def free_slug(connection: sqlite3.Connection, wanted: str) -> str:
    """`wanted`, or `wanted-2`, `wanted-3` ... when other papers have it or had it."""
    slug, number = wanted, 1
    query = "SELECT EXISTS (SELECT 1 FROM papers WHERE slug = :slug) OR EXISTS (SELECT 1 FROM aliases WHERE slug = :slug)"
    while connection.execute(query, {"slug": slug}).fetchone()[0]:
        number += 1
        slug = f"{wanted}-{number}"
    return slug


def _row(fields: Mapping[str, Any], at: str, source: str, shipped: bool) -> dict[str, Any]:
    """All columns of a record."""
    try:
        title = fields["title"]
    except KeyError:
        raise DataError("a record without a title cannot be stored") from None
    row: dict[str, Any] = {name: fields.get(name) for name in ("arxiv", "doi", "url", "year", "date", "kind")}
    row |= {"slug": None, "title": title, "title_key": keys.title_key(title), "source": source, "added": at}
    row |= {"sentence": fields.get("sentence", ""), "abstract": fields.get("abstract", "")}
    row |= {"authors": "\n".join(fields.get("authors", ())), "upvotes": fields.get("upvotes", 0)}
    row |= {name: " ".join(fields.get(name, ())) for name in ("rooms", "names")}
    row |= {"core": int(fields.get("core", False)), "curated": int(fields.get("curated", False)), "shipped": int(shipped)}
    return row


def _matches(connection: sqlite3.Connection, new: Mapping[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Papers that a record is, the one to keep first, each with the reason."""
    found: dict[int, tuple[dict[str, Any], str]] = {}
    for column, why in (("arxiv", "the arXiv id"), ("doi", "the DOI")):
        if new[column]:
            for row in connection.execute(f"SELECT * FROM papers WHERE {column} = ?", (new[column],)):
                found.setdefault(row["id"], (dict(row), why))
    if new["title_key"]:
        for row in connection.execute("SELECT * FROM papers WHERE title_key = ? ORDER BY id", (new["title_key"],)):
            if not any(_differ(row, other) for other in (new, *(paper for paper, _ in found.values()))):
                found.setdefault(row["id"], (dict(row), "the title"))
    first = list(found.values())
    return first if len(first) < 2 else sorted(first, key=lambda match: (-match[0]["shipped"], match[0]["id"]))


def _differ(one: Mapping[str, Any] | sqlite3.Row, other: Mapping[str, Any]) -> bool:
    """Whether two records of one title carry different ids of the same sort."""
    if one["arxiv"] and other["arxiv"]:
        return bool(one["arxiv"] != other["arxiv"])
    return bool(one["doi"] and other["doi"] and one["doi"] != other["doi"])


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of `old` after it has met `new`."""
    row = {name: old[name] for name in COLUMNS}
    for name in _FIRST:
        row[name] = old[name] or new[name]
    if len(new["abstract"]) > len(old["abstract"]):
        row["abstract"] = new["abstract"]
    if _people(new["authors"]) > _people(old["authors"]):
        row["authors"] = new["authors"]
    row["upvotes"] = max(old["upvotes"], new["upvotes"])
    for name in ("core", "curated", "shipped"):
        row[name] = max(old[name], new[name])
    if new["shipped"]:
        row |= {name: new[name] for name in _OURS}
        row |= {name: new[name] for name in ("arxiv", "doi", "year") if new[name]}
    row["source"] = old["source"] if old["shipped"] or not new["shipped"] else new["source"]
    return row


def _people(authors: str) -> tuple[int, int]:
    return (authors.count("\n") + 1 if authors else 0, len(authors))


def _store(connection: sqlite3.Connection, old: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Write a paper's changed columns; whether there were any."""
    if all(old[name] == row[name] for name in COLUMNS):
        return False
    connection.execute(_UPDATE, (*(row[name] for name in COLUMNS), digest(row), old["id"]))
    if any(old[name] != row[name] for name in TEXTS):
        connection.execute(_UNINDEX, (old["id"], *(old[name] for name in TEXTS)))
        connection.execute(_INDEX, (old["id"], *(row[name] for name in TEXTS)))
    if any(old[name] != row[name] for name in _TEXTUAL):
        _assign_topics(connection, old["id"], row)
    return True


def _load(connection: sqlite3.Connection, number: int) -> dict[str, Any]:
    return dict(connection.execute("SELECT * FROM papers WHERE id = ?", (number,)).fetchone())


def _assign_topics(connection: sqlite3.Connection, number: int, row: Mapping[str, Any], fresh: bool = False) -> None:
    found = filing.assign(row["title"], row["sentence"], row["abstract"], row["kind"] or "")
    if not fresh:
        connection.execute("DELETE FROM paper_topics WHERE paper = ?", (number,))
    connection.executemany("INSERT INTO paper_topics (paper, topic) VALUES (?, ?)", [(number, topic) for topic in found])


def _rename(connection: sqlite3.Connection, number: int, old: str, wanted: str) -> str:
    """Give a paper the slug that it is shipped with; its former one still finds it."""
    slug = free_slug(connection, wanted)
    connection.execute("UPDATE papers SET slug = ? WHERE id = ?", (slug, number))  # so that the alias is free
    connection.execute("INSERT INTO aliases (slug, paper) VALUES (?, ?)", (old, number))
    return slug


def _join(connection: sqlite3.Connection, gone: int, kept: int) -> dict[str, Any]:
    """Move what hangs on paper `gone` to `kept` and delete it; its columns."""
    row = _load(connection, gone)
    for table in ("votes", "picks"):
        connection.execute(f"UPDATE OR IGNORE {table} SET paper = ? WHERE paper = ?", (kept, gone))
        connection.execute(f"DELETE FROM {table} WHERE paper = ?", (gone,))
    for table in ("submissions", "verdicts", "aliases"):
        connection.execute(f"UPDATE {table} SET paper = ? WHERE paper = ?", (kept, gone))
    connection.execute("DELETE FROM paper_topics WHERE paper = ?", (gone,))
    connection.execute(_UNINDEX, (gone, *(row[name] for name in TEXTS)))
    connection.execute("DELETE FROM papers WHERE id = ?", (gone,))
    connection.execute("INSERT INTO aliases (slug, paper) VALUES (?, ?)", (row["slug"], kept))
    connection.execute("UPDATE papers SET votes = (SELECT COUNT(*) FROM votes WHERE paper = ?) WHERE id = ?", (kept, kept))
    return row
