"""Several tables over one body: learnt, resumed bit for bit, usable each by itself; how often a task comes; what is refused."""

from __future__ import annotations

import contextlib
import csv
import json
import random
import sys
from pathlib import Path

import pytest
import torch

from orrery.core.errors import ConfigError, DataError
from orrery.data.examples import TaskSpec
from orrery.data.records import Row, Table
from orrery.methods import multitask as module
from orrery.methods.finetune import FinetuneConfig
from orrery.methods.fitted import load_fitted
from orrery.methods.multitask import MultitaskConfig, Part, multitask, shares
from orrery.models.encoder import Encoder
from orrery.models.encoder_decoder import PairReader

WORDS = ["red", "blue", "cat", "dog", "runs", "sits"]


def rows(count, seed, kind):
    rng = random.Random(seed)
    found = []
    for number in range(count):
        words = [rng.choice(WORDS) for _ in range(rng.randint(2, 4))]
        label = {
            "classification": "with" if "cat" in words else "without",
            "regression": str(3.0 + 2 * words.count("dog")),
            "tagging": " ".join("B-A" if w in ("cat", "dog") else "O" for w in words),
        }[kind]
        found.append(Row(f"{kind}, line {number}", {"text": " ".join(words), "label": label}))
    return found


def part(kind, count, test=30, **more):
    tables = [Table(kind, ("text", "label"), rows(n, seed, kind)) if n else None for n, seed in ((count, 0), (30, 1), (test, 2))]
    return Part(kind, TaskSpec(kind=kind), *tables, **more)


def config(epochs, **more):
    return MultitaskConfig(finetune=FinetuneConfig(epochs=epochs, batch=8, lr=6e-3, patience=0), **more)


def learn(out, **more):
    parts = [part("classification", 72), part("regression", 56), part("tagging", 32)]
    small = {"settings": {"width": 32, "depth": 1, "head.pool": "mean"}, "tokenizer": "wordpiece:64", "quiet": True, "compare_baseline": False}
    return multitask("bert", parts, out, config(9, weighting="uncertainty", **more), **small)


def brief(out, **more):
    parts = [part("classification", 32, test=0), part("tagging", 24, test=0, weight=0.5)]
    small = {"settings": {"width": 16, "depth": 1, "dropout": 0.1}, "tokenizer": "bytes", "quiet": True, "compare_baseline": False}
    return multitask("bert", parts, out, config(2, weighting="uncertainty", **more), **small)


def test_several_tasks_are_learnt_by_one_body(tmp_path):
    result = learn(tmp_path / "run")
    tasks = result["tasks"]
    assert tasks["classification"]["figures"]["test"]["accuracy"]["value"] >= 0.85
    assert tasks["regression"]["figures"]["test"]["pearson"]["value"] >= 0.8
    assert tasks["tagging"]["figures"]["test"]["span_f1"]["value"] >= 0.9
    assert set(result["learnt_weights"]) == set(tasks) and result["learnt_weights"]["classification"] > 1, "a loss below a half counts more"
    fitted = {name: load_fitted(tmp_path / "run" / "tasks" / name) for name in tasks}
    bodies = [{k: v for k, v in f.model.state_dict().items() if not k.startswith("head.")} for f in fitted.values()]
    assert all(torch.equal(bodies[0][key], other[key]) for other in bodies[1:] for key in bodies[0])
    test = Table("t", ("text", "label"), rows(30, 2, "classification"))
    judged = fitted["classification"].judge(fitted["classification"].encode(test))
    assert judged.figures["accuracy"](judged.items) == tasks["classification"]["figures"]["test"]["accuracy"]["value"]
    assert all((tmp_path / "run" / "tasks" / name / "MODEL_CARD.md").is_file() for name in tasks)


@pytest.mark.parametrize(("kinds", "frame"), [(("classification", "regression"), PairReader), (("classification", "tagging"), Encoder)])
def test_tasks_of_an_encoder_decoder_share_one_frame(tmp_path, kinds, frame):
    """Both stacks where every task reads with both; else the encoder serves all."""
    small = {"settings": {"width": 16, "depth": 1}, "tokenizer": "bytes", "quiet": True, "compare_baseline": False}
    multitask("t5", [part(kind, 16, test=0) for kind in kinds], tmp_path / "run", config(1), **small)
    models = [load_fitted(tmp_path / "run" / "tasks" / kind).model for kind in kinds]
    assert [type(model) for model in models] == [frame, frame]
    first, second = (dict(model.named_parameters()) for model in models)
    shared = [name for name in first if not name.startswith("head.")]
    assert shared and all(torch.equal(first[name], second[name]) for name in shared)


def test_interrupted_and_continued_equals_uninterrupted(tmp_path, monkeypatch):
    whole = brief(tmp_path / "whole")
    asked = iter([False] * 9 + [True] * 100)  # in the second epoch of seven steps
    fake = type("Asked", (), {"requested": property(lambda self: next(asked))})
    with monkeypatch.context() as patch:
        patch.setattr(module, "interruptible", lambda: contextlib.nullcontext(fake()))
        assert brief(tmp_path / "cut")["status"] == "interrupted"
    again = brief(tmp_path / "cut")
    assert again["history"] == whole["history"] and again["learnt_weights"] == whole["learnt_weights"]
    for name in whole["tasks"]:
        a, b = (load_fitted(tmp_path / run / "tasks" / name).model.state_dict() for run in ("whole", "cut"))
        assert all(torch.equal(a[key], b[key]) for key in a)
    with pytest.raises(ConfigError, match="holds another run"):
        brief(tmp_path / "cut", temperature=2.0)


def test_how_often_a_task_comes():
    assert shares([12, 6, 2], 1) == [12, 6, 2]
    assert shares([12, 6, 2], 1e9) == [7, 7, 6]
    assert shares([100, 1], 2) == [92, 9] and sum(shares([1000, 10, 1], 5)) == 1011
    job = module._Tasks(
        "bert", [part("classification", 64), part("tagging", 16)], Path("unused"),
        config(3, temperature=1e9), "bytes", None, {"width": 16, "depth": 1}, True,
    )  # fmt: skip
    seen = [number for epoch in range(2) for name, index in job.batches(epoch) if name == "tagging" for number in index]
    assert len(seen) == 2 * 5 * 8 and all(seen.count(number) == 5 for number in range(16)), "each task goes on in epochs of its own"
    first, again, other = job.batches(0), job.batches(0), job.batches(1)
    assert [n for n, _ in first] == [n for n, _ in again] != [n for n, _ in other]


def run(monkeypatch, capsys, *words):
    """(exit code, standard output, standard error) of a command."""
    from orrery.cli import main

    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["orrery", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return (ended.value.code or 0, *capsys.readouterr())


def write(path, kind, count, seed=0):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows((row.values["text"], row.values["label"]) for row in rows(count, seed, kind))


def test_a_file_of_tasks_from_the_command_line(tmp_path, monkeypatch, capsys):
    write(tmp_path / "a.csv", "classification", 24)
    write(tmp_path / "b.csv", "regression", 24)
    tasks = {"animals": {"train": "a.csv", "weight": 2}, "dogs": {"train": "b.csv", "task": "regression"}}
    (tmp_path / "tasks.json").write_text(json.dumps({"temperature": 2, "tasks": tasks}))
    command = ["finetune", "bert", "--tasks", str(tmp_path / "tasks.json"), "--out", str(tmp_path / "run"), "--tokenizer", "bytes"]
    sized = [f"--set={each}" for each in ("model.width=16", "model.depth=1", "epochs=1", "weighting=uncertainty")]
    code, shown, _ = run(monkeypatch, capsys, *command, *sized)
    assert not code and "animals" in shown and "dogs" in shown and "root mean square" in shown and "bag of words" in shown
    record = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert record["multitask"]["weighting"] == "uncertainty" and record["multitask"]["temperature"] == 2
    assert record["weights"] == {"animals": 2.0, "dogs": 1.0}
    code, out, _ = run(monkeypatch, capsys, "predict", tmp_path / "run" / "tasks" / "dogs", "--text", "dog dog")
    assert not code and "value" in json.loads(out)
    code, _, error = run(monkeypatch, capsys, "predict", tmp_path / "run", "--text", "dog dog")
    assert code == 2 and "holds 2 tasks; name one, such as" in error
    for content, words in (
        ({"tasks": {"a": {"label": "x"}}}, "names no tasks"),
        ({"tasks": {"a": tasks["dogs"]}}, "two or more"),
        ({"tasks": {"a": tasks["dogs"], "b/c": tasks["dogs"]}}, "not 'b/c'"),
        ({"tasks": {"a": tasks["dogs"], "b": {**tasks["dogs"], "wieght": 1}}}, "wieght"),
        ({"tasks": {"a": tasks["dogs"], "b": {**tasks["dogs"], "task": "text-to-text"}}}, "go together with others of their kind"),
        ({"tasks": {"a": tasks["dogs"], "b": {**tasks["dogs"], "label": "lable"}}}, "no column 'lable'"),
        ({"weights": {}, "tasks": tasks}, "weights"),
        ({"weightin": "fixed", "tasks": tasks}, "there is no 'weightin'. Did you mean 'weighting'?"),
        ({"tasks": {"a": tasks["dogs"], "b": {"train": 5}}}, "the train table of 'b' is a file, not 5"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps(content))
        wrong = ["finetune", "bert", "--tasks", tmp_path / "bad.json", "--out", tmp_path / "x", "--tokenizer", "bytes"]
        code, _, error = run(monkeypatch, capsys, *wrong)
        assert code == 2 and words in error and not (tmp_path / "x").exists(), (content, error)


def test_parts_that_cannot_go_together_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="have no teacher together"):
        MultitaskConfig(finetune=FinetuneConfig(distil={"teacher": "x"}))
    (tmp_path / "t.json").write_text("[]")
    with pytest.raises(DataError, match="names no tasks"):
        module.read_tasks(tmp_path / "t.json")
