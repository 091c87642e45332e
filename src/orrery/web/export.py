"""The list as a folder of files: works opened from a disk and on any web host, with search and without a server.

The same templates as the server's, with links that are relative and name files, and without forms. Pages: today, every
day that has papers, the archive, every paper, every topic, trending, about, and a search page whose script looks through a
small index (words of titles, sentences and authors) and which is a plain listing of everything where no script runs.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orrery.catalogue import days, topics
from orrery.core import files
from orrery.core.errors import ConfigError
from orrery.core.progress import progress
from orrery.web import emblem
from orrery.web.rendering import ASSETS, MONTHS, Renderer, day_words, file, relative
from orrery.web.views import Card, Views, day_heading

if TYPE_CHECKING:
    from orrery.catalogue.record import Paper
    from orrery.catalogue.store import Store

MARKER = "orrery-export.json"  # tells a folder that we wrote, and may write again, from one that is somebody's
MOST_PAGES = 50  # of one topic
PER_PAGE = 30  # cards with their abstracts: 100 kB


def export(store: Store, folder: str | Path, *, at: dt.datetime | None = None, quiet: bool = False) -> list[Path]:
    """Write the site; the files written.

    Raises:
        ConfigError: the folder holds something else.
        StorageError: it cannot be written.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise ConfigError(f"'{target}' is a file; give a folder for the exported pages")
    if target.is_dir() and any(target.iterdir()) and not (target / MARKER).exists():
        raise ConfigError(f"'{target}' holds other files; give an empty or a new folder for the exported pages")
    return _Export(store, target, at or dt.datetime.now(dt.timezone.utc), quiet).write()


class _Export:
    def __init__(self, store: Store, target: Path, at: dt.datetime, quiet: bool) -> None:
        self.store, self.target, self.at, self.quiet = store, target, at, quiet
        self.here = "index.html"
        self.renderer = Renderer(self.link, static=True)
        self.views = Views(store, None, at)
        self.written: list[Path] = []
        self.slugs: set[str] = set()
        self.topics = self.views.topics()
        self.counts = self.views.counts()

    def link(self, path: str) -> str:
        """A link from the page being written."""
        path, hash_, fragment = path.partition("#")
        return relative(file_of(path) + hash_ + fragment, self.here)

    def write(self) -> list[Path]:
        listing = sorted(
            self.store.all(),
            key=lambda paper: (paper.date or str(paper.year or ""), paper.added, paper.slug),
            reverse=True,
        )
        listed = [(str(date), count) for date, count in days.archive(self.store)]
        total = len(listing) + len(listed) + len(self.topics) + 5
        self._put(
            MARKER,
            json.dumps({"format": 1, "papers": len(listing), "at": self.at.isoformat(timespec="seconds")}) + "\n",
        )
        with progress(total, "pages", unit="pages", quiet=self.quiet) as bar:
            for name in ASSETS:
                self._put(f"static/{name}", file("static", name))
            self._index(listing)
            self._days(listed, bar)
            self._topics(bar)
            cards: list[Card] = []
            for paper in listing:
                cards += (card := self.views.cards([paper]))
                more = {
                    "model": self.views.model(paper),
                    "related": self.views.related(paper.slug),
                    "description": paper.sentence,
                }
                self._page(f"/paper/{paper.slug}", "paper.html", c=card[0], exports=(), **more)
                bar.update(1)
            self._page(
                "/search",
                "search.html",
                query="",
                listing=cards,
                search_index=relative("static/index.js", "search.html"),
            )
            ranked = self.views.trending(PER_PAGE)
            lead = "By the votes of readers, recent ones counting most."
            self._page("/trending", "list.html", heading="Trending", lead=lead, papers=ranked, first=1)
            self._about()
            bar.update(3)
        return self.written

    def _days(self, listed: list[tuple[str, int]], bar: Any) -> None:
        months: dict[str, list[tuple[str, int]]] = {}
        for date, count in sorted(listed, reverse=True):
            months.setdefault(f"{MONTHS[int(date[5:7]) - 1]} {date[:4]}", []).append((date, count))
            self._day(f"/day/{date}", days.day(self.store, date), "Archive")
            bar.update(1)
        self._page("/archive", "archive.html", months=list(months.items()), lead=f"{len(listed):,} days with papers.")
        today = self.at.date().isoformat()
        found = days.today(self.store, self.at)
        self._day(
            "/",
            found,
            day_words(today),
            picks=self.views.picks(),
            trending=[card for card in self.views.trending(6) if card.votes],
            topics=self.topics[:10],
        )
        bar.update(2)

    def _day(self, path: str, found: Any, eyebrow: str, **more: Any) -> None:
        date, many = str(found.date), len(found.papers)
        self._pages(
            path, "home.html", found.papers, eyebrow=eyebrow, heading=day_heading(date, "") if path != "/" else "Daily papers",
            lead=f"{many:,} paper{'' if many == 1 else 's'} came in on {day_words(date)}." if many else "", date=date, is_today=path == "/",
            previous=found.previous, next=found.next, planets=_planets(date), **more,
        )  # fmt: skip

    def _pages(self, path: str, template: str, papers: Sequence[Paper], **context: Any) -> None:
        """A list of papers as as many pages as it takes; those behind the first are called `-2`, `-3` ..."""
        of = max(1, -(-len(papers) // PER_PAGE))
        names = [path, *(f"{'/today' if path == '/' else path}-{number}" for number in range(2, of + 1))]
        for number, name in enumerate(names, 1):
            self.here = file_of(name)
            near = {"previous": names[number - 2] if number > 1 else None, "next": names[number] if number < of else None}
            links = {which: self.link(where) if where else None for which, where in near.items()}
            shown = self.views.cards(papers[(number - 1) * PER_PAGE : number * PER_PAGE])
            self._page(name, template, papers=shown, pages={"number": number, "of": of, **links} if of > 1 else None, **context)

    def _topics(self, bar: Any) -> None:
        for one in self.topics:
            found = topics.topic(self.store, one.slug, limit=PER_PAGE * MOST_PAGES)
            series = [(year.year, year.count) for year in found.by_year][-24:]
            lead = f"{one.count:,} paper{'' if one.count == 1 else 's'}, newest first."
            shown = {"series": series if len(series) > 1 else []}
            self._pages(f"/topic/{one.slug}", "list.html", found.papers, eyebrow="Topic", heading=one.title, lead=lead, **shown)
            bar.update(1)
        listed, span = self.views.topic_list()
        self._page("/topics", "topics.html", topics=listed, span=span)

    def _about(self) -> None:
        from orrery.web.words import ranking

        self._page("/about", "about.html", **ranking())

    def _index(self, listing: list[Any]) -> None:
        rows = [
            [paper.slug, paper.title, " ".join([paper.sentence, *paper.authors[:20], *paper.names])]
            for paper in listing
        ]
        text = json.dumps(rows, ensure_ascii=True, separators=(",", ":"))
        self._put("static/index.js", f"window.ORRERY_INDEX = {text};\n")

    def _page(self, path: str, template: str, **context: Any) -> None:
        self.here = file_of(path)
        common = {"here": path, "address": path, "counts": self.counts}
        self._put(self.here, self.renderer.render(template, **{**common, **context}).decode())

    def _put(self, name: str, text: str) -> None:
        path = self.target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.written.append(files.write_text(path, text))


def file_of(path: str) -> str:
    """The file that stands for a path of the server."""
    if path == "/":
        return "index.html"
    if path.startswith("/static/"):
        return path[1:]
    return path[1:] + ".html"  # slugs and days are letters, digits and hyphens


def _planets(date: str) -> Any:
    from markupsafe import Markup

    return Markup(emblem.draw(dt.date.fromisoformat(date)))
