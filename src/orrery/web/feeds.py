"""Files to take along and feeds to follow: BibTeX, CSL-JSON, CITATION.cff, CSV, JSON; Atom; a description for browsers."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from orrery.catalogue import writers
from orrery.web.errors import Refusal
from orrery.web.site import Ask, Site

ONE = {  # of a paper: ending -> format of catalogue.writers, content type
    "bib": ("bibtex", "application/x-bibtex"),
    "csl.json": ("csl", "application/vnd.citationstyles.csl+json"),
    "cff": ("citation", "text/yaml"),
    "json": ("json", "application/json"),
}
ALL = {**ONE, "csv": ("csv", "text/csv")}  # of the whole list
FEEDS = ("papers", "new", "verdicts")
MOST = 5000  # papers in one file of a page; `orrery papers export` has no limit


def add(app: Any, site: Site) -> None:
    """Put the routes of this file into the application."""
    for ending in ONE:
        app.add_route(
            f"/paper/{{slug}}.{ending}", site.page(one(ending), keep=False), methods=["GET"], include_in_schema=False
        )
    for ending in ALL:
        app.add_route(
            f"/export/papers.{ending}",
            site.page(everything(ending), keep=False),
            methods=["GET"],
            include_in_schema=False,
        )
    for name in FEEDS:
        app.add_route(
            f"/feeds/{name}.atom",
            site.page(feed(name), "application/atom+xml"),
            methods=["GET"],
            include_in_schema=False,
        )
    app.add_route(
        "/opensearch.xml",
        site.page(opensearch, "application/opensearchdescription+xml"),
        methods=["GET"],
        include_in_schema=False,
    )
    app.add_route("/robots.txt", site.page(robots, "text/plain"), methods=["GET"], include_in_schema=False)


def one(ending: str) -> Any:
    """The route of one paper in one format."""

    def answer(ask: Ask) -> Response:
        paper = ask.store.paper(ask.request.path_params["slug"])
        return _file(writers.write([paper], ONE[ending][0]), ONE[ending][1], f"{paper.slug}.{ending}")

    return answer


def everything(ending: str) -> Any:
    """The route of the whole list in one format."""

    def answer(ask: Ask) -> Response:
        count = ask.views.counts()["papers"]
        if count > MOST:
            raise Refusal(
                413,
                f"{count:,} papers are more than a page can give ({MOST:,}); `orrery papers export` writes them all.",
            )
        return _file(writers.write(list(ask.store.all()), ALL[ending][0]), ALL[ending][1], f"papers.{ending}")

    return answer


def _file(text: str, kind: str, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Content-Type": f"{kind}; charset=utf-8"}
    return Response(text.encode("utf-8"), headers=headers)


def feed(name: str) -> Any:
    """The route of one Atom feed."""

    def answer(ask: Ask) -> bytes:
        return writers.feed(ask.store, name, ask.settings.base).encode("utf-8")

    return answer


def opensearch(ask: Ask) -> bytes:
    """Lets a browser search here from its address line."""
    base = ask.settings.base
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<OpenSearchDescription xmlns="http://a9.com/-/spec/opensearch/1.1/"><ShortName>Orrery papers</ShortName>'
        "<Description>Papers on language models, with their working models</Description>"
        f'<Url type="text/html" template="{_xml(base)}/search?q={{searchTerms}}"/></OpenSearchDescription>\n'
    ).encode()


def robots(ask: Ask) -> bytes:
    """Programs may read pages; searches and doors are not pages."""
    return b"User-agent: *\nDisallow: /search\nDisallow: /sign-in\nDisallow: /unsubscribe\nDisallow: /subscribe/\n"


def _xml(text: str) -> str:
    from xml.sax.saxutils import escape

    return escape(text, {'"': "&quot;"})
