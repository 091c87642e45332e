"""`orrery papers`: the reading list as a living place. Here: finding, reading, the state of the store, and all names.

Importing, exporting and fetching are in `papers_data`, votes and mail in `community`.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import typer

from orrery.cli import community, output, papers_data

if TYPE_CHECKING:
    from orrery.catalogue.record import Paper
    from orrery.catalogue.store import Store

app = typer.Typer(help="The papers: search, read, import, vote, and get them by mail.", no_args_is_help=True)
STORE = typer.Option(None, "--store", help="The folder of the papers (default: $ORRERY_PAPERS, else your data folder).")
JSON = typer.Option(False, "--json", help="For machines.")
LIMIT = typer.Option(20, "--limit", "-n", min=1, max=1000, help="At most so many.")


def facts(paper: Paper, store: Store, **more: Any) -> dict[str, Any]:
    """A paper and its status, for machines."""
    from orrery.catalogue import status

    found = status.of(paper, store=store)
    return {**paper.to_dict(), "link": paper.link, "status": found.to_dict(), **more}


def say_papers(papers: list[Paper], store: Store, *, numbered: bool = True) -> None:
    """A table of papers, in the order given."""
    from orrery.catalogue import status

    rows = []
    for number, paper in enumerate(papers, 1):
        votes = paper.votes + paper.upvotes
        rows.append((number if numbered else "", paper.title, paper.year or "", status.of(paper).state, votes or "", paper.slug))
    output.say_table(("", "title", "year", "status", "votes", "short name"), rows, right=(0, 2, 4))


def _encoder(folder: Path | None) -> Any:
    """The encoder of a folder; torch is loaded only when one is named."""
    if folder is None:
        return None
    from orrery.methods.text_vectors import TextVectors

    return TextVectors(folder)


@app.command("search")
def search(
    words: list[str] = typer.Argument(..., help='Words, "phrases", prefix*, title:word, author:word, -not.'),
    limit: int = LIMIT,
    offset: int = typer.Option(0, min=0, help="Leave out so many."),
    kind: Optional[str] = typer.Option(None, help="Only this kind (architecture, objective, survey ...)."),  # noqa: UP045
    year: Optional[str] = typer.Option(None, help="Only this year, or a span: 2021-2023, 2021-."),  # noqa: UP045
    status: Optional[str] = typer.Option(None, help="Only this status ('working model', part, planned ...)."),  # noqa: UP045
    room: Optional[str] = typer.Option(None, help="Only papers of this room of the code (mixers, methods ...)."),  # noqa: UP045
    topic: Optional[str] = typer.Option(None, help="Only this topic (see `orrery papers topics`)."),  # noqa: UP045
    mode: str = typer.Option("hybrid", help="hybrid, text or semantic."),
    encoder: Optional[Path] = typer.Option(None, help="Folder of a trained encoder that takes the place of our own vectors."),  # noqa: UP045
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """Papers, best first: words and meaning together. With --json a list of objects with title, slug, score, status ...

    Example:  orrery papers search "earth mover distance" --json     orrery papers search mamba --kind survey --year 2024-
    """
    from orrery.catalogue.search import search as find
    from orrery.catalogue.store import Store

    asked = " ".join(f'"{word}"' if len(words) > 1 and " " in word and '"' not in word else word for word in words)
    with Store.open(store) as opened:
        found = find(
            opened, asked, limit=limit, offset=offset, kind=kind, year=year, status=status, room=room, topic=topic, mode=mode,
            encoder=_encoder(encoder),
        )  # fmt: skip
        if as_json:
            output.say_json([facts(hit.paper, opened, score=round(hit.score, 6)) for hit in found.hits])
        elif found.hits:
            say_papers([hit.paper for hit in found.hits], opened)
        else:
            print(f"no paper matches {asked!r}")
    if found.suggestion:
        output.remark(f"searched for: {found.suggestion}")
    if not as_json and found.total > len(found.hits) > 0:
        output.remark(f"{found.total:,} papers match; --offset {offset + len(found.hits)} shows the next ones")
    if found.note:
        output.remark(found.note)


@app.command("show")
def show(
    paper: str = typer.Argument(..., help="Its short name, arXiv id or DOI."),
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """One paper: what it says, what exists of it in this code, what is near it.

    Example:  orrery papers show emo     orrery papers show 2310.04691 --json
    """
    from orrery.catalogue import commands, status
    from orrery.catalogue import community as people
    from orrery.catalogue.search import related
    from orrery.catalogue.store import Store

    with Store.open(store) as opened:
        found = opened.paper(paper)
        picked = people.picked_by(opened, found.slug)
        near = related(opened, found.slug)
        if as_json:
            nearby = [{"slug": each.slug, "title": each.title, "score": round(score, 4)} for each, score in near]
            output.say_json(facts(found, opened, picked_by=picked, related=nearby))
            return
        state = status.of(found, store=opened)
    print(found.title)
    lines = {
        "authors": ", ".join(found.authors[:12]) + (f" and {len(found.authors) - 12} others" if len(found.authors) > 12 else ""),
        "year": str(found.year or ""),
        "kind": found.kind or "",
        "topics": ", ".join(found.topics),
        "link": found.link or "",
        "short name": found.slug,
        "votes": _votes(found),
        "picked by": ", ".join(picked),
        "status": state.state,
        "parity": str(state.parity or ""),
        "measured": str(state.measured or ""),
        "verdict": state.verdict or "",
        "run it": commands.run(state.names[0]) if state.names else "",
    }
    for name, value in lines.items():
        if value:
            print(f"  {name:10}  {value}")
    for text in (found.sentence, found.abstract):
        if text:
            print("\n" + _wrapped(text))
    if near:
        print("\nnear it:")
        for each, _ in near:
            print(f"  {each.slug}: {each.title}")


@app.command("today")
def today(
    date: str = typer.Option("", help="Another day, such as 2026-11-22."),
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """The papers of a day: today's, or the last day's that has some.

    Example:  orrery papers today     orrery papers today --date 2026-11-22
    """
    from orrery.catalogue import days
    from orrery.catalogue.store import Store

    with Store.open(store) as opened:
        found = days.day(opened, papers_data.a_day(date)) if date else days.today(opened, datetime.now(timezone.utc))
        if as_json:
            listed = [facts(paper, opened) for paper in found.papers]
            output.say_json({"date": found.date, "previous": found.previous, "next": found.next, "papers": listed})
            return
        if found.papers:
            say_papers(list(found.papers), opened)
    print(f"{found.date}: {len(found.papers) or 'no new'} paper{'s' if len(found.papers) != 1 else ''}")
    if not found.papers:
        output.remark("what came with orrery has no day; `orrery papers search` and `trending` show it")
    if found.previous:
        output.remark(f"the day before: orrery papers today --date {found.previous}")


@app.command("trending")
def trending(
    limit: int = LIMIT,
    offset: int = typer.Option(0, min=0, help="Leave out so many."),
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """What readers vote for now: votes that fade with time.

    Example:  orrery papers trending -n 10
    """
    from orrery.catalogue.store import Store
    from orrery.catalogue.trending import trending as ranked

    with Store.open(store) as opened:
        found = ranked(opened, at=datetime.now(timezone.utc), limit=limit, offset=offset)
        if as_json:
            output.say_json([facts(paper, opened, score=round(score, 6)) for paper, score in found])
        elif found:
            say_papers([paper for paper, _ in found], opened)
        else:
            print("nothing is trending yet: orrery papers vote PAPER")


@app.command("topics")
def topics(
    topic: str = typer.Argument("", help="One topic, with its papers and its trend over the years."),
    limit: int = LIMIT,
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """Topics and how many papers they have; of one topic its papers, and its share of each year's papers.

    Example:  orrery papers topics     orrery papers topics recurrence
    """
    from orrery.catalogue import topics as room
    from orrery.catalogue.store import Store

    with Store.open(store) as opened:
        if not topic:
            listed = room.topics(opened)
            if as_json:
                output.say_json([each.to_dict() for each in listed])
            else:
                output.say_table(("topic", "title", "papers"), [(t.slug, t.title, t.count) for t in listed], right=(2,))
            return
        page = room.topic(opened, topic, limit=limit)
        if as_json:
            years = [{"year": y.year, "count": y.count, "share": round(y.share, 4)} for y in page.by_year]
            output.say_json({**page.topic.to_dict(), "papers": [facts(p, opened) for p in page.papers], "by_year": years})
            return
        say_papers(page.papers, opened)
    print(f"{page.topic.title}: {page.topic.count:,} papers; their share of each year's:")
    for year in page.by_year:
        print(f"  {year.year}  {'#' * round(year.share * 40):40} {year.share:4.0%}  {year.count}")


@app.command("stats")
def stats(
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """What the store holds: papers by status, kind and year, votes, readers, imports.

    Example:  orrery papers stats --json
    """
    from orrery.catalogue.store import Store

    with Store.open(store) as opened:
        found = _stats(opened)
    if as_json:
        output.say_json(found)
        return
    for name, value in found.items():
        if not isinstance(value, dict):
            print(f"{name.replace('_', ' '):22} {value:,}" if isinstance(value, int) else f"{name:22} {value}")
    for name in ("status", "kind", "year"):
        rows = [(key, number) for key, number in found[name].items()]
        output.say_table((name, "papers"), rows, right=(1,))


def _stats(store: Store) -> dict[str, Any]:
    from collections import Counter

    from orrery.catalogue import status

    ask = store.connection().execute
    states, kinds, years = Counter[str](), Counter[str](), Counter[str]()
    for paper in store.all():
        states[status.of(paper).state] += 1
        kinds[paper.kind or "not known"] += 1
        years[str(paper.year or "not known")] += 1
    counts = {
        "papers": "papers",
        "shipped": "papers WHERE shipped",
        "with_abstract": "papers WHERE abstract != ''",
        "votes": "votes",
        "readers": "readers",
        "picks": "picks",
        "waiting_submissions": "submissions WHERE state = 'waiting'",
        "active_subscriptions": "subscriptions WHERE state = 'active'",
        "imports": "imports",
    }
    found: dict[str, Any] = {"folder": str(store.folder)}
    found |= {name: int(ask(f"SELECT COUNT(*) FROM {table}").fetchone()[0]) for name, table in counts.items()}
    found["status"] = {name: states[name] for name in status.STATES if states[name]}
    found["kind"] = dict(kinds.most_common())
    found["year"] = dict(sorted(years.items()))
    return found


@app.command("rebuild")
def rebuild(
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """Make the database anew from the shipped papers and the journal, which is the truth; the old one is kept beside it.

    Example:  orrery papers rebuild
    """
    from orrery.catalogue.store import Store

    with Store.open(store) as opened:
        opened.rebuild("asked for")
        count = opened.count()
    if as_json:
        output.say_json({"papers": count})
    else:
        print(f"{count:,} papers, rebuilt from the shipped list and the journal; the old database lies beside the new one")


@app.command("mend")
def mend(
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """Keep the whole lines of a damaged journal (the damaged file stays beside it) and rebuild the database from them.

    Example:  orrery papers mend
    """
    from orrery.catalogue.store import Store, default_folder

    opened = Store(Path(store) if store else default_folder())
    try:
        problems = opened.mend()
        count = opened.count()
    finally:
        opened.close()
    if as_json:
        output.say_json({"papers": count, "problems": problems})
        return
    for line in problems:
        print(line)
    print(f"{count:,} papers" + ("" if problems else "; nothing was wrong"))


@app.command("index")
def index(
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """Bring the semantic index up to date (imports do so themselves).

    Example:  orrery papers index
    """
    from orrery.catalogue.search import prepare
    from orrery.catalogue.store import Store

    with Store.open(store) as opened:
        number = prepare(opened)
    if as_json:
        output.say_json({"papers": number})
    else:
        print(f"the semantic index covers {number:,} papers")


def _votes(paper: Paper) -> str:
    parts = [f"{paper.votes:,} here"] if paper.votes else []
    parts += [f"{paper.upvotes:,} where it came from"] if paper.upvotes else []
    return ", ".join(parts)


def _wrapped(text: str) -> str:
    import textwrap

    return textwrap.fill(text, 100)


for _name, _command in (
    ("import", papers_data.import_files),
    ("export", papers_data.export),
    ("fetch", papers_data.fetch),
    ("submit", community.submit),
    ("moderate", community.moderate),
    ("vote", community.vote),
    ("unvote", community.unvote),
    ("pick", community.pick),
    ("readers", community.readers),
    ("subscribe", community.subscribe),
    ("confirm", community.confirm),
    ("unsubscribe", community.unsubscribe),
    ("subscriptions", community.list_subscriptions),
    ("digest", community.digest),
):
    app.command(_name)(_command)
