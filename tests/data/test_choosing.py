"""Rows with choices: how they are read, what their documents hold, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from orrery.core.errors import ConfigError, DataError
from orrery.data.choosing import read_choice, read_choices
from orrery.data.examples import TaskSpec
from orrery.data.labelled import collate, encode, learn_names
from orrery.data.records import Row, Table
from orrery.data.tokenizers import ByteTokenizer

SPEC = TaskSpec(kind="multiple-choice", choices=("a", "b", "c"))
LISTS = TaskSpec(kind="multiple-choice", choices=("options",))


def row(label="0", **cells):
    return Row("t, line 2", {"text": "sky", "a": "red", "b": "blue", "c": "3", "label": label, **cells})


def test_a_label_is_a_text_a_column_a_letter_or_a_number():
    found = {label: read_choice(row(label), SPEC, ["red", "blue", "3"]) for label in ("blue", "c", "A", "b", "3", "1", 2)}
    assert found == {"blue": 1, "c": 2, "A": 0, "b": 1, "3": 2, "1": 1, 2: 2}
    assert read_choice(row("b", options=["x", "b"]), LISTS, ["x", "b"]) == 1
    assert read_choices(row(c=""), SPEC) == ["red", "blue"] and read_choices(row(options=["x", 4]), LISTS) == ["x", "4"]


@pytest.mark.parametrize(
    ("cells", "spec", "said"),
    [
        ({"label": "4"}, SPEC, "'4' is none of its 3 choices"),
        ({"label": "2", "c": None}, SPEC, "'2' is none of its 2 choices"),
        ({"label": "-1"}, SPEC, "'-1' is none of its 3 choices"),
        ({"label": " "}, SPEC, "'label' is empty"),
        ({"b": ""}, SPEC, "has 2 choices, with gaps"),
        ({"b": "", "c": ""}, SPEC, "has 1 choices, with gaps or fewer than two"),
        ({"b": float("nan")}, SPEC, "has 2 choices, with gaps"),
        ({"a": "blue", "label": "blue"}, SPEC, "'blue' stands 2 times among its choices; say by a letter"),
        ({"a": ["x"]}, SPEC, "a choice is a text, not"),
        ({"options": "x,y"}, LISTS, "'options' is no list of choices"),
        ({"text": None}, SPEC, "has no text in 'text'"),
        ({"text": "x" * 60}, SPEC, "line 2 has 67 tokens, but the model reads 20"),
    ],
)
def test_rows_that_say_nothing_are_named(cells, spec, said):
    columns = ("text", "a", "b", "c", "label", "options")
    with pytest.raises(DataError, match=said):
        encode(Table("t", columns, [row(**cells)]), spec, ByteTokenizer(), limit=20)


def test_settings_that_do_not_fit_are_refused():
    cases = (({"kind": "multiple-choice"}, "needs the columns of the choices"), ({"choices": ("a",)}, "classification task has no choices"))
    for wanted, said in cases:
        with pytest.raises(ConfigError, match=said):
            TaskSpec(**wanted)
    with pytest.raises(DataError, match="has no column 'z'"):
        learn_names(Table("t", ("text", "label", "a"), [row()]), SPEC.replace(choices=("a", "z")))


def test_a_row_becomes_a_document_for_each_choice():
    """Question before the choice, types by side, padding behind; cut documents keep their marks and their longer text loses most."""
    spec, table = SPEC.replace(pair="q"), Table("t", ("text", "q", "a", "b", "c", "label"), [row("1", q="Is", c=""), row("2", q="Is")])
    examples = encode(table, spec, ByteTokenizer())
    assert examples.answers == examples.targets == [1, 2]
    batch = collate(examples, [0, 1])
    texts = [b"\0sky\0Is red\0", b"\0sky\0Is blue\0", b"\0sky\0Is 3\0"]
    for place, count in ((0, 2), (1, 3)):
        tokens, segments, types = (batch[name][place] for name in ("tokens", "segments", "types"))
        for number in range(count):
            own = segments == number
            assert bytes(tokens[own].where(tokens[own] < 256, 0).tolist()) == texts[number]
            assert types[own].tolist() == [0] * 5 + [1] * (len(texts[number]) - 5)
        assert int((segments >= 0).sum()) == sum(map(len, texts[:count]))
    assert batch["targets"].tolist() == [1, 2]
    cut = encode(table, spec, ByteTokenizer(), limit=9, truncate=True)
    assert cut.cut == 2 and [int(n) for n in np.bincount(cut.documents[0])] == [9, 9]
