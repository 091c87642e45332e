"""Search: order, filters, marks, typos, related papers, and the ranking on the judged queries against plain FTS5."""

import json
import shutil
import sqlite3
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalogue import finding
from orrery.catalogue import ranking, schema, search, semantic, suggestions, vectors
from orrery.catalogue.store import Store
from orrery.core import files
from orrery.core.errors import ConfigError, UnknownNameError


def slugs(found):
    return [hit.paper.slug for hit in found.hits]


def first(store, query, **options):
    return slugs(search.search(store, query, **options))[0]


@pytest.mark.parametrize("mode", search.MODES)
def test_earth_mover_distance_is_emo(shelf, mode):
    assert first(shelf, "earth mover distance", mode=mode) == "emo"


@pytest.mark.parametrize(
    ("query", "slug"),
    [
        ("title:hypermixer", "hypermixer"),
        ('"speech-text foundation"', "moshi"),
        ("author:durr", finding.KEYS),
        ("percuss* transcription -xylophonic", finding.DRUMS),
        ("xylophonc priors", finding.XYLO),
        ("streaming decoder", finding.KEYS),
    ],
)
def test_readers_queries(shelf, query, slug):
    assert first(shelf, query) == slug


def test_every_word_comes_before_some_words(shelf):
    found = search.search(shelf, "percussion labels", mode="text")
    assert slugs(found)[0] == finding.DRUMS and found.total == 1
    assert finding.XYLO in slugs(found)


def test_filters_and_facets(shelf):
    assert set(slugs(search.search(shelf, "percussion", kind="data"))) == {finding.DRUMS}
    assert set(slugs(search.search(shelf, "percussion kind:data"))) == {finding.DRUMS}
    assert set(slugs(search.search(shelf, "year:2025-2026 xylophonic marimbas", mode="text"))) == {
        finding.XYLO,
        finding.NOTE,
    }
    everything = search.search(shelf, "", limit=500)
    assert everything.total == shelf.count() == len(everything.hits)
    by_state = {
        state: search.search(shelf, "", status=state, limit=500)
        for state in ("working model", "part", "planned", "survey", "reading")
    }
    assert sum(found.total for found in by_state.values()) == shelf.count()
    assert finding.NOTE in slugs(by_state["survey"]) and "hypermixer" not in slugs(by_state["survey"])
    surveys = search.search(shelf, "", topic="surveys", limit=500)
    assert surveys.total and all("surveys" in hit.paper.topics for hit in surveys.hits)
    rooms = search.search(shelf, "", room="mixers", limit=500)
    assert all("mixers" in hit.paper.rooms for hit in rooms.hits)
    assert search.search(shelf, "", room="mix%", limit=500).total == 0


def test_filters_that_do_not_exist(shelf):
    for name in ("kind", "topic", "status"):
        with pytest.raises(UnknownNameError, match="nonsense"):
            search.search(shelf, "a", **{name: "nonsense"})
    with pytest.raises(ConfigError, match="year"):
        search.search(shelf, "a", year="soon")
    with pytest.raises(ConfigError, match="mode"):
        search.search(shelf, "a", mode="magic")
    assert finding.XYLO in slugs(search.search(shelf, "kind:nonsense xylophonic"))  # in a query it is words


def test_pages_do_not_overlap_and_add_up(shelf):
    whole = slugs(search.search(shelf, "language model", limit=40))
    parts = [
        slug
        for start in range(0, 40, 10)
        for slug in slugs(search.search(shelf, "language model", limit=10, offset=start))
    ]
    assert parts == whole and len(set(whole)) == 40
    assert search.search(shelf, "language model", limit=10, offset=search.DEPTH).hits == []


def test_marks_are_segments_and_never_html(shelf):
    hit = search.search(shelf, 'title:quantised abstract:"four bits" calibration').hits[0]
    title, abstract = hit.highlights["title"], hit.highlights["abstract"]
    assert ("Quantised", True) in title and ("four bits", True) in abstract and ("calibration", True) in abstract
    assert "".join(text for text, _ in abstract) == hit.paper.abstract and "<b>No</b>" in hit.paper.abstract
    by_meaning = search.search(shelf, "superconductivity", mode="semantic").hits[-1]
    assert all(
        "".join(text for text, _ in pieces) == getattr(by_meaning.paper, name)
        for name, pieces in by_meaning.highlights.items()
    )


@given(st.text(alphabet="ab \ue000\ue001", max_size=20))
def test_segments_keep_the_text(marked):
    pieces = search.segments(marked)
    assert "".join(text for text, _ in pieces) == marked.replace("\ue000", "").replace("\ue001", "")


@settings(max_examples=40, deadline=None)
@given(query=st.text(max_size=30), mode=st.sampled_from(search.MODES))
def test_no_query_is_an_error(shelf, query, mode):
    found = search.search(shelf, query, mode=mode, limit=3)
    assert len(found.hits) <= 3 and found.total >= len(found.hits)


def test_nonsense_finds_nothing(shelf):
    found = search.search(shelf, "qzxjwv")
    assert found.hits == [] and found.total == 0 and found.suggestion is None


def test_suggestions(shelf):
    assert search.search(shelf, "xylophonc priors").suggestion == "xylophonic priors"
    assert search.search(shelf, "earth mover distance").suggestion is None
    assert search.search(shelf, "superconductvity").suggestion == "superconductivity"
    assert search.search(shelf, '"superconductvity"').suggestion is None  # a phrase says exactly what it wants


def oracle_distance(a, b):
    """Optimal string alignment by the definition, with memory."""
    from functools import cache

    @cache
    def distance(i, j):
        if not i or not j:
            return i + j
        best = min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]))
        if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
            best = min(best, distance(i - 2, j - 2) + 1)
        return best

    return distance(len(a), len(b))


@given(st.text(alphabet="abc", max_size=7), st.text(alphabet="abc", max_size=7), st.integers(0, 4))
@settings(max_examples=150, deadline=None)
def test_edits(one, other, most):
    assert suggestions.edits(one, other, most) == min(oracle_distance(one, other), most + 1)


@given(
    st.lists(st.text(alphabet="abcdé1", min_size=4, max_size=9), min_size=1, max_size=12, unique=True),
    st.text(alphabet="abcdé1", min_size=4, max_size=9),
)
@settings(max_examples=60, deadline=None)
def test_the_letter_bound_loses_no_near_word(vocabulary, word):
    """The cut by letters keeps every word within the tolerance, so `nearest` is what comparing all words would give."""
    words = sorted(vocabulary)
    placed = vectors.Vectors(None, None, None, None, None, words, np.ones(len(words), np.int32), 0)
    expected = {
        other for other in words if other != word and oracle_distance(word, other) <= suggestions.tolerance(word)
    }
    assert set(suggestions.nearest(placed, word, limit=20)) == expected


def test_related(shelf):
    found = search.related(shelf, finding.XYLO, 5)
    assert len(found) == 5 and finding.XYLO not in [paper.slug for paper, _ in found]
    assert found[0][0].slug == finding.DRUMS and finding.NOTE in [paper.slug for paper, _ in found]
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    with pytest.raises(UnknownNameError):
        search.related(shelf, "no-such-paper")


# ---------------------------------------------------------------- the judged queries


def test_judgements_are_well_formed(shelf):
    queries = ranking.judged()
    assert len(queries) >= 60 and len({entry.query for entry in queries}) == len(queries)
    halves = [sum(entry.half == half for entry in queries) for half in ranking.HALVES]
    assert sum(halves) == len(queries) and abs(halves[0] - halves[1]) <= 6
    for entry in queries:
        assert entry.grades and set(entry.grades.values()) <= {1, 2, 3}
        assert all(shelf.paper(slug).slug == slug and shelf.paper(slug).shipped for slug in entry.grades), entry.query


def test_ndcg_by_hand():
    grades = {"a": 3, "b": 1}
    assert ranking.ndcg(["a", "b"], grades) == 1
    assert ranking.ndcg(["b", "x", "a"], grades) == pytest.approx((1 + 7 / 2) / (7 + 1 / np.log2(3)))
    assert ranking.ndcg(["x"], grades) == 0 and ranking.ndcg(["x", "a"], grades, depth=1) == 0


def mean(store, find):
    return statistics.mean(ranking.evaluate(find, ranking.judged("test")))


def test_hybrid_is_no_worse_than_text_on_the_test_half(shelf):
    """Of the shipped catalogue, whose abstracts are not there: titles and our sentences alone."""
    plain = mean(shelf, ranking.plain(shelf))
    text, hybrid = (mean(shelf, ranking.finder(shelf, mode)) for mode in ("text", "hybrid"))
    assert hybrid >= text >= plain - 0.02
    assert hybrid >= plain + 0.03


# ---------------------------------------------------------------- the vectors


def test_a_large_match_is_narrowed_to_the_same_best(shelf, monkeypatch):
    """With a budget of a few papers the narrowed way still puts papers with every word in the title first."""
    monkeypatch.setattr(search, "BUDGET", 10)
    found = search.search(shelf, "language model", mode="text", limit=5)
    assert found.total > 40
    assert all("language model" in hit.paper.title.lower() for hit in found.hits)
    assert first(shelf, "earth mover distance in language models") == "emo"


def test_a_name_that_the_space_does_not_know_is_left_to_the_text(copy, monkeypatch):
    monkeypatch.setattr(vectors, "SMALL", 10)
    vectors.current(copy)
    paper = {"title": "Zorvanet: an unrelated matter", "abstract": "Bread."}
    copy.record("import", {"source": "test", "papers": [paper]}, at=finding.AT)
    assert first(copy, "zorvanet speech model") == finding.slug(paper["title"])


@pytest.fixture
def copy(shelf, tmp_path):
    """A store of its own with the shelf's content."""
    vectors.current(shelf)
    shelf.connection().execute("SELECT 1")
    folder = tmp_path / "store"
    folder.mkdir()
    shutil.copytree(shelf.folder / vectors.FOLDER, folder / vectors.FOLDER)
    shutil.copy(shelf.folder / "journal.jsonl", folder)
    with sqlite3.connect(shelf.path) as source, sqlite3.connect(folder / "papers.sqlite") as target:
        source.backup(target)
    with Store.open(folder) as store:
        yield store
    vectors.forget(folder)


def test_vectors_are_read_back(copy, monkeypatch):
    monkeypatch.setattr(vectors, "_fit", None)  # neither fitted
    monkeypatch.setattr(vectors, "_extend", None)  # nor extended
    vectors.current(copy)  # the copy is another file: compared once, and written down
    vectors.forget(copy.folder)
    assert first(copy, "earth mover distance", mode="semantic") == "emo"
    meta = files.read_json(copy.folder / vectors.FOLDER / "meta.json")
    assert meta["journal_seq"] >= 2


def test_damaged_vectors_are_made_anew(copy):
    file = copy.folder / vectors.FOLDER / "packed.npy"
    data = bytearray(file.read_bytes())
    data[-5] ^= 0x40
    file.write_bytes(data)
    assert first(copy, "earth mover distance", mode="semantic") == "emo"
    files.verify_directory(copy.folder / vectors.FOLDER)


def test_new_and_changed_papers_are_folded_in(copy, monkeypatch):
    monkeypatch.setattr(vectors, "SMALL", 10)
    before = vectors.current(copy)
    papers = [
        {"title": "Glockenspiel Priors", "abstract": "Xylophonic percussion priors, again."},
        {**finding.IMPORTED[2], "abstract": "Superconductivity."},
    ]
    copy.record("import", {"source": "test", "papers": papers}, at=finding.AT)
    after = vectors.current(copy)
    assert after.space is before.space and len(after.ids) == len(before.ids) + 1
    assert finding.slug("Glockenspiel Priors") in [paper.slug for paper, _ in search.related(copy, finding.XYLO, 3)]
    changed = after.wide()[after.place(before.ids[-2])] @ before.wide()[-2]
    assert changed < 0.99
    same = after.wide()[: len(before.ids) - 4] == before.wide()[:-4]
    assert same.all()


def test_many_new_papers_wait_for_prepare(copy, monkeypatch):
    monkeypatch.setattr(vectors, "SMALL", 10)
    monkeypatch.setattr(vectors, "AT_ONCE", 1)
    vectors.current(copy)
    copy.record(
        "import", {"source": "test", "papers": [{"title": f"Gamelan Study {n}"} for n in range(3)]}, at=finding.AT
    )
    found = search.search(copy, "gamelan study")
    assert len(found.hits) >= 3 and "orrery papers index" in found.note  # found by text
    assert search.prepare(copy) == copy.count()
    assert search.search(copy, "gamelan study").note == ""


def test_a_folder_that_cannot_be_written_costs_only_a_note(copy, monkeypatch):
    from orrery.core.errors import StorageError

    def refuse(path):
        raise StorageError("the disk is full")

    shutil.rmtree(copy.folder / vectors.FOLDER)
    monkeypatch.setattr(files, "atomic_directory", refuse)
    assert first(copy, "earth mover distance", mode="semantic") == "emo"
    assert "the disk is full" in vectors.current(copy).notes[0]


# ---------------------------------------------------------------- the mathematics


def test_right_singular_vectors_are_numpys():
    rng = np.random.default_rng(0)
    left, right = np.linalg.qr(rng.standard_normal((60, 8)))[0], np.linalg.qr(rng.standard_normal((40, 8)))[0]
    dense = ((left * 0.5 ** np.arange(8)) @ right.T).astype(np.float32)
    dense[7] = 0  # an empty row
    starts, columns, values = [0], [], []
    for row in dense:
        kept = np.flatnonzero(row)
        columns += kept.tolist()
        values += row[kept].tolist()
        starts.append(len(columns))
    rows = semantic.Rows(np.array(starts), np.array(columns, np.int32), np.array(values, np.float32))
    expected = np.linalg.svd(dense)[2][:5]
    got = semantic.right_singular(rows, 40, 5)
    assert np.abs(np.abs((expected * got.T).sum(axis=1)) - 1).max() < 1e-3
    wide = rng.standard_normal((40, 3)).astype(np.float32)
    assert np.allclose(rows.times(wide), dense @ wide, atol=1e-5)
    assert np.allclose(rows.transposed(40).times(left[:, :3].astype(np.float32)), dense.T @ left[:, :3], atol=1e-5)


def test_packing_keeps_cosines():
    vectors_ = np.random.default_rng(1).standard_normal((200, semantic.DIMENSIONS)).astype(np.float32)
    vectors_ /= np.linalg.norm(vectors_, axis=1, keepdims=True)
    back = semantic.unpack(*semantic.pack(vectors_))
    assert np.abs(back @ back.T - vectors_ @ vectors_.T).max() < 0.01


def test_fitting_is_deterministic_and_meets_synonyms():
    bags = [
        semantic.bag((text, 1.0))
        for text in ("a gnn for cells", "graph neural network of cells", "speech models", "audio of voices", "poems")
    ]
    one, two = semantic.fit(bags, 3), semantic.fit(bags, 3)
    assert np.array_equal(one.directions, two.directions)
    near = one.embed([semantic.bag(("GNN", 1.0))])[0] @ one.embed(bags).T
    assert near[1] > max(near[2:]) and not one.embed([{}]).any()


def test_marking_uses_the_tokenizer_of_the_index():
    assert f"tokenize='{search.TOKENIZER}'" in schema.TABLES


def test_json_of_a_hit(shelf):
    facts = search.search(shelf, "earth mover distance").hits[0].to_dict()
    assert json.loads(json.dumps(facts))["title"].startswith("EMO") and facts["score"] > 0
