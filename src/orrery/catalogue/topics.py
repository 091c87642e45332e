"""What the store holds of each topic: how many papers, which ones, and their trend over the years.

Topics and the rule that files a paper under them are in :mod:`orrery.catalogue.filing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orrery.catalogue import content
from orrery.catalogue.filing import BY_SLUG, RULES, check, titles

if TYPE_CHECKING:
    from orrery.catalogue.record import Paper
    from orrery.catalogue.store import Store

__all__ = ["Topic", "TopicPage", "Year", "check", "titles", "topic", "topics"]


@dataclass(frozen=True)
class Topic:
    """A topic and how many papers the store has of it."""

    slug: str
    title: str
    count: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able facts."""
        return {"slug": self.slug, "title": self.title, "count": self.count}


@dataclass(frozen=True)
class Year:
    """A year's papers of a topic, and what part they are of all papers of that year."""

    year: int
    count: int
    share: float


@dataclass(frozen=True)
class TopicPage:
    """A topic, its papers (newest first) and its trend."""

    topic: Topic
    papers: list[Paper]
    by_year: list[Year]


def topics(store: Store) -> list[Topic]:
    """Every topic of the closed list with its number of papers, in the list's order."""
    counts = _per_topic(store)
    return [Topic(rule.slug, rule.title, counts.get(rule.slug, 0)) for rule in RULES]


def topic(store: Store, slug: str, *, limit: int = 50, offset: int = 0) -> TopicPage:
    """One topic: its papers, newest first, and for every year how many and which share of that year's papers.

    Raises:
        UnknownNameError: with near names.
    """
    rule = BY_SLUG[check(slug)]
    connection = store.connection()
    rows = connection.execute(
        "SELECT p.slug FROM paper_topics t JOIN papers p ON p.id = t.paper WHERE t.topic = ?"
        " ORDER BY p.year DESC, p.date DESC, p.id DESC LIMIT ? OFFSET ?",
        (slug, limit, offset),
    )
    papers = store.papers([row["slug"] for row in rows])
    years = connection.execute(
        "SELECT p.year AS year, COUNT(*) AS papers FROM paper_topics t JOIN papers p ON p.id = t.paper"
        " WHERE t.topic = ? AND p.year IS NOT NULL GROUP BY p.year",
        (slug,),
    )
    counts = {int(row["year"]): int(row["papers"]) for row in years}
    return TopicPage(Topic(slug, rule.title, _per_topic(store).get(slug, 0)), papers, _trend(counts, _per_year(store)))


def _per_topic(store: Store) -> dict[str, int]:
    query = "SELECT topic, COUNT(*) FROM paper_topics GROUP BY topic"
    return content.remembered(
        store, query, lambda connection: {row[0]: int(row[1]) for row in connection.execute(query)}
    )


def _per_year(store: Store) -> dict[int, int]:
    query = "SELECT year, COUNT(*) FROM papers WHERE year IS NOT NULL GROUP BY year"
    return content.remembered(
        store, query, lambda connection: {int(row[0]): int(row[1]) for row in connection.execute(query)}
    )


def _trend(counts: dict[int, int], everything: dict[int, int]) -> list[Year]:
    """Every year from the topic's first to the store's last, years without a paper included."""
    if not counts:
        return []
    span = range(min(counts), max(everything) + 1)
    return [Year(year, counts.get(year, 0), counts.get(year, 0) / max(1, everything.get(year, 0))) for year in span]
