"""RWKV-7: the channel mix and the value residual against float64 loops, published sizes, and what the frame hands on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import orrery
from oracles.rwkv7 import rwkv7 as oracle
from oracles.rwkv7 import rwkv7_channel as channel_oracle
from orrery.core.errors import ConfigError
from orrery.mixers.rwkv7 import RWKV7, RWKV7Channel, RWKV7ChannelConfig, RWKV7Config
from orrery.models.build import build, resolve
from orrery.nn.contract import Context, Place
from orrery.nn.timeline import plan
from orrery.optim.groups import parameter_groups

SEGMENTS = torch.tensor([[0] * 5 + [1] * 8, [3] * 11 + [-1] * 2])


def randomised(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module.double()


def arrays(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def test_channel_mix_is_the_loop():
    mixer = randomised(RWKV7Channel(RWKV7ChannelConfig(hidden=24), Place(width=16)))
    x = torch.randn(2, 13, 16, dtype=torch.float64)
    for segments in (None, SEGMENTS):
        y, _ = mixer(x, None, Context(segments=segments))
        expected = channel_oracle(arrays(mixer), {}, x.numpy(), None if segments is None else segments.numpy())
        assert np.abs(y.detach().numpy() - expected).max() < 1e-12


def test_only_the_four_projections_decay():
    groups = parameter_groups(RWKV7(RWKV7Config(head_dim=8), Place(width=16, layer=1, depth=2)), weight_decay=0.1)
    decaying = {name for group in groups if group["weight_decay"] for name in group["names"]}
    assert decaying == {f"{name}.weight" for name in ("receptance", "key", "value", "out")}


def test_later_layers_read_the_values_of_the_first():
    """Two mixers on one ctx: what the second reads is what the first computed, and gradients flow back there."""
    first, second = (randomised(RWKV7(RWKV7Config(head_dim=8), Place(width=16, layer=layer, depth=2))) for layer in (0, 1))
    assert first.residual is None and second.residual is not None
    x, z = (torch.randn(2, 13, 16, dtype=torch.float64) for _ in range(2))
    before = torch.cat([torch.zeros(2, 1, 16, dtype=torch.float64), x[:, :-1]], 1)
    values = torch.lerp(before, x, first.mix_ratios[3]) @ first.value.weight.t()
    time, _ = plan(None, None, 2, 13, x.device)
    ctx = Context(time=time, shared={})
    first(x, None, ctx)
    y, _ = second(z, None, ctx)
    expected = oracle(arrays(second), {"head_dim": 8}, z.numpy(), first=values.detach().numpy())
    assert np.abs(y.detach().numpy() - expected).max() < 1e-11
    (gradient,) = torch.autograd.grad(y.sum(), first.value.weight)
    assert gradient.abs().max() > 1e-6
    alone, _ = second(z)
    assert np.abs(alone.detach().numpy() - oracle(arrays(second), {"head_dim": 8}, z.numpy())).max() < 1e-11


def test_layers_run_in_two_goes_are_the_model():
    model = orrery.create_model("rwkv7", width=32, depth=3, head_dim=16, vocab_size=11, seed=0)
    randomised(model)
    tokens = torch.randint(11, (2, 9))
    h = model.embed_norm(model.embed(tokens))
    time, _ = plan(None, None, 2, 9, tokens.device)
    ctx = Context(time=time, shared={})
    for start, stop in ((0, 2), (2, 3)):
        h, _ = model.run(h, start, stop, None, ctx)
    assert torch.allclose(model.norm(h), model(tokens).hidden, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("rwkv-7-0.1b", 191_034_624),
        ("rwkv-7-0.4b", 450_767_872),
        ("rwkv-7-1.5b", 1_527_404_544),
        ("rwkv-7-2.9b", 2_947_735_040),
    ],
)
def test_published_sizes_to_the_last_parameter(preset, parameters):
    with torch.device("meta"):
        assert build(resolve(preset)).num_parameters(embedding=True) == parameters


def test_impossible_settings():
    with pytest.raises(ConfigError, match="head_dim must be 2 or more"):
        RWKV7Config(head_dim=1)
    with pytest.raises(ConfigError, match="gate_rank must be positive"):
        RWKV7Config(gate_rank=0)
    with pytest.raises(ConfigError, match="not a multiple"):
        RWKV7(RWKV7Config(head_dim=24), Place(width=32))
