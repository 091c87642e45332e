"""What is read: today, a day, the archive, search, a paper, topics, trending, about."""

from __future__ import annotations

import datetime as dt
from typing import Any
from urllib.parse import urlencode

from starlette.responses import RedirectResponse, Response

from orrery.catalogue import days, record, search, status, topics
from orrery.core.errors import UnknownNameError
from orrery.web import emblem, words
from orrery.web.errors import Refusal
from orrery.web.rendering import MONTHS, day_words
from orrery.web.site import Ask, Site
from orrery.web.views import EXPORTS, day_heading

PER_PAGE = 20
MOST_PAGES = 50
FILTERS = ("kind", "year", "status", "room", "topic")


def add(app: Any, site: Site) -> None:
    """Put the routes of this file into the application."""
    for path, handler in (
        ("/", today),
        ("/day/{date}", day),
        ("/archive", archive),
        ("/new", fresh),
        ("/trending", trending),
        ("/search", find),
        ("/topics", all_topics),
        ("/topic/{slug}", topic),
        ("/about", about),
        ("/paper/{slug}", paper),
    ):
        app.add_route(path, site.page(handler), methods=["GET"], include_in_schema=False)


def today(ask: Ask) -> bytes:
    """The newest day that has papers."""
    found = days.today(ask.store, ask.at)
    return _day(ask, found, ask.at.date().isoformat()) if found.papers else _list(ask)


def _list(ask: Ask) -> bytes:
    """A list in which no paper has a day yet: the papers that ship, most voted and newest first."""
    number, date = ask.number("page", 1, MOST_PAGES, 1), ask.at.date()
    count = ask.views.counts()["papers"]
    return ask.render(
        "home.html",
        eyebrow=day_words(date),
        heading="The reading list",
        fresh=_fresh(ask),
        lead=f"{_papers(count)} on language models, with their working models. What is imported or submitted will stand here by its day.",
        date=date.isoformat(),
        is_today=True,
        previous=None,
        next=None,
        papers=ask.views.trending(PER_PAGE, (number - 1) * PER_PAGE),
        pages=_pages(ask, number, -(-count // PER_PAGE)),
        planets=_planets(date),
        picks=ask.views.picks(),
        topics=ask.views.topics()[:10],
    )


def day(ask: Ask) -> bytes:
    """One day of the archive."""
    given = ask.request.path_params["date"]
    try:
        date = dt.date.fromisoformat(given)
    except ValueError:
        date = None
    if date is None or date.isoformat() != given:
        raise Refusal(404, "A day is written 2026-11-22.")
    return _day(ask, days.day(ask.store, date.isoformat()), ask.at.date().isoformat())


def _day(ask: Ask, found: Any, now: str) -> bytes:
    date = str(found.date)
    front = ask.request.url.path == "/"
    number = ask.number("page", 1, MOST_PAGES, 1)
    shown = found.papers[(number - 1) * PER_PAGE : number * PER_PAGE]
    many = len(found.papers)
    heading = "Daily papers" if front and date != now else day_heading(date, now)
    if front:
        lead = f"{_papers(many)} came in" + ("" if date == now else f" on {day_words(date)}, the newest day") + "."
    else:
        lead = f"{_papers(many)} came in on this day."
    return ask.render(
        "home.html",
        eyebrow=day_words(now) if front else "Archive",
        heading=heading,
        lead=lead if many else "",
        fresh=_fresh(ask, many) if front else "",
        date=date,
        is_today=front,
        previous=found.previous,
        next=found.next,
        papers=ask.views.cards(shown),
        pages=_pages(ask, number, -(-many // PER_PAGE)),
        planets=_planets(ask.at.date() if front else dt.date.fromisoformat(date)),
        picks=ask.views.picks() if front else None,
        trending=[card for card in ask.views.trending(6) if card.votes] if front else [],
        topics=ask.views.topics()[:10] if front else [],
    )


def _papers(number: int) -> str:
    return f"{number:,} paper{'' if number == 1 else 's'}"


def _planets(date: dt.date) -> Any:
    from markupsafe import Markup

    return Markup(emblem.draw(date))  # made of numbers alone


def archive(ask: Ask) -> bytes:
    """Every day that has papers, by month, newest first."""
    listed = days.archive(ask.store)
    months: dict[str, list[tuple[str, int]]] = {}
    for date, count in sorted(((str(date), count) for date, count in listed), reverse=True):
        months.setdefault(f"{MONTHS[int(date[5:7]) - 1]} {date[:4]}", []).append((date, count))
    number, per = ask.number("page", 1, MOST_PAGES, 1), 24
    shown = list(months.items())[(number - 1) * per : number * per]
    lead = f"{len(listed):,} day{'' if len(listed) == 1 else 's'} with papers."
    return ask.render("archive.html", months=shown, lead=lead, pages=_pages(ask, number, -(-len(months) // per)))


def _fresh(ask: Ask, shown: int = 0) -> str:
    """How many papers are NEW to this reader, and since when; nothing when none is, or only the day's own, `shown` ones."""
    count = ask.views.new(0)[1]
    count = 0 if count == shown else count
    return f"{count:,} new paper{'' if count == 1 else 's'} {ask.views.since()}" if count else ""


def fresh(ask: Ask) -> bytes:
    """What is NEW to this reader, whatever its day."""
    number = ask.number("page", 1, MOST_PAGES, 1)
    cards, count = ask.views.new(PER_PAGE, (number - 1) * PER_PAGE)
    return ask.render(
        "list.html",
        heading="New",
        lead=f"{_papers(count)} {ask.views.since()}." if count else "",
        papers=cards,
        nothing=f"Nothing new {ask.views.since()}.",
        pages=_pages(ask, number, -(-count // PER_PAGE)),
    )


def trending(ask: Ask) -> bytes:
    """By votes with decay."""
    number = ask.number("page", 1, MOST_PAGES, 1)
    first = (number - 1) * PER_PAGE
    cards = ask.views.trending(PER_PAGE + 1, first)
    return ask.render(
        "list.html",
        heading="Trending",
        lead="By the votes of readers, recent ones counting most.",
        papers=cards[:PER_PAGE],
        first=first + 1,
        nothing="Nobody has voted yet. The first vote is yours.",
        pages=_pages(ask, number, number + (len(cards) > PER_PAGE)),
    )


def find(ask: Ask) -> bytes:
    """Search, with filters."""
    query = ask.text("q")
    chosen = {name: ask.text(name, 80) for name in FILTERS}
    year = (
        int(chosen["year"])
        if chosen["year"].isascii() and chosen["year"].isdigit() and len(chosen["year"]) == 4
        else None
    )
    asked = bool(query or any(chosen.values()))
    number = ask.number("page", 1, MOST_PAGES, 1)
    context: dict[str, Any] = {"query": query, "chosen": chosen, "asked": asked, "filters": _filters(ask)}
    if asked:
        only = {name: value or None for name, value in chosen.items()}
        try:
            found = search.search(
                ask.store, query, limit=PER_PAGE, offset=(number - 1) * PER_PAGE, year=year,
                kind=only["kind"], status=only["status"], room=only["room"], topic=only["topic"],
            )  # fmt: skip
        except UnknownNameError:  # a filter that nothing has
            return ask.render("search.html", **context, result_line="No paper.")
        marks = {hit.paper.slug: hit.highlights for hit in found.hits}
        line = f"{_papers(found.total)} in {max(1, round(found.seconds * 1000))} ms."
        context |= {
            "papers": ask.views.cards((hit.paper for hit in found.hits), marks),
            "result_line": line,
            "suggestion": found.suggestion,
            "suggestion_link": f"/search?{urlencode({'q': found.suggestion or ''})}",
            "pages": _pages(ask, number, min(MOST_PAGES, -(-found.total // PER_PAGE))),
        }
    return ask.render("search.html", **context)


def _filters(ask: Ask) -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    years = [(str(year), str(year)) for year in ask.views.years()]
    listed = sorted(((one.slug, one.title) for one in ask.views.topics()), key=lambda pair: pair[1])
    return [
        ("kind", "Kind", "Every kind", [(kind, kind) for kind in record.KINDS]),
        ("status", "Status", "Every status", [(state, state) for state in status.STATES]),
        ("year", "Year", "Every year", years),
        ("topic", "Topic", "Every topic", listed),
    ]


def all_topics(ask: Ask) -> bytes:
    """Topics with their course over the years."""
    listed, span = ask.views.topic_list()
    return ask.render("topics.html", topics=listed, span=span)


def topic(ask: Ask) -> bytes:
    """One topic: its papers, newest first, and how many each year."""
    number = ask.number("page", 1, MOST_PAGES, 1)
    found = topics.topic(ask.store, ask.request.path_params["slug"], limit=PER_PAGE, offset=(number - 1) * PER_PAGE)
    return ask.render(
        "list.html",
        eyebrow="Topic",
        heading=found.topic.title,
        lead=f"{_papers(found.topic.count)}, newest first.",
        series=[(year.year, year.count) for year in found.by_year][-24:] if len(found.by_year) > 1 else [],
        papers=ask.views.cards(found.papers),
        pages=_pages(ask, number, -(-found.topic.count // PER_PAGE)),
    )


def paper(ask: Ask) -> bytes | Response:
    """One paper; other names of it (arXiv id, an old slug) lead to it."""
    given = ask.request.path_params["slug"]
    found = ask.store.paper(given)
    if found.slug != given:
        return RedirectResponse(f"/paper/{found.slug}", 307)
    return ask.render(
        "paper.html",
        c=ask.views.cards([found])[0],
        description=found.sentence,
        model=ask.views.model(found),
        related=ask.views.related(found.slug),
        exports=EXPORTS,
    )


def about(ask: Ask) -> bytes:
    """Sources, and how things are ranked."""
    return ask.render("about.html", **words.ranking())


def _pages(ask: Ask, number: int, of: int) -> dict[str, Any] | None:
    """Links to the neighbours of a page."""
    if of <= 1:
        return None
    rest = [(name, value) for name, value in ask.request.query_params.multi_items() if name != "page" and value][:12]

    def to(page: int) -> str:
        question = urlencode([*rest, ("page", page)] if page > 1 else rest)
        return ask.request.url.path + (f"?{question}" if question else "")

    of = min(of, MOST_PAGES)
    return {
        "number": number,
        "of": of,
        "previous": to(number - 1) if number > 1 else None,
        "next": to(number + 1) if number < of else None,
    }
