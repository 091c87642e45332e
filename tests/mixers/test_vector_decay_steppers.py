"""Compiled decoding of linear recurrences: the same scores as calls of the model, rows at different positions."""

from __future__ import annotations

import pytest
import torch

import orrery
from orrery.nn.state import map_state

MODELS = {
    "gla": {"heads": 3, "head_dim": 16, "gate_rank": 5, "gate_norm": 4.0},
    "hgrn2": {"head_dim": 16},
    "hgrn2(bound=False)": {"head_dim": 32},
    "rwkv6": {"head_dim": 16, "mix_rank": 4, "decay_rank": 6},
    "rwkv5": {"head_dim": 32},
    "qrnn": {"hidden": 40, "window": 3, "pooling": "ifo"},
    "qrnn(pooling=f,window=1)": {},
    "mingru": {"hidden": 48},
    "minlstm": {"hidden": 48, "conv": 1},
    "hgrn": {"hidden": 40, "theta": 50.0},
    "mlstm": {"inner": 96, "heads": 3, "conv": 3, "block": 8},
}


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_scores_are_those_of_the_model(name):
    settings = {f"mixer.{key}": value for key, value in MODELS[name].items()}
    model = orrery.create_model(name, width=64, depth=2, vocab_size=61, seed=1, **settings).eval()
    for p in model.parameters():  # parameters that start at 0 or 1 would hide mistakes
        p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    draw = torch.Generator().manual_seed(0)
    tokens, more = (torch.randint(0, 61, (3, n), generator=draw) for n in (9, 6))
    segments = torch.zeros(3, 9, dtype=torch.int64)
    segments[1, 4:] = -1
    for prompt, marks, rows in ((tokens, segments, more), (tokens[:1], None, more[:1])):
        before = state = model(prompt, segments=marks).state
        stepper = model.stepper(map_state(torch.clone, before), 17)
        assert stepper is not None
        assert all(block.mixer.stepper.__func__ is not orrery.nn.contract.Part.stepper for block in model.blocks)
        for t in range(6):
            out = model(rows[:, t : t + 1], state=state)
            state = out.state
            close = 2e-5 * float(out.logits.abs().max())
            assert torch.allclose(stepper(rows[:, t]), out.logits[:, 0], rtol=0, atol=close), t


@torch.inference_mode()
def test_the_state_that_was_given_is_left_alone():
    model = orrery.create_model("gla", width=64, depth=1, vocab_size=61, seed=1).eval()
    state = model(torch.zeros(1, 3, dtype=torch.int64)).state
    kept = map_state(torch.clone, state)
    stepper = model.stepper(state, 9)
    stepper(torch.tensor([5]))
    assert torch.equal(state.blocks[0][1].memory, kept.blocks[0][1].memory)
