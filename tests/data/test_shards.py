"""Token files: what is written is read, across shards; damage and full disks are found and leave nothing half done."""

from __future__ import annotations

import builtins
import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.core.errors import CorruptionError, DataError, StorageError
from orrery.data import TokenFile, shards, write_tokens

documents_of_ids = st.lists(st.lists(st.integers(0, 98), max_size=30), min_size=1, max_size=8)


@given(documents_of_ids, st.sampled_from([100, 256, 257, 65536, 65537]), st.integers(4, 40), st.data())
def test_slices_are_those_of_the_joined_stream(tmp_path_factory, documents, vocab: int, shard: int, data):
    shards.SHARD_BYTES, original = 4 * shard, shards.SHARD_BYTES
    try:
        path = tmp_path_factory.mktemp("t") / "x"
        tokens = write_tokens(path, [(np.array(ids, dtype=np.int64), 2 * len(ids)) for ids in documents], vocab, 99)
    finally:
        shards.SHARD_BYTES = original
    stream = [token for ids in documents for token in [99, *ids]]
    start = data.draw(st.integers(0, len(stream)))
    stop = data.draw(st.integers(start, len(stream)))
    assert tokens.read(start, stop).tolist() == stream[start:stop]
    assert [tokens.document(number).tolist() for number in range(tokens.documents)] == [[99, *ids] for ids in documents]
    assert tokens.text_bytes.tolist() == [2 * len(ids) for ids in documents]
    assert (len(tokens), tokens.total_bytes) == (len(stream), 2 * sum(map(len, documents)))
    assert tokens.dtype == np.dtype("u1" if vocab <= 256 else "<u2" if vocab <= 65536 else "<u4")
    again = TokenFile(path)
    assert again.hash == tokens.hash


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shards, "SHARD_BYTES", 64)
    write_tokens(tmp_path / "x", [(np.arange(90) + 300, 100), (np.arange(50), 60)], 1000, 999)
    assert len(list((tmp_path / "x").glob("tokens-*.bin"))) == 5
    return tmp_path / "x"


def test_reads_outside_the_stream_are_refused(stored: Path):
    tokens = TokenFile(stored)
    for start, stop in ((-1, 3), (0, len(tokens) + 1), (5, 4)):
        with pytest.raises(IndexError):
            tokens.read(start, stop)
    with pytest.raises(IndexError):
        tokens.document(2)


def test_any_flipped_byte_of_any_file_is_found(stored: Path):
    for file in sorted(stored.iterdir()):
        sound = file.read_bytes()
        for position in range(0, len(sound), max(1, len(sound) // 40)):
            file.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
            with pytest.raises(CorruptionError, match=str(stored)):
                TokenFile(stored)
        file.write_bytes(sound)
    TokenFile(stored).verify()


@pytest.mark.parametrize("verify", [True, False, None])
def test_truncated_lengthened_and_missing_files_are_always_found(stored: Path, verify: bool | None):
    for file in sorted(stored.iterdir()):
        sound = file.read_bytes()
        for damaged in (sound[:-3], sound[: len(sound) // 2], b"", sound + b"\0"):  # (the manifest ends in a blank)
            file.write_bytes(damaged)
            with pytest.raises(CorruptionError):
                TokenFile(stored, verify)
        file.unlink()
        with pytest.raises(CorruptionError):
            TokenFile(stored, verify)
        file.write_bytes(sound)
    assert len(TokenFile(stored, verify)) == 142


def test_large_shards_are_checked_when_asked(stored: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "VERIFY_BELOW", 100)
    file = stored / "tokens-00002.bin"
    data = bytearray(file.read_bytes())
    data[7] ^= 0x10
    file.write_bytes(data)
    opened = TokenFile(stored)
    with pytest.raises(CorruptionError, match=r"tokens-00002\.bin.*SHA-256.*delete the folder"):
        opened.verify()
    with pytest.raises(CorruptionError, match="tokens-00002"):
        TokenFile(stored, verify=True)
    (stored / "offsets.bin").write_bytes(bytes((stored / "offsets.bin").stat().st_size))
    with pytest.raises(CorruptionError, match="offsets"):  # the small files are always checked
        TokenFile(stored)


def test_swapped_files_are_found(stored: Path):
    one, other = stored / "tokens-00000.bin", stored / "tokens-00001.bin"
    one.rename(stored / "aside")
    other.rename(one)
    (stored / "aside").rename(other)
    with pytest.raises(CorruptionError, match="tokens-0000"):
        TokenFile(stored)


def test_a_folder_that_is_no_token_file(tmp_path: Path):
    with pytest.raises(StorageError, match="no token file"):
        TokenFile(tmp_path / "absent")
    with pytest.raises(CorruptionError, match=r"no manifest\.json"):
        TokenFile(tmp_path)


@pytest.mark.parametrize("ids", [[1000], [999], [-1]])
def test_ids_outside_the_vocabulary_and_forged_marks_are_refused(tmp_path: Path, ids: list[int]):
    with pytest.raises(DataError, match=r"must lie in 0\.\.999"):
        write_tokens(tmp_path / "x", [(np.array(ids), 1)], 1000, 999)
    assert not list(tmp_path.iterdir())


def test_nothing_to_write_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no document"):
        write_tokens(tmp_path / "x", [], 1000, 999)
    assert not list(tmp_path.iterdir())


class FullDisk:
    """A disk with room for a number of bytes; every write beyond it fails as the system's do."""

    def __init__(self, room: int) -> None:
        self.room = room

    def open(self, file, mode="r", *args, **options):
        handle = builtins.open(file, mode, *args, **options)  # noqa: SIM115 - the caller closes it
        return LimitedFile(handle, self) if mode == "wb" else handle


class LimitedFile:
    """A file on a full disk."""

    def __init__(self, handle, disk: FullDisk) -> None:
        self.handle, self.disk = handle, disk

    def write(self, data) -> int:
        self.disk.room -= len(data)
        if self.disk.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.handle.write(data)

    def __getattr__(self, name: str):
        return getattr(self.handle, name)

    def __enter__(self) -> LimitedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.close()


def test_a_full_disk_at_any_moment_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    documents = [(np.arange(200), 200), (np.arange(300), 300)]
    old = write_tokens(tmp_path / "x", [(np.arange(5), 5)], 1000, 999).hash
    failures, room = 0, 0
    while TokenFile(tmp_path / "x").hash == old:
        disk = FullDisk(room)
        with monkeypatch.context() as patch:
            patch.setattr(shards, "open", disk.open, raising=False)
            patch.setattr("orrery.core.files.open", disk.open, raising=False)
            full = _write_fails(tmp_path / "x", documents)
        failures, room = failures + full, room + 97
        assert full == (TokenFile(tmp_path / "x").hash == old)
        assert [item.name for item in tmp_path.iterdir()] == ["x"]
    assert failures >= 15


def _write_fails(path: Path, documents) -> bool:
    try:
        write_tokens(path, documents, 1000, 999)
    except StorageError as error:
        return "No space left" in str(error)
    return False
