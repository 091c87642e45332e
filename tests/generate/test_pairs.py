"""Generation by encoder-decoders through the public face: state, seeds, text, and what stops."""

import itertools
import math

import numpy as np
import pytest
import torch

import orrery
from orrery.core.errors import ConfigError


class Bytes:
    doc_id, vocab_size = 256, 257

    def encode(self, text):
        return np.frombuffer(text.encode(), dtype=np.uint8)

    def decode(self, ids):
        return bytes(i for i in ids if i < 256).decode(errors="replace")


def model(**settings):
    return orrery.create_model("t5", width=32, depth=2, vocab_size=257, seed=3, stop=10, **settings)


SOURCE = torch.randint(0, 257, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["t5", "t5-v1.1"])
def test_state_changes_nothing_but_speed(name):
    m = orrery.create_model(name, width=32, depth=2, vocab_size=257, seed=3)
    for settings in ({"seed": 1}, {"temperature": 0}):
        assert torch.equal(orrery.generate(m, SOURCE, 14, **settings), orrery.generate(m, SOURCE, 14, use_state=False, **settings))


def test_texts_are_answered_each_as_if_alone():
    m, texts = model().train(), ["a", "a longer source", "mid"]
    for settings in ({"temperature": 0}, {"beams": 3}):
        together = orrery.generate(m, texts, 10, tokenizer=Bytes(), **settings)
        assert together == [orrery.generate(m, text, 10, tokenizer=Bytes(), **settings) for text in texts]
    assert m.training and orrery.generate(m, SOURCE, 0).shape == (2, 0)


def test_a_stopped_row_stays_stopped():
    m = model()
    with torch.no_grad():
        m.decoder.norm.weight.mul_(30)
        m.head.weight[10] *= 2
    for seed in range(4):
        for row in orrery.generate(m, SOURCE.repeat(4, 1), 20, seed=seed).tolist():
            if 10 in row:
                assert set(row[row.index(10) :]) == {10}


def test_more_beams_never_score_worse():
    """Against the exhaustive search over a tiny vocabulary, which a beam of its size is."""
    m = orrery.create_model("t5", width=32, depth=1, vocab_size=5, seed=2, stop=1).eval()
    source = SOURCE % 5

    def score(row):
        ids = row.tolist()
        ids = ids[: ids.index(1) + 1] if 1 in ids else ids
        target = torch.tensor([[0, *ids]])
        with torch.no_grad():
            logp = torch.log_softmax(m(source[:1], target[:, :-1]).logits[0].double(), -1)
        return float(logp[range(len(ids)), ids].sum()) / len(ids)

    found = [score(orrery.generate(m, source[:1], 3, beams=beams)[0]) for beams in (2, 125)]
    everything = [score(torch.tensor(ids)) for ids in itertools.product(range(5), repeat=3)]
    assert found[0] <= found[1] + 1e-9 and math.isclose(found[1], max(everything), abs_tol=1e-6)


def test_mistakes():
    m = model()
    cases = (
        ({"beams": 0}, "beams must be 1"),
        ({"beams": 2, "top_k": 3}, "beam search draws nothing"),
        ({"max_new_tokens": -1}, "0 or more"),
    )
    for settings, words in cases:
        with pytest.raises(ConfigError, match=words):
            orrery.generate(m, SOURCE, **settings)
    with torch.no_grad():
        m.decoder.norm.weight.fill_(float("nan"))
    with pytest.raises(ConfigError, match="not numbers"):
        orrery.generate(m, SOURCE, 3)
