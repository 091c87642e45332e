"""Questions answered from the command line: learnt from a table, better than the nearest words, long texts in windows, silence."""

from __future__ import annotations

import csv
import json
import random
import sys

import pytest

import orrery
from orrery.core.errors import DataError
from orrery.data.examples import TaskSpec
from orrery.data.records import Row, Table
from orrery.data.tokenizer_files import open_tokenizer_file
from orrery.methods.finetune import FinetuneConfig, finetune
from orrery.methods.fitted import Fitted, load_fitted
from orrery.methods.nearest_words import nearest_words

WORDS = {"who": ["anna", "bob", "carl"], "where": ["rome", "oslo", "lima"], "what": ["bread", "cake", "soup"]}


def rows(count, seed, silent=0.25):
    """`oslo bread anna`: who, where, what? One of them may be missing, and asked for; what stands where says nothing."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        said = {kind: rng.choice(words) for kind, words in WORDS.items()}
        question, missing = rng.choice(list(WORDS)), rng.choice(list(WORDS))
        absent = rng.random() < silent
        shown = [word for kind, word in said.items() if kind != (question if absent else missing if missing != question else "")]
        rng.shuffle(shown)
        found.append({"context": " ".join(shown), "question": question, "answer": "" if absent else said[question]})
    return found


def table(count, seed, **more):
    return Table("t", ("context", "question", "answer"), [Row(f"t, line {n}", r) for n, r in enumerate(rows(count, seed, **more))])


def run(monkeypatch, capsys, *words):
    """(exit code, standard output, standard error) of a command."""
    from orrery.cli import main

    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["orrery", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return (ended.value.code or 0, *capsys.readouterr())


SPEC = TaskSpec(kind="question-answering", text="context", pair="question", label="answer")


def test_questions_are_learnt_better_than_by_the_nearest_words(tmp_path, monkeypatch, capsys):
    config = FinetuneConfig(task=SPEC, epochs=10, batch=8, lr=3e-3, patience=0)
    how = {"tokenizer": "wordpiece:64", "settings": {"width": 32, "depth": 2, "head.longest": 2}, "quiet": True}
    result = finetune("bert", table(200, 0), tmp_path / "run", config, validation=table(24, 1), test=table(60, 2), **how)
    test = result["figures"]["test"]
    assert test["f1"]["value"] >= 0.75 and result["baseline"]["beaten"], (test, result["baseline"])
    assert list(test) == ["f1", "exact_match", "f1_answerable", "right_without_answer"]
    fitted = load_fitted(tmp_path / "run")
    again = fitted.judge(fitted.encode(table(60, 2)))
    assert again.figures["f1"](again.items) == test["f1"]["value"]
    texts = fitted.predict(table(60, 2))
    for answer, row in zip(texts, rows(60, 2), strict=True):
        assert set(answer) == {"answer", "start", "probability"} and 0 <= answer["probability"] <= 1
        if answer["answer"]:
            assert row["context"][answer["start"] :].startswith(answer["answer"])
    with pytest.raises(DataError, match="answers questions about a text; give a table with the columns 'context' and 'question'"):
        fitted.predict(["anna rome"])

    with (tmp_path / "ask.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["context", "question", "answer"])
        writer.writeheader()
        writer.writerows(rows(60, 2))
    code, out, _ = run(monkeypatch, capsys, "predict", tmp_path / "run", "--input", tmp_path / "ask.csv")
    assert not code and [json.loads(line) for line in out.splitlines()] == texts
    code, out, _ = run(monkeypatch, capsys, "evaluate", tmp_path / "run", tmp_path / "ask.csv", "--json")
    assert not code and json.loads(out)["figures"]["f1"]["value"] == test["f1"]["value"]


def test_long_texts_are_read_in_windows(tmp_path):
    long = [Row(f"t, line {n}", {**r, "context": " ".join([r["context"], *["oslo"] * 30])}) for n, r in enumerate(rows(12, 0, silent=0))]
    held = Table("t", ("context", "question", "answer"), long)
    config = FinetuneConfig(task=SPEC.replace(length=20, stride=5), epochs=1, batch=8)
    run = {"tokenizer": "wordpiece:64", "settings": {"width": 16, "depth": 1}, "quiet": True}
    result = finetune("bert", held, tmp_path / "run", config, validation=held, **run)
    assert result["rows"]["train"] == 12 and "right_without_answer" not in result["figures"]["validation"]
    fitted = load_fitted(tmp_path / "run")
    examples = fitted.encode(held)
    assert len(examples) > 24 and len(fitted.outputs(examples)["texts"]) == 12
    assert all(answer["answer"] for answer in fitted.predict(held)), "where every question had an answer, each gets one"


def test_the_nearest_words_are_near():
    text = "The castle was built in 1250 . The bridge fell in 1801 ."
    asked = (("When was the castle built ?", "1250"), ("When did the bridge fall ?", "1801"))
    made = [Row("r", {"context": text, "question": question, "answer": answer}) for question, answer in asked]
    name, given = nearest_words(SPEC, Table("t", ("context", "question", "answer"), made), Table("t", (), made))
    assert name == "the words nearest to the question's" and all(len(text.split()) == 1 for text in given["texts"])
    assert given["texts"][0] in ("in", "1250") and given["texts"][1] in ("fell", "in", "1801")
    marathi = {"context": "किल्ला मुंबईत आहे . पूल पुण्यात आहे .", "question": "पूल कोठे आहे ?", "answer": "पुण्यात"}
    row = [Row("r", marathi)] * 2
    assert nearest_words(SPEC, Table("t", (), row), Table("t", (), row))[1]["texts"][0] in marathi["context"].split(), "vowels that are marks"
    silent = [Row("r", {**made[0].values, "answer": ""})] * 3
    assert nearest_words(SPEC, Table("t", (), silent), Table("t", (), made)) == ("never an answer", {"texts": ["", ""]})


PAIRS = [("Who met Bob?", "Anna met Bob, in Rome (Italy). Bob's  hat was naïve."), ("Where?", "In Rome, Bob met Anna."), ("bob?", "bob")]


def test_a_whole_t5_reads_what_transformers_gives_it(tmp_path):
    import transformers

    pieces = [*"▁abehimnortwlsïvI,.?()'BRAWy", "▁met", "▁Bob", "▁in", "▁Rom", "om", "nna", "ob", "▁W", "ere"]
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    hf = transformers.T5Tokenizer(vocab=[*marks, *((piece, -3.0 + 0.1 * len(piece)) for piece in pieces)], extra_ids=2)
    hf.save_pretrained(tmp_path)
    own = open_tokenizer_file(tmp_path / "tokenizer.json")
    ends = {"start": 0, "stop": hf.eos_token_id, "vocab_size": own.vocab_size, "width": 16, "depth": 1}
    where = "Rome"
    asked = Table("t", ("context", "question", "answer"), [
        Row("t", {"context": text, "question": question, "answer": where if where in text else ""}) for question, text in PAIRS
    ])  # fmt: skip
    fitted = Fitted(orrery.create_model("t5", head="span", labels=2, **ends), own, SPEC)
    found = fitted.encode(asked)
    for (question, text), ids, places, target in zip(PAIRS, found.ids, found.places, found.targets, strict=True):
        theirs = hf(question, text, return_offsets_mapping=True)
        assert ids.tolist() == theirs["input_ids"] and hf.unk_token_id not in ids.tolist()
        start = text.find(where)
        place = (theirs.char_to_token(0, start, 1), theirs.char_to_token(0, start + len(where) - 1, 1)) if start >= 0 else (0, 0)
        assert tuple(target) == place
        behind = [number for number, part in enumerate(theirs.sequence_ids()) if part == 1]
        assert [first <= left and right <= last for (first, last), (left, right) in
                ((places[n], theirs["offset_mapping"][n]) for n in behind) if first >= 0] == [True] * len(behind)  # fmt: skip
    both = TaskSpec(kind="classification", text="question", pair="context", label="answer", names=("", where))
    fitted = Fitted(orrery.create_model("t5", head="classification", labels=2, **ends), own, both)
    assert [ids.tolist() for ids in fitted.encode(asked, labelled=False).ids] == [hf(*pair)["input_ids"] for pair in PAIRS]
