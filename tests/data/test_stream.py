"""Streams: every row goes on where it stopped, the rows share the ring, documents keep their numbers across cuts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.data import StreamLoader, TokenFile, write_tokens

DOC = 60_000


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    """A stream in which every token but the marks is its own position."""
    position, documents = 0, []
    for size in [40, 3, 1, 500, 77, 5, 5, 200]:
        documents.append((np.arange(position + 1, position + size), size))
        position += size
    return write_tokens(tmp_path_factory.mktemp("tokens") / "x", documents, DOC + 1, DOC)


@given(batch=st.integers(1, 7), length=st.integers(1, 200), seed=st.integers(0, 5), step=st.integers(0, 60))
def test_a_row_goes_on_where_it_stopped(tokens: TokenFile, batch: int, length: int, seed: int, step: int):
    loader = StreamLoader(tokens, batch, length, seed)
    now, after = loader.arrays(step), loader.arrays(step + 1)
    stream = tokens.read(0, len(tokens)).tolist()
    for row, start in enumerate(loader.starts(step).tolist()):
        assert now["tokens"][row].tolist() == [stream[(start + j) % len(stream)] for j in range(length + 1)]
    assert np.array_equal(now["tokens"][:, -1], after["tokens"][:, 0])
    assert np.array_equal(now["segments"][:, -1], after["segments"][:, 0])
    for batch_of in (now, after):  # a number changes exactly where a document begins, and by one
        assert np.array_equal(np.diff(batch_of["segments"], axis=1), batch_of["tokens"][:, 1:] == DOC)


def test_the_rows_read_the_ring_once_between_them(tokens: TokenFile):
    batch, length = 3, 10
    loader = StreamLoader(tokens, batch, length, seed=4)
    steps = len(tokens) // (batch * length)
    seen = np.concatenate([(loader.starts(s)[:, None] + 1 + np.arange(length)).ravel() for s in range(steps)]) % len(tokens)
    assert len(np.unique(seen)) == len(seen) > 0.95 * len(tokens)


def test_order_is_a_function_of_seed_and_step_and_ranks_share_it(tokens: TokenFile):
    whole = StreamLoader(tokens, 6, 16, seed=1)
    again = [StreamLoader(tokens, 6, 16, seed=1).arrays(900), StreamLoader(tokens, 6, 16, seed=2).arrays(900)]
    assert np.array_equal(whole.arrays(900)["tokens"], again[0]["tokens"])
    assert not np.array_equal(whole.arrays(900)["tokens"], again[1]["tokens"])
    parts = [StreamLoader(tokens, 6, 16, 1, rank, 3).arrays(7) for rank in range(3)]
    for name, value in whole.arrays(7).items():
        assert np.array_equal(np.concatenate([part[name] for part in parts]), value)
