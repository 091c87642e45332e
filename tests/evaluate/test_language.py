"""Bits per byte: against a direct computation per document, independent of batch size, sample, and mode."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import orrery
from orrery.core.errors import NonFiniteError
from orrery.core.registry import names
from orrery.data.shards import write_tokens
from orrery.data.validation import validation_windows
from orrery.evaluate.language import bits_per_byte

V, DOC = 11, 10


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    rng = np.random.default_rng(0)
    documents = [(rng.integers(0, DOC, size), 2 * size) for size in (1, 3, 4, 5, 8, 9, 23, 40, 7)]
    return write_tokens(tmp_path_factory.mktemp("data") / "tokens", documents, V, DOC)


@pytest.fixture(scope="module")
def model():
    return orrery.create_model("transformer", width=16, depth=1, vocab_size=V, seed=0)


def by_hand(model, tokens, length):
    """Nats of every document, one window at a time, from whole logits."""
    found = []
    for number in range(tokens.documents):
        stream = [*tokens.document(number).tolist(), DOC]
        nats = 0.0
        for start in range(0, len(stream) - 1, length):
            window = torch.tensor(stream[start : start + length + 1])
            with torch.no_grad():
                logits = model(window[None, :-1]).logits[0].double()
            nats -= float(logits.log_softmax(-1).gather(1, window[1:, None]).sum())
        found.append(nats)
    return found


@pytest.mark.parametrize("length", [4, 7, 64])
@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_equals_the_definition(model, tokens, length, batch_size):
    result = bits_per_byte(model, tokens, length, batch_size)
    wanted = by_hand(model, tokens, length)
    assert [row["nats"] for row in result["per_document"]] == pytest.approx(wanted, rel=1e-5)
    assert [row["bytes"] for row in result["per_document"]] == [2, 6, 8, 10, 16, 18, 46, 80, 14]
    assert [row["tokens"] for row in result["per_document"]] == [2, 4, 5, 6, 9, 10, 24, 41, 8]
    assert result["bytes"] == 200
    assert result["tokens"] == 109
    assert result["documents"] == 9
    assert result["nats"] == pytest.approx(sum(wanted), rel=1e-5)
    assert result["bits_per_byte"] == pytest.approx(sum(wanted) / math.log(2) / 200, rel=1e-5)
    assert result["nats_per_token"] == pytest.approx(sum(wanted) / 109, rel=1e-5)


def test_a_uniform_model_pays_log_v_per_token(tokens):
    flat = orrery.wrap(nn.Embedding.from_pretrained(torch.zeros(V, V)), vocab_size=V)
    result = bits_per_byte(flat, tokens, 8, 4)
    assert result["bits_per_byte"] == pytest.approx(109 * math.log2(V) / 200, rel=1e-6)


def test_a_sample_covers_whole_documents(model, tokens):
    windows = validation_windows(tokens, 8, 4, max_bytes=60)
    result = bits_per_byte(model, windows)
    whole = {row["document"]: row for row in bits_per_byte(model, tokens, 8, 4)["per_document"]}
    assert 0 < result["bytes"] <= 60
    for row in result["per_document"]:
        assert row["nats"] == pytest.approx(whole[row["document"]]["nats"], rel=1e-5)


def test_the_mode_is_left_as_it_was_and_dropout_is_off(tokens):
    model = orrery.create_model("transformer", width=16, depth=1, vocab_size=V, seed=0, dropout=0.5)
    first = bits_per_byte(model.train(), tokens, 8, 4)
    assert model.training
    assert first == bits_per_byte(model.eval(), tokens, 8, 4)
    assert not model.training


@pytest.mark.parametrize("name", ["transformer", "gpt2", "mamba2", "gated-deltanet", "lstm", "rwkv4"])
def test_a_model_that_was_scored_first_can_be_trained(tokens, name):
    """Tables cached while scoring must not be inference tensors, which autograd refuses."""
    if name not in names():
        pytest.skip(f"{name} is not registered")
    model = orrery.create_model(name, width=32, depth=1, vocab_size=V, seed=0)
    bits_per_byte(model, tokens, 13, 4)
    stream = torch.arange(28).view(2, 14) % DOC
    orrery.create_objective("next-token")(model, {"tokens": stream})[0].backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_bfloat16_is_near(model, tokens):
    exact, rough = (
        bits_per_byte(model, tokens, 16, 4, dtype=d)["bits_per_byte"] for d in (torch.float32, torch.bfloat16)
    )
    assert rough == pytest.approx(exact, rel=0.01)
    assert rough != exact


def test_a_broken_model_is_named(tokens):
    broken = orrery.wrap(nn.Embedding.from_pretrained(torch.full((V, V), float("nan"))), vocab_size=V)
    with pytest.raises(NonFiniteError, match="document 0"):
        bits_per_byte(broken, tokens, 8, 4)
