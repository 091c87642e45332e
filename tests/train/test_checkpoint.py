"""Checkpoints: what goes in comes out, damage is found and named, a failing disk loses nothing."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import sys

import numpy as np
import pytest
import torch

import orrery
from orrery.core.errors import ConfigError, CorruptionError, StorageError
from orrery.core.seeds import seed_everything
from orrery.optim.adamw import AdamW
from orrery.train.checkpoint import Checkpoints
from orrery.train.engine import Engine, Pair

FILES = ("weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def make(seed=0, width=16):
    model = orrery.create_model("transformer", width=width, depth=1, vocab_size=13, seed=seed, dropout=0.2)
    pair = Pair(model, orrery.create_objective("next-token"))
    return Engine(pair, AdamW(pair, 1e-2), lambda step: 1e-2)


def steps(engine, first, last):
    for number in range(first, last):
        g = torch.Generator().manual_seed(number)
        engine.step(number, {"tokens": torch.randint(0, 13, (2, 9), generator=g)})


def weights(engine):
    return [p.detach().clone() for p in engine.parameters]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def saved(tmp_path):
    """A folder with checkpoints of steps 3 and 5, and the weights that eight steps give without a cut."""
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(0)
    engine = make()
    store = Checkpoints(folder, "abc", keep=2)
    steps(engine, 0, 3)
    store.save(3, engine.pair, engine.optimizer, {"note": 1.5})
    steps(engine, 3, 5)
    store.save(5, engine.pair, engine.optimizer, {"note": 2.5})
    steps(engine, 5, 8)
    return folder, weights(engine)


def resume(folder, seed=9):
    torch.manual_seed(seed)
    engine = make(seed=seed)
    step, record = Checkpoints(folder, "abc").restore(engine.pair, engine.optimizer)
    steps(engine, step, 8)
    return step, record, weights(engine)


def test_continuing_equals_going_on(saved):
    folder, wanted = saved
    step, record, got = resume(folder)
    assert (step, record) == (5, {"note": 2.5})
    assert equal(got, wanted)
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint", "checkpoint-000000003"]
    assert sorted(p.name for p in (folder / "checkpoint").iterdir()) == sorted(FILES)


def draw():
    """One number of every generator that a training run may use."""
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.standard_normal(),  # noqa: NPY002  numpy's global generator is one of those that are kept
        torch.rand(()).item(),
        torch.randn(3).tolist(),
    ]


def test_all_random_generators_come_back(tmp_path):
    engine = make()
    seed_everything(3)
    draw()
    Checkpoints(tmp_path, "abc").save(0, engine.pair, engine.optimizer, {})
    wanted = draw()
    assert draw() != wanted
    Checkpoints(tmp_path, "abc").restore(engine.pair, engine.optimizer)
    assert draw() == wanted


def test_without_a_checkpoint_there_is_nothing_to_restore(tmp_path):
    engine = make()
    assert Checkpoints(tmp_path, "abc").restore(engine.pair, engine.optimizer) is None


def test_as_many_are_kept_as_asked(tmp_path):
    engine = make()
    for keep, wanted in ((3, [2, 3, 4]), (1, [4])):
        store = Checkpoints(tmp_path / str(keep), "abc", keep=keep)
        for step in range(5):
            store.save(step, engine.pair, engine.optimizer, {})
        found = sorted(json.loads((p / "state.json").read_text())["step"] for p in store.folder.iterdir())
        assert found == wanted
        assert store.latest == 4


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["flip", "truncate", "empty", "delete", "swap"])
def test_damage_is_found_named_and_the_older_one_used(saved, capsys, name, how):
    folder, wanted = saved
    file = folder / "checkpoint" / name
    data = bytearray(file.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 0x10
        file.write_bytes(data)
    elif how == "truncate":
        file.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "delete":
        file.unlink()
    else:
        shutil.copy(folder / "checkpoint-000000003" / name, file)
    step, _, got = resume(folder)
    said = capsys.readouterr().err
    assert step == 3
    assert equal(got, wanted)
    assert "checkpoint 'checkpoint' is not used" in said
    assert (folder / "damaged-checkpoint").is_dir()
    assert json.loads((folder / "checkpoint" / "state.json").read_text())["step"] == 3


def test_when_all_are_damaged_it_refuses(saved):
    folder, _ = saved
    for path in folder.glob("checkpoint*"):
        (path / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(CorruptionError, match=r"no checkpoint in .* is whole .*weights.safetensors.*delete"):
        resume(folder)


def test_any_flipped_byte_is_found(saved):
    folder, _ = saved
    shutil.rmtree(folder / "checkpoint-000000003")
    rng = random.Random(0)
    for name in FILES[:3]:
        file = folder / "checkpoint" / name
        good = file.read_bytes()
        for place in rng.sample(range(len(good)), 25):
            file.write_bytes(good[:place] + bytes([good[place] ^ (1 << rng.randrange(8))]) + good[place + 1 :])
            with pytest.raises(CorruptionError):
                resume(folder)
        file.write_bytes(good)
    assert resume(folder)[0] == 5


def test_another_configuration_or_architecture_is_refused(saved):
    folder, _ = saved
    engine = make()
    with pytest.raises(ConfigError, match="belongs to another configuration or model"):
        Checkpoints(folder, "other").restore(engine.pair, engine.optimizer)
    wide = make(width=32)
    with pytest.raises(CorruptionError, match="shape"):
        Checkpoints(folder, "abc").restore(wide.pair, wide.optimizer)


def test_what_killed_writers_leave_is_swept(saved):
    folder, wanted = saved
    shutil.copytree(folder / "checkpoint", folder / ".checkpoint-next.abc.tmp")
    step, _, got = resume(folder)
    assert step == 5
    assert equal(got, wanted)
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("case", ["between the renames", "before the renames"])
def test_killed_between_renames(saved, case):
    folder, wanted = saved
    os.rename(folder / "checkpoint", folder / "checkpoint-next")
    if case == "before the renames":
        os.rename(folder / "checkpoint-000000003", folder / "checkpoint")
    step, _, got = resume(folder)
    assert step == 5
    assert equal(got, wanted)
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint", "checkpoint-000000003"]


def test_fewer_threads_are_said_aloud(saved, capsys):
    folder, _ = saved
    file = folder / "checkpoint" / "state.json"
    state = json.loads(file.read_text())
    assert state["threads"] == torch.get_num_threads()
    engine, store = make(), Checkpoints(folder, "abc")
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        store.restore(engine.pair, engine.optimizer)
    finally:
        torch.set_num_threads(before)
    assert f"made with {before} threads and is continued with {before + 1}" in capsys.readouterr().err


class FailsOnce:
    """A function whose n-th writing call finds the disk full."""

    def __init__(self, function, nth):
        self.function, self.nth, self.count = function, nth, 0

    def __call__(self, *arguments, **options):
        if self.function is not open or (len(arguments) > 1 and set("wax+") & set(arguments[1])):
            self.count += 1
            if self.count == self.nth:
                raise OSError(errno.ENOSPC, "No space left on device")
        return self.function(*arguments, **options)


@pytest.mark.parametrize(
    "call", ["os.fsync", "os.rename", "os.replace", "builtins.open", "orrery.train.checkpoint.save_file"]
)
def test_every_write_may_fail(saved, monkeypatch, call):
    """The n-th call fails for want of space, for every n until none does: each time a whole checkpoint is left."""
    folder, wanted = saved
    torch.manual_seed(5)
    engine = make(seed=5)
    module, _, name = call.rpartition(".")
    messages = []
    for nth in itertools.count(1):
        copy = folder.parent / f"copy{nth}"
        shutil.copytree(folder, copy)
        failing = FailsOnce(getattr(sys.modules[module], name), nth)
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules[module], name, failing)
            try:
                Checkpoints(copy, "abc", keep=2).save(7, engine.pair, engine.optimizer, {})
            except StorageError as error:
                messages.append(str(error))
        step, _, got = resume(copy)
        assert step in (5, 7)
        assert step == 7 or equal(got, wanted)
        assert not list(copy.glob(".*"))
        if failing.count < nth:
            break
    assert messages
    assert all("No space left" in message for message in messages)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and resource limits")
def test_a_file_that_cannot_grow_keeps_the_old_checkpoint(saved):
    """The operating system itself refuses the write, inside safetensors: a limit on the size of a file."""
    import resource
    import signal

    folder, wanted = saved
    engine = make(seed=5)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            Checkpoints(folder, "abc").save(7, engine.pair, engine.optimizer, {})
        except StorageError as error:
            os._exit(10 if "checkpoint" in str(error) else 11)
        os._exit(12)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10
    step, _, got = resume(folder)
    assert step == 5
    assert equal(got, wanted)


def test_state_of_parameters_that_are_not_there_is_refused(saved):
    folder, _ = saved
    engine = make()
    with pytest.raises(CorruptionError, match=r"parameters that are not there: .*embed"):
        Checkpoints(folder, "abc").restore(engine.pair, AdamW(engine.pair.model.blocks, 1e-3))
