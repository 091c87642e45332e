"""The loader: a pure function of (seed, step); each epoch a permutation; any world size the same sequences."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orrery.core.errors import ConfigError, DataError
from orrery.data import Loader, TokenFile, write_tokens
from orrery.data.permutation import permute

DOC = 60_000


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    """A stream in which every token but the marks is its own position."""
    sizes, position, documents = [40, 3, 1, 500, 77, 5, 5, 200, 1000], 0, []
    for size in sizes:
        documents.append((np.arange(position + 1, position + size), size))
        position += size
    return write_tokens(tmp_path_factory.mktemp("tokens") / "x", documents, DOC + 1, DOC)


@given(st.integers(1, 5000), st.integers(0, 2**40))
def test_the_permutation_is_a_bijection(size: int, seed: int):
    assert np.array_equal(np.sort(permute(np.arange(size), size, seed)), np.arange(size))


@given(st.integers(2, 2**50), st.integers(0, 99))
def test_the_permutation_of_a_huge_range_stays_inside_and_keeps_distinct(size: int, seed: int):
    index = np.unique(np.random.default_rng(seed).integers(0, size, 200))
    image = permute(index, size, seed, "x")
    assert ((image >= 0) & (image < size)).all()
    assert len(np.unique(image)) == len(index)


@pytest.mark.parametrize("size", [7, 33, 64])
def test_the_permutation_puts_every_index_everywhere_equally_often(size: int):
    draws = 2000
    images = np.stack([permute(np.arange(size), size, seed) for seed in range(draws)])
    for place in (0, 1, size // 2, size - 1):
        counts = np.bincount(images[:, place], minlength=size)
        chi = ((counts - draws / size) ** 2 / (draws / size)).sum()
        assert chi < size - 1 + 4 * np.sqrt(2 * (size - 1))  # four standard deviations
    neighbours = np.mean(np.diff(images.astype(int), axis=1) == 1)  # chance that order is kept: 1/size
    assert abs(neighbours - 1 / size) < 0.2 / size


def test_the_permutation_depends_on_seed_and_keys_and_refuses_what_is_outside():
    one = permute(np.arange(1000), 1000, 1, "order", 0)
    assert not np.array_equal(one, permute(np.arange(1000), 1000, 2, "order", 0))
    assert not np.array_equal(one, permute(np.arange(1000), 1000, 1, "order", 1))
    with pytest.raises(IndexError, match=r"0\.\.9"):
        permute(np.array([10]), 10, 0)


def stream_of(tokens: TokenFile) -> list[int]:
    return tokens.read(0, len(tokens)).tolist()


@given(batch=st.integers(1, 9), length=st.integers(1, 300), seed=st.integers(0, 5), step=st.integers(0, 50))
def test_batches_are_windows_of_the_ring_with_documents_counted(
    tokens: TokenFile, batch: int, length: int, seed: int, step: int
):
    loader = Loader(tokens, batch, length, seed)
    stream = stream_of(tokens)
    found = loader.batch(step)
    assert found["tokens"].shape == (batch, length + 1)
    assert found["tokens"].dtype == torch.int64
    boundary = False
    for row, start in enumerate(loader.starts(step).tolist()):
        expected = [stream[(start + j) % len(stream)] for j in range(length + 1)]
        assert found["tokens"][row].tolist() == expected
        segment, segments = 0, []
        for token in expected:
            segment += token == DOC
            segments.append(segment)
        boundary |= DOC in expected[1:]
        if "segments" in found:
            assert found["segments"][row].tolist() == segments
    assert ("segments" in found) == boundary


def test_segments_are_absent_when_documents_begin_at_the_start_of_rows_only(tokens: TokenFile):
    loader, seen = Loader(tokens, 1, 4, 0), 0
    for step in range(3 * loader.sequences):
        found = loader.arrays(step)
        marks = found["tokens"][0] == DOC
        assert ("segments" in found) == bool(marks[1:].any())
        seen += bool(marks[0]) and not marks[1:].any()
    assert seen >= 1


@given(length=st.integers(5, 400), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_in_an_epoch_no_token_is_a_target_twice_and_few_are_none(tokens: TokenFile, length: int, seed: int, epoch: int):
    loader = Loader(tokens, 1, length, seed)
    targets = np.concatenate(
        [
            (loader.starts(epoch * loader.sequences + number)[:, None] + 1 + np.arange(length)).ravel()
            for number in range(loader.sequences)
        ]
    )
    targets %= len(tokens)
    assert len(np.unique(targets)) == len(targets) == loader.sequences * length
    assert len(tokens) - len(targets) < length


@given(st.sampled_from([(6, 2), (6, 3), (12, 4), (5, 5)]), st.integers(0, 300), st.integers(1, 90))
def test_ranks_together_read_the_global_batch_in_order(
    tokens: TokenFile, sizes: tuple[int, int], step: int, length: int
):
    batch, world = sizes
    alone = Loader(tokens, batch, length, 3).arrays(step)["tokens"]
    parts = [Loader(tokens, batch, length, 3, rank, world).arrays(step)["tokens"] for rank in range(world)]
    assert np.array_equal(np.concatenate(parts), alone)


def test_the_order_of_sequences_does_not_depend_on_the_batch_size(tokens: TokenFile):
    small, large = Loader(tokens, 2, 16, 1), Loader(tokens, 8, 16, 1)
    assert np.array_equal(np.concatenate([small.starts(step) for step in range(4)]), large.starts(0))


def test_a_step_is_the_same_whenever_and_by_whomever_it_is_asked(tokens: TokenFile):
    one, other = Loader(tokens, 4, 32, 5), Loader(tokens, 4, 32, 5)
    steps = [0, 1, 7, 10**6, 3]
    forward = {step: one.arrays(step)["tokens"] for step in steps}
    for step in reversed(steps):
        assert np.array_equal(other.arrays(step)["tokens"], forward[step])
    assert not np.array_equal(forward[0], Loader(tokens, 4, 32, 6).arrays(0)["tokens"])
    begin = time.perf_counter()
    one.batch(10**12)
    assert time.perf_counter() - begin < 1.0


def test_phases_differ_between_epochs(tokens: TokenFile):
    loader = Loader(tokens, 1, 100, 0)
    phases = {int(loader.starts(epoch * loader.sequences)[0]) % 100 for epoch in range(20)}
    assert len(phases) > 10


def test_a_corpus_smaller_than_one_window_is_refused_with_the_numbers(tokens: TokenFile):
    assert len(tokens) == 1831
    Loader(tokens, 2, 1830, 0).batch(3)
    with pytest.raises(DataError, match=r"smaller than one window.*1831 tokens.*length of 1831 needs 1832"):
        Loader(tokens, 2, 1831, 0)


def test_impossible_settings_are_refused(tokens: TokenFile):
    with pytest.raises(ConfigError, match="batch of 6 sequences cannot be shared by 4"):
        Loader(tokens, 6, 8, 0, rank=1, world=4)
    for options in (
        {"batch_size": 0, "length": 8},
        {"batch_size": 1, "length": 0},
        {"batch_size": 2, "length": 8, "rank": 2, "world": 2},
    ):
        with pytest.raises(ConfigError, match="at least 1"):
            Loader(tokens, seed=0, **options)
    with pytest.raises(IndexError):
        Loader(tokens, 1, 8, 0).batch(-1)


def test_counts(tokens: TokenFile):
    loader = Loader(tokens, 8, 100, 0)
    assert (loader.sequences, loader.tokens_per_step) == (18, 800)
    assert loader.epoch(9) == 4.0


def test_prefetching_changes_nothing(tokens: TokenFile):
    loader = Loader(tokens, 4, 32, 5)
    ahead = list(loader.prefetch(3, 9, depth=3))
    assert [step for step, _ in ahead] == list(range(3, 9))
    for step, batch in ahead:
        assert torch.equal(batch["tokens"], loader.batch(step)["tokens"])


def test_leaving_a_prefetching_loop_ends_its_thread(tokens: TokenFile):
    for step, _ in Loader(tokens, 4, 32, 5).prefetch():
        if step == 2:
            break
    deadline = time.monotonic() + 5
    while any(thread.name == "orrery-loader" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.name == "orrery-loader" for thread in threading.enumerate())


def test_an_error_while_prefetching_reaches_the_reader(tokens: TokenFile, monkeypatch: pytest.MonkeyPatch):
    loader = Loader(tokens, 4, 32, 5)
    good = loader.batch

    def failing(step: int):
        if step == 2:
            raise OSError("disk gone")
        return good(step)

    monkeypatch.setattr(loader, "batch", failing)
    ahead = loader.prefetch()
    assert [next(ahead)[0], next(ahead)[0]] == [0, 1]
    with pytest.raises(OSError, match="disk gone"):
        next(ahead)


def test_reading_batches_does_not_load_the_stream(tmp_path: Path):
    import tracemalloc

    big = write_tokens(tmp_path / "big", [(np.arange(2_000_000) % 50_000, 2_000_000)], DOC + 1, DOC)
    loader = Loader(big, 8, 128, 0)
    tracemalloc.start()
    for step in range(50):
        loader.arrays(step)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000  # the stream has 4 MB
