"""A run's folder: what is written is what is read, damage is named, outcomes are recorded, one writer at a time."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time

import pytest

from orrery.core.errors import CorruptionError, OrreryError, StorageError
from orrery.core.files import atomic_directory
from orrery.runs import Run, folder, lock

CONFIG = {"model": "lstm", "lr": 3e-3, "mixer": {"width": 16}}


def test_a_run_from_start_to_end(tmp_path):
    run = Run.create(tmp_path / "a", CONFIG, name="lstm", seed=7, extra={"data": "abc"})
    assert run.status == "running" and (tmp_path / "a" / lock.LOCK).exists()
    run.log("step", step=1, loss=math.nan, parts=[1.0, math.inf])
    run.log("note", text="ü")
    run.finish({"bits_per_byte": 2.5, "curve": {"y": [math.nan, 1.0]}})
    again = Run.open(tmp_path / "a")
    assert again.status == "done" and again.config == CONFIG and again.record["facts"] == {"data": "abc"}
    assert again.result() == {"bits_per_byte": 2.5, "curve": {"y": [None, 1.0]}, "not_finite": ["curve.y[0]"]}
    assert [event["event"] for event in again.events()] == ["step", "note"]
    assert again.events("step")[0]["loss"] is None and again.events("step")[0]["parts"] == [1.0, None]
    assert again.record["environment"]["python"] and again.record["command"]
    assert not (tmp_path / "a" / lock.LOCK).exists()
    again.verify()


def test_a_folder_holds_one_run(tmp_path):
    Run.create(tmp_path / "a", CONFIG)
    with pytest.raises(StorageError, match="already holds a run"):
        Run.create(tmp_path / "a", CONFIG)
    with pytest.raises(StorageError, match="cannot make"):
        Run.create(tmp_path / "a" / "run.json" / "b", CONFIG)


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (MemoryError(), "oom"),
        (OutOfMemoryError("x"), "oom"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried"), "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), "oom"),
        (OrreryError("the corpus ran out of memory lane"), "failed"),
        (ValueError("shapes"), "failed"),
    ],
)
def test_outcomes_are_recorded(tmp_path, error, status):
    with pytest.raises(type(error)), Run.create(tmp_path / "a", CONFIG):
        raise error
    run = Run.open(tmp_path / "a")
    assert run.status == status and type(error).__name__ in (run.result() or {})["error"]
    assert run.events("end")[0]["status"] == status


def test_a_run_that_leaves_quietly_is_done(tmp_path):
    with Run.create(tmp_path / "a", CONFIG) as run:
        run.log("step", step=1)
    assert Run.open(tmp_path / "a").status == "done" and Run.open(tmp_path / "a").result() is None
    with pytest.raises(ValueError, match="status"):
        run.finish(None, "perfect")


def damaged(path, position: int) -> bytes:
    """Flip one bit of a file; returns what it held before."""
    data = path.read_bytes()
    path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
    return data


def test_every_flipped_bit_of_a_finished_run_is_found(tmp_path):
    run = Run.create(tmp_path / "a", CONFIG, name="lstm", seed=7)
    run.log("step", step=1, loss=2.0)
    with atomic_directory(run.path / "weights") as target:
        (target / "w.bin").write_bytes(b"1234")
    run.finish({"bits_per_byte": 2.5})
    silent = []
    for name in ("run.json", "result.json", "log.jsonl", "weights/w.bin"):
        file = run.path / name
        for position in range(0, file.stat().st_size, 1 if name != "run.json" else 5):
            before = damaged(file, position)
            try:
                Run.open(run.path).verify()
                if name != "run.json" or json.loads(file.read_text()) != json.loads(before):
                    silent.append((name, position))  # a changed byte between tokens of run.json may mean the same JSON
            except (CorruptionError, StorageError):
                pass
            file.write_bytes(before)
    assert silent == []
    Run.open(run.path).verify()


def test_a_missing_file_is_named(tmp_path):
    run = Run.create(tmp_path / "a", CONFIG)
    run.finish({"x": 1})
    (run.path / "result.json").unlink()
    with pytest.raises(CorruptionError, match=r"result\.json' is missing"):
        Run.open(run.path).verify()
    with pytest.raises(StorageError, match="cannot read"):
        Run.open(tmp_path / "nothing")


def hold(path, seconds: str = "0") -> subprocess.Popen[str]:
    """Another process that takes the folder's lock, says so, and waits."""
    code = (
        "import sys, time; from pathlib import Path; from orrery.runs import lock;"
        f"lock.take(Path({str(path)!r})); print('held', flush=True); time.sleep({seconds})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().strip() == "held"
    return process


def test_a_living_holder_keeps_the_folder_and_a_dead_one_loses_it(tmp_path):
    process = hold(tmp_path, "60")
    try:
        with pytest.raises(StorageError, match=f"in use by process {process.pid}"):
            lock.take(tmp_path)
    finally:
        process.kill()
        process.communicate()
    assert lock.take(tmp_path)["process"] == os.getpid()
    assert lock.take(tmp_path)["process"] == os.getpid()  # ours: taken again without complaint
    lock.release(tmp_path)
    lock.release(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_another_machine_stands_until_deleted(tmp_path):
    (tmp_path / lock.LOCK).write_text(json.dumps({"host": "elsewhere", "process": 1, "process_started": 0.0}))
    with pytest.raises(StorageError, match="on elsewhere"):
        lock.take(tmp_path)


def test_a_lock_that_was_never_written_is_stale(tmp_path):
    (tmp_path / lock.LOCK).write_text("")
    assert lock.take(tmp_path)["process"] == os.getpid()


def test_a_reused_process_id_is_not_the_holder(tmp_path):
    (tmp_path / lock.LOCK).write_text(json.dumps({**lock.holder(), "process": os.getppid(), "process_started": 1.0}))
    assert lock.take(tmp_path)["process"] == os.getpid()


def test_of_many_processes_one_takes_a_stale_lock(tmp_path):
    hold(tmp_path).communicate()
    assert (tmp_path / lock.LOCK).exists()
    code = (
        "import sys, time; from pathlib import Path; from orrery.runs import lock\n"
        "while time.time() < float(sys.argv[1]): pass\n"
        f"try: lock.take(Path({str(tmp_path)!r})); print('mine')\n"
        "except Exception as error: print('refused' if 'in use by' in str(error) else error)\n"
        "sys.stdout.flush(); sys.stdin.read()"
    )
    start = str(time.time() + 1.5)
    many = [
        subprocess.Popen([sys.executable, "-c", code, start], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [process.stdout.readline().strip() for process in many if process.stdout]
    for process in many:
        process.communicate("")
    assert sorted(said) == ["mine", "refused", "refused", "refused"]


def test_a_killed_run_counts_as_interrupted_and_can_be_resumed(tmp_path):
    code = f"from orrery.runs import Run; import os; Run.create({str(tmp_path / 'a')!r}, {{'x': 1}}); os._exit(9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    run = Run.open(tmp_path / "a")
    assert run.record["status"] == "running" and run.status == "interrupted"
    run.acquire()
    assert Run.open(tmp_path / "a").status == "running"
    run.finish({"y": 2})
    run = Run.open(tmp_path / "a")
    run.acquire()  # a finished run taken up again loses its final marks until it ends again
    assert Run.open(tmp_path / "a").record["files"] == {} and Run.open(tmp_path / "a").result() == {"y": 2}


def test_slugs_fit_any_file_system():
    assert folder.slug("mamba2*3 + attention | x") == "mamba2-3-attention-x"
    assert folder.slug("../..") == "run" and len(folder.slug("a" * 200)) == 60
