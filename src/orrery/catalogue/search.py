"""Search: SQLite's full-text index and the semantic vectors, fused.

*Text* ranks by BM25 with weights of columns (`COLUMN_WEIGHTS`): papers that hold every wanted word first, then those that
hold some. In a large catalogue the sum is taken over arrays of all words (:mod:`orrery.catalogue.postings`); in a small
one, and while these are not made yet, SQLite takes it. SQLite's costs a microsecond for every term of every paper that
matches, so a query that exceeds `BUDGET` is narrowed there before it is ranked: to its rare words, then to titles, then
to what entered last. A word that no paper holds is searched as the nearest word of the vocabulary, and the corrected
query is suggested.

*Semantic* ranks by the cosine of :mod:`orrery.catalogue.semantic`. *Hybrid* adds both, each divided by its best of this
query, in the shares of :func:`_share`. The weights were chosen on the tuning half of `judged.json`; its test half is measured in the tests.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from orrery.catalogue import content, encoded, postings, suggestions, vectors
from orrery.catalogue.filters import Filters
from orrery.catalogue.query import COLUMN_WEIGHTS, COLUMNS, TOKENIZER, Query, Term, parse
from orrery.catalogue.words import STOP, stem
from orrery.core.errors import ConfigError

if TYPE_CHECKING:
    from orrery.catalogue.record import Paper
    from orrery.catalogue.store import Store

    Placed = vectors.Vectors | encoded.Encoded

MODES = ("hybrid", "text", "semantic")
BUDGET = 6000  # papers that BM25 ranks for one expression, times the terms in it
COUNTED = 10_000  # matches are counted up to here
DEPTH = 1000  # results that can be paged through
POOL = 300  # candidates of either side that are fused
TEXT_SHARE = 0.3  # of the text score in a hybrid one
EVERY_BONUS = 0.25  # of the best text score, for holding every wanted word
NEAREST = 0.15  # cosine under which a paper is no semantic match
MARKED = ("title", "sentence", "abstract")
_thread = threading.local()
_BEGIN, _END = "\ue000", "\ue001"  # private characters that mark what matched
Segments = list[tuple[str, bool]]


@dataclass(frozen=True)
class Hit:
    """A paper that was found, how well, and its texts with what matched marked: pieces `(text, matched)`, never HTML."""

    paper: Paper
    score: float
    highlights: dict[str, Segments] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The paper's facts and the score."""
        return {**self.paper.to_dict(), "score": round(self.score, 6)}


@dataclass(frozen=True)
class Found:
    """An answer: one page of hits, how many papers match (counted to `COUNTED`), a corrected query, and how long it took."""

    hits: list[Hit]
    total: int
    suggestion: str | None
    seconds: float
    note: str = ""  # what the answer lacks, for the user


def search(
    store: Store,
    query: str,
    *,
    limit: int = 20,
    offset: int = 0,
    kind: str | None = None,
    year: int | str | None = None,
    status: str | None = None,
    room: str | None = None,
    topic: str | None = None,
    mode: str = "hybrid",
    encoder: encoded.Encoder | None = None,
) -> Found:
    """Papers for what a reader typed, best first; without words, the newest that pass the filters.

    Args:
        query: words, "phrases", prefix*, field:word (title, author, abstract, name; kind, year, topic, room, status), -not, OR.
        limit, offset: the page; the first `DEPTH` results can be reached.
        year: a year, or a span as text (`2021-2023`, `2021-`).
        mode: "hybrid", "text" or "semantic".
        encoder: places papers and question in place of the catalogue's own space (:mod:`orrery.catalogue.encoded`).

    Raises:
        ConfigError: a mode, or a filter given as an argument, that does not exist; filters inside `query` that do not are
            read as words.
    """
    began = time.perf_counter()
    if mode not in MODES:
        raise ConfigError(f"unknown mode '{mode}' of search; there are {', '.join(MODES)}")
    limit, offset = max(0, min(limit, DEPTH)), max(0, offset)
    given = {
        "kind": kind,
        "year": str(year) if year is not None else None,
        "status": status,
        "room": room,
        "topic": topic,
    }
    asked, filters = Filters.read(store, parse(query), given)
    connection = store.connection()
    if asked.empty:
        ranked, total = filters.newest(connection, limit, offset)
        hits = _hits(store, ranked, None)
        return Found(hits, total, None, time.perf_counter() - began)
    placed = _placed(store, encoder) if mode != "text" else None
    corrected, suggestion = suggestions.correct(store, connection, asked)
    pool = min(max(POOL, offset + limit), DEPTH)
    if mode == "text" or placed is None:
        text = _text(store, corrected, filters, pool)
        ranking, total = sorted(text.scores.items(), key=_order), text.total
    else:
        text = _text(store, corrected, filters, pool) if mode == "hybrid" else _Text({}, 0)
        meaning = _meaning(placed, corrected, filters, connection, list(text.scores))
        text.complete(meaning)
        share = _share(connection, placed, corrected) if text.scores else 0.0
        ranking = sorted(_fuse(text.scores, meaning, share).items(), key=_order)
        total = max(text.total, len(ranking))
    note = ""
    if mode != "text" and (placed is None or placed.missing):
        note = "the semantic index does not cover all papers yet; `orrery papers index` brings it up to date"
    page = ranking[offset : min(offset + limit, DEPTH)]
    return Found(_hits(store, page, corrected), total, suggestion, time.perf_counter() - began, note)


def prepare(store: Store) -> int:
    """Bring the semantic index up to date, however long that takes; how many papers it covers. Call it after an import."""
    placed = vectors.current(store, wait=True)
    postings.current(store, content.key(store, store.connection()), wait=True)
    return len(placed.ids) if placed else 0


def related(
    store: Store, slug: str, limit: int = 6, encoder: encoded.Encoder | None = None
) -> list[tuple[Paper, float]]:
    """The papers nearest in meaning to a paper, with their cosines, best first; `encoder` as in :func:`search`.

    Raises:
        UnknownNameError: when there is no such paper.
    """
    import numpy as np

    paper = store.paper(slug)
    connection = store.connection()
    number = connection.execute("SELECT id FROM papers WHERE slug = ?", (paper.slug,)).fetchone()[0]
    placed = _placed(store, encoder)
    row = placed.place(number) if placed else None
    if placed is None or row is None:
        found = search(store, paper.title, limit=limit + 1, mode="text").hits
        return [(hit.paper, hit.score) for hit in found if hit.paper.slug != paper.slug][:limit]
    near = placed.near(placed.wide()[row])
    near[row] = -1
    best = _largest(near, limit)
    pairs = [(int(placed.ids[place]), float(near[place])) for place in best if near[place] > 0]
    papers = _papers(store, [number for number, _ in pairs])
    return [(papers[number], float(np.clip(score, 0, 1))) for number, score in pairs if number in papers]


# ---------------------------------------------------------------- text


@dataclass
class _Text:
    """BM25, larger is better, of papers by number; how many papers match."""

    scores: dict[int, float]
    total: int
    whole: postings.Ranked | None = None

    def complete(self, meaning: dict[int, float]) -> None:
        """Add the scores of papers that are near in meaning and not among the best of the text."""
        if self.whole is not None:
            self.scores.update(self.whole.of([number for number in meaning if number not in self.scores]))


def _order(item: tuple[int, float]) -> tuple[float, int]:
    return -item[1], item[0]


def _budget(asked: Query) -> int:
    """How many papers may be ranked for this query."""
    return max(BUDGET // max(1, len(asked.terms)), min(BUDGET, 1000))


def _text(store: Store, asked: Query, filters: Filters, pool: int) -> _Text:
    connection = store.connection()
    if (counted := postings.current(store, content.key(store, connection))) is not None:
        ranked = postings.rank(connection, counted, asked, filters, EVERY_BONUS)
        return _Text(ranked.best(pool), ranked.total, ranked)
    every, budget = asked.every() + asked.without(), _budget(asked)
    matches = _count(connection, every, filters, COUNTED)
    wide = _alternatives(connection, asked, budget)
    if matches > budget:
        scores = _narrowed(connection, every, filters, asked, pool)
        return _Text(scores, matches)
    scores = _ranked(connection, wide, filters, pool) if wide else {}
    if matches and (len(asked.groups) > 1 or not wide):
        best = max(scores.values(), default=0.0)
        for number, score in _ranked(connection, every, filters, pool).items():
            scores[number] = max(scores.get(number, 0.0), score) + EVERY_BONUS * best
    return _Text(scores, matches or (_count(connection, wide, filters, COUNTED) if wide else 0))


def _alternatives(connection: sqlite3.Connection, asked: Query, budget: int) -> str | None:
    """The expression that wants any group, of common ones only as many as the budget allows; None when all are common."""
    sizes = []
    for group in asked.groups:
        expression = " OR ".join(term.match() for term in group)
        sizes.append((_count(connection, expression, None, budget + 1), expression))
    sizes.sort()
    kept, spent = [], 0
    for size, expression in sizes:
        spent += size
        if spent > budget:
            break
        kept.append(f"({expression})")
    return f"({' OR '.join(kept)}){asked.without()}" if kept else None


def _narrowed(
    connection: sqlite3.Connection, every: str, filters: Filters, asked: Query, pool: int
) -> dict[int, float]:
    """An expression that matches too many: those that hold it in the title, and if these are few, those that entered last."""
    scores: dict[int, float] = {}
    if all(term.column is None for term in asked.terms):
        by_title = (
            " AND ".join("(" + " OR ".join(_titled(term) for term in group) + ")" for group in asked.groups)
            + asked.without()
        )
        scores = _ranked(connection, by_title, filters, pool, since=_since(connection, by_title, filters, asked))
    if len(scores) < pool:
        scores = {
            **_ranked(connection, every, filters, pool, since=_since(connection, every, filters, asked)),
            **scores,
        }
    return scores


def _titled(term: Term) -> str:
    return replace(term, column="title").match()


def _since(connection: sqlite3.Connection, expression: str, filters: Filters, asked: Query) -> int:
    """The number after which half a budget of papers match, so that only these are ranked; 0 when fewer match."""
    condition, values = filters.condition("papers_fts.rowid")
    row = connection.execute(
        f"SELECT rowid FROM papers_fts WHERE papers_fts MATCH ?{condition} ORDER BY rowid DESC LIMIT 1 OFFSET ?",
        (expression, *values, _budget(asked) // 2),
    ).fetchone()
    return int(row[0]) if row else 0


def _count(connection: sqlite3.Connection, expression: str, filters: Filters | None, cap: int) -> int:
    """How many papers match, at most `cap`."""
    condition, values = filters.condition("papers_fts.rowid") if filters else ("", [])
    inner = f"SELECT 1 FROM papers_fts WHERE papers_fts MATCH ?{condition} LIMIT {cap}"
    return int(connection.execute(f"SELECT COUNT(*) FROM ({inner})", (expression, *values)).fetchone()[0])


def _ranked(
    connection: sqlite3.Connection, expression: str, filters: Filters, pool: int, since: int = 0
) -> dict[int, float]:
    """The best papers of an expression and their BM25, larger is better."""
    weights = ", ".join(str(COLUMN_WEIGHTS[name]) for name in COLUMNS)
    condition, values = filters.condition("papers_fts.rowid")
    rows = connection.execute(
        f"SELECT rowid, -bm25(papers_fts, {weights}) AS score FROM papers_fts WHERE papers_fts MATCH ? AND rowid > ?{condition}"
        " ORDER BY score DESC, rowid LIMIT ?",
        (expression, since, *values, pool),
    )
    return {int(row[0]): float(row[1]) for row in rows}


# ---------------------------------------------------------------- meaning, and both


def _placed(store: Store, encoder: encoded.Encoder | None) -> Placed | None:
    return vectors.current(store) if encoder is None else encoded.current(store, encoder)


def _meaning(
    placed: Placed, asked: Query, filters: Filters, connection: sqlite3.Connection, others: list[int]
) -> dict[int, float]:
    """Cosines of the nearest papers, and of `others` however far."""
    import numpy as np

    vector = placed.ask(asked.text)
    if not vector.any():
        return {}
    near = placed.near(vector)
    allowed = filters.mask(connection, placed.ids)
    candidates = near if allowed is None else np.where(allowed, near, -1.0)
    best = [place for place in _largest(candidates, POOL) if candidates[place] >= NEAREST]
    found = {int(placed.ids[place]): float(near[place]) for place in best}
    for number in _excluded(connection, asked, list(found)):
        del found[number]
    rows = np.searchsorted(placed.ids, others).clip(max=len(placed.ids) - 1)
    known = placed.ids[rows] == others
    return {
        **{number: float(score) for number, score, here in zip(others, near[rows], known, strict=True) if here},
        **found,
    }


def _excluded(connection: sqlite3.Connection, asked: Query, numbers: list[int]) -> list[int]:
    """Which of some papers hold what is not wanted."""
    if not asked.excluded or not numbers:
        return []
    expression = " OR ".join(term.match() for term in asked.excluded)
    marks = ", ".join("?" * len(numbers))
    rows = connection.execute(
        f"SELECT rowid FROM papers_fts WHERE papers_fts MATCH ? AND +rowid IN ({marks})", (expression, *numbers)
    )
    return [int(row[0]) for row in rows]


def _largest(values: Any, count: int) -> list[int]:
    """Places of the largest values, largest first; equal ones by place."""
    import numpy as np

    count = min(count, len(values))
    if count == 0:
        return []
    best = np.argpartition(-values, count - 1)[:count]
    return [int(place) for place in best[np.lexsort((best, -values[best]))]]


def _share(connection: sqlite3.Connection, placed: Placed, asked: Query) -> float:
    """What part of the score is the text's: `TEXT_SHARE`, and more where papers hold words that the space does not know.

    Such a word, a name that one paper alone has, is often all that is wanted, and the cosine says nothing of it. So its
    share falls with the square of the part, by idf, of the query that the space knows. An encoder reads every word.
    """
    if isinstance(placed, encoded.Encoded):
        return TEXT_SHARE
    known, blind = 0.0, 0.0
    for term in asked.terms:
        places = [placed.space.places[root] for word in term.words if (root := stem(word)) in placed.space.places]
        if places:
            known += max(float(placed.space.idf[place]) for place in places)
        elif suggestions.held(connection, term):
            blind += math.log(len(placed.ids) + 1)
    return 1 - (1 - TEXT_SHARE) * (known / max(known + blind, 1e-9)) ** 2


def _fuse(text: dict[int, float], meaning: dict[int, float], share: float) -> dict[int, float]:
    """Both scores, each divided by the best of this query; the text's by its share, the cosine by the rest."""
    best_text = max(text.values(), default=0.0) or 1.0
    best_meaning = max(meaning.values(), default=0.0) or 1.0
    return {
        number: share * text.get(number, 0.0) / best_text
        + (1 - share) * max(0.0, meaning.get(number, 0.0)) / best_meaning
        for number in text.keys() | meaning.keys()
    }


# ---------------------------------------------------------------- a page of hits


def _papers(store: Store, numbers: list[int]) -> dict[int, Paper]:
    marks = ", ".join("?" * len(numbers))
    rows = store.connection().execute(f"SELECT id, slug FROM papers WHERE id IN ({marks})", numbers).fetchall()
    by_slug = {paper.slug: paper for paper in store.papers([row["slug"] for row in rows])}
    return {row["id"]: by_slug[row["slug"]] for row in rows if row["slug"] in by_slug}


def _hits(store: Store, page: list[tuple[int, float]], asked: Query | None) -> list[Hit]:
    papers = _papers(store, [number for number, _ in page])
    found = [(papers[number], score) for number, score in page if number in papers]
    marked = mark([paper for paper, _ in found], asked)
    return [Hit(paper, score, texts) for (paper, score), texts in zip(found, marked, strict=True)]


def mark(papers: list[Paper], asked: Query | None) -> list[dict[str, Segments]]:
    """Title, sentence and abstract of papers in pieces, what a query wants marked; texts that are empty are left out.

    The papers of a page are put into a full-text index in memory and marked by it: marking in the large index would look
    up every term once more for every paper.
    """
    plain: list[dict[str, Segments]] = [
        {name: [(text, False)] for name in MARKED if (text := str(getattr(paper, name)))} for paper in papers
    ]
    if asked is None or asked.empty or not papers:
        return plain
    index = _scratch()
    index.execute("BEGIN")
    try:
        rows = [
            (n, p.title, p.sentence, p.abstract, "\n".join(p.authors), " ".join(p.names)) for n, p in enumerate(papers)
        ]
        index.executemany(
            "INSERT INTO page (rowid, title, sentence, abstract, authors, names) VALUES (?, ?, ?, ?, ?, ?)", rows
        )
        wanted = ", ".join(f"highlight(page, {COLUMNS.index(name)}, '{_BEGIN}', '{_END}')" for name in MARKED)
        expression = " OR ".join(term.match() for term in asked.terms)
        for number, *texts in index.execute(f"SELECT rowid, {wanted} FROM page WHERE page MATCH ?", (expression,)):
            plain[number] = {name: segments(text) for name, text in zip(MARKED, texts, strict=True) if text}
    finally:
        index.execute("ROLLBACK")
    return plain


def _scratch() -> sqlite3.Connection:
    """This thread's index in memory, with the tokenizer of the large one."""
    index: sqlite3.Connection | None = getattr(_thread, "index", None)
    if index is None:
        index = sqlite3.connect(":memory:", isolation_level=None)
        index.execute(f"CREATE VIRTUAL TABLE page USING fts5({', '.join(COLUMNS)}, tokenize='{TOKENIZER}')")
        _thread.index = index
    return index


def segments(marked: str) -> Segments:
    """Text with the two private marks as pieces `(text, matched)`; marks that do not pair, and stop words, mark nothing."""
    pieces: Segments = []
    matched = False
    for number, part in enumerate(marked.replace(_END, _BEGIN + _END).split(_BEGIN)):
        matched = number > 0 and not part.startswith(_END)
        text = part.replace(_END, "")
        if text:
            on = matched and text.lower() not in STOP
            if pieces and pieces[-1][1] == on:
                pieces[-1] = (pieces[-1][0] + text, on)
            else:
                pieces.append((text, on))
    return pieces
