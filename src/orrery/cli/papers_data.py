"""`orrery papers import | export | fetch`: bringing papers in and taking them out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import date as Day
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import typer

from orrery.cli import output

if TYPE_CHECKING:
    from orrery.catalogue.fetch import Answer
    from orrery.catalogue.imports import Report
    from orrery.catalogue.record import Paper
    from orrery.catalogue.store import Store

STORE = typer.Option(None, "--store", help="The folder of the papers (default: $ORRERY_PAPERS, else your data folder).")
JSON = typer.Option(False, "--json", help="For machines.")
MANY = 3000  # new papers from which indexing them takes noticeable time
SHOWN, FEW = 20, 5  # lines of a report for people; --json holds all


def import_files(
    files: list[str] = typer.Argument(..., help="Files; '-' reads standard input."),
    kind: Optional[str] = typer.Option(  # noqa: UP045
        None, "--format", help="listing, html, json, feed, bibtex or csv (default: found by content)."
    ),
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """Bring papers in: daily-papers listings (text, saved HTML), HF papers JSON, Atom, RSS, BibTeX, CSL-JSON, CSV.

    Duplicates are merged and named, what cannot be read is reported with its line, and importing twice changes nothing.

    Example:  orrery papers import listing-1.txt listing-2.txt     orrery papers import zotero.bib
    """
    from orrery.catalogue import imports
    from orrery.catalogue.search import prepare
    from orrery.catalogue.store import Store
    from orrery.core.errors import DataError
    from orrery.core.progress import progress

    with Store.open(store) as opened:
        with progress(None, "importing", "papers", quiet=as_json) as bar:
            if files == ["-"]:
                report = imports.import_text(opened, sys.stdin.read(), "standard input", kind=kind)
            else:
                report = imports.import_files(opened, files, kind=kind, tell=bar.update)
        if report.added or report.merged:
            if len(report.added) > MANY and not as_json:
                output.remark("bringing the semantic index up to date")
            prepare(opened)
        total = opened.count()
    if as_json or not report.failed or len(report.refused) > 1:
        say_report(report, total, as_json)
    if report.failed:
        first = f": {report.refused[0]}" if report.refused else ": there is no paper in it"
        raise DataError(f"nothing could be imported{first}")


def say_report(report: Report, total: int, as_json: bool) -> None:
    """What an import did."""
    if as_json:
        output.say_json({**report.to_dict(), "store": total})
        return
    if not report.failed:
        print(f"{report.summary()}; the store holds {total:,} papers")
    for title, entries, most in (("named twice", report.duplicates, SHOWN), ("merged", report.merged, FEW)):
        for entry in entries[:most]:
            print(f"  {title}: {entry.title} ({Path(entry.file).name}:{entry.line}; {entry.why})")
        if len(entries) > most:
            print(f"  {title}: and {len(entries) - most:,} more, which --json lists")
    for refusal in report.refused[:SHOWN]:
        output.remark(f"refused: {refusal}")
    if len(report.refused) > SHOWN:
        output.remark(f"refused: and {len(report.refused) - SHOWN:,} more, which --json lists")


def export(
    papers: list[str] = typer.Argument(None, help="Short names, arXiv ids or DOIs; none means all papers."),
    kind: str = typer.Option("bibtex", "--format", help="bibtex, csl, citation, csv, json or atom."),
    feed: str = typer.Option("papers", help="What an atom feed tells: papers, new or verdicts."),
    out: Optional[Path] = typer.Option(None, "--out", "-o", help="The file to write (default: standard output)."),  # noqa: UP045
    query: str = typer.Option("", "--query", help="Only what this search finds."),
    limit: Optional[int] = typer.Option(None, "--limit", "-n", min=1, help="At most so many."),  # noqa: UP045
    base_url: str = typer.Option("", "--base-url", help="The address of your pages, for the links of a feed (default: to the papers themselves)."),
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = typer.Option(False, "--json", help="The same as --format json."),
) -> None:
    """Take papers along: bibliographies, tables, a feed.

    Example:  orrery papers export emo infini-gram     orrery papers export --format csv --out papers.csv
    """
    from orrery.catalogue import writers
    from orrery.catalogue.store import Store
    from orrery.core import files
    from orrery.core.errors import ConfigError, suggest

    kind = "json" if as_json else kind
    if kind not in writers.WRITERS:
        raise ConfigError(f"unknown format '{kind}'.{suggest(kind, writers.WRITERS)} Formats: {', '.join(writers.WRITERS)}")
    with Store.open(store) as opened:
        if kind == "atom" and not papers and not query:
            text = writers.feed(opened, feed, base_url, limit)
        else:
            text = writers.write(_chosen(opened, papers or [], query, limit), kind)
    if out is None:
        sys.stdout.write(text)
    else:
        files.write_text(out, text)
        output.remark(f"written: '{out}' ({output.size(out.stat().st_size)})")


def _chosen(store: Store, keys: list[str], query: str, limit: int | None) -> Iterator[Paper]:
    from itertools import islice

    if keys:
        found: Iterator[Paper] = (store.paper(key) for key in keys)
    elif query:
        from orrery.catalogue.search import search

        found = (hit.paper for hit in search(store, query, limit=limit or 1000).hits)
    else:
        found = store.all()
    return islice(found, limit)  # None: all of them


def fetch(
    ids: list[str] = typer.Argument(None, help="arXiv ids or addresses."),
    query: str = typer.Option("", "--query", help="Ask arXiv in its own language: 'cat:cs.CL AND ti:mamba'."),
    limit: int = typer.Option(50, "--limit", "-n", min=1, max=2000, help="At most so many answers to --query."),
    missing: bool = typer.Option(False, "--missing", help="Ask arXiv about every paper with an arXiv id and no abstract."),
    day: str = typer.Option("", "--day", help="A day of Hugging Face's daily papers: 2026-11-20, or 'latest'."),
    votes: bool = typer.Option(False, "--votes", help="Ask Hugging Face instead of arXiv about the ids: abstracts and upvotes."),
    refresh: bool = typer.Option(False, "--refresh", help="Ask even where a stored answer is still good."),
    base: str = typer.Option("", help="Another address of the service (for a mirror, or a test)."),
    store: Optional[Path] = STORE,  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """Ask arXiv or Hugging Face and import the answer, slowly and never twice for the same.

    Example:  orrery papers fetch 2405.21060     orrery papers fetch --missing     orrery papers fetch --day latest
    """
    from orrery.catalogue import imports
    from orrery.catalogue.imports import Report
    from orrery.catalogue.search import prepare
    from orrery.catalogue.store import Store
    from orrery.core.errors import ConfigError, DataError

    wishes = [bool(ids), bool(query), missing, bool(day)]
    if sum(wishes) != 1:
        raise ConfigError("say what to ask for: arXiv ids, --query, --missing or --day (one of them)")
    total = Report()
    stale = 0
    with Store.open(store) as opened:
        wanted = _without_abstract(opened) if missing else list(ids or [])
        for answer in _answers(wanted, query, limit, day, votes, refresh, base, quiet=as_json):
            stale += answer.stale
            part = imports.import_text(opened, answer.body.decode("utf-8", "replace"), answer.url)
            for name in ("added", "merged", "unchanged", "duplicates", "refused"):
                getattr(total, name).extend(getattr(part, name))
        if total.added or total.merged:
            prepare(opened)
        count = opened.count()
    say_report(total, count, as_json)
    if stale:
        output.remark("the service did not answer; a stored copy was used")
    if total.failed and not missing:
        raise DataError("the service knows none of these papers" + (f" ({total.refused[0].why})" if total.refused else ""))


def _answers(
    ids: list[str], query: str, limit: int, day: str, votes: bool, refresh: bool, base: str, *, quiet: bool
) -> Iterator[Answer]:
    """One answer after the other, each as soon as it is there."""
    from orrery.catalogue import fetch as service
    from orrery.core.progress import progress

    if day or votes:
        hugging_face = service.Fetcher(service.hugging_face_service(base or service.HUGGING_FACE), refresh=refresh)
        if day:
            yield hugging_face.day(None if day == "latest" else a_day(day))
            return
        with progress(len(ids), "asking Hugging Face", "papers", quiet=quiet) as bar:
            for each in ids:
                yield hugging_face.paper(each)
                bar.update(1)
        return
    arxiv = service.Fetcher(service.arxiv_service(base or service.ARXIV), refresh=refresh)
    if query:
        yield arxiv.search(query, limit)
        return
    with progress(len(ids), "asking arXiv", "papers", quiet=quiet) as bar:
        for begin in range(0, len(ids), service.PER_REQUEST):
            part = ids[begin : begin + service.PER_REQUEST]
            yield from arxiv.papers(part)
            bar.update(len(part))


def _without_abstract(store: Store) -> list[str]:
    ask = "SELECT arxiv FROM papers WHERE arxiv IS NOT NULL AND abstract = '' ORDER BY id"
    return [str(row["arxiv"]) for row in store.connection().execute(ask)]


def arxiv_record(identifier: str, base: str) -> dict[str, Any]:
    """arXiv's own fields of one paper.

    Raises:
        DataError: when it knows none.
    """
    from orrery.catalogue import fetch as service
    from orrery.catalogue import formats
    from orrery.catalogue.reading import Found
    from orrery.core.errors import DataError

    (answer,) = service.Fetcher(service.arxiv_service(base or service.ARXIV)).papers([identifier])
    for each in formats.records(answer.body.decode("utf-8", "replace"), "feed"):
        if isinstance(each, Found):
            return each.fields
    raise DataError(f"arXiv knows no paper '{identifier}'")


def a_day(text: str) -> Day:
    """A day as people type it.

    Raises:
        ConfigError: when it is none.
    """
    from orrery.core.errors import ConfigError

    try:
        return Day.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"'{text[:40]}' is no day; write it like 2026-11-20") from None
