"""Generation: equal tokens with and without state, for any model; filters that keep what they say; text that is whole."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import orrery
from orrery.core.errors import ConfigError
from orrery.generate import Sampling, stream
from orrery.generate.engine import TextRow

FOUND = {entry.name: set(entry.tags) for entry in orrery.core.registry.entries("architecture")}
ARCHITECTURES = sorted(name for name, tags in FOUND.items() if not tags & {"encoder", "encoder-decoder"})


class Bytes:
    doc_id, vocab_size = 256, 257

    def encode(self, text):
        return np.frombuffer(text.encode(), dtype=np.uint8)

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


def model(name="transformer", **settings):
    return orrery.create_model(name, width=64, depth=2, vocab_size=257, seed=3, **settings)


@pytest.mark.parametrize("name", [*ARCHITECTURES, "transformer(window=6)", "transformer(canon=abcd)", "gpt2 + transformer"])
def test_state_changes_nothing_but_speed(name):
    m, prompts = model(name), ["a", "a longer prompt", "mid"]
    ids = torch.randint(0, 257, (2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(orrery.generate(m, ids, 14, seed=1), orrery.generate(m, ids, 14, seed=1, use_state=False))
    batch = orrery.generate(m, prompts, 14, temperature=0, tokenizer=Bytes())
    assert batch == orrery.generate(m, prompts, 14, temperature=0, tokenizer=Bytes(), use_state=False)
    assert batch == [orrery.generate(m, p, 14, temperature=0, tokenizer=Bytes()) for p in prompts]


def test_seeds_decide_and_streams_add_up():
    m = model()
    a, b, c = (orrery.generate(m, "x", 30, seed=s, tokenizer=Bytes()) for s in (1, 1, 2))
    assert a == b != c
    pieces = list(stream(m, "x", 30, seed=1, tokenizer=Bytes()))
    assert "".join(pieces) == a
    heard = []
    assert orrery.generate(m, "x", 30, seed=1, tokenizer=Bytes(), on_text=heard.append) == a == "".join(heard)


def test_training_mode_and_gradients_are_left_alone():
    m = model(dropout=0.5).train()
    orrery.generate(m, torch.zeros(1, 2, dtype=torch.int64), 3, temperature=0)
    assert m.training
    m(torch.zeros(1, 2, dtype=torch.int64)).logits.sum().backward()


scores = st.lists(st.floats(-8, 8), min_size=2, max_size=12).map(lambda v: torch.tensor([v], dtype=torch.float64))


@given(scores, st.integers(1, 12), st.floats(0.05, 1), st.floats(0, 1))
def test_filters_keep_what_they_say(s, k, p, m):
    plain = s.softmax(-1)
    top = Sampling(top_k=k).filter(s)
    assert int((top > 0).sum()) >= min(k, s.shape[1]) and math.isclose(top.sum().item(), 1)
    nucleus = Sampling(top_p=p).filter(s)
    kept = plain[nucleus > 0]
    assert kept.sum() >= min(p, 1) - 1e-9 and kept.sum() - kept.min() < p
    minimum = Sampling(min_p=m).filter(s)
    assert bool((plain[minimum > 0] >= m * plain.max() * (1 - 1e-9)).all()) and bool((minimum[plain == plain.max()] > 0).all())


def test_draws_follow_the_distribution():
    s = torch.tensor([[0.0, 1.0, 2.0]]).expand(20000, 3)
    draws = Sampling().choose(s, torch.zeros(20000, 1, dtype=torch.int64), None, torch.Generator().manual_seed(0))
    share = torch.bincount(draws, minlength=3) / 20000
    assert torch.allclose(share, s[0].softmax(-1), atol=4 * (0.25 / 20000) ** 0.5)


def test_repetition_penalty_is_ctrl_and_blind_to_padding():
    s = torch.tensor([[2.0, -1.0, 3.0]])
    penalised = Sampling(repetition_penalty=2.0)._penalise(s, torch.tensor([[0, 1, 2]]), torch.tensor([[True, True, False]]))
    assert penalised.tolist() == [[1.0, -2.0, 3.0]]
    assert Sampling(temperature=0, repetition_penalty=2.0).choose(s, torch.tensor([[2]]), None, None).item() == 0


def test_text_ends_at_stops_and_documents_and_shows_whole_characters():
    row = TextRow(Bytes(), ("END",))
    shown = "".join(row.add(b) for b in "aéE".encode())
    assert shown == "aé"  # E may begin END
    assert "".join(row.add(b) for b in b"NDxyz") == "" and row.text == "aé" and row.done
    row = TextRow(Bytes(), ())
    assert [row.add(b) for b in "é".encode()] == ["", "é"]
    assert row.add(256) == "" and row.done
    half = TextRow(Bytes(), ())
    assert half.add(0xC3) == "" and half.finish() == "\ufffd"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
    ],
)
def test_impossible_settings(settings, words):
    with pytest.raises(ConfigError, match=words):
        orrery.generate(model(), torch.zeros(1, 2, dtype=torch.int64), **settings)


def test_missing_tokenizer_empty_prompt_and_damaged_weights_are_said():
    with pytest.raises(ConfigError, match="without a tokenizer"):
        orrery.generate(model(), "text")
    with pytest.raises(ConfigError, match="no prompt"):
        orrery.generate(model(), [], tokenizer=Bytes())
    with pytest.raises(ConfigError, match="ids must be int64"):
        orrery.generate(model(), torch.zeros(1, 0, dtype=torch.int64))
    broken = model()
    broken.norm.weight.data.fill_(math.nan)
    with pytest.raises(ConfigError, match="NaN"):
        orrery.generate(broken, torch.zeros(1, 2, dtype=torch.int64), 2)


def test_no_new_tokens_returns_the_prompt():
    ids = torch.zeros(1, 2, dtype=torch.int64)
    assert torch.equal(orrery.generate(model(), ids, 0), ids)


@pytest.mark.parametrize("name", ["mixtral", "transformer(channel.name=grouped-moe)"])
def test_rows_that_two_threads_share_choose_their_own_experts(name):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        m = orrery.create_model(name, size="nano", vocab_size=61, seed=1).eval()
        ids = torch.randint(0, 61, (3, 6), generator=torch.Generator().manual_seed(0))
        for _ in range(3):
            assert torch.equal(orrery.generate(m, ids, 14, temperature=0), orrery.generate(m, ids, 14, temperature=0, use_state=False))
    finally:
        torch.set_num_threads(before)
