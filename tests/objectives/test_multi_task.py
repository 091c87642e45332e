"""Several objectives over one model: sums by hand and by learnt uncertainty, batches of one part, bodies with several heads."""

from __future__ import annotations

import pytest
import torch

import orrery
from oracles import multi_task as oracle
from orrery.core.errors import ConfigError, UnknownNameError
from orrery.models.branches import Branches
from orrery.models.storage import stored_tensors
from orrery.testing.objective import make_batch, make_labelled
from orrery.train.engine import Pair

V = 29
PARTS = {"next-token": {"weight": 2.0}, "bounded": {"objective": "next-token", "settings": {"z_loss": 0.1}, "weight": 0.5, "squared": True}}


def lm():
    return orrery.create_model("transformer", vocab_size=V, width=16, depth=1, seed=1).double()


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty"])
def test_the_sum_is_the_oracle_s(weighting):
    model, batch = lm(), make_batch()
    objective = orrery.create_objective("multi-task", parts=PARTS, weighting=weighting).double()
    alone = {
        "next-token": orrery.create_objective("next-token")(model, batch)[0].item(),
        "bounded": orrery.create_objective("next-token", z_loss=0.1)(model, batch)[0].item(),
    }
    weights, squared = ({name: part.get(key, False) for name, part in PARTS.items()} for key in ("weight", "squared"))
    logs = {"next-token": 0.3, "bounded": -0.7}
    for name, value in logs.items() if weighting == "uncertainty" else ():
        objective.logs[name].data.fill_(value)
    loss, metrics = objective(model, batch)
    loss.backward()
    if weighting == "fixed":
        assert loss.item() == pytest.approx(2 * alone["next-token"] + 0.5 * alone["bounded"], rel=1e-12)
        assert not list(objective.parameters())
    else:
        wanted, slopes = oracle.weighed(alone, weights, logs, squared)
        assert loss.item() == pytest.approx(wanted, rel=1e-12)
        assert {name: objective.logs[name].grad.item() for name in logs} == pytest.approx(slopes, rel=1e-10)
        assert metrics["weight/bounded"].item() == pytest.approx(0.5 * 0.5 * torch.tensor(0.7).exp().item(), rel=1e-6)
    assert metrics["loss"].item() == pytest.approx((2 * metrics["next-token"] + 0.5 * metrics["bounded"]).item() / 2.5, rel=1e-12)
    assert int(metrics["tokens"]) == 2 * int(orrery.create_objective("next-token")(model, batch)[1]["tokens"])


def test_uncertainty_finds_the_noise_of_each_part():
    """At the minimum over s the weight of a loss L is 1 / (2 c L): the noisier, the less it counts."""
    objective = orrery.create_objective("multi-task", parts=PARTS, weighting="uncertainty")
    optimizer = torch.optim.LBFGS(objective.parameters(), max_iter=50, line_search_fn="strong_wolfe")
    model, batch = lm(), make_batch()

    def closure():
        optimizer.zero_grad()
        loss, _ = objective(model, batch)
        loss.backward()
        return loss

    optimizer.step(closure)
    metrics = objective(model, batch)[1]
    for name, part in PARTS.items():
        total = objective.parts[name](model, batch)[0].item()
        assert metrics[f"weight/{name}"].item() == pytest.approx(part["weight"] / (2 * total), rel=1e-3)


def branches():
    first = orrery.create_model("bert", vocab_size=V, width=16, depth=1, seed=1, head="classification", labels=3)
    second = orrery.models.convert.with_head(first, "regression", labels=1)
    return Branches({"topic": first, "score": second})


def test_one_body_has_several_heads_and_a_batch_teaches_its_own():
    model = branches()
    parts = {"topic": {"objective": "labelled"}, "score": {"objective": "labelled", "squared": True}}
    pair = Pair(model, orrery.create_objective("multi-task", parts=parts, weighting="uncertainty"))
    batch = make_labelled()
    loss, metrics = pair({"part": "topic", **batch})
    loss.backward()
    topic, score = model.branches["topic"], model.branches["score"]
    assert topic.embed is score.embed and topic.blocks is score.blocks and topic.head is not score.head
    assert all(p.grad is None for p in score.head.parameters()) and pair.objective.logs["score"].grad is None
    assert topic.head.out.weight.grad is not None and topic.embed.weight.grad is not None and set(metrics) >= {"topic", "weight/topic"}
    both = pair({"parts": {"topic": batch, "score": {**batch, "targets": torch.ones(4)}}})[1]
    assert {"topic", "score"} <= set(both) and int(both["tokens"]) == 3 + 4
    names = stored_tensors(pair)
    assert sum(name.endswith(".embed.weight") for name in names) == 1, "the body is stored once"
    assert {name for name in names if name.startswith("objective")} == {"objective.logs.topic", "objective.logs.score"}


def test_what_does_not_fit_is_refused_in_a_sentence():
    for settings, words in (
        ({}, "needs parts"),
        ({"parts": {"next-token": {"wieght": 2}}}, "the part 'next-token' must be given as"),
        ({"parts": {"next-token": {"weight": -1}}}, "0 or more, not -1"),
        ({"parts": PARTS, "weighting": "dynamic"}, "must be one of fixed, uncertainty, not 'dynamic'"),
    ):
        with pytest.raises(ConfigError, match=words):
            orrery.create_objective("multi-task", **settings)
    with pytest.raises(UnknownNameError, match="Did you mean 'next-token'"):
        orrery.create_objective("multi-task", parts={"next-tokne": {}})
    objective = orrery.create_objective("multi-task", parts=PARTS)
    with pytest.raises(ConfigError, match="for 'other', which is no part of next-token, bounded"):
        objective(lm(), {"part": "other", **make_batch()})
    other = orrery.create_model("bert", vocab_size=V, width=16, depth=1, head="regression", labels=1, **{"embedding.types": 0})
    first = orrery.create_model("modernbert", vocab_size=V, width=16, depth=1, head="regression", labels=1)
    with pytest.raises(ConfigError, match="does not fit the first model's body"):
        Branches({"a": first, "b": other})
