"""Narrowing a search: by kind, year, topic, room and status. A status is computed, so it becomes a list of papers here."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from orrery.catalogue import topics
from orrery.catalogue.query import Query, Term, years
from orrery.catalogue.record import KINDS, Paper
from orrery.catalogue.words import words
from orrery.core import registry
from orrery.core.errors import ConfigError, OrreryError, UnknownNameError, suggest

if TYPE_CHECKING:
    from orrery.catalogue.store import Store

NEWEST = "ORDER BY COALESCE(date, year || '-01-01') DESC, id DESC"


@dataclass
class Filters:
    """Conditions on rows of `papers`, all of which must hold."""

    conditions: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    @classmethod
    def read(cls, store: Store, asked: Query, given: dict[str, str | None]) -> tuple[Query, Filters]:
        """Filters from arguments and from the query's facets, and the query that remains.

        Raises:
            UnknownNameError, ConfigError: an argument that names no kind, topic, status or year. A facet of the query that
                does not is searched as words.
        """
        filters = cls()
        for name, value in given.items():
            if value:
                filters._add(store, name, value)
        for name, value in asked.facets.items():
            if given.get(name):
                continue
            try:
                filters._add(store, name, value)
            except OrreryError:
                more = tuple((Term((word,)),) for word in words(f"{name} {value}"))
                asked = replace(asked, groups=asked.groups + more, text=f"{asked.text} {name} {value}".strip())
        return asked, filters

    def _add(self, store: Store, name: str, value: str) -> None:
        value = value.strip().lower()
        if name == "kind":
            if value not in KINDS:
                raise UnknownNameError(f"unknown kind '{value}'.{suggest(value, KINDS)} Kinds: {', '.join(KINDS)}")
            self._condition("kind = ?", value)
        elif name == "year":
            span = years(value)
            if span is None:
                raise ConfigError(f"'{value}' is neither a year nor a span of years such as 2021-2023")
            self._condition("year BETWEEN ? AND ?", *span)
        elif name == "topic":
            self._condition("id IN (SELECT paper FROM paper_topics WHERE topic = ?)", topics.check(value))
        elif name == "room":
            self._condition("' ' || rooms || ' ' LIKE ? ESCAPE '!'", f"% {_escaped(value)} %")
        else:
            self._status(store, value)

    def _condition(self, text: str, *values: Any) -> None:
        self.conditions.append(text)
        self.values.extend(values)

    def _status(self, store: Store, wanted: str) -> None:
        """Papers whose computed status is `wanted`.

        Only shipped papers, those that carry names, and those whose arXiv id is registered can have a model here; all others
        have the status of their kind and `core`.
        """
        from orrery.catalogue import status

        if wanted not in status.STATES:
            raise UnknownNameError(
                f"unknown status '{wanted}'.{suggest(wanted, status.STATES)} States: {', '.join(status.STATES)}"
            )
        connection = store.connection()
        ids = sorted({entry.paper for entry in registry.entries() if entry.paper})
        special = f"(shipped OR names != '' OR COALESCE(arxiv, '') IN ({', '.join('?' * len(ids))}))"
        slugs = [row[0] for row in connection.execute(f"SELECT slug FROM papers WHERE {special}", ids)]
        kept = [paper.slug for paper in store.papers(slugs) if status.of(paper).state == wanted]
        parts, values = [f"slug IN ({', '.join('?' * len(kept))})"], list[Any](kept)
        for kind in (None, *KINDS):
            for core in (False, True):
                if status.of(Paper(slug="", title="", kind=kind, core=core)).state == wanted:
                    parts.append(f"(kind IS ? AND core = ? AND NOT {special})")
                    values += [kind, core, *ids]
        self._condition("(" + " OR ".join(parts) + ")", *values)

    def condition(self, column: str) -> tuple[str, list[Any]]:
        """` AND ...` on the number of a paper in another table, and its values; empty when nothing is filtered.

        The plus keeps SQLite from asking the full-text index once for every paper that passes.
        """
        if not self.conditions:
            return "", []
        return f" AND +{column} IN (SELECT id FROM papers WHERE {' AND '.join(self.conditions)})", list(self.values)

    def mask(self, connection: sqlite3.Connection, ids: Any) -> Any:
        """Which of some papers pass, as an array; None when nothing is filtered."""
        import numpy as np

        if not self.conditions:
            return None
        rows = connection.execute(f"SELECT id FROM papers WHERE {' AND '.join(self.conditions)}", self.values)
        return np.isin(ids, np.fromiter((row[0] for row in rows), np.int64))

    def newest(self, connection: sqlite3.Connection, limit: int, offset: int) -> tuple[list[tuple[int, float]], int]:
        """Papers that pass, newest first, with a score of zero; and how many pass in all."""
        where = f" WHERE {' AND '.join(self.conditions)}" if self.conditions else ""
        total = connection.execute(f"SELECT COUNT(*) FROM papers{where}", self.values).fetchone()[0]
        rows = connection.execute(
            f"SELECT id FROM papers{where} {NEWEST} LIMIT ? OFFSET ?", [*self.values, limit, offset]
        )
        return [(int(row[0]), 0.0) for row in rows], int(total)


def _escaped(text: str) -> str:
    return text.replace("!", "!!").replace("%", "!%").replace("_", "!_")
