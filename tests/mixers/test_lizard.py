"""Lizard's window, memory and settings; the float64 sums over pairs run with the contract checks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from orrery.core.errors import ConfigError
from orrery.mixers.lizard import Lizard, LizardConfig
from orrery.models.build import create_model
from orrery.nn.contract import Context, Place
from orrery.nn.timeline import plan


def build(width=32, **settings):
    torch.manual_seed(0)
    return Lizard(LizardConfig(**{"head_dim": 8, "window": 6, **settings}), Place(width=width)).double()


def values_of(mixer, x):
    return mixer.inputs.linear(x).unflatten(-1, (3, mixer.heads, mixer.head_dim))[:, :, 2]


@pytest.mark.parametrize("settings", [{}, {"norm": "joint", "rope": True}, {"norm": "none", "feature_map": "softmax"}])
def test_transfer_times_values_is_the_output(settings):
    """Blocks, caches and recurrence against the whole matrix; 40 tokens are six blocks and a rest."""
    mixer = build(**settings)
    x = torch.randn(2, 40, 32, dtype=torch.float64)
    segments = torch.arange(40).div(17, rounding_mode="floor").expand(2, -1)
    context = Context(segments=segments, time=plan(segments, None, 2, 40, x.device)[0])
    with torch.no_grad():
        y = mixer.out(torch.einsum("bhts,bshv->bthv", mixer.transfer(x, context), values_of(mixer, x)).flatten(2))
        torch.testing.assert_close(mixer(x, None, Context(segments=segments))[0], y, rtol=0, atol=1e-12)


def test_weights_sum_to_one_where_one_denominator_is_shared():
    x = torch.randn(1, 30, 32, dtype=torch.float64)
    context = Context(time=plan(None, None, 1, 30, x.device)[0])
    for settings, low, high in (({"norm": "joint", "sinks": 0}, 1, 1), ({"sinks": 0}, 2, 2), ({"norm": "joint"}, 0.05, 0.999)):
        total = build(**settings).transfer(x, context).sum(-1)
        assert low - 1e-12 <= total.min() and total.max() <= high + 1e-12


def test_a_window_as_long_as_the_text_is_softmax_attention():
    """With the memory shut out, no sinks: torch's own attention."""
    mixer = build(norm="none", sinks=0, window=50)
    x = torch.randn(2, 40, 32, dtype=torch.float64)
    q, k, v = mixer.inputs.linear(x).unflatten(-1, (3, mixer.heads, 8)).permute(2, 0, 3, 1, 4)
    with torch.no_grad():
        whole = mixer.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        far = mixer(x)[0]
        mixer.alpha.zero_()
        torch.testing.assert_close(far - mixer(x)[0], whole, rtol=0, atol=1e-12)


def test_softmax_features_are_shares_of_either_sign():
    """Hedgehog's map as LoLCATs has it: one softmax of x A, another of -x A."""
    mixer = build(feature_map="softmax", features=5)
    phi = mixer._features(torch.randn(2, 7, mixer.heads, 8, dtype=torch.float64), 1).detach().unflatten(-1, (2, 5))
    torch.testing.assert_close(phi.sum(-1), torch.ones_like(phi[..., 0]), rtol=0, atol=1e-12)
    torch.testing.assert_close(phi.prod(-2), phi.prod(-2)[..., :1].expand_as(phi[..., 0, :]), rtol=0, atol=1e-12)  # e^u e^-u


def test_features_of_any_size_stay_finite():
    mixer = build().float()
    x = (1e4 * torch.randn(1, 300, 32)).requires_grad_()
    y, state = mixer(x)
    assert torch.isfinite(y).all() and torch.isfinite(state.memory).all()
    assert torch.isfinite(torch.autograd.grad(y.sum(), x)[0]).all()


def test_gates_start_at_one_half():
    mixer = build()
    g_log = mixer._project(torch.randn(1, 5, 32, dtype=torch.float64), None, Context(time=plan(None, None, 1, 5, torch.device("cpu"))[0]))[3]
    torch.testing.assert_close(g_log.exp(), torch.full((1, 5, 4), 0.5, dtype=torch.float64))
    assert torch.equal(mixer.maps[0, 0], torch.eye(8, dtype=torch.float64)) and mixer.alpha == 1


def test_the_state_has_one_size_from_the_start():
    model = create_model("lizard", size="nano", window=16, vocab_size=11)
    assert model.state_bytes(1) == model.state_bytes(10_000)
    tokens = torch.randint(0, 11, (2, 40))
    with torch.no_grad():
        whole, out, state = model(tokens).logits, [], None
        for t in range(40):
            step = model(tokens[:, t : t + 1], state=state)
            state = step.state
            out.append(step.logits)
    torch.testing.assert_close(torch.cat(out, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_dim": 5}, "head_dim must be even"),
        ({"heads": 0}, "heads must be positive"),
        ({"features": 0}, "features must be positive"),
        ({"window": 0}, "window must be positive"),
        ({"sinks": -1}, "sinks must not be negative"),
        ({"norm": "rows"}, "must be one of row, joint, none"),
        ({"feature_map": "relu"}, "must be one of exp, softmax"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        LizardConfig(**settings)
    with pytest.raises(ConfigError, match="not a multiple of head_dim"):
        build(width=20)
