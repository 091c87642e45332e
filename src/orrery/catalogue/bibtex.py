"""BibTeX, read by a parser of our own: nested braces, quoted values, `#`, @string, comments, LaTeX, several authors.

An entry that cannot be understood is refused with its line, and reading goes on at the next `@` that begins a line.
Whatever stands between entries is a comment, as BibTeX has it.
"""

from __future__ import annotations

import re
from datetime import date as Day
from typing import Any

from orrery.catalogue import keys
from orrery.catalogue.latex import to_text
from orrery.catalogue.reading import Found, Lines, Records, Refused, arxiv_in
from orrery.catalogue.record import plain
from orrery.core.errors import DataError

_ENTRY = re.compile(r"@[ \t]*([A-Za-z]\w*)\s*([{(])")
_NEXT = re.compile(r"^[ \t]*@[ \t]*[A-Za-z]\w*\s*[{(]", re.MULTILINE)
_KEY = re.compile(r"\s*([^\s,{}()=\"#%]*)\s*(?=[,})])")
_NAME = re.compile(r"[\s,]*([A-Za-z_][\w:.+/-]*)\s*=\s*")
_WORD = re.compile(r"[^\s,{}()\"#=]+")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_QUOTE = re.compile(r"\\.|[{}\"]", re.DOTALL)
_GLUE = re.compile(r"\s*#\s*")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


class _Malformed(Exception):
    """An entry that breaks the grammar, at an offset."""

    def __init__(self, why: str, offset: int) -> None:
        super().__init__(why)
        self.offset = offset


def read(text: str) -> list[dict[str, Any]]:
    """Fields of all entries of a text.

    Raises:
        DataError: naming the line of the first entry that cannot be understood, or when there is none.
    """
    found = []
    for each in records(text):
        if isinstance(each, Refused):
            raise DataError(f"line {each.line} of the BibTeX: {each.why}")
        found.append(each.fields)
    if not found:
        raise DataError("there is no BibTeX entry in it; one looks like @article{key, title = {...}, author = {...}, year = 2024}")
    return found


def records(text: str) -> Records:
    """Every entry of a BibTeX file as a record, and every one that is refused."""
    lines = Lines(text)
    strings = {month: month for month in MONTHS}
    position = 0
    while match := _ENTRY.search(text, position):
        start, kind = match.start(), match[1].lower()
        if kind == "comment":
            position = match.end()
            continue
        try:
            key, fields, position = _entry(text, match, strings)
        except _Malformed as error:
            yield Refused(lines.at(start), f"this @{match[1]} {error}")
            following = _NEXT.search(text, max(match.end(), start + 1))
            position = following.start() if following else len(text)
            continue
        if kind == "string":
            strings |= fields
        elif kind != "preamble":
            yield _record(lines.at(start), key, fields)


def _entry(text: str, match: re.Match[str], strings: dict[str, str]) -> tuple[str, dict[str, str], int]:
    """Key, raw fields by lower-case name, and the offset behind an entry."""
    closing = "}" if match[2] == "{" else ")"
    position = match.end()
    key = ""
    if match[1].lower() == "preamble":
        _, position = _value(text, position, strings)
    elif match[1].lower() != "string":
        found = _KEY.match(text, position)
        if not found:
            raise _Malformed("has no key, or its key is not followed by a comma", position)
        key, position = found[1], found.end()
    fields: dict[str, str] = {}
    while True:
        position = _skip(text, position)
        if position >= len(text):
            raise _Malformed("is not closed before the end of the file", position)
        if text[position] == closing:
            return key, fields, position + 1
        name = _NAME.match(text, position)
        if not name:
            raise _Malformed(f"cannot be read at '{text[position : position + 20].splitlines()[0]}': a field looks like name = {{value}}", position)
        value, position = _value(text, name.end(), strings)
        fields.setdefault(name[1].lower(), value)
        position = _skip(text, position, comma=False)
        if position < len(text) and text[position] not in ("," + closing):
            raise _Malformed(f"lacks a comma or a closing brace after its field '{name[1]}'", position)


def _skip(text: str, position: int, comma: bool = True) -> int:
    letters = " \t\r\n," if comma else " \t\r\n"
    while position < len(text) and text[position] in letters:
        position += 1
    return position


def _value(text: str, position: int, strings: dict[str, str]) -> tuple[str, int]:
    """A value: pieces in braces, in quotes, numbers or names of strings, joined by `#`."""
    parts = []
    while True:
        position = _skip(text, position, comma=False)
        start = text[position : position + 1]
        if start == "{":
            end = _balanced(text, position)
            parts.append(text[position + 1 : end])
            position = end + 1
        elif start == '"':
            end = _quoted(text, position)
            parts.append(text[position + 1 : end])
            position = end + 1
        elif word := _WORD.match(text, position):
            parts.append(strings.get(word[0].lower(), word[0]))
            position = word.end()
        else:
            raise _Malformed("has a field without a value", position)
        glue = _GLUE.match(text, position)
        if not glue:
            return "".join(parts), position
        position = glue.end()


def _balanced(text: str, position: int) -> int:
    """The offset of the brace that closes the one at `position`. A new entry inside means that one was forgotten."""
    depth = 0
    for mark in _BRACE.finditer(text, position):
        if mark[0] == "{":
            depth += 1
        elif mark[0] == "}":
            depth -= 1
            if depth == 0:
                inside = _NEXT.search(text, position, mark.start()) if text.find("@", position, mark.start()) >= 0 else None
                if inside and re.search(r"^\s*\w+\s*=\s*[{\"]", text[inside.end() : mark.start()], re.MULTILINE):
                    break
                return mark.start()
    raise _Malformed("has a brace that is not closed", position)


def _quoted(text: str, position: int) -> int:
    depth = 0
    for mark in _QUOTE.finditer(text, position + 1):
        if mark[0] == "{":
            depth += 1
        elif mark[0] == "}":
            depth -= 1
        elif mark[0] == '"' and depth == 0:
            return mark.start()
        if depth < 0:
            break
    raise _Malformed("has a quotation mark that is not closed", position)


def _record(line: int, key: str, raw: dict[str, str]) -> Found | Refused:
    """Our fields of an entry."""
    title = plain(to_text(raw.get("title", "")))
    if not title:
        return Refused(line, f"the entry '{key}' has no title")
    fields: dict[str, Any] = {"title": title}
    if names := people(raw.get("author") or raw.get("editor") or ""):
        fields["authors"] = names
    if doi := keys.doi(plain(to_text(raw.get("doi", "")))):
        fields["doi"] = doi
    url = plain(_address(raw.get("url") or raw.get("howpublished") or raw.get("bdsk-url-1") or ""))
    if re.match(r"https?://\S+$", url, re.IGNORECASE):
        fields["url"] = url
    eprint = raw.get("eprint", "")
    of_arxiv = (raw.get("archiveprefix") or raw.get("eprinttype") or "arxiv").strip().lower() == "arxiv"
    told = [raw.get(name) for name in ("arxiv", "arxivid", "journal", "note", "howpublished", "volume", "number")]
    if arxiv := (arxiv_in(eprint) if of_arxiv else None) or arxiv_in(*told, raw.get("url")):
        fields["arxiv"] = arxiv
    if abstract := plain(to_text(raw.get("abstract", ""))):
        fields["abstract"] = abstract
    fields |= _when(raw)
    return Found(line, fields)


def _address(raw: str) -> str:
    inner = re.search(r"\\url\{([^{}]*)\}", raw)
    return re.sub(r"\\([&%$#_{}~])", r"\1", inner[1] if inner else raw).replace("{}", "")


def _when(raw: dict[str, str]) -> dict[str, Any]:
    """Year, and the day where `date`, or year, month and day are all given."""
    date = to_text(raw.get("date", "")).strip()
    year = re.search(r"\d{4}", to_text(raw.get("year", "")) or date)
    if not year:
        return {}
    month, day = raw.get("month", "").strip().lower(), raw.get("day", "").strip()
    number = MONTHS.index(month[:3]) + 1 if month[:3] in MONTHS else month
    for form in (date[:10], f"{year[0]}-{number:0>2}-{day:0>2}"):
        try:
            return {"year": int(year[0]), "date": Day.fromisoformat(form).isoformat()}
        except ValueError:
            continue
    return {"year": int(year[0])}


def people(raw: str) -> list[str]:
    """Names of an author field in the order in which they are spoken; "and others" is left out."""
    names = []
    for name in _split(raw):
        whole = re.fullmatch(r"\s*\{((?:[^{}\\]|\\.|\{[^{}]*\})*)\}\s*", name)
        parts = [name] if whole else _split(name, comma=True)
        text = [plain(to_text(part)) for part in parts]
        if len(text) == 2 and text[1]:
            spoken = f"{text[1]} {text[0]}"
        elif len(text) == 3:  # Last, Jr, First
            spoken = f"{text[2]} {text[0]} {text[1]}"
        else:
            spoken = ", ".join(part for part in text if part)
        if spoken and (whole or spoken != "others"):
            names.append(spoken)
    return names


def _split(raw: str, comma: bool = False) -> list[str]:
    """Parts of a value at the word `and` (or at commas) outside braces."""
    parts, depth, begin = [], 0, 0
    for mark in re.finditer(r"\\.|[{}]|," if comma else r"\\.|[{}]|\s(?:and|AND)(?=\s)", raw, re.DOTALL):
        if mark[0] == "{":
            depth += 1
        elif mark[0] == "}":
            depth -= 1
        elif depth == 0 and not mark[0].startswith("\\"):
            parts.append(raw[begin : mark.start()])
            begin = mark.end()
    return [*parts, raw[begin:]]
