"""Distillation: every term against float64 loops, whatever the widths; a frozen teacher; what is refused; the contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import orrery
from oracles import distillation as oracle
from orrery.core.errors import ConfigError
from orrery.models.layers import read_layers
from orrery.models.storage import save, stored_tensors
from orrery.nn.contract import Context
from orrery.nn.timeline import plan
from orrery.objectives.distillation import layer_pairs
from orrery.ops.losses.cross_entropy import IGNORE, linear_cross_entropy
from orrery.ops.losses.relations import attention_distance
from orrery.ops.losses.soft_targets import SoftTargets
from orrery.testing.objective import make_batch, objective_checks_for
from orrery.testing.subject import perturb
from orrery.train.engine import Pair

V = 29
ALONE = {"hard": 0.0, "soft": 0.0}


def model(name="bert", width=16, depth=1, seed=1, **settings):
    made = orrery.create_model(name, vocab_size=V, width=width, depth=depth, seed=seed, **settings)
    perturb(made, seed, 0.3)
    return made.double()


def taught(name, student, teacher, **settings):
    objective = orrery.create_objective(name, **settings)
    objective.teach(teacher)
    objective.meet(student)
    return objective


@pytest.mark.parametrize("rows", [5, None])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_targets_are_the_float64_loops(rows, temperature):
    g = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(13, 6, generator=g, dtype=torch.float64), torch.randn(41, 6, generator=g, dtype=torch.float64)
    teacher = 2 * torch.randn(13, 41, generator=g, dtype=torch.float64)
    labels = torch.randint(0, 41, (13,), generator=g)
    labels[::3] = IGNORE
    values, nats, divergences, slope = oracle.soft_targets(
        (hidden @ weight.t()).numpy(), teacher.numpy(), labels.tolist(), temperature, 0.7, 0.4
    )
    asked = []

    def teach(first, last):
        asked.append(last - first)
        return teacher[first:last]

    for grad in (True, False):
        hidden.requires_grad_(grad), weight.requires_grad_(grad)
        loss = SoftTargets(teach, labels, temperature, 0.7, 0.4)
        result = linear_cross_entropy(hidden, weight, labels.clamp(min=0), reduction="sum", ignore_index=None, loss=loss, rows=rows)
        np.testing.assert_allclose(result.loss.item(), values.sum(), rtol=1e-12)
        np.testing.assert_allclose(result.nats.item(), nats.sum(), rtol=1e-12)
        np.testing.assert_allclose(loss.divergence.item(), divergences.sum(), rtol=1e-12)
        if grad:
            result.loss.backward()
            np.testing.assert_allclose(hidden.grad.numpy(), slope @ weight.detach().numpy(), rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(weight.grad.numpy(), slope.T @ hidden.detach().numpy(), rtol=1e-10, atol=1e-12)
    assert max(asked) == (rows or 13), "the teacher is asked for a chunk at a time"


@pytest.mark.parametrize("name", ["distilled-next-token", "distilled-masked-lm"])
def test_every_term_is_the_float64_loop(name):
    causal = name == "distilled-next-token"
    kind = "transformer" if causal else "bert"
    student, teacher = model(kind, 16, 2), model(kind, 24, 4, seed=2, heads=3) if causal else model(kind, 24, 4, seed=2)
    batch = make_batch()
    own = taught(name, student, teacher, **ALONE, cosine=1.0, hidden=1.0, attention=1.0, relation_heads=2)
    torch.manual_seed(5)
    loss, metrics = own(student, batch)
    torch.manual_seed(5)
    view = own.view(student, batch)
    layer = {"heads": 1}, {"heads": 3}
    a, b = (read_layers(each, view["tokens"], view["segments"], **where) for each, where in zip((student, teacher), layer, strict=True))
    marks = view["segments"]
    places = [(r, t) for r, t in (marks >= 0).nonzero().tolist() if not causal or view["targets"][r, t] != IGNORE]

    def numbers(x):
        return x.detach().numpy()

    w = {key: numbers(value.weight) for key, value in own.maps.items()}
    mapped = [numbers(h) @ (w["layers"] if i else w["embedding"]).T for i, h in enumerate(a.hidden)]
    theirs = [numbers(h) for h in b.hidden]
    assert metrics["cosine"].item() == pytest.approx(oracle.cosine(numbers(a.hidden[-1]) @ w["last"].T, theirs[-1], places), rel=1e-10)
    pairs = [(0, 0), (1, 2), (2, 4)]
    assert metrics["hidden"].item() == pytest.approx(oracle.layers(mapped, theirs, pairs, places, False), rel=1e-10)
    each = [oracle.relations(numbers(x), numbers(y), 2, marks.numpy(), places, causal) for x, y in zip(a.heads, b.heads, strict=True)]
    assert metrics["attention"].item() == pytest.approx(np.mean(each), rel=1e-10)
    assert loss.item() == pytest.approx(sum(metrics[key].item() for key in ("cosine", "hidden", "attention")), rel=1e-12)
    assert metrics["loss"] == loss.detach(), "without its own task the loss is everything"
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters()) and all(m.weight.grad.abs().sum() > 0 for m in own.maps.values())


@pytest.mark.parametrize("form", ["scores", "probabilities", "mean"])
def test_attention_itself_is_the_float64_loop(form):
    heads = (2, 3 if form == "mean" else 2)
    student, teacher = (model("bert", w, d, seed=d, heads=h, head_dim=w // h) for w, d, h in ((8, 1, heads[0]), (12, 2, heads[1])))
    own = taught("distilled-masked-lm", student, teacher, **ALONE, attention=1.0, relations=(form,), layers="1-1,1-2")
    batch = make_batch()
    torch.manual_seed(5)
    loss, metrics = own(student, batch)
    torch.manual_seed(5)
    view = own.view(student, batch)
    marks = view["segments"]
    found = []
    for each, layers, count in ((student, (0, 0), heads[0]), (teacher, (0, 1), heads[1])):
        hidden = read_layers(each, view["tokens"], marks).hidden
        maps = [each.blocks[layer].mixer.inputs.linear for layer in layers]
        found.append([
            oracle.scores(hidden[layer].detach().numpy(), m.weight.detach().numpy(), m.bias.detach().numpy(), count)
            for layer, m in zip(layers, maps, strict=True)
        ])  # fmt: skip
    places = (marks >= 0).nonzero().tolist()
    wanted = sum(oracle.attention(a, b, form, marks.numpy(), places, False) for a, b in zip(*found, strict=True))
    assert metrics["attention"].item() == pytest.approx(wanted, rel=1e-10)
    loss.backward()
    wide = student.blocks[0].mixer.inputs.linear.weight
    way, eps = torch.randn_like(wide), 1e-6
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            wide.add_(sign * eps * way)
        torch.manual_seed(5)
        values.append(own(student, batch)[0].item())
        with torch.no_grad():
            wide.sub_(sign * eps * way)
    assert (wide.grad * way).sum().item() == pytest.approx((values[0] - values[1]) / (2 * eps), rel=1e-5)
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("transformer", {"head_dim": 4}),
        ("transformer", {"head_dim": 4, "window": 3}),
        ("modernbert", {"head_dim": 4, "local.window": 2, "depth": 2}),
    ],
)
def test_what_attention_is_made_of_is_what_the_mixer_does(name, settings):
    one = model(name, 8, **settings)
    tokens = torch.randint(0, V, (2, 9), generator=torch.Generator().manual_seed(1))
    layer = len(one.blocks) - 1
    layers = read_layers(one, tokens, scored=[layer])
    scored, block = layers.scored[layer], one.blocks[layer]
    ctx = Context(time=plan(None, None, *tokens.shape, tokens.device)[0], shared={})
    wanted = block.mixer.transfer(block.mixer_norm(layers.hidden[layer] if layer else one.embed(tokens)), ctx)
    segments, places = torch.zeros_like(tokens), [(b, t) for b in range(2) for t in range(9)]
    found = np.log(wanted.detach().numpy() + 1e-300)
    own = np.einsum("bthk,bshk->bhts", scored.q.detach(), scored.k.detach())
    causal = name == "transformer"
    assert oracle.attention(own, found, "probabilities", segments.numpy(), places, causal, scored.window) == pytest.approx(0, abs=1e-12)
    other = scored._replace(q=scored.q + 0.3, k=scored.k * 1.1)
    theirs = np.einsum("bthk,bshk->bhts", other.q.detach(), other.k.detach())
    for form in ("scores", "probabilities", "mean"):
        value = attention_distance(scored, other, form, segments, segments >= 0, causal).item()
        assert value == pytest.approx(oracle.attention(own, theirs, form, segments.numpy(), places, causal, scored.window), rel=1e-10)


def test_attention_with_positions_that_add_to_the_scores():
    one = model("t5-encoder", 8, depth=2, head_dim=4)
    tokens = torch.randint(0, V, (2, 7), generator=torch.Generator().manual_seed(1))
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, -1, -1, -1, -1, -1]])
    scored = read_layers(one, tokens, segments, scored=[1]).scored[1]
    assert scored.bias is not None
    own = np.einsum("bthk,bshk->bhts", scored.q.detach(), scored.k.detach())
    begins = [[0, 0, 0, 3, 3, 3, 3], [0] * 7]
    for b in range(2):
        for t in range(7):
            for s in range(7):
                if segments[b, t] == segments[b, s] >= 0:
                    own[b, :, t, s] += scored.bias.detach().numpy()[:, t - begins[b][t], s - begins[b][s]]
    other = scored._replace(q=scored.q + 0.3, bias=scored.bias * 0)
    theirs = np.einsum("bthk,bshk->bhts", other.q.detach(), other.k.detach())
    places = (segments >= 0).nonzero().tolist()
    for form in ("scores", "probabilities"):
        value = attention_distance(scored, other, form, segments, segments >= 0).item()
        assert value == pytest.approx(oracle.attention(own, theirs, form, segments.numpy(), places, False), rel=1e-10)


def test_the_triple_loss_adds_up_and_listens_where_it_is_told():
    student, teacher, batch = model(depth=1), model(depth=2, seed=2), make_batch()
    found = {}
    for everywhere in (False, True):
        weights = {"hard": 2.0, "soft": 5.0, "cosine": 1.0, "temperature": 2.0}
        own = taught("distilled-masked-lm", student, teacher, **weights, everywhere=everywhere)
        torch.manual_seed(1)
        loss, metrics = own(student, batch)
        torch.manual_seed(1)
        view = own.view(student, batch)
        plain = orrery.create_objective("masked-lm")
        torch.manual_seed(1)
        assert metrics["loss"].item() == pytest.approx(plain(student, batch)[0].item(), rel=1e-12)
        asked = view["segments"] >= 0 if everywhere else view["targets"] != IGNORE
        logits = [each(view["tokens"], segments=view["segments"]).logits[asked].detach().numpy() for each in (student, teacher)]
        soft = oracle.soft_targets(*logits, [-1] * len(logits[0]), 2.0, 0.0, 1.0)[2].mean()
        assert metrics["soft"].item() == pytest.approx(soft, rel=1e-10)
        terms = 2 * metrics["loss"] + 5 * metrics["soft"] + metrics["cosine"]
        assert loss.item() == pytest.approx(terms.item(), rel=1e-12)
        found[everywhere] = soft
    assert found[True] != found[False]


@pytest.mark.parametrize(
    ("head", "labels"), [("classification", 3), ("multi-label", 3), ("regression", 1), ("ordinal", 3), ("tagging", 3), ("span", 2)]
)
def test_answers_of_every_head_are_distilled(head, labels):
    settings = {"head": head, **({"labels": labels} if head != "span" else {})}
    student, teacher = model(depth=1, **settings), model(depth=2, seed=2, **settings)
    batch = make_batch()
    batch["segments"] = batch["segments"].clamp(max=0)
    shape = batch["tokens"].shape
    batch["targets"] = {
        "multi-label": torch.ones(4, 3), "regression": torch.ones(4), "tagging": torch.where(batch["segments"] < 0, IGNORE, 1),
        "span": torch.tensor([[1, 2], [0, 0], [3, 3], [IGNORE, IGNORE]]),
    }.get(head, torch.tensor([0, 1, 2, IGNORE]))  # fmt: skip
    own = taught("distilled-labels", student, teacher, hard=0.0, soft=1.0)
    loss, metrics = own(student, batch)
    z, u = (each(batch["tokens"], segments=batch["segments"]).logits.detach().numpy() for each in (student, teacher))

    def divergence(a, b):
        return oracle.soft_targets(a, b, [-1] * len(a), 2.0, 0.0, 1.0)[2]

    if head == "regression":
        wanted = ((z - u) ** 2).mean()
    elif head == "multi-label":
        pairs = [np.stack([x.ravel(), 0 * x.ravel()], 1) for x in (z, u)]
        wanted = divergence(*pairs).reshape(4, 3).sum(1).mean()
    elif head == "tagging":
        asked = batch["segments"].numpy() >= 0
        wanted = divergence(z[asked], u[asked]).mean()
    elif head == "span":
        lengths = (batch["segments"][:3] >= 0).sum(1).tolist()
        wanted = np.mean([divergence(*(x[r, : lengths[r], side][None] for x in (z, u))) for r in range(3) for side in (0, 1)])
    else:
        wanted = divergence(z[:3], u[:3]).mean()
    assert loss.item() == pytest.approx(wanted, rel=1e-9) and metrics["soft"].item() == pytest.approx(wanted, rel=1e-9)
    assert shape == batch["tokens"].shape


def test_maps_of_layers():
    assert layer_pairs("uniform", 4, 12) == [(0, 0), (1, 3), (2, 6), (3, 9), (4, 12)]
    assert layer_pairs("skip", 6, 12) == [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]
    assert layer_pairs("last", 6, 12) == [(1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]
    assert layer_pairs("1-4,2-8", 2, 8) == [(1, 4), (2, 8)]


def test_a_teacher_is_frozen_has_no_dropout_and_is_no_part_of_what_is_saved():
    teacher, student = model(depth=2, seed=2, dropout=0.5).train(), model(dropout=0.0)
    own = taught("distilled-masked-lm", student, teacher, cosine=1.0)
    pair = Pair(student, own)
    pair.train()
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    batch = make_batch()
    values = set()
    for _ in range(2):
        torch.manual_seed(3)
        values.add(pair(batch)[0].item())
    assert len(values) == 1
    torch.manual_seed(3)
    pair(batch)
    after = torch.rand(1)
    torch.manual_seed(3)
    orrery.create_objective("masked-lm")(student, batch)
    assert after == torch.rand(1), "the teacher draws nothing"
    names = stored_tensors(pair)
    assert names and all(name.startswith("model.") for name in names)
    assert {id(p) for p in pair.parameters()} == {id(p) for p in student.parameters()}


def test_what_does_not_fit_is_refused_in_a_sentence(tmp_path):
    student, teacher = model(), model(depth=2, seed=2)
    with pytest.raises(ConfigError, match="needs a teacher"):
        orrery.create_objective("distilled-masked-lm").meet(student)
    other = orrery.create_model("bert", vocab_size=V + 1, width=16, depth=1)
    with pytest.raises(ConfigError, match="knows 30 ids and the teacher 29"):
        taught("distilled-masked-lm", other, teacher)
    with pytest.raises(ConfigError, match="there is no pair of layers 1-9"):
        taught("distilled-masked-lm", student, teacher, hidden=1.0, layers="1-9")
    with pytest.raises(ConfigError, match="must be uniform, skip, last, top, or pairs"):
        orrery.create_objective("distilled-masked-lm", layers="every")
    with pytest.raises(ConfigError, match="one of them above 0"):
        orrery.create_objective("distilled-masked-lm", **ALONE)
    both = [orrery.create_model("lstm", vocab_size=V, width=16, depth=1) for _ in range(2)]
    lesson = taught("distilled-next-token", *both, attention=1.0)
    with pytest.raises(ConfigError, match="no layer of 'lstm' has queries"):
        lesson(both[0], make_batch())
    few, many = model(heads=1, head_dim=16), model(depth=2, seed=2, heads=2, head_dim=8)
    with pytest.raises(ConfigError, match="layer 1 of the student and layer 2 of the teacher have 1 and 2 heads, which scores compare one by one"):
        taught("distilled-masked-lm", few, many, attention=1.0, relations=("scores",), hidden=1.0)
    with pytest.raises(ConfigError, match="layers=0-0 pairs no layers whose attention"):
        taught("distilled-masked-lm", few, many, attention=1.0, relations=("mean",), layers="0-0")
    with pytest.raises(ConfigError, match="layer 1 of 'deberta' has no attention matrix"):
        taught("distilled-masked-lm", model("deberta", head_dim=8), many, attention=1.0, relations=("mean",))
    heads = [model(head="classification", labels=n) for n in (2, 3)]
    with pytest.raises(ConfigError, match="classification of 2 labels, the teacher's classification of 3"):
        taught("distilled-labels", *heads)
    with pytest.raises(ConfigError, match="no teacher in"):
        orrery.create_objective("distilled-masked-lm", teacher=str(tmp_path / "gone")).meet(student)
    save(teacher, tmp_path / "teacher")
    settings = {"teacher": str(tmp_path / "teacher"), "teacher_hash": "000000000000"}
    with pytest.raises(ConfigError, match=r"has changed: its weights are [0-9a-f]{12}, this run began with 000000000000"):
        orrery.create_objective("distilled-masked-lm", **settings).meet(student)


ALL = {"cosine": 0.5, "hidden": 0.3, "attention": 0.7}
TRIED = ("gradients", "padding", "accumulation", "precision")  # with labels not accumulation: hidden terms are means over tokens


@pytest.mark.parametrize(
    "check",
    [
        check
        for name, more in (
            ("distilled-next-token", {}),
            ("distilled-masked-lm", {"everywhere": True, "relations": ("v", "scores", "mean")}),
            ("distilled-labels", {"normalise": True}),
        )
        for check in objective_checks_for(name, {**ALL, **more})
        if not check.disabled and check.name in (TRIED if name == "distilled-next-token" else TRIED[:2])
    ],
    ids=str,
)
def test_contract_with_all_terms(check):
    check()
