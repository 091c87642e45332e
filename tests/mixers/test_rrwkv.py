"""RRWKV: RWKV-4 where it has no mediums; mediums reach tokens that RWKV-4's average has forgotten."""

from __future__ import annotations

import pytest
import torch

import orrery
from orrery.core.errors import ConfigError
from orrery.core.registry import lookup
from orrery.mixers.rrwkv import RRWKV, RRWKVConfig
from orrery.mixers.rwkv4 import RWKV4, RWKV4Config
from orrery.nn.contract import Place
from orrery.testing.subject import perturb


def test_without_mediums_it_is_rwkv4():
    x = torch.randn(2, 50, 24, dtype=torch.float64)
    ours, plain = (cls(config, Place(width=24, layer=1, depth=3)).double() for cls, config in (
        (RRWKV, RRWKVConfig(segment=None)), (RWKV4, RWKV4Config())))  # fmt: skip
    perturb(plain, 0)
    ours.load_state_dict(plain.state_dict())
    assert torch.equal(ours(x)[0], plain(x)[0])
    models = [orrery.create_model(name, width=32, depth=2, vocab_size=50, seed=0, **more).double().eval()
              for name, more in (("rrwkv", {"mixer.segment": None, "channel.segment": None}), ("rwkv4", {}))]  # fmt: skip
    perturb(models[1], 1)
    models[0].load_state_dict(models[1].state_dict())
    tokens = torch.randint(50, (2, 40))
    assert torch.equal(models[0](tokens).logits, models[1](tokens).logits)
    assert models[0].state_bytes(9) == models[1].state_bytes(9) and models[0].flops(9) == models[1].flops(9)


def test_mediums_carry_what_the_average_forgets():
    """With decays that forget within a few tokens, a token reads the segment before its own only through a medium."""
    found = []
    for segment in (None, 16):
        mixer = RRWKV(RRWKVConfig(segment=segment), Place(width=16)).double()
        perturb(mixer, 0, 0.5)
        with torch.no_grad():
            mixer.time_decay.fill_(2.0)
        x = torch.randn(1, 32, 16, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(mixer(x)[0][0, 31].sum(), x)
        found.append(gradient[0, :12].abs().max().item())
    assert found[0] < 1e-20 < 1e-4 < found[1]


def test_a_medium_is_read_only_when_its_segment_is_finished():
    mixer = RRWKV(RRWKVConfig(segment=8), Place(width=16)).double()
    perturb(mixer, 0, 0.5)
    with torch.no_grad():
        mixer.time_decay.fill_(3.0)
    x = torch.randn(1, 24, 16, dtype=torch.float64, requires_grad=True)
    y = mixer(x)[0]
    (inside,) = torch.autograd.grad(y[0, 7].sum(), x, retain_graph=True)
    (behind,) = torch.autograd.grad(y[0, 15].sum(), x)
    assert inside[0, :3].abs().max() < 1e-20 < 1e-5 < behind[0, :3].abs().max()


def test_it_says_that_it_is_a_reconstruction():
    assert "reconstruction" in lookup("rrwkv").summary and "withdrawn" in lookup("rrwkv").summary


@pytest.mark.parametrize("settings", [{"segment": 0}, {"hidden": -4}, {"reduction": 0}])
def test_impossible_settings(settings):
    with pytest.raises(ConfigError):
        RRWKVConfig(**settings)
