"""Contamination, novelty, agreement and repeats beside counting everything by hand; documents of few symbols, so that all occurs."""

import json
from collections import Counter

import numpy as np
import pytest

from orrery import ngram
from orrery.core.errors import ConfigError, DataError
from orrery.ngram import repeats
from orrery.ngram.repeats import curiosities, duplicate_report, duplicates
from orrery.ngram.uses import agreement, contamination, novelty

MARK = 3


@pytest.fixture(scope="module")
def corpus():
    rng = np.random.default_rng(4)
    found = [rng.integers(0, 3, size) for size in (40, 25, 1, 60, 33, 17, 52, 8)]
    return [*found, np.concatenate([found[0][5:35], found[4]]), found[1]]


@pytest.fixture(scope="module")
def index(corpus, tmp_path_factory):
    return ngram.build(corpus, tmp_path_factory.mktemp("uses") / "index", vocab_size=4, document=MARK, quiet=True)


def grams(documents, n):
    return Counter(tuple(d[i : i + n].tolist()) for d in documents for i in range(len(d) - n + 1))


def test_contamination_counts_shares_and_spans(index, corpus):
    fresh, copied = np.array([0, 1, 2] * 12), np.concatenate([np.full(20, 2), corpus[3][10:40]])
    report = contamination(index, [corpus[3], fresh, copied, [], corpus[2]], n=6, share=0.7, span=25)
    for number, ids in enumerate((corpus[3], fresh, copied)):
        hits = [tuple(ids[i : i + 6].tolist()) in grams(corpus, 6) for i in range(len(ids) - 5)]
        under = np.zeros(len(ids), bool)
        for i in np.flatnonzero(hits):
            under[i : i + 6] = True
        row = report.documents[number]
        assert row.share == pytest.approx(np.mean(hits)) and row.covered == pytest.approx(under.mean())
        assert tuple(ids[row.start : row.stop].tolist()) in grams(corpus, row.longest)
        assert not any(gram in grams(corpus, row.longest + 1) for gram in grams([ids], row.longest + 1))
    assert report.contaminated == [0, 2, 4]  # whole; by its span; one token that occurs
    assert report.documents[2].share < 0.7 <= report.documents[0].share and report.documents[3].tokens == 0
    told = json.loads(json.dumps(report.to_dict()))
    assert told["rate"] == 0.6 and 0 < told["token_rate"] < 1


def test_novelty_is_the_share_of_ngrams_that_are_not_there(index, corpus):
    texts = [np.random.default_rng(9).integers(0, 3, 70), corpus[4], []]
    report = novelty(index, texts, lengths=(1, 3, 5, 8, 69, 200))
    for n in (1, 3, 5, 8, 69):
        own = [gram for d in map(np.asarray, texts) for gram in (tuple(d[i : i + n].tolist()) for i in range(len(d) - n + 1))]
        assert report.new[n] == pytest.approx(np.mean([gram not in grams(corpus, n) for gram in own]))
    assert 200 not in report.new and report.longest[1] == len(corpus[4]) and report.longest[2] == 0
    assert json.loads(json.dumps(report.to_dict()))["new"]["8"] == report.new[8]


def test_agreement_by_effective_n(index, corpus):
    """A text of the corpus is foreseen; every row is what the index says token by token."""
    text = [np.random.default_rng(1).integers(0, 3, 90), corpus[6]]
    report = agreement(index, text, edges=(2, 4, 8))
    answers = [index.inf_prob_info(d[:t].tolist(), int(d[t])) for d in text for t in range(len(d))]
    for row in report.rows:
        chosen = [a for a in answers if row.low <= a.n <= (row.high if row.high is not None else 1 << 30)]
        assert row.tokens == len(chosen) and row.probability == pytest.approx(np.mean([a.prob for a in chosen]))
        assert row.agreement == pytest.approx(np.mean([a.prob > 0.5 for a in chosen]))
        assert row.sparse == pytest.approx(np.mean([a.sparse for a in chosen]))
    assert sum(row.tokens for row in report.rows) == report.tokens == 142 and report.rows[-1].agreement > report.rows[0].agreement
    json.dumps(report.to_dict())


@pytest.fixture(scope="module")
def several(corpus, tmp_path_factory):
    return ngram.build(corpus, tmp_path_factory.mktemp("uses") / "three", vocab_size=4, document=MARK, shards=3, quiet=True)


def test_repeats_of_several_shards_are_those_of_one(index, several, monkeypatch):
    """Reports are equal, whatever the blocks; spans too, but for the order of those that end with their documents."""
    for block in (7, 1 << 18):
        monkeypatch.setattr(repeats, "BLOCK", block)
        assert duplicate_report(several, 9, limit=50).to_dict()["covered"] == duplicate_report(index, 9).covered > 0
        one, other = (sorted(span.to_dict().items() for span in duplicates(each, 6)) for each in (index, several))
        assert one == other and len(one) > 3
        one, other = (curiosities(each, (1, 2, 5, 30), limit=3).to_dict() for each in (index, several))
        for facts in (one, other):  # of equal counts any may be named
            facts["frequent"] = {n: [count for _, count in top] for n, top in facts["frequent"].items()}
            facts["longest"] = facts["longest"]["length"]
        assert one == other


@pytest.mark.parametrize("shards", ["index", "several"])
@pytest.mark.parametrize("block", [16, 1 << 18])
def test_repeats_equal_brute_force(request, shards, corpus, block, monkeypatch):
    """Blocks of 16 suffixes, so that groups and n-grams reach over many blocks; and one block."""
    index = request.getfixturevalue(shards)
    monkeypatch.setattr(repeats, "BLOCK", block)
    facts = curiosities(index, (1, 2, 5, 30), limit=3)
    for n in (1, 2, 5, 30):
        counts = grams(corpus, n)
        assert facts.different[n] == len(counts) and facts.once[n] == pytest.approx(np.mean([c == 1 for c in counts.values()]))
        assert [count for _, count in facts.frequent[n]] == sorted(counts.values(), reverse=True)[:3]
        assert all(counts[tuple(ids)] == count for ids, count in facts.frequent[n])
    assert facts.longest.length == max(n for n in range(1, 61) if max(grams(corpus, n).values(), default=0) > 1)
    counts, covered = grams(corpus, 9), 0
    for d in corpus:
        under = np.zeros(len(d), bool)
        for i in range(len(d) - 8):
            under[i : i + 9] |= counts[tuple(d[i : i + 9].tolist())] > 1
        covered += int(under.sum())
    report = duplicate_report(index, 9, limit=2)
    assert report.covered == covered and report.tokens == sum(map(len, corpus)) and len(report.top) == 2
    spans = list(duplicates(index, 9))
    assert len(spans) == report.spans
    for span in spans:
        ids = tuple(index.read(span.places[0], span.places[0] + 9).tolist())
        assert counts[ids] == span.times and all(tuple(index.read(p, p + 9).tolist()) == ids for p in span.places)
    left = {(d, i) for d in range(len(corpus)) for i in range(len(corpus[d]) - 8) if counts[tuple(corpus[d][i : i + 9].tolist())] > 1}
    places = {p for span in spans for p in span.places}
    begins = index.catalogue.offsets
    opening = [begins[d] + 1 + i for d, i in left if i == 0]
    assert places >= set(opening)  # what opens a document cannot be made longer to the left
    json.dumps([facts.to_dict(), report.to_dict()])


def test_misuse_is_named(index, several, corpus):
    with pytest.raises(ConfigError, match="share"):
        contamination(index, [[1]], share=0)
    with pytest.raises(DataError, match="no document"):
        contamination(index, [])
    with pytest.raises(DataError, match="tokenizer"):
        novelty(index, ["text"])
    with pytest.raises(DataError, match="not one string"):
        novelty(index, "text")
    with pytest.raises(ConfigError, match="ascend"):
        agreement(index, [[1]], edges=(4, 2))
    with pytest.raises(ConfigError, match="between 1 and"):
        next(duplicates(index, 0))
    assert contamination(several, [corpus[0]]).to_dict() == contamination(index, [corpus[0]]).to_dict()
