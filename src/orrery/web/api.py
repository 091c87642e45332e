"""The JSON API under /api/v1, described by OpenAPI, and a plain page that shows it (the usual ones load from elsewhere).

Errors are `{"error": sentence}`. A change needs `Authorization: Bearer KEY`, or the reader's cookie (on this machine:
nothing) together with the header `X-Orrery`, which no form of another site can send.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from orrery.catalogue import community, days, record, search, status, topics, trending
from orrery.core.errors import DataError, UnknownNameError
from orrery.web.errors import Refusal
from orrery.web.site import Ask, Site

PREFIX = "/api/v1"
Kind = Literal[record.KINDS]  # type: ignore[valid-type]
State = Literal[status.STATES]  # type: ignore[valid-type]
Limit = Annotated[int, Query(ge=1, le=100, description="At most so many.")]
Offset = Annotated[int, Query(ge=0, le=10_000, description="Leave out so many first.")]
Slug = Annotated[str, Path(min_length=1, max_length=200, description="A slug, an arXiv id, or a DOI.")]
ISO = r"^\d{4}-\d{2}-\d{2}$"


class Wrong(BaseModel):
    """What was wrong, in a sentence."""

    error: str


class Status(BaseModel):
    """What of a paper exists here: computed, never typed."""

    state: str
    names: list[str]
    parity: str | None = None
    measured: str | None = None
    verdict: str | None = None


class PaperOut(BaseModel):
    """A paper."""

    slug: str
    title: str
    arxiv: str | None
    doi: str | None
    url: str | None
    year: int | None
    date: str | None
    kind: str | None
    core: bool
    sentence: str
    abstract: str
    authors: list[str]
    rooms: list[str]
    names: list[str]
    topics: list[str]
    upvotes: int = Field(description="As imported from elsewhere.")
    votes: int = Field(description="Of this list's readers.")
    curated: bool
    source: str
    added: str
    shipped: bool
    status: Status
    score: float | None = None


class Listed(BaseModel):
    """Papers in order."""

    papers: list[PaperOut]


class FoundOut(Listed):
    """An answer of the search, best first."""

    total: int
    suggestion: str | None
    seconds: float


class DayOut(Listed):
    """A day with its neighbours that have papers."""

    date: str
    previous: str | None
    next: str | None


class Counted(BaseModel):
    """A day of the archive."""

    date: str
    count: int


class TopicOut(BaseModel):
    """A topic."""

    slug: str
    title: str
    count: int


class YearOut(BaseModel):
    """How many papers of a topic a year has, and which share of that year's."""

    year: int
    papers: int
    share: float


class TopicPageOut(Listed):
    """A topic's papers, newest first, and its course."""

    topic: TopicOut
    by_year: list[YearOut]


class Voted(BaseModel):
    """A paper's votes after a change."""

    slug: str
    votes: int
    voted: bool


class Stats(BaseModel):
    """Numbers of the store."""

    papers: int
    shipped: int
    working: int


class SubmissionIn(BaseModel):
    """A paper put forward: `text` (an arXiv id, its address, or BibTeX), or a title with a place to read it."""

    model_config = ConfigDict(extra="forbid")
    text: str = Field(default="", max_length=60_000)
    title: str = Field(default="", max_length=1000)
    arxiv: str = Field(default="", max_length=100)
    doi: str = Field(default="", max_length=200)
    url: str = Field(default="", max_length=2000)
    year: int | None = Field(default=None, ge=1800, le=2100)
    abstract: str = Field(default="", max_length=20_000)
    authors: list[str] = Field(default_factory=list, max_length=500)


class SubmissionOut(BaseModel):
    """What became of it: `waiting`, `accepted` (then `paper` is its slug) or `declined`."""

    id: int
    state: str
    note: str
    paper: str | None


_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Wrong, "description": "Not understood"},
    401: {"model": Wrong, "description": "Sign in or send a token"},
    404: {"model": Wrong, "description": "No such thing"},
    422: {"model": Wrong, "description": "A parameter is wrong"},
    503: {"model": Wrong, "description": "Busy; see Retry-After"},
}
_CHANGES: dict[int | str, dict[str, Any]] = {
    403: {"model": Wrong, "description": "Not allowed, or neither key nor X-Orrery was sent"},
    413: {"model": Wrong, "description": "Too large"},
    429: {"model": Wrong, "description": "Too many; see Retry-After"},
}
router = APIRouter(prefix=PREFIX, responses=_ERRORS)


def add(app: Any, site: Site) -> None:
    """Put the API and its page into the application."""
    app.include_router(router)
    app.add_route("/api", site.page(page, keep=False), methods=["GET"], include_in_schema=False)


def _ask(request: Request) -> Ask:
    site: Site = request.app.state.site
    return Ask(site, request, site.visit(request))


def _outs(ask: Ask, papers: Sequence[record.Paper], scores: Sequence[float | None] = ()) -> list[PaperOut]:
    """Papers as the API gives them; their verdicts are asked for once."""
    states = status.of_all(papers, ask.store, str(ask.settings.runs))
    scored = scores or [None] * len(papers)
    return [
        PaperOut(**paper.to_dict(), score=score, status=Status(**state.to_dict()))
        for paper, state, score in zip(papers, states, scored, strict=True)
    ]


def _scored(ask: Ask, found: Sequence[tuple[record.Paper, float]]) -> Listed:
    return Listed(papers=_outs(ask, [paper for paper, _ in found], [float(score) for _, score in found]))


@router.get("/search", summary="Search, best first")
def search_papers(
    request: Request,
    q: Annotated[str, Query(max_length=400, description='Words; "quoted" ones stay together.')] = "",
    limit: Limit = 20,
    offset: Offset = 0,
    kind: Annotated[Kind | None, Query()] = None,
    year: Annotated[int | None, Query(ge=1800, le=2100)] = None,
    state: Annotated[State | None, Query(alias="status")] = None,
    room: Annotated[str | None, Query(max_length=80)] = None,
    topic: Annotated[str | None, Query(max_length=80)] = None,
    mode: Annotated[Literal["hybrid", "text", "semantic"], Query()] = "hybrid",
) -> FoundOut:
    """Papers that answer a question, by words and by meaning."""
    ask = _ask(request)
    found = search.search(
        ask.store, q, limit=limit, offset=offset, kind=kind, year=year, status=state, room=room, topic=topic, mode=mode
    )  # fmt: skip
    papers = _outs(ask, [hit.paper for hit in found.hits], [float(hit.score) for hit in found.hits])
    return FoundOut(papers=papers, total=found.total, suggestion=found.suggestion, seconds=found.seconds)


@router.get("/papers/{slug}", summary="One paper")
def one_paper(request: Request, slug: Slug) -> PaperOut:
    """A paper by slug, arXiv id (with or without version) or DOI."""
    ask = _ask(request)
    return _outs(ask, [ask.store.paper(slug)])[0]


@router.get("/papers/{slug}/related", summary="Papers like it, nearest first")
def related_papers(request: Request, slug: Slug, limit: Limit = 6) -> Listed:
    """Nearness is that of the search's embedding."""
    ask = _ask(request)
    return _scored(ask, search.related(ask.store, ask.store.paper(slug).slug, limit=limit))


@router.get("/today", summary="The newest day that has papers")
def today(request: Request) -> DayOut:
    """With the days before and after it."""
    ask = _ask(request)
    return _day(ask, days.today(ask.store, ask.at))


@router.get("/days", summary="Every day that has papers")
def archive(request: Request) -> list[Counted]:
    """Newest first."""
    return [Counted(date=str(date), count=count) for date, count in days.archive(_ask(request).store)]


@router.get("/days/{date}", summary="One day")
def one_day(request: Request, date: Annotated[str, Path(pattern=ISO, description="As 2026-11-22.")]) -> DayOut:
    """A day without papers is an empty list."""
    try:
        wanted = dt.date.fromisoformat(date)
    except ValueError:
        raise DataError(f"'{date[:40]}' is no day") from None
    ask = _ask(request)
    return _day(ask, days.day(ask.store, wanted.isoformat()))


def _day(ask: Ask, found: Any) -> DayOut:
    near = [str(date) if date else None for date in (found.previous, found.next)]
    return DayOut(date=str(found.date), previous=near[0], next=near[1], papers=_outs(ask, found.papers))


@router.get("/trending", summary="By votes, recent ones counting most")
def trending_papers(request: Request, limit: Limit = 20, offset: Offset = 0) -> Listed:
    """The rule of the decay stands on the page about."""
    ask = _ask(request)
    return _scored(ask, trending.trending(ask.store, at=ask.at, limit=limit, offset=offset))


@router.get("/topics", summary="Topics with the number of their papers")
def all_topics(request: Request) -> list[TopicOut]:
    """Given by rule, from titles, sentences and abstracts."""
    return [TopicOut(slug=one.slug, title=one.title, count=one.count) for one in topics.topics(_ask(request).store)]


@router.get("/topics/{slug}", summary="One topic: papers and course over the years")
def one_topic(request: Request, slug: Slug, limit: Limit = 20, offset: Offset = 0) -> TopicPageOut:
    """Newest papers first."""
    ask = _ask(request)
    found = topics.topic(ask.store, slug, limit=limit, offset=offset)
    return TopicPageOut(
        topic=TopicOut(slug=found.topic.slug, title=found.topic.title, count=found.topic.count),
        by_year=[YearOut(year=year.year, papers=year.count, share=year.share) for year in found.by_year],
        papers=_outs(ask, found.papers),
    )


@router.get("/stats", summary="Numbers of the store")
def stats(request: Request) -> Stats:
    """Papers, those that ship, and those with a working model."""
    ask = _ask(request)
    return Stats(**ask.views.counts())


Sign = Annotated[
    str | None, Header(alias="X-Orrery", max_length=100, description="Anything; required where no key is sent.")
]


def _changing(request: Request, sign: str | None) -> tuple[Ask, int]:
    ask = _ask(request)
    if not ask.visit.key and not sign:
        raise Refusal(403, "A change needs a key (Authorization: Bearer KEY), or the header X-Orrery.")
    return ask, ask.who().id


@router.post("/papers/{slug}/vote", summary="Vote", responses=_CHANGES)
def vote(request: Request, slug: Slug, x_orrery: Sign = None) -> Voted:
    """One vote a reader and paper; again changes nothing."""
    ask, reader = _changing(request, x_orrery)
    ask.turn("change", ask.settings.limits.changes)
    votes = community.vote(ask.store, slug, reader)
    ask.site.touch(ask.visit)
    return Voted(slug=ask.store.paper(slug).slug, votes=votes, voted=True)


@router.delete("/papers/{slug}/vote", summary="Take the vote back", responses=_CHANGES)
def unvote(request: Request, slug: Slug, x_orrery: Sign = None) -> Voted:
    """Without a vote, nothing changes."""
    ask, reader = _changing(request, x_orrery)
    ask.turn("change", ask.settings.limits.changes)
    votes = community.unvote(ask.store, slug, reader)
    ask.site.touch(ask.visit)
    return Voted(slug=ask.store.paper(slug).slug, votes=votes, voted=False)


@router.post("/submissions", summary="Submit a paper", responses=_CHANGES)
def submit(request: Request, submission: SubmissionIn, x_orrery: Sign = None) -> SubmissionOut:
    """A curator's is accepted at once; others wait for a moderator."""
    ask, reader = _changing(request, x_orrery)
    ask.turn("submission", ask.settings.limits.submissions)
    fields = {name: value for name, value in submission.model_dump(exclude={"text"}).items() if value}
    if not submission.text and not fields:
        raise DataError("there is nothing in it; give `text`, or a title with a place to read it")
    found = community.submit(ask.store, submission.text or fields, reader)
    ask.site.touch(ask.visit)
    return SubmissionOut(id=found.id, state=found.state, note=found.note, paper=found.paper)


@router.api_route("/{rest:path}", methods=["GET"], include_in_schema=False)
def nothing(rest: str) -> None:
    """Any other path of the API."""
    raise UnknownNameError(f"the API has no '{rest[:80]}'; /api/v1/openapi.json lists what it has")


# ---------------------------------------------------------------- its page


def page(ask: Ask) -> bytes:
    """All operations on one plain page."""
    found = []
    for path, methods in ask.request.app.openapi()["paths"].items():
        for method, one in methods.items():
            parameters = [{"name": p["name"], "where": p["in"], "words": _words(p)} for p in one.get("parameters", ())]
            found.append(
                {
                    "method": method.upper(),
                    "path": path,
                    "summary": f"{one['summary']}. {one.get('description', '')}",
                    "parameters": parameters,
                }
            )
    needs = "the header X-Orrery" if ask.settings.access == "owner" else "a key: Authorization: Bearer KEY"
    key = ask.site.sessions.key(ask.visit.reader) if ask.settings.team and ask.visit.reader else ""
    return ask.render("api.html", operations=found, base=ask.settings.base, change_needs=needs, key=key)


def _words(parameter: dict[str, Any]) -> str:
    schema = parameter.get("schema", {})
    schema = next((one for one in schema.get("anyOf", ()) if one.get("type") != "null"), schema)
    parts = [parameter.get("description", "")]
    if choices := schema.get("enum"):
        parts.append("One of " + ", ".join(choices) + ".")
    if "minimum" in schema:
        parts.append(f"From {schema['minimum']} to {schema['maximum']}.")
    if schema.get("default") not in (None, ""):
        parts.append(f"Default {schema['default']}.")
    return " ".join(part for part in parts if part)
