"""Decoding in one compiled pass gives what the mixer's general path gives, with its own state or in the state's memory."""

from __future__ import annotations

import pytest
import torch

from orrery.mixers.gated_deltanet import GatedDeltaNet, GatedDeltaNetConfig
from orrery.nn.contract import Context, Place
from orrery.ops.backend import current_backend, forget_backends, use_backend
from orrery.testing.subject import perturb

pytest.importorskip("numba")

SETTINGS = [
    {"head_dim": 8},
    {"heads": 2, "head_dim": 5, "expand_v": 2.2, "negative": True, "conv": 3},
    {"heads": 1, "head_dim": 8, "gate": False, "conv": 1},
    {"heads": 3, "head_dim": 4, "decay": False},
    {"heads": 2, "value_heads": 6, "head_dim": 4, "expand_v": 1.5},
]


def build(settings, dtype=torch.float32):
    torch.manual_seed(0)
    mixer = GatedDeltaNet(GatedDeltaNetConfig(**settings), Place(width=32))
    perturb(mixer, 1, size=0.5)
    return mixer.to(dtype)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("donate", [False, True])
def test_equals_the_general_path(settings, donate):
    mixer, exact = build(settings), build(settings, torch.float64)
    x = torch.randn(3, 12, 32, generator=torch.Generator().manual_seed(2))
    whole, end = exact(x.double())
    state = mixer(x[:, :4])[1]  # a state with a history
    forget_backends()
    with torch.no_grad():
        for t in range(4, 12):
            y, state = mixer(x[:, t : t + 1], state, Context(donate=donate))
            assert (y[:, 0] - whole[:, t]).abs().max() <= 1e-5 * whole.abs().max()
    assert current_backend()["gated_delta_step"] == "numba"
    assert (state.memory - end.memory).abs().max() <= 1e-5 * end.memory.abs().max()
    assert torch.equal(state.conv, end.conv.float()) or (state.conv - end.conv).abs().max() < 1e-5
    assert state.clock.tolist() == [[0, 12]] * 3


def test_extreme_gates():
    mixer, exact = build(SETTINGS[0]), build(SETTINGS[0], torch.float64)
    x = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(3))
    for bias in (-200.0, 100.0, 1e4):
        for module in (mixer, exact):
            module.decay_bias.data.fill_(bias)
        with torch.no_grad():
            state, slow = mixer(x[:, :5])[1], exact(x[:, :5].double())[1]
            y, state = mixer(x[:, 5:], state)
            right, slow = exact(x[:, 5:].double(), slow)
        assert (y - right).abs().max() <= 1e-5 * right.abs().max()
        assert (state.memory - slow.memory).abs().max() <= 1e-5 * slow.memory.abs().max()


def test_donated_memory_is_reused_and_other_memory_is_not():
    mixer, x = build(SETTINGS[0]), torch.randn(2, 3, 32)
    with torch.no_grad():
        state = mixer(x[:, :2])[1]
        kept = state.memory.clone()
        after = mixer(x[:, 2:], state)[1]
        assert torch.equal(state.memory, kept) and after.memory.data_ptr() != state.memory.data_ptr()
        given = mixer(x[:, 2:], state, Context(donate=True))[1]
    assert given.memory.data_ptr() == state.memory.data_ptr()
    assert torch.equal(given.memory, after.memory) and torch.equal(given.conv, after.conv)


def test_what_needs_a_gradient_or_asks_for_torch_takes_the_general_path():
    mixer, x = build(SETTINGS[0]), torch.randn(2, 3, 32)
    state = mixer(x[:, :2])[1]
    forget_backends()
    y, _ = mixer(x[:, 2:], state)
    assert y.requires_grad and current_backend()["gated_delta_step"] == "torch"
    with torch.no_grad(), use_backend("torch"):
        slow, _ = mixer(x[:, 2:], state)
    assert current_backend()["gated_delta_step"] == "torch"
    with torch.no_grad():
        fast, _ = mixer(x[:, 2:], state)
    assert current_backend()["gated_delta_step"] == "numba+torch"
    assert torch.allclose(fast, slow, atol=1e-5) and torch.allclose(slow, y, atol=1e-6)
