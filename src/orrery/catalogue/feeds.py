"""Atom (arXiv's API, our own feed) and RSS, read through defusedxml: a feed with entities of its own is refused.

What stands before a fault in the XML is kept: every entry that was complete is a record, the fault is refused with its line.
"""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from typing import Any
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

from orrery.catalogue import keys
from orrery.catalogue.reading import Found, Records, Refused, arxiv_in, without_tags
from orrery.catalogue.record import plain


class _Entries:
    """A target of the XML parser that keeps every entry or item, with its line, and forgets the rest."""

    def __init__(self) -> None:
        self.found: list[tuple[int, Element]] = []
        self.parser: Any = None
        self._builder: TreeBuilder | None = None
        self._depth = 0
        self._line = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """An element begins."""
        if self._builder is None:
            if _local(tag) not in ("entry", "item"):
                return
            self._builder, self._depth, self._line = TreeBuilder(), 0, self.parser.parser.CurrentLineNumber
        self._builder.start(tag, attributes)
        self._depth += 1

    def end(self, tag: str) -> None:
        """An element ends."""
        if self._builder is None:
            return
        self._builder.end(tag)
        self._depth -= 1
        if self._depth == 0:
            self.found.append((self._line, self._builder.close()))
            self._builder = None

    def data(self, data: str) -> None:
        """Text between tags."""
        if self._builder is not None:
            self._builder.data(data)

    def close(self) -> None:
        """The document has ended."""


def records(text: str) -> Records:
    """Records of an Atom or RSS feed."""
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import DefusedXMLParser

    target = _Entries()
    parser = DefusedXMLParser(target=target, forbid_dtd=False, forbid_entities=True, forbid_external=True)
    target.parser = parser
    fault: Refused | None = None
    try:
        parser.feed(text)
        parser.close()
    except DefusedXmlException:
        line = getattr(getattr(parser, "parser", None), "CurrentLineNumber", 1)
        fault = Refused(line, "the feed declares entities of its own or names files; such feeds can exhaust a machine and are refused")
        target.found.clear()
    except ParseError as error:
        fault = Refused(error.position[0], f"not well-formed XML: {str(error).partition(':')[0]}")
    for line, element in target.found:
        yield _atom(line, element) if _local(element.tag) == "entry" else _rss(line, element)
    if fault:
        yield fault


def _local(tag: str) -> str:
    """A tag without its namespace."""
    return tag.rpartition("}")[2].lower()


def _text(element: Element, *names: str) -> str:
    """Text of the first child that has one of some names."""
    for name in names:
        for child in element:
            if _local(child.tag) == name and (text := plain("".join(child.itertext()))):
                return text
    return ""


def _typed(entry: Element, *names: str) -> str:
    """Text of an Atom construct, whose `type` says whether it is plain or HTML."""
    for name in names:
        for child in entry:
            if _local(child.tag) == name:
                text = "".join(child.itertext())
                if found := plain(without_tags(text) if child.get("type") == "html" else text):
                    return found
    return ""


def _atom(line: int, entry: Element) -> Found | Refused:
    title = _typed(entry, "title")
    if title == "Error" and "arxiv.org/api/errors" in _text(entry, "id"):
        return Refused(line, f"arXiv answered with an error: {_text(entry, 'summary')[:200]}")
    if not title:
        return Refused(line, "an entry without a title")
    links = [child.get("href", "") for child in entry if _local(child.tag) == "link" and child.get("rel", "alternate") in ("alternate", "related")]
    abstract = _typed(entry, "summary", "content")
    fields: dict[str, Any] = {"title": title, "abstract": "" if abstract == _text(entry, "sentence") else abstract}
    if (year := _text(entry, "year")).isdecimal():  # our own feeds
        fields["year"] = int(year)
    fields["authors"] = [name for child in entry if _local(child.tag) == "author" and (name := _text(child, "name"))]
    fields["arxiv"] = arxiv_in(_text(entry, "id"), *links)
    fields["doi"] = keys.doi(_text(entry, "doi")) or next((found for link in links if (found := keys.doi(link))), None)
    fields["url"] = next((link for link in links if re.match(r"https?://\S+$", link) and not arxiv_in(link) and not keys.doi(link)), None)
    published = _text(entry, "published")  # `updated` is when the entry was last touched
    if re.match(r"\d{4}-\d{2}-\d{2}", published):
        fields["date"] = published[:10]
    return Found(line, {name: found for name, found in fields.items() if found})


def _rss(line: int, item: Element) -> Found | Refused:
    """An item of RSS; arXiv's own puts the id behind the title and a heading before the abstract."""
    title = plain(without_tags(_text(item, "title")))
    title = re.sub(r"\s*\(arXiv:[^()]*\)$", "", title)
    if not title:
        return Refused(line, "an item without a title")
    link, guid = _text(item, "link"), _text(item, "guid", "identifier")
    abstract = plain(without_tags(_text(item, "description", "encoded", "summary")))
    abstract = re.sub(r"^arXiv:\S+\s+Announce Type:\s*\S+\s+Abstract:\s*", "", abstract)
    creators = [plain(without_tags("".join(child.itertext()))) for child in item if _local(child.tag) in ("creator", "author")]
    fields: dict[str, Any] = {"title": title, "abstract": abstract}
    fields["authors"] = [name for each in creators for name in re.split(r",\s*|\s+and\s+", each) if name]
    fields["arxiv"] = arxiv_in(link, guid)
    fields["doi"] = keys.doi(_text(item, "doi")) or keys.doi(link) or keys.doi(guid)
    if re.match(r"https?://\S+$", link) and not fields["arxiv"]:
        fields["url"] = link
    fields |= _date(_text(item, "pubdate", "date", "published"))
    return Found(line, {name: found for name, found in fields.items() if found})


def _date(text: str) -> dict[str, str]:
    """The day of RSS 2.0 (e-mail's form) or of Dublin Core (ISO)."""
    if re.match(r"\d{4}-\d{2}-\d{2}", text):
        return {"date": text[:10]}
    try:
        return {"date": parsedate_to_datetime(text).date().isoformat()} if text else {}
    except (TypeError, ValueError, IndexError):
        return {}
