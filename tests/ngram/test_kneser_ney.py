"""Kneser-Ney against dictionaries, as a distribution, and as a model of the frame's interface."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles.kneser_ney import kneser_ney

import orrery
from orrery.core.errors import ConfigError, CorruptionError, DataError, StateError
from orrery.ngram.counts import KneserNey

streams = st.lists(st.integers(0, 5), min_size=1, max_size=120)


@given(streams, st.integers(1, 4), st.sampled_from([None, 5]), st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_probabilities_equal_the_oracle(stream, order, document, text):
    model, oracle = KneserNey.fit(np.array(stream), 6, order, document), kneser_ney(stream, 6, order, document)
    found = np.exp(model.log_probabilities(np.array(text)))
    start = 0
    for t, token in enumerate(text):
        start = t if token == document else start
        assert found[t] == pytest.approx(oracle(token, [] if start == t else text[start:t]), rel=1e-12)


@given(streams, st.integers(1, 4), st.lists(st.integers(0, 5), max_size=6))
def test_distributions_sum_to_one_and_never_vanish(stream, order, history):
    p = KneserNey.fit(np.array(stream), 6, order).distribution(np.array(history, dtype=int))
    assert p.sum() == pytest.approx(1, abs=1e-12) and (p > 0).all()


def test_longer_orders_predict_repetitive_text_better():
    text = np.frombuffer(b"the cat sat on the mat and the dog sat on the log. " * 40, dtype=np.uint8)
    nats = [-KneserNey.fit(text[:1500], 256, n).log_probabilities(text[1500:]).mean() for n in (1, 2, 3, 5)]
    assert nats == sorted(nats, reverse=True) and nats[-1] < nats[0] / 10


def test_bad_streams_are_refused():
    with pytest.raises(DataError, match="at least one token"):
        KneserNey.fit(np.array([], dtype=int), 4)
    with pytest.raises(DataError, match="outside the vocabulary of 4"):
        KneserNey.fit(np.array([1, 4]), 4)


def fitted(name="kneser-ney", **settings):
    tokens = torch.randint(0, 20, (3000,), generator=torch.Generator().manual_seed(0)) % 11
    return orrery.create_model(name, vocab_size=12, **settings).fit(tokens, document=10)


def test_model_continues_its_state_and_survives_storage(tmp_path):
    model = fitted(order=3)
    tokens = torch.randint(0, 11, (2, 12), generator=torch.Generator().manual_seed(1))
    whole = model(tokens).logits
    assert torch.allclose(whole.exp().sum(-1), torch.ones(2, 12))
    first = model(tokens[:, :5])
    assert torch.equal(torch.cat([first.logits, model(tokens[:, 5:], state=first.state).logits], 1), whole)
    orrery.save(model, tmp_path / "kn")
    assert torch.equal(orrery.load(tmp_path / "kn")(tokens).logits, whole)


def test_segments_and_padding_do_not_leak():
    model = fitted(order=4)
    tokens = torch.randint(0, 9, (1, 8), generator=torch.Generator().manual_seed(2))
    segments = torch.tensor([[0, 0, 0, -1, 1, 1, 1, 1]])
    packed = model(tokens, segments=segments).logits
    assert torch.equal(packed[:, 4:], model(tokens[:, 4:]).logits) and torch.equal(packed[:, 3], torch.zeros(1, 12))


def test_misuse_is_named(tmp_path):
    with pytest.raises(StateError, match="counted nothing"):
        orrery.create_model("bigram", vocab_size=12)(torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ConfigError, match="order must lie"):
        orrery.create_model("kneser-ney", order=0)
    model = fitted()
    tensors = model.stored_tensors()
    tensors.pop("1.total")
    with pytest.raises(CorruptionError, match=r"1\.total"):
        model.restore_tensors(tensors)
    assert fitted("bigram").counts.order == 2
