"""Mixing: weights beside a search over a grid, bits per byte beside sums by hand, mixed models as models."""

import copy
import json
import math

import numpy as np
import pytest
import torch

import orrery
from orrery import ngram
from orrery.core.errors import ConfigError, CorruptionError, DataError, StateError
from orrery.data import validation_windows
from orrery.data.shards import write_tokens
from orrery.evaluate.language import bits_per_byte
from orrery.ngram.mixing import MixedLM, evaluate_mix, fit_mixture, score_windows

V, MARK = 12, 11


def text(seed, size=600):
    """Words of a small set in an order of their own, so that long suffixes come again."""
    rng = np.random.default_rng(seed)
    words = [rng.integers(0, 10, n) for n in (3, 4, 5, 6, 7)]
    return np.concatenate([words[i] for i in np.random.default_rng(seed + 1).integers(0, 5, size)])[:size]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixing")
    base = text(0, 3000)
    train, held = [base[:1200], base[1300:2300]], [base[2300:2500], base[2500:2750], base[2750:]]
    index = ngram.build(train, folder / "index", vocab_size=V, document=MARK, quiet=True)
    tokens = write_tokens(folder / "held", [(ids, 2 * len(ids)) for ids in held], V, MARK)
    model = orrery.create_model("transformer", width=16, depth=1, vocab_size=V, seed=0)
    return index, tokens, model, np.concatenate([np.insert(ids, 0, MARK) for ids in train])


def test_weights_maximise_the_likelihood():
    """Without a prior that matters: 20,000 tokens of two buckets, each with its own best weight on a grid."""
    rng = np.random.default_rng(0)
    n, sparse = rng.choice([2, 9], 20_000), rng.random(20_000) < 0.5
    p = np.where(rng.random(20_000) < 0.3 + 0.05 * n + 0.1 * sparse, 0.9, 0.0)
    q = rng.uniform(0.05, 0.5, 20_000)
    mixture = fit_mixture(p, q, n, sparse, edges=(5,))
    grid = np.linspace(0.001, 0.999, 999)
    for s in (0, 1):
        for bucket, value in enumerate((2, 9)):
            chosen = (n == value) & (sparse == s)
            best = grid[np.argmax([np.log(w * p[chosen] + (1 - w) * q[chosen]).sum() for w in grid])]
            assert mixture.weights[s][bucket] == pytest.approx(best, abs=0.004)
            assert mixture.tokens[s][bucket] == chosen.sum()
    assert np.allclose(mixture.mix(p, q, n, sparse), [w * a + (1 - w) * b for w, a, b in zip(mixture.weight(n, sparse), p, q, strict=True)])


def test_mix_of_a_neural_model_is_scored_by_the_protocol(parts):
    index, tokens, model, _ = parts
    windows = validation_windows(tokens, 64, 4, None)
    scores = score_windows(model, index, windows)
    report = evaluate_mix(model, index, windows)
    plain = bits_per_byte(model, windows)
    assert report.bits_per_byte["model"] == pytest.approx(plain["bits_per_byte"], rel=1e-5)
    assert report.tokens == plain["tokens"] and report.bytes == plain["bytes"] and report.documents == 3
    assert report.bits_per_byte["mix"] < 0.6 * report.bits_per_byte["model"]  # an untrained model, and text that repeats
    even = np.searchsorted([0, 1, 2], scores.document) % 2 == 0
    nats = 0.0
    for side in (even, ~even):
        other = fit_mixture(scores.p_inf[~side], scores.p_model[~side], scores.n[~side], scores.sparse[~side])
        nats -= np.log(other.mix(scores.p_inf[side], scores.p_model[side], scores.n[side], scores.sparse[side])).sum()
    assert report.bits_per_byte["mix"] == pytest.approx(nats / math.log(2) / windows.bytes, rel=1e-9)
    assert report.zero == pytest.approx((scores.p_inf == 0).mean()) and report.mean_n == pytest.approx(scores.n.mean())
    json.dumps(report.to_dict())


def test_mixed_model_is_the_mix_of_both(parts):
    index, tokens, model, _ = parts
    windows = validation_windows(tokens, 64, 4, None)
    mixture = evaluate_mix(model, index, windows).mixture
    mixed = MixedLM(model, index, mixture).eval()
    ids = torch.from_numpy(tokens.document(0)[:40].astype(np.int64))[None]
    with torch.no_grad():
        logits = mixed(ids).logits
    assert torch.allclose(logits.exp().sum(-1), torch.ones(1, 40), atol=1e-5)
    scores = index.score(ids[0].numpy())
    p = torch.softmax(model(ids).logits.double(), -1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0].detach().numpy()
    expected = mixture.mix(scores.prob[1:], p, scores.n[1:], scores.sparse[1:])
    assert logits[0, :-1].gather(1, ids[0, 1:, None])[:, 0].exp().numpy() == pytest.approx(expected, rel=1e-5)
    first = mixed(ids[:, :17])
    both = torch.cat([first.logits, mixed(ids[:, 17:], state=first.state).logits], 1)
    assert torch.allclose(both, logits, atol=1e-5)
    drawn = orrery.generate(mixed, ids[:, :5], 12, seed=0)
    assert drawn.shape == (1, 17) and torch.equal(drawn, orrery.generate(mixed, ids[:, :5], 12, seed=0, use_state=False))


def test_infinigram_beats_kneser_ney_where_text_repeats(parts):
    _, tokens, _, stream = parts
    windows = validation_windows(tokens, 128, 4, None)
    found = {}
    for name in ("infinigram", "kneser-ney"):
        model = orrery.create_model(name, vocab_size=V, order=3).fit(stream, document=MARK)
        found[name] = bits_per_byte(model, windows)["bits_per_byte"]
    assert found["infinigram"] < 0.9 * found["kneser-ney"]


def test_infinigram_learns_in_a_training_loop(tmp_path):
    """Each batch is scored before it is learnt; a checkpoint holds the text; saved and loaded, it answers alike."""
    stream = torch.from_numpy(text(3, 9000))
    model = orrery.create_model("infinigram", vocab_size=V, context=24)
    optimizer, losses = torch.optim.SGD(model.parameters(), 0.5), []
    for step in range(8):
        rows = stream[step * 1100 : step * 1100 + 1100].view(10, 110)
        loss = torch.nn.functional.cross_entropy(model(rows[:, :-1]).logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(V), rel=1e-5) and losses[-1] < 0.7 * losses[0]
    model.eval()
    again = orrery.create_model("infinigram", vocab_size=V, context=24)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(rows[:2]).logits, model(rows[:2]).logits) and len(again.text) == 8 * 10 * 109
    orrery.save(model, tmp_path / "model")
    assert torch.equal(orrery.load(tmp_path / "model").eval()(rows[:2]).logits, model(rows[:2]).logits)
    assert torch.equal(copy.deepcopy(model)(rows[:2]).logits, model(rows[:2]).logits)


def test_misuse_is_named(parts):
    index, _, model, _ = parts
    with pytest.raises(DataError, match="probability 0"):
        fit_mixture([0.5], [0.0], [1], [True])
    with pytest.raises(DataError, match="held-out tokens"):
        fit_mixture([], [], [], [])
    with pytest.raises(ConfigError, match="ascend"):
        fit_mixture([0.5], [0.5], [1], [True], edges=(3, 1))
    mixture = fit_mixture([0.5], [0.5], [1], [True])
    with pytest.raises(ConfigError, match="one tokenizer"):
        MixedLM(orrery.create_model("transformer", width=16, depth=1, vocab_size=5), index, mixture)
    with pytest.raises(StateError, match="another model"):
        MixedLM(model, index, mixture)(torch.zeros(1, 2, dtype=torch.int64), state=torch.zeros(1))
    infinigram = orrery.create_model("infinigram", vocab_size=V)
    with pytest.raises(ConfigError, match="one row of ids"):
        infinigram.fit([V])
    tensors = infinigram.fit([1, 2, 3]).stored_tensors()
    with pytest.raises(CorruptionError, match="do not fit"):
        infinigram.restore_tensors({**tensors, "rows": tensors["rows"] + 1})
