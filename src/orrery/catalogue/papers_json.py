"""Papers in JSON: Hugging Face's papers API (a day's list, one paper), CSL-JSON, and our own export."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from orrery.catalogue import keys
from orrery.catalogue.reading import Found, Lines, Records, Refused, arxiv_in, without_tags
from orrery.catalogue.record import FIELDS, plain

FORMAT = "orrery papers"  # names our own export
_NEXT = re.compile(r"\}\s*,\s*(?=\{)|\}\s*\n\s*(?=\{)")
_SPACE = re.compile(r"[\s,]*")


def records(text: str) -> Records:
    """Records of a JSON document, or of JSON lines; an element that is not JSON is refused with its line."""
    lines = Lines(text)
    decoder = json.JSONDecoder()
    position, end = _begin(text)
    read: Callable[[int, Any], Found | Refused] | None = None
    while position < len(text):
        position = _SPACE.match(text, position).end()  # type: ignore[union-attr]
        if position >= len(text) or (end and text.startswith(end, position)):
            return
        line = lines.at(position)
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            where = lines.at(getattr(error, "pos", position))
            yield Refused(line, f"not valid JSON ({why} at line {where})")
            following = _NEXT.search(text, max(position, getattr(error, "pos", position)))
            if not following:
                return
            position = following.end()
            continue
        if isinstance(value, list):
            for item in value:
                yield _reader(item)(line, item)
            continue
        read = read or _reader(value)
        yield read(line, value)


def _begin(text: str) -> tuple[int, str]:
    """Where the first element begins, and what closes the list that holds them."""
    own = re.match(r'\s*\{\s*"format"\s*:\s*"orrery papers".*?"papers"\s*:\s*\[', text, re.DOTALL)
    wrapped = own or re.match(r'\s*\{\s*"(?:papers|items|references|results)"\s*:\s*\[', text) or re.match(r"\s*\[", text)
    return (wrapped.end(), "]") if wrapped else (0, "")


def _reader(value: Any) -> Callable[[int, Any], Found | Refused]:
    """Which shape an element has."""
    if not isinstance(value, dict):
        return lambda line, each: Refused(line, f"{type(each).__name__} where a paper should be")
    if "slug" in value and "title" in value:
        return own
    if isinstance(value.get("paper"), dict) or ("id" in value and ("upvotes" in value or "publishedAt" in value or "summary" in value)):
        return hugging_face
    return csl


def own(line: int, value: Any) -> Found | Refused:
    """A paper of our own JSON export."""
    if not isinstance(value, dict):
        return Refused(line, "no object where a paper should be")
    return Found(line, {name: value[name] for name in FIELDS if value.get(name) not in (None, "", [], False, 0)})


def hugging_face(line: int, value: Any) -> Found | Refused:
    """A paper of Hugging Face's API, alone or as an item of a day's list."""
    if not isinstance(value, dict):
        return Refused(line, "no object where a paper should be")
    listed = isinstance(value.get("paper"), dict)
    paper = value["paper"] if listed else value
    title = _text(paper.get("title") or value.get("title"))
    if not title:
        return Refused(line, f"the paper '{paper.get('id')}' has no title")
    authors = paper.get("authors")
    names = [each.get("name") for each in authors if isinstance(each, dict)] if isinstance(authors, list) else []
    fields: dict[str, Any] = {
        "title": title,
        "arxiv": arxiv_in(paper.get("id")),
        "abstract": _text(paper.get("summary") or value.get("summary")),
        "authors": [name for name in names if isinstance(name, str)],
        "upvotes": paper.get("upvotes") if isinstance(paper.get("upvotes"), int) else 0,
        "curated": listed or bool(paper.get("submittedOnDailyAt")),
    }
    published = paper.get("publishedAt") or value.get("publishedAt")
    if isinstance(published, str) and re.match(r"\d{4}-\d{2}-\d{2}", published):
        fields["date"] = published[:10]
    return Found(line, {name: found for name, found in fields.items() if found})


def csl(line: int, value: Any) -> Found | Refused:
    """An item of CSL-JSON."""
    if not isinstance(value, dict):
        return Refused(line, "no object where a paper should be")
    title = _text(value.get("title"))
    if not title:
        return Refused(line, f"the item '{value.get('id', '')}' has no title")
    fields: dict[str, Any] = {"title": title, "abstract": _text(value.get("abstract"))}
    authors = value.get("author") if isinstance(value.get("author"), list) else []
    fields["authors"] = [name for each in authors or [] if isinstance(each, dict) and (name := _name(each))]
    doi = value.get("DOI")
    if isinstance(doi, str) and keys.doi(doi):
        fields["doi"] = keys.doi(doi)
    url = value.get("URL")
    if isinstance(url, str) and re.match(r"https?://\S+$", url.strip(), re.IGNORECASE):
        fields["url"] = url.strip()
    told = [value.get(name) for name in ("arxiv", "number", "archive_location", "container-title", "note", "URL", "id")]
    fields["arxiv"] = arxiv_in(*told)
    fields |= _issued(value.get("issued"))
    return Found(line, {name: found for name, found in fields.items() if found})


def _text(value: Any) -> str:
    return plain(without_tags(value)) if isinstance(value, str) else ""


def _name(author: dict[str, Any]) -> str:
    if isinstance(author.get("literal"), str):
        return author["literal"]
    parts = [author.get(name) for name in ("given", "non-dropping-particle", "dropping-particle", "family", "suffix")]
    return " ".join(part for part in parts if isinstance(part, str) and part)


def _issued(issued: Any) -> dict[str, Any]:
    """Year and day of CSL's date, in any of the forms that programs write."""
    if not isinstance(issued, dict):
        return {}
    parts = issued.get("date-parts")
    if isinstance(parts, list) and parts and isinstance(parts[0], list) and parts[0]:
        try:
            numbers = [int(part) for part in parts[0][:3] if part not in (None, "")]
        except (TypeError, ValueError):
            return {}
        if len(numbers) == 3:
            return {"year": numbers[0], "date": f"{numbers[0]:04}-{numbers[1]:02}-{numbers[2]:02}"}
        return {"year": numbers[0]} if numbers else {}
    raw = issued.get("raw") or issued.get("literal")
    year = re.search(r"\b(\d{4})\b", raw) if isinstance(raw, str) else None
    return {"year": int(year[1])} if year else {}
