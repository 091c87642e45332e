"""Where Canon-B stands in a mixer (Physics of LMs 4.1): on queries, keys and values, behind their norms; gates go by it."""

from __future__ import annotations

import pytest
import torch

import orrery
from orrery.nn.contract import Context
from orrery.nn.timeline import plan

GATED = {"retnet": 2, "lightning": 1, "gla": 2, "xlstm-large": 3, "transformer(mixer.gate=True)": 1, "latent-attention(mixer.gate=True)": 1}
"""Architectures whose input projection makes gates too, and the number of them."""


def build(name: str) -> torch.nn.Module:
    model = orrery.create_model(name, width=64, depth=2, vocab_size=31, seed=0, canon="b").double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.mark.parametrize("name", GATED)
@torch.no_grad()
def test_gates_see_their_own_token_alone(name):
    model = build(name)
    inputs, x = model.blocks[1].mixer.inputs, torch.randn(2, 6, 64, dtype=torch.float64)
    ctx = Context(time=plan(None, None, 2, 6, x.device)[0])
    p, raw = inputs(x, None, ctx)[0], inputs.linear(x)
    seen = (p != raw).any(0).any(0)
    assert seen[: inputs.convolved].all() and not seen[inputs.convolved :].any()
    assert 0 < inputs.convolved < p.shape[-1] and inputs.conv.weight.shape == (inputs.convolved, 4)
    if name == "retnet":
        assert inputs.convolved == 64 + 64 + 128


@pytest.mark.parametrize("name", [*GATED, "transformer(mixer.qk_norm=True)"])
@torch.no_grad()
def test_decoding_goes_on_as_reading_does(name):
    model = build(name).float()
    tokens = torch.randint(0, 31, (2, 9), generator=torch.Generator().manual_seed(2))
    whole = model(tokens).logits
    stepper = model.stepper(model(tokens[:, :4]).state, 16)
    for t in range(4, 9):
        torch.testing.assert_close(stepper(tokens[:, t]), whole[:, t], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("whole", [False, True])
@torch.no_grad()
def test_it_stands_behind_the_norms_of_queries_and_keys(whole):
    mixer = build(f"transformer(mixer.qk_norm=True,norm_whole={whole},rope=0)").blocks[1].mixer
    x = torch.randn(2, 6, 64, dtype=torch.float64)
    ctx = Context(time=plan(None, None, 2, 6, x.device)[0])
    q, k, v, _, kept = mixer._project(x, None, ctx)
    parts = list(mixer.inputs.linear(x).chunk(3, -1))
    for part, norm in ((0, mixer.q_norm), (1, mixer.k_norm)):
        heads = parts[part] if whole else parts[part].unflatten(-1, (-1, mixer.head_dim))
        root = (heads.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        parts[part] = (heads / root * norm.weight).view(2, 6, 64)
    normed = torch.cat(parts, -1)
    wanted = normed.clone()
    for tap in range(4):
        back = 3 - tap
        wanted[:, back:] += mixer.inputs.conv.weight[:, tap] * normed[:, : 6 - back]
    torch.testing.assert_close(torch.cat([q, k, v], 2).flatten(2), wanted)
    torch.testing.assert_close(kept, normed[:, -3:])
