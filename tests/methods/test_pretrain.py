"""Pre-training: the task, marks and rate that are chosen; going on from a folder; what becomes of it in fine-tuning."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
import torch

from orrery.core.errors import ConfigError
from orrery.data.dataset import prepare
from orrery.data.examples import TaskSpec
from orrery.data.records import Row, Table
from orrery.data.tokenizer_files import load_tokenizer
from orrery.methods.finetune import FinetuneConfig, finetune
from orrery.methods.pretrain import frequencies, pretrain, rows_by_budget
from orrery.models.encoder import Encoder
from orrery.models.storage import load
from orrery.train import run as training


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(40):
        (folder / f"{number}.txt").write_text(
            f"the runner number {number} ran past the running cat and the red dog. " * 12
        )
    return folder


def settings(corpus, **more):
    small = {
        "data.corpus": str(corpus),
        "data.length": 31,
        "data.batch": 8,
        "validation.bytes": 2000,
        "budget": "6steps",
    }
    return {**small, "data.tokenizer": "bytes", "model.size": "nano", "model.settings": {}, **more}


@pytest.mark.parametrize(
    ("name", "objective", "mark"),
    [
        ("bert", "masked-lm", "mask"),
        ("electra", "replaced-tokens", "mask"),
        ("t5", "span-corruption", "span-0"),
        ("bart", "denoising", "mask"),
    ],
)
def test_the_task_and_its_marks_follow_the_model(corpus, tmp_path, name, objective, mark):
    result = pretrain(name, tmp_path / "run", settings(corpus), quiet=True)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["objective"]["name"] == objective
    assert (
        result["bits_per_byte"] is None and 0 < result["validation"]["loss"] < 60
    )  # electra weighs its discriminator 50 times
    assert result["validation"]["targets"] > 0
    tokenizer = load_tokenizer(tmp_path / "run" / "weights" / "tokenizer")
    assert mark in tokenizer.marks
    config = load(tmp_path / "run" / "weights").config
    if name in ("t5", "bart"):
        assert {config.start, config.stop} == {tokenizer.doc_id}, "ids that no text produces, not bytes of it"


def test_several_pretext_tasks_are_learnt_together(corpus, tmp_path):
    small = settings(corpus, **{"model.size": None, "model.width": 16, "model.depth": 1})
    result = pretrain("bart", tmp_path / "run", small, objective="denoising+span-corruption:0.5", quiet=True)
    found = result["validation"]
    shares = {"denoising": 1.0, "span-corruption": 0.5}
    mean = sum(weight * found["parts"][name] for name, weight in shares.items()) / 1.5
    assert found["loss"] == pytest.approx(mean, rel=0.02), "each task's own loss, over its own targets, beside the weighed mean"
    record = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert record["objective"]["settings"]["parts"] == {"denoising": {"weight": 1.0}, "span-corruption": {"weight": 0.5}}
    assert record["data"]["tokenizer"] == "bytes+mask+spans-100"
    for wrong, words in (("denoising+denoising", "stands twice"), ("denoising:x", "must read OBJECTIVE or OBJECTIVE:WEIGHT")):
        with pytest.raises(ConfigError, match=words):
            pretrain("bart", tmp_path / "no", small, objective=wrong, quiet=True)


def test_several_tasks_that_predict_the_next_token_are_told_in_bits_per_byte(corpus, tmp_path):
    small = settings(corpus, **{"model.size": None, "model.width": 16, "model.depth": 1, "budget": "2steps"})
    both = pretrain("gru", tmp_path / "both", small, objective="next-token+emo:0.5", quiet=True)
    assert 0 < both["bits_per_byte"] < 20 and both["bits_per_byte"] == both["validation"]["bits_per_byte"]
    with pytest.raises(ConfigError, match="next-token and masked-lm do not go together"):
        pretrain("gru", tmp_path / "no", small, objective="next-token+masked-lm", quiet=True)


def test_going_on_with_a_folder_is_resumed_exactly_and_keeps_its_tokenizer(corpus, tmp_path, monkeypatch):
    small = settings(corpus, **{"model.size": None, "model.width": 16, "model.depth": 1})
    pretrain("bert", tmp_path / "a", small, quiet=True)
    on = settings(corpus, **{"data.tokenizer": "chars"})  # what is asked for gives way to what the folder has
    whole = pretrain(str(tmp_path / "a"), tmp_path / "whole", on, quiet=True)
    asked = iter([False] * 3 + [True] * 100)
    fake = type("Asked", (), {"requested": property(lambda self: next(asked))})
    with monkeypatch.context() as patch:
        patch.setattr(training, "interruptible", lambda: contextlib.nullcontext(fake()))
        assert pretrain(str(tmp_path / "a"), tmp_path / "cut", on, quiet=True)["status"] == "interrupted"
    again = pretrain(str(tmp_path / "a"), tmp_path / "cut", on, quiet=True)
    assert again["domains"] == whole["domains"] and again["validation"]["loss"] == whole["validation"]["loss"]
    a, b = (load(tmp_path / name / "weights").state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(ConfigError, match=r"begins with layers that are there already; leave model\.width out"):
        pretrain(str(tmp_path / "a"), tmp_path / "no", {**on, "model.width": 32}, quiet=True)
    assert load_tokenizer(tmp_path / "cut" / "weights" / "tokenizer").hash == load_tokenizer(tmp_path / "a" / "weights" / "tokenizer").hash


def test_a_folder_goes_on_and_is_fine_tuned(corpus, tmp_path):
    first = pretrain("bert", tmp_path / "a", settings(corpus), quiet=True)
    again = pretrain(str(tmp_path / "a"), tmp_path / "b", settings(corpus, budget="12steps"), quiet=True)
    assert again["validation"]["loss"] < first["validation"]["loss"]
    domain, origin = again["domains"]
    assert domain["corpus"] == origin["corpus"] == str(corpus) and domain["before"] == origin["before"]
    assert domain["after"] < domain["before"] and domain["low"] <= domain["difference"] <= domain["high"] < 0
    (tmp_path / "other").mkdir()
    for number in range(40):
        (tmp_path / "other" / f"{number}.txt").write_text(f"ZYX {number} QWV! " * 40)
    options = {"also": str(tmp_path / "other"), "quiet": True}
    aside = pretrain(str(tmp_path / "a"), tmp_path / "aside", settings(corpus), **options)
    assert [row["corpus"] for row in aside["domains"]] == [str(corpus), str(tmp_path / "other")]
    assert pretrain(str(tmp_path / "a"), tmp_path / "aside", settings(corpus), **options)["domains"] == aside["domains"]
    body = load(tmp_path / "b" / "weights").state_dict()
    rows = [
        Row(f"t, line {n}", {"text": "the red dog" if n % 2 else "the cat", "label": str(n % 2)}) for n in range(40)
    ]
    table = Table("t", ("text", "label"), rows)
    result = finetune(str(tmp_path / "b"), table, tmp_path / "c", FinetuneConfig(task=TaskSpec(), epochs=1), quiet=True)
    assert result["pretrained"] and result["parameters"] > sum(
        v.numel() for k, v in body.items() if k.startswith("blocks")
    )
    with pytest.raises(ConfigError, match="lacks the marks of span-corruption"):
        pretrain(str(tmp_path / "a"), tmp_path / "d", settings(corpus), objective="span-corruption", quiet=True)


def test_a_domain_of_a_few_words_has_no_interval(corpus, tmp_path):
    small = settings(corpus, **{"model.size": None, "model.width": 16, "model.depth": 1, "budget": "2steps"})
    pretrain("bert", tmp_path / "a", small, quiet=True)
    (tmp_path / "few.txt").write_text("a few words about law. " * 60)
    more = settings(tmp_path / "few.txt", budget="2steps")
    found = pretrain(str(tmp_path / "a"), tmp_path / "b", more, quiet=True)["domains"][0]
    assert found["low"] is None and found["after"] > 0


def test_any_architecture_reads_both_ways_where_the_task_needs_it(corpus, tmp_path):
    small = settings(corpus, **{"model.size": None, "model.width": 16, "model.depth": 1, "budget": "2steps"})
    pretrain("gru", tmp_path / "run", small, objective="masked-lm", quiet=True)
    assert isinstance(load(tmp_path / "run" / "weights"), Encoder)


@pytest.mark.parametrize(("budget", "rows"), [("2Mtok", 6), ("4Mtok", 12), ("100ktok", 4), ("1Gtok", 32), ("500steps", 32), ("", 32)])
def test_steps_are_small_where_there_are_few_tokens(budget, rows):
    assert rows_by_budget(budget, 127) == rows


def test_what_frequencies_alone_reach(corpus):
    data = prepare(str(corpus), "bytes", quiet=True)
    known, held = (np.asarray(side.read(0, len(side))) for side in (data.train, data.validation))
    known, held = known[known != data.train.doc_id], held[held != data.train.doc_id]
    shares = [(np.sum(known == token) + 0.1) / (len(known) + 0.1 * data.tokenizer.vocab_size) for token in held]
    assert frequencies(data) == pytest.approx(-np.mean(np.log(shares)), rel=1e-9) and 2 < frequencies(data) < 4
