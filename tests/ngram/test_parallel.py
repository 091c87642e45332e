"""Shards sorted at once give the same bytes as one after the other."""

from __future__ import annotations

import importlib.util
import os
import re

import numpy as np
import pytest

from orrery import ngram
from orrery.core.errors import BudgetError, ConfigError, StorageError
from orrery.ngram import builder, parallel
from orrery.ngram.parallel import build_over

WANTED = os.environ.get("ORRERY_TEST_RAY") == "1"  # starting a cluster takes some 10 seconds of the clock


def documents():
    rng = np.random.default_rng(3)
    return [rng.integers(0, 50, 400).astype(np.uint16) for _ in range(6)]


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix == ".bin" or file.name == "index.json"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "index"
    ngram.build(documents(), folder, shards=3, quiet=True)
    return folder


def test_a_pool_of_processes_makes_the_same_index(tmp_path, whole):
    index = build_over(documents(), tmp_path / "i", shards=3, processes=2, quiet=True)
    assert contents(tmp_path / "i") == contents(whole) and len(index.shards) == 3
    index.verify()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".i.lock"]


def in_turn(jobs, processes):
    """The pool's work in this process, last shard first."""
    for job in reversed(jobs):
        yield job.number, parallel.sort_shard(job)


def test_shards_that_come_in_any_order_and_a_killed_build(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(parallel, "_on_processes", in_turn)
    build_over(documents(), tmp_path / "i", shards=3, processes=2, quiet=True)
    assert contents(tmp_path / "i") == contents(whole)
    made = []

    def killed(jobs, processes):
        for job in jobs:
            made.append(job.number)
            if made == [0, 1]:
                raise KeyboardInterrupt
            yield job.number, parallel.sort_shard(job)

    monkeypatch.setattr(parallel, "_on_processes", killed)
    with pytest.raises(KeyboardInterrupt):
        build_over(documents(), tmp_path / "j", shards=3, processes=2, quiet=True)
    assert not (tmp_path / "j").exists()
    build_over(documents(), tmp_path / "j", shards=3, processes=2, quiet=True)
    assert made == [0, 1, 1, 2] and contents(tmp_path / "j") == contents(whole)


def test_tokens_sorted_anywhere_come_back_as_a_file(tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr(parallel, "_on_processes", lambda all_, processes: jobs.extend(all_) or in_turn(all_, processes))
    kept = {}
    original = parallel._gather

    def gather(all_, made, work, stage, quiet):
        stream = np.fromfile(work / "stream.bin", dtype="u1")
        for job in all_:
            kept[job.number] = stream[job.start : job.start + job.layout.n + 1]
        original(all_, made, work, stage, quiet)

    monkeypatch.setattr(parallel, "_gather", gather)
    build_over(documents(), tmp_path / "i", shards=2, processes=2, quiet=True)
    for job in jobs:
        layout, data = parallel.sort_tokens(kept[job.number], job.documents, job.layout, job.room)
        assert data.tobytes() == (tmp_path / "i" / f"shard-{job.number:05d}.bin").read_bytes()
        assert layout.n == job.layout.n


def test_a_large_process_shares_its_budget_with_small_workers(tmp_path, whole, monkeypatch):
    """What it occupies is taken once; those it starts are as small as ever."""
    monkeypatch.setattr(parallel.process, "occupied", lambda: 2 << 30)
    build_over(documents(), tmp_path / "i", shards=3, processes=2, quiet=True)
    assert contents(tmp_path / "i") == contents(whole)
    with pytest.raises(BudgetError, match="2048M are too little"):
        build_over(documents(), tmp_path / "i", processes=2, memory="2G", quiet=True)


def test_mistakes(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="processes must be"):
        build_over(documents(), tmp_path / "i", processes=0)
    with pytest.raises(BudgetError, match="170M are too little") as caught:
        build_over(documents(), tmp_path / "i", processes=4, memory="170M", quiet=True)
    build_over(documents(), tmp_path / "i", processes=4, memory=re.search(r"at least (\d+M)", str(caught.value))[1], quiet=True)
    with builder.only_builder(tmp_path / "i"), pytest.raises(StorageError, match="another process is building"):
        build_over(documents(), tmp_path / "i", processes=2, quiet=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"orrery-lm\[cluster\]"):
        build_over(documents(), tmp_path / "i", ray="local", quiet=True)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (the extra 'cluster')")
@pytest.mark.skipif(not WANTED, reason="a cluster takes 10 s to start; ORRERY_TEST_RAY=1 runs this")
def test_a_local_ray_with_two_workers_makes_the_same_index(tmp_path, whole):
    build_over(documents(), tmp_path / "i", shards=3, processes=2, ray="local", quiet=True)
    assert contents(tmp_path / "i") == contents(whole)
    import ray

    assert not ray.is_initialized()
