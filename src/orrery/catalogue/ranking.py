"""How good the search is: nDCG@10 over the judged queries shipped in `judged.json`.

The gain of a grade g is 2^g - 1, discounted by log2(rank + 1), divided by the best order's sum (Jarvelin and Kekalainen
2002). Judgements are complete over the papers of the reading list; papers that came by import are passed over, so that a
store's own papers do not count as wrong answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orrery.core.errors import CorruptionError

if TYPE_CHECKING:
    from orrery.catalogue.store import Store

FILE = Path(__file__).with_name("judged.json")
FORMAT = 1
HALVES = ("tuning", "test")


@dataclass(frozen=True)
class Judged:
    """A query, what sort of query it is, its half, and the grades of papers by slug (1 to 3; absent: 0)."""

    query: str
    kind: str
    half: str
    grades: dict[str, int]


def judged(half: str | None = None) -> list[Judged]:
    """The shipped judgements, of one half or all."""
    table = json.loads(FILE.read_text(encoding="utf-8"))
    if table.get("format") != FORMAT:
        raise CorruptionError(f"'{FILE}' has format {table.get('format')}; this version reads format {FORMAT}")
    found = [Judged(**entry) for entry in table["queries"]]
    return [entry for entry in found if half is None or entry.half == half]


def ndcg(slugs: Sequence[str], grades: dict[str, int], depth: int = 10) -> float:
    """nDCG of a ranking at `depth`, in [0, 1]."""

    def gain(values: Sequence[int]) -> float:
        return sum((2.0**grade - 1) / math.log2(rank + 2) for rank, grade in enumerate(values[:depth]))

    best = gain(sorted(grades.values(), reverse=True))
    return gain([grades.get(slug, 0) for slug in slugs]) / best if best else 0.0


def evaluate(find: Callable[[str], Sequence[str]], queries: Sequence[Judged], depth: int = 10) -> list[float]:
    """nDCG of every query, in order; `find` gives the slugs of the reading list's papers, best first."""
    return [ndcg(find(entry.query), entry.grades, depth) for entry in queries]


def finder(store: Store, mode: str, depth: int = 10) -> Callable[[str], list[str]]:
    """The search of a store in a mode, as :func:`evaluate` wants it."""
    from orrery.catalogue.search import search

    def find(query: str) -> list[str]:
        hits = search(store, query, limit=10 * depth, mode=mode).hits
        return [hit.paper.slug for hit in hits if hit.paper.shipped][:depth]

    return find


def plain(store: Store, depth: int = 10) -> Callable[[str], list[str]]:
    """What SQLite alone gives: any of the words, its own BM25 without weights. The yardstick."""
    import re

    connection = store.connection()

    def find(query: str) -> list[str]:
        words = re.findall(r"\w+", query)
        if not words:
            return []
        rows = connection.execute(
            "SELECT p.slug FROM papers_fts f JOIN papers p ON p.id = f.rowid WHERE papers_fts MATCH ? AND p.shipped"
            " ORDER BY bm25(papers_fts), f.rowid LIMIT ?",
            (" OR ".join(f'"{word}"' for word in words), depth),
        )
        return [row[0] for row in rows]

    return find
