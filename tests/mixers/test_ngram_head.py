"""n-gram heads against the paper's T x T mask, built by shifting; decoding with growing and with donated states."""

from __future__ import annotations

import pytest
import torch

import orrery
from orrery.core.errors import ConfigError
from orrery.mixers.ngram_head import NgramHead, NgramHeadConfig
from orrery.nn.contract import Context, Place


def shifted_mask(tokens, order):
    """(B,T,T): which earlier tokens j followed the n-gram that ends at i; rows sum to 1 or 0 (2401.12973, equation 12)."""
    same = (tokens[:, :, None] == tokens[:, None, :]).tril(-1)
    match = same
    for k in range(1, order):
        earlier = torch.zeros_like(same)
        earlier[:, k:, k:] = same[:, :-k, :-k]
        match = match & earlier
    follows = torch.zeros_like(match)
    follows[:, :, 1:] = match[:, :, :-1]
    follows = follows.tril(-1).double()
    return follows / follows.sum(-1, keepdim=True).clamp(min=1)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_equals_the_mask(order):
    torch.manual_seed(0)
    mixer = NgramHead(NgramHeadConfig(order=order), Place(width=16)).double()
    tokens, x = torch.randint(3, (4, 70)), torch.randn(4, 70, 16, dtype=torch.float64, requires_grad=True)
    want = mixer.followed(shifted_mask(tokens, order) @ x) + mixer.present(x)
    got, _ = mixer(x, None, Context(tokens=tokens))
    assert (got - want).abs().max() < 1e-12
    mine, right = (torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0] for y in (got, want))
    assert (mine - right).abs().max() < 1e-10


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("donate", [False, True])
def test_decoding_is_the_same_function(order, donate):
    """In float32 with few symbols, so that runs and overlaps are frequent."""
    torch.manual_seed(1)
    mixer = NgramHead(NgramHeadConfig(order=order), Place(width=8))
    tokens, x = torch.randint(2, (3, 40)), torch.randn(3, 40, 8)
    with torch.no_grad():
        whole, end = mixer(x, None, Context(tokens=tokens))
        state, found = mixer.init_state(3, capacity=40 if donate else 0), []
        for t in range(40):
            y, state = mixer(x[:, t : t + 1], state, Context(tokens=tokens[:, t : t + 1], donate=donate))
            found.append(y)
    assert (torch.cat(found, 1) - whole).abs().max() < 1e-5
    assert torch.equal(state.counts[:, :40], end.counts) and torch.equal(state.tokens[:, :40], end.tokens)


def test_it_copies_what_followed():
    """With W0 = 1 and W1 = 0, the second occurrence of a bigram returns what stood behind the first."""
    mixer = NgramHead(NgramHeadConfig(order=2), Place(width=4))
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.zero_()
        mixer.followed.weight.copy_(torch.eye(4))
    x = torch.randn(1, 8, 4)
    y, _ = mixer(x, None, Context(tokens=torch.tensor([[5, 6, 7, 8, 5, 6, 9, 6]])))
    assert torch.allclose(y[0, 5], x[0, 2]) and not y[0, [0, 1, 2, 3, 4, 6, 7]].any()


def test_tokens_are_needed():
    mixer = NgramHead(NgramHeadConfig(), Place(width=8))
    with pytest.raises(ConfigError, match="token ids"):
        mixer(torch.zeros(1, 3, 8))
    with pytest.raises(ConfigError, match="order must be positive"):
        NgramHeadConfig(order=0)


def test_a_layer_in_any_architecture():
    model = orrery.create_model("mamba2 + ngram-head(order=2) + mamba2", size="nano")
    assert [block.mixer.config.order for block in model.blocks if isinstance(block.mixer, NgramHead)] == [2] * (len(model.blocks) // 3)
    assert model(torch.randint(257, (2, 9))).logits.shape == (2, 9, 257)


@pytest.mark.parametrize("base", ["transformer", "retnet"])
def test_presets(base):
    with torch.device("meta"):
        model = orrery.create_model(f"ngram-{base}-340m")
    assert [block.mixer.config.order for block in model.blocks if isinstance(block.mixer, NgramHead)] == [1, 2, 3]
    assert [isinstance(block.mixer, NgramHead) for block in model.blocks] == [False] * 2 + [True] * 3 + [False] * 22
    assert model.num_parameters(embedding=True) / 1e6 == pytest.approx(340, rel=0.03)
