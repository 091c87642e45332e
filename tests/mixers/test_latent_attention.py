"""Latent attention: its two forms are one function, the cache is the compressed one, and prepared steps equal calls of the model."""

from __future__ import annotations

import pytest
import torch

import orrery
from orrery.core.errors import ConfigError
from orrery.mixers.attention import Attention, AttentionConfig
from orrery.mixers.latent_attention import LatentAttention, LatentAttentionConfig
from orrery.nn.contract import Context, Place
from orrery.nn.state import map_state, reserve
from orrery.testing.count import counting

WIDTH = 32
VARIANTS = {
    "default": {"head_dim": 8},
    "everything": {"head_dim": 8, "heads": 3, "value_dim": 12, "rank": 10, "shared": 6, "query_rank": 14, "window": 7, "gate": True},
    "no-positions": {"head_dim": 8, "value_dim": 4, "rope": False, "gate": True},
    "nothing-shared": {"head_dim": 8, "shared": 0},
}


def mixer_of(variant: str) -> LatentAttention:
    torch.manual_seed(0)
    mixer = LatentAttention(LatentAttentionConfig(**VARIANTS[variant]), Place(width=WIDTH)).double()
    with torch.no_grad():
        mixer.norm.weight.uniform_(0.5, 1.5)
    return mixer


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("asked", [1, 5])
def test_absorbed_and_expanded_forms_are_one_function(variant, asked):
    """Outputs and gradients, with a mask that hides some of the cache from some queries."""
    mixer = mixer_of(variant)
    size = mixer.shared + mixer.head_dim
    q = torch.randn(2, asked, mixer.heads, size, dtype=torch.float64, requires_grad=True)
    cache = torch.randn(2, 9, mixer.rank + mixer.shared, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(9) <= torch.arange(3, 3 + asked)[:, None]
    weight = torch.randn(2, asked, mixer.heads, mixer.value_dim, dtype=torch.float64)
    found = []
    for form in (mixer._expanded, mixer._absorbed):
        y = form(q, cache, mask[None, None])
        found.append((y, *torch.autograd.grad((y * weight).sum(), [q, cache, mixer.expand.weight])))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


def test_the_cheaper_form_is_taken(monkeypatch):
    """A prompt is expanded, a token behind it absorbed, and a map that an adapter stands around is never taken apart."""
    mixer, taken = mixer_of("default"), []
    for name in ("_expanded", "_absorbed"):
        form = getattr(mixer, name)
        monkeypatch.setattr(mixer, name, lambda *args, form=form, name=name: (taken.append(name), form(*args))[1])
    x = torch.randn(2, 40, WIDTH, dtype=torch.float64)
    _, state = mixer(x)
    mixer(x[:, :1], state)
    mixer.expand = torch.nn.Sequential(mixer.expand)
    mixer(x[:, :1], state)
    assert taken == ["_expanded", "_absorbed", "_expanded"]


def test_the_cache_is_the_compressed_one():
    """C + R numbers a token: at the paper's proportions 4.5 heads' worth, whatever the number of heads."""
    mixer = LatentAttention(LatentAttentionConfig(heads=32, head_dim=8), Place(width=WIDTH))
    attention = Attention(AttentionConfig(heads=32, head_dim=8), Place(width=WIDTH))
    _, state = mixer(torch.randn(1, 20, WIDTH))
    assert state.latent.shape == (1, 20, 4 * 8 + 4)
    assert mixer.state_bytes(20) == 20 * 36 * 4
    assert attention.state_bytes(20) == mixer.state_bytes(20) * 64 * 8 / 36


@pytest.mark.parametrize("variant", ["default", "no-positions"])
def test_operations_of_a_sequence_are_those_of_the_expanded_form(variant):
    mixer, length = mixer_of(variant).float(), 64
    with counting() as counter:
        mixer(torch.randn(1, length, WIDTH))
    size = mixer.shared + mixer.head_dim
    masked = 2 * mixer.heads * (length * length - length * (length + 1) // 2) * (size + mixer.value_dim)  # pairs that a mask hides
    padded = 2 * mixer.heads * length * length * (size - mixer.value_dim)  # fused kernels want values of the keys' size
    assert counter.products == mixer.flops(length) + masked + padded


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("canon", ["", "abcd"])
@torch.inference_mode()
def test_prepared_steps_give_the_scores_of_calls(variant, canon):
    """Rows at different positions, which cross the window's end at different times."""
    pytest.importorskip("numba")
    torch.manual_seed(0)
    settings = {f"mixer.{name}": value for name, value in VARIANTS[variant].items()}
    model = orrery.create_model("latent-attention", width=WIDTH, depth=2, vocab_size=31, canon=canon, **settings).eval()
    for p in model.parameters():  # parameters that start at 0 or 1 would hide mistakes
        p.add_(0.2 * torch.randn_like(p))
    tokens, more = torch.randint(0, 31, (3, 9)), torch.randint(0, 31, (3, 8))
    segments = torch.where(torch.arange(9) < torch.tensor([[9], [4], [6]]), 0, -1)
    state = model(tokens, segments=segments).state
    stepper = model.stepper(map_state(torch.clone, state), 17)
    for t in range(8):
        out = model(more[:, t : t + 1], state=state)
        state, scores = out.state, stepper(more[:, t])
        assert (scores - out.logits[:, 0]).abs().max() <= 2e-5 * out.logits.abs().max()


def test_a_donated_buffer_is_written_in_place_and_gives_the_same():
    """Rows at different positions."""
    mixer = mixer_of("default")
    x, more = torch.randn(3, 9, WIDTH, dtype=torch.float64), torch.randn(3, 4, WIDTH, dtype=torch.float64)
    _, state = mixer(x, ctx=Context(segments=torch.where(torch.arange(9) < torch.tensor([[9], [4], [6]]), 0, -1)))
    given = map_state(torch.clone, state).with_capacity(13)
    for part in (more[:, :1], more[:, 1:]):
        y, state = mixer(part, state)
        own, after = mixer(part, given, Context(donate=True))
        assert torch.allclose(own, y, rtol=1e-12)
        assert after.latent.data_ptr() == given.latent.data_ptr()
        given = after


def test_the_last_token_alone_of_rows_that_go_on_at_different_places():
    """In a donated buffer, whose columns are positions."""
    torch.manual_seed(0)
    model = orrery.create_model("deepseek-v3", width=WIDTH, depth=2, vocab_size=20, seed=0, **{"mixer.head_dim": 8}).eval()
    tokens, more = torch.randint(0, 20, (2, 5)), torch.randint(0, 20, (2, 4))
    with torch.no_grad():
        before = model(tokens, segments=torch.tensor([[0] * 5, [0, 0, 0, -1, -1]])).state
        expected = model(more, state=before).logits[:, -1:]
        found = model(more, state=reserve(before, 12), ctx=Context(last=True, donate=True)).logits
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rank": 0}, "rank must be positive"), ({"shared": 3}, "must be even"), ({"head_dim": 12}, "not a multiple of head_dim 12")],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        LatentAttention(LatentAttentionConfig(**settings), Place(width=WIDTH))
