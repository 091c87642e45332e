"""Words as arrays: the same scores as FTS5's, over all papers; new, changed and gone papers; damage."""

import json
import shutil

import pytest

from catalogue import finding
from orrery.catalogue import content, postings, search
from orrery.catalogue.filters import Filters
from orrery.catalogue.query import parse
from orrery.catalogue.store import Store

QUERIES = (
    "language model", "mamba OR recurrent", "model -survey", "neur*", "lang* model", '"language model" attention', "title:language model",
    "author:smith", "of the", "pre-training", "distillation distilled", "xylophonic priors", "Émilie", "n-gram language -infini", "name:mamba2 state",
)  # fmt: skip


@pytest.fixture
def large(shelf, tmp_path, monkeypatch):
    """A copy of the shelf that counts as large."""
    monkeypatch.setattr(postings, "LEAST", 100)
    shutil.copytree(shelf.folder, tmp_path / "copy")
    with Store.open(tmp_path / "copy") as opened:
        yield opened
    postings.forget(tmp_path / "copy")


def made(store, wait=True):
    return postings.current(store, content.key(store, store.connection()), wait=wait)


def oracle(store, text):
    """By FTS5 alone: its bm25 of any group, and the bonus for all."""
    asked, connection = parse(text), store.connection()
    some = "(" + " OR ".join(term.match() for term in asked.terms) + ")" + asked.without()
    scores = dict(postings.ranked(connection, some, "", []))
    ask = "SELECT rowid FROM papers_fts WHERE papers_fts MATCH ?"
    every = {row[0] for row in connection.execute(ask, (asked.every() + asked.without(),))}
    if len(asked.groups) > 1 and scores:
        bonus = search.EVERY_BONUS * max(scores.values())
        scores = {number: score + (bonus if number in every else 0) for number, score in scores.items()}
    return scores, len(every) or len(scores)


def check(store, counted, scores_too=True):
    for text in QUERIES:
        expected, total = oracle(store, text)
        found = postings.rank(store.connection(), counted, parse(text), Filters(), search.EVERY_BONUS)
        scores = found.best(1000)
        assert set(scores) == set(expected) and found.total == total, text
        assert not scores_too or scores == pytest.approx(expected, rel=1e-5, abs=1e-6), text
        assert list(found.best(3)) == sorted(scores, key=lambda number: (-scores[number], number))[:3]
        assert found.of(list(expected)) == pytest.approx(scores) and found.of([10**9]) == {}


def test_scores_are_those_of_the_full_text_index(large):
    check(large, made(large))


def test_papers_that_came_changed_and_went_since(large):
    counted = made(large)
    before = counted.made
    large.record("import", {"source": "t", "papers": [{"title": "Language Models of the Recent Night", "arxiv": "2602.00001"}]}, at=finding.AT)
    large.record("import", {"source": "t", "papers": [{"title": finding.IMPORTED[3]["title"], "abstract": "A language model. " * 9}]}, at=finding.AT)
    counted = made(large, wait=False)
    assert counted.made == before and len(counted.fresh) == 2 and not counted.alive.all()
    check(large, counted, scores_too=False)  # the papers are those of now; how rare a word is, is known from before
    first = [hit.paper.slug for hit in search.search(large, "language models of the recent night", mode="text").hits]
    assert first[0] == "language-models-of-the-recent-night"
    postings.forget(large.folder)
    again = made(large, wait=False)
    assert (again.made, again.fresh, again.alive.tolist()) == (counted.made, counted.fresh, counted.alive.tolist()), "recalled, not compared"


def test_too_much_that_is_new_is_counted_anew(large, monkeypatch):
    before = made(large).made
    monkeypatch.setattr(postings, "AT_ONCE", 0)
    large.record("import", {"source": "t", "papers": [{"title": "Another Language Model"}]}, at=finding.AT)
    assert made(large, wait=False) is None, "a search does not wait for it"
    assert search.search(large, "another language model").hits[0].paper.slug == "another-language-model"
    search.prepare(large)
    counted = made(large)
    assert counted.made != before and not counted.fresh
    check(large, counted)


@pytest.mark.parametrize("file", ["rows.npy", "terms.txt", "meta.json"])
def test_damage_costs_time_only(large, file):
    made(large)
    postings.forget(large.folder)
    path = large.folder / postings.FOLDER / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert made(large, wait=False) is None and search.search(large, "language model").hits
    check(large, made(large))


def test_a_state_of_other_arrays_is_not_believed(large):
    made(large)
    postings.forget(large.folder)
    state = json.loads((large.folder / postings.STATE).read_text())
    (large.folder / postings.STATE).write_text(json.dumps({**state, "made": "other", "dead": [0, 1, 2]}))
    assert made(large, wait=False).alive is None


def test_filters_and_pages_hold_there_too(large):
    made(large)
    for options in ({"kind": "survey"}, {"year": "2021-2023"}, {"topic": "graphs"}, {"status": "working model"}):
        found = search.search(large, "language model graph", limit=300, mode="text", **options)
        assert 0 < found.total <= len(found.hits)
        allowed = {hit.paper.slug for hit in search.search(large, "", limit=300, **options).hits}
        assert {hit.paper.slug for hit in found.hits} <= allowed


def test_a_small_catalogue_needs_none(shelf):
    assert made(shelf) is None and not (shelf.folder / postings.FOLDER).exists()
