"""The store: folders are the truth, the index can be lost, damaged or fought over, and imports lose nothing."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys

import pytest

from orrery.core.errors import CorruptionError, StorageError, UnknownNameError
from orrery.runs import Run, RunStore, index


def filled(root, count: int = 3) -> RunStore:
    """A store with finished runs of different seeds and one failed run."""
    store = RunStore(root)
    for seed in range(count):
        run = store.create({"model": "lstm", "seed": seed, "train": {"lr": 0.1 * seed}}, name="lstm", seed=seed)
        run.log("step", step=1)
        run.finish({"bits_per_byte": 2.0 + seed, "curve": [1, 2]})
    store.create({"model": "gru"}, name="gru").finish({"error": "x"}, "failed")
    return store


def test_list_find_show(tmp_path):
    store = filled(tmp_path / "runs")
    records = store.list()
    assert [record.name for record in records] == ["gru", "lstm", "lstm", "lstm"]
    assert records[-1].result == {"bits_per_byte": 2.0} and records[-1].seed == 0
    assert [r.seed for r in store.list(name="l*", limit=2)] == [2, 1]
    assert [r.name for r in store.list(status="failed")] == ["gru"]
    assert [r.seed for r in store.list(where={"train.lr": 0.2})] == [2]
    assert store.list(where={"train.lr.deep": 1}) == []
    one = records[1]
    assert [r.id for r in store.find(one.config_hash)] == [one.id] and store.find(one.config_hash, "failed") == []
    assert store.show(one.folder).id == store.show(one.id).id == store.show(one.id[:9]).id == one.id
    assert json.dumps(one.to_dict())
    with pytest.raises(UnknownNameError, match="begins several runs"):
        store.show("lstm")
    with pytest.raises(UnknownNameError, match="Did you mean"):
        store.show(one.folder[:-1] + "x")
    assert store.notes == [] and store.problems() == []


def test_equal_configs_get_folders_of_their_own(tmp_path):
    store = RunStore(tmp_path)
    first, second = (store.create({"a": 1}, name="x/y") for _ in range(2))
    assert first.path.name.startswith("x-y-") and second.path.name == first.path.name + "-2"
    assert len(store.find(first.config_hash)) == 2


def test_the_index_follows_the_folders(tmp_path):
    store = filled(tmp_path)
    run = store.create({"model": "new"}, name="new")
    assert store.list(name="new")[0].status == "running"
    run.finish({"bits_per_byte": 1.0})
    assert store.list(name="new")[0].result == {"bits_per_byte": 1.0}
    shutil.rmtree(run.path)
    assert store.list(name="new") == []
    assert len(RunStore(tmp_path).list()) == 4 and store.rebuild() == 4
    (tmp_path / "not-a-run").mkdir()
    (tmp_path / "file").write_text("x")
    assert len(store.list()) == 4 and store.problems() == []


def test_an_empty_or_absent_store_lists_nothing_and_makes_nothing(tmp_path):
    store = RunStore(tmp_path / "none")
    assert store.list() == [] and store.rebuild() == 0 and not (tmp_path / "none").exists() and store.notes == []


def test_a_damaged_folder_is_named_and_skipped(tmp_path):
    store = filled(tmp_path)
    folders = [record.path for record in store.list()]
    (folders[0] / "run.json").write_text("{")
    (folders[1] / "run.json").unlink()
    result = folders[2] / "result.json"
    result.write_text(result.read_text().replace("3.", "1."))
    assert [record.path for record in store.list()] == folders[3:]
    problems = {problem.folder: problem.why for problem in store.problems()}
    assert "not valid JSON" in problems[folders[0].name] and "cannot read" in problems[folders[1].name]
    assert "checksum" in problems[folders[2].name] and len(problems) == 3
    with pytest.raises(CorruptionError, match="not valid JSON"):
        store.show(folders[0].name)
    (folders[3] / "log.jsonl").write_text("")
    with pytest.raises(CorruptionError, match=r"log\.jsonl"):
        store.verify(folders[3].name)


def test_a_damaged_index_is_rebuilt_with_a_note(tmp_path):
    store = filled(tmp_path)
    expected = store.list()
    file = tmp_path / index.FILE
    good = file.read_bytes()
    for content in (b"", b"no database at all" * 400, good[: len(good) // 2], good[:100] + b"\xff" * 200 + good[300:]):
        file.write_bytes(content)
        again = RunStore(tmp_path)
        assert again.list() == expected
        assert again.notes == [] if content == b"" else "rebuilt" in again.notes[0]
    file.write_bytes(good)
    for position in range(0, len(good), 61):  # a wrong answer is the one thing that may not happen
        file.write_bytes(good[:position] + bytes([good[position] ^ 0x41]) + good[position + 1 :])
        assert RunStore(tmp_path).list() == expected, position
        assert RunStore(tmp_path).find(expected[0].config_hash) == expected[:1], position
        file.write_bytes(good)


def test_a_flipped_value_that_sqlite_accepts_is_found_by_the_row_digest(tmp_path):
    store = filled(tmp_path)
    expected = store.list()
    with sqlite3.connect(tmp_path / index.FILE) as connection:
        connection.execute("UPDATE runs SET document = replace(document, 'lstm', 'gru')")
    connection.close()
    again = RunStore(tmp_path)
    assert again.list() == expected and "digest" in again.notes[0]
    with sqlite3.connect(tmp_path / index.FILE) as connection:
        connection.execute("PRAGMA user_version = 77")
    connection.close()
    assert RunStore(tmp_path).list() == expected


def test_an_index_that_cannot_be_used_is_bypassed_with_a_note(tmp_path, monkeypatch):
    expected = filled(tmp_path).list()
    (tmp_path / index.FILE).unlink()
    (tmp_path / index.FILE).mkdir()
    store = RunStore(tmp_path)
    assert store.list() == expected and "cannot be used" in store.notes[0]
    (tmp_path / index.FILE).rmdir()

    def no_locks(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("locking protocol")

    monkeypatch.setattr(index.Index, "_on_disk", no_locks)
    store = RunStore(tmp_path)
    assert store.list() == expected and "locking protocol" in store.notes[0]


def test_the_journal_is_never_wal(tmp_path):
    store = filled(tmp_path)
    with sqlite3.connect(tmp_path / index.FILE) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
        connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    store.list()
    with sqlite3.connect(tmp_path / index.FILE) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
    connection.close()


def test_two_processes_write_and_rebuild_at_once(tmp_path):
    code = (
        "import sys; from orrery.runs import RunStore; store = RunStore(sys.argv[1])\n"
        "for i in range(25):\n"
        "    store.create({'i': i}, name='same').finish({'i': i})\n"
        "    assert len(store.list()) >= i + 1\n"
        "    store.rebuild()\n"
        "print(store.notes)"
    )
    command, pipe = [sys.executable, "-c", code, str(tmp_path)], subprocess.PIPE
    many = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in range(3)]
    said = [process.communicate(timeout=60) for process in many]
    assert [process.returncode for process in many] == [0, 0, 0], said
    assert [out.strip() for out, _ in said] == ["[]"] * 3
    store = RunStore(tmp_path)
    assert len(store.list()) == 75 and len({record.folder for record in store.list()}) == 75 and store.problems() == []
    assert sorted(record.result["i"] for record in store.list()) == sorted(list(range(25)) * 3)


def test_import_from_another_machine(tmp_path):
    here, there = filled(tmp_path / "here"), filled(tmp_path / "there", 2)
    report = here.import_folders(tmp_path / "there")
    assert len(report.imported) == 3 and not report.duplicates and not report.refused
    assert len(here.list()) == 7 and {r.id for r in there.list()} <= {r.id for r in here.list()}
    assert {name for _, name in report.imported} <= {r.folder for r in here.list()}
    for record in here.list():
        here.verify(record.folder)
    again = here.import_folders(tmp_path / "there")
    assert len(again.duplicates) == 3 and not again.imported and len(here.list()) == 7
    assert all("already here" in line for line in again.sentences())
    single = RunStore(tmp_path / "third").import_folders(there.list()[0].path)
    assert len(single.imported) == 1


def test_import_keeps_both_when_the_same_run_has_gone_on(tmp_path):
    there = filled(tmp_path / "there", 1)
    here = RunStore(tmp_path / "here")
    here.import_folders(tmp_path / "there")
    run = there.show(there.list(name="lstm")[0].folder)
    run.acquire()
    run.log("step", step=2)
    run.finish({"bits_per_byte": 1.5})
    report = here.import_folders(tmp_path / "there")
    assert len(report.beside) == 1 and len(report.duplicates) == 1 and "beside" in report.sentences()[1]
    assert sorted(r.result["bits_per_byte"] for r in here.list(name="lstm")) == [1.5, 2.0]
    assert len(here.import_folders(tmp_path / "there").duplicates) == 2


def test_import_refuses_damage_and_links_and_leaves_nothing_behind(tmp_path):
    there = filled(tmp_path / "there", 2)
    first, second, third = (record.path for record in there.list())
    (first / "result.json").write_text('{"bits_per_byte": 0.1}')
    os.symlink("/etc/passwd", second / "weights")
    here = RunStore(tmp_path / "here")
    report = here.import_folders(tmp_path / "there")
    assert [source for source, _ in report.imported] == [str(third)]
    assert "damaged" in report.refused[0][1] and "link" in report.refused[1][1]
    assert not [item for item in (tmp_path / "here").iterdir() if item.name.startswith(".")]
    with pytest.raises(StorageError, match="no folder"):
        here.import_folders(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match="holds no run folder"):
        here.import_folders(tmp_path / "empty")


def test_import_of_a_full_disk_refuses_and_cleans_up(tmp_path, monkeypatch):
    filled(tmp_path / "there", 1)
    here = RunStore(tmp_path / "here")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    report = here.import_folders(tmp_path / "there")
    assert not report.imported and all("No space left" in why for _, why in report.refused)
    assert list((tmp_path / "here").glob(".*")) == [] and len(RunStore(tmp_path / "there").list()) == 2


def test_an_imported_running_run_is_not_held_by_a_ghost(tmp_path):
    run = RunStore(tmp_path / "there").create({"a": 1})
    here = RunStore(tmp_path / "here")
    here.import_folders(tmp_path / "there")
    copy = Run.open(here.list()[0].path)
    copy.acquire()
    copy.finish({"x": 1})
    assert run.status == "running"


def test_the_store_needs_no_torch():
    code = "import sys, orrery.runs; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
