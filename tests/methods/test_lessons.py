"""Students and teachers: pre-trained and fine-tuned; resumed bit for bit; teachers that moved, changed or do not fit."""

from __future__ import annotations

import contextlib
import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file

import orrery
from orrery.core.errors import ConfigError, DataError, StorageError
from orrery.data.examples import TaskSpec
from orrery.data.records import Row, Table
from orrery.methods.finetune import FinetuneConfig, finetune
from orrery.methods.fitted import load_fitted
from orrery.methods.lessons import RECIPES, recipe_settings
from orrery.methods.pretrain import pretrain
from orrery.models.storage import load
from orrery.train import run as training

WORDS = ["red", "blue", "cat", "dog", "runs", "sits"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    for number in range(30):
        (folder / f"{number}.txt").write_text(" ".join(rng.choice(WORDS) for _ in range(200)))
    return folder


def settings(corpus, **more):
    small = {"data.corpus": str(corpus), "data.length": 31, "data.batch": 8, "validation.bytes": 2000, "budget": "6steps"}
    return {**small, "data.tokenizer": "bytes", "model.size": "nano", **more}


@pytest.fixture(scope="module")
def teachers(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    for name in ("bert", "transformer"):
        size = {"model.width": 16, "model.depth": 4, "model.size": None}
        pretrain(name, folder / name, settings(corpus, budget="12steps", **size), quiet=True)
    return folder


def interrupted(monkeypatch, steps):
    asked = iter([False] * steps + [True] * 100)
    fake = type("Asked", (), {"requested": property(lambda self: next(asked))})
    patch = monkeypatch.context()
    return patch, fake


def test_distilbert_begins_with_its_teachers_layers_and_learns_by_the_triple_loss(corpus, teachers, tmp_path, monkeypatch):
    lesson = {"teacher": teachers / "bert", "quiet": True}
    whole = pretrain("distilbert", tmp_path / "whole", settings(corpus), **lesson)
    record = json.loads((tmp_path / "whole" / "run.json").read_text())
    objective = record["config"]["objective"]
    assert objective["name"] == "distilled-masked-lm" and {**objective["settings"], **RECIPES["distilbert"]} == objective["settings"]
    assert whole["status"] == "done" and whole["bits_per_byte"] is None
    student = load(tmp_path / "whole" / "weights")
    assert student.config.architecture == "distilbert" and student.config.depth == 2
    assert not any("teacher" in name or name.startswith("objective") for name in load_file(tmp_path / "whole" / "weights" / "model.safetensors"))

    patch, fake = interrupted(monkeypatch, 3)
    with patch as p:
        p.setattr(training, "interruptible", lambda: contextlib.nullcontext(fake()))
        assert pretrain("distilbert", tmp_path / "cut", settings(corpus), **lesson)["status"] == "interrupted"
    kept = load_file(tmp_path / "cut" / "checkpoint" / "weights.safetensors")
    assert all(name.startswith("model.") for name in kept) and len(kept) == len(student.state_dict()) - 1  # the tied head once
    away = tmp_path / "away"
    shutil.copytree(teachers / "bert", away)
    shutil.move(teachers / "bert", tmp_path / "hidden")
    try:
        with pytest.raises(ConfigError, match="there is no teacher in"):
            pretrain("distilbert", tmp_path / "cut", settings(corpus), **lesson)
        shutil.copytree(teachers / "transformer", teachers / "bert")
        with pytest.raises(ConfigError, match="only an encoder's layers"):
            pretrain("distilbert", tmp_path / "cut", settings(corpus), teacher=teachers / "bert", layers=None, quiet=True)
        shutil.rmtree(teachers / "bert")
        pretrain(str(tmp_path / "hidden"), teachers / "bert", settings(corpus, budget="2steps"), quiet=True)
        with pytest.raises(ConfigError, match="has changed: its weights are"):
            pretrain("distilbert", tmp_path / "cut", settings(corpus), **lesson)
    finally:
        shutil.rmtree(teachers / "bert", ignore_errors=True)
        shutil.move(tmp_path / "hidden", teachers / "bert")
    pretrain("distilbert", tmp_path / "cut", settings(corpus), **lesson)
    a, b = (load(tmp_path / name / "weights").state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_maps_between_widths_are_learnt_and_resumed_but_not_kept(corpus, teachers, tmp_path, monkeypatch):
    lesson = {"teacher": teachers / "bert", "recipe": "distilcamembert", "quiet": True}
    terms = {"objective.settings.hidden": 1.0, "objective.settings.attention": 1.0}
    drawn = settings(corpus, **{"model.width": 8, "model.settings.head_dim": 8, "model.depth": 1, **terms})
    pretrain("bert", tmp_path / "whole", drawn, **lesson)
    patch, fake = interrupted(monkeypatch, 2)
    with patch as p:
        p.setattr(training, "interruptible", lambda: contextlib.nullcontext(fake()))
        pretrain("bert", tmp_path / "cut", drawn, **lesson)
    kept = load_file(tmp_path / "cut" / "checkpoint" / "weights.safetensors")
    assert {name for name in kept if not name.startswith("model.")} == {f"objective.maps.{n}.weight" for n in ("last", "layers", "embedding")}
    pretrain("bert", tmp_path / "cut", drawn, **lesson)
    a, b = (load_file(tmp_path / name / "weights" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a) and not any("maps" in name for name in a)


def test_a_causal_teacher_has_causal_students_of_any_kind(corpus, teachers, tmp_path):
    result = pretrain("lstm", tmp_path / "run", settings(corpus, budget="4steps"), teacher=teachers / "transformer", quiet=True)
    assert result["bits_per_byte"] is not None
    with pytest.raises(ConfigError, match="'bert' does not"):
        pretrain("bert", tmp_path / "b", settings(corpus), teacher=teachers / "transformer", quiet=True)
    with pytest.raises(ConfigError, match="only an encoder's layers"):
        pretrain("transformer", tmp_path / "c", settings(corpus), teacher=teachers / "transformer", layers=[0], quiet=True)
    with pytest.raises(ConfigError, match="no recipe 'distillbert'"):
        pretrain("lstm", tmp_path / "d", settings(corpus), teacher=teachers / "transformer", recipe="distillbert", quiet=True)
    with pytest.raises(ConfigError, match="name its --teacher"):
        pretrain("bert", tmp_path / "e", settings(corpus), recipe="minilm", quiet=True)
    with pytest.raises(DataError, match="another tokenizer than its teacher"):
        pretrain(str(teachers / "bert"), tmp_path / "f", settings(corpus), teacher=teachers / "transformer", quiet=True)
    assert not any((tmp_path / name).exists() for name in "bcdef")


def table(count, seed, kind="classification"):
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        words = [rng.choice(WORDS) for _ in range(rng.randint(2, 4))]
        label = ("with" if "cat" in words else "without") if kind == "classification" else str(100.0 + 50 * words.count("cat"))
        rows.append(Row(f"t, line {number + 1}", {"text": " ".join(words), "label": label}))
    return Table("t", ("text", "label"), rows)


def config(kind="classification", **more):
    return FinetuneConfig(task=TaskSpec(kind=kind), **{"epochs": 6, "batch": 16, "lr": 1e-2, "patience": 0, **more})


def test_a_task_is_learnt_from_a_teachers_answers_alone(tmp_path):
    small = {"settings": {"width": 32, "depth": 1, "head.pool": "mean"}, "quiet": True, "compare_baseline": False}
    learn = config(epochs=9, batch=8, lr=5e-3)
    taught = finetune("bert", table(96, 0), tmp_path / "teacher", learn, test=table(40, 1), tokenizer="wordpiece:64", **small)
    assert taught["figures"]["test"]["accuracy"]["value"] >= 0.9
    distil = {"teacher": str(tmp_path / "teacher"), "hard": 0.0, "soft": 1.0}
    wrong = table(96, 2)  # only the teacher can tell
    labels = [row.values["label"] for row in wrong.rows]
    random.Random(3).shuffle(labels)
    rows = [Row(row.where, {**row.values, "label": label}) for row, label in zip(wrong.rows, labels, strict=True)]
    shuffled = Table("t", wrong.columns, rows)
    learn = learn.replace(distil=distil)
    small["settings"]["width"] = 24
    held = {"validation": table(40, 4), "test": table(40, 1), **small}
    result = finetune("bert", shuffled, tmp_path / "student", learn, **held)
    assert result["figures"]["test"]["accuracy"]["value"] >= 0.85
    assert result["teacher"]["figures"]["accuracy"] == taught["figures"]["test"]["accuracy"]
    assert "learnt from a teacher's answers too" in (tmp_path / "student" / "MODEL_CARD.md").read_text()
    with pytest.raises(ConfigError, match="fine-tuned for classification, the student for regression"):
        finetune("bert", table(20, 0, "regression"), tmp_path / "x", config("regression", distil=distil), **small)
    with pytest.raises(DataError, match="another tokenizer than its teacher"):
        finetune("bert", table(20, 0), tmp_path / "x", config(distil=distil), tokenizer="bytes", **small)
    found = json.loads((tmp_path / "student" / "run.json").read_text())["config"]["teacher_hash"]
    (tmp_path / "teacher" / "weights").rename(tmp_path / "teacher" / "old")
    with pytest.raises(StorageError, match="no folder"):
        finetune("bert", shuffled, tmp_path / "student", learn, **held)
    shutil.copytree(tmp_path / "student" / "weights", tmp_path / "teacher" / "weights")
    with pytest.raises(ConfigError, match=f"this run began with {found}"):
        finetune("bert", shuffled, tmp_path / "student", learn, **held)


def test_a_student_of_numbers_answers_in_its_teachers_units_and_may_begin_with_its_layers(tmp_path):
    small = {"quiet": True, "compare_baseline": False}
    sized = {"settings": {"width": 32, "depth": 2}, "tokenizer": "wordpiece:64"}
    finetune("bert", table(24, 0, "regression"), tmp_path / "teacher", config("regression", epochs=1), **sized, **small)
    distil = {"teacher": str(tmp_path / "teacher"), "cosine": 1.0, "hidden": 1.0}
    finetune("distilbert", table(24, 5, "regression"), tmp_path / "run", config("regression", epochs=1, distil=distil), **small)
    master, student = load_fitted(tmp_path / "teacher"), load_fitted(tmp_path / "run")
    assert (student.shift, student.scale) == (master.shift, master.scale)
    assert student.model.config.architecture == "distilbert" and student.model.config.depth == 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_teaches(recipe):
    student, teacher = (orrery.create_model("bert", vocab_size=30, width=16, depth=d, seed=d, head_dim=8) for d in (1, 2))
    objective = orrery.create_objective("distilled-masked-lm", **recipe_settings(recipe))
    objective.teach(teacher)
    if recipe == "patient":  # the last layer learns by the head, and there is no other
        with pytest.raises(ConfigError, match="pairs no layers of a student with 1"):
            objective.meet(student)
        return
    torch.manual_seed(0)
    batch = {"tokens": torch.randint(5, 30, (3, 9)), "segments": torch.tensor([[0] * 9, [0] * 4 + [1] * 5, [0] * 6 + [-1] * 3])}
    loss, metrics = objective(student, batch)
    loss.backward()
    terms = RECIPES[recipe]
    assert loss.isfinite() and all(bool(terms.get(name)) == (name in metrics) for name in ("soft", "cosine", "hidden", "attention"))
    grads = [p.grad for p in student.blocks.parameters() if p.grad is not None]
    assert grads and all(g.isfinite().all() for g in grads)
