"""Encoders and encoder-decoders beyond the contract: building, heads, other heads on the same body, many documents at once."""

import itertools
import math

import numpy as np
import pytest
import torch

import orrery
from oracles.crf import crf as paths
from oracles.crf import log_partition
from orrery.core.errors import ConfigError, DataError
from orrery.models.build import resolve
from orrery.models.convert import as_encoder, with_head
from orrery.models.crf import CRF, scheme_allows
from orrery.models.encode import encode
from orrery.models.heads import HEADS, head_class, make_head
from orrery.models.pooling import pool
from orrery.testing.subject import perturb

V = 61
SMALL = {"width": 32, "depth": 2, "vocab_size": V, "seed": 1}
TOKENS = torch.randint(0, V, (3, 9), generator=torch.Generator().manual_seed(0))
SEGMENTS = torch.tensor([[0] * 9, [0] * 5 + [-1] * 4, [-1] * 2 + [0] * 7])


def build(name="bert", **settings):
    return orrery.create_model(name, **{**SMALL, **settings}).eval()


# ---------------------------------------------------------------- building


@pytest.mark.parametrize("name", ["lstm", "mamba2", "transformer", "rwkv4*1 + attention", "lstm | transformer"])
def test_any_architecture_is_an_encoder_when_asked(name):
    model = build(name, frame="encoder", head="classification", labels=3)
    with torch.no_grad():
        out = model(TOKENS, segments=SEGMENTS)
        for row, (begin, stop) in enumerate(((0, 9), (0, 5), (2, 9))):
            alone = model(TOKENS[row : row + 1, begin:stop])
            assert torch.allclose(out.hidden[row, begin:stop], alone.hidden[0], atol=2e-5)
            assert torch.allclose(out.logits[row], alone.logits[0], atol=2e-5)
        last = TOKENS.clone()
        last[:, -1] = (last[:, -1] + 1) % V
        assert not torch.equal(model(last).hidden[:, 0], model(TOKENS).hidden[:, 0])  # the first token sees the last one


def test_settings_find_their_place():
    config = resolve("bert", width=64, depth=2, overrides={"eps": 1e-3, "max_positions": 40, "dropout": 0.1, "mixer.dropout": 0.2, "types": 3})
    block = config.blocks[0]
    assert (config.eps, block.eps, block.dropout, config.embedding.dropout, block.mixer["dropout"]) == (1e-3, 1e-3, 0.1, 0.1, 0.2)
    assert config.embedding.max_positions == 40 and config.embedding.types == 3 and config.head["name"] == "masked-lm"
    settings = {"hidden": 40, "head": "tagging", "labels": 5, "head.crf": True, "tied": False}
    config = resolve("lstm", width=32, depth=1, overrides=settings, frame="encoder")
    assert config.blocks[0].mixer == {"name": "two-way", "branches": [{"name": "lstm", "hidden": 40}]}
    assert config.head == {"name": "tagging", "crf": True, "labels": 5}
    pair = resolve("t5", width=64, depth=2, overrides={"decoder.depth": 3, "dropout": 0.1, "head_dim": 16, "start": 5, "encoder.mixer.dropout": 0.3})
    assert (pair.encoder.depth, pair.decoder.depth, pair.start) == (2, 3, 5)
    assert pair.decoder.blocks[0].cross["head_dim"] == pair.encoder.blocks[0].mixer["head_dim"] == 16
    assert pair.encoder.blocks[0].mixer["dropout"] == 0.3 and "dropout" not in pair.decoder.blocks[0].mixer
    assert resolve("bert", width=32, depth=1, overrides={"head": None}).head is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: build("lstm + bert"), "'bert' sees the future and cannot be a layer of a decoder"),
        (lambda: build("bert", frame="decoder"), "cannot be a decoder"),
        (lambda: build("gpt2", frame="encoder-decoder"), "built as decoder"),
        (lambda: build("bert", frame="encodr"), "Did you mean 'encoder'"),
        (lambda: build("bert", head="taging"), "Did you mean 'tagging'"),
        (lambda: build("bert", head=None, labels=3), "head is None"),
        (lambda: build("bert", head="tagging", **{"head.names": ["A", "B", "C"]}), "3 label names were given for 2 labels"),
        (lambda: build("bert", max_positions=8)(TOKENS), "8 learned positions and cannot read position 8"),
        (lambda: build("bert")(TOKENS, types=TOKENS), "token type .* is outside the 2"),
        (lambda: build("transformer", frame="encoder")(TOKENS, types=TOKENS), "has no token types"),
        (lambda: build("t5", **{"decoder.depth": 2, "shared": True, "encoder.embed_width": 16}), "a shared embedding needs"),
        (lambda: with_head(build("gpt2"), "tagging"), "is no encoder"),
        (lambda: as_encoder(build("bert")), "no decoder language model"),
        (lambda: orrery.generate(build("bert"), TOKENS, 3), "is an encoder"),
        (lambda: orrery.generate(build("gpt2"), TOKENS, 3, beams=2), "beams are for encoder-decoders"),
        (lambda: orrery.compare(["bert", "gpt2"], budget="1ktok"), "'bert' is an encoder: it sees the tokens"),
        (lambda: orrery.compare(["t5", "gpt2"], budget="1ktok"), "'t5' is an encoder-decoder"),
    ],
)
def test_mistakes_are_told_in_one_sentence(call, words):
    with pytest.raises(ConfigError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("bert-base", 109_514_298), ("t5-small", 60_506_624), ("t5-v1.1-base", 247_577_856), ("roberta-base", 124_697_433 - 2 * 768)],
)
def test_published_sizes(preset, parameters):
    """Those of transformers' BertForMaskedLM and so on; RoBERTa's first two positions are never read."""
    with torch.device("meta"):
        assert orrery.create_model(preset).num_parameters(embedding=True) == parameters


# ---------------------------------------------------------------- heads


def test_crf_sums_and_finds_the_best_path():
    torch.manual_seed(0)
    crf = CRF(3).double()
    perturb(crf, 0, 1.0)
    emissions, lengths = torch.randn(4, 5, 3, dtype=torch.float64), torch.tensor([5, 1, 3, 4])
    tags = torch.randint(0, 3, (4, 5))
    tables = [p.detach().numpy() for p in (crf.transitions, crf.begin, crf.end)]
    poisoned = emissions.clone()
    for row, length in enumerate(lengths):
        poisoned[row, length:] = 1e3
    best, nats, total = crf.best(poisoned, lengths), crf.nats(poisoned, tags, lengths), crf.log_partition(poisoned, lengths)
    for row, length in enumerate(lengths.tolist()):
        here = emissions[row, :length].numpy()
        scores = paths(here, *tables)
        want = log_partition(here, *tables)
        assert float(total.detach()[row]) == pytest.approx(want, abs=1e-10)
        assert float(nats.detach()[row]) == pytest.approx(want - scores[tuple(tags[row, :length].tolist())], abs=1e-10)
        assert tuple(best[row, :length].tolist()) == max(scores, key=scores.get)
    assert torch.autograd.gradcheck(lambda e: crf.log_partition(e, lengths), emissions.requires_grad_())


def test_a_scheme_forbids_what_it_forbids():
    names = ("O", "B-X", "I-X", "B-Y", "I-Y")
    allowed = scheme_allows(names)
    assert allowed[1, 2] and allowed[2, 2] and not allowed[0, 2] and not allowed[3, 2] and not allowed[-1, 4] and allowed[-1, 1]
    crf = CRF(5, allowed)
    emissions = torch.zeros(1, 4, 5)
    emissions[..., 4] = 5.0  # I-Y everywhere would be best
    found = crf.best(emissions, torch.tensor([4]))[0].tolist()
    assert all(bool(allowed[a, b]) for a, b in itertools.pairwise(found)) and found == [3, 4, 4, 4]


def test_tags_stand_where_tokens_carry_them():
    """Continuations of words (-100) are no links of the chain: the loss is that of the chain without them."""
    model = build(head="tagging", labels=3, **{"head.crf": True})
    perturb(model.head, 1, 0.5)
    scores = torch.randn(2, 6, 3)
    targets = torch.tensor([[0, -100, 2, 1, -100, -100], [-100, 1, 1, -100, 0, 2]])
    segments = torch.tensor([[0, 0, 0, 0, -1, -1], [0, 0, 0, 1, 1, 1]])
    chains = [(scores[0, [0, 2, 3]], [0, 2, 1]), (scores[1, [1, 2]], [1, 1]), (scores[1, [4, 5]], [0, 2])]
    nats = [model.head.crf.nats(e[None], torch.tensor([t]), torch.tensor([len(t)])) for e, t in chains]
    assert torch.allclose(model.head.loss(scores, targets, segments), sum(nats).sum() / 7)
    found = model.head.predict(scores, segments, targets >= 0)
    assert torch.equal(found == -100, targets == -100)
    assert found[0, [0, 2, 3]].tolist() == model.head.crf.best(chains[0][0][None], torch.tensor([3]))[0].tolist()
    for crf in (True, False):  # texts without a word are examples, too, and may be all that a batch holds
        head, none = build(head="tagging", labels=3, **{"head.crf": crf}).head, torch.full_like(targets, -100)
        assert float(head.loss(scores, none, segments)) == 0 and torch.equal(head.predict(scores, segments, none >= 0), none)


@pytest.mark.parametrize(
    ("name", "places"),
    [("bert", 1), ("distilbert", 1), ("modernbert", 1), ("deberta", 1), ("roberta", 2), ("electra", 2), ("bart", 2), ("t5", 2)],
)
def test_dropout_stands_in_heads_where_published_code_has_it(name, places, monkeypatch):
    """In transformers' classification heads: behind the first layer, and in four of them before it as well."""
    frame = {"start": 0, "stop": 1} if name in ("bart", "t5") else {}
    model = orrery.create_model(name, width=64, depth=1, vocab_size=30, head="classification", **{"head.dropout": 0.5}, **frame).train()
    seen = []
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, *rest: seen.append(x.shape) or x)
    assert model(torch.tensor([[3, 4, 1]])).logits is not None
    assert len(seen) == places


def test_ordinal_scores_are_log_probabilities_of_ordered_classes():
    head = make_head(resolve("bert", width=32, depth=1, overrides={"head": "ordinal", "labels": 5}), None).double()
    perturb(head, 3, 1.0)
    hidden = 3 * torch.randn(7, 4, 32, dtype=torch.float64)
    logp, bounds = head(hidden), head.bounds()
    assert bool((bounds[1:] > bounds[:-1]).all()) and torch.allclose(logp.exp().sum(1), torch.ones(7, dtype=torch.float64))
    above = torch.sigmoid(head.out(head.transform(hidden[:, 0])) - bounds)
    assert torch.allclose(1 - logp.exp().cumsum(1)[:, :-1], above)
    assert torch.equal(head.predict(logp), (above > 0.5).sum(1))
    extreme = head(1e4 * hidden)
    assert bool(torch.isfinite(head.loss(extreme, torch.arange(7) % 5)).all())


def test_a_span_is_the_best_pair_within_its_bounds():
    head = build(head="span", **{"head.longest": 3}).head
    scores = torch.randn(4, 8, 2, generator=torch.Generator().manual_seed(0))
    where = torch.ones(4, 8, dtype=torch.bool)
    where[:, :2] = False
    for row, (first, last) in enumerate(head.predict(scores, None, where).tolist()):
        pairs = [(a, b) for a in range(2, 8) for b in range(a, min(8, a + 3))]
        assert (first, last) == max(pairs, key=lambda p: float(scores[row, p[0], 0] + scores[row, p[1], 1]))


def test_a_bi_encoder_reads_its_two_texts_apart():
    model = build(head="pairs", labels=3)
    segments = torch.tensor([[0] * 4 + [1] * 5] * 3)
    with torch.no_grad():
        both = model(TOKENS, segments=segments)
        u, v = (model(TOKENS[:, part]).hidden.mean(1) for part in (slice(0, 4), slice(4, 9)))
        assert torch.allclose(both.logits, model.head.out(torch.cat([u, v, (u - v).abs()], -1)), atol=1e-5)
        cosine = with_head(model, "pairs", join="cosine")
        assert torch.allclose(cosine(TOKENS, segments=segments).logits, torch.cosine_similarity(u, v), atol=1e-5)
        with pytest.raises(DataError, match="two documents in every row"):
            _ = model(TOKENS).logits


@pytest.mark.parametrize("how", ["first", "last", "mean", "max"])
def test_pooling_sees_documents_only(how):
    hidden = torch.randn(3, 6, 4)
    segments = torch.tensor([[0, 0, 2, 2, 2, -1], [-1, 5, 5, 5, -1, -1], [-1] * 6])
    found = pool(hidden, segments, how)
    parts = [hidden[0, :2], hidden[0, 2:5], hidden[1, 1:4], torch.zeros(1, 4)]
    want = {"first": lambda x: x[0], "last": lambda x: x[-1], "mean": lambda x: x.mean(0), "max": lambda x: x.amax(0)}[how]
    assert torch.allclose(found, torch.stack([want(part) for part in parts]))


def test_heads_are_known_by_name():
    assert all(head_class(name) is HEADS[name] for name in HEADS)


# ---------------------------------------------------------------- conversion and many documents at once


@pytest.mark.parametrize("name", ["gpt2", "mamba2"])
def test_a_language_model_becomes_an_encoder_with_the_same_hidden_states(name):
    lm = build(name)
    model = as_encoder(lm, head="classification", labels=2)
    with torch.no_grad():
        assert torch.allclose(model(TOKENS).hidden, lm(TOKENS).hidden, atol=1e-6)
        assert torch.allclose(model(TOKENS, segments=SEGMENTS).hidden, lm(TOKENS, segments=SEGMENTS).hidden, atol=1e-6)
    assert model.config.head["pool"] == "last"


@pytest.mark.parametrize("settings", [{"kv_heads": 2, "window": 3, "mixer.gate": True}, {"rope": 0.0, "relative": [8, 16]}, {"qk_norm": True}])
def test_a_causal_encoder_computes_no_padding_and_equals_its_model(settings):
    lm = build("transformer", head_dim=8, **settings)
    perturb(lm, 3)
    model = as_encoder(lm)
    assert model.packs
    row, marks = TOKENS.flatten()[None, :20], torch.tensor([[0] * 9 + [1] * 2 + [4] * 9])
    with torch.no_grad():
        for tokens, segments in ((TOKENS, SEGMENTS), (row, marks)):
            found = model(tokens, segments=segments).hidden
            assert torch.allclose(found, lm(tokens, segments=segments).hidden, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "transformer", "lstm"])
def test_many_documents_come_back_in_their_order(name):
    model = orrery.create_model(name, frame="encoder", head="embedding", **SMALL).train()
    rows = [TOKENS[k % 3, : 1 + (5 * k) % 9] for k in range(23)]
    found = encode(model, [row.tolist() for row in rows], tokens=20)
    assert model.training and not model.prepare
    model.eval()
    with torch.no_grad():
        want = torch.cat([model(row[None]).logits for row in rows])
    assert torch.allclose(found, want, atol=1e-5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)  # what was laid out before is of no use any more
        want = torch.cat([model(row[None]).logits for row in rows])
    assert torch.allclose(encode(model, rows), want, atol=1e-4)
    assert torch.allclose(encode(model, rows[7:8]), want[7:8], atol=1e-4) and not model.prepare
    for bad, words in (([], "no document"), ([[1], []], "document 1 has no tokens")):
        with pytest.raises(DataError, match=words):
            encode(model, bad)
    with pytest.raises(ConfigError, match="scores every vocabulary"):
        encode(with_head(model, "masked-lm"), rows)


def test_padding_is_not_computed():
    """The layers see the valid tokens and nothing else."""
    model, seen = build(), []
    model.blocks[0].register_forward_hook(lambda block, given, result: seen.append(tuple(given[0].shape)))
    model(TOKENS, segments=SEGMENTS)
    assert seen == [(1, 9 + 5 + 7, 32)]


def test_class_weights_count():
    head = build(head="classification", labels=2).head
    scores, targets, weights = torch.randn(6, 2), torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([1.0, 2.0])
    nats = -torch.log_softmax(scores, -1)[range(6), targets]
    assert head.loss(scores, targets, weights=weights).item() == pytest.approx(float((nats * weights[targets]).sum() / 8), rel=1e-5)
    assert math.isfinite(float(np.float64(head.flops(7))))


# ---------------------------------------------------------------- an encoder taken from a language model


def test_a_language_model_encodes_for_a_small_decoder():
    lm = orrery.create_model("transformer", width=64, depth=4, vocab_size=257, seed=5)
    model = orrery.create_model("lamate", seed=1, frozen=True).eval()
    model.take(lm)
    source = torch.randint(0, 257, (2, 7), generator=torch.Generator().manual_seed(0))
    h, layers = lm.embed(source), []
    for layer in range(4):
        h, _ = lm.run(h, layer, layer + 1, None, orrery.nn.contract.Context(time=orrery.nn.timeline.plan(None, None, 2, 7, h.device)[0]))
        layers.append(h)
    with torch.no_grad():
        fused = (torch.sigmoid(model.gates[0]) * layers[1] + torch.sigmoid(model.gates[1]) * layers[3]) / 2
        want = model.encoder(embeds=model.narrow(model.fused(fused))).hidden
        assert torch.allclose(model.encode(source).hidden, want, atol=1e-6)
    assert not any(p.requires_grad for p in model.lm.parameters()) and any(p.requires_grad for p in model.decoder.parameters())
    held = model(source, source).state
    assert orrery.nn.state.state_bytes(held) / 2 == model.decoder.state_bytes(7) == (1 - model.cache_saving(7)) * lm.state_bytes(14)
    assert model.cache_saving(100) == 0.75  # half the layers at half the width
    with pytest.raises(ConfigError, match="group 5 must lie between 1"):
        orrery.create_model("lamate", group=5)


@pytest.mark.parametrize(("name", "settings"), [("t5", {"head_dim": 8}), ("bart", {"head_dim": 8, "max_positions": 9})])
def test_padded_targets_are_trained_on_without_computing_padding(name, settings):
    """Scores and gradients as of the rows, which evaluation computes; no row of padding reaches a feed-forward network."""
    model = build(name, **settings)
    perturb(model, 4)
    targets = torch.tensor([[0] * 4 + [-1] * 5, [0] * 9, [0] * 2 + [1] * 3 + [-1] * 4])
    source = torch.tensor([[0] * 9, [0] * 5 + [-1] * 4, [0] * 4 + [1] * 5])
    found, seen = {}, []
    for training in (False, True):
        model.train(training)
        if training:
            model.decoder.blocks[0].channel.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0].shape)))
        logits = model(TOKENS, TOKENS.flip(1), source_segments=source, segments=targets).logits * (targets >= 0)[..., None]
        found[training] = [logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()), allow_unused=True)]
    for a, b in zip(*found.values(), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert torch.allclose(a, b, atol=2e-5 * float(a.detach().abs().max()) + 1e-6)
    assert seen == [(1, 18, 32)]
