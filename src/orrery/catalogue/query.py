"""What a reader types, as a query: words, "phrases", prefix*, field:word, -not, OR. Nothing typed is ever an error.

A part that is not of the language (a quote that is never closed, a field without a word, a lone OR or minus) is read as
the plain words in it. Expressions for the full-text index are built here from words alone, each quoted, so that no
character of a query can reach its grammar.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from orrery.catalogue.words import STOP, fold

LONGEST = 500  # characters that are read; the rest is left out
MOST_TERMS = 24
SHORTEST_PREFIX = 2  # letters, as the index has prefixes; a shorter one is a word
COLUMNS = ("title", "sentence", "abstract", "authors", "names")
COLUMN_WEIGHTS = {"title": 8.0, "sentence": 4.0, "abstract": 1.0, "authors": 3.0, "names": 6.0}
TOKENIZER = "porter unicode61 remove_diacritics 2"  # as in schema.TABLES
_FIELDS = {  # what a reader calls it -> column of the index
    "title": "title", "abstract": "abstract", "sentence": "sentence", "author": "authors", "authors": "authors", "name": "names",
    "names": "names", "model": "names",
}  # fmt: skip
_FACETS = ("kind", "year", "topic", "room", "status")  # answered by filters, not by the text
_PART = re.compile(
    r"""(?P<minus>-)?
    (?:(?P<field>[A-Za-z]{4,8}):)?
    (?:"(?P<phrase>[^"]*)"|(?P<word>[^\s"]+))""",
    re.VERBOSE,
)
_RUN = re.compile(r"[^\W_]+")
_YEARS = re.compile(r"(\d{4})(?:(-|\.\.)(\d{4})?)?")


@dataclass(frozen=True)
class Term:
    """One word, phrase or prefix, wanted in a column (None: anywhere)."""

    words: tuple[str, ...]
    column: str | None = None
    prefix: bool = False
    exact: bool = False  # in quotes: never mended

    def match(self) -> str:
        """The expression of the full-text index for this term."""
        text = '"' + " ".join(self.words) + '"' + ("*" if self.prefix else "")
        return f"{{{self.column}}} : {text}" if self.column else text

    @property
    def plain(self) -> bool:
        """A bare word: no quotes, no prefix, no column."""
        return len(self.words) == 1 and not self.prefix and not self.exact and self.column is None


@dataclass(frozen=True)
class Query:
    """What is wanted: every group by one of its alternatives, and none of what is excluded."""

    groups: tuple[tuple[Term, ...], ...] = ()
    excluded: tuple[Term, ...] = ()
    facets: dict[str, str] = field(default_factory=dict)  # kind, year, topic, room, status
    text: str = ""  # the wanted words in order, for the semantic side

    @property
    def empty(self) -> bool:
        """Whether no word is wanted; facets may still be set."""
        return not self.groups

    @property
    def terms(self) -> tuple[Term, ...]:
        """All wanted terms."""
        return tuple(term for group in self.groups for term in group)

    def without(self) -> str:
        """The excluding end of an expression, or an empty string."""
        return " NOT (" + " OR ".join(term.match() for term in self.excluded) + ")" if self.excluded else ""

    def every(self) -> str:
        """The expression that wants every group."""
        return " AND ".join("(" + " OR ".join(term.match() for term in group) + ")" for group in self.groups)


def parse(text: str) -> Query:
    """Read a query. Any text is one; words that say nothing are left out unless they are all there is."""
    text = text[:LONGEST].encode("utf-8", "ignore").decode("utf-8").replace("\0", " ")
    groups: list[list[Term]] = []
    excluded: list[Term] = []
    facets: dict[str, str] = {}
    joining = False
    for part in _PART.finditer(text):
        if part["word"] == "OR" and not part["minus"] and not part["field"]:
            joining = bool(groups)
            continue
        facet = (part["field"] or "").lower()
        value = part["phrase"] if part["phrase"] is not None else part["word"]
        if facet in _FACETS and value and value.strip() and not part["minus"]:
            facets[facet] = value.strip()
            continue
        found = _terms(part)
        if len(groups) + len(excluded) + len(found) > MOST_TERMS:
            break
        if part["minus"] and len(found) == 1:
            excluded += found
        elif joining and found:
            groups[-1] += found
        else:
            groups += [[term] for term in found]
        joining = False
    kept = [tuple(group) for group in groups if not _idle(group)] or [tuple(group) for group in groups]
    kept = list(dict.fromkeys(kept))
    wanted = " ".join(word for group in kept for term in group for word in term.words)
    return Query(tuple(kept), tuple(excluded), facets, wanted)


def _terms(part: re.Match[str]) -> list[Term]:
    """The terms of one part; several where a word holds several (`pre-training` is a phrase of two)."""
    column = _FIELDS.get((part["field"] or "").lower())
    before = [] if column or not part["field"] else [Term((word,)) for word in _RUN.findall(part["field"])]
    value = part["phrase"] if part["phrase"] is not None else part["word"]
    found = tuple(_RUN.findall(fold(value)))
    if not found:
        return before
    if part["phrase"] is None and len(found) > 1 and re.search(r"[^\w'’.\-/]|_", value.strip("*.,;:!?()[]{}")):
        return [*before, *(Term((word,), column) for word in found)]  # `a+b`, `a:b`: words, not one name
    prefix = part["phrase"] is None and value.endswith("*") and len(found[-1]) >= SHORTEST_PREFIX
    return [*before, Term(found, column, prefix, exact=part["phrase"] is not None)]


def _idle(group: list[Term]) -> bool:
    return len(group) == 1 and group[0].plain and group[0].words[0] in STOP


def years(text: str) -> tuple[int, int] | None:
    """A year or a span of years (`2021`, `2019-2022`, `2020-`) as first and last year; None when it is neither."""
    found = _YEARS.fullmatch(text.strip())
    if not found:
        return None
    first = int(found[1])
    if not found[2]:
        return first, first
    return first, int(found[3]) if found[3] else 9999
