"""Decoding RWKV-7 and Kimi Delta Attention through compiled steps gives the scores of calls of the model."""

from __future__ import annotations

import pytest
import torch

import orrery
from orrery.nn.state import map_state

pytest.importorskip("numba")
MODELS = {
    "rwkv7": {"head_dim": 16},
    "kda": {"head_dim": 16},
    "kda-negative": {"head_dim": 8, "heads": 3, "negative": True, "conv": 2},
    "kda-bounded": {"head_dim": 8, "heads": 3, "low_rank": False, "bound": -5.0},
    "rwkv7 + kda": {"kda.head_dim": 16, "rwkv7.head_dim": 16},
    "transformer + rwkv7": {"transformer.head_dim": 16, "rwkv7.head_dim": 16},
}


def build(name):
    torch.manual_seed(0)
    model = orrery.create_model(name.partition("-")[0], width=32, depth=4, vocab_size=61, **MODELS[name])
    with torch.no_grad():
        for p in model.parameters():  # parameters that start at 0 or 1 would hide mistakes
            p.add_(0.2 * torch.randn_like(p))
    return model.eval()


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("broken", [False, True])
@torch.inference_mode()
def test_scores_are_those_of_the_model(name, broken):
    """`broken`: one layer has a projection that is no plain linear map, so that it takes its general path among the others."""
    model, draw = build(name), torch.Generator().manual_seed(0)
    if broken:
        part = model.blocks[3].mixer
        part.out = torch.nn.Sequential(part.out)
    tokens, more = (torch.randint(0, 61, (2, n), generator=draw) for n in (9, 6))
    before = state = model(tokens).state
    stepper = model.stepper(map_state(torch.clone, before), 15)
    for t in range(6):
        out = model(more[:, t : t + 1], state=state)
        state, scores = out.state, stepper(more[:, t])
        assert (scores - out.logits[:, 0]).abs().max() <= 2e-5 * out.logits.abs().max()
