"""Multiple choice, from table to answers: learnt where no word of the text is in the right choice; figures, baseline, card, folder."""

from __future__ import annotations

import random

import numpy as np
import pytest

from orrery.core.errors import DataError
from orrery.data.examples import TaskSpec
from orrery.data.records import Row, Table
from orrery.evaluate.tasks import judge
from orrery.methods.finetune import FinetuneConfig, finetune
from orrery.methods.fitted import load_fitted
from orrery.methods.plain_choices import plain_choices
from orrery.methods.starting import start
from orrery.models.encoder_decoder import PairReader

SOUNDS = {"cat": "meows", "dog": "barks", "bird": "sings"}
SPEC = TaskSpec(kind="multiple-choice", choices=("options",))


def table(count, seed):
    """A beast, and sounds of which one is its own; two or three of them."""
    rng, rows = random.Random(seed), []
    for number in range(count):
        beast = rng.choice(list(SOUNDS))
        options = rng.sample(list(SOUNDS.values()), 3)
        options = options if rng.random() < 0.5 else [each for each in options if each != next(o for o in options if o != SOUNDS[beast])]
        rows.append(Row(f"t, line {number}", {"text": f"the {beast}", "options": options, "label": SOUNDS[beast]}))
    return Table("t", ("text", "options", "label"), rows)


def test_choices_are_learnt(tmp_path):
    settings = {"width": 32, "depth": 1, "head.pool": "mean"}
    config = FinetuneConfig(task=SPEC, epochs=12, batch=8, lr=4e-3, patience=0)
    run = {"validation": table(40, 1), "test": table(40, 2), "tokenizer": "wordpiece:64", "settings": settings, "quiet": True}
    result = finetune("bert", table(160, 0), tmp_path / "run", config, **run)
    assert result["main"] == "accuracy" and result["figures"]["test"]["accuracy"]["value"] >= 0.9
    assert result["baseline"]["name"] in ("the longest choice", "choice 1, always", "choice 2, always",
                                          "the choice that shares most words with its text") and result["baseline"]["beaten"]  # fmt: skip
    fitted = load_fitted(tmp_path / "run")
    whole = start("bart", SPEC, table(8, 0), tokenizer="bytes", settings={"width": 32, "depth": 1}).model
    assert isinstance(whole, PairReader) and whole.reads_end
    asked = Table("u", ("text", "options"), [Row("u, line 1", {"text": "the dog", "options": ["sings", "barks"]})])
    (answer,) = fitted.predict(asked)
    assert (answer["choice"], answer["number"]) == ("barks", 1) and sum(answer["probabilities"]) == pytest.approx(1)
    judged = fitted.judge(fitted.encode(table(40, 2)))
    assert judged.figures["accuracy"](judged.items) == result["figures"]["test"]["accuracy"]["value"]
    assert "the choices in `options`" in (tmp_path / "run" / "MODEL_CARD.md").read_text()
    with pytest.raises(DataError, match="chooses between a row's choices; give a table with the columns 'text', 'options'"):
        fitted.predict(["the dog"])


def test_figures_and_the_plain_choice():
    shares = [np.array([0.25, 0.75]), np.array([0.5, 0.25, 0.25])]
    judged = judge(SPEC, [1, 2], {"predicted": np.array([1, 0]), "shares": shares})
    found = {name: figure(judged.items) for name, figure in judged.figures.items()}
    assert found == {"accuracy": 0.5, "nats": pytest.approx(-(np.log(0.75) + np.log(0.25)) / 2)}

    def rows(*cells):
        return Table("t", ("text", "options", "label"), [Row("t", {"text": t, "options": o, "label": y}) for t, o, y in cells])

    near = rows(("a red sky", ["a long green field", "red"], "B"), ("a blue sea", ["blue", "a long brown road"], "A"))
    assert plain_choices(SPEC, near, near)[0] == "the choice that shares most words with its text"
    long = rows(("x", ["p", "longer"], "B"), ("y", ["longest of all", "q"], "A"), ("z", ["p", "wider"], 1))
    name, given = plain_choices(SPEC, long, long)
    assert name == "the longest choice" and given["predicted"].tolist() == [1, 0, 1]
    same = rows(("x", ["pp", "q", "r"], 1), ("y", ["pp", "q"], 1))
    assert plain_choices(SPEC, same, same)[0] == "choice 2, always"
