"""Forgetting more: decays to the power g, writing times b, against the recurrence itself."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

import orrery
from orrery.core.errors import ConfigError
from orrery.methods.forget_more import forget_more
from orrery.nn.contract import Aux, Context
from orrery.nn.timeline import plan


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


GATED = {
    "mamba": ({"state": 4}, "ssm"),
    "rwkv4": ({}, None),
    "rwkv5": ({"head_dim": 8}, "memory"),
    "rwkv6": ({"head_dim": 8}, "memory"),
    "gated-deltanet": ({"head_dim": 8}, "memory"),
    "kda": ({"head_dim": 8}, "memory"),
}


@pytest.mark.parametrize("name", GATED)
@torch.no_grad()
def test_other_recurrences_raise_every_decay_too(name):
    """By the transfer matrix: what a token leaves at a later one is its decay's product to the power g, times the rest."""
    torch.manual_seed(0)
    model = orrery.create_model(name, width=32, depth=1, vocab_size=20, seed=0, **GATED[name][0]).double()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    x, context = torch.randn(2, 9, 32).double(), Context(time=plan(None, None, 2, 9, torch.device("cpu"))[0])
    caught = []

    def spy(op):
        def run(*arguments, **more):
            caught.append((op, arguments, more))
            return ORIGINAL[op](*arguments, **more)

        return run

    module = sys.modules["orrery.ops.kda" if name == "kda" else type(model.blocks[0].mixer).__module__]  # who calls the recurrence
    ops = {op: place for op, place in DECAYS.items() if hasattr(module, op)}
    ORIGINAL.update({op: getattr(module, op) for op in ops})
    for which in (model, forget_more(model, decay=1.7)):
        with pytest.MonkeyPatch.context() as patch:
            for op in ops:
                patch.setattr(module, op, spy(op))
            which.blocks[0].mixer(x, None, context)
    assert len(caught) == 2 and caught[0][0] == caught[1][0]
    for place, argument in enumerate(zip(caught[0][1], caught[1][1], strict=True)):
        if torch.is_tensor(argument[0]):
            before, after = argument
            if place == ops[caught[0][0]]:
                assert torch.allclose(after, 1.7 * before) and not torch.allclose(after, before)
            elif not (caught[0][0] == "dplr" and place == 3):  # a = exp(g) k holds the decay itself
                assert torch.equal(after, before)


DECAYS = {"selective_scan": 2, "wkv4": 2, "vector_decay": 3, "delta_rule": 4, "dplr": 5}
ORIGINAL = {}


@torch.no_grad()
def test_mamba_writes_less_by_its_matrix():
    """The way from u to what the channels put out: b times what goes through the state, and D as it was."""
    torch.manual_seed(0)
    model = orrery.create_model("mamba", width=32, depth=1, vocab_size=20, seed=0, state=4).double()
    mixer, less = model.blocks[0].mixer, forget_more(model, insertion=0.6).blocks[0].mixer
    x, context = torch.randn(2, 9, 32).double(), Context(time=plan(None, None, 2, 9, torch.device("cpu"))[0])
    direct = mixer.D[:, None, None] * torch.eye(9).double()
    through = mixer.transfer(x, context) - direct
    assert torch.allclose(0.6 * less.transfer(x, context), 0.6 * through + direct, atol=1e-12)
    assert torch.allclose(less.out.weight, 0.6 * mixer.out.weight)


@pytest.mark.parametrize("name", ["rwkv4", "rwkv6"])
@torch.no_grad()
def test_writing_less_before_a_bonus_is_a_smaller_state(name, monkeypatch):
    """A state of b S, read with the token itself in full, which the bonus adds."""
    torch.manual_seed(0)
    monkeypatch.setattr(importlib.import_module("orrery.mixers.rwkv6"), "_EPS", 1e-12)  # which b is not undone by
    model = orrery.create_model(name, width=32, depth=1, vocab_size=20, seed=0, **GATED[name][0]).double()
    mixer = model.blocks[0].mixer
    for part in mixer.children():  # the way out begins at 0, and other maps of RWKV-4 do
        if isinstance(part, torch.nn.Linear):
            torch.nn.init.normal_(part.weight, std=0.3)
    less = forget_more(model, insertion=0.6).blocks[0].mixer
    x = torch.randn(2, 9, 32).double()
    _, state = mixer(x[:, :8], None)
    scaled = {"rwkv6": ("memory",), "rwkv4": ("num", "den")}[name]
    state = state._replace(**{field: 0.6 * getattr(state, field) for field in scaled})
    wanted, _ = mixer(x[:, 8:], state)
    assert torch.allclose(less(x, None)[0][:, 8:], wanted, atol=1e-7)
    assert not torch.allclose(mixer(x, None)[0][:, 8:], wanted, atol=1e-3)


def test_a_delta_rule_takes_no_insertion_and_deltanet_no_decay():
    for name, message in (("gated-deltanet", "cannot be scaled"), ("kda", "cannot be scaled"), ("deltanet", "no decay")):
        model = orrery.create_model(name, width=32, depth=1, vocab_size=20, head_dim=8)
        with pytest.raises(ConfigError, match=message):
            forget_more(model, decay=2.0, insertion=0.5)
