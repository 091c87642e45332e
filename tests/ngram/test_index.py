"""Every query beside a counter that looks at every place, over random documents and the corners of the format."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import orrery
from oracles.ngrams import Counter
from orrery import ngram
from orrery.core.errors import ConfigError, DataError
from orrery.ngram.index import Index

FOLDER = {}
DOCUMENTS = st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=8)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    FOLDER["path"] = tmp_path_factory.mktemp("indexes")


def build(documents, shards=1, vocab_size=4, plain=False, **settings) -> Index:
    arrays = [np.array(d, dtype=np.uint32) for d in documents]
    ngram.build(arrays, FOLDER["path"] / "index", shards=shards, vocab_size=vocab_size, quiet=True, **settings)
    return ngram.open(FOLDER["path"] / "index", plain=plain)


def listed(answer):
    return dict(zip(answer.ids.tolist(), answer.counts.tolist(), strict=True))


def grams(counter, rng, longest=5):
    """n-grams that occur, that nearly occur, and that cross boundaries."""
    yield []
    yield [0] * 40
    for _ in range(12):
        length = int(rng.integers(1, longest + 1))
        start = int(rng.integers(0, len(counter.closed)))
        taken = counter.closed[start : start + length]
        yield taken
        yield [*taken[:-1], int(rng.integers(0, counter.vocabulary + 1))]


def agree(index, counter, rng):
    assert index.tokens == counter.tokens and index.documents_total == len(counter.documents)
    queries = list(grams(counter, rng))
    for gram in queries:
        for across in (False, True):
            after = counter.next(gram, across)
            assert index.count(gram, across=across) == counter.count(gram, across), gram
            assert listed(index.next(gram, across=across)) == after, gram
            for token in range(counter.vocabulary + 1):
                found = index.prob_info(gram, token, across=across)
                assert (found.hits, found.total) == (after.get(token, 0), sum(after.values())), (gram, token)
        n, after = counter.inf(gram)
        found = index.inf_next(gram)
        assert (found.n, listed(found), found.sparse, found.total) == (n, after, len(after) == 1, sum(after.values()))
        for token in range(counter.vocabulary + 1):
            one = index.inf_prob_info(gram, token)
            assert one[1:] == (after.get(token, 0), sum(after.values()), n, len(after) == 1), (gram, token)
            assert one.prob == after.get(token, 0) / sum(after.values()) == index.inf_prob(gram, token)
        held = counter.documents_with(gram)
        assert {d.id: d.places for d in index.documents(gram, limit=99)} == held
        assert [d.id for d in index.documents(gram, limit=2)] == sorted(held)[:2]
    assert index.count_batch(queries).tolist() == [counter.count(g) for g in queries]
    assert index.count_batch(queries, across=True).tolist() == [counter.count(g, True) for g in queries]


def agree_on_texts(index, counter, rng):
    for _ in range(3):
        text = [i for g in list(grams(counter, rng))[2:6] for i in g]
        scores = index.score(text)
        for t, token in enumerate(text):
            n, after = counter.inf(text[:t])
            row = (scores.n[t], scores.hits[t], scores.total[t], scores.sparse[t])
            assert row == (n, after.get(token, 0), sum(after.values()), len(after) == 1), (text, t)
            assert scores.prob[t] == after.get(token, 0) / sum(after.values())
        contexts, ids = [text[:t] for t in range(len(text))], text
        batch = index.inf_prob_batch(contexts, ids)
        assert all(np.array_equal(getattr(batch, name), getattr(scores, name)) for name in scores._fields)
        clean = [i for i in text if i != counter.mark]
        spans = index.attribute(clean, min_length=2)
        assert [(s.start, s.stop) for s in spans] == counter.spans(clean, 2)
        assert all(s.times == counter.count(clean[s.start : s.stop]) and s.documents for s in spans)
        a, b, c = (list(g) for g in list(grams(counter, rng, 2))[2:5])
        for clauses in ([[a], [b]], [[a, b], [c]], [[a], [b], [c, a]], [[b]]):
            for window in (0, 1, 4):
                found = index.count_cnf(clauses, window)
                assert found == (counter.cnf(clauses, window), True), (clauses, window)


@given(DOCUMENTS, st.integers(1, 3), st.integers(0, 2**32), st.sampled_from([None, 2, 3, 16]))
@settings(max_examples=40)
def test_every_query_equals_the_exhaustive_counter(documents, shards, seed, sample):
    counter, rng = Counter(documents, mark=4, vocabulary=4), np.random.default_rng(seed)
    index = build(documents, shards, sample=sample)
    assert index.sample == sample
    agree(index, counter, rng)
    agree_on_texts(index, counter, rng)


@pytest.mark.parametrize("sample", [None, 2])
@pytest.mark.parametrize("ids", [[0], [254], [255], [0, 65534], [65535, 0, 65535], [2**20, 7, 2**20], [2**32 - 2] * 5])
def test_edges_of_the_vocabulary_and_of_the_token_types(ids, sample):
    if sample and max(ids) > 2**22:
        with pytest.raises(ConfigError, match="vocabularies of at most 4,194,304 ids"):
            build([ids], vocab_size=None, sample=sample)
        return
    index = build([ids, [], ids[::-1]], vocab_size=None, sample=sample)
    top = max(ids)
    assert index.info["width"] == (1 if top < 255 else 2 if top < 65535 else 4)
    assert index.vocab_size == top + 2 and index.doc_id == top + 1
    assert index.count([top]) == 2 * ids.count(top) and index.count([top + 1]) == 3
    assert index.count([top + 1, top + 1]) == 1  # the empty document
    assert listed(index.next([index.doc_id]))[index.doc_id] == 1
    for bad in (top + 2, -1, 2**40):
        with pytest.raises(DataError, match="outside the index's vocabulary"):
            index.count([ids[0], bad])


@pytest.mark.parametrize("sample", [None, 3])
@pytest.mark.parametrize("plain", [False, True])
def test_the_mark_may_be_any_id_and_next_stays_ascending(plain, sample):
    stream = np.array([2, 0, 1, 3, 2, 1, 3, 2, 3])
    ngram.build(stream, FOLDER["path"] / "marked", document=2, sample=sample, quiet=True)
    index = ngram.open(FOLDER["path"] / "marked", plain=plain)
    assert index.tokens == 9 and index.documents_total == 3
    assert listed(index.next([3])) == {2: 3} and listed(index.next([])) == {0: 1, 1: 2, 2: 3, 3: 3}
    assert index.next([]).ids.tolist() == [0, 1, 2, 3]
    assert index.count([3, 2, 1]) == 0 and index.count([3, 2, 1], across=True) == 1


def test_without_numba_the_same_answers():
    documents = [[0, 1, 2, 0, 1], [], [3, 3, 3, 3, 0, 1, 2]]
    counter = Counter(documents, mark=4, vocabulary=4)
    for shards, sample in ((1, None), (2, None), (2, 4)):
        index = build(documents, shards, plain=True, sample=sample)
        agree(index, counter, np.random.default_rng(1))
        agree_on_texts(index, counter, np.random.default_rng(2))


def test_many_suffixes_use_the_guide(tmp_path):
    """Large enough for many blocks of the guide, keys that are equal for thousands of suffixes, and runs of one id."""
    rng = np.random.default_rng(0)
    documents = [np.minimum(rng.geometric(0.4, size), 30) for size in (3000, 1, 500, 900)]
    documents += [np.full(1500, 7), np.tile([1, 1, 2, 1, 3], 300)]
    counter = Counter(documents, mark=40, vocabulary=40)
    text = np.array(counter.closed)
    for dtype, shards, sample in (("u1", 1, None), ("u2", 2, None), ("u2", 1, 32)):
        size, asked = 300 if dtype == "u2" else 41, []
        arrays = [d.astype(dtype) for d in documents]
        index = ngram.build(arrays, tmp_path / "i", vocab_size=size, shards=shards, sample=sample, quiet=True)
        for length in (1, 2, 3, 4, 5, 8, 9, 30):
            for _ in range(12):
                start = int(rng.integers(0, len(text) - length))
                gram = np.where(text[start : start + length] == 40, size, text[start : start + length])
                want = np.lib.stride_tricks.sliding_window_view(np.where(text == 40, size, text), length)
                inside = not (gram[1:-1] == size).any()
                assert index.count(gram) == inside * int((want[: len(text) - 1] == gram).all(1).sum()), gram
                asked.append(gram)
        assert index.count_batch(asked).tolist() == [index.count(gram) for gram in asked]
        padded, lengths = np.zeros((len(asked), 30), np.int64), np.array([len(gram) for gram in asked])
        for row, gram in enumerate(asked):
            padded[row, : len(gram)] = gram
        assert np.array_equal(index.count_batch(padded, lengths=lengths), index.count_batch(asked))
        contexts, ids = [gram[:-1] for gram in asked], [int(gram[-1]) for gram in asked]
        singly = [index.prob(c, i) for c, i in zip(contexts, ids, strict=True)]
        assert np.array_equal(index.prob_batch(contexts, ids), singly, equal_nan=True)
        infinite = [index.inf_prob_info(c, i) for c, i in zip(contexts, ids, strict=True)]
        assert [tuple(row) for row in zip(*index.inf_prob_batch(contexts, ids), strict=True)] == infinite


def test_a_guide_that_lies_is_not_believed(tmp_path):
    """The guide has no checksum: whatever stands in it, bounds are held against the suffix array, singly and in batches."""
    rng = np.random.default_rng(3)
    text = np.minimum(rng.geometric(0.3, 6000), 20)
    ngram.build([text], tmp_path / "i", vocab_size=21, quiet=True)
    asked = [text[a : a + length].tolist() for length in (1, 2, 5, 8, 9, 12) for a in rng.integers(0, 5000, 20)]
    asked += [[20, 20, 1, 20, 20, 20, 20, 20, 20], [0, 0], [21], list(range(12))]
    index = ngram.open(tmp_path / "i")
    want = [index.count(gram) for gram in asked]
    infinite = [index.inf_prob_info(gram[:-1], gram[-1]) for gram in asked]
    layout = index.shards[0].layout
    for lie in (0, -1, 2**62, -(2**63), 12345):
        words = np.memmap(tmp_path / "i" / "shard-00000.bin", dtype="<i8", mode="r+")
        words[layout.guide :: 2] = lie
        words.flush()
        lying = ngram.open(tmp_path / "i")
        assert [lying.count(gram) for gram in asked] == want
        assert lying.count_batch(asked).tolist() == want
        batch = lying.inf_prob_batch([gram[:-1] for gram in asked], [gram[-1] for gram in asked])
        assert [tuple(row) for row in zip(*batch, strict=True)] == infinite


def test_a_batch_refuses_what_one_query_refuses():
    index = build([[0, 1, 2, 3]])
    for bad in ([[0], [0.5]], [[0], ["a"]], [[0], [2**70]], [[0], [9]], [[0], [-1]]):
        with pytest.raises(DataError, match=r"n-gram|vocabulary"):
            index.count_batch(bad)
    assert index.count_batch([]).tolist() == [] and index.count_batch([[], [0]]).tolist() == [index.count([]), 1]
    assert len(index.prob_batch([], [])) == len(index.inf_prob_batch([], []).prob) == 0


@pytest.mark.parametrize("sample", [None, 64])
def test_one_token_and_repeated_tokens(sample):
    one = build([[1]], sample=sample)
    assert (one.tokens, one.count([1]), one.count([1, 1]), one.count([])) == (2, 1, 0, 2)
    same = build([[1] * 5000], sample=sample)
    assert [same.count([1] * n) for n in (1, 2, 4999, 5000, 5001)] == [5000, 4999, 2, 1, 0]
    assert listed(same.next([1] * 10)) == {1: 4990, 4: 1}
    found = same.inf_prob_info([0] + [1] * 6000, 1)
    assert (found.n, found.hits, found.total, found.sparse) == (5000, 0, 1, True)


def test_from_a_corpus_with_names_tokenizer_and_documents(tmp_path):
    texts = {"a.txt": "the cat sat on the mat", "b.txt": "the cat ran", "c.txt": "ÿ é"}
    for name, text in texts.items():
        (tmp_path / "notes").mkdir(exist_ok=True)
        (tmp_path / "notes" / name).write_text(text, encoding="utf-8")
    index = orrery.ngram.build(tmp_path / "notes", tmp_path / "index", quiet=True)
    assert index.info["width"] == 1 and index.tokenizer.name == "bytes"
    ids = index.tokenizer.encode("the cat")
    assert index.count(ids) == 2
    found = index.documents(ids)
    assert [d.name for d in found] == ["a.txt", "b.txt"] and found[1].length == len("the cat ran")
    assert index.tokenizer.decode(found[0].ids) == texts["a.txt"] and found[0].places == [0]
    near = index.documents(index.tokenizer.encode("sat"), context=2)[0]
    assert index.tokenizer.decode(near.ids) == "t sat o" and near.offset == 6
    assert index.count([255]) == 0 and index.tokenizer.decode(index.document(2).ids) == "ÿ é"
    span = index.attribute(index.tokenizer.encode("a cat sat on a log"), min_length=8)[0]
    assert index.tokenizer.decode(index.tokenizer.encode("a cat sat on a log")[span.start : span.stop]) == " cat sat on "
    assert [d.name for d in span.documents] == ["a.txt"]
    train = ngram.build(tmp_path / "notes", tmp_path / "train", split="train", quiet=True)
    assert 0 < train.tokens < index.tokens


def test_difference_of_two_indexes(tmp_path):
    kept, gone = [[0, 1, 2], [1, 2, 3]], [[0, 1, 3], [1, 2]]
    whole = ngram.build([np.array(d) for d in kept + gone], tmp_path / "a", vocab_size=4, quiet=True)
    part = ngram.build([np.array(d) for d in gone], tmp_path / "b", vocab_size=4, quiet=True)
    rest, counter = ngram.diff(whole, part), Counter(kept, mark=4, vocabulary=4)
    assert rest.tokens == counter.tokens
    for gram in ([], [1], [0, 1], [1, 2], [0, 1, 3], [3, 3], [4, 1]):
        after = counter.next(gram)
        n, infinite = counter.inf(gram)
        assert rest.count(gram) == counter.count(gram) and listed(rest.next(gram)) == after
        found = rest.inf_next(gram)
        assert (found.n, listed(found)) == (n, infinite)
        assert rest.inf_prob(gram, 2) == infinite.get(2, 0) / sum(infinite.values())
        total = sum(after.values())
        assert rest.prob(gram, 2) == after.get(2, 0) / total if total else math.isnan(rest.prob(gram, 2))
    with pytest.raises(DataError, match="more often"):
        ngram.diff(part, whole).prob([1], 2)
    other = ngram.build([np.array([1])], tmp_path / "c", vocab_size=9, quiet=True)
    with pytest.raises(DataError, match="different tokenizers"):
        ngram.diff(whole, other)


def test_caps_are_said_and_limits_are_kept():
    index = build([[0, 1] * 50])
    exact = index.count_cnf([[[0]], [[1]]], 1)
    assert exact == (50, True)
    assert index.count_cnf([[[0]], [[1]]], 1, cap=10) == (50, False)
    with pytest.raises(DataError, match="n-grams; at most"):
        index.count_cnf([[[0]] * 5000])
    with pytest.raises(DataError, match="at least one clause"):
        index.count_cnf([[[0]], []])
    for bad in ([0.5], ["a"], [2**70], [[0, 1]], np.array([0.5])):
        with pytest.raises(DataError, match="n-gram"):
            index.count(bad)
    with pytest.raises(DataError, match="contexts but"):
        index.prob_batch([[0], [1]], [0])
    with pytest.raises(ConfigError, match="min_length"):
        index.attribute([0], min_length=0)


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ([], {}, "no token"),
        (np.array([], dtype=np.int64), {}, "no token"),
        (np.array([1.5]), {}, "whole numbers"),
        (np.array([3]), {"vocab_size": 3}, "must lie in 0..2"),
        (np.array([-1]), {}, "must lie in"),
        ([np.array([1]), np.array([2])], {"names": ["a"]}, "1 names for 2"),
        (np.array([1]), {"tokenizer": "bytes"}, "tokenizer itself"),
        (np.array([1]), {"memory": "lots"}, "no amount of memory"),
        (np.array([1]), {"memory": "1M"}, "too little"),
    ],
)
def test_what_cannot_be_indexed_is_a_sentence(tmp_path, source, settings, message):
    with pytest.raises(orrery.core.errors.OrreryError, match=message):
        ngram.build(source, tmp_path / "index", quiet=True, **settings)
    assert not (tmp_path / "index").exists()


def test_frequent_contexts_are_counted_beforehand_and_equal_to_counting(tmp_path):
    rng = np.random.default_rng(0)
    documents = [np.concatenate([np.stack([np.zeros(20_000, int), rng.integers(1, 600, 20_000)], 1).ravel(), [7]])] * 2
    index = ngram.build(documents, tmp_path / "index", vocab_size=600, quiet=True)
    (shard,) = index.shards
    assert shard.layout.nodes == 2 and shard.layout.entries > 1000
    for context in ([], [0]):
        [found] = index.find(context)
        assert found.high - found.low >= 16_384
        flat = np.concatenate([[600], documents[0], [600], documents[1], [600]])
        after = flat[:-1] if not context else flat[1:][flat[:-1] == 0]
        want = dict(zip(*(a.tolist() for a in np.unique(after, return_counts=True)), strict=True))
        assert listed(index.next(context)) == want
