"""Bits per byte by position: against sums by hand, additive over buckets, independent of windows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import orrery
from orrery.core.errors import ConfigError, DataError
from orrery.data.shards import write_tokens
from orrery.evaluate.carried import carried_bits_per_byte
from orrery.evaluate.lengths import by_position, default_edges, difference

V, DOC = 11, 10


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    rng = np.random.default_rng(0)
    documents = [(rng.integers(0, DOC, size), 2 * size) for size in (1, 3, 9, 23, 40, 70)]
    return write_tokens(tmp_path_factory.mktemp("data") / "tokens", documents, V, DOC)


@pytest.fixture(scope="module")
def model():
    return orrery.create_model("lstm", width=16, depth=1, vocab_size=V, seed=0).double()


@pytest.mark.parametrize("length", [5, 16, 1000])
def test_equals_sums_by_hand(model, tokens, length):
    found = by_position(model, tokens, [2, 10, 64], length=length, batch_size=4)
    nats, size, held = np.zeros(3), np.zeros(3), np.zeros(3, dtype=int)
    for number in range(tokens.documents):
        stream = torch.tensor([*tokens.document(number).tolist(), DOC])
        with torch.no_grad():
            each = -model(stream[None, :-1]).logits[0].log_softmax(-1).gather(1, stream[1:, None])[:, 0]
        targets = len(stream) - 1
        for i, (low, high) in enumerate(((0, 2), (2, 10), (10, 64))):
            part = each[low:high]
            nats[i] += float(part.sum())
            size[i] += len(part) * 2 * (targets - 1) / targets
            held[i] += len(part) > 0
    rows = found["rows"]
    assert [(row["from"], row["to"]) for row in rows] == [(1, 2), (3, 10), (11, 64)]
    assert [row["documents"] for row in rows] == held.tolist()
    assert [row["bits_per_byte"] for row in rows] == pytest.approx((nats / math.log(2) / size).tolist(), rel=1e-9)
    assert all(row["low"] <= row["bits_per_byte"] <= row["high"] for row in rows)


def test_buckets_that_cover_all_give_the_whole(model, tokens):
    whole = carried_bits_per_byte(model, tokens, np.arange(tokens.documents))
    assert by_position(model, tokens, [8, 128])["bits_per_byte"] == pytest.approx(whole["bits_per_byte"], rel=1e-9)


def test_only_long_documents_make_rows_comparable(model, tokens):
    found = by_position(model, tokens, [4, 16, 32, 4096], least=24)
    assert [row["documents"] for row in found["rows"]] == [3, 3, 3, 2]
    lone = by_position(model, tokens, [16, 100], max_bytes=150)
    assert lone["documents"] == 1 and lone["rows"][-1]["low"] is None


def test_edges_double_and_bad_ones_are_refused(model, tokens):
    assert default_edges(1000) == [64, 128, 256, 512, 1000] and default_edges()[-1] == 65536
    with pytest.raises(ConfigError, match="must ascend"):
        by_position(model, tokens, [8, 8])
    with pytest.raises(DataError, match="no held-out document has 500 tokens; the longest has 71"):
        by_position(model, tokens, least=500)


def test_differences_are_paired(model, tokens):
    """A model against itself is zero with no width; against another one it is the difference of the rows."""
    other = orrery.create_model("lstm", width=16, depth=1, vocab_size=V, seed=1).double()
    first, second = (by_position(each, tokens, [4, 16, 4096]) for each in (model, other))
    assert all(row["difference"] == row["low"] == row["high"] == 0 for row in difference(first, first))
    for row, a, b in zip(difference(first, second), first["rows"], second["rows"], strict=True):
        assert row["difference"] == pytest.approx(a["bits_per_byte"] - b["bits_per_byte"], abs=1e-9)
        assert row["low"] <= row["difference"] <= row["high"] and row["high"] - row["low"] < a["high"] - a["low"] + b["high"] - b["low"]
    with pytest.raises(ConfigError, match="same documents"):
        difference(first, by_position(model, tokens, [4, 16, 4096], least=20))
