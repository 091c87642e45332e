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
conventions = st.sampled_from([(None, True), (5, True), (5, False)])


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@given(streams, st.integers(1, 4), conventions, st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_probabilities_equal_the_oracle(backend, stream, order, convention, text):
    document, ends = convention
    model = KneserNey.fit(np.array(stream), 6, order, document, ends=ends, dtype=np.float64, backend=backend)
    oracle = kneser_ney(stream, 6, order, document, ends)
    found = np.exp(model.score(np.array(text), backend=backend).log_probability)
    for t, token in enumerate(text):
        assert found[t] == pytest.approx(oracle(token, text[:t]), rel=1e-12, abs=1e-300)


@given(streams, st.integers(1, 4), conventions, st.lists(st.integers(0, 5), max_size=6))
def test_distributions_sum_to_one_and_never_vanish(stream, order, convention, history):
    document, ends = convention
    model = KneserNey.fit(np.array(stream), 6, order, document, ends=ends, dtype=np.float64)
    p = model.distribution(np.array(history, dtype=int))
    assert p.sum() == pytest.approx(1, abs=1e-12) and (p[: 6 if ends else 5] > 0).all()
    words = [word for word in range(6) if ends or word != document]
    assert p[words] == pytest.approx([np.exp(model.log_probabilities([*history, word])[-1]) for word in words], rel=1e-12)


@pytest.mark.parametrize("method", ["kneser-ney", "good-turing", "stupid-backoff"])
def test_rows_and_pieces_are_walked_as_one_text(method):
    """Compiled pieces of 8,192 tokens, rows, and numpy give one answer."""
    rng = np.random.default_rng(0)
    text = (rng.integers(0, 30, 20_000) * rng.integers(0, 2, 20_000)).astype(np.int64)
    model = KneserNey.fit(text[:9000], 30, 4, 7, method=method, backend="numba")
    starts = [0, 100, 101, 9000]
    plain, fast = (model.score(text, starts, backend) for backend in ("numpy", "numba"))
    assert np.array_equal(plain.context, fast.context) and np.array_equal(plain.order, fast.order)
    assert np.allclose(plain.log_probability, fast.log_probability, rtol=1e-12)
    alone = np.concatenate([model.score(part).log_probability for part in np.split(text, starts[1:])])
    assert np.allclose(alone, fast.log_probability, rtol=1e-12)
    nodes = np.unique(fast.context)[::7]
    assert np.allclose(model.distributions(nodes, "numpy"), model.distributions(nodes, "numba"), rtol=1e-12)
    if method != "stupid-backoff":
        assert np.allclose(model.distributions(nodes).sum(1), 1, atol=2e-6)


def test_longer_orders_predict_repetitive_text_better():
    text = np.frombuffer(b"the cat sat on the mat and the dog sat on the log. " * 40, dtype=np.uint8)
    nats = [-KneserNey.fit(text[:1500], 256, n).log_probabilities(text[1500:]).mean() for n in (1, 2, 3, 5)]
    assert nats == sorted(nats, reverse=True) and nats[-1] < nats[0] / 10


def test_the_end_of_a_document_is_learnt():
    """Documents of three tokens each: after the third, the mark is near certain; inside, it is not."""
    stream = np.array([3, 0, 1, 2] * 50)
    model = KneserNey.fit(stream, 4, 4, document=3)
    assert model.distribution([3, 0, 1, 2])[3] > 0.9 > 0.1 > model.distribution([3, 0, 1])[3]


def test_bad_streams_are_refused():
    with pytest.raises(DataError, match="at least one token"):
        KneserNey.fit(np.array([], dtype=int), 4)
    with pytest.raises(DataError, match="outside the vocabulary of 4"):
        KneserNey.fit(np.array([1, 4]), 4)
    with pytest.raises(DataError, match="whole numbers"):
        KneserNey.fit(np.array([1.5]), 4)
    with pytest.raises(ConfigError, match="between 1 and 16"):
        KneserNey.fit(np.array([1]), 4, 17)
    with pytest.raises(ConfigError, match="'kneser-ney'"):
        KneserNey.fit(np.array([1]), 4, method="kneser")
    with pytest.raises(DataError, match="outside the vocabulary"):
        KneserNey.fit(np.array([1]), 4).log_probabilities([7])


def fitted(name="kneser-ney", **settings):
    tokens = torch.randint(0, 20, (3000,), generator=torch.Generator().manual_seed(0)) % 11
    return orrery.create_model(name, vocab_size=12, **settings).fit(tokens, document=10)


@pytest.mark.parametrize("name", ["kneser-ney", "good-turing", "stupid-backoff"])
def test_model_continues_its_state_and_survives_storage(name, tmp_path):
    model = fitted(name, order=3)
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


def test_tables_survive_storage_and_damage_is_found(tmp_path):
    model = fitted().counts
    folder = model.save(tmp_path / "tables")
    again, text = KneserNey.open(folder), np.arange(11)
    assert np.array_equal(again.log_probabilities(text), model.log_probabilities(text)) and again.facts == model.facts
    file = folder / "link.npy"
    damaged = bytearray(file.read_bytes())
    damaged[-3] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(CorruptionError, match=r"link\.npy.*SHA-256"):
        KneserNey.open(folder)
    file.write_bytes(damaged[:-4])
    with pytest.raises(CorruptionError, match=r"link\.npy"):
        KneserNey.open(folder, verify=False)


def test_misuse_is_named(tmp_path):
    with pytest.raises(StateError, match="counted nothing"):
        orrery.create_model("bigram", vocab_size=12)(torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ConfigError, match="order must lie"):
        orrery.create_model("kneser-ney", order=0)
    model = fitted()
    tensors = model.stored_tensors()
    with pytest.raises(CorruptionError, match="do not fit"):
        model.restore_tensors({**tensors, "link": tensors["link"][:-1]})
    tensors.pop("link")
    with pytest.raises(CorruptionError, match="link"):
        model.restore_tensors(tensors)
    assert fitted("bigram").counts.order == 2
