"""pNLP-Mixer: hashes and filters against plain Python, the model against loops, padding, heads, 8 bits, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import orrery
from oracles.minhash import bloom, fingerprint
from oracles.minhash import words as words_of
from oracles.pnlp_mixer import pnlp_mixer
from orrery.core.errors import ConfigError, CorruptionError, StateError
from orrery.models import pnlp_mixer as module
from orrery.models.build import create_model
from orrery.models.convert import with_head
from orrery.models.storage import load, save
from orrery.ops.minhash import bloom_counts, cut_words, distinct, fingerprints

SMALL = {"width": 16, "depth": 2, "hashes": 16, "buckets": 64, "words": 4, "hidden": 12, "seed": 1}
TEXTS = ["The quick, brown fox — naïve ÀÉ don't  stop.", " 漢字 and 한국어 test 🎉🎉x ", "a", "İstanbul ß Ω abcd abc ab", " \t "]


def rows(texts, width=0, place=0):
    """Texts as bytes: tokens and segments (B,T), padding before and behind."""
    data = [list(text.encode()) for text in texts]
    width = width or place + max(map(len, data))
    tokens, segments = torch.zeros(len(data), width, dtype=torch.int64), torch.full((len(data), width), -1)
    for row, content in enumerate(data):
        tokens[row, place : place + len(content)] = torch.tensor(content)
        segments[row, place : place + len(content)] = 0
    return tokens, segments


def build(**settings):
    return create_model("pnlp-mixer", **{**SMALL, **settings}).double().eval()


def cut(texts):
    tokens, segments = rows(texts)
    ids = torch.where(segments < 0, -1, torch.arange(len(texts))[:, None])
    return cut_words(tokens.flatten().numpy(), ids.flatten().numpy())


def test_words_fingerprints_and_filters_are_the_oracle_s():
    found = cut(TEXTS)
    given = ["".join(map(chr, found.chars[a:b])) for a, b in zip(found.starts[:-1], found.starts[1:], strict=True)]
    want = [word for text in TEXTS for word in words_of(text) or [""]]
    assert given == want
    prints = fingerprints(found, 16)
    for word, row, counts in zip(want, prints, bloom_counts(prints, 64), strict=True):
        if word:
            assert row.tolist() == fingerprint(word, 16)
            assert counts.tolist() == bloom(row.tolist(), 64).tolist() and counts.sum() == 16


def test_a_spelling_is_hashed_once_whatever_its_hash():
    texts = ["b a ab a, ba ab A", " ", "ba b", *(f"w{k} w{k // 2}" for k in range(60))]  # many share a place of the table
    found = cut(texts)
    spelled, which = distinct(found)
    given = ["".join(map(chr, found.chars[a:b])) for a, b in zip(found.starts[:-1], found.starts[1:], strict=True)]
    once = ["".join(map(chr, spelled.chars[a:b])) for a, b in zip(spelled.starts[:-1], spelled.starts[1:], strict=True)]
    assert once == list(dict.fromkeys(given)) and [once[k] for k in which] == given
    np.testing.assert_array_equal(fingerprints(spelled, 16)[which], fingerprints(found, 16))


def test_a_part_of_the_matrix_at_a_time_changes_nothing(monkeypatch):
    model, tokens = build(), rows(TEXTS)[0]
    whole = model(tokens).hidden
    monkeypatch.setattr(module, "MANY", 1)
    parts = model(tokens).hidden
    assert torch.equal(whole, parts)
    probe = torch.randn(whole.shape, generator=torch.Generator().manual_seed(0), dtype=whole.dtype)
    (one,), (two,) = (torch.autograd.grad((found * probe).sum(), [model.bottleneck]) for found in (whole, parts))
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_equal_hashes_estimate_the_jaccard_similarity_of_trigrams():
    pairs = [("university", "universities"), ("beautiful", "beautifully"), ("cat", "dog"), ("international", "nationality")]
    prints = fingerprints(cut([" ".join(pair) for pair in pairs]), 1024)
    for number, pair in enumerate(pairs):
        one, two = ({word[i : i + 3] for i in range(len(word) - 2)} for word in pair)
        share = (prints[2 * number] == prints[2 * number + 1]).mean()
        assert share == pytest.approx(len(one & two) / len(one | two), abs=0.08)


def test_bytes_that_are_no_utf_8_are_characters_of_their_own():
    found = cut_words(np.array([97, 0xFF, 0xC3, 98, 0xE2, 0x82]), np.zeros(6, dtype=np.int64))
    assert found.chars.tolist() == [97, 0x1100FF, 0x1100C3, 98, 0x1100E2, 0x110082] and len(found.document) == 1


@pytest.mark.parametrize("settings", [{}, {"window": 0}, {"window": 4, "depth": 1}])
def test_equals_the_oracle(settings):
    model = build(**settings)
    for text in TEXTS[:2]:
        with torch.no_grad():
            reading = model.read(rows([text])[0])
            got = model.words(reading)
            pooled = model.pool(got, reading)
        parameters = {name: value.numpy() for name, value in model.state_dict().items()}
        hidden, vector = pnlp_mixer(parameters, model.config.to_dict(), text)
        np.testing.assert_allclose(got.numpy(), hidden, atol=1e-9)
        np.testing.assert_allclose(pooled[0].numpy(), vector, atol=1e-9)


def test_padding_and_neighbours_change_nothing():
    model = build()
    tokens, segments = rows(TEXTS, 70, 3)
    tokens[segments < 0] = 120  # letters at padding must not join words
    packed = torch.cat([rows([text])[0] for text in TEXTS], 1)
    marks = torch.cat([torch.full((1, len(text.encode())), number) for number, text in enumerate(TEXTS)], 1)
    with torch.no_grad():
        padded, joined = model(tokens, segments=segments), model(packed, segments=marks)
        for row, text in enumerate(TEXTS):
            alone = model(rows([text])[0])
            size = len(text.encode())
            torch.testing.assert_close(padded.hidden[row, 3 : 3 + size], alone.hidden[0])
            torch.testing.assert_close(joined.hidden[0][marks[0] == row], alone.hidden[0])
            torch.testing.assert_close(padded.logits[row], alone.logits[0])
            torch.testing.assert_close(joined.logits[row], alone.logits[0])
        assert not padded.hidden[segments < 0].any()


def test_heads_score_documents_pairs_and_bytes():
    tokens, segments = rows(TEXTS[:2])
    for name, shape in (("classification", (2, 3)), ("regression", (2, 1)), ("ordinal", (2, 3)), ("tagging", (*tokens.shape, 3))):
        model = with_head(build(), name, **({} if name == "regression" else {"labels": 3}))
        assert model(tokens, segments=segments).logits.shape == shape
    halves = (torch.arange(tokens.shape[1]) > 9).long().expand(2, -1)
    pairs = with_head(build(), "pairs", labels=3)
    assert pairs(tokens, segments=halves.masked_fill(segments < 0, -1)).logits.shape == (2, 3)
    tagged = with_head(build(), "tagging", labels=3)(rows(["ab cd"])[0]).logits[0]
    assert torch.equal(tagged[0], tagged[1]) and torch.equal(tagged[2], tagged[3])  # a space has its word's tag
    assert not torch.equal(tagged[1], tagged[2])


def test_eight_bits_are_a_quarter_and_within_half_a_step(tmp_path):
    model, tokens = create_model("pnlp-mixer", size="micro", seed=0).eval(), rows(TEXTS)[0]
    small = create_model("pnlp-mixer", size="micro", bits=8)
    small.load_state_dict(model.state_dict())
    save(model, tmp_path / "whole"), save(small, tmp_path / "small")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "small")]
    assert 950_000 < sizes[1] < 1_050_000 and sizes[1] < 0.26 * sizes[0]
    rounded = load(tmp_path / "small").eval()
    for name, value in model.state_dict().items():
        step = value.abs().amax(-1, keepdim=True) / 127 if value.dim() == 2 else 0 * value
        assert bool(((rounded.state_dict()[name] - value).abs() <= 0.5001 * step + 1e-12).all()), name
    with torch.no_grad():
        gap = (rounded(tokens).logits - model(tokens).logits).abs().max() / model(tokens).logits.abs().max()
    assert gap < 0.1
    kept = small.stored_tensors()
    with pytest.raises(CorruptionError, match="missing or unexpected"):
        small.restore_tensors({name: value for name, value in kept.items() if name != "bottleneck.scale"})
    with pytest.raises(CorruptionError, match="has shape"):
        small.restore_tensors({**kept, "bias": kept["bias"][:3]})


def test_sizes_come_near_the_ladder():
    for size, wanted in (("nano", 3e5), ("micro", 1e6), ("tiny", 4e6)):
        assert create_model("pnlp-mixer", size=size).num_parameters() == pytest.approx(wanted, rel=0.04)
    assert orrery.create_model("pnlp-mixer").config.parameters == create_model("pnlp-mixer").num_parameters()


def test_what_it_refuses():
    model, tokens = build(), rows(["ab"])[0]
    with pytest.raises(ConfigError, match="no token types"):
        model(tokens, types=tokens * 0)
    with pytest.raises(StateError, match="padding"):
        model(tokens, segments=tokens * 0 - 1)
    refused = ({"bits": 4}, "bits"), ({"head": "masked-lm"}, "vocabulary"), ({"head.pool": "mean"}, "head.pool"), ({"words": 0}, "words")
    for settings, words in refused:
        with pytest.raises(ConfigError, match=words):
            build(**settings)
