"""One paper: what is stored of it, and how a record that came from outside is made clean enough to be stored.

A reader of some format yields dictionaries of *fields* (title, arxiv, doi, url, year, date, kind, core, sentence,
abstract, authors, rooms, names, upvotes, curated); :func:`clean` checks them once, for all formats.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date as Day
from datetime import datetime, timezone
from typing import Any

from orrery.catalogue import keys
from orrery.core.errors import ConfigError, DataError

KINDS = (  # what a paper offers; the first that fits
    "architecture",  # a model or one of its parts
    "objective",  # a loss, a pretext task, an optimizer
    "embedding",  # sentence and text vectors
    "adaptation",  # fine-tuning, editing, merging, linearising
    "compression",  # pruning, quantisation, distillation
    "inference",  # decoding, caches, early exit
    "retrieval",  # search, ranking, reading what was found
    "search",  # neural architecture search
    "n-gram",  # counts
    "agents",  # tools, routing, several models together
    "data",  # corpora and how to make them
    "evaluation",  # benchmarks, probes, costs
    "application",  # one language, field or modality
    "survey",  # surveys, analyses, books, positions
)
TEXTS = ("title", "sentence", "abstract", "authors", "names")  # searched as text
CONTENT = (  # columns that a paper's digest covers; counters and flags of readers are not among them
    "slug", "title", "title_key", "arxiv", "doi", "url", "year", "date", "kind", "core", "sentence", "abstract", "authors", "rooms",
    "names", "source", "added", "shipped",
)  # fmt: skip
FIELDS = (  # what a record from outside may carry
    "title", "arxiv", "doi", "url", "year", "date", "kind", "core", "sentence", "abstract", "authors", "rooms", "names", "upvotes",
    "curated", "slug",
)  # fmt: skip
LONGEST = {"title": 1000, "sentence": 1000, "abstract": 20_000, "url": 2000, "slug": 80}  # characters
MOST_AUTHORS = 5000  # collaborations of physics have three thousand
EARLIEST, LATEST = 1800, 2100  # years
_UNPRINTED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060\u2066-\u2069\ufeff\ufffe\uffff]")
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,79}")


@dataclass(frozen=True)
class Paper:
    """A paper of the store.

    `sentence`, `kind`, `core`, `rooms`, `names` are ours; `abstract`, `authors`, `date`, `upvotes` come by import.
    """

    slug: str
    title: str
    arxiv: str | None = None
    doi: str | None = None
    url: str | None = None
    year: int | None = None
    date: str | None = None  # published, ISO day
    kind: str | None = None  # one of KINDS
    core: bool = False  # there is a system or method in it to build
    sentence: str = ""
    abstract: str = ""
    authors: tuple[str, ...] = ()
    rooms: tuple[str, ...] = ()
    names: tuple[str, ...] = ()  # registry names that are its working model
    topics: tuple[str, ...] = ()
    upvotes: int = 0  # as imported from upstream
    votes: int = 0  # of this store's readers
    curated: bool = False
    source: str = ""
    added: str = ""  # ISO second, UTC: when it entered this store
    shipped: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-able facts."""
        found = dict(self.__dict__)
        for name in ("authors", "rooms", "names", "topics"):
            found[name] = list(found[name])
        return found

    @property
    def link(self) -> str | None:
        """The best address to read it: arXiv's page, its DOI, or the address that came with it."""
        if self.arxiv:
            return f"https://arxiv.org/abs/{self.arxiv}"
        return f"https://doi.org/{self.doi}" if self.doi else self.url


def digest(values: Mapping[str, Any] | sqlite3.Row) -> str:
    """Checksum of a row's content, so that a flipped byte in the database is found before it is shown."""
    text = "\x1f".join([str(values[name]) for name in CONTENT])
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def from_row(row: sqlite3.Row, topics: Iterable[str] = ()) -> Paper:
    """The paper of a row of `papers`.

    Raises:
        sqlite3.DatabaseError: when the row's digest is not its content's.
    """
    if row["digest"] != digest(row):
        raise sqlite3.DatabaseError(f"the row of '{row['slug']}' has another digest than it carries")
    return Paper(
        slug=row["slug"],
        title=row["title"],
        arxiv=row["arxiv"],
        doi=row["doi"],
        url=row["url"],
        year=row["year"],
        date=row["date"],
        kind=row["kind"],
        core=bool(row["core"]),
        sentence=row["sentence"],
        abstract=row["abstract"],
        authors=tuple(row["authors"].split("\n")) if row["authors"] else (),
        rooms=tuple(row["rooms"].split()),
        names=tuple(row["names"].split()),
        topics=tuple(topics),
        upvotes=row["upvotes"],
        votes=row["votes"],
        curated=bool(row["curated"]),
        source=row["source"],
        added=row["added"],
        shipped=bool(row["shipped"]),
    )


def clean(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as they are stored: known ones only, one spelling, without control characters; empty ones left out.

    Raises:
        DataError: saying which field of the record cannot be used, and why.
    """
    found: dict[str, Any] = {}
    for name in ("title", "sentence", "abstract", "url"):
        text = _line(fields.get(name), name)
        if len(text) > LONGEST[name]:
            raise DataError(f"its {name} has {len(text):,} characters; the limit is {LONGEST[name]:,}")
        found[name] = text
    if not found["title"]:
        raise DataError("it has no title")
    found |= _ids(fields) | _time(fields)
    found |= _address(found)
    found["authors"] = _people(fields.get("authors"))
    for name in ("rooms", "names"):
        found[name] = _words(fields.get(name), name)
    kind = fields.get("kind")
    if kind and kind not in KINDS:
        raise DataError(f"its kind '{kind}' is none of {', '.join(KINDS)}")
    found["kind"] = kind
    for name in ("core", "curated"):
        found[name] = bool(fields.get(name))
    upvotes = fields.get("upvotes") or 0
    if isinstance(upvotes, bool) or not isinstance(upvotes, int) or not 0 <= upvotes < 2**53:
        raise DataError(f"its number of votes is {upvotes!r}, not a count")
    found["upvotes"] = upvotes
    if slug := fields.get("slug"):
        if not isinstance(slug, str) or not keys.SLUG.fullmatch(slug) or len(slug) > LONGEST["slug"]:
            raise DataError(f"its short name {slug!r} is not made of lower-case letters, digits and single hyphens")
        found["slug"] = slug
    return {name: value for name, value in found.items() if value}


def _line(value: Any, name: str) -> str:
    """Text in one line; None is empty."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"its {name} is {type(value).__name__}, not text")
    return plain(value)


def plain(text: str) -> str:
    """Text without control characters, direction marks and lone surrogates, composed, with single spaces."""
    if text.isascii() and text.isprintable() and "  " not in text:
        return text.strip()
    text = _UNPRINTED.sub("", text)
    text = unicodedata.normalize("NFC", text.encode("utf-8", "ignore").decode("utf-8"))
    return " ".join(text.split())


def _ids(fields: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if given := _line(fields.get("arxiv"), "arXiv id"):
        found["arxiv"] = keys.arxiv_id(given)
        if not found["arxiv"]:
            raise DataError(f"its arXiv id '{given[:60]}' is not of the form 2310.04691 or cs/0301012")
    if given := _line(fields.get("doi"), "DOI"):
        found["doi"] = keys.doi(given)
        if not found["doi"]:
            raise DataError(f"its DOI '{given[:60]}' is not of the form 10.1000/name")
        if of_arxiv := keys.arxiv_of_doi(found["doi"]):
            found["arxiv"] = found.get("arxiv") or of_arxiv
            del found["doi"]  # the arXiv id says the same
    return found


def _address(found: Mapping[str, Any]) -> dict[str, Any]:
    """The address with its odd characters written out; one that only repeats an arXiv id or a DOI becomes that."""
    url = found["url"]
    if not url:
        return {}
    if not re.match(r"https?://[^\s/]+", url, re.IGNORECASE):
        raise DataError(f"its address '{url[:80]}' is neither http nor https")
    for name, same in (("arxiv", keys.arxiv_id(url)), ("doi", keys.doi(url))):
        if name == "doi" and same and (of_arxiv := keys.arxiv_of_doi(same)):
            name, same = "arxiv", of_arxiv
        if same and found.get(name, same) == same:
            return {"url": "", name: same}
    return {"url": re.sub(r"[\s\\{}<>\"^`|]", lambda odd: "".join(f"%{byte:02X}" for byte in odd[0].encode()), url)}


def _time(fields: Mapping[str, Any]) -> dict[str, Any]:
    year, date = fields.get("year"), _line(fields.get("date"), "date")
    if isinstance(year, str) and year.strip().isdigit():
        year = int(year)
    if year is not None and (isinstance(year, bool) or not isinstance(year, int) or not EARLIEST <= year <= LATEST):
        raise DataError(f"its year is {year!r}, not a number from {EARLIEST} to {LATEST}")
    if not date:
        return {"year": year}
    try:
        day = Day.fromisoformat(date[:10])
    except ValueError:
        raise DataError(f"its date '{date[:40]}' is not of the form 2024-05-31") from None
    return {"year": year or day.year, "date": day.isoformat()}


def _people(value: Any) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise DataError("its authors are not a list of names")
    if len(value) > MOST_AUTHORS:
        raise DataError(f"it has {len(value):,} authors; the limit is {MOST_AUTHORS:,}")
    return list(dict.fromkeys(name for name in (plain(name)[:200].strip() for name in value) if name))


def _words(value: Any, name: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) and _NAME.fullmatch(word) for word in value):
        raise DataError(f"its {name} are not a list of plain names")
    return list(dict.fromkeys(value))


def second(at: datetime | str | None = None) -> str:
    """A moment as an ISO second of UTC (`2026-11-22T07:15:00Z`); None is now.

    Raises:
        ConfigError: when a text is no moment.
    """
    if at is None:
        at = datetime.now(timezone.utc)
    if isinstance(at, str):
        try:
            at = datetime.fromisoformat(at.replace("Z", "+00:00"))
        except ValueError:
            raise ConfigError(f"'{at}' is not a moment of the form 2026-11-22T07:15:00Z") from None
    at = at.replace(tzinfo=timezone.utc) if at.tzinfo is None else at.astimezone(timezone.utc)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
