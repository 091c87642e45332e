"""RetNet: its decays, its forms written out as the paper has them, its sizes and settings. (Loops: the contract checks.)"""

from __future__ import annotations

import math

import pytest
import torch

from orrery.core.errors import ConfigError
from orrery.core.registry import lookup
from orrery.mixers.retnet import RetNet, RetNetConfig, retnet_decays
from orrery.models.build import build as build_model
from orrery.models.build import create_model, resolve
from orrery.nn.contract import Context, Place
from orrery.nn.timeline import plan


def build(width=32, dtype=torch.float64, **settings):
    return RetNet(RetNetConfig(**settings), Place(width=width)).to(dtype)


def test_decays_are_the_paper_s():
    assert retnet_decays(4) == pytest.approx([math.log(1 - 2.0**-e) for e in (5, 6, 7, 8)])
    assert retnet_decays(3, 8.0) == pytest.approx([math.log(1 - 2.0**-e) for e in (5, 6.5, 8)])


def test_parallel_form_of_the_paper():
    """Equation 5: (Q K^T * D) V with the rotation as complex factors, then norm, gate and the way out."""
    torch.manual_seed(0)
    mixer, x = build(head_dim=8), torch.randn(2, 50, 32, dtype=torch.float64)
    q, k, v, z = mixer.inputs.linear(x).split([32, 32, 64, 64], -1)
    turns = torch.arange(50)[:, None] * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    turn = torch.polar(torch.ones_like(turns), turns)[:, None]
    q, k = (torch.view_as_complex(part.reshape(2, 50, 4, 4, 2).contiguous()) * turn for part in (q, k))
    scores = torch.einsum("bthi,bshi->bhts", q, k.conj()).real / math.sqrt(8)
    steps = (torch.arange(50)[:, None] - torch.arange(50)).double()
    decay = torch.stack([(1 - 2.0 ** (-5 - h)) ** steps.clamp(min=0) for h in range(4)]).tril()
    y = torch.einsum("bhts,bshv->bthv", scores * decay, v.reshape(2, 50, 4, 16))
    y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    want = mixer.out(y.flatten(2) * torch.nn.functional.silu(z))
    assert (mixer(x)[0] - want).abs().max() < 1e-12
    matrix = mixer.transfer(x, Context(time=plan(None, None, 2, 50, x.device)[0]))
    assert (matrix - scores * decay).abs().max() < 1e-12


@pytest.mark.parametrize(("preset", "billions"), [("retnet-1.3b", 1.31), ("retnet-2.7b", 2.65), ("retnet-6.7b", 6.65)])
def test_presets(preset, billions):
    assert lookup(preset).name == "retnet"
    with torch.device("meta"):
        model = build_model(resolve(preset))
    assert model.num_parameters(embedding=True) / 1e9 == pytest.approx(billions, rel=0.03)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_dim": 7}, "head_dim must be even"),
        ({"head_dim": 24}, "width 32 is not a multiple"),
        ({"heads": 0}, "heads must be positive"),
        ({"expand_v": 0}, "expand_v must be positive"),
        ({"chunk": 0}, "chunk must be positive"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(**settings)


@pytest.mark.parametrize("rows", [1, 3])
def test_decoding_steps_are_the_model(rows):
    """The prepared steps (:mod:`orrery.nn.stepping`) after a prompt, token by token, against calls of the model."""
    model = create_model("retnet", width=32, depth=2, vocab_size=50, **{"mixer.head_dim": 8}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    tokens = torch.randint(0, 50, (rows, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        stepper, want = model.stepper(model(tokens[:, :4]).state, 12), model(tokens).logits
        assert stepper is not None
        for t in range(4, 12):
            assert (stepper(tokens[:, t]) - want[:, t]).abs().max() < 2e-4 * want[:, t].abs().max()
