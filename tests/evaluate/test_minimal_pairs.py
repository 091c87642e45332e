"""Minimal pairs: batched scores beside a sentence at a time, what is counted, what is refused."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch

import orrery
from orrery.core.errors import ConfigError, DataError
from orrery.data.marks import frame_ids, with_marks
from orrery.data.tokenizers import ByteTokenizer
from orrery.evaluate.minimal_pairs import Pair, minimal_pairs, read_pairs, sentence_scores, wilson

SENTENCES = ["The cat sits.", "A dog", "Who ran?", "x", "The cats that the dog saw ran home."]


def brute_causal(model, tokenizer, sentence):
    """One token at a time, the whole prefix read anew, float64 softmax."""
    ids, total = [tokenizer.doc_id], 0.0
    for token in tokenizer.encode(sentence).tolist():
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        total += float(logits.log_softmax(-1)[token])
        ids.append(token)
    return total


def brute_masked(model, tokenizer, sentence):
    first, last = frame_ids(tokenizer)
    ids, total = [first, *tokenizer.encode(sentence).tolist(), last], 0.0
    for place in range(1, len(ids) - 1):
        masked = list(ids)
        masked[place] = tokenizer.marks["mask"]
        with torch.no_grad():
            logits = model(torch.tensor([masked])).logits[0, place].double()
        total += float(logits.log_softmax(-1)[ids[place]])
    return total


@pytest.mark.parametrize("name", ["transformer", "gru"])
def test_causal_scores_are_the_sentence_s_log_probability(name):
    tokenizer = ByteTokenizer()
    model = orrery.create_model(name, width=32, depth=1, vocab_size=tokenizer.vocab_size, seed=1).eval()
    found = sentence_scores(model, tokenizer, SENTENCES, tokens=40)
    assert found == pytest.approx([brute_causal(model, tokenizer, s) for s in SENTENCES], abs=2e-4)
    assert found == pytest.approx(sentence_scores(model, tokenizer, SENTENCES), abs=2e-4), "batches change nothing"


@pytest.mark.parametrize("name", ["bert", "gru"])
def test_masked_scores_are_pseudo_log_likelihoods(name):
    tokenizer = with_marks(ByteTokenizer(), ("mask",))
    settings = {"frame": "encoder", "head": "masked-lm"} if name == "gru" else {}
    model = orrery.create_model(name, width=32, depth=1, vocab_size=tokenizer.vocab_size, seed=1, **settings).train()
    found = sentence_scores(model, tokenizer, SENTENCES[:4], tokens=300)
    assert model.training
    model.eval()
    assert found == pytest.approx([brute_masked(model, tokenizer, s) for s in SENTENCES[:4]], abs=2e-4)


def test_accuracy_by_field_and_paradigm(tmp_path, monkeypatch):
    path = tmp_path / "agreement.jsonl.gz"
    lines = [
        {"sentence_good": "aa", "sentence_bad": "ab", "UID": "one", "field": "syntax"},
        {"sentence_good": "ac", "sentence_bad": "ad", "UID": "one", "field": "syntax"},
        {"sentence_good": "ae", "sentence_bad": "ae", "UID": "two", "field": "syntax"},
        {"sentence_good": "af", "sentence_bad": "ag"},
    ]
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    pairs = read_pairs(path)
    assert [pair.paradigm for pair in pairs] == ["one", "one", "two", "agreement"] and len(read_pairs(path, 2)) == 2
    scores = dict(zip("abcdefg", [3.0, 1.0, 1.0, 2.0, 5.0, 4.0, 1.0], strict=True))
    monkeypatch.setattr(
        "orrery.evaluate.minimal_pairs.sentence_scores",
        lambda m, t, sentences, *rest: np.array([scores[s[1]] for s in sentences]),
    )
    found = minimal_pairs(torch.nn.Identity(), ByteTokenizer(), pairs)
    assert (found["accuracy"], found["pairs"], found["ties"]) == (0.5, 4, 1), "a tie is no success"
    assert [(p["name"], p["accuracy"]) for p in found["paradigms"]] == [("one", 0.5), ("two", 0.0), ("agreement", 1.0)]
    assert [(f["name"], f["pairs"]) for f in found["fields"]] == [("syntax", 3)]
    assert found["mean_of_paradigms"] == pytest.approx(0.5)
    assert (found["low"], found["high"]) == wilson(2, 4)


def test_wilson_s_interval_is_scipy_s():
    stats = pytest.importorskip("scipy.stats")
    for right, count in ((0, 5), (3, 7), (940, 1000), (5, 5)):
        known = stats.binomtest(right, count).proportion_ci(method="wilson")
        assert wilson(right, count) == pytest.approx((known.low, known.high), abs=1e-12)


def test_what_is_refused(tmp_path):
    tokenizer = ByteTokenizer()
    small = {"width": 32, "depth": 1, "vocab_size": 260}
    pair = [Pair("a", "b")]
    with pytest.raises(ConfigError, match="has no mask"):
        minimal_pairs(orrery.create_model("bert", **small), tokenizer, pair)
    with pytest.raises(ConfigError, match="no head that scores the vocabulary"):
        minimal_pairs(orrery.create_model("bert", head="classification", labels=2, **small), tokenizer, pair)
    with pytest.raises(ConfigError, match="encoder-decoder"):
        minimal_pairs(orrery.create_model("t5", **small), tokenizer, pair)
    with pytest.raises(ConfigError, match="more than the model knows"):
        minimal_pairs(orrery.create_model("gru", width=32, depth=1, vocab_size=100), tokenizer, pair)
    with pytest.raises(DataError, match="no pair"):
        minimal_pairs(orrery.create_model("gru", **small), tokenizer, [])
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"sentence_good": "a", "sentence_bad": " "}\n')
    with pytest.raises(DataError, match=r"line 1.*'sentence_bad' holds no sentence"):
        read_pairs(path)
    path.write_text('{"sentence_good": "a", "bad": "b"}\n')
    with pytest.raises(DataError, match="sentence_bad"):
        read_pairs(path)
