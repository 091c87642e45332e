"""Pages of Daily Papers: their text as copied (titles and abstracts in turn), and their HTML as a browser saves it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

from orrery.catalogue import keys
from orrery.catalogue.papers_json import hugging_face
from orrery.catalogue.reading import Found, Records, Refused

ABSTRACT = 250  # characters from which a line is an abstract whatever else it looks like; titles end at 200
_TITLE = 12  # characters that a title without an abstract has at least, in three words or more
_FURNITURE = re.compile(
    r"(?:new|subscribe|daily papers|papers?|trending|search|login|sign up|log in|upvote|share|by\s*ak and the research community"
    r"|get trending papers in your email inbox.*|submitted by.*|published (?:on|at) .*|\W*\d[\d,.]*k?\W*|\W*\d+ (?:authors?|comments?|upvotes?)\W*"
    r"|(?:mon|tue|wed|thu|fri|sat|sun)\w*,?.{0,12}|(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.? \d{1,2}(?:,? \d{4})?"
    r"|(?:this )?(?:day|week|month|daily|weekly|monthly)|previous|next|load more|\W+)",
    re.IGNORECASE,
)
_GLUED = re.compile(r"^(?:Subscribe|Daily Papers|Trending Papers|Submitted by)(?=[A-Z0-9])")


def text_records(text: str) -> Records:
    """Records of a copied page: a short line is a title, the long line after it its abstract.

    A title without an abstract is still a record; an abstract without a title, or a line that is neither, is refused.
    """
    title, at = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        line = " ".join(_GLUED.sub("", line.strip()).split())
        if not line or _FURNITURE.fullmatch(line):
            continue
        if _is_abstract(line, bool(title)):
            if title:
                yield Found(at, {"title": title, "abstract": line, "curated": True})
            else:
                yield Refused(number, f"an abstract without a title before it ('{line[:50]}...')")
            title = ""
        else:
            if title:
                yield _alone(title, at)
            title, at = line, number
    if title:
        yield _alone(title, at)


def _is_abstract(line: str, after_title: bool) -> bool:
    """Long enough, or several sentences behind a title."""
    return len(line) >= ABSTRACT or (after_title and line[-1] in ".!?" and len(re.findall(r"[.!?](?:\s|$)", line)) >= 2)


def _alone(title: str, line: int) -> Found | Refused:
    if len(title) < _TITLE or title.count(" ") < 2:
        return Refused(line, f"'{title[:60]}' is neither a title nor an abstract")
    return Found(line, {"title": title, "curated": True})


def looks_like(text: str) -> bool:
    """Whether a text has the shape of a copied page: at least one title with its abstract."""
    return any(isinstance(record, Found) and record.fields.get("abstract") for record in text_records(text))


def html_records(text: str) -> Records:
    """Records of a saved page: from the data that the page carries for its script, else from its articles."""
    page = _Page()
    page.feed(text)
    page.close()
    page.finish()
    seen = set()
    for line, facts in page.data:
        record = hugging_face(line, facts)
        if isinstance(record, Found):
            seen.add(record.fields.get("arxiv") or record.fields["title"])
            yield record
    for line, fields in page.articles:
        if not fields.get("title"):
            yield Refused(line, "an article without a heading")
        elif fields.get("arxiv", fields["title"]) not in seen and fields["title"] not in seen:
            yield Found(line, {**fields, "curated": True})


class _Page(HTMLParser):
    """Collects JSON in `data-props` and what articles hold: heading, link to the paper, longest paragraph, votes."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.data: list[tuple[int, dict[str, Any]]] = []
        self.articles: list[tuple[int, dict[str, Any]]] = []
        self._article: dict[str, Any] | None = None
        self._line = 0
        self._open: list[str] = []  # headings, paragraphs and small divisions that are open
        self._text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        if props := found.get("data-props"):
            self._props(props)
        if tag == "article":
            self.finish()
            self._article, self._line = {}, self.getpos()[0]
        if self._article is None:
            return
        if tag in ("h1", "h2", "h3", "h4", "p") or (tag == "div" and "leading-none" in found.get("class", "")):
            self._open, self._text = [tag], ""
        link = re.search(r"/papers/([^/?#]+)|arxiv\.org/abs/([^/?#]+)", found.get("href", ""))
        if tag == "a" and link and (paper := keys.arxiv_id(link[1] or link[2])):
            self._article.setdefault("arxiv", paper)

    def handle_data(self, data: str) -> None:
        if self._open:
            self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "article":
            self.finish()
        if self._article is None or self._open != [tag]:
            return
        text = " ".join(self._text.split())
        self._open = []
        if tag == "p":
            if len(text) > len(self._article.get("abstract", "")):
                self._article["abstract"] = text
        elif tag == "div":
            if text.isdigit():
                self._article["upvotes"] = int(text)
        elif text:
            self._article.setdefault("title", text)

    def finish(self) -> None:
        """Put the open article away."""
        if self._article is not None:
            self.articles.append((self._line, self._article))
        self._article = None

    def _props(self, props: str) -> None:
        try:
            value = json.loads(props)
        except (ValueError, RecursionError):
            return  # not every element's data is a paper's
        line = self.getpos()[0]
        stack = [value]
        while stack:
            each = stack.pop()
            if isinstance(each, list):
                stack += reversed(each)
            elif isinstance(each, dict):
                if _is_paper(each.get("paper")) or (_is_paper(each) and isinstance(each.get("title"), str)):
                    self.data.append((line, each))
                else:
                    stack += reversed(list(each.values()))


def _is_paper(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("id"), str) and keys.arxiv_id(value["id"]) is not None
