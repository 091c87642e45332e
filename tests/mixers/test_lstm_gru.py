"""LSTM and GRU layers against torch's own with the same weights, stacked as the frame stacks them; their initialisation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orrery.core.errors import ConfigError
from orrery.mixers.gru import GRU, GRUConfig
from orrery.mixers.lstm import LSTM, LSTMConfig
from orrery.models.build import create_model
from orrery.nn.contract import Context, Place

KINDS = {"lstm": (LSTM, LSTMConfig, nn.LSTM), "gru": (GRU, GRUConfig, nn.GRU)}


def pair(kind, width=20, hidden=None, dtype=torch.float32):
    """Our layer and torch's with the same random weights; torch's has a second bias that ours adds to the first."""
    mixer_class, config, peer_class = KINDS[kind]
    torch.manual_seed(0)
    mixer = mixer_class(config(hidden=hidden), Place(width=width)).to(dtype)
    peer = peer_class(width, hidden or width, batch_first=True, dtype=dtype)
    with torch.no_grad():
        for parameter in (*mixer.parameters(), *peer.parameters()):
            parameter.copy_(0.3 * torch.randn_like(parameter))
        size = mixer.hidden
        mixer.inputs.linear.weight.copy_(peer.weight_ih_l0)
        mixer.recurrent.copy_(peer.weight_hh_l0)
        mixer.inputs.linear.bias.copy_(peer.bias_ih_l0 + peer.bias_hh_l0)
        if kind == "gru":
            mixer.inputs.linear.bias[2 * size :] = peer.bias_ih_l0[2 * size :]
            mixer.inner_bias.copy_(peer.bias_hh_l0[2 * size :])
    return mixer, peer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-8)])
@pytest.mark.parametrize("hidden", [None, 28])
def test_equals_torch(kind, dtype, tolerance, hidden):
    mixer, peer = pair(kind, hidden=hidden, dtype=dtype)
    x = torch.randn(3, 41, 20, dtype=dtype)
    want = peer(x)[0]
    if mixer.out is not None:
        want = mixer.out(want)
    got, state = mixer(x)
    assert (got - want).abs().max() <= tolerance * want.abs().max()
    mine = torch.autograd.grad(got.square().sum(), [mixer.inputs.linear.weight, mixer.recurrent])
    right = torch.autograd.grad(want.square().sum(), [peer.weight_ih_l0, peer.weight_hh_l0])
    for one, other in zip(mine, right, strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()
    after = peer(x)[1]
    torch.testing.assert_close(state.h, (after[0] if kind == "lstm" else after)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_torch_s_layer_run_on_each(kind):
    mixer, peer = pair(kind, dtype=torch.float64)
    x = torch.randn(2, 30, 20, dtype=torch.float64)
    segments = torch.tensor([[0] * 7 + [1] * 20 + [2] * 3, [5] * 18 + [-1] * 12])
    got, _ = mixer(x, None, Context(segments=segments))
    for row, low, high in ((0, 0, 7), (0, 7, 27), (0, 27, 30), (1, 0, 18)):
        torch.testing.assert_close(got[row, low:high], peer(x[row : row + 1, low:high])[0][0])
    assert not got[1, 18:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_initialisation(kind):
    mixer = KINDS[kind][0](KINDS[kind][1](hidden=64), Place(width=256))
    bias = mixer.inputs.linear.bias
    assert torch.equal(bias[64:128], torch.ones(64)) and bias.sum() == 64
    for weight, fan_in in ((mixer.inputs.linear.weight, 256), (mixer.recurrent, 64), (mixer.out.weight, 64)):
        assert weight.abs().max() <= fan_in**-0.5
        assert weight.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", ["nano", "tiny"])
def test_ladder_and_frame(kind, size):
    """The hidden size absorbs what the width leaves; without one set there is no output projection."""
    model = create_model(kind, size=size)
    wanted = {"nano": 300_000, "tiny": 4_000_000}[size]
    assert model.num_parameters() == pytest.approx(wanted, rel=0.02)
    assert model.blocks[0].mixer.out is not None and model.config.tied
    assert create_model(kind, width=32, depth=1, hidden=None).blocks[0].mixer.out is None


@pytest.mark.parametrize("config", [LSTMConfig, GRUConfig])
def test_impossible_sizes(config):
    with pytest.raises(ConfigError, match="hidden must be positive"):
        config(hidden=0)
