"""What a page shows of a paper, a topic, a day: facts of the catalogue in the words of a page. Shared with the export."""

from __future__ import annotations

import datetime as dt
import functools
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orrery.catalogue import commands, community, content, days, search, status, topics, trending
from orrery.core import registry
from orrery.web.rendering import day_words

if TYPE_CHECKING:
    from orrery.catalogue.record import Paper
    from orrery.catalogue.store import Store

SHOWN_AUTHORS = 6
TONES = {"working model": "working", "part": "part", "planned": "planned"}
EXPORTS = (("BibTeX", "bib"), ("CSL-JSON", "csl.json"), ("CITATION.cff", "cff"), ("JSON", "json"))


@dataclass(frozen=True)
class Card:
    """One paper as cards and pages show it."""

    slug: str
    title: str
    kind: str
    when: str
    published: str
    state: str
    tone: str
    verdict: str
    sentence: str
    abstract: str
    authors: tuple[str, ...]
    byline: str
    command: str
    votes: int
    upvotes: int
    voted: bool
    new: bool
    picked: str | bool  # by whom; True: picked where it was imported from
    mine: bool  # picked by this reader
    source: str
    topics: list[dict[str, str]]
    links: list[tuple[str, str]]
    marks: Mapping[str, list[tuple[str, bool]]] = field(default_factory=dict)


class Views:
    """Builds what pages show, for one reader at one moment.

    Args:
        reader: whose votes are marked; None: nobody's.
        at: now.
        runs: the folder of runs whose dates count as measurements.
        seen: when this reader last looked; None: what came in the last days is NEW.
    """

    def __init__(
        self, store: Store, reader: int | None, at: dt.datetime, runs: str = "runs", seen: str | None = None
    ) -> None:
        self.store, self.reader, self.at, self.runs, self.seen = store, reader, at, runs, seen

    def cards(self, papers: Iterable[Paper], marks: Mapping[str, Any] | None = None) -> list[Card]:
        """Papers as cards; the reader's votes and the verdicts are asked for once."""
        found = list(papers)
        voted = (
            community.voted(self.store, self.reader, [paper.slug for paper in found])
            if self.reader and found
            else set()
        )
        states = status.of_all(found, self.store, self.runs)
        picks = community.picks(self.store, [paper.slug for paper in found]) if found else {}
        return [
            self._card(paper, state, paper.slug in voted, picks.get(paper.slug, {}), (marks or {}).get(paper.slug, {}))
            for paper, state in zip(found, states, strict=True)
        ]

    def _card(
        self, paper: Paper, state: status.Status, voted: bool, picked: Mapping[int, str], marks: Mapping[str, Any]
    ) -> Card:
        return Card(
            slug=paper.slug,
            title=paper.title,
            kind=paper.kind or "",
            when=str(paper.year or ""),
            published=paper.date or "",
            state=state.state,
            tone=TONES.get(state.state, "none"),
            verdict=state.verdict or "",
            sentence=paper.sentence,
            abstract=paper.abstract,
            authors=paper.authors,
            byline=byline(paper.authors),
            command=command(state.names[0]) if state.names else "",
            votes=paper.votes,
            upvotes=paper.upvotes,
            voted=voted,
            new=days.is_new(paper, self.at, self.seen),
            picked=" and ".join(picked.values()) or (paper.curated and not paper.shipped),
            mine=self.reader in picked,
            source="" if paper.shipped else paper.source,
            topics=[{"slug": slug, "title": topics.titles().get(slug, slug)} for slug in paper.topics],
            links=links(paper),
            marks=marks,
        )

    def counts(self) -> dict[str, int]:
        """Numbers that every page's foot tells; counted again only when the papers have changed."""
        return content.remembered(self.store, "web: counts", self._counts)

    def _counts(self, connection: sqlite3.Connection) -> dict[str, int]:
        every = connection.execute("SELECT COUNT(*) FROM papers").fetchone()[0]
        shipped = connection.execute("SELECT COUNT(*) FROM papers WHERE shipped").fetchone()[0]
        named = {paper for entry in registry.entries() if (paper := entry.paper)}
        marks = ", ".join("?" * len(named))
        ask = f"SELECT slug FROM papers WHERE (shipped AND names != '') OR arxiv IN ({marks})"
        some = self.store.papers([row["slug"] for row in connection.execute(ask, sorted(named))])
        working = sum(status.of(paper).state == "working model" for paper in some)
        return {"papers": every, "shipped": shipped, "working": working}

    def years(self) -> list[int]:
        """Years that papers have, newest first."""
        ask = "SELECT DISTINCT year FROM papers WHERE year IS NOT NULL ORDER BY year DESC LIMIT 80"
        return content.remembered(self.store, ask, lambda connection: [row["year"] for row in connection.execute(ask)])

    def courses(self) -> dict[str, dict[int, int]]:
        """Topic -> year -> number of papers, of all topics at once."""
        ask = "SELECT t.topic, p.year, COUNT(*) FROM paper_topics t JOIN papers p ON p.id = t.paper WHERE p.year IS NOT NULL GROUP BY 1, 2"

        def answer(connection: sqlite3.Connection) -> dict[str, dict[int, int]]:
            found: dict[str, dict[int, int]] = {}
            for topic, year, count in connection.execute(ask):
                found.setdefault(topic, {})[int(year)] = int(count)
            return found

        return content.remembered(self.store, ask, answer)

    def topic_list(self, most: int = 15) -> tuple[list[dict[str, Any]], str]:
        """Topics with their last `most` years, and those years in words."""
        courses = self.courses()
        every = [year for course in courses.values() for year in course]
        last = max(every, default=0)
        first = max(min(every, default=0), last - most + 1)
        span = range(first, last + 1) if every else range(0)
        listed = []
        for one in self.topics():
            series = [(year, courses.get(one.slug, {}).get(year, 0)) for year in span]
            listed.append({"slug": one.slug, "title": one.title, "count": one.count, "series": series})
        return listed, f"{first} to {last}" if every else "none known yet"

    def model(self, paper: Paper) -> dict[str, Any]:
        """The part of a paper's page that tells what of it exists here."""
        state = status.of(paper, store=self.store, runs=self.runs)
        rows = []
        for name in state.names:
            entry = _entry(name)
            rows.append({"name": name, "summary": entry.summary, "command": command(name)})
        titles = {"working model": "The working model", "part": "A part of it works here", "planned": "Not built yet"}
        words = {
            "working model": "It is registered here, built by name, and checked by the contract.",
            "part": "Its method is registered here; the whole of the paper is not.",
            "planned": "A working model of this paper is planned; nothing of it is registered yet.",
        }
        facts = [
            ("Parity", state.parity),
            ("Measured", state.measured),
            ("Verdict", state.verdict),
            ("Rooms", ", ".join(paper.rooms)),
        ]
        if paper.upvotes:
            facts.append(("Votes elsewhere", f"{paper.upvotes:,}, as imported"))
        return {
            "title": titles.get(state.state, "Nothing to build"),
            "words": words.get(state.state, "This paper is read, not built: it surveys, measures or argues."),
            "rows": rows if len(rows) > 1 else [],
            "facts": [(name, str(value)) for name, value in facts if value],
        }

    def new(self, limit: int, offset: int = 0) -> tuple[list[Card], int]:
        """Papers that are NEW to this reader, last entered first, and how many there are."""
        papers, count = days.new(self.store, self.at, self.seen, limit=limit, offset=offset)
        return self.cards(papers), count

    def picks(self, limit: int = 5) -> dict[str, Any] | None:
        """What curators picked last and who they are; None when nothing was picked."""
        cards = self.cards(community.latest_picks(self.store, limit))
        picked = community.picks(self.store, [card.slug for card in cards]) if cards else {}
        names = dict.fromkeys(name for who in picked.values() for name in who.values())
        return {"cards": cards, "by": f"by {', '.join(names)} and the community"} if cards else None

    def since(self) -> str:
        """Since when papers are NEW to this reader, in words."""
        return f"since you last looked, on {day_words(self.seen)}" if self.seen else f"in the last {days.NEW_DAYS} days"

    def related(self, slug: str, limit: int = 6) -> list[Card]:
        """Papers like this one, nearest first."""
        return self.cards(paper for paper, _ in search.related(self.store, slug, limit=limit))

    def trending(self, limit: int, offset: int = 0) -> list[Card]:
        """Papers by votes with decay."""
        return self.cards(paper for paper, _ in trending.trending(self.store, at=self.at, limit=limit, offset=offset))

    def topics(self) -> list[Any]:
        """Topics with the number of their papers, largest first."""
        return sorted(
            (topic for topic in topics.topics(self.store) if topic.count), key=lambda topic: (-topic.count, topic.title)
        )


def _entry(name: str) -> registry.Entry:
    """The entry of a registered name."""
    return _entries()[name]


@functools.cache
def _entries() -> dict[str, registry.Entry]:
    return {entry.name: entry for entry in registry.entries()}


command = functools.cache(commands.run)  # the line that runs a registered name


def byline(authors: tuple[str, ...]) -> str:
    """The first authors, and how many more."""
    shown = ", ".join(authors[:SHOWN_AUTHORS])
    rest = len(authors) - SHOWN_AUTHORS
    return f"{shown} and {rest} more" if rest > 0 else shown


def links(paper: Paper) -> list[tuple[str, str]]:
    """Where the paper can be read."""
    found = []
    if paper.arxiv:
        found += [
            (f"arXiv {paper.arxiv}", f"https://arxiv.org/abs/{paper.arxiv}"),
            ("PDF", f"https://arxiv.org/pdf/{paper.arxiv}"),
        ]
    if paper.doi:
        found.append(("DOI", f"https://doi.org/{paper.doi}"))
    if paper.url and paper.url.startswith(("https://", "http://")) and not found:
        found.append(("Source", paper.url))
    return found


def day_heading(date: str, today: str) -> str:
    """`Today`'s heading, or a day's."""
    return "Today’s papers" if date == today else f"Papers of {day_words(date)}"
