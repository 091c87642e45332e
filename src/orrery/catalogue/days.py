"""The papers by day: the feed of a day, the archive of all days, and what is new to a reader.

A paper's day is the day it was published where that is known, else the day it entered the store. The papers shipped with
orrery entered together when the store was made; that is no news, so they have a day only by their date, and are never NEW.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import date as Date
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from orrery.core.errors import ConfigError

if TYPE_CHECKING:
    from orrery.catalogue.record import Paper
    from orrery.catalogue.store import Store

_SECOND = "%Y-%m-%dT%H:%M:%SZ"  # as the store writes moments
NEW_DAYS = 2  # for readers of whom it is not known when they last looked
# The day as two disjoint sets, each read through its own index; a COALESCE of both would read the whole table.
_DATED = "date IS NOT NULL"
_ENTERED = "date IS NULL AND NOT shipped"


@dataclass(frozen=True)
class Day:
    """A day's papers, best voted first, and the days before and after it that have papers."""

    date: str
    papers: list[Paper]
    previous: str | None
    next: str | None


def hits_of(store: Store, numbers: list[int]) -> list[tuple[int, Paper]]:
    """Papers by their numbers in the store, in that order."""
    connection = store.connection()
    slugs: dict[int, str] = {}
    for start in range(0, len(numbers), 500):
        part = numbers[start : start + 500]
        rows = connection.execute(f"SELECT id, slug FROM papers WHERE id IN ({', '.join('?' * len(part))})", part)
        slugs.update({row[0]: row[1] for row in rows})
    papers = {paper.slug: paper for paper in store.papers([slugs[number] for number in numbers if number in slugs])}
    return [(number, papers[slugs[number]]) for number in numbers if slugs.get(number) in papers]


def day(store: Store, date: str | Date) -> Day:
    """The papers of a day; a day without papers is a day too.

    Raises:
        ConfigError: when `date` is no day.
    """
    wanted = _iso(date)
    after = _iso(Date.fromisoformat(wanted) + timedelta(days=1)) if wanted < "9999-12-31" else "9999-12-31T99"
    connection = store.connection()
    rows = connection.execute(
        f"SELECT id, votes, upvotes FROM papers WHERE {_DATED} AND date = :day"
        f" UNION ALL SELECT id, votes, upvotes FROM papers WHERE {_ENTERED} AND added >= :day AND added < :after",
        {"day": wanted, "after": after},
    ).fetchall()
    order = sorted(rows, key=lambda row: (-row["votes"], -row["upvotes"], row["id"]))
    papers = [paper for _, paper in hits_of(store, [row["id"] for row in order])]
    return Day(
        wanted, papers, _neighbour(connection, wanted, earlier=True), _neighbour(connection, after, earlier=False)
    )


def _iso(date: str | Date) -> str:
    try:
        return (date if isinstance(date, Date) else Date.fromisoformat(date)).isoformat()[:10]
    except (ValueError, TypeError):
        raise ConfigError(f"'{date}' is not a day of the form 2024-05-31") from None


def _neighbour(connection: sqlite3.Connection, limit: str, *, earlier: bool) -> str | None:
    """The last day with papers before `limit`, or the first at or after it."""
    pick, side = ("MAX", "<") if earlier else ("MIN", ">=")
    found = [
        connection.execute(f"SELECT {pick}(date) FROM papers WHERE {_DATED} AND date {side} ?", (limit,)).fetchone()[0],
        connection.execute(
            f"SELECT {pick}(added) FROM papers WHERE {_ENTERED} AND added {side} ?", (limit,)
        ).fetchone()[0],
    ]
    days = [text[:10] for text in found if text]
    return (max(days) if earlier else min(days)) if days else None


def today(store: Store, at: datetime) -> Day:
    """The day of a moment; when it has no papers, the last day before it that has, so that the first page is never empty.

    A store without any dated paper gives the (empty) day itself.
    """
    wanted = _utc(at).date().isoformat()
    found = day(store, wanted)
    if found.papers or found.previous is None:
        return found
    return day(store, found.previous)


def archive(store: Store) -> list[tuple[str, int]]:
    """Every day that has papers, newest first, with how many."""
    rows = store.connection().execute(
        f"SELECT day, SUM(papers) FROM (SELECT date AS day, COUNT(*) AS papers FROM papers WHERE {_DATED} GROUP BY date"
        f" UNION ALL SELECT substr(added, 1, 10), COUNT(*) FROM papers WHERE {_ENTERED} GROUP BY substr(added, 1, 10))"
        " GROUP BY day ORDER BY day DESC"
    )
    return [(row[0], int(row[1])) for row in rows]


def new(store: Store, at: datetime, seen: datetime | str | None = None, *, limit: int = 20, offset: int = 0) -> tuple[list[Paper], int]:
    """A page of the papers that are NEW to a reader, last entered first, and how many there are; see :func:`is_new`."""
    since = (_utc(at) - timedelta(days=NEW_DAYS)).strftime(_SECOND) if seen is None else _moment(seen).strftime(_SECOND)
    connection = store.connection()
    where = "FROM papers WHERE added >= ? AND NOT shipped"
    count = int(connection.execute(f"SELECT COUNT(*) {where}", (since,)).fetchone()[0])
    rows = connection.execute(f"SELECT id {where} ORDER BY added DESC, id DESC LIMIT ? OFFSET ?", (since, limit, offset))
    return [paper for _, paper in hits_of(store, [row[0] for row in rows])], count


def is_new(paper: Paper, at: datetime, seen: datetime | str | None = None) -> bool:
    """Whether a paper entered since a reader last looked (`seen`, that second included: a paper is rather shown as NEW twice
    than never), or in the last `NEW_DAYS` days when that is not known."""
    if paper.shipped or not paper.added:
        return False
    added = datetime.fromisoformat(paper.added.replace("Z", "+00:00"))
    now = _utc(at)
    if seen is None:
        return now - timedelta(days=NEW_DAYS) <= added
    return added >= _moment(seen).replace(microsecond=0)


def _moment(seen: datetime | str) -> datetime:
    return _utc(datetime.fromisoformat(seen.replace("Z", "+00:00")) if isinstance(seen, str) else seen)


def _utc(at: datetime) -> datetime:
    return at.replace(tzinfo=timezone.utc) if at.tzinfo is None else at.astimezone(timezone.utc)
