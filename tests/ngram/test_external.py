"""Sorting by pieces: the order is that of sorting at once, whatever the text, within the memory given, and after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orrery import ngram
from orrery.core.errors import StorageError
from orrery.ngram import builder, external, memory, shard, suffixes
from orrery.ngram.external import Pieces

MARK = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFFFFFF}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short strides, so that little texts go by in several; no waiting for the disk."""
    monkeypatch.setattr(external, "_STRIDE", 16)
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def pieces(folder, tokens, width, size, bound, told=None):
    text = np.append(np.array(tokens), MARK[width]).astype(f"<u{width}")
    folder.mkdir(exist_ok=True)
    text.tofile(folder / "text.bin")
    tell = (lambda share: None) if told is None else told.append
    return Pieces(folder / "pieces", folder / "text.bin", text.dtype, len(text), bound, size, tell), text


def right(text):
    listed = text.tolist()
    return sorted(range(len(listed) - 1), key=lambda i: listed[i:])


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=70), st.integers(1, 6), st.sampled_from([1, 2, 4]), st.integers(8, 60), st.booleans()
)
@example([0], 300, 1, 8, False)
@example([1, 0], 150, 2, 40, False)
@settings(max_examples=40, deadline=None)
def test_the_order_is_that_of_sorting_all(tmp_path_factory, tokens, copies, width, size, many):
    """many: a vocabulary in which ids are too many to be counted, so that each piece has codes of its own."""
    tokens = np.array(tokens * copies, dtype=np.int64)
    wide = many and width == 4
    bound = 1 << 31 if wide else 4
    told = []
    found, text = pieces(tmp_path_factory.mktemp("text"), tokens * 700_000_001 if wide else tokens, width, size, bound, told)
    got = list(found.blocks(50))
    assert np.concatenate([*got, []]).astype(int).tolist() == right(text) and all(len(block) == 50 for block in got[:-1])
    assert sum(told) == pytest.approx(1)


def test_the_plain_loops_agree(tmp_path, monkeypatch):
    tokens = np.random.default_rng(5).integers(0, 3, 150)
    found, text = pieces(tmp_path, tokens, 2, 40, 4)
    want = right(text)
    monkeypatch.setattr(shard, "available", lambda: False)
    monkeypatch.setattr(suffixes, "available", lambda: False)
    assert np.concatenate(list(found.blocks(64))).tolist() == want and len(found) == 4


def test_what_was_done_is_not_done_again(tmp_path, monkeypatch):
    tokens = np.random.default_rng(6).integers(0, 3, 200)
    made, original = [], external.suffix_array

    def killed(*args):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(1)
        return original(*args)

    monkeypatch.setattr(external, "suffix_array", killed)
    found, text = pieces(tmp_path, tokens, 1, 40, 4)
    with pytest.raises(KeyboardInterrupt):
        list(found.blocks(64))
    monkeypatch.setattr(external, "suffix_array", lambda *a: made.append(1) or original(*a))
    again, _ = pieces(tmp_path, tokens, 1, 40, 4)
    assert np.concatenate(list(again.blocks(64))).tolist() == right(text)
    assert len(again) == 6 and len(made) == 6
    other, _ = pieces(tmp_path, tokens, 1, 64, 4)  # with more memory: other pieces, from the beginning
    assert np.concatenate(list(other.blocks(64))).tolist() == right(text)
    other.remove()
    assert not other.folder.exists()


def small(monkeypatch):
    monkeypatch.setattr("orrery.ngram.memory.reserve", lambda encoding: 0)
    monkeypatch.setattr(builder, "LEAST", 64)


def contents(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.suffix in (".bin", ".idx") or f.name == "index.json"}


@pytest.mark.parametrize("width", [1, 2, 4])
def test_an_index_by_pieces_has_the_same_bytes(tmp_path, monkeypatch, width):
    rng = np.random.default_rng(width)
    top = {1: 200, 2: 5000, 4: 70_000}[width]
    documents = [np.minimum(rng.zipf(1.4, size), top).astype(np.uint32) for size in (1, 20_000, 300, 0, 9_000, 700)]
    ngram.build(documents, tmp_path / "whole", vocab_size=top + 1, quiet=True)
    small(monkeypatch)
    budget = 48 * (top + 2) + 120_000
    index = ngram.build(documents, tmp_path / "pieces", vocab_size=top + 1, memory=budget, quiet=True)
    assert len(index.shards) == 1 and contents(tmp_path / "pieces") == contents(tmp_path / "whole")
    index.verify()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".pieces.lock", ".whole.lock", "pieces", "whole"]
    parts = ngram.build(documents, tmp_path / "parts", vocab_size=top + 1, memory=budget, shards=3, quiet=True)
    assert len(parts.shards) == 3 and parts.count([1, 1]) == index.count([1, 1]) > 0


def test_more_memory_after_a_kill_keeps_the_shards_that_are_done(tmp_path, monkeypatch):
    """A plan that was begun is kept: shards of another plan would not fit those that are done."""
    documents = [np.random.default_rng(k).integers(0, 50, 900) for k in range(9)]
    small(monkeypatch)
    original = builder.make_shard

    def killed(work, number, *rest):
        if number == 1:
            raise KeyboardInterrupt
        return original(work, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(builder, "PIECES", 1)
        patch.setattr(builder, "make_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            ngram.build(documents, tmp_path / "index", memory=40_000, quiet=True)
    index = ngram.build(documents, tmp_path / "index", memory="1G", quiet=True)
    assert len(index.shards) > 1 and index.count([]) == 9 * 901
    assert index.count([3]) == sum(int((d == 3).sum()) for d in documents)


def test_a_full_disk_while_pieces_are_written(tmp_path, monkeypatch):
    found, text = pieces(tmp_path, np.random.default_rng(7).integers(0, 3, 200), 1, 40, 4)
    original, calls = external._save, []

    def full(path, array):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        original(path, array)

    monkeypatch.setattr(external, "_save", full)
    with pytest.raises(StorageError, match=r"No space left on device; free some space and run again"):
        list(found.blocks(64))
    assert np.concatenate(list(found.blocks(64))).tolist() == right(text) and len(calls) == 3 + 4


BUILD = """
import sys
from pathlib import Path
from orrery import ngram
ngram.build(sys.argv[1], sys.argv[2], memory=int(sys.argv[3]), tokenizer=(sys.argv[4:] or [None])[0], quiet=True)
status = Path("/proc/self/status")
if status.exists():
    print(next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmHWM")))
"""


LINUX = sys.platform.startswith("linux")


def environment():
    return {**os.environ, "PYTHONPATH": str(Path(ngram.__file__).parents[2])}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_document_larger_than_the_memory_and_a_kill(tmp_path):
    """One document of 6 million tokens in little memory: killed in the middle, it goes on, within that memory."""
    from orrery.data import write_tokens

    rng = np.random.default_rng(0)
    document = np.minimum(rng.zipf(1.3, 6_000_000), 9_000).astype(np.uint16)
    document[2_000_000:3_000_000] = 7
    write_tokens(tmp_path / "tokens", [(document, 0)], 10_000, 0)
    budget = 214 << 20
    command = [sys.executable, "-c", BUILD, str(tmp_path / "tokens"), str(tmp_path / "index"), str(budget)]
    child = subprocess.Popen(command, env=environment())
    stage = tmp_path / ".index.build" / "shard-00000.pieces" / "stage.json"
    until = time.monotonic() + 100
    while not stage.exists() and child.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert stage.exists() and not (tmp_path / "index").exists()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert not LINUX or int(done.stdout) <= budget
    index = ngram.open(tmp_path / "index")
    assert len(index.shards) == 1 and index.count([]) == 6_000_001 and index.count([7] * 999_999) >= 2
    assert index.count([5, 3]) == int(((document[:-1] == 5) & (document[1:] == 3)).sum())


@pytest.mark.skipif(not LINUX, reason="peak memory is read from /proc")
def test_text_is_encoded_and_sorted_within_the_memory(tmp_path):
    """What the library of byte-pair encoding holds for a text is gone before the text is sorted."""
    rng = np.random.default_rng(3)
    words = np.array(["".join(chr(97 + c) for c in rng.integers(0, 26, size)) for size in rng.integers(2, 9, 500)])
    (tmp_path / "texts").mkdir()
    for number in range(30):
        (tmp_path / "texts" / f"{number}.txt").write_text(" ".join(words[rng.integers(0, 500, 20_000)]))
    budget = 300 << 20
    command = [sys.executable, "-c", BUILD, str(tmp_path / "texts"), str(tmp_path / "index"), str(budget), "bpe:400"]
    own = {**environment(), "ORRERY_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=True)
    assert int(done.stdout) <= budget


def test_what_the_process_occupies_already_is_not_for_sorting(monkeypatch):
    monkeypatch.setattr(memory, "occupied", lambda: 0)
    assert memory.reserve() == memory.LEAST
    monkeypatch.setattr(memory, "occupied", lambda: 1 << 30)
    assert memory.reserve() > 1 << 30
