"""The spiking mixer: its parallel and its recurrent form, gradients included; half-lives; spikes; what astrocytes add."""

from __future__ import annotations

import math

import pytest
import torch

from orrery.core.errors import ConfigError
from orrery.core.registry import lookup
from orrery.mixers.astro_snn import AstroSNN, AstroSNNConfig
from orrery.nn.contract import Aux, Context, Place


def build(width=24, **settings):
    torch.manual_seed(0)
    return AstroSNN(AstroSNNConfig(**settings), Place(width=width))


def test_both_forms_are_equal_and_so_are_their_gradients():
    """Scans over all of time, and one token after another: outputs, states, and surrogate gradients through both."""
    mixer, x = build().double(), torch.randn(2, 60, 24, dtype=torch.float64)
    weight = torch.randn_like(x)
    parallel, end = mixer(x)
    state, found = None, []
    for t in range(60):
        y, state = mixer(x[:, t : t + 1], state)
        found.append(y)
    recurrent = torch.cat(found, 1)
    assert (parallel - recurrent).abs().max() < 1e-12
    assert (end.calcium - state.calcium).abs().max() < 1e-12 and (end.potential - state.potential).abs().max() < 1e-12
    parameters = list(mixer.parameters())
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), parameters) for y in (parallel, recurrent)), strict=True):
        assert (a - b).abs().max() <= 1e-10 * b.abs().max()


def test_half_lives():
    mixer = build(fast=(0.5, 8.0), slow=(1.0, 512.0))
    for rate, (low, high) in ((mixer.fast_rate, (0.5, 8.0)), (mixer.slow_rate, (1.0, 512.0))):
        lives = math.log(2) / rate.exp()
        assert lives[0].item() == pytest.approx(low, rel=1e-4) and lives[-1].item() == pytest.approx(high, rel=1e-4)
        assert torch.allclose(lives.log().diff(), lives.log().diff()[0].expand(23), atol=1e-4)


def test_fewer_than_half_of_the_neurons_fire():
    aux = Aux("activity")
    build(width=64)(torch.randn(4, 100, 64), None, Context(aux=aux))
    assert 0.05 < aux.reports["activity"][0] < 0.5


def test_the_astrocyte_remembers_longer_than_the_neuron():
    """What a burst leaves behind 200 tokens later: nothing in potentials, something in calcium, and so in the gain."""
    mixer = build(width=32).double()
    quiet, loud = torch.zeros(1, 220, 32, dtype=torch.float64), torch.zeros(1, 220, 32, dtype=torch.float64)
    loud[:, :20] = 3 * torch.randn(1, 20, 32, dtype=torch.float64)
    ends = [mixer(x)[1] for x in (quiet, loud)]
    assert (ends[0].potential - ends[1].potential).abs().max() < 1e-5 < 1e-3 < (ends[0].calcium - ends[1].calcium).abs().max()


def test_it_says_that_it_is_a_reconstruction():
    assert "reconstruction" in lookup("astro-snn").summary


@pytest.mark.parametrize("settings", [{"hidden": -1}, {"fast": (0.0, 2.0)}, {"slow": (3.0, 2.0)}])
def test_impossible_settings(settings):
    with pytest.raises(ConfigError):
        AstroSNNConfig(**settings)
