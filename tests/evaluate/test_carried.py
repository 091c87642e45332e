"""Documents read with the state carried: equal to reading each whole, however windows and rows are chosen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import orrery
from orrery.core.errors import ConfigError, NonFiniteError
from orrery.data.shards import write_tokens
from orrery.evaluate.carried import carried_bits_per_byte, read_carried

V, DOC = 11, 10


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    rng = np.random.default_rng(0)
    documents = [(rng.integers(0, DOC, size), 2 * size) for size in (1, 3, 4, 5, 8, 9, 23, 40, 7)]
    return write_tokens(tmp_path_factory.mktemp("data") / "tokens", documents, V, DOC)


def build(name, **settings):
    return orrery.create_model(name, width=32, depth=2, vocab_size=V, seed=0, **settings)


@pytest.mark.parametrize("name", ["mamba2", "lstm", "transformer", "transformer(window=5,canon=abcd)", "rwkv4"])
def test_equals_reading_every_document_whole(name, tokens):
    model = build(name).double()
    wanted = []
    for number in range(tokens.documents):
        stream = torch.tensor([*tokens.document(number).tolist(), DOC])
        with torch.no_grad():
            logits = model(stream[None, :-1]).logits[0]
        wanted.append(-float(logits.log_softmax(-1).gather(1, stream[1:, None]).sum()))
    for length, rows in ((4, 3), (7, 100), (64, 1)):
        found = carried_bits_per_byte(model, tokens, np.arange(tokens.documents), length, rows)
        assert [row["nats"] for row in found["per_document"]] == pytest.approx(wanted, rel=1e-9)
        assert [row["tokens"] for row in found["per_document"]] == [2, 4, 5, 6, 9, 10, 24, 41, 8]
        assert found["bits_per_byte"] == pytest.approx(sum(wanted) / math.log(2) / 200, rel=1e-9)
        assert (found["bytes"], found["rule"]) == (200, "carried state")


def test_rows_leave_with_their_document_and_a_limit_cuts_it(tokens):
    model = build("lstm")
    windows = list(read_carried(model, tokens, np.arange(tokens.documents), 10, 4, longest=25))
    assert [(len(w.documents), w.start, int(w.scored.sum())) for w in windows[:3]] == [(4, 0, 39), (2, 10, 20), (2, 20, 9)]
    assert windows[0].documents.tolist() == [7, 6, 5, 4]
    assert all(len(w.state.clock) == len(w.documents) for w in windows)
    assert model.training


def test_a_model_without_a_state_and_a_broken_one_are_named(tokens):
    with pytest.raises(ConfigError, match="'mine' has no state of its own"):
        carried_bits_per_byte(orrery.wrap(nn.Embedding(V, V), V, "mine"), tokens, np.arange(3))
    broken = build("mamba2")
    nn.init.constant_(broken.norm.weight, float("nan"))
    with pytest.raises(NonFiniteError, match="document 1 are not finite in the window from token 0"):
        carried_bits_per_byte(broken, tokens, np.array([1, 0]))
