"""Building: suffix sorting, interruption, locks, budgets, damage, and repeated tokens."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orrery import ngram
from orrery.core.errors import BudgetError, CorruptionError, DataError, OrreryError, StorageError
from orrery.ngram import builder, shard, suffixes


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 4))
@settings(max_examples=60)
def test_suffixes_are_sorted_with_and_without_numba(tokens, copies):
    text = np.array(tokens * copies, dtype=np.uint16)
    listed = text.tolist()
    want = sorted(range(len(listed)), key=lambda i: listed[i:])
    assert suffixes.suffix_array(text, 5).tolist() == want
    assert suffixes._doubling(text).tolist() == want


def test_repeated_tokens_sort_as_fast_as_others():
    rng = np.random.default_rng(0)
    size = 400_000
    usual = np.minimum(rng.zipf(1.3, size), 16_000).astype(np.uint16)
    texts = [usual, np.zeros(size, np.uint16), np.tile(usual[:1000], size // 1000), np.arange(size, dtype=np.uint16) % 2]
    best = []
    for text in texts:
        times = []
        for _ in range(3):
            start = time.process_time()
            suffixes.suffix_array(text, 1 << 16)
            times.append(time.process_time() - start)
        best.append(min(times))
    assert max(best[1:]) < 3 * best[0], best


def documents():
    rng = np.random.default_rng(3)
    return [rng.integers(0, 50, 400).astype(np.uint16) for _ in range(6)]


def contents(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file() and f.name not in ("build.json", "manifest.json")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "index"
    ngram.build(documents(), folder, shards=3, quiet=True)
    return folder


@pytest.mark.parametrize("moment", ["spooled", "one shard", "half a shard", "sealed"])
def test_a_killed_build_goes_on_and_gives_the_same_bytes(tmp_path, whole, monkeypatch, moment):
    class Killed(BaseException):
        pass

    def killed(*args, **settings):
        raise Killed

    made = []

    def counted(*args):
        made.append(args)
        if moment == "spooled" or len(made) == 2:
            raise Killed
        return original(*args)

    original = builder.suffix_array
    with monkeypatch.context() as patch:
        if moment == "half a shard":
            patch.setattr(shard.ShardWriter, "finish", killed)
        elif moment == "sealed":
            patch.setattr(builder, "publish_directory", killed)
        else:
            patch.setattr(builder, "suffix_array", counted)
        with pytest.raises(Killed):
            ngram.build(documents(), tmp_path / "index", shards=3, quiet=True)
    assert not (tmp_path / "index").exists()
    sorted_again = []
    monkeypatch.setattr(builder, "suffix_array", lambda *a: sorted_again.append(1) or original(*a))
    monkeypatch.setattr(builder, "_spool", killed)  # what was read stays read
    ngram.build(documents(), tmp_path / "index", shards=3, quiet=True)
    assert len(sorted_again) == {"spooled": 3, "one shard": 2, "half a shard": 3, "sealed": 0}[moment]
    assert contents(tmp_path / "index") == contents(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".index.lock", "index"]


def test_another_source_does_not_go_on_with_what_is_left(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(builder, "publish_directory", lambda *a: (_ for _ in ()).throw(StorageError("no space")))
        with pytest.raises(StorageError, match="no space"):
            ngram.build(documents(), tmp_path / "index", quiet=True)
    index = ngram.build([np.array([1, 2])], tmp_path / "index", quiet=True)
    assert index.tokens == 3


def test_a_full_disk_is_a_sentence_and_the_build_goes_on_later(tmp_path, whole, monkeypatch):
    def full(self, order):
        raise StorageError("cannot write: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shard.ShardWriter, "append", full)
        with pytest.raises(StorageError, match="No space left"):
            ngram.build(documents(), tmp_path / "index", shards=3, quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(StorageError, match="free"):
            ngram.build(documents(), tmp_path / "index", shards=3, quiet=True)
    ngram.build(documents(), tmp_path / "index", shards=3, quiet=True)
    assert contents(tmp_path / "index") == contents(whole)


def test_a_second_builder_is_refused_and_readers_keep_the_old_index(tmp_path):
    index = ngram.build([np.array([1, 2, 1])], tmp_path / "index", quiet=True)
    with builder.only_builder(tmp_path / "index"):
        code = "import numpy as np, sys; from orrery import ngram; ngram.build([np.array([1])], sys.argv[1], quiet=True)"
        environment = {**os.environ, "PYTHONPATH": str(Path(ngram.__file__).parents[2])}
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "index")], capture_output=True, text=True, env=environment)
        assert done.returncode and "another process is building" in done.stderr
        assert "torch" not in done.stderr
    ngram.build([np.array([1, 1, 1, 1])], tmp_path / "index", quiet=True)
    assert index.count([1]) == 2  # opened before the rebuild
    assert ngram.open(tmp_path / "index").count([1]) == 4


def test_a_small_budget_means_more_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("orrery.ngram.memory.reserve", lambda encoding: 0)
    long = [np.arange(40_000, dtype=np.uint16) % 97 for _ in range(4)]
    monkeypatch.setattr(builder, "PIECES", 1)
    index = ngram.build(long, tmp_path / "index", memory=900_000, quiet=True)
    assert len(index.shards) >= 2 and index.count([5, 6, 7]) == 4 * len(np.flatnonzero(long[0][:-2] == 5))
    with pytest.raises(BudgetError, match="too little"):
        ngram.build(long, tmp_path / "other", memory=100_000, quiet=True)
    monkeypatch.setattr("orrery.ngram.external.LONGEST", 150_000)  # really 2^32 - 2
    with pytest.raises(BudgetError, match="too long"):
        ngram.build([np.zeros(200_000, np.uint16)], tmp_path / "other", memory=900_000, quiet=True)


def everything(folder):
    index = ngram.open(folder)
    grams = [[], [50], [3], [3, 4], [50, 1], [7, 7, 7]]
    answers = [index.count(g) for g in grams] + [index.next(g).counts.tolist() for g in grams]
    answers += [index.inf_prob_info(g, 3)[1:] for g in grams]
    answers += [index.score([3, 4, 5, 50, 3]).n.tolist(), [(d.id, d.name, d.places, d.ids.tolist()) for d in index.documents([3], 50)]]
    return answers


def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path, whole):
    right = everything(whole)
    rng = np.random.default_rng(0)
    found = 0
    for number in range(150):
        folder = tmp_path / "copy"
        shutil.copytree(whole, folder)
        path = folder / sorted(contents(whole))[number % len(contents(whole))]
        data = bytearray(path.read_bytes())
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            assert everything(folder) == right, path.name
        except (CorruptionError, DataError, StorageError):
            found += 1
        with pytest.raises(OrreryError):
            ngram.open(folder).verify()
        shutil.rmtree(folder)
    assert found > 75, found


def test_truncated_missing_and_foreign_files_are_sentences(tmp_path, whole):
    for name in contents(whole):
        folder = tmp_path / "copy"
        for damage in ("cut", "gone"):
            shutil.copytree(whole, folder)
            path = folder / name
            if damage == "gone":
                path.unlink()
            else:
                path.write_bytes(path.read_bytes()[:-3])
            with pytest.raises(OrreryError, match=r"damaged|missing|cannot read|incomplete"):
                everything(folder)
            shutil.rmtree(folder)
    with pytest.raises(StorageError, match="no index"):
        ngram.open(tmp_path / "nothing")
    with pytest.raises(CorruptionError, match="no n-gram index"):
        ngram.open(tmp_path)


@pytest.mark.parametrize(("number", "age"), [(1, "an older"), (3, "a newer")])
def test_an_index_of_another_format_is_one_sentence(tmp_path, whole, number, age):
    from orrery.core.files import read_json, write_json

    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    write_json(folder / "index.json", {**read_json(folder / "index.json"), "format": number})
    with pytest.raises(CorruptionError, match=f"was built by {age} version of Orrery; build it again"):
        ngram.open(folder)


def test_an_index_of_any_size_opens_at_once(tmp_path):
    """A sparse file of two thousand million tokens: opening must not read it."""
    folder = tmp_path / "index"
    ngram.build([np.array([1, 2])], folder, quiet=True)
    from orrery.core.config import config_hash
    from orrery.core.files import read_json, write_json

    about = read_json(folder / "index.json")
    about.pop("check")
    about["tokens"] = about["shards"][0]["tokens"] = 2_000_000_000
    write_json(folder / "index.json", {**about, "check": config_hash(about)})
    os.truncate(folder / "shard-00000.bin", 8 * shard.Layout(2_000_000_000, about["width"], 3, 4).words)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        index = ngram.open(folder)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.01, times
    with pytest.raises(CorruptionError):
        index.count([1])


def test_queries_need_no_torch(whole):
    code = (
        "import sys; from orrery import ngram; i = ngram.open(sys.argv[1]); i.count([3]); i.inf_next([3]); i.documents([3]);"
        "i.score([3, 4]); assert 'torch' not in sys.modules, 'torch was imported'"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(ngram.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code, str(whole)], check=True, env=environment)
