"""EMO, MixCE and TaiLr: equal to float64 loops and to the authors' package, in both forms of the kernel; the contract."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import orrery
from oracles import emo as oracle
from orrery.core.errors import ConfigError
from orrery.models.output import Output
from orrery.models.scoring import score
from orrery.objectives.emo import Emo, EmoConfig, combine
from orrery.ops.backend import use_backend
from orrery.ops.losses.cross_entropy import IGNORE, linear_cross_entropy
from orrery.ops.losses.row_losses import EarthMover, Reweighted, unit_rows
from orrery.testing.objective import objective_checks_for
from orrery.train.engine import Pair

N, D, V, E = 31, 6, 641, 5  # a vocabulary above the least size of the compiled loop, and no multiple of its lanes


def make(dtype=torch.float64):
    g = torch.Generator().manual_seed(3)
    hidden = torch.randn(N, D, generator=g, dtype=torch.float64)
    weight = 1.5 * torch.randn(V, D, generator=g, dtype=torch.float64)
    costs = torch.randn(V, E, generator=g, dtype=torch.float64)
    labels = torch.randint(0, 9, (N,), generator=g) * 71  # repeated ones, the last class among them
    return hidden.to(dtype), weight.to(dtype), costs.to(dtype), labels


def losses(costs):
    config = {
        f"{e}-{cap}": EmoConfig(emphasis=e, costs="fixed", cap=cap)
        for e, cap in itertools.product(("mle", "emo"), (0.0, 3.0))
    }
    for name, item in config.items():
        for own in (False, True):
            yield (
                f"{name}-{own}",
                EarthMover(lambda nats, m, item=item: combine(item, nats, m), unit_rows(costs), own),
                lambda z, t, item=item, own=own: oracle.emo(z, t, costs.double().numpy(), item.emphasis, own, item.cap),
            )
    yield "mixce", Reweighted(lambda nats: 0.3 + 0.7 * torch.exp(-nats)), lambda z, t: oracle.mixce(z, t, 0.3)
    tailr = orrery.create_objective("tailr", gamma=0.4, floor=0.1, mix=0.2)
    yield "tailr", Reweighted(tailr._weigh), lambda z, t: oracle.tailr(z, t, 0.4, 0.1, 0.2)


NAMES = [name for name, *_ in losses(make()[2])]


@pytest.mark.parametrize("rows", [7, None])
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_are_the_float64_loops(name, rows):
    hidden, weight, costs, labels = make()
    loss, wanted = next((loss, wanted) for found, loss, wanted in losses(costs) if found == name)
    values, nats, slope = wanted((hidden @ weight.t()).numpy(), labels.numpy())
    hidden.requires_grad_()
    weight.requires_grad_()
    result = linear_cross_entropy(hidden, weight, labels, reduction="sum", loss=loss, rows=rows)
    result.loss.backward()
    np.testing.assert_allclose(result.loss.item(), values.sum(), rtol=1e-12)
    np.testing.assert_allclose(result.nats.item(), nats.sum(), rtol=1e-12)
    np.testing.assert_allclose(hidden.grad.numpy(), slope @ weight.detach().numpy(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(weight.grad.numpy(), slope.T @ hidden.detach().numpy(), rtol=1e-10, atol=1e-12)
    silent = linear_cross_entropy(hidden.detach(), weight.detach(), labels, reduction="sum", loss=loss)
    np.testing.assert_allclose(silent.loss.item(), values.sum(), rtol=1e-12)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("name", NAMES)
def test_compiled_and_torch_forms_agree_in_float32(name, softcap):
    exact = make()
    found = {}
    for backend, dtype in (("torch", torch.float64), ("torch", torch.float32), ("numba", torch.float32)):
        hidden, weight, costs, labels = (t.to(dtype) if t.is_floating_point() else t for t in exact)
        loss = next(loss for key, loss, _ in losses(costs) if key == name)
        hidden = hidden.clone().requires_grad_()
        with use_backend(backend):
            result = linear_cross_entropy(hidden, weight, labels, loss=loss, softcap=softcap)
        result.loss.backward()
        found[backend, dtype] = torch.cat((result.loss.detach()[None], hidden.grad.flatten())).double()
    reference = found.pop(("torch", torch.float64))
    for value in found.values():
        torch.testing.assert_close(value, reference, rtol=2e-4, atol=2e-6)


def test_softcap_bounds_the_logits_of_any_loss():
    hidden, weight, costs, labels = make()
    loss = next(loss for name, loss, _ in losses(costs) if name == "mle-0.0-False")
    values, _, slope = oracle.emo((2.0 * torch.tanh(hidden @ weight.t() / 2.0)).numpy(), labels.numpy(), costs.numpy())
    hidden.requires_grad_()
    result = linear_cross_entropy(hidden, weight, labels, reduction="sum", softcap=2.0, loss=loss)
    result.loss.backward()
    np.testing.assert_allclose(result.loss.item(), values.sum(), rtol=1e-12)
    shrink = 1 - torch.tanh(hidden.detach() @ weight.t() / 2.0).square().numpy()
    np.testing.assert_allclose(hidden.grad.numpy(), (slope * shrink) @ weight.numpy(), rtol=1e-10, atol=1e-12)


class Given(nn.Module):
    """A model whose output is written down: logits from a table, through a linear head, a module, or none."""

    def __init__(self, kind):
        super().__init__()
        hidden, weight, *_ = make()
        self.hidden, self.vocab_size = nn.Parameter(hidden[None]), V
        plain = nn.Linear(D, V, bias=False, dtype=torch.float64)
        plain.weight.data.copy_(weight)
        if kind != "logits":
            self.head = plain if kind == "linear" else nn.Sequential(plain)
        self.plain = plain

    def output(self):
        return Output(self.hidden, None, None, getattr(self, "head", None) or self.plain)


@pytest.mark.parametrize("kind", ["linear", "module", "logits"])
def test_every_kind_of_head_takes_such_a_loss(kind):
    _, _, costs, labels = make()
    labels[4] = IGNORE
    loss = next(loss for name, loss, _ in losses(costs) if name == "emo-3.0-True")
    model = Given(kind)
    result = score(model, model.output(), labels[None], loss=loss)
    result.loss.backward()
    kept = labels != IGNORE
    logits = (model.hidden.detach()[0] @ model.plain.weight.detach().t())[kept]
    values, _, slope = oracle.emo(logits.numpy(), labels[kept].numpy(), costs.numpy(), "emo", True, 3.0)
    np.testing.assert_allclose(result.loss.item(), values.mean(), rtol=1e-12)
    wanted = np.zeros((N, D))
    wanted[kept.numpy()] = slope @ model.plain.weight.detach().numpy() / kept.sum().item()
    np.testing.assert_allclose(model.hidden.grad[0].numpy(), wanted, rtol=1e-10, atol=1e-12)


def test_fixed_costs_are_the_untrained_head_and_stay_through_a_checkpoint():
    model = orrery.create_model("transformer", vocab_size=29, width=16, depth=1, seed=1)
    objective = orrery.create_objective("emo", costs="fixed")
    pair = Pair(model, objective)
    before = unit_rows(model.head.weight).clone()
    with torch.no_grad():
        model.head.weight.normal_()
    held = {name: value.clone() for name, value in pair.state_dict().items()}
    torch.testing.assert_close(held["objective.costs"], before, rtol=0, atol=0)
    again = Pair(model, orrery.create_objective("emo", costs="fixed"))
    again.load_state_dict(held)
    torch.testing.assert_close(again.objective.costs, before, rtol=0, atol=0)


def test_equal_probabilities_move_half_way_between_opposites():
    """Two classes with opposite vectors, p = 1/2 each: half of the mass moves over a distance of 2."""
    logits = torch.zeros(1, 2, dtype=torch.float64)
    loss = EarthMover(lambda nats, m: (m, m * 0, None), unit_rows(torch.tensor([[3.0], [-1.0]]).double()))
    assert loss.value(logits, torch.tensor([0]))[1].item() == pytest.approx(1.0)


def test_what_does_not_fit_is_said():
    model = orrery.create_model("transformer", vocab_size=29, width=16, depth=1)
    tokens = {"tokens": torch.zeros(1, 5, dtype=torch.int64)}
    with pytest.raises(ConfigError, match="11 cost vectors do not fit a vocabulary of 29"):
        Emo(EmoConfig(costs="fixed"), torch.ones(11, 3))(model, tokens)
    with pytest.raises(ConfigError, match="costs=fixed"):
        Emo(EmoConfig(), torch.ones(29, 3))
    with pytest.raises(ConfigError, match="no linear head"):
        orrery.create_objective("emo")(Given("logits"), tokens)
    with pytest.raises(ConfigError, match="emphasis must be one of mle, emo"):
        orrery.create_objective("emo", emphasis="both")


def test_values_are_those_of_the_authors_package():
    package = pytest.importorskip("emo", reason="the package EMOLoss is not installed")
    hidden, weight, costs, labels = make()
    logits = (hidden @ weight.t())[None]
    shifted = torch.cat((logits, logits[:, :1]), 1), torch.cat((labels[:1], labels))[None]  # it shifts by itself
    for mode, emphasis, cap in ((1, "mle", 3.0), (2, "emo", 0.0)):
        config = EmoConfig(emphasis=emphasis, costs="fixed", cap=cap)
        loss = EarthMover(lambda nats, m, config=config: combine(config, nats, m), unit_rows(costs))
        ours = linear_cross_entropy(hidden, weight, labels, loss=loss).loss
        torch.testing.assert_close(ours, package.EMOLoss(*shifted, costs, mode=mode), rtol=1e-9, atol=0)


SETTINGS = [("emo", {"emphasis": "emo", "cap": 3.0}), ("emo", {"costs": "fixed"}), ("tailr", {"gamma": 0.1})]
CHECKS = [check for name, settings in SETTINGS for check in objective_checks_for(name, settings) if not check.disabled]


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_contract_with_other_settings(check):
    check.run()
