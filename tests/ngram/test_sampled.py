"""Sampled indexes: built in every way to the same bytes, damage found, ranks that places follow from, what they refuse.

Their answers stand beside the exhaustive counter in test_index.py.
"""

from __future__ import annotations

import contextlib
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orrery import ngram
from orrery.core.errors import ConfigError, CorruptionError, DataError, OrreryError, StorageError
from orrery.ngram import builder, parallel, sampled, sampled_loops, shard, within
from orrery.ngram.parallel import build_over


def documents(seed=3):
    rng = np.random.default_rng(seed)
    return [np.minimum(rng.geometric(0.1, size), 49).astype(np.uint16) for size in (700, 0, 3000, 448, 1)]


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix == ".bin" or file.name == "index.json"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "index"
    ngram.build(documents(), folder, shards=2, sample=5, quiet=True)
    return folder


def everything(folder):
    index = ngram.open(folder)
    grams = [[], [50], [3], [3, 4], [50, 1], [7, 7, 7]]
    answers = [index.count(g) for g in grams] + [index.next(g).counts.tolist() for g in grams]
    answers += [index.inf_prob_info(g, 3)[1:] for g in grams]
    answers += [index.score([3, 4, 5, 50, 3]).n.tolist(), [(d.id, d.name, d.places, d.ids.tolist()) for d in index.documents([9], 50)]]
    return answers


@given(st.lists(st.integers(0, 6), min_size=1, max_size=3000), st.booleans())
@settings(max_examples=30)
def test_a_vector_counts_its_ones(bits, compiled):
    """Blocks, their heads, and bounds at every edge; compiled and not."""
    values = np.array(bits * 2, dtype=np.uint8)
    words = np.zeros(8 * (len(values) // 448 + 1), dtype=np.int64)
    parts, none = np.empty((2, len(values) + 1), dtype=np.uint8), np.zeros(1, dtype=np.int64)
    if compiled:
        sampled_loops.divide.fast(values, 1, words, 0, *parts, none)
    else:
        sampled_loops.divide.plain(*map(memoryview, (values,)), 1, memoryview(words), 0, *map(memoryview, parts), memoryview(none))
    chosen = (values >> 1) & 1
    assert parts[0, : int(none[0])].tolist() == values[chosen == 0].tolist()
    assert parts[1, : len(values) - int(none[0])].tolist() == values[chosen == 1].tolist()
    listed, ok, meta = memoryview(words), [1] * (len(words) // 64 + 2), [0] * 16
    want = np.concatenate([[0], np.cumsum(chosen)]).tolist()
    for i in {0, 1, 63, 64, 127, 128, 447, 448, 449, len(values) // 2, len(values) - 1} & set(range(len(values))):
        assert sampled_loops.ones(listed, ok, meta, 0, i) == want[i]
        assert sampled_loops.bit_at(listed, ok, meta, 0, i) == chosen[i]


def test_it_takes_less_than_half_and_less_with_greater_distances(tmp_path):
    rng = np.random.default_rng(0)
    text = np.minimum(rng.zipf(1.3, 200_000), 1000).astype(np.uint16)
    sizes = {}
    for k in (None, 4, 32):
        index = ngram.build([text], tmp_path / str(k), vocab_size=1024, sample=k, quiet=True)
        sizes[k] = (tmp_path / str(k) / "shard-00000.bin").stat().st_size / index.tokens
        assert index.count(text[5:8]) == int((np.lib.stride_tricks.sliding_window_view(text, 3) == text[5:8]).all(1).sum())
    assert sizes[32] < 0.5 * sizes[None] and sizes[32] < sizes[4] < sizes[None], sizes


@pytest.mark.parametrize("ids", [256, 257, 65_536, 65_537])
def test_a_mark_whose_id_is_wider_than_stored_tokens(tmp_path, ids):
    """Bytes of UTF-8 are stored in a byte, 0xFF being the mark, though its id is 256."""
    text = np.array([0, 1, ids - 3, 0, 1, 0, 0, 1, ids - 3])
    whole, index = (
        ngram.build([text, text[:4]], tmp_path / str(k), vocab_size=ids - 1, sample=k, quiet=True) for k in (None, 2)
    )
    assert index.vocab_size == ids and index.info["width"] == (1 if ids <= 257 else 2)
    for gram in ([], [0], [1], [0, 1], [ids - 3, 0], [ids - 1], [ids - 1, 0], [ids - 3, ids - 1], [0, ids - 1], [1, ids - 3, 0, 1]):
        assert index.count(gram) == whole.count(gram), gram
        assert [a.tolist() for a in index.next(gram)] == [a.tolist() for a in whole.next(gram)], gram
    assert index.read(0, index.tokens).tolist() == whole.read(0, whole.tokens).tolist()


def test_places_follow_from_ranks_that_say_how_long_the_n_gram_is(whole):
    index = ngram.open(whole)
    text = index.read(0, index.tokens)
    for gram in ([3], [50], [3, 4], [int(text[-1]), 50], [50, int(text[1])]):
        found = [
            int(p) + sum(s.n for s in index.shards[: r.shard])
            for r in index.find(gram)
            for p in index.shards[r.shard].run(within.positions, r.low, r.high)
        ]
        closed = np.append(text, 50)
        want = [p for p in range(index.tokens) if closed[p : p + len(gram)].tolist() == list(gram)]
        assert sorted(found) == want, gram


def test_sorting_by_pieces_gives_the_same_bytes_and_goes_on_after_a_kill(tmp_path, whole, monkeypatch):
    monkeypatch.setattr("orrery.ngram.memory.reserve", lambda encoding: 0)
    monkeypatch.setattr(builder, "LEAST", 1)
    monkeypatch.setattr(builder, "PIECES", 50)
    made, original = [], builder.external.suffix_array

    def killed(*args):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(len(args[0]))
        return original(*args)

    settings = {"shards": 2, "sample": 5, "memory": 14_000, "quiet": True}
    with monkeypatch.context() as patch:
        patch.setattr(builder.external, "suffix_array", killed)
        with pytest.raises(KeyboardInterrupt):
            ngram.build(documents(), tmp_path / "index", **settings)
    monkeypatch.setattr(builder, "_spool", None)  # what was read stays read
    index = ngram.build(documents(), tmp_path / "index", **settings)
    assert max(made) < 1000 and contents(tmp_path / "index") == contents(whole)
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == sorted(path.name for path in whole.iterdir())
    index.verify()


def test_processes_make_the_same_bytes(tmp_path, whole, monkeypatch):
    def in_turn(jobs, processes):
        for job in reversed(jobs):
            yield job.number, parallel.sort_shard(job)

    monkeypatch.setattr(parallel, "_on_processes", in_turn)
    build_over(documents(), tmp_path / "i", shards=2, processes=2, sample=5, quiet=True)
    assert contents(tmp_path / "i") == contents(whole)
    job = parallel.Job("", 0, 0, 1, sampled.SampledLayout(4, 2, 50, 51, 5), 1 << 30)
    layout, data = parallel.sort_tokens(np.array([65535, 1, 2, 1, 65535], dtype=np.uint16), 1, job.layout, job.room)
    assert len(data) == 8 * layout.words and layout.zeros


def test_a_full_disk_is_a_sentence_and_leaves_nothing_beside_the_build(tmp_path, monkeypatch):
    def full(self, *args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sampled.SampledWriter, "_levels", full)
        with pytest.raises(StorageError, match="No space left"):
            ngram.build(documents(), tmp_path / "index", sample=5, quiet=True)
    assert {path.suffix for path in (tmp_path / ".index.build").iterdir()} <= {".bin", ".idx", ".json", ".backward"}
    ngram.build(documents(), tmp_path / "index", sample=5, quiet=True).verify()


def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path, whole):
    right = everything(whole)
    rng = np.random.default_rng(0)
    names, found = sorted(name for name in contents(whole) if name.startswith(("shard", "index"))), 0
    for number in range(60):
        folder = tmp_path / "copy"
        shutil.copytree(whole, folder)
        path = folder / names[number % len(names)]
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
    assert found > 30, found


def test_pages_full_of_anything_end_in_an_error_and_not_in_a_crash(tmp_path, whole):
    """Loops believe a page only once it was checked, but finish their step with what it held: nothing may lead out of the file."""
    rng = np.random.default_rng(1)
    for number in range(12):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        words = np.memmap(folder / "shard-00000.bin", dtype="<i8", mode="r+")
        layout = ngram.open(folder).shards[0].layout
        page = int(rng.integers(layout.pages)) * shard.PAGE
        words[page : page + shard.PAGE] = rng.integers(-(2**63), 2**63 - 1, shard.PAGE)
        words.flush()
        with contextlib.suppress(CorruptionError):  # where no answer needs the page
            everything(folder)
        with pytest.raises(CorruptionError, match="does not match its checksum"):
            ngram.open(folder).shards[0].check()


def test_what_it_does_not_do_is_a_sentence(tmp_path, whole):
    for bad in (0, 1, 1025, -3):
        with pytest.raises(ConfigError, match="sample must lie between 2 and 1024"):
            ngram.build(documents(), tmp_path / "i", sample=bad, quiet=True)
    assert not (tmp_path / "i").exists()
    with pytest.raises(ConfigError, match="build it without `sample`"):
        list(ngram.duplicates(ngram.open(whole), 5))


def test_another_distance_is_another_index(tmp_path):
    ngram.build(documents(), tmp_path / "i", sample=5, quiet=True)
    assert ngram.build(documents(), tmp_path / "i", sample=9, quiet=True).sample == 9
    assert ngram.build(documents(), tmp_path / "i", quiet=True).sample is None
