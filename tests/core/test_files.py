"""Atomic files: whole or absent, found out when damaged."""

import errno
import json
import os

import pytest

from orrery.core import files
from orrery.core.errors import CorruptionError, StorageError


def write_folder(path, text="alpha"):
    with files.atomic_directory(path) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "b.bin").write_bytes(b"\0" * 100)


def test_folder_round_trip_and_replacement(tmp_path):
    write_folder(tmp_path / "x")
    write_folder(tmp_path / "x", "beta")
    assert set(files.verify_directory(tmp_path / "x")["files"]) == {"a.txt", "sub/b.bin"}
    assert (tmp_path / "x" / "a.txt").read_text() == "beta"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("name", ["a.txt", "sub/b.bin", "manifest.json"])
def test_any_flipped_byte_is_found(tmp_path, name):
    write_folder(tmp_path / "x")
    file = tmp_path / "x" / name
    data = bytearray(file.read_bytes())
    position = data.index(b'"sha256": "') + 12 if name == "manifest.json" else len(data) // 2
    data[position] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"damaged|manifest"):
        files.verify_directory(tmp_path / "x")


def test_truncated_missing_and_escaping_files_are_found(tmp_path):
    write_folder(tmp_path / "x")
    (tmp_path / "x" / "a.txt").write_text("alph")
    with pytest.raises(CorruptionError, match="4 bytes instead of 5"):
        files.verify_directory(tmp_path / "x")
    (tmp_path / "x" / "a.txt").unlink()
    with pytest.raises(CorruptionError, match="missing"):
        files.verify_directory(tmp_path / "x")
    (tmp_path / "x" / "manifest.json").write_text(json.dumps({"format": 1, "files": {"../y": {"sha256": "", "bytes": 0}}}))
    (tmp_path / "y").write_text("")
    with pytest.raises(CorruptionError, match="outside the folder"):
        files.verify_directory(tmp_path / "x")
    (tmp_path / "x" / "manifest.json").unlink()
    with pytest.raises(CorruptionError, match="incomplete"):
        files.verify_directory(tmp_path / "x")


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_full_disk_at_any_flush_keeps_the_old_folder(tmp_path, monkeypatch, nth):
    write_folder(tmp_path / "x", "old")
    real, calls = os.fsync, []

    def failing(handle):
        calls.append(handle)
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(files.os, "fsync", failing)
    if nth == 4:  # the folder's own entry: flushed where the system can, and the write goes through
        write_folder(tmp_path / "x", "new")
        assert (tmp_path / "x" / "a.txt").read_text() == "new"
        return
    with pytest.raises(StorageError, match="No space left"):
        write_folder(tmp_path / "x", "new")
    monkeypatch.undo()
    files.verify_directory(tmp_path / "x")
    assert (tmp_path / "x" / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_failed_single_write_keeps_the_old_content(tmp_path, monkeypatch):
    files.write_json(tmp_path / "a.json", {"x": 1})
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(StorageError, match="Input/output"):
        files.write_json(tmp_path / "a.json", {"x": 2})
    monkeypatch.undo()
    assert files.read_json(tmp_path / "a.json") == {"x": 1} and len(list(tmp_path.iterdir())) == 1


def test_failure_inside_the_body_leaves_nothing(tmp_path):
    def interrupted():
        with files.atomic_directory(tmp_path / "x") as folder:
            (folder / "a").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_json_lines_forgive_only_a_torn_end(tmp_path):
    log = tmp_path / "log.jsonl"
    for step in range(3):
        files.append_jsonl(log, {"step": step})
    log.write_bytes(log.read_bytes() + b'{"step": 3, "lo')
    assert [r["step"] for r in files.read_jsonl(log)] == [0, 1, 2]
    log.write_bytes(b'{"step": 0\n{"step": 1}\n')
    with pytest.raises(CorruptionError, match="line 1"):
        files.read_jsonl(log)


def test_not_a_number_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_sweep_keeps_the_good_folder(tmp_path):
    write_folder(tmp_path / "x")
    os.rename(tmp_path / "x", tmp_path / ".x.1234abcd.old")  # killed between the two renames
    (tmp_path / ".y.ffff0000.tmp").mkdir()
    assert files.sweep_temporary(tmp_path) == [".y.ffff0000.tmp"]
    files.verify_directory(tmp_path / "x")


def test_free_space_is_checked_with_numbers(tmp_path):
    files.check_free_space(tmp_path / "new" / "file", 1)
    with pytest.raises(StorageError, match="MB"):
        files.check_free_space(tmp_path, 1 << 60)


@pytest.mark.parametrize("change", [('"bytes"', '"byter"'), ('"sha256"', '"sha255"')])
def test_a_manifest_that_lacks_a_field_is_damage(tmp_path, change):
    with files.atomic_directory(tmp_path / "x") as inside:
        (inside / "a.txt").write_text("a")
    manifest = tmp_path / "x" / files.MANIFEST
    manifest.write_text(manifest.read_text().replace(*change))
    with pytest.raises(CorruptionError, match="does not say how large"):
        files.verify_directory(tmp_path / "x")
