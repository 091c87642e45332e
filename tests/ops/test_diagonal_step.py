"""Decoding by prepared passes: the same scores as one call of the model per token, for Mamba and Griffin."""

from __future__ import annotations

import pytest
import torch

from orrery.core.seeds import seed_everything
from orrery.models.build import create_model
from orrery.ops.backend import current_backend, forget_backends

MODELS = {
    "mamba": {"mixer.state": 5, "mixer.hidden": 72},
    "mamba other": {"mixer.state": 3, "mixer.conv": 1, "mixer.conv_bias": False, "mixer.bias": True},
    "griffin": {"mixer.head_dim": 8, "attention.window": 6},
    "rg-lru": {"mixer.head_dim": 16, "mixer.conv": 2},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 3])
def test_steps_are_calls(name, batch):
    from orrery.models.stepper import make_stepper

    seed_everything(0)
    model = create_model(name.split()[0], width=32, depth=3, vocab_size=50, **MODELS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases start at 0
            parameter.add_(0.1 * torch.randn_like(parameter))
        tokens = torch.randint(0, 50, (batch, 20))
        want = model(tokens).logits
        out = model(tokens[:, :9])
        forget_backends()
        stepper = make_stepper(model, out.state, 32)
        assert stepper is not None and current_backend()["stepper"] == "numba"
        assert not stepper.run.general  # every part has a form of its own
        for t in range(9, 20):
            torch.testing.assert_close(stepper(tokens[:, t]), want[:, t], rtol=1e-4, atol=1e-4)


def test_a_fresh_state_goes_the_general_way():
    """RG-LRU takes a document's first token whole, which the prepared pass does not."""
    from orrery.models.stepper import make_stepper

    seed_everything(0)
    model = create_model("rg-lru", width=32, depth=1, vocab_size=50, **{"mixer.head_dim": 16}).eval()
    tokens = torch.randint(0, 50, (2, 4))
    with torch.no_grad():
        want = model(tokens).logits
        stepper = make_stepper(model, model.init_state(2), 8)
        for t in range(4):
            torch.testing.assert_close(stepper(tokens[:, t]), want[:, t], rtol=1e-4, atol=1e-4)
