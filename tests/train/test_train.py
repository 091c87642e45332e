"""The whole of `train`: its folder, its observer, its budgets, what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import orrery
from orrery.core.errors import BudgetError, ConfigError, DataError, UnknownNameError
from orrery.core.files import read_jsonl, verify_directory
from orrery.evaluate.language import bits_per_byte
from orrery.models.storage import read_weights
from orrery.runs import Run
from orrery.train import DataSpec, ModelSpec, TrainConfig, ValidationSpec, train
from orrery.train import run as running


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for number in range(15):
        (path / f"{number:02}.txt").write_text(" ".join(rng.choice(["one", "two", "three", "four"], 150)))
    return path


def configure(corpus, **changes):
    base = TrainConfig(
        model=ModelSpec(name="transformer", size=None, width=32, depth=1),
        data=DataSpec(corpus=str(corpus), length=16, batch=4),
        validation=ValidationSpec(bytes=1500),
        budget="30steps",
        seed=3,
    )
    return base.replace(**changes)


def weights(folder):
    return (folder / "weights" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    folder, told = tmp_path_factory.mktemp("runs") / "first", []
    config = configure(corpus, **{"validation.every": 10, "optim.lr": 1e-2})
    result = train(
        config,
        folder,
        observer=lambda event, fields: told.append((event, fields)),
        quiet=True,
        command=["orrery", "train"],
    )
    return folder, config, result, told


def test_the_folder_holds_the_run(finished):
    folder, config, result, _ = finished
    assert sorted(p.name for p in folder.iterdir()) == ["log.jsonl", "result.json", "run.json", "weights"]
    run = Run.open(folder)
    run.verify()
    assert run.status == "done"
    assert TrainConfig.from_dict(run.config) == config
    assert run.record["seed"] == 3
    assert run.record["command"] == ["orrery", "train"]
    facts = run.record["facts"]
    assert facts["steps"] == 30
    assert facts["tokens_per_step"] == 64
    assert facts["model"]["config"]["width"] == 32
    assert facts["parameters_total"] == facts["parameters"] + 257 * 32
    assert facts["data"]["train"]["tokens"] > 0
    assert facts["flops_per_step"] == 3 * 4 * orrery.load(folder / "weights").flops(16)
    assert json.loads((folder / "result.json").read_text()) == result


def test_the_result(finished):
    folder, _, result, _ = finished
    assert result["status"] == "done"
    assert result["steps"] == result["planned_steps"] == 30
    assert result["tokens"] == 30 * 64
    assert result["flops"] == 30 * Run.open(folder).record["facts"]["flops_per_step"]
    assert 0 < result["bits_per_byte"] < 6
    assert result["tokens_per_second"] > 0
    assert result["flops_per_second"] > 0
    assert result["seconds"] > result["warmup_seconds"] > 0
    assert result["peak_memory_bytes"] > 1e7
    assert sum(row["bytes"] for row in result["validation"]["per_document"]) == result["validation"]["bytes"] <= 1500


def test_the_curve_falls_and_is_told_as_it_is_logged(finished):
    folder, _, result, told = finished
    events = read_jsonl(folder / "log.jsonl")
    assert [(e.pop("event"), (e.pop("time"), e)[1]) for e in events] == told
    kinds = [event for event, _ in told]
    assert kinds[0] == "start"
    assert kinds[-1] == "end"
    steps = [fields for event, fields in told if event == "step"]
    assert [s["step"] for s in steps] == list(range(1, 31))
    assert steps[-1]["tokens"] == 1920
    assert np.mean([s["loss"] for s in steps[-5:]]) < steps[0]["loss"] - 1
    assert steps[0]["lr"] == pytest.approx(1e-2 / 2)
    scores = [fields["bits_per_byte"] for event, fields in told if event == "validation"]
    assert len(scores) == 3
    assert scores[0] > scores[-1] == result["bits_per_byte"]


def test_saved_weights_score_as_reported(finished, corpus):
    folder, config, result, _ = finished
    data = orrery.data.prepare(config.data.corpus, quiet=True)
    again = bits_per_byte(orrery.load(folder / "weights"), data.validation, 16, 16, 1500)
    assert again["bits_per_byte"] == pytest.approx(result["bits_per_byte"], rel=1e-6)


def test_the_tokenizer_lies_beside_the_weights(finished):
    folder, _, _, _ = finished
    text = orrery.generate(orrery.load(folder / "weights"), "one two", max_new_tokens=5, seed=0)
    assert isinstance(text, str)
    verify_directory(folder / "weights")


def test_a_finished_run_is_returned_as_it_is(finished):
    folder, config, result, _ = finished
    before = (folder / "run.json").read_bytes()
    assert train(config, folder, quiet=True) == result
    assert train(config.to_dict(), folder, quiet=True) == result
    assert (folder / "run.json").read_bytes() == before
    with pytest.raises(ConfigError, match="holds a run of another configuration"):
        train(config.replace(budget="31steps"), folder, quiet=True)


def test_equal_configs_give_equal_weights_and_seeds_do_not(finished, corpus, tmp_path):
    folder, config, _, _ = finished
    train(config, tmp_path / "again", quiet=True)
    train(config.replace(seed=4), tmp_path / "other", quiet=True)
    assert weights(tmp_path / "again") == weights(folder)
    assert weights(tmp_path / "other") != weights(folder)


@pytest.mark.parametrize(
    "way", [{"system.accumulate": 2}, {"system.recompute": True}, {"validation.every": -1}, {"system.threads": 1}]
)
def test_ways_that_do_not_change_what_is_learned(finished, corpus, tmp_path, way):
    folder, config, _, _ = finished
    before = torch.get_num_threads()
    result = train(config.replace(**way), tmp_path / "run", quiet=True)
    assert torch.get_num_threads() == before
    mine, theirs = orrery.load(tmp_path / "run" / "weights"), orrery.load(folder / "weights")
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-4)
    assert (result["bits_per_byte"] is None) == ("validation.every" in way)


def test_parallelism_is_applied_from_outside(finished, corpus, tmp_path):
    """One process under DistributedDataParallel: same weights, stored under the same names."""
    folder, config, _, _ = finished
    store = (tmp_path / "store").as_uri()
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        train(config, tmp_path / "run", parallel=nn.parallel.DistributedDataParallel, quiet=True)
    finally:
        torch.distributed.destroy_process_group()
    mine, theirs = orrery.load(tmp_path / "run" / "weights"), orrery.load(folder / "weights")
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("budget", "steps"), [("700tok", 10), ("{flops:.1f}flop", 5)])
def test_budgets(corpus, tmp_path, budget, steps):
    flops = 3 * 4 * orrery.create_model("transformer", width=32, depth=1).flops(16)
    result = train(configure(corpus, budget=budget.format(flops=5.5 * flops)), tmp_path / "run", quiet=True)
    assert result["steps"] == steps


def test_time_becomes_steps_once_and_measuring_changes_nothing(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "_CALIBRATION", (1, 2, 0.0))
    times = iter([0.01, 0.002])
    monkeypatch.setattr(
        running._Work, "calibrate", lambda self, quiet, c=running._Work.calibrate: (c(self, quiet), next(times))[1]
    )
    original, count = running.Engine.step, [0]

    def stopping(self, number, batch):
        count[0] += 1
        if count[0] == 3 + 7:  # three steps of the calibration come first
            raise KeyboardInterrupt
        return original(self, number, batch)

    with monkeypatch.context() as patch:
        patch.setattr(running.Engine, "step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(configure(corpus, **{"budget": "0.2s", "checkpoint.every": 5}), tmp_path / "timed", quiet=True)
    assert Run.open(tmp_path / "timed").record["facts"]["steps"] == 20
    assert Run.open(tmp_path / "timed").record["facts"]["seconds_per_step"] == 0.01
    result = train(configure(corpus, **{"budget": "0.2s", "checkpoint.every": 5}), tmp_path / "timed", quiet=True)
    assert result["steps"] == 20
    train(configure(corpus, budget="20steps"), tmp_path / "counted", quiet=True)
    assert weights(tmp_path / "timed") == weights(tmp_path / "counted")


def test_calibration_measures(corpus):
    work = running._Work(configure(corpus), None, None, None, quiet=True)
    before = [p.detach().clone() for p in work.model.parameters()]
    running._CALIBRATION, kept = (1, 3, 0.0), running._CALIBRATION
    try:
        assert 1e-4 < work.calibrate(quiet=True) < 10
    finally:
        running._CALIBRATION = kept
    assert all(torch.equal(a, b) for a, b in zip(before, work.model.parameters(), strict=True))


def test_a_module_of_one_s_own(corpus, tmp_path):
    def build():
        torch.manual_seed(0)
        return orrery.wrap(nn.Sequential(nn.Embedding(257, 16), nn.Linear(16, 257)), vocab_size=257)

    first = build()
    result = train(configure(corpus, **{"optim.lr": 3e-2}), tmp_path / "run", model=first, quiet=True)
    assert result["bits_per_byte"] < 8
    assert Run.open(tmp_path / "run").record["facts"]["model"] == {"kind": "given", "name": "Wrapped"}
    verify_directory(tmp_path / "run" / "weights")
    second = build()
    read_weights(second, tmp_path / "run" / "weights" / "model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_what_is_refused(corpus, tmp_path):
    cases = [
        (UnknownNameError, {"model.name": "transfromer"}, "Did you mean 'transformer'"),
        (ConfigError, {"model.size": "huge"}, "unknown size 'huge'"),
        (ConfigError, {"model.settings": {"windw": 4}}, "windw"),
        (BudgetError, {"budget": "63tok"}, "too small for one step"),
        (BudgetError, {"budget": "2x"}, "unknown unit"),
        (DataError, {"data.length": 100_000}, "smaller than one window"),
        (DataError, {"data.corpus": str(tmp_path / "absent.txt")}, "absent.txt"),
        (DataError, {"data.tokenizer": "byts"}, "byts"),
        (UnknownNameError, {"objective.name": "next"}, "next-token"),
        (UnknownNameError, {"optim.name": "adam"}, "adamw"),
        (UnknownNameError, {"optim.schedule": "cosin"}, "cosine"),
        (ConfigError, {"optim.settings": {"beta3": 1}}, "beta3"),
        (ConfigError, {"optim.warmup": 40}, "do not fit"),
        (ConfigError, {"system.device": "cuda:7"}, "cuda:7"),
        (ConfigError, {"system.dtype": "float8"}, "float8"),
        (ConfigError, {"system.accumulate": 3}, "does not divide"),
        (ConfigError, {"optim.lr": 0.0}, "optim.lr"),
        (ConfigError, {"system.foo": 1}, "system.foo"),
    ]
    for error, change, words in cases:
        with pytest.raises(error, match=words):
            train(configure(corpus, **change), tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()
    small = orrery.create_model("transformer", width=32, depth=1, vocab_size=100)
    with pytest.raises(ConfigError, match="the model knows 100 tokens, the tokenizer makes 257"):
        train(configure(corpus), tmp_path / "run", model=small, quiet=True)
    assert not (tmp_path / "run").exists()
