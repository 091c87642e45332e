"""Replaced-token detection: the loss against transformers and loops, who learns from what, and how the tables hang together."""

from __future__ import annotations

import pytest
import torch

import orrery
from orrery.core.errors import ConfigError
from orrery.data.marks import with_marks
from orrery.data.tokenizers import ByteTokenizer
from orrery.train.engine import Pair

V = 60


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 50, (4, 24), generator=g)
    segments = torch.zeros_like(tokens)
    segments[1, 10:] = 2
    segments[2, 18:] = -1
    return {"tokens": tokens, "segments": segments}


def pair(embeddings="shared", name="electra", **settings):
    model = orrery.create_model(name, vocab_size=V, width=32, depth=2, head_dim=8, seed=1, **settings)
    objective = orrery.create_objective("replaced-tokens", embeddings=embeddings, depth_share=0.5)
    return Pair(model, objective)


def test_the_loss_is_the_papers():
    """Term by term, on what the generator has drawn; transformers' discriminator gives the same second term."""
    whole = pair().double()
    model, objective, given = whole.model, whole.objective, batch()
    torch.manual_seed(3)
    loss, metrics = whole(given)
    tokens, valid = given["tokens"], given["segments"] >= 0
    torch.manual_seed(3)
    changed, nats = objective.replace(tokens, given["segments"], valid, V)
    count = int(valid.sum())
    scores = model(changed, segments=given["segments"]).logits
    total = 0.0
    for row, place in valid.nonzero().tolist():
        p = torch.sigmoid(scores[row, place])
        total -= torch.log(p if changed[row, place] != tokens[row, place] else 1 - p)
    assert loss.item() == pytest.approx((nats / (0.15 * count) + 50 * total / count).item(), abs=1e-9)
    assert float(metrics["tokens"]) == count and not (changed != tokens)[~valid].any()
    assert float(metrics["replaced"]) == pytest.approx(float((changed != tokens).float().sum() / count))
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `hf`)")
    sizes = {"hidden_size": 32, "embedding_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    hf = transformers.ElectraForPreTraining(transformers.ElectraConfig(**sizes, vocab_size=V)).double().eval()
    own = orrery.from_transformers(hf).eval()
    labels = (changed != tokens).long()
    with torch.no_grad():
        want = hf(changed, attention_mask=valid.long(), labels=labels, token_type_ids=None).loss
        rows = own(changed, segments=given["segments"].clamp(max=0)).logits
        assert own.head.loss(rows, labels.masked_fill(~valid, -100)).item() == pytest.approx(want.item(), abs=1e-6)


def test_what_is_drawn_follows_the_generator():
    """At a masked token, every id is drawn as often as the generator's softmax says."""
    whole = pair()
    tokens = torch.full((4000, 4), 7)
    generator = whole.objective.generator
    with torch.no_grad():
        for p in generator.head.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
        torch.manual_seed(0)
        changed, _ = whole.objective.replace(tokens, None, torch.ones_like(tokens, dtype=torch.bool), V)
        first = tokens[:1].clone()
        first[0, 0] = V - 1
        want = generator(first).logits[0, 0].softmax(-1)
    drawn = changed[:, 0][(changed != tokens).any(1) & (changed[:, 1:] == 7).all(1)]
    share = torch.bincount(drawn, minlength=V) / len(drawn)
    want[7] = 0.0  # a token drawn as it was cannot be seen
    assert float((share - want / want.sum()).abs().sum()) / 2 < 0.13


@pytest.mark.parametrize("embeddings", ["shared", "disentangled", "own"])
def test_who_learns_from_what(embeddings):
    whole = pair(embeddings)
    model, generator = whole.model, whole.objective.generator
    assert (generator.embed.weight is model.embed.weight) == (embeddings == "shared")
    assert generator.head.out.weight is generator.embed.weight and generator.config.depth == 1 and generator.config.width == 8
    torch.manual_seed(0)
    loss, _ = whole(batch())
    detected = torch.autograd.grad(loss, generator.head.dense.weight, retain_graph=True)[0]
    assert detected.any()
    table = torch.autograd.grad(loss, model.embed.weight, retain_graph=True)[0]
    layers = torch.autograd.grad(loss, [p for p in model.blocks.parameters() if p.dim() > 1])
    assert table.any() and all(each.any() for each in layers)
    torch.manual_seed(0)
    _, nats = whole.objective.replace(batch()["tokens"], batch()["segments"], batch()["segments"] >= 0, V)
    only = torch.autograd.grad(nats, model.embed.weight, allow_unused=True)[0]
    assert (only is not None) == (embeddings == "shared"), "the generator's loss reaches the model's table only where they share it"


def test_disentangled_tables_are_the_sum_of_two():
    """After several steps the model's table equals stop(E_G) + E_delta of a run that keeps E_delta apart."""
    whole = pair("disentangled").double()
    model, objective = whole.model, whole.objective
    tables = {"ours": model.embed.weight, "theirs": objective.generator.embed.weight}
    delta = torch.zeros_like(tables["ours"])
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.01)
    for step in range(3):
        torch.manual_seed(step)
        loss, _ = whole(batch(step))
        optimizer.zero_grad()
        loss.backward()
        delta -= 0.01 * tables["ours"].grad
        optimizer.step()
    assert float(delta.abs().max()) > 1e-4
    objective.settle(model)
    assert torch.allclose(tables["ours"].detach(), tables["theirs"].detach() + delta, atol=1e-12)
    once = tables["ours"].detach().clone()
    objective.settle(model)
    assert torch.equal(once, tables["ours"])


def test_marks_stay_and_mistakes_are_told():
    tokenizer = with_marks(ByteTokenizer(), ("mask",))
    model = orrery.create_model("electra", vocab_size=258, width=16, depth=1)
    objective = orrery.create_objective("replaced-tokens", share=0.5)
    Pair(model, objective, tokenizer)
    tokens = batch()["tokens"]
    tokens[:, ::3] = tokenizer.doc_id
    changed, _ = objective.replace(tokens, None, torch.ones_like(tokens, dtype=torch.bool), 258)
    assert (changed[:, ::3] == tokenizer.doc_id).all() and (changed != tokens).any()
    with pytest.raises(ConfigError, match="the head 'replaced-tokens'"):
        Pair(orrery.create_model("bert", vocab_size=V, width=16, depth=1), orrery.create_objective("replaced-tokens"))
    with pytest.raises(ConfigError, match="has no mask"):
        Pair(model, orrery.create_objective("replaced-tokens"), ByteTokenizer())
    with pytest.raises(ConfigError, match="embeddings must be one of"):
        orrery.create_objective("replaced-tokens", embeddings="tied")
