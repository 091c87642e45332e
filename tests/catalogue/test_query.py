"""The query language: what each part means, and that no text whatever is an error."""

import sqlite3

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orrery.catalogue.query import LONGEST, MOST_TERMS, Query, Term, parse, years


@pytest.fixture(scope="module")
def index():
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.executescript(
        "CREATE VIRTUAL TABLE f USING fts5(title, sentence, abstract, authors, names,"
        " tokenize='porter unicode61 remove_diacritics 2', prefix='2 3');"
    )
    rows = [
        ("Long context models", "", "reading long books", "Ada Smith", ""),
        ("Short models", "", "context that is long ago", "Bo Chen", "mamba2"),
        ("Pre-training for état", "", "", "Smithson", ""),
    ]
    connection.executemany("INSERT INTO f VALUES (?, ?, ?, ?, ?)", rows)
    return connection


def found(index, text):
    asked = parse(text)
    if asked.empty:
        return None
    return {row[0] for row in index.execute("SELECT rowid FROM f WHERE f MATCH ?", (asked.every() + asked.without(),))}


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("long context", {1, 2}),
        ('"long context"', {1}),
        ("model*", {1, 2}),
        ("mod*", {1, 2}),
        ("title:long", {1}),
        ("author:smith", {1}),
        ("author:smith*", {1, 3}),
        ("name:mamba2", {2}),
        ("context -books", {2}),
        ('long -"long context"', {2}),
        ("books OR mamba2", {1, 2}),
        ("books OR mamba2 short", {2}),
        ("pre-training", {3}),
        ("ÉTAT", {3}),
        ("etat", {3}),
        ("the models", {1, 2}),
        ("author:smith -title:long", set()),
        ('abstract:"long ago"', {2}),
    ],
)
def test_what_a_query_finds(index, text, rows):
    assert found(index, text) == rows


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"long context', "long context"),  # a quote that is never closed
        ("title:", "title"),
        ("OR", ""),
        ("OR long", "long"),
        ("long OR", "long"),
        ("long AND NEAR(context)", "long and near context"),
        ("- long", "long"),
        ("nosuch:field", "nosuch field"),
        ("(long))", "long"),
        ("the of", "the of"),  # nothing but stop words: they are searched
        ("a ^ {b} : * c", "c b a"),
    ],
)
def test_malformed_is_read_as_words(index, text, words):
    assert set(parse(text).text.split()) >= set(words.split()) - {"and", "a"}
    found(index, text)


def test_facets_are_taken_out():
    asked = parse('mamba kind:survey year:2021-2023 topic:graphs status:"working model"')
    assert asked.facets == {"kind": "survey", "year": "2021-2023", "topic": "graphs", "status": "working model"}
    assert asked.text == "mamba"
    assert parse("kind:survey").empty and parse("").empty and parse("!!! ?").empty


@given(st.text(max_size=80) | st.text(alphabet='ab "*:-()^{}+ORNEAT\x00title', max_size=40))
@example('"" "a')
@example("title:*")
@example('-"')
@example("a\ud800b NOT c")
@settings(max_examples=300, deadline=None)
def test_no_text_is_an_error(index, text):
    found(index, text)


def test_long_queries_are_cut(index):
    asked = parse("word " * 400)
    assert len(asked.groups) <= MOST_TERMS and len(asked.text) <= LONGEST
    found(index, "a-b-c-d " * 200)


def test_terms_say_themselves():
    assert Term(("a", "b"), "title").match() == '{title} : "a b"'
    assert Term(("a",), None, prefix=True).match() == '"a"*'
    assert Query().empty and Query().without() == ""


def test_years():
    assert years("2021") == (2021, 2021) and years("2019-2022") == (2019, 2022) and years("2020-") == (2020, 9999)
    assert years("last") is None and years("20211") is None
