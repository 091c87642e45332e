"""HGRN2's lower bounds, sizes and initialisation; the float64 loop runs with the contract checks."""

from __future__ import annotations

import pytest
import torch

from orrery.core.errors import ConfigError
from orrery.core.registry import lookup
from orrery.mixers.hgrn2 import ARCHITECTURE, HGRN2, HGRN2Config
from orrery.models.build import build as build_model
from orrery.models.build import create_model, resolve
from orrery.nn.contract import Place


def build(layer=1, depth=4, width=32, **settings):
    return HGRN2(HGRN2Config(**{"head_dim": 8, **settings}), Place(width=width, layer=layer, depth=depth))


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_forget_gates_start_above_the_papers_bounds(layer):
    """cumsum(softmax(0))_l - softmax(0)_0 = l / L: a closed gate keeps that share, an open one everything."""
    mixer = build(layer=layer)
    p = torch.zeros(1, 2, 96)
    p[0, 0, 32:64], p[0, 1, 32:64] = -50.0, 50.0
    _, k, _, g_log = mixer._split(p)
    keep = g_log.exp()
    assert torch.allclose(keep[0, 0], torch.tensor(layer / 4), atol=1e-6)
    assert torch.equal(keep[0, 1], torch.ones(4, 8))
    assert torch.allclose(k, 1 - keep, atol=1e-6)
    assert (mixer.bound is None) == (layer == 0)


def test_any_bound_can_be_expressed():
    mixer, wanted = build(layer=3), torch.linspace(1e-4, 1 - 1e-4, 32)
    with torch.no_grad():
        mixer.bound.copy_(torch.logit(wanted) - torch.logit(torch.tensor(3 / 4)))
    closed = torch.full((1, 1, 96), -50.0)
    assert torch.allclose(mixer._split(closed)[3].exp().flatten(), wanted, atol=1e-6)
    with torch.no_grad():
        mixer.bound.fill_(-1e4)  # as good as no bound: still no gate of -inf, and no gradient that is NaN
    closed.requires_grad_()
    g_log = mixer._split(closed)[3]
    assert torch.isfinite(g_log).all() and g_log.max() < -11
    assert torch.isfinite(torch.autograd.grad(g_log.sum(), closed)[0]).all()


def test_gates_near_one_keep_their_digits():
    """log f at f = 1 - 1e-8, which float32 cannot hold."""
    mixer = build()
    p = torch.full((1, 1, 96), 17.0)
    rate = mixer._split(p)[3].double()
    exact = torch.log1p(-0.75 * torch.sigmoid(torch.tensor(-17.0, dtype=torch.float64)))
    assert torch.allclose(rate, exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("preset", "billions"), [("hgrn2-340m", 0.34), ("hgrn2-1.3b", 1.3)])
def test_presets(preset, billions):
    assert lookup(preset).name == "hgrn2" and set(lookup("hgrn2").presets) == set(ARCHITECTURE.presets)
    with torch.device("meta"):
        model = build_model(resolve(preset))
    assert model.num_parameters(embedding=True) / 1e9 == pytest.approx(billions, rel=0.02)


def test_every_layer_but_the_first_has_its_bound():
    model = create_model("hgrn2", size="nano", seed=0)
    assert [block.mixer.bound is not None for block in model.blocks] == [False, True, True]
    assert model.blocks[2].mixer.place.depth == 3
    plain = create_model("hgrn2", size="nano", bound=False)
    assert all(block.mixer.bound is None for block in plain.blocks)


def test_initialisation():
    mixer = build(width=512)
    assert mixer.inputs.linear.weight.std().item() == pytest.approx((2 / (5 * 512)) ** 0.5, rel=0.01)
    assert not mixer.bound.any()


def test_impossible_settings():
    with pytest.raises(ConfigError, match="head_dim must be positive"):
        HGRN2Config(head_dim=0)
    with pytest.raises(ConfigError, match="not a multiple of head_dim"):
        build(width=20)
