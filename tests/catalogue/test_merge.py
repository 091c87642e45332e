"""Which records are the same paper, and what is kept of each."""

import pytest

from orrery.catalogue import keys, merge
from orrery.catalogue.record import clean, plain, second
from orrery.catalogue.store import Store
from orrery.core.errors import ConfigError, DataError, UnknownNameError

AT = "2026-01-02T03:04:05Z"


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path) as opened:
        yield opened


def add(store, **fields):
    (done,) = store.record("import", {"source": fields.pop("source", "test"), "papers": [clean(fields)]}, at=AT)
    return done


def test_the_same_paper_by_id_doi_or_title(store):
    first = add(store, title="On Things", arxiv="2001.00001", doi="10.1000/x")
    for fields, why in (
        ({"title": "Another Title", "arxiv": "arXiv:2001.00001v2"}, "the arXiv id"),
        ({"title": "Yet Another", "doi": "https://doi.org/10.1000/X"}, "the DOI"),
        ({"title": "{O}n   things!"}, "the title"),
    ):
        done = add(store, **fields)
        assert (done.paper, done.why) == (first.paper, why)
    assert store.count() == 163


def test_equal_titles_with_other_ids_are_other_papers(store):
    one = add(store, title="A Survey", arxiv="2001.00001")
    two = add(store, title="A Survey", arxiv="2001.00002")
    assert (two.outcome, two.slug) == ("added", "a-survey-2") and one.slug == "a-survey"
    three = add(store, title="A survey", doi="10.1000/a")  # no id that contradicts the first
    assert three.paper == one.paper
    assert add(store, title="A survey", doi="10.1000/b").paper == two.paper
    assert add(store, title="A survey", doi="10.1000/c").outcome == "added"


def test_fuller_fields_win_and_nothing_is_emptied(store):
    add(
        store,
        title="On Things",
        abstract="A long abstract of several words.",
        authors=["A. Bee", "C. Dee"],
        upvotes=5,
        url="https://example.org",
    )
    done = add(
        store, title="on things", abstract="Short.", authors=["Anna Bee"], upvotes=3, year=2020, arxiv="2001.00001"
    )
    paper = store.paper(done.slug)
    assert (paper.title, paper.abstract, paper.authors) == (
        "On Things",
        "A long abstract of several words.",
        ("A. Bee", "C. Dee"),
    )
    assert (paper.upvotes, paper.year, paper.arxiv, paper.url) == (5, 2020, "2001.00001", "https://example.org")
    add(store, title="On things", authors=["Anna Bee", "Carl Dee"], upvotes=9)
    assert store.paper(done.slug).authors == ("Anna Bee", "Carl Dee") and store.paper(done.slug).upvotes == 9
    assert store.verify() == []


def test_what_is_shipped_stays(store):
    before = store.paper("emo")
    done = add(
        store,
        title=before.title.upper(),
        sentence="Not ours.",
        kind="survey",
        rooms=["web"],
        names=["mamba2"],
        abstract="Theirs.",
    )
    after = store.paper("emo")
    assert done.outcome == "merged"
    assert (after.title, after.sentence, after.kind, after.rooms, after.names) == (
        before.title,
        before.sentence,
        before.kind,
        before.rooms,
        before.names,
    )
    assert after.abstract == "Theirs." and after.shipped and after.added == before.added


def test_record_that_matches_two_papers_joins_them(store):
    by_id = add(store, title="Its First Title", arxiv="2001.00001")
    by_title = add(store, title="Its Second Title", abstract="Kept.", doi="10.1000/x")
    done = add(store, title="Its Second Title", arxiv="2001.00001")
    assert (done.paper, done.joined, done.outcome) == (by_id.paper, (by_title.slug,), "merged")
    assert store.count() == 163
    for key in (by_id.slug, by_title.slug, "10.1000/x", "2001.00001"):
        assert store.paper(key).slug == by_id.slug
    assert store.paper(by_id.slug).abstract == "Kept."
    assert add(store, title="Its Second Title", arxiv="2001.00001").outcome == "unchanged"
    assert store.verify() == []


def test_votes_move_with_a_joined_paper(store):
    by_id, by_title = add(store, title="First", arxiv="2001.00001"), add(store, title="Second", doi="10.1000/x")
    with store._writing() as connection:
        connection.execute("INSERT INTO votes (paper, reader, at) VALUES (?, 1, ?)", (by_title.paper, AT))
        connection.execute("INSERT INTO paper_topics (paper, topic) VALUES (?, 'x')", (by_title.paper,))
        merge.put(connection, clean({"title": "Second", "arxiv": "2001.00001"}), at=AT, source="test")
        assert connection.execute("SELECT paper FROM votes").fetchall()[0][0] == by_id.paper
        assert connection.execute("SELECT votes FROM papers WHERE id = ?", (by_id.paper,)).fetchone()[0] == 1
        assert not connection.execute("SELECT 1 FROM paper_topics WHERE paper = ?", (by_title.paper,)).fetchone()


def test_search_index_follows(store):
    def found(word):
        return [
            row[0]
            for row in store.connection().execute("SELECT rowid FROM papers_fts WHERE papers_fts MATCH ?", (word,))
        ]

    done = add(store, title="On Quokkas")
    assert found("quokka") == [done.paper]
    add(store, title="on quokkas", abstract="They live on Rottnest.")
    assert found("rottnest") == [done.paper]
    assert store.verify() == []


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"title": " \u200b "}, "no title"),
        ({"title": 7}, "its title is int, not text"),
        ({"title": "x" * 1001}, "the limit is 1,000"),
        ({"title": "T", "abstract": "x" * 20_001}, "the limit is 20,000"),
        ({"title": "T", "arxiv": "12345"}, "arXiv id '12345'"),
        ({"title": "T", "arxiv": "2313.00001"}, "arXiv id"),
        ({"title": "T", "doi": "11.1000/x"}, "DOI '11.1000/x'"),
        ({"title": "T", "url": "javascript:alert(1)"}, "neither http nor https"),
        ({"title": "T", "year": 12}, "its year is 12"),
        ({"title": "T", "year": True}, "its year is True"),
        ({"title": "T", "date": "2024-02-30"}, "its date"),
        ({"title": "T", "authors": "One Name"}, "not a list"),
        ({"title": "T", "authors": ["x"] * 5001}, "the limit is 5,000"),
        ({"title": "T", "kind": "poem"}, "its kind 'poem'"),
        ({"title": "T", "upvotes": -1}, "not a count"),
        ({"title": "T", "upvotes": 2**60}, "not a count"),
        ({"title": "T", "names": ["a b"]}, "not a list of plain names"),
        ({"title": "T", "slug": "../../etc"}, "short name"),
    ],
)
def test_bad_fields_are_refused_in_a_sentence(fields, why):
    with pytest.raises(DataError) as caught:
        clean(fields)
    assert why in str(caught.value)


def test_clean_text_and_addresses():
    assert plain(" a\x00b\u202e  c\nd ") == "ab c d" and plain("e\u0301\ud800") == "é"
    assert clean({"title": "T", "url": "https://arxiv.org/abs/2001.00001v2"}) == {"title": "T", "arxiv": "2001.00001"}
    assert clean({"title": "T", "doi": "10.48550/arXiv.2001.00001"}) == {"title": "T", "arxiv": "2001.00001"}
    assert clean({"title": "T", "url": 'https://e.org/a b"<x>'})["url"] == "https://e.org/a%20b%22%3Cx%3E"
    assert clean({"title": "T", "date": "2024-05-31T10:00:00Z"}) == {"title": "T", "date": "2024-05-31", "year": 2024}


def test_keys():
    assert (
        keys.title_key(r"Schr{\"o}dinger's $\alpha$-Cat") == keys.title_key("Schrödinger’s α-cat") == "schrodingersαcat"
    )
    assert keys.slug("Größe & Maß: A Study's End") == "groe-ma-a-studys-end"
    assert keys.slug("深度学习").startswith("paper-") and keys.SLUG.fullmatch(keys.slug("深度学习"))
    assert len(keys.slug("word " * 100)) <= 60
    for text, expected in (
        ("2310.04691v12", "2310.04691"),
        ("CS/0301012", "cs/0301012"),
        ("math.GT/0309136", "math.gt/0309136"),
        ("1234", None),
        ("2310.04691x", None),
    ):
        assert keys.arxiv_id(text) == expected


def test_moments():
    assert second("2026-01-02T04:04:05+01:00") == AT and len(second()) == 20
    with pytest.raises(ConfigError, match="is not a moment"):
        second("yesterday")


def test_paper_id_takes_no_nonsense(store):
    with pytest.raises(UnknownNameError):
        merge.paper_id(store.connection(), None)
