"""Pre-training: the task, marks and rate that are chosen; going on from a folder; what becomes of it in fine-tuning."""

from __future__ import annotations

import json

import pytest

from orrery.core.errors import ConfigError
from orrery.data.labelled import TaskSpec
from orrery.data.records import Row, Table
from orrery.methods.finetune import FinetuneConfig, finetune
from orrery.methods.pretrain import pretrain
from orrery.models.storage import load


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
    from orrery.data.tokenizer_files import load_tokenizer

    assert mark in load_tokenizer(tmp_path / "run" / "weights" / "tokenizer").marks


def test_a_folder_goes_on_and_is_fine_tuned(corpus, tmp_path):
    first = pretrain("bert", tmp_path / "a", settings(corpus), quiet=True)
    again = pretrain(str(tmp_path / "a"), tmp_path / "b", settings(corpus, budget="12steps"), quiet=True)
    assert again["validation"]["loss"] < first["validation"]["loss"]
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
