"""Examples for fine-tuning: label sets, frames, truncation, batches; what a row may not be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orrery.core.errors import ConfigError, DataError
from orrery.data import labelled
from orrery.data.examples import TaskSpec
from orrery.data.labelled import IGNORE, collate, encode, epoch_batches, learn_names, sorted_batches
from orrery.data.records import Row, Table
from orrery.data.tokenizers import ByteTokenizer
from orrery.data.wordpiece import WordPieceTokenizer

BYTES = ByteTokenizer()
DOC = BYTES.doc_id


def table(*rows):
    names = tuple(dict.fromkeys(key for row in rows for key in row))
    return Table("t", names, [Row(f"t, line {n}", row) for n, row in enumerate(rows, 1)])


def texts(*pairs):
    return table(*({"text": text, "label": label} for text, label in pairs))


def test_names_are_learnt_in_order():
    assert learn_names(texts(("a", "pos"), ("b", "neg")), TaskSpec()).names == ("neg", "pos")
    assert learn_names(texts(("a", 10), ("b", "9")), TaskSpec()).names == ("9", "10")
    assert learn_names(texts(("a", "x;y"), ("b", ""), ("c", ["z"])), TaskSpec(kind="multi-label")).names == (
        "x",
        "y",
        "z",
    )
    tags = learn_names(texts(("a b", "O B-X"), (["c"], ["I-X"])), TaskSpec(kind="tagging"))
    assert tags.names == ("B-X", "I-X", "O")
    assert learn_names(texts(("a", 3), ("b", "x;3")), TaskSpec(kind="multi-label")).names == ("3", "x")
    assert learn_names(texts(("a", "DE"), ("b", "NA")), TaskSpec()).names == ("DE", "NA")  # Namibia
    named = TaskSpec(names=("x", "nan"))
    assert learn_names(texts(("a", "x"), ("b", "nan")), named).names == named.names
    ordered = TaskSpec(kind="ordinal", names=("poor", "good"))
    assert learn_names(texts(("a", "good")), ordered).names == ("poor", "good")


@pytest.mark.parametrize(
    ("rows", "spec", "words"),
    [
        ([("a", "x"), ("b", "x")], {}, "only the label 'x'"),
        ([("a", "x"), ("b", " ")], {}, "line 2: 'label' is empty"),
        ([("a", "x"), ("b", None)], {}, "line 2 has no 'label'"),
        ([("a", "x"), ("b", float("nan"))], {}, "line 2 has no 'label'"),
        ([("a", "x"), ("b", "y"), ("c", "NaN")], {}, "line 3: 'label' is 'NaN', as missing values are written"),
        ([("a", "1"), ("b", "2"), ("c", "NA")], {}, "line 3: 'label' is 'NA', as missing values are written"),
        ([("a", "3.5"), ("b", 3.5)], {"kind": "regression"}, "only the number 3.5; there is nothing to learn"),
        ([("a", "3.5"), ("b", "3,5")], {"kind": "regression"}, "line 2: 'label' is '3,5', not a number; write the decimal point as one"),
        ([("a", "x"), ("b", "y" * 5000)], {}, "line 2: 'label' has 5,000 characters"),
        ([("a", 3)], {"kind": "tagging"}, "line 1: 'label' is 3; tags are a list"),
        ([("a", "x"), ("b", [1])], {}, "line 2: 'label' is a list"),
        ([("a", "good"), ("b", "bad")], {"kind": "ordinal"}, "say their order"),
        ([("a", "x"), ("b", "y")], {"names": ("x",)}, "label 'y', which is none of x"),
        ([("a", "x")], {"label": "lable"}, "no column 'lable'. Did you mean 'label'"),
        ([("a", "x")], {"pair": "other"}, "no column 'other'"),
    ],
)
def test_labels_that_cannot_be_learnt(rows, spec, words):
    with pytest.raises(DataError, match=words):
        learn_names(texts(*rows), TaskSpec(**spec))


def test_unknown_kind_and_pairs_where_there_are_none():
    with pytest.raises(ConfigError, match="no task 'tag'"):
        TaskSpec(kind="tag")
    with pytest.raises(ConfigError, match="takes no pair"):
        TaskSpec(kind="tagging", pair="b")


def test_frames_of_texts_and_pairs():
    pairs = table({"text": "ab", "b": "c", "label": "x"}, {"text": "", "b": "de", "label": "y"})
    spec = learn_names(pairs, TaskSpec(pair="b"))
    found = encode(pairs, spec, BYTES)
    assert found.ids[0].tolist() == [DOC, 97, 98, DOC, 99, DOC] and found.types[0].tolist() == [0, 0, 0, 0, 1, 1]
    assert found.ids[1].tolist() == [DOC, DOC, 100, 101, DOC] and found.targets == [0, 1]
    wordpiece = WordPieceTokenizer.build("64", ["ab ab cd"] * 9)
    found = encode(pairs, spec, wordpiece, labelled=False)
    assert found.ids[0][0] == wordpiece.marks["class"] and found.ids[0][-1] == wordpiece.marks["separator"]
    assert found.targets is None


def test_words_are_a_list_or_a_text():
    with pytest.raises(DataError, match="line 1: 'text' is 3; words are a list"):
        encode(texts((3, "O")), TaskSpec(kind="tagging", names=("O",)), BYTES)


def test_tags_stand_at_the_first_token_of_their_word():
    tagged = texts((["ab", "c"], ["B-X", "O"]), ("de f", "O O"))
    spec = learn_names(tagged, TaskSpec(kind="tagging"))
    found = encode(tagged, spec, BYTES)
    assert bytes(found.ids[0][1:-1].tolist()) == b"ab c"
    assert found.targets[0].tolist() == [IGNORE, 0, IGNORE, 1, IGNORE, IGNORE]
    assert found.places[0].tolist() == [1, 3] and found.answers[1] == ["O", "O"]
    with pytest.raises(DataError, match="line 1 has 2 words, but 1 tags"):
        encode(texts((["a", "b"], ["O"])), spec, BYTES)
    unseen = encode(texts(("a b", "O B-NEW")), spec, BYTES)
    assert unseen.targets[0].tolist() == [IGNORE, 1, IGNORE, IGNORE, IGNORE] and unseen.answers == [["O", "B-NEW"]]


def test_targets_of_every_kind():
    rows = texts(("a", "1.5"), ("b", 2))
    assert encode(rows, TaskSpec(kind="regression"), BYTES).targets == [1.5, 2.0]
    with pytest.raises(DataError, match="line 1: 'label' is 'x', not a number"):
        encode(texts(("a", "x")), TaskSpec(kind="regression"), BYTES)
    with pytest.raises(DataError, match="not a number"):
        encode(texts(("a", "nan")), TaskSpec(kind="regression"), BYTES)
    many = encode(texts(("a", "x;z"), ("b", "new")), TaskSpec(kind="multi-label", names=("x", "y", "z")), BYTES)
    assert [t.tolist() for t in many.targets] == [[1, 0, 1], [0, 0, 0]] and many.answers[1] == ["new"]
    unseen = encode(texts(("a", "new")), TaskSpec(names=("x", "y")), BYTES)
    assert unseen.targets == [IGNORE] and unseen.answers == ["new"]
    answer = encode(texts(("a", "bc")), TaskSpec(kind="text-to-text"), BYTES)
    assert answer.targets[0].tolist() == [98, 99, DOC] and answer.ids[0].tolist() == [97, DOC]
    ended = encode(texts(("a", "bc")), TaskSpec(kind="text-to-text"), BYTES, end=7)
    assert ended.targets[0].tolist() == [98, 99, 7] and ended.ids[0].tolist() == [97, 7]
    assert labelled.guess_kind(rows, "label") == "regression"
    assert labelled.guess_kind(texts(("a", "1"), ("b", "2")), "label") == "classification"
    assert labelled.guess_kind(texts((["a"], ["O"])), "label") == "tagging"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(4, 20))
def test_what_is_too_long_is_refused_or_cut_fairly(first, second, limit):
    rows = table({"text": "a" * first, "b": "b" * second, "label": "x"})
    spec = TaskSpec(pair="b", names=("x", "y"))
    if first + second + 3 <= limit:
        assert encode(rows, spec, BYTES, limit=limit).cut == 0
        return
    with pytest.raises(DataError, match=f"line 1 has {first + second + 3} tokens, but the model reads {limit}"):
        encode(rows, spec, BYTES, limit=limit)
    found = encode(rows, spec, BYTES, limit=limit, truncate=True)
    a, b = (found.ids[0].tolist().count(c) for c in (97, 98))
    assert found.cut == 1 and len(found.ids[0]) == limit and a + b == limit - 3
    assert abs(a - b) <= 1 or (a == first and a < b) or (b == second and b < a)


def test_words_that_do_not_fit_lose_their_tags():
    rows = texts(("aa bb cc", "O O O"))
    found = encode(rows, TaskSpec(kind="tagging", names=("O",)), BYTES, limit=6, truncate=True)
    assert found.ids[0].tolist() == [DOC, 97, 97, 32, 98, DOC] and found.places[0].tolist() == [1, 3]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=80), st.integers(1, 9), st.integers(0, 3))
def test_batches_hold_every_example_once_and_depend_on_seed_and_epoch_alone(lengths, size, seed):
    sizes = np.array(lengths)
    first = epoch_batches(sizes, size, seed, 0)
    assert sorted(np.concatenate(first).tolist()) == list(range(len(sizes)))
    assert all(len(batch) <= size for batch in first)
    assert [b.tolist() for b in first] == [b.tolist() for b in epoch_batches(sizes, size, seed, 0)]
    ordered = sorted_batches(sizes, tokens=100)
    assert sorted(np.concatenate(ordered).tolist()) == list(range(len(sizes)))
    assert all(len(b) * sizes[b].max() <= 100 or len(b) == 1 for b in ordered)
    assert (np.diff(sizes[np.concatenate(ordered)]) >= 0).all()


def test_a_batch_as_tensors():
    rows = texts(("abc", "x"), ("d", "y"))
    batch = collate(encode(rows, TaskSpec(names=("x", "y")), BYTES), [1, 0])
    assert batch["tokens"].tolist() == [[DOC, 100, DOC, 0, 0], [DOC, 97, 98, 99, DOC]]
    assert batch["segments"].tolist() == [[0, 0, 0, -1, -1], [0] * 5] and batch["targets"].tolist() == [1, 0]
    batch = collate(encode(rows, TaskSpec(kind="text-to-text"), BYTES), [0, 1])
    assert batch["answer"].tolist() == [[120, DOC], [121, DOC]] and "targets" not in batch


def test_weights_of_classes_and_a_split_that_keeps_rare_labels():
    assert labelled.class_weights([0, 0, 0, 1], 3) == [pytest.approx(4 / 9), pytest.approx(4 / 3), 1.0]
    assert labelled.imbalance([0, 0, 0, 1], 3) == 3
    rows = texts(*((str(n), "rare" if n < 10 else "often") for n in range(100)))
    kept, held = labelled.split_table(rows, 0.2, 0, TaskSpec())
    assert len(kept) + len(held) == 100 and not {r.where for r in kept.rows} & {r.where for r in held.rows}
    assert held.column("label").count("rare") == 2
    assert [r.where for r in labelled.split_table(rows, 0.2, 0, TaskSpec())[1].rows] == [r.where for r in held.rows]
    with pytest.raises(DataError, match="has 2 rows"):
        labelled.split_table(texts(("a", "x"), ("b", "y")), 0.2, 0, TaskSpec())
