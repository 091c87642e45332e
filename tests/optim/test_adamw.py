"""AdamW against a float64 loop and torch's own; the grouping rule."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orrery.core import registry
from orrery.core.errors import ConfigError
from orrery.optim.adamw import AdamW, AdamWConfig
from orrery.optim.groups import parameter_groups, set_learning_rate


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.inner = nn.Linear(4, 6)
        self.free = nn.Parameter(torch.randn(4, 6))
        self.free.no_decay = True
        self.slow = nn.Parameter(torch.randn(3, 3))
        self.slow.lr_scale = 0.1
        self.frozen = nn.Parameter(torch.randn(5, 5), requires_grad=False)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


def by_name(model, **options):
    return {
        name: (group["weight_decay"], group["lr_scale"])
        for group in parameter_groups(model, 0.1, **options)
        for name in group["names"]
    }


def test_groups():
    assert by_name(Small()) == {
        "embed.weight": (0.0, 1.0),
        "norm.weight": (0.0, 1.0),
        "norm.bias": (0.0, 1.0),
        "inner.weight": (0.1, 1.0),
        "inner.bias": (0.0, 1.0),
        "free": (0.0, 1.0),
        "slow": (0.1, 0.1),
    }
    assert by_name(Small(), decay_embeddings=True)["embed.weight"] == (0.1, 1.0)


def test_groups_come_in_one_order():
    names = [group["names"] for group in parameter_groups(Small(), 0.1)]
    assert names == [["slow"], ["inner.weight"], ["free", "embed.weight", "norm.weight", "norm.bias", "inner.bias"]]


def test_steps_equal_the_equation_in_float64():
    torch.manual_seed(0)
    model = Small().double()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    config = AdamWConfig(weight_decay=0.3, beta1=0.8, beta2=0.97, eps=1e-6)
    optimizer = AdamW(model, 0.01, config)
    decays = {name: 0.3 if decay else 0.0 for name, (decay, _) in by_name(model).items()}
    moment = {n: torch.zeros_like(p) for n, p in start.items()}
    square = {n: torch.zeros_like(p) for n, p in start.items()}
    for t in range(1, 6):
        generator = torch.Generator().manual_seed(t)
        for name, parameter in model.named_parameters():
            if name not in decays:
                continue
            g = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = g.clone()
            moment[name] = 0.8 * moment[name] + 0.2 * g
            square[name] = 0.97 * square[name] + 0.03 * g * g
            hat, root = moment[name] / (1 - 0.8**t), (square[name] / (1 - 0.97**t)).sqrt()
            rate = 0.01 * by_name(model)[name][1]
            start[name] = start[name] - rate * decays[name] * start[name] - rate * hat / (root + 1e-6)
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), start[name], rtol=1e-12, atol=1e-14)


def test_equals_torch_with_the_same_groups():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    a = AdamW(ours, 1e-2, AdamWConfig(weight_decay=0.1))
    b = torch.optim.AdamW(
        [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
        foreach=False,
    )
    for step in range(5):
        torch.manual_seed(step)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_a_slow_parameter_takes_its_share_of_the_rate():
    model = Small()
    optimizer = AdamW(model, 1e-2)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3, 1e-2}
    set_learning_rate(optimizer, 2e-2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2e-3, 2e-2, 2e-2])
    before = model.slow.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    assert (before - model.slow - 2e-3 * (1 + 0.1 * before)).abs().max() < 1e-6


def test_it_is_found_by_name_and_fused():
    optimizer = registry.load("adamw", "optimizer")(nn.Linear(2, 2), 1e-3)
    assert all(group["fused"] for group in optimizer.param_groups)


def test_impossible_settings():
    with pytest.raises(ConfigError, match="beta2"):
        AdamWConfig(beta2=1.0)
    with pytest.raises(ConfigError, match="eps"):
        AdamWConfig(eps=0.0)
    with pytest.raises(ConfigError, match="weight_decay"):
        AdamWConfig(weight_decay=-0.1)


def test_nothing_to_train_is_said():
    with pytest.raises(ConfigError, match="no parameters to train by steps"):
        parameter_groups(Small().requires_grad_(False), 0.1)
