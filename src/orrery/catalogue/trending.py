"""What is trending: votes, each fading with its age.

    score(paper, at) = sum over its votes v of 2^(-(at - v) / HALF_LIFE)  +  ln(1 + upvotes) * 2^(-(at - published) / HALF_LIFE)

A vote of this store's readers counts one on the day it is given, half a week later a half with `HALF_LIFE` = 3.5 days, and so
on; the number of upvotes that came with an import has no times, so it counts by its logarithm (a hundred are 4.6 votes) from
the day of publication. More votes never rank lower, and of equal votes the later never rank lower. A vote or paper of the
future counts as one of now. Papers of equal score stand
by date, newest first; upvotes of a paper whose day is not known do not count.

Cost: every vote is read once; upvotes are read by date, newest first, until no older paper can reach the page any more.
"""

from __future__ import annotations

import heapq
import math
from datetime import date as Date
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from orrery.catalogue.days import hits_of

if TYPE_CHECKING:
    import sqlite3

    from orrery.catalogue.record import Paper
    from orrery.catalogue.store import Store

HALF_LIFE = 3.5  # days
MOST_UPVOTES = 53 * math.log(2)  # logarithm of the largest count that a record may have
_PIECE = 500


def fade(age: float) -> float:
    """What a vote of an age in days still counts, in (0, 1]; negative ages count as none."""
    return float(2.0 ** (-max(0.0, age) / HALF_LIFE))


def score(ages: list[float], upvotes: int = 0, published: float = 0.0) -> float:
    """The score of a paper whose votes have these ages in days, with imported upvotes and days since publication."""
    return math.fsum(fade(age) for age in ages) + math.log1p(upvotes) * fade(published)


def trending(store: Store, *, at: datetime, limit: int = 20, offset: int = 0) -> list[tuple[Paper, float]]:
    """A page of the papers with the highest scores at a moment, and those scores, best first."""
    at = at.replace(tzinfo=timezone.utc) if at.tzinfo is None else at.astimezone(timezone.utc)
    limit, offset = max(0, limit), max(0, offset)
    connection = store.connection()
    own = _votes(connection, at)
    scores = _with_upvotes(connection, at, own, limit + offset)
    page = _order(connection, scores, limit + offset)[offset : offset + limit]
    return [(paper, scores.get(number, 0.0)) for number, paper in hits_of(store, page)]


def _votes(connection: sqlite3.Connection, at: datetime) -> dict[int, float]:
    """Faded votes by paper."""
    now = connection.execute("SELECT julianday(?)", (at.strftime("%Y-%m-%dT%H:%M:%S"),)).fetchone()[0]
    totals: dict[int, float] = {}
    for number, moment in connection.execute("SELECT paper, julianday(at) FROM votes"):
        totals[number] = totals.get(number, 0.0) + fade(now - (moment or now))
    return totals


def _with_upvotes(connection: sqlite3.Connection, at: datetime, own: dict[int, float], wanted: int) -> dict[int, float]:
    """Adds upvotes to papers in order of date, until what is left cannot reach the `wanted` best."""
    scores = dict(own)
    if wanted == 0:
        return scores
    for number, date, upvotes in _dated(connection, list(own)):
        scores[number] += math.log1p(upvotes) * fade(_days(at, date))
    best = heapq.nlargest(wanted, scores.values())
    heapq.heapify(best)
    rows = connection.execute("SELECT id, date, upvotes FROM papers WHERE date IS NOT NULL ORDER BY date DESC")
    for row in rows:
        faded = fade(_days(at, row[1]))
        if len(best) >= wanted and MOST_UPVOTES * faded <= best[0]:
            break
        if row[0] in own or not row[2]:
            continue
        scores[row[0]] = math.log1p(row[2]) * faded
        if len(best) < wanted:
            heapq.heappush(best, scores[row[0]])
        else:
            heapq.heappushpop(best, scores[row[0]])
    return scores


def _dated(connection: sqlite3.Connection, numbers: list[int]) -> list[tuple[int, str, int]]:
    found = []
    for start in range(0, len(numbers), _PIECE):
        part = numbers[start : start + _PIECE]
        marks = ", ".join("?" * len(part))
        found += connection.execute(
            f"SELECT id, date, upvotes FROM papers WHERE date IS NOT NULL AND id IN ({marks})", part
        ).fetchall()
    return [(row[0], row[1], row[2]) for row in found]


def _days(at: datetime, date: str) -> float:
    return (at - datetime.fromisoformat(date).replace(tzinfo=timezone.utc)).total_seconds() / 86400


def _order(connection: sqlite3.Connection, scores: dict[int, float], wanted: int) -> list[int]:
    """Papers by score; of equal score, and where fewer than `wanted` have one, by date, newest first."""
    columns = "SELECT id, date, year FROM papers"
    numbers, rows = list(scores), []
    for start in range(0, len(numbers), _PIECE):
        part = numbers[start : start + _PIECE]
        rows += connection.execute(f"{columns} WHERE id IN ({', '.join('?' * len(part))})", part).fetchall()
    if len(numbers) < wanted:
        lacking = (wanted + len(numbers),)
        rows += connection.execute(
            f"{columns} WHERE date IS NOT NULL ORDER BY date DESC, id DESC LIMIT ?", lacking
        ).fetchall()
        rows += connection.execute(
            f"{columns} WHERE date IS NULL ORDER BY year DESC, id DESC LIMIT ?", lacking
        ).fetchall()
    days = {row[0]: _ordinal(row[1], row[2]) for row in rows}
    return sorted(days, key=lambda number: (-scores.get(number, 0.0), -days[number], -number))


def _ordinal(date: str | None, year: int | None) -> int:
    if date:
        return Date.fromisoformat(date).toordinal()
    return Date(year, 1, 1).toordinal() if year else 0
