"""Lightning attention: its rates over heads and layers, where positions enter, its sizes and settings."""

from __future__ import annotations

import pytest
import torch

from orrery.core.errors import ConfigError
from orrery.core.registry import lookup
from orrery.mixers.lightning import Lightning, LightningConfig, lightning_decays
from orrery.models.build import build as build_model
from orrery.models.build import create_model, resolve
from orrery.nn.contract import Context, Place
from orrery.nn.timeline import plan


def build(width=32, layer=0, depth=3, **settings):
    return Lightning(LightningConfig(**settings), Place(width=width, layer=layer, depth=depth)).double()


def close(ours, right, limit):
    assert ours.shape == right.shape
    assert (ours - right).abs().max() <= limit * right.abs().max()


def test_rates_fall_over_heads_and_layers():
    first, middle, last = (lightning_decays(8, layer, 3) for layer in range(3))
    assert first == pytest.approx([-(0.5**h) for h in range(1, 9)], rel=1e-4)
    assert middle == pytest.approx([rate / 2 for rate in first], rel=1e-4)
    assert max(last) > -1e-6 and min(last) > -1e-4
    assert lightning_decays(4, 0, 1)[0] == pytest.approx(-0.25, rel=1e-4)


def test_only_the_first_layer_knows_positions():
    """And there a shift of all positions changes nothing, since LRPE-d is relative."""
    x, positions = torch.randn(2, 12, 32, dtype=torch.float64), torch.arange(12).expand(2, -1)
    first = build(head_dim=8)
    assert first.keys == 16
    shifted = first(x, ctx=Context(positions=positions + 1000))[0]
    stretched = first(x, ctx=Context(positions=positions * 3))[0]
    assert (shifted - first(x)[0]).abs().max() < 1e-9 < (stretched - first(x)[0]).abs().max()
    second = build(head_dim=8, layer=1)
    assert second.keys == 8 and second.theta_log is None
    with pytest.raises(ConfigError, match="cannot honour 'positions'"):
        second(x, ctx=Context(positions=positions))


def test_the_rates_of_positions_are_those_of_the_released_code():
    """From a turn of one radian a token to 10000^-2 nearly, over the channels of all heads."""
    first = build(head_dim=8)
    one = torch.ones(1, 2, 4, 8, dtype=torch.float64)
    q, _ = first._placed(one, one, Context(time=plan(None, None, 1, 2, one.device)[0]))
    want = 10000.0 ** (-2 * torch.arange(32, dtype=torch.float64) / 32)
    assert torch.allclose(q[0, 1, :, 8:].asin().flatten(), want, atol=0, rtol=1e-9)


def test_quadratic_form_of_the_paper():
    """[(Q K^T) * M] V with M_ts = exp(-s (t-s)), in the middle layer."""
    torch.manual_seed(0)
    mixer, x = build(head_dim=8, layer=1), torch.randn(2, 40, 32, dtype=torch.float64)
    q, k, v, u = (part.unflatten(-1, (4, 8)) for part in mixer.inputs.linear(x).chunk(4, -1))
    steps = (torch.arange(40)[:, None] - torch.arange(40)).double()
    rates = torch.tensor(lightning_decays(4, 1, 3), dtype=torch.float64)
    decay = (rates[:, None, None] * steps).exp().tril()
    silu = torch.nn.functional.silu
    matrix = torch.einsum("bthk,bshk->bhts", silu(q), silu(k)) * decay
    y = torch.einsum("bhts,bshk->bthk", matrix, v).flatten(2)
    want = mixer.out(y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * u.flatten(2))
    assert (mixer(x)[0] - want).abs().max() < 1e-12
    given = Context(time=plan(None, None, 2, 40, x.device)[0])
    assert (mixer.transfer(x, given) - matrix).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("preset", "millions"), [("transnormerllm-385m", 453), ("transnormerllm-1b", 1150), ("transnormerllm-7b", 7200)]
)
def test_presets(preset, millions):
    assert lookup(preset).name == "lightning"
    with torch.device("meta"):
        model = build_model(resolve(preset))
    assert model.num_parameters(embedding=True) / 1e6 == pytest.approx(millions, rel=0.05)


def test_block_is_transnormer_s():
    model = create_model("lightning", width=64, depth=2, vocab_size=11, **{"mixer.head_dim": 16})
    assert not [name for name, _ in model.named_parameters() if "norm" in name]
    assert model.config.blocks[0].channel["activation"] == "identity"
    assert [block.mixer.keys for block in model.blocks] == [32, 16]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_dim": 0}, "head_dim must be positive"),
        ({"head_dim": 24}, "width 32 is not a multiple"),
        ({"heads": 0}, "heads must be positive"),
        ({"chunk": 0}, "chunk must be positive"),
        ({"lrpe": "second"}, "lrpe 'second' must be one of"),
        ({"output_gate": "relu"}, "output_gate 'relu' must be one of"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(**settings)


@pytest.mark.parametrize("rows", [1, 3])
def test_decoding_steps_are_the_model(rows):
    """The prepared steps (:mod:`orrery.nn.stepping`) after a prompt, token by token, against calls of the model."""
    model = create_model("lightning", width=32, depth=2, vocab_size=50, **{"mixer.head_dim": 8}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    tokens = torch.randint(0, 50, (rows, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        stepper, want = model.stepper(model(tokens[:, :4]).state, 12), model(tokens).logits
        assert stepper is not None and not stepper.run.general
        for t in range(4, 12):
            close(stepper(tokens[:, t]), want[:, t], 2e-4)
