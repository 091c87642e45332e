"""GLA's initialisation, gates, sizes and transfer matrix; the float64 loop runs with the contract checks."""

from __future__ import annotations

import math

import pytest
import torch

from orrery.core.errors import ConfigError
from orrery.core.registry import lookup
from orrery.mixers.gla import ARCHITECTURE, GLA, GLAConfig
from orrery.models.build import build as build_model
from orrery.models.build import resolve
from orrery.nn.contract import Context, Place
from orrery.nn.timeline import plan


def build(width=32, **settings):
    return GLA(GLAConfig(**settings), Place(width=width))


def test_initialisation_is_the_published_one():
    """Each matrix by its own fans, though they are one: q and k have half as many rows as v."""
    mixer = build(width=256, head_dim=64)
    q, k, v, z, low = mixer.inputs.linear.weight.split(mixer._parts)
    for part, rows in ((q, 128), (k, 128), (v, 256), (z, 256), (low, 16)):
        assert part.shape[0] == rows
        bound = 2**-2.5 * math.sqrt(6 / (256 + rows))
        assert 0.95 * bound <= part.abs().max().item() <= bound
    assert not mixer.gate.bias.any()
    gates = mixer._split(torch.zeros(1, 1, mixer.inputs.linear.out_features))[-1]
    assert gates.exp().mean().item() == pytest.approx(0.5 ** (1 / 16), rel=1e-6)


def test_strong_gates_forget_and_open_ones_keep():
    mixer = build(head_dim=8).double()
    x = torch.randn(1, 40, 32, dtype=torch.float64)
    after = {}
    for bias in (-1e5, 1e5):
        with torch.no_grad():
            mixer.gate.bias.fill_(bias)
        after[bias] = [mixer(x[:, begin:])[1].memory for begin in (0, 39)]
    torch.testing.assert_close(*after[-1e5], rtol=0, atol=1e-15)  # only the last token is left
    with torch.no_grad():
        _, k, v, _, _ = mixer._split(mixer.inputs.linear(x))
    torch.testing.assert_close(after[1e5][0], torch.einsum("bthk,bthv->bhkv", k, v), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("preset", "billions"), [("gla-340m", 0.34), ("gla-1.3b", 1.3)])
def test_presets(preset, billions):
    assert lookup(preset).name == "gla" and set(lookup("gla").presets) == set(ARCHITECTURE.presets)
    with torch.device("meta"):
        model = build_model(resolve(preset))
    assert model.num_parameters(embedding=True) / 1e9 == pytest.approx(billions, rel=0.02)
    assert model.blocks[0].mixer.heads == 4 and model.blocks[0].mixer.key * 8 == model.config.width


def test_the_mixer_has_four_times_the_square_of_the_width():
    with torch.device("meta"):
        mixer = build(width=1024, head_dim=256)
    assert sum(p.numel() for p in mixer.parameters()) == pytest.approx(4 * 1024**2, rel=0.01)


def test_transfer_times_values_is_what_the_memory_answers():
    mixer = build(head_dim=8).double()
    x = torch.randn(2, 30, 32, dtype=torch.float64)
    segments = torch.arange(30).div(11, rounding_mode="floor").expand(2, -1)
    context = Context(segments=segments, time=plan(segments, None, 2, 30, x.device)[0])
    with torch.no_grad():
        mixer.norm.weight.fill_(1.0)
        matrix = mixer.transfer(x, context)
        _, _, v, z, _ = mixer._split(mixer.inputs.linear(x))
        o = torch.einsum("bhts,bshv->bthv", matrix, v)
        o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        y = mixer.out(o.flatten(2) * torch.nn.functional.silu(z))
        torch.testing.assert_close(mixer(x, None, Context(segments=segments))[0], y, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_dim": 0}, "head_dim must be positive"),
        ({"heads": 0}, "heads must be positive"),
        ({"gate_rank": 0}, "gate_rank must be positive"),
        ({"gate_norm": 0.0}, "gate_norm must be positive"),
        ({"head_dim": 5}, "must be a whole number"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        GLAConfig(**settings)


def test_a_width_that_heads_do_not_divide():
    with pytest.raises(ConfigError, match="not a multiple of head_dim"):
        build(width=40, head_dim=16)
