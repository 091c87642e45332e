"""Questions about texts: what tables may hold, windows that lose nothing, targets that are the answer, and putting together."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.core.errors import DataError
from orrery.data.answering import encode_answers, join_windows, read_answers, words_of
from orrery.data.examples import TaskSpec
from orrery.data.labelled import learn_names, split_table
from orrery.data.records import Row, Table, read_table
from orrery.data.tokenizers import ByteTokenizer

SPEC = TaskSpec(kind="question-answering", text="context", pair="question", label="answer")


def table(*rows):
    return Table("t", ("context", "question", "answer"), [Row(f"t, line {n}", dict(row)) for n, row in enumerate(rows, 1)])


def row(context="Anna met Bob in Rome.", question="Where?", answer="Rome", **more):
    return {"context": context, "question": question, "answer": answer, **more}


def test_words_know_their_characters():
    text = "Don't: 東京 was naïve, हिंदी x_1."
    found = [text[a:b] for a, b in words_of(text)]
    assert found == ["Don", "'", "t", ":", "東", "京", "was", "naïve", ",", "हिंदी", "x", "_", "1", "."]


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("Rome", [("Rome", None)]),
        ("", []),
        (["Rome", "in Rome"], [("Rome", None), ("in Rome", None)]),
        ([{"text": "Rome", "answer_start": 16}], [("Rome", 16)]),
        ({"text": ["Rome"], "answer_start": [16]}, [("Rome", 16)]),
        ({"text": [], "answer_start": []}, []),
    ],
)
def test_answers_come_in_the_usual_forms(cell, found):
    assert [tuple(each) for each in read_answers(Row("r", {"answer": cell}), "answer")] == found


@given(st.integers(0, 40), st.integers(24, 60), st.integers(0, 12))
def test_windows_hold_every_token_and_the_answer_where_it_is(number, limit, stride):
    words = [f"w{k}" for k in range(60)]
    context = " ".join(words)
    spec = SPEC.replace(stride=stride)
    examples = encode_answers(table(row(context, "which", f"w{number} w{number + 1}")), spec, ByteTokenizer(), limit=limit)
    seen = set()
    held = 0
    for ids, places, target, types in zip(examples.ids, examples.places, examples.targets, examples.types, strict=True):
        assert len(ids) == len(places) == len(types) <= limit
        seen |= {tuple(place) for place in places if place[0] >= 0}
        assert (types[places[:, 0] >= 0] == 1).all() and types[0] == 0
        if target.any():
            held += 1
            assert context[places[target[0], 0] : places[target[1], 1]] == f"w{number} w{number + 1}"
    assert seen == set(words_of(context)) and set(examples.owners) == {0}
    assert held >= 1 or stride < len(f" w{number} w{number + 1}"), "an answer shorter than the stride is whole in some window"


def test_a_place_decides_between_equal_words_and_must_be_right():
    context = "Bob saw Bob."
    first, second = (encode_answers(table(row(context, answer="Bob", start=s)), SPEC, ByteTokenizer()) for s in (0, 8))
    assert first.targets[0][0] < second.targets[0][0]
    for bad, words in (
        (row(answer="Paris"), "does not stand in its text"),
        (row(answer="Rome", start=3), "at character 3 the text reads 'a me', not the answer 'Rome'"),
        (row(answer="Rome", start="x"), "a number of characters"),
        (row(context=" "), "'context' is empty"),
        (row(question="w" * 300), "more than half of the 384"),
        (row(answer=[3]), "holds int, not the text of an answer"),
    ):
        with pytest.raises(DataError, match=f"t, line 1.*{words}"):
            encode_answers(table(bad), SPEC, ByteTokenizer())
    assert encode_answers(table(row(question="w" * 300)), SPEC, ByteTokenizer(), truncate=True).cut == 1


def test_questions_about_one_text_stay_together_and_silence_is_learnt():
    rows = [row(f"Text {n // 3} says {n // 3}.", f"q{n}", str(n // 3) if n % 2 else "") for n in range(30)]
    spec = learn_names(table(*rows), SPEC)
    assert spec.empty and not learn_names(table(row()), SPEC).empty
    kept, held = split_table(table(*rows), 0.3, 0, spec)
    assert not set(kept.column("context")) & set(held.column("context")) and len(kept) + len(held) == 30
    with pytest.raises(DataError, match="no question of 't' has an answer"):
        learn_names(table(row(answer="")), SPEC)
    with pytest.raises(DataError, match="about one text"):
        split_table(table(*[row()] * 8), 0.3, 0, spec)


def test_windows_are_put_together():
    found = [(-1.0, -2.0, 3, 5), (-0.5, -0.2, 7, 9), (-4.0, -0.1, 1, 2)]
    assert join_windows(found, [0, 0, 1], False) == [(7, 9, -0.5), (1, 2, -4.0)]
    assert join_windows(found, [0, 0, 1], True) == [(7, 9, -0.5), (0, 0, -0.1)], "none must be likeliest in every window"


def test_squad_and_lists_are_read(tmp_path):
    question = {"id": "a", "question": "Where?", "answers": [{"text": "Rome", "answer_start": 16}]}
    silent = {"id": "b", "question": "When?", "answers": [{"text": "x", "answer_start": 0}], "is_impossible": True}
    squad = {"data": [{"paragraphs": [{"context": "Anna met Bob in Rome.", "qas": [question, silent]}]}]}
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    found = read_table(tmp_path / "squad.json")
    assert found.columns == ("id", "context", "question", "answers") and [len(r.values["answers"]) for r in found.rows] == [1, 0]
    (tmp_path / "list.json").write_text(json.dumps([row(), row()]))
    assert len(read_table(tmp_path / "list.json")) == 2
    for text, words in (('{"data": [{}]}', "neither a list of rows nor laid out as SQuAD"), ("[1]", "item 1"), ("{", "no JSON")):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError, match=words):
            read_table(tmp_path / "bad.json")


def test_ids_of_a_window_are_the_frame_around_the_words():
    examples = encode_answers(table(row("a b", "q", "b")), SPEC, ByteTokenizer())
    doc = ByteTokenizer().doc_id
    assert examples.ids[0].tolist() == [doc, ord("q"), doc, ord("a"), ord(" "), ord("b"), doc]
    assert examples.places[0].tolist() == [[-1, -1]] * 3 + [[0, 1], [-1, -1], [2, 3], [-1, -1]]
    assert examples.targets[0].tolist() == [5, 5] and np.array_equal(examples.types[0], [0, 0, 0, 1, 1, 1, 1])
