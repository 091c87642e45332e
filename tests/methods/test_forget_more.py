"""Forgetting more: decays to the power g, writing times b, against the recurrence itself."""

from __future__ import annotations

import pytest
import torch

import orrery
from orrery.core.errors import ConfigError
from orrery.methods.forget_more import forget_more
from orrery.nn.contract import Aux, Context


def build(name="mamba2", **more):
    settings = {"head_dim": 8, "state": 8, **more} if name == "mamba2" else {}
    return orrery.create_model(name, width=32, depth=1, vocab_size=20, seed=0, **settings).double()


def decays(model, tokens):
    aux = Aux("decay_log")
    model(tokens, ctx=Context(aux=aux))
    return aux.reports["decay_log"][0]["ssm"]


def test_decays_are_raised_and_the_model_given_stays():
    model, tokens = build(), torch.randint(0, 20, (2, 15), generator=torch.Generator().manual_seed(0))
    before = model(tokens).hidden
    more = forget_more(model, decay=1.7)
    assert torch.allclose(decays(more, tokens), 1.7 * decays(model, tokens))
    assert torch.equal(model(tokens).hidden, before)
    assert torch.allclose(forget_more(model)(tokens).hidden, before)


@pytest.mark.parametrize("gate_norm", ["after", "before", "none"])
def test_writing_less_is_what_the_paper_multiplies(gate_norm):
    """b times what is written, through the mixer's own norm: computed from the state that the plain mixer leaves."""
    model, tokens = build(gate_norm=gate_norm), torch.randint(0, 20, (2, 15), generator=torch.Generator().manual_seed(0))
    mixer = model.blocks[0].mixer
    mixer.config = mixer.config.replace(eps=1e-14)
    b = 0.6
    h = model.blocks[0].mixer_norm(model.embed(tokens))
    plain, less = mixer(h)[0], forget_more(model, insertion=b).blocks[0].mixer(h)[0]
    original = mixer._gates

    def gates(dt):  # what is written is beta B x: beta times b, with the decay as it was
        g_log, beta = original(dt)
        return g_log, b * beta

    mixer._gates = gates
    try:
        wanted = mixer(h)[0]
    finally:
        del mixer._gates
    assert torch.allclose(less, wanted, atol=1e-9)
    assert not torch.allclose(less, plain, atol=1e-4)


def test_it_is_listed_and_says_who_cannot():
    assert "forget-more" in orrery.list_models(kind="method")
    with pytest.raises(ConfigError, match="no mixer of 'lstm' offers"):
        forget_more(build("lstm"), decay=2)
    with pytest.raises(ConfigError, match="must be positive"):
        forget_more(build(), decay=0)
