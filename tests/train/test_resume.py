"""Interrupted equals uninterrupted, bit for bit, wherever the process dies; and what happens when one cannot go on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import orrery
from orrery.core.errors import ConfigError, CorruptionError, NonFiniteError, StorageError
from orrery.core.registry import names
from orrery.runs import Run
from orrery.train import CheckpointSpec, DataSpec, ModelSpec, OptimSpec, TrainConfig, ValidationSpec, train
from orrery.train.engine import Engine

STEPS = 11
FAMILIES = [name for name in ("transformer", "mamba2", "gated-deltanet", "lstm", "rwkv4") if name in names()]
DEATHS = Path(__file__).with_name("deaths.py")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus")
    for number in range(12):
        words = ["alpha", "beta", "gamma", "delta"][number % 4 :] + ["omega"]
        (path / f"{number}.txt").write_text(" ".join(words * 30))
    return path


def configure(corpus, name="transformer", **changes):
    base = TrainConfig(
        model=ModelSpec(name=name, size=None, width=32, depth=1, settings={"dropout": 0.1}),
        data=DataSpec(corpus=str(corpus), length=16, batch=4),
        optim=OptimSpec(lr=3e-3, warmup=2),
        validation=ValidationSpec(every=4, bytes=1000),
        checkpoint=CheckpointSpec(every=3),
        budget=f"{STEPS}steps",
        seed=5,
    )
    return base.replace(**changes)


def outcome(folder):
    """Everything of a finished run that does not depend on the clock."""
    weights = (folder / "weights" / "model.safetensors").read_bytes()
    run = Run.open(folder)
    run.verify()
    assert run.status == "done"
    lines = [
        [e["event"], *(e.get(key) for key in ("step", "tokens", "loss", "norm", "lr", "bits_per_byte"))]
        for e in run.events()
        if e["event"] in ("step", "validation")
    ]
    return weights, lines, run.result()["bits_per_byte"]


@pytest.fixture(scope="module")
def died(corpus, tmp_path_factory):
    """Runs that were killed or interrupted, all by one process that forks: {(name, mode, seed): (folder, answer)}."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    root = tmp_path_factory.mktemp("died")
    wanted = [(name, "kill", seed) for seed, name in enumerate(FAMILIES)]
    wanted += [("transformer", "kill", 100 + seed) for seed in range(4)]
    wanted += [("transformer", "count", 0), ("transformer", "interrupt", 6)]
    jobs = [
        {
            "config": configure(corpus, name).to_dict(),
            "folder": str(root / f"{name}-{mode}-{seed}"),
            "mode": mode,
            "seed": seed,
        }
        for name, mode, seed in wanted
    ]
    (root / "jobs.json").write_text(json.dumps(jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(DEATHS), str(root / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    return {key: (Path(job["folder"]), answer) for key, job, answer in zip(wanted, jobs, answers, strict=True)}


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """Undisturbed runs by family."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("whole") / name
            train(configure(corpus, name), folder, quiet=True)
            made[name] = outcome(folder)
        return made[name]

    return get


@pytest.mark.parametrize("name", FAMILIES)
def test_killed_again_and_again_equals_uninterrupted(died, whole, name):
    folder, times = died[name, "kill", FAMILIES.index(name)]
    assert times >= 1
    assert outcome(folder) == whole(name)


def test_deaths_in_many_places(died, whole):
    """Each ends in the same weights, the same learning curve, the same score."""
    moments = died["transformer", "count", 0]
    assert moments[1] > STEPS + 30
    assert outcome(moments[0]) == whole("transformer")
    runs = [died["transformer", "kill", 100 + seed] for seed in range(4)]
    assert sum(times for _, times in runs) >= 6
    for folder, _ in runs:
        assert outcome(folder) == whole("transformer")


def test_ctrl_c_finishes_the_step_and_saves(corpus, died, whole):
    folder, code = died["transformer", "interrupt", 6]
    assert code == 0
    run = Run.open(folder)
    assert run.status == "interrupted"
    assert json.loads((folder / "checkpoint" / "state.json").read_text())["step"] == 7
    run.verify()
    train(configure(corpus), folder, quiet=True)
    assert outcome(folder) == whole("transformer")
    assert [e["step"] for e in run.events("resume")] == [7]


def fails_at(monkeypatch, step, error=None, factor=None):
    """Let step `step` raise, or multiply its loss."""
    original = Engine._forward

    def forward(self, batch):
        loss, metrics = original(self, batch)
        self.count = getattr(self, "count", -1) + 1
        if self.count == step:
            if error is not None:
                raise error
            loss = loss * factor
        return loss, metrics

    monkeypatch.setattr(Engine, "_forward", forward)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    corpus, whole, tmp_path, monkeypatch, factor
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        fails_at(patch, 7, factor=factor)
        with pytest.raises(NonFiniteError, match=r"at step 7 on batch 7.*checkpoint of step 6 is kept"):
            train(configure(corpus), folder, quiet=True)
    run = Run.open(folder)
    assert run.status == "failed"
    assert "step 7" in run.result()["error"]
    (event,) = run.events("not_finite")
    assert (event["step"], event["batch"], event["last_checkpoint"]) == (7, 7, 6)
    train(configure(corpus), folder, quiet=True)  # what was broken is mended: it goes on from step 6
    assert outcome(folder) == whole("transformer")


def test_out_of_memory_is_an_outcome(corpus, tmp_path, monkeypatch):
    fails_at(
        monkeypatch, 2, error=RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
    )
    with pytest.raises(RuntimeError, match="allocate"):
        train(configure(corpus), tmp_path / "run", quiet=True)
    assert Run.open(tmp_path / "run").status == "oom"


def test_a_full_disk_keeps_the_old_checkpoint(corpus, whole, tmp_path, monkeypatch):
    folder, saved = tmp_path / "run", []
    original = orrery.train.checkpoint.save_file

    def full(tensors, path):
        saved.append(path)
        if len(saved) == 4:  # optimizer.safetensors of the second checkpoint
            raise OSError(28, "No space left on device")
        original(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(orrery.train.checkpoint, "save_file", full)
        with pytest.raises(StorageError, match="No space left on device"):
            train(configure(corpus), folder, quiet=True)
    assert Run.open(folder).status == "failed"
    assert json.loads((folder / "checkpoint" / "state.json").read_text())["step"] == 3
    train(configure(corpus), folder, quiet=True)
    assert outcome(folder) == whole("transformer")


@pytest.fixture
def half(corpus, tmp_path, monkeypatch):
    """A folder with checkpoints of steps 3 and 6."""
    with monkeypatch.context() as patch:
        fails_at(patch, 8, error=KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            train(configure(corpus), tmp_path / "run", quiet=True)
    assert Run.open(tmp_path / "run").status == "interrupted"
    return tmp_path / "run"


def test_a_damaged_checkpoint_is_named_and_the_older_one_used(corpus, whole, half, capsys):
    file = half / "checkpoint" / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-7] ^= 1
    file.write_bytes(data)
    train(configure(corpus), half, quiet=True)
    assert "optimizer.safetensors' is damaged: its SHA-256" in capsys.readouterr().err
    assert [e["step"] for e in Run.open(half).events("resume")] == [3]
    assert outcome(half) == whole("transformer")


def test_the_only_checkpoint_damaged_is_refused(corpus, half):
    shutil.rmtree(half / "checkpoint-000000003")
    (half / "checkpoint" / "state.json").write_text("{}")
    with pytest.raises(CorruptionError, match="no checkpoint in"):
        train(configure(corpus), half, quiet=True)


def test_another_configuration_is_refused_in_one_sentence(corpus, half):
    with pytest.raises(ConfigError, match=r"another configuration \(optim.lr 0.003 there, 0.001 here\)"):
        train(configure(corpus, **{"optim.lr": 1e-3}), half, quiet=True)
    with pytest.raises(ConfigError, match=r"model.name 'transformer' there, 'mamba2' here"):
        train(configure(corpus, "mamba2"), half, quiet=True)


def test_a_checkpoint_of_another_architecture_is_refused(corpus, half, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fails_at(patch, 8, error=KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            train(configure(corpus, "mamba2"), tmp_path / "other", quiet=True)
    shutil.rmtree(half / "checkpoint")
    shutil.copytree(tmp_path / "other" / "checkpoint", half / "checkpoint")
    with pytest.raises(ConfigError, match="belongs to another configuration or model"):
        train(configure(corpus), half, quiet=True)


def test_changed_data_is_refused(corpus, half):
    extra = corpus / "new.txt"
    extra.write_text("one more document " * 20)
    try:
        with pytest.raises(ConfigError, match="its corpus has changed"):
            train(configure(corpus), half, quiet=True)
    finally:
        extra.unlink()
