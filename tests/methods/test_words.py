"""A bag of words beside a network: shares against their equations, what is kept, what is refused."""

from __future__ import annotations

import json
import random
import sys

import numpy as np
import pytest

from orrery.cli import main
from orrery.core.errors import ConfigError, CorruptionError
from orrery.data.examples import TaskSpec
from orrery.data.records import Row, Table
from orrery.methods.baselines import _words, fit_linear
from orrery.methods.finetune import FinetuneConfig
from orrery.methods.fitted import load_fitted
from orrery.methods.words import Words, fit_words

LABELS = {"classification": ("a", "b"), "ordinal": ("0", "1", "2"), "multi-label": ("cat", "dog"), "regression": ()}


def test_words_of_scripts_whose_vowels_are_marks_are_whole():
    text = "हिंदी भाषा, किताबें"
    assert _words(text) == ["हिंदी", "भाषा", ",", "किताबें"] and _words("It isn't 3_a!") == ["it", "isn", "'", "t", "3_a", "!"]


def table(kind, count=60, seed=0):
    """What counts is which of two words stands there; every fifth label is another."""
    rng, rows = random.Random(seed), []
    for number in range(count):
        cat, dog = rng.random() < 0.5, rng.random() < 0.5
        text = " ".join([*["cat"] * cat, *["dog"] * dog, rng.choice(["red", "blue", "old"])])
        odd = rng.random() < 0.2
        label = {
            "classification": "ab"[cat != odd],
            "ordinal": str(min(2, cat + dog + odd)),
            "multi-label": ";".join(["cat"] * (cat != odd) + ["dog"] * dog),
            "regression": str(cat + 2.0 * dog + odd),
        }[kind]
        rows.append(Row(f"t, line {number + 1}", {"text": text, "label": label}))
    return Table("t", ("text", "label"), rows)


def network(spec, held, rng):
    """Predictions of a network that knows nothing."""
    if spec.kind == "regression":
        return {"predicted": rng.normal(size=len(held))}
    shares = rng.random((len(held), len(spec.names)))
    return {"probabilities": shares if spec.kind == "multi-label" else shares / shares.sum(1, keepdims=True)}


@pytest.mark.parametrize("kind", LABELS)
def test_answers_are_mixed_as_the_equation_says_and_read_back(tmp_path, kind):
    spec = TaskSpec(kind=kind, names=LABELS[kind], words=True)
    train, held = table(kind), table(kind, 30, 1)
    linear = fit_linear(spec, train, held)
    given = network(spec, held, np.random.default_rng(0))
    words = Words(linear, 0.3, 1.0 if kind == "regression" else 1.5)
    own = linear.scores(held).numpy()
    words.save(tmp_path)
    mixed = Words.load(tmp_path, spec).mix(given, held.rows)
    if kind == "regression":
        np.testing.assert_allclose(mixed["predicted"], 0.7 * given["predicted"] + 0.3 * own[:, 0], atol=1e-6)
        return
    shares = given["probabilities"]
    if kind == "multi-label":
        odds = 1.5 * (0.7 * np.log(shares / (1 - shares)) + 0.3 * own)
        np.testing.assert_allclose(mixed["probabilities"], 1 / (1 + np.exp(-odds)), atol=1e-6)
        return
    theirs = np.exp(own) / np.exp(own).sum(1, keepdims=True)
    wanted = (shares**0.7 * theirs**0.3) ** 1.5
    wanted /= wanted.sum(1, keepdims=True)
    np.testing.assert_allclose(mixed["probabilities"], wanted, atol=1e-6)
    median = [int(np.searchsorted(np.cumsum(row), 0.5)) for row in wanted]
    assert mixed["predicted"].tolist() == (median if kind == "ordinal" else wanted.argmax(1).tolist())


@pytest.mark.parametrize("kind", LABELS)
def test_the_share_goes_to_whoever_knows(kind):
    spec = TaskSpec(kind=kind, names=LABELS[kind], words=True)
    train, held = table(kind, 200), table(kind, 100, 1)
    linear = fit_linear(spec, train, held)
    nothing = network(spec, held, np.random.default_rng(0))
    assert fit_words(linear, nothing, held).share > 0.7
    rank = {name: number for number, name in enumerate(spec.names)}
    if kind == "regression":
        everything = {"predicted": np.array([float(row.values["label"]) for row in held.rows])}
    elif kind == "multi-label":
        everything = {"probabilities": np.array([[0.01 + 0.98 * (name in row.values["label"]) for name in spec.names] for row in held.rows])}
    else:
        everything = {"probabilities": 0.01 + 0.96 * np.eye(len(rank))[[rank[row.values["label"]] for row in held.rows]]}
    assert fit_words(linear, everything, held).share < 0.3


def test_rows_with_a_label_that_training_lacks_choose_nothing():
    spec = TaskSpec(names=("a", "b"), words=True)
    train, held = table("classification"), table("classification", 30, 1)
    more = Table("t", held.columns, [*held.rows, Row("t, line 31", {"text": "cat", "label": "c"})])
    linear = fit_linear(spec, train, held)
    given = network(spec, more, np.random.default_rng(0))
    fewer = {name: value[:-1] for name, value in given.items()}
    first, second = fit_words(linear, given, more), fit_words(linear, fewer, held)
    assert (first.share, first.sharpness) == (second.share, second.sharpness)


def test_from_the_command_line_to_an_answer(tmp_path, monkeypatch, capsys):
    for side, rows in (("train", table("classification", 80)), ("test", table("classification", 40, 1))):
        lines = [json.dumps(row.values) for row in rows.rows]
        (tmp_path / f"{side}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    typed = ["finetune", "bert", "--train", "train.jsonl", "--validation", "test.jsonl", "--test", "test.jsonl", "--tokenizer", "bytes"]
    typed += ["--words", "--out", "run", "--set", "epochs=1", "--set", "model.width=16", "--set", "model.depth=1"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["orrery", *typed])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    assert "words and network together (share of the words" in out and "the network alone: accuracy 0." in out
    fitted = load_fitted("run")
    assert fitted.words is not None and fitted.words.share > 0
    assert "answers with it; its share" in (tmp_path / "run" / "MODEL_CARD.md").read_text()
    both = fitted.predict(["cat red", "dog red"])
    fitted.words = None
    alone = fitted.predict(["cat red", "dog red"])
    assert both[0]["probabilities"]["b"] > alone[0]["probabilities"]["b"] and both[1]["probabilities"]["b"] < alone[1]["probabilities"]["b"]
    (tmp_path / "run" / "words" / "words.json").write_text("{}")
    with pytest.raises(CorruptionError, match="words"):
        load_fitted("run")


def test_what_has_no_bag_of_words_is_refused():
    with pytest.raises(ConfigError, match="not beside tagging; leave --words out"):
        FinetuneConfig.from_dict({"task": {"kind": "tagging", "words": True}})
