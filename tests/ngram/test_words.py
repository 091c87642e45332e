"""Sentences read by compiled loops are those that `str.split` and a dictionary read."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.core.errors import DataError
from orrery.ngram.counts import BackoffModel
from orrery.ngram.words import Vocabulary

SPACES = [chr(i) for i in range(sys.maxunicode + 1) if chr(i).isspace()]
KNOWN = ["<unk>", "<s>", "</s>", "a", "aa", "\0", "\0a", "seven77", "eight888", "eight889", "\u0300", "日本語", "日本誮", "é", "𝒳"]
pieces = st.sampled_from([*SPACES, *KNOWN, "\x1b", "\u200b", "\u180e", "\ufeff", "\xa1", "\u2060", "\u3001", "eight88", "b"])
sentences = st.lists(st.lists(pieces, max_size=8).map("".join) | st.text(max_size=6), min_size=1, max_size=6)


def read(words, rows, *marks):
    parts = [words.read(text, size, *marks) for text, size in words.blocks(rows)]
    return tuple(np.concatenate(each).tolist() for each in zip(*parts, strict=True))


@given(sentences, st.sampled_from([(-1, -1), (1, 2), (1, -1), (-1, 2)]))
def test_compiled_reading_is_the_plain_one(rows, marks):
    words = Vocabulary(KNOWN)
    assert read(words, rows, *marks) == tuple(each.tolist() for each in words.plain(rows, *marks))


def test_every_white_space_and_its_neighbours():
    words = Vocabulary(KNOWN)
    near = sorted({chr(ord(space) + d) for space in SPACES for d in range(-2, 3) if 0 <= ord(space) + d} | {chr(0x2080), chr(0x3081)})
    rows = [text for each in near for text in (f"a{each}aa", f"a{each}", each, f"{each}a")]
    assert read(words, rows, 1, 2) == tuple(each.tolist() for each in words.plain(rows, 1, 2))


def test_thousands_of_words_are_all_found_and_no_others():
    """Tables in which many words want one slot; blocks that end between sentences."""
    rng = np.random.default_rng(0)
    labels = [*dict.fromkeys("".join(map(chr, rng.integers(97, 101, size))) for size in rng.integers(1, 15, 20_000))]
    words = Vocabulary(["<unk>", *labels[::2]])
    rows = [" ".join(labels[i : i + 7]) for i in range(0, len(labels), 7)]
    assert len(words.blocks(rows)) > 1
    ids, _ = read(words, rows)
    assert ids[::2] == list(range(1, 1 + len(labels[::2]))) and set(ids[1::2]) == {0}


def test_words_that_are_there_twice_and_words_that_no_text_can_hold():
    words = Vocabulary(["x", "y", "x", "\ud800", "", "a b"])
    assert read(words, ["x y", "a b"]) == ([2, 1, -1, -1], [2, 2])
    assert words.blocks(["x \ud800"]) is None
    assert words.plain(["x \ud800"])[0].tolist() == [2, 3]


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_sentences_score_alike_however_they_are_given(backend):
    model = BackoffModel.fit_sentences(["a b c", "b c a b", "c"], 3)
    rows = ["a b", "", "  b\tc \u2003 a\n", "unknown a", "\0", "a \0 b", "<s> a </s>", "c " * 20_000]
    for frame in ({}, {"begin": False}, {"end": False}, {"begin": False, "end": False}):
        singly = [model.score_sentences([row.split()], **frame, backend="numpy")[0] for row in rows]
        assert model.score_sentences(rows, **frame, backend=backend) == pytest.approx(singly, rel=1e-12)
    assert model.score_sentences(["a \ud800"], backend=backend) == pytest.approx(model.score_sentences(["a unknown"]))
    assert model.perplexity(rows) == pytest.approx(model.perplexity([row.split() for row in rows]), rel=1e-12)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_an_unknown_word_is_named_where_there_is_none_for_it(backend):
    model = BackoffModel.fit(np.array([0, 1, 2, 1, 2]), 3, 2)
    model.words = ["a", "b", "c"]
    assert model.score_sentences(["b c"], backend=backend) == pytest.approx(model.log_probabilities([1, 2]).sum() / np.log(10))
    with pytest.raises(DataError, match="'zebra' is not in the model's vocabulary"):
        model.score_sentences(["a b", "b zebra"], backend=backend)
    short = BackoffModel.fit(np.array([0, 1, 2]), 3, 2)
    short.words = ["a", "b", "c", "d"]
    with pytest.raises(DataError, match="4 words and 3 ids"):
        short.score_sentences(["d"], backend=backend)
