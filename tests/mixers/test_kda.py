"""Kimi Delta Attention against transformers' layer with the same weights, and its initialisation."""

from __future__ import annotations

import math

import pytest
import torch

from orrery.core.errors import ConfigError
from orrery.mixers.kda import KDA, KDAConfig
from orrery.nn.contract import Place

WIDTH, HEADS, K = 32, 3, 8


def their_layer():
    pytest.importorskip("transformers")
    from transformers import KimiLinearConfig
    from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention

    config = KimiLinearConfig(
        hidden_size=WIDTH, num_hidden_layers=1, layer_types=["linear_attention"], vocab_size=16, linear_num_heads=HEADS,
        linear_head_dim=K, mlp_layer_types=["dense"], pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    layer = KimiLinearDeltaAttention(config, 0)
    with torch.no_grad():
        for parameter in layer.parameters():  # defaults hide mistakes
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return layer


@pytest.mark.parametrize("length", [1, 37, 100])
def test_transformers_layer(length):
    """Outputs and gradients; float32, since that layer's recurrence is float32 whatever its weights are."""
    layer, mixer = their_layer(), KDA(KDAConfig(head_dim=K, heads=HEADS), Place(width=WIDTH))
    rows = [layer.q_proj, layer.k_proj, layer.v_proj, layer.forget_gate.f_a_proj, layer.g_a_proj, layer.b_proj]
    with torch.no_grad():
        mixer.inputs.weight.copy_(torch.cat([linear.weight for linear in rows]))
        mixer.conv.weight.copy_(layer.conv1d.weight[:, 0])
        mixer.decay.weight.copy_(layer.forget_gate.f_b_proj.weight)
        mixer.decay_log.copy_(layer.forget_gate.A_log.flatten())
        mixer.decay_bias.copy_(layer.forget_gate.dt_bias)
        mixer.gate.weight.copy_(layer.g_b_proj.weight)
        mixer.norm.weight.copy_(layer.o_norm.weight)
        mixer.out.weight.copy_(layer.o_proj.weight)
    x = torch.randn(2, length, WIDTH, requires_grad=True)
    weight = torch.randn(2, length, WIDTH)
    theirs, (ours, _) = layer(x), mixer(x)
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    gate = layer.forget_gate
    right = torch.autograd.grad((theirs * weight).sum(), [x, gate.f_b_proj.weight, gate.dt_bias, layer.conv1d.weight, layer.o_proj.weight])
    leaves = [x, mixer.decay.weight, mixer.decay_bias, mixer.conv.weight, mixer.out.weight]
    mine = torch.autograd.grad((ours * weight).sum(), leaves, materialize_grads=True)
    for a, b in zip(mine, right, strict=True):
        assert (a.reshape(b.shape) - b).abs().max() <= 1e-4 * max(b.abs().max(), 1e-3)


def test_initialisation_is_the_paper_s():
    mixer = KDA(KDAConfig(heads=400, head_dim=2), Place(width=64))
    rate, step = mixer.decay_log.exp(), torch.nn.functional.softplus(mixer.decay_bias)
    assert rate.min() >= 1 and rate.max() <= 16
    assert rate.mean().item() == pytest.approx(8.5, abs=5 * 15 / math.sqrt(12 * 400))
    assert step.min() >= 0.00099 and step.max() <= 0.101


def test_bounded_decays_start_where_they_can_be_learned():
    """Every channel's decay moves with its bias: the sigmoid's slope, which at A = 16 would be below 1e-15."""
    mixer = KDA(KDAConfig(heads=100, head_dim=2, low_rank=False, bound=-5.0), Place(width=64))
    bias = mixer.decay_bias.detach().unflatten(0, (100, 2)).requires_grad_()
    g_log = -5.0 * torch.sigmoid(mixer.decay_log.detach().exp()[:, None] * bias)
    assert torch.autograd.grad(g_log.sum(), bias)[0].abs().min() > 1e-3
    assert g_log.min() > -0.6 and g_log.max() < -0.004


@pytest.mark.parametrize("settings", [{"head_dim": 0}, {"heads": -1}, {"conv": 0}])
def test_impossible_settings(settings):
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} must be"):
        KDAConfig(**settings)
