"""Gated DeltaNet against a float64 loop and against transformers' layer with the same weights; DeltaNet as its setting."""

from __future__ import annotations

import math

import pytest
import torch

from oracles.gated_deltanet import gated_deltanet as oracle
from orrery.core.errors import ConfigError
from orrery.core.registry import lookup
from orrery.mixers.gated_deltanet import ARCHITECTURE, DELTANET, GatedDeltaNet, GatedDeltaNetConfig
from orrery.models.build import build as build_model
from orrery.models.build import create_model, resolve
from orrery.models.config import DecoderConfig
from orrery.nn.contract import Context, Place
from orrery.nn.timeline import plan
from orrery.testing.mixers import checks_for

WIDTH, HEADS, K, V = 32, 3, 8, 16


def build(width=WIDTH, **settings):
    return GatedDeltaNet(GatedDeltaNetConfig(**settings), Place(width=width))


@pytest.mark.parametrize(
    "check", [c for c in checks_for("gated-deltanet", oracle=oracle) if c.name == "oracle"], ids=str
)
def test_float64_loop(check):
    assert not check.disabled
    check.run()


def qwen_layer():
    pytest.importorskip("transformers")
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    config = Qwen3NextConfig(
        hidden_size=WIDTH, num_hidden_layers=1, layer_types=["linear_attention"], vocab_size=16, rms_norm_eps=1e-5,
        linear_num_key_heads=HEADS, linear_num_value_heads=HEADS, linear_key_head_dim=K, linear_value_head_dim=V,
    )  # fmt: skip
    return Qwen3NextGatedDeltaNet(config, 0)


def take(mixer, layer):
    """Weights of transformers' layer, which keeps q, k, v, z of a head together, and b beside a."""
    qkvz = layer.in_proj_qkvz.weight.unflatten(0, (HEADS, -1)).split([K, K, V, V], 1)
    ba = layer.in_proj_ba.weight.unflatten(0, (HEADS, 2)).unbind(1)
    with torch.no_grad():
        mixer.inputs.weight.copy_(torch.cat([part.flatten(0, 1) for part in qkvz] + list(ba)))
        mixer.conv.weight.copy_(layer.conv1d.weight[:, 0])
        mixer.decay_log.copy_(layer.A_log)
        mixer.decay_bias.copy_(layer.dt_bias)
        mixer.norm.weight.copy_(layer.norm.weight)
        mixer.out.weight.copy_(layer.out_proj.weight)


@pytest.mark.parametrize("length", [1, 37, 100])
def test_transformers_layer(length):
    """Outputs and gradients; float32, since that layer's recurrence is float32 whatever its weights are."""
    layer, mixer = qwen_layer(), build(head_dim=K)
    assert mixer.heads == HEADS
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():  # defaults hide mistakes
            parameter.add_(0.3 * torch.randn_like(parameter))
    take(mixer, layer)
    x = torch.randn(2, length, WIDTH, requires_grad=True)
    weight = torch.randn(2, length, WIDTH)
    theirs, (ours, _) = layer(x), mixer(x)
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    right = torch.autograd.grad((theirs * weight).sum(), [x, layer.out_proj.weight, layer.dt_bias, layer.conv1d.weight])
    mine = torch.autograd.grad((ours * weight).sum(), [x, mixer.out.weight, mixer.decay_bias, mixer.conv.weight])
    for a, b in zip(mine, right, strict=True):
        assert (a.reshape(b.shape) - b).abs().max() <= 1e-4 * b.abs().max()


def test_initialisation_is_the_paper_s():
    mixer = build(width=512, heads=400, head_dim=2)
    decay, step = mixer.decay_log.exp(), torch.nn.functional.softplus(mixer.decay_bias)
    assert decay.min() > 0 and decay.max() <= 16
    assert decay.mean().item() == pytest.approx(8, abs=5 * 16 / math.sqrt(12 * 400))
    assert step.min() >= 0.00099 and step.max() <= 0.101
    assert step.log().mean().item() == pytest.approx(math.log(1e-2), abs=5 * math.log(100) / math.sqrt(12 * 400))
    assert mixer.inputs.weight.abs().max() <= 512**-0.5
    assert mixer.inputs.weight.std().item() == pytest.approx((3 * 512) ** -0.5, rel=0.02)


def test_sizes_are_the_paper_s():
    """Six times the square of the width, and nine heads of 128 at width 1536."""
    with torch.device("meta"):
        mixer = build(width=1536)
    assert (mixer.heads, mixer.key, mixer.value) == (9, 128, 256)
    assert sum(p.numel() for p in mixer.parameters()) == pytest.approx(6 * 1536**2, rel=0.005)


def size(config: DecoderConfig) -> float:
    with torch.device("meta"):
        return build_model(config).num_parameters(embedding=True) / 1e9


@pytest.mark.parametrize(
    ("preset", "billions"),
    [("gated-deltanet-0.4b", 0.52), ("gated-deltanet-1.3b", 1.31), ("deltanet-340m", 0.34), ("deltanet-1.3b", 1.3)],
)
def test_presets(preset, billions):
    """The first is named 0.4B by its authors, and has 0.52 with the embedding."""
    assert lookup(preset).name == preset.rsplit("-", 1)[0]
    assert size(resolve(preset)) == pytest.approx(billions, rel=0.05)
    assert {*ARCHITECTURE.presets, *DELTANET.presets} >= {preset}


def test_deltanet_has_neither_decay_nor_gate():
    model = create_model("deltanet", size="nano", seed=0)
    mixer = model.blocks[0].mixer
    assert mixer.decay_log is None and mixer.value == mixer.key and mixer.heads * mixer.key == mixer.place.width
    assert mixer.inputs.out_features == 3 * mixer.place.width + mixer.heads
    plain = create_model("gated-deltanet", size="nano", seed=0)
    assert plain.blocks[0].mixer.decay_log is not None
    assert model.num_parameters() == pytest.approx(plain.num_parameters(), rel=0.04)


def test_negative_eigenvalues_flip_the_memory():
    """With beta 2 a token turns what is stored under its key into its opposite; with beta at most 1 it cannot."""
    for negative, least in ((False, 0.0), (True, -1.0)):
        mixer = build(head_dim=K, negative=negative, gate=False).double()
        with torch.no_grad():
            mixer.inputs.weight[-2 * HEADS : -HEADS] = 100.0  # beta -> its maximum for a positive input
            mixer.decay_log.fill_(-50.0)  # no decay
        x = torch.full((1, 1, WIDTH), 1000.0, dtype=torch.float64)  # so that the 1e-6 under the norm is nothing
        state = mixer.init_state(1, dtype=torch.float64)
        zero, one = torch.zeros_like(state.memory), torch.eye(K, V, dtype=torch.float64).expand_as(state.memory)
        after = mixer(x, state._replace(memory=one))[1].memory - mixer(x, state._replace(memory=zero))[1].memory
        turned = torch.linalg.eigvalsh(after[0, 0, :, :K]).min().item()
        assert turned == pytest.approx(least, abs=1e-5)


def test_transfer_times_values_is_the_memory_s_answer():
    mixer = build(head_dim=K, gate=False).double()
    x = torch.randn(2, 30, WIDTH, dtype=torch.float64)
    seen = []
    mixer.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    context = Context()
    y, _ = mixer(x, None, context)
    context = context.replace(time=plan(None, None, 2, 30, x.device)[0])
    matrix = mixer.transfer(x, context)
    values = mixer._project(mixer.inputs(x), None, context)[2]
    assert torch.allclose(torch.einsum("bhts,bshv->bthv", matrix, values), seen[0], rtol=0, atol=1e-12)
    assert y.shape == x.shape


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_dim": 0}, "head_dim must be positive"),
        ({"heads": -1}, "heads must be positive"),
        ({"conv": 0}, "conv must be 1 tap or more"),
        ({"head_dim": 5, "expand_v": 1.5}, "must be a whole number"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        GatedDeltaNetConfig(**settings)
