"""EGRU: what it reports of its silence, its thresholds, and a GRU where nothing is thresholded."""

from __future__ import annotations

import pytest
import torch

from orrery.core.errors import ConfigError
from orrery.mixers.egru import EGRU, EGRUConfig
from orrery.models.build import resolve
from orrery.nn.contract import Aux, Context, Place


def test_sparsity_is_reported_where_it_is_asked_for():
    torch.manual_seed(0)
    mixer = EGRU(EGRUConfig(hidden=40), Place(width=16, layer=3))
    aux, segments = Aux("activity", "macs"), torch.tensor([[0] * 30, [0] * 10 + [-1] * 20])
    x, seen = torch.randn(2, 30, 16), []
    mixer.out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mixer(x, None, Context(segments=segments, aux=aux))
    share = (torch.cat([seen[0][0], seen[0][1, :10]]) != 0).float().mean().item()
    assert aux.reports["activity"][3] == pytest.approx(share) and 0.02 < share < 0.7
    assert aux.reports["macs"][3] == pytest.approx(3 * 40 * 16 + share * 40 * (3 * 40 + 16))
    assert aux.reports["macs"][3] < mixer.flops(1) / 2
    silent = Aux("routing")
    mixer(x, None, Context(aux=silent))
    assert not silent.reports


def test_higher_thresholds_mean_fewer_events():
    shares = []
    for mean in (0.05, 0.3, 0.7):
        torch.manual_seed(0)
        aux, mixer = Aux("activity"), EGRU(EGRUConfig(threshold=mean), Place(width=64))
        mixer(2 * torch.randn(2, 50, 64), None, Context(aux=aux))
        shares.append(aux.reports["activity"][0])
    assert shares[0] > shares[1] > shares[2] and shares[2] < 0.2


def test_a_unit_that_always_speaks_without_losing_potential_is_a_gru():
    """Thresholds of 0 reset nothing and silence only negative potentials; where none is negative, torch's GRU is left."""
    torch.manual_seed(0)
    mixer, peer = EGRU(EGRUConfig(), Place(width=12)).double(), torch.nn.GRU(12, 12, batch_first=True).double()
    with torch.no_grad():
        mixer.theta.zero_()
        for tensor, (r, z, n) in ((mixer.inputs.linear.weight, peer.weight_ih_l0.chunk(3)), (mixer.recurrent, peer.weight_hh_l0.chunk(3)),
                                  (mixer.inputs.linear.bias, (peer.bias_ih_l0 + peer.bias_hh_l0).chunk(3))):  # fmt: skip
            tensor.copy_(torch.cat([z, r, n]))
        mixer.inputs.linear.bias[24:] = 3.0  # candidates stay positive
        peer.bias_ih_l0[24:] = 3.0
        mixer.inner_bias.copy_(peer.bias_hh_l0[24:])
        x = torch.randn(2, 25, 12, dtype=torch.float64)
        y, _ = mixer(x)
        assert (y > 0).all() and (y - peer(x)[0]).abs().max() < 1e-12


def test_initial_thresholds():
    torch.manual_seed(0)
    theta = EGRU(EGRUConfig(hidden=4000, threshold=0.2), Place(width=8)).theta
    alpha = 3 * 0.2 / 0.8
    assert theta.mean().item() == pytest.approx(0.2, abs=0.015) and theta.min() >= 0 and theta.max() <= 1
    assert theta.var().item() == pytest.approx(alpha * 3 / ((alpha + 3) ** 2 * (alpha + 4)), rel=0.1)


def test_preset_and_frame():
    config = resolve("egru-wikitext2")
    assert config.depth == 3 and config.width == 750 and config.blocks[0].mixer["hidden"] == 1350 and config.tied


@pytest.mark.parametrize("settings", [{"hidden": 0}, {"threshold": 1.0}, {"damping": 0.0}])
def test_impossible_settings(settings):
    with pytest.raises(ConfigError):
        EGRUConfig(**settings)
