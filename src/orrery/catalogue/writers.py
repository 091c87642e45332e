"""Papers as files for other programs: BibTeX, CSL-JSON, CITATION.cff, CSV, JSON, and Atom feeds.

What is written here is read back by our own readers as the same papers (CITATION.cff apart, which nothing imports).
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

from orrery.catalogue import papers_json
from orrery.catalogue.latex import from_text
from orrery.catalogue.reading import without_tags
from orrery.catalogue.record import Paper
from orrery.core.errors import ConfigError, suggest

if TYPE_CHECKING:
    from orrery.catalogue.store import Store

FEEDS = {"papers": "All papers", "new": "New papers", "verdicts": "Changed verdicts"}
NEWEST = 50  # entries of the feeds of new papers and of verdicts
MOST = 1000  # entries of the feed of all papers, unless asked for more
EPOCH = "1970-01-01T00:00:00Z"  # when an empty feed was last changed
_COLUMNS = (
    "slug", "title", "arxiv", "doi", "url", "year", "date", "kind", "core", "sentence", "abstract", "authors", "rooms", "names", "topics",
    "upvotes", "votes", "curated", "source", "added", "shipped",
)  # fmt: skip


def write(papers: Iterable[Paper], kind: str) -> str:
    """Papers in the format `kind`: a key of :data:`WRITERS`."""
    return "".join(pieces(papers, kind))


def pieces(papers: Iterable[Paper], kind: str) -> Iterator[str]:
    """:func:`write` in pieces, for more papers than a memory holds.

    Raises:
        ConfigError: when there is no such format.
    """
    if kind not in WRITERS:
        raise ConfigError(f"no format '{kind}'.{suggest(kind, WRITERS)} Formats: {', '.join(WRITERS)}")
    return WRITERS[kind](papers)


def bibtex(papers: Iterable[Paper]) -> Iterator[str]:
    """BibTeX, UTF-8; keys are slugs. Titles stand in double braces, so that no style changes their capitals."""
    for paper in papers:
        fields = {
            "title": f"{{{from_text(paper.title)}}}",
            "author": " and ".join(_bibtex_name(name) for name in paper.authors),
            "year": str(paper.year or ""),
            "date": paper.date or "",
            "eprint": paper.arxiv or "",
            "archivePrefix": "arXiv" if paper.arxiv else "",
            "doi": from_text(paper.doi or ""),
            "url": paper.url or "",
            "abstract": from_text(paper.abstract),
            "annote": from_text(paper.sentence),
        }
        kind = "article" if paper.doi else "misc"
        lines = [f"  {name} = {{{value}}}" for name, value in fields.items() if value]
        yield f"@{kind}{{{paper.slug},\n" + ",\n".join(lines) + "\n}\n\n"


def _bibtex_name(name: str) -> str:
    """A name as it is spoken; in braces where BibTeX would take it apart otherwise."""
    text = from_text(name)
    plain = "," not in name and " " in name and not re.search(r"\band\b", name, re.IGNORECASE) and not re.match(r"\{.*\}$", text)
    return text if plain else f"{{{text}}}"


def csl(papers: Iterable[Paper]) -> Iterator[str]:
    """CSL-JSON, one item a line."""
    return _json_list((_csl_item(paper) for paper in papers), "[\n", "\n]\n")


def _csl_item(paper: Paper) -> dict[str, Any]:
    item: dict[str, Any] = {"id": paper.slug, "type": "article", "title": _csl_text(paper.title)}
    if paper.authors:
        item["author"] = [_csl_name(name) for name in paper.authors]
    if paper.date and int(paper.date[:4]) == paper.year:
        item["issued"] = {"date-parts": [[int(part) for part in paper.date.split("-")]]}
    elif paper.year:
        item["issued"] = {"date-parts": [[paper.year]]}
    if paper.arxiv:
        item |= {"publisher": "arXiv", "number": f"arXiv:{paper.arxiv}"}
    item |= {"DOI": paper.doi, "URL": paper.url or paper.link}
    item |= {"abstract": _csl_text(paper.abstract), "annote": paper.sentence, "keyword": ", ".join(paper.topics)}
    return {name: value for name, value in item.items() if value}


def _csl_text(text: str) -> str:
    """CSL's text may hold tags; text that only looks like them is escaped."""
    return text if without_tags(text) == text else html.escape(text, quote=False)


def _csl_name(name: str) -> dict[str, str]:
    given, _, family = name.rpartition(" ")
    return {"family": family, "given": given} if given and "," not in name else {"literal": name}


def citation(papers: Iterable[Paper]) -> Iterator[str]:
    """CITATION.cff 1.2.0: one paper as the preferred citation, several as references. Scalars are JSON, which YAML holds."""
    found = list(papers)
    alone = found[0] if len(found) == 1 else None
    yield "cff-version: 1.2.0\nmessage: If you use these works, please cite them.\n"
    yield f"title: {_yaml(alone.title if alone else 'Papers of an Orrery reading list')}\n"
    yield "authors:\n" + _cff_people(alone.authors if alone else ("Authors of the references",), "  ")
    if found:
        yield "preferred-citation:\n" if alone else "references:\n"
    for paper in found:
        yield _cff_reference(paper, "  " if alone else "  - ")


def _cff_reference(paper: Paper, lead: str) -> str:
    indent = " " * len(lead)
    facts = {"title": paper.title, "year": paper.year, "date-published": paper.date, "doi": paper.doi, "url": paper.link, "abstract": paper.abstract}
    lines = [f"{lead}type: article\n"]
    lines += [f"{indent}{name}: {_yaml(value)}\n" for name, value in facts.items() if value]
    lines.append(f"{indent}authors:\n" + _cff_people(paper.authors, indent + "  "))
    if paper.arxiv:
        lines.append(f"{indent}identifiers:\n{indent}  - type: other\n{indent}    value: {_yaml('arXiv:' + paper.arxiv)}\n")
    return "".join(lines)


def _cff_people(authors: Iterable[str], indent: str) -> str:
    people = list(authors) or ["unknown"]  # the format asks for at least one
    return "".join(f"{indent}- name: {_yaml(name)}\n" for name in people)


def _yaml(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
        return f"'{value}'"
    return json.dumps(value, ensure_ascii=False)


def table(papers: Iterable[Paper]) -> Iterator[str]:
    """CSV, UTF-8, with a header. A cell that a spreadsheet would take for a formula begins with an apostrophe."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(_COLUMNS)
    for paper in papers:
        facts = paper.to_dict()
        facts["authors"] = "; ".join(re.sub(r"([;\\])", r"\\\1", name) for name in paper.authors)
        for name in ("rooms", "names", "topics"):
            facts[name] = " ".join(facts[name])
        writer.writerow([_cell(facts[name]) for name in _COLUMNS])
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = str(int(value)) if isinstance(value, bool) else str(value)
    return "'" + text if re.match(r"'?[=+@\t\r-]", text) else text


def own(papers: Iterable[Paper]) -> Iterator[str]:
    """Our own JSON: every fact of every paper, one paper a line."""
    return _json_list((paper.to_dict() for paper in papers), f'{{"format": "{papers_json.FORMAT}", "version": 1, "papers": [\n', "\n]}\n")


def _json_list(items: Iterable[dict[str, Any]], head: str, tail: str) -> Iterator[str]:
    yield head
    first = True
    for item in items:
        yield ("" if first else ",\n") + json.dumps(item, ensure_ascii=False)
        first = False
    yield tail


# ---------------------------------------------------------------- feeds


def feed(store: Store, name: str, base: str = "", limit: int | None = None) -> str:
    """An Atom feed of the store: `papers`, `new` or `verdicts`, newest first.

    Args:
        base: address of the site that serves it; empty: links lead to the papers themselves.
        limit: at most so many entries (None: 1,000 of all papers, 50 of the others; 0: all).

    Raises:
        ConfigError: when there is no such feed.
    """
    if name not in FEEDS:
        raise ConfigError(f"no feed '{name}'.{suggest(name, FEEDS)} Feeds: {', '.join(FEEDS)}")
    limit = (MOST if name == "papers" else NEWEST) if limit is None else limit
    entries = _verdicts(store, base, limit or -1) if name == "verdicts" else _newest(store, base, limit or -1)
    return "".join(_atom(FEEDS[name], f"{base}/feeds/{name}.atom" if base else "", f"feed/{name}", base, entries))


def atom(papers: Iterable[Paper]) -> Iterator[str]:
    """Any papers as an Atom feed, in their order."""
    return _atom("Papers", "", "feed/export", "", [(paper.added or EPOCH, _entry(paper, "")) for paper in papers])


def _newest(store: Store, base: str, limit: int) -> list[tuple[str, str]]:
    query = "SELECT slug FROM papers ORDER BY added DESC, date DESC, id LIMIT ?"
    slugs = store.ask(lambda connection: [row[0] for row in connection.execute(query, (limit,))])
    return [(paper.added, _entry(paper, base)) for paper in store.papers(slugs)]


def _verdicts(store: Store, base: str, limit: int) -> list[tuple[str, str]]:
    query = (
        "SELECT verdicts.id, slug, at, old, new FROM verdicts JOIN papers ON papers.id = verdicts.paper ORDER BY at DESC, verdicts.id DESC LIMIT ?"
    )
    rows = store.ask(lambda connection: [dict(row) for row in connection.execute(query, (limit,))])
    papers = {paper.slug: paper for paper in store.papers({row["slug"] for row in rows})}
    entries = []
    for row in rows:
        paper = papers[row["slug"]]
        words = f"Its claim, re-tested here: {row['new']}" + (f" (before: {row['old']})." if row["old"] else ".")
        body = _element("title", f"{paper.title}: {row['new']}") + _element("id", _urn(f"verdict/{row['slug']}/{row['at']}/{row['id']}"))
        entries.append((row["at"], body + _element("updated", row["at"]) + _element("summary", words) + _links(paper, base)))
    return entries


def _atom(title: str, address: str, identity: str, base: str, entries: list[tuple[str, str]]) -> Iterator[str]:
    yield '<?xml version="1.0" encoding="utf-8"?>\n<feed xmlns="http://www.w3.org/2005/Atom" xmlns:o="urn:orrery:papers">\n'
    yield _element("title", title) + _element("id", _urn(base + identity))
    yield _element("updated", max((at for at, _ in entries), default=EPOCH)) + "<author><name>Orrery</name></author>\n"
    if address:
        yield f'<link rel="self" type="application/atom+xml" href={quoteattr(address)}/>\n<link rel="alternate" href={quoteattr(base + "/")}/>\n'
    for _, body in entries:
        yield f"<entry>\n{body}</entry>\n"
    yield "</feed>\n"


def _entry(paper: Paper, base: str) -> str:
    parts = [_element("title", paper.title), _element("id", _urn(f"paper/{paper.slug}")), _element("updated", paper.added or EPOCH)]
    if paper.date:
        parts.append(_element("published", f"{paper.date}T00:00:00Z"))
    parts += [f"<author>{_element('name', name).strip()}</author>\n" for name in paper.authors]
    if words := paper.abstract or paper.sentence:
        parts.append(_element("summary", words))
    if paper.sentence:
        parts.append(_element("o:sentence", paper.sentence))
    if paper.year:
        parts.append(_element("o:year", str(paper.year)))
    parts += [f"<category term={quoteattr(term)}/>\n" for term in (paper.kind, *paper.topics) if term]
    return "".join(parts) + _links(paper, base)


def _links(paper: Paper, base: str) -> str:
    """The page of a paper, and every address that the paper itself has."""
    doi = f"https://doi.org/{paper.doi}" if paper.doi else None
    found = [f"{base}/paper/{paper.slug}" if base else None, paper.link, doi, paper.url]
    addresses = [address for address in dict.fromkeys(found) if address]
    return "".join(f"<link rel={quoteattr('related' if number else 'alternate')} href={quoteattr(each)}/>\n" for number, each in enumerate(addresses))


def _element(tag: str, text: str) -> str:
    return f"<{tag}>{escape(text)}</{tag}>\n"


def _urn(text: str) -> str:
    return f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, 'orrery/' + text)}"


WRITERS: dict[str, Callable[[Iterable[Paper]], Iterator[str]]] = {
    "bibtex": bibtex,
    "csl": csl,
    "citation": citation,
    "csv": table,
    "json": own,
    "atom": atom,
}
