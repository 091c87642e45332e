"""Every word of every paper as arrays, so that a common word is ranked over all papers that hold it, in a millisecond.

SQLite's `bm25()` costs a microsecond for every paper that matches, which for the words that most papers hold is a tenth of a
second at 100,000 papers. Here the same numbers come from a sum over arrays. With f the weighted count of a term in a paper
(`COLUMN_WEIGHTS`), D the paper's words, N papers of which n hold the term:

    idf = max(ln((N - n + 0.5) / (n + 0.5)), 1e-6)      score = sum over terms of idf * f (k1 + 1) / (f + k1 (1 - b + b D / avg D))

which is FTS5's own formula with its k1 = 1.2, b = 0.75 (tested against it); words are cut and stemmed by FTS5's own
tokenizer. A phrase or a word wanted in one column is still asked of FTS5 and added. Derived data in the folder
`postings/` of a store, with a manifest of checksums, made for more than `LEAST` papers; below that FTS5 is quick enough.
Papers that came or changed since (`AT_ONCE` at most, else it is made anew) are ranked by FTS5 beside it.
"""

from __future__ import annotations

import bisect
import functools
import math
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orrery.catalogue.query import COLUMN_WEIGHTS, COLUMNS, TOKENIZER, Query, Term
from orrery.core import files
from orrery.core.errors import OrreryError

if TYPE_CHECKING:
    import numpy as np

    from orrery.catalogue.filters import Filters
    from orrery.catalogue.store import Store

    Array = np.ndarray[Any, Any]

FOLDER = "postings"
STATE = "postings.json"  # beside it: which papers it does not cover, so that the next process need not compare
FORMAT = 1
LEAST = 1000  # papers; `search.BUDGET` never narrows a query over fewer
AT_ONCE = 3000  # papers that are ranked beside the arrays
MOST_ROWS = 6000  # of a phrase or column that are ranked by FTS5: those that entered last
K1, B = 1.2, 0.75
_PIECE = 2000  # papers that are cut into words at once
_WAY = {"format": FORMAT, "weights": COLUMN_WEIGHTS, "tokenizer": TOKENIZER}  # arrays made in another way are made anew
_ARRAYS = ("ids", "digests", "lengths", "starts", "rows", "weights")
_known: dict[Path, Postings] = {}
_lock = threading.RLock()
_thread = threading.local()


@dataclass
class Postings:
    """Which papers hold a term, and how much: of term t the entries `starts[t]:starts[t + 1]`, by row of `ids`."""

    ids: Array  # (N,) int64, ascending: papers by number
    digests: Array  # (N,) uint64
    lengths: Array  # (N,) int32: words of a paper
    terms: list[str]  # sorted
    starts: Array  # (V+1,) int64
    rows: Array  # (P,) int32
    weights: Array  # (P,) uint16: the sum of `COLUMN_WEIGHTS` over the places of the term
    made: str = ""  # names this making of the arrays
    key: tuple[Any, ...] = ()
    alive: Array | None = None  # (N,) bool: papers that are still as they were; None: all
    fresh: list[int] = field(default_factory=list)  # papers of the store that are not covered, ascending
    _norm: Array | None = None

    def holding(self, token: str, prefix: bool = False) -> tuple[Array, Array]:
        """Rows of the papers that hold a term (or any that begins so), and their weighted counts."""
        import numpy as np

        first = bisect.bisect_left(self.terms, token)
        last = bisect.bisect_left(self.terms, token + "\U0010ffff") if prefix else first + (self.terms[first : first + 1] == [token])
        begin, end = int(self.starts[first]), int(self.starts[last])
        rows, weights = self.rows[begin:end], self.weights[begin:end]
        if last - first < 2:
            return rows, weights
        counts = np.bincount(rows, weights, len(self.ids))
        held = np.flatnonzero(counts)
        return held, counts[held]

    def scores(self, rows: Array, weights: Array) -> Array:
        """BM25 of one term in the papers that hold it."""
        import numpy as np

        if self._norm is None:
            self._norm = (K1 * (1 - B + B * self.lengths / max(float(self.lengths.mean()), 1e-9))).astype(np.float32)
        held = np.asarray(weights, np.float32)
        idf = max(math.log((len(self.ids) - len(rows) + 0.5) / (len(rows) + 0.5)), 1e-6)
        return np.asarray(idf * held * (K1 + 1) / (held + self._norm[rows]), np.float32)


def current(store: Store, key: tuple[Any, ...], *, wait: bool = False) -> Postings | None:
    """The postings of a store; None for a small one, and where making them takes long and nobody waits.

    Args:
        key: what changes when papers do (`content.key`).
        wait: make them when they are missing or cover too little, however long that takes.
    """
    with _lock:
        found = _known.get(store.folder) or _load(store.folder / FOLDER)
        if found is not None and found.key == key:
            _known[store.folder] = found
            return found
        ids, digests = _covered(store.connection())
        if len(ids) <= LEAST:
            return None
        if found is None or not _compare(found, ids, digests):
            if not wait:
                return None
            found = _build(store.connection(), ids, digests)
            _save(store, found)
        found.key = key
        _note(store, found)
        _known[store.folder] = found
        return found


def forget(folder: Path) -> None:
    """Drop what this process holds of a store's folder."""
    with _lock:
        _known.pop(folder, None)


def _covered(connection: sqlite3.Connection) -> tuple[Array, Array]:
    import numpy as np

    rows = connection.execute("SELECT id, digest FROM papers ORDER BY id").fetchall()
    ids = np.fromiter((row[0] for row in rows), np.int64, len(rows))
    return ids, np.fromiter((int(row[1], 16) for row in rows), np.uint64, len(rows))


def _compare(found: Postings, ids: Array, digests: Array) -> bool:
    """Mark what is not as it was; False when that is too much."""
    import numpy as np

    where = np.searchsorted(ids, found.ids).clip(max=len(ids) - 1)
    alive = (ids[where] == found.ids) & (digests[where] == found.digests)
    fresh = np.setdiff1d(ids, found.ids[alive], assume_unique=True)
    found.alive = None if alive.all() else alive
    found.fresh = [int(number) for number in fresh]
    return len(found.fresh) <= AT_ONCE


# ---------------------------------------------------------------- making them


def _build(connection: sqlite3.Connection, ids: Array, digests: Array) -> Postings:
    import numpy as np

    index: dict[str, int] = {}
    lengths = np.zeros(len(ids), np.int32)
    parts: list[tuple[Array, Array, Array]] = []
    for start in range(0, len(ids), _PIECE):
        piece = ids[start : start + _PIECE]
        terms, docs, weights = _counted(connection, piece, index)
        np.add.at(lengths, start + docs, 1)
        keys, place = np.unique(terms.astype(np.int64) * _PIECE + docs, return_inverse=True)
        sums = np.bincount(place, weights).clip(max=65535).astype(np.uint16)
        parts.append(((keys // _PIECE).astype(np.int32), (start + keys % _PIECE).astype(np.int32), sums))
    words = sorted(index)
    rank = np.zeros(len(index), np.int32)
    rank[[index[word] for word in words]] = np.arange(len(words), dtype=np.int32)
    of_term = rank[np.concatenate([part[0] for part in parts])]
    order = np.argsort(of_term, kind="stable")  # rows ascend within a term, as the pieces do
    starts = np.zeros(len(words) + 1, np.int64)
    np.cumsum(np.bincount(of_term, minlength=len(words)), out=starts[1:])
    rows = np.concatenate([part[1] for part in parts])[order]
    weights = np.concatenate([part[2] for part in parts])[order]
    return Postings(ids, digests, lengths, words, starts, rows, weights, made=secrets.token_hex(8))


def _counted(connection: sqlite3.Connection, numbers: Array, index: dict[str, int]) -> tuple[Array, Array, Array]:
    """Every place of every word of some papers: number of the term (new ones get the next), place of the paper, weight."""
    import numpy as np

    scratch = _scratch()
    scratch.execute("BEGIN")
    try:
        marks = ", ".join("?" * len(numbers))
        rows = connection.execute(f"SELECT id, {', '.join(COLUMNS)} FROM papers WHERE id IN ({marks}) ORDER BY id", numbers.tolist())
        insert = f"INSERT INTO words (rowid, {', '.join(COLUMNS)}) VALUES (?{', ?' * len(COLUMNS)})"
        scratch.executemany(insert, ((place, *tuple(row)[1:]) for place, row in enumerate(rows)))
        places = scratch.execute("SELECT term, doc, col FROM places").fetchall()
    finally:
        scratch.execute("ROLLBACK")
    count = len(places)
    terms = np.fromiter((index.setdefault(place[0], len(index)) for place in places), np.int32, count)
    docs = np.fromiter((place[1] for place in places), np.int32, count)
    return terms, docs, np.fromiter((COLUMN_WEIGHTS[place[2]] for place in places), np.float64, count)


def _scratch() -> sqlite3.Connection:
    """This thread's empty index in memory, with the tokenizer of the large one, and the table of its words."""
    found: sqlite3.Connection | None = getattr(_thread, "index", None)
    if found is None:
        found = sqlite3.connect(":memory:", isolation_level=None)
        found.execute(f"CREATE VIRTUAL TABLE words USING fts5({', '.join(COLUMNS)}, tokenize='{TOKENIZER}')")
        found.execute("CREATE VIRTUAL TABLE places USING fts5vocab(words, instance)")
        _thread.index = found
    return found


@functools.lru_cache(maxsize=4096)
def tokens(text: str) -> tuple[str, ...]:
    """A text as FTS5 cuts and stems it."""
    scratch = _scratch()
    scratch.execute("BEGIN")
    try:
        scratch.execute("INSERT INTO words (rowid, title) VALUES (0, ?)", (text,))
        return tuple(row[0] for row in scratch.execute("SELECT term FROM places ORDER BY offset"))
    finally:
        scratch.execute("ROLLBACK")


def _save(store: Store, made: Postings) -> None:
    import numpy as np

    try:
        with files.atomic_directory(store.folder / FOLDER) as folder:
            for name in _ARRAYS:
                np.save(folder / f"{name}.npy", getattr(made, name), allow_pickle=False)
            (folder / "terms.txt").write_text("\n".join(made.terms), encoding="utf-8")
            files.write_json(folder / "meta.json", {**_WAY, "made": made.made})
    except (OrreryError, OSError):
        return  # a folder that cannot be written costs time only


def _note(store: Store, found: Postings) -> None:
    dead = [] if found.alive is None else [int(row) for row in (~found.alive).nonzero()[0]]
    with suppress(OrreryError):
        files.write_json(store.folder / STATE, {"made": found.made, "key": list(found.key), "fresh": found.fresh, "dead": dead})


def _load(folder: Path) -> Postings | None:
    """What is on the disk, or None: absent, damaged, or made in another way."""
    import numpy as np

    if not folder.is_dir():
        return None
    try:
        files.verify_directory(folder)
        meta = files.read_json(folder / "meta.json")
        if {name: meta.get(name) for name in _WAY} != _WAY:
            return None
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
        found = Postings(terms=(folder / "terms.txt").read_text(encoding="utf-8").split("\n"), made=str(meta["made"]), **arrays)
        _recall(found, folder.with_name(STATE))
        return found
    except (OrreryError, OSError, ValueError, KeyError, TypeError):
        return None


def _recall(found: Postings, file: Path) -> None:
    """What :func:`_note` wrote down, when it is of these arrays; else they are compared anew."""
    import numpy as np

    with suppress(OrreryError, OSError, ValueError, KeyError, TypeError, IndexError):
        state = files.read_json(file)
        if state["made"] == found.made:
            alive = np.ones(len(found.ids), bool)
            alive[np.asarray(state["dead"], np.int64)] = False
            found.alive = alive if state["dead"] else None
            found.fresh, found.key = [int(number) for number in state["fresh"]], tuple(state["key"])


# ---------------------------------------------------------------- ranking


@dataclass
class Ranked:
    """Text scores of all papers that match: of the covered ones an array, of the others a dictionary."""

    counted: Postings
    scores: Array  # (N,) float32; 0: no match
    fresh: dict[int, float]
    total: int

    def best(self, pool: int) -> dict[int, float]:
        """The best papers and their scores."""
        import numpy as np

        count = min(pool, int(np.count_nonzero(self.scores)))
        found = dict(self.fresh)
        if count:
            least = np.partition(self.scores, -count)[-count]
            above, equal = np.flatnonzero(self.scores > least), np.flatnonzero(self.scores == least)
            rows = np.concatenate([above, equal[: count - len(above)]])  # of equal ones those that came first
            found |= {int(self.counted.ids[row]): float(self.scores[row]) for row in rows}
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0]))[:pool])

    def of(self, numbers: Sequence[int]) -> dict[int, float]:
        """Scores of some papers; those that do not match are left out."""
        import numpy as np

        wanted = np.asarray(numbers, np.int64)
        rows = np.searchsorted(self.counted.ids, wanted).clip(max=len(self.counted.ids) - 1)
        held = np.where(self.counted.ids[rows] == wanted, self.scores[rows], 0.0)
        found = {int(number): float(score) for number, score in zip(wanted, held, strict=True) if score > 0}
        return found | {number: self.fresh[number] for number in numbers if number in self.fresh}


def rank(connection: sqlite3.Connection, counted: Postings, asked: Query, filters: Filters, bonus: float) -> Ranked:
    """Every paper that holds any wanted group and nothing excluded: BM25, and `bonus` of the best for holding all groups."""
    import numpy as np

    size = len(counted.ids)
    scores = np.zeros(size, np.float32)
    every, some = np.ones(size, bool), np.zeros(size, bool)
    for group in asked.groups:
        here = np.zeros(size, bool)
        for term in group:
            for rows, gains in _hits(connection, counted, term):
                scores[rows] += gains
                here[rows] = True
        every &= here
        some |= here
    allowed = some if counted.alive is None else some & counted.alive
    if (passing := filters.mask(connection, counted.ids)) is not None:
        allowed &= passing
    for term in asked.excluded:
        for rows, _ in _hits(connection, counted, term):
            allowed[rows] = False
    every &= allowed
    scores = np.where(allowed, np.maximum(scores, 1e-9), 0).astype(np.float32)
    fresh, fresh_every = _fresh(connection, counted, asked, filters)
    if len(asked.groups) > 1:
        most = bonus * max(float(scores.max(initial=0.0)), *fresh.values(), 0.0)
        scores[every] += most
        fresh = {number: score + (most if number in fresh_every else 0.0) for number, score in fresh.items()}
    total = int(every.sum()) + len(fresh_every) or int(allowed.sum()) + len(fresh)
    return Ranked(counted, scores, fresh, total)


def _hits(connection: sqlite3.Connection, counted: Postings, term: Term) -> Iterator[tuple[Array, Array]]:
    """Rows that hold a term, and its scores in them."""
    import numpy as np

    cut = tokens(term.words[0]) if len(term.words) == 1 and term.column is None else ()
    if len(cut) == 1:
        rows, weights = counted.holding(cut[0], term.prefix)
        yield rows, counted.scores(rows, weights)
        return
    numbers = [row[0] for row in connection.execute("SELECT rowid FROM papers_fts WHERE papers_fts MATCH ? ORDER BY rowid", (term.match(),))]
    since = numbers[-MOST_ROWS] if len(numbers) > MOST_ROWS else 0
    gains = dict(ranked(connection, term.match(), " AND rowid >= ?", [since])) if numbers else {}
    wanted = np.asarray(numbers, np.int64)
    rows = np.searchsorted(counted.ids, wanted).clip(max=len(counted.ids) - 1)
    known = counted.ids[rows] == wanted
    yield rows[known], np.asarray([gains.get(number, 0.0) for number in wanted[known].tolist()], np.float32)


def ranked(connection: sqlite3.Connection, expression: str, condition: str, values: Sequence[Any]) -> Iterator[tuple[int, float]]:
    """Papers of an expression and their BM25 by FTS5, larger is better."""
    weights = ", ".join(str(COLUMN_WEIGHTS[name]) for name in COLUMNS)
    query = f"SELECT rowid, -bm25(papers_fts, {weights}) FROM papers_fts WHERE papers_fts MATCH ?{condition}"
    for row in connection.execute(query, (expression, *values)):
        yield int(row[0]), float(row[1])


def _fresh(connection: sqlite3.Connection, counted: Postings, asked: Query, filters: Filters) -> tuple[dict[int, float], set[int]]:
    """The papers that the arrays do not cover: scores of those that match, and which hold every group."""
    if not counted.fresh:
        return {}, set()
    condition, values = filters.condition("papers_fts.rowid")
    marks = ", ".join("?" * len(counted.fresh))
    condition += f" AND rowid >= ? AND +rowid IN ({marks})"
    values += [counted.fresh[0], *counted.fresh]
    some = " OR ".join(term.match() for term in asked.terms)
    scores = dict(ranked(connection, f"({some}){asked.without()}", condition, values))
    query = f"SELECT rowid FROM papers_fts WHERE papers_fts MATCH ?{condition}"
    return scores, {int(row[0]) for row in connection.execute(query, (asked.every() + asked.without(), *values))}
