"""HyperMixing beyond the contract: order, cost, initialisation, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orrery.core.errors import ConfigError
from orrery.mixers.hypermixer import HyperMixing, HyperMixingConfig, sinusoids
from orrery.models.build import create_model
from orrery.nn.contract import Place


def mixing(**settings):
    torch.manual_seed(0)
    return HyperMixing(HyperMixingConfig(**settings), Place(width=16)).double()


@pytest.mark.parametrize(("positions", "follows"), [("none", True), ("sinusoid", False)])
def test_only_positions_know_the_order(positions, follows):
    """Without positions, permuted tokens have permuted outputs; with them they have not."""
    part, x, order = mixing(positions=positions, tied=False), torch.randn(2, 9, 16).double(), torch.randperm(9)
    moved = (part(x[:, order])[0] - part(x)[0][:, order]).abs().max().item()
    assert (moved < 1e-12) == follows


def test_heads_mix_their_own_features_only():
    part, x = mixing(heads=4), torch.randn(1, 6, 16).double()
    part.norm = torch.nn.Identity()
    other = x.clone()
    other[..., 4:8] += 1.0
    changed = (part(other)[0] - part(x)[0]).abs().amax((0, 1)) > 1e-9
    assert changed.nonzero()[:, 0].tolist() == [4, 5, 6, 7]


def test_tied_weights_are_one_set():
    tied, untied = mixing(), mixing(tied=False)
    makers = sum(p.numel() for p in tied.into.parameters())
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters()) == makers
    untied.back.load_state_dict(untied.into.state_dict())
    tied.load_state_dict(untied.state_dict(), strict=False)
    x = torch.randn(2, 5, 16).double()
    torch.testing.assert_close(untied(x)[0], tied(x)[0])


def test_cost_is_linear_in_the_length():
    model = create_model("hypermixer", size="nano", head=None)
    assert model.flops(4096) == 4 * model.flops(1024)


def test_sinusoids_are_those_of_the_transformer():
    found = sinusoids(torch.tensor([0, 3]), 8, torch.float64).numpy()
    rates = np.array([1.0, 0.1, 0.01, 0.001])
    np.testing.assert_allclose(found[1], [*np.sin(3 * rates), *np.cos(3 * rates)], atol=1e-12)
    assert found[0].tolist() == [0.0] * 4 + [1.0] * 4


def test_initialisation_is_xavier_s_with_gain_sqrt_2():
    maker = HyperMixing(HyperMixingConfig(mixing=512), Place(width=256)).into
    for weight, fans in ((maker.inner, 512), (maker.outer, 768)):
        assert weight.abs().max() <= (12 / fans) ** 0.5
        assert weight.std().item() == pytest.approx((2 * 2 / fans) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"heads": 3}, "multiple of heads"),
        ({"mixing": 10, "heads": 4}, "mixing 10"),
        ({"positions": "x"}, "positions 'x'"),
        ({"heads": 0}, "heads must"),
    ],
)
def test_impossible_settings(settings, words):
    with pytest.raises(ConfigError, match=words):
        mixing(**settings)
