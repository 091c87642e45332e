"""Bringing papers in from files: read by content, cleaned, merged, and told about, entry by entry.

Nothing is lost in silence: what is no record is refused with its file and line, every merge is named with its reason, and
an entry that stands twice in what is imported is named as a duplicate. Importing the same thing again changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from orrery.catalogue import formats, merge, record
from orrery.catalogue.merge import Put
from orrery.catalogue.reading import Found, Refused
from orrery.catalogue.store import Store
from orrery.core.errors import DataError

BATCH = 500  # records in one event of the journal


@dataclass(frozen=True)
class Entry:
    """A record of an import: where it stood, its title, the paper it became, and why it was one already there."""

    file: str
    line: int
    title: str
    slug: str
    why: str = ""


@dataclass(frozen=True)
class Refusal:
    """What could not be read, where, and why."""

    file: str
    line: int
    why: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.why}" if self.line else f"{self.file}: {self.why}"


@dataclass
class Report:
    """What an import did. Every record is in exactly one of added, merged, unchanged and duplicates."""

    added: list[Entry] = field(default_factory=list)
    merged: list[Entry] = field(default_factory=list)  # into a paper that was there before, which got something new
    unchanged: list[Entry] = field(default_factory=list)
    duplicates: list[Entry] = field(default_factory=list)  # of an earlier record of the same import; `why` names both
    refused: list[Refusal] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def records(self) -> int:
        """Records that were read."""
        return len(self.added) + len(self.merged) + len(self.unchanged) + len(self.duplicates)

    @property
    def papers(self) -> int:
        """Distinct papers among them."""
        return self.records - len(self.duplicates)

    @property
    def failed(self) -> bool:
        """Whether nothing at all could be read."""
        return not self.records

    def summary(self) -> str:
        """The import in one line."""
        counts = (f"{len(self.added)} added", f"{len(self.merged)} merged", f"{len(self.unchanged)} unchanged")
        more = [f"{len(found)} {what}" for found, what in ((self.duplicates, "named twice"), (self.refused, "refused")) if found]
        return f"{self.records} entries, {self.papers} distinct papers: {', '.join((*counts, *more))}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able facts."""
        lists = {name: [each.__dict__ for each in getattr(self, name)] for name in ("added", "merged", "unchanged", "duplicates", "refused")}
        return {"records": self.records, "papers": self.papers, **lists, "seconds": round(self.seconds, 3)}


def import_files(
    store: Store,
    paths: Iterable[str | Path],
    at: datetime | str | None = None,
    kind: str | None = None,
    tell: Callable[[int], None] | None = None,
) -> Report:
    """Import files into the store.

    Args:
        at: the moment that new papers are said to have entered (None: now).
        kind: a format of `formats.READERS` for all of them; None finds each file's by its content.
        tell: called with the number of records that have just been stored, for a progress bar.
    """
    importer = _Importer(store, at, tell)
    for path in paths:
        try:
            importer.take(formats.read_file(path), str(path), kind)
        except DataError as error:
            importer.report.refused.append(Refusal(str(path), 0, str(error)))
    return importer.finish()


def import_text(store: Store, text: str, source: str, at: datetime | str | None = None, kind: str | None = None) -> Report:
    """:func:`import_files` for a text that is at hand; `source` names it in the report and in the store."""
    importer = _Importer(store, at)
    try:
        importer.take(text, source, kind)
    except DataError as error:
        importer.report.refused.append(Refusal(source, 0, str(error)))
    return importer.finish()


class _Importer:
    """One import: what is waiting to be recorded, and which papers have been met."""

    def __init__(self, store: Store, at: datetime | str | None, tell: Callable[[int], None] | None = None) -> None:
        self.store, self.at, self.say = store, record.second(at), tell
        self.report = Report()
        self.begin = time.perf_counter()
        self.met: dict[int, Entry] = {}  # paper -> the first record of this import that was it

    def take(self, text: str, name: str, kind: str | None) -> None:
        """Import one text."""
        source = record.plain(Path(name).name)[:200] or "import"
        waiting: list[tuple[int, dict[str, Any]]] = []
        refused = 0
        for each in formats.records(text, kind):
            problem = each.why if isinstance(each, Refused) else None
            if isinstance(each, Found):
                try:
                    waiting.append((each.line, record.clean(each.fields)))
                except DataError as error:
                    problem = f"'{record.plain(str(each.fields.get('title', '')))[:60]}': {error}"
            if problem is not None:
                refused += 1
                self.report.refused.append(Refusal(name, each.line, problem))
            if len(waiting) >= BATCH:
                self._record(waiting, name, source, refused)
                waiting, refused = [], 0
        if waiting:
            self._record(waiting, name, source, refused)

    def _record(self, waiting: list[tuple[int, dict[str, Any]]], name: str, source: str, refused: int) -> None:
        facts = {"source": source, "papers": [fields for _, fields in waiting], "refused": refused}
        done: list[Put] = self.store.record("import", facts, at=self.at)
        for (line, fields), put in zip(waiting, done, strict=True):
            self._tell(Entry(name, line, fields["title"], put.slug, put.why), put)
        if self.say is not None:
            self.say(len(waiting))

    def _tell(self, entry: Entry, put: Put) -> None:
        first = self.met.setdefault(put.paper, entry)
        if first is not entry:
            where = f"{Path(first.file).name}:{first.line}"
            self.report.duplicates.append(Entry(entry.file, entry.line, entry.title, put.slug, f"{put.why} is that of {where}"))
            return
        report = {merge.ADDED: self.report.added, merge.MERGED: self.report.merged, merge.SAME: self.report.unchanged}
        report[put.outcome].append(entry)

    def finish(self) -> Report:
        """The report."""
        self.report.seconds = time.perf_counter() - self.begin
        return self.report
