"""State policies: a sliding window is recomputation from the last tokens; norms are bounded; what cannot be is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import orrery
from orrery.core.errors import ConfigError
from orrery.data.shards import write_tokens
from orrery.evaluate.carried import read_carried
from orrery.evaluate.memory import state_over_time
from orrery.generate.policy import NormaliseState, SlideState, create_policy, linear_decays, with_field
from orrery.nn.contract import Aux, Context

V, DOC, L = 13, 12, 6


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    rng = np.random.default_rng(0)
    documents = [(rng.integers(0, DOC, size), size) for size in (59, 47, 30)]
    return write_tokens(tmp_path_factory.mktemp("data") / "tokens", documents, V, DOC)


def build(name="mamba2", **settings):
    settings = {"conv": 1, "head_dim": 8, "state": 8, **settings} if name == "mamba2" else settings
    return orrery.create_model(name, width=32, depth=settings.pop("depth", 1), vocab_size=V, seed=0, **settings).double()


def stream_of(tokens, number):
    return torch.tensor([*tokens.document(number).tolist(), DOC])


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_a_sliding_window_is_recomputation_from_the_last_tokens(tokens, kept):
    """One layer without a convolution: exactly what a fresh model says that reads the last `kept` windows and this one."""
    model = build()
    seen = 0
    for window in read_carried(model, tokens, np.arange(3), L, 3, policy=SlideState(kept * L)):
        first = max(0, window.start - kept * L)
        for row, number in enumerate(window.documents.tolist()):
            text = stream_of(tokens, number)[first : window.start + L + 1]
            with torch.no_grad():
                nats = -model(text[None, :-1]).logits[0].log_softmax(-1).gather(1, text[1:, None])[:, 0]
            here = nats[window.start - first :].numpy()
            assert np.allclose(window.nats[row][window.scored[row]], here, rtol=1e-9, atol=1e-9)
            seen += window.start > kept * L
    assert seen > 3


def test_windows_of_one_token_slide_as_the_paper_does(tokens):
    """S_t minus the decayed S_{t-w}, from the states of an undisturbed reading."""
    model, w = build(), 5
    plain = [x.state.blocks[0][1].ssm for x in read_carried(model, tokens, np.array([0]), 1, 1, longest=20)]
    logs = [
        x.aux.reports["decay_log"][0]["ssm"].sum(1) for x in read_carried(model, tokens, np.array([0]), 1, 1, longest=20, wanted=("decay_log",))
    ]
    policy, slid = SlideState(w), []

    class Spy(SlideState):
        def __call__(self, state, aux, window):
            after = policy(state, aux, window)
            slid.append(after.blocks[0][1].ssm)
            return after

    list(read_carried(model, tokens, np.array([0]), 1, 1, longest=20, policy=Spy(w)))
    for t in range(w, 20):  # the model has one layer, so that its inputs do not depend on the policy
        product = torch.stack(logs[t - w + 1 : t + 1]).sum(0).exp()[..., None, None]
        assert torch.allclose(slid[t], plain[t] - product * plain[t - w], atol=1e-12)


def test_norms_are_bounded_per_head(tokens):
    model, found = build(depth=2), []

    class Spy(NormaliseState):
        def __call__(self, state, aux, window):
            after = super().__call__(state, aux, window)
            found.append([torch.linalg.vector_norm(block[1].ssm, dim=(-2, -1)) for block in after.blocks])
            return after

    list(read_carried(model, tokens, np.array([0, 1]), L, 2, policy=Spy(0.01, relative=False)))
    assert all(float(norm.max()) <= 0.01 + 1e-9 for norms in found for norm in norms)
    found.clear()
    list(read_carried(model, tokens, np.array([0, 1]), L, 2, policy=Spy(0.5)))
    for later in found[1:5]:  # the first window's norms were halved already: they are the bound
        assert all(bool((now <= first + 1e-9).all()) for now, first in zip(later, found[0], strict=True))


def test_a_restart_is_the_window_rule(tokens):
    model = build("lstm")
    text = stream_of(tokens, 0)
    for window in read_carried(model, tokens, np.array([0]), L, 1, policy=create_policy(f"restart:{2 * L}")):
        first = window.start - window.start % (2 * L)
        part = text[first : window.start + L + 1]
        with torch.no_grad():
            nats = -model(part[None, :-1]).logits[0].log_softmax(-1).gather(1, part[1:, None])[:, 0]
        assert np.allclose(window.nats[0][window.scored[0]], nats[window.start - first :].numpy(), atol=1e-9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slid:5", "Did you mean 'slide'"),
        ("slide:x", "needs a number"),
        ("slide:0", "at least one token"),
        ("normalise:-1", "must be positive"),
        ("restart:0", "at least one token"),
    ],
)
def test_impossible_policies_are_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        create_policy(text)


def test_a_model_whose_state_is_not_linear_says_so(tokens):
    with pytest.raises(ConfigError, match="no layer of this model reports the decay"):
        list(read_carried(build("lstm"), tokens, np.array([0]), L, policy=create_policy("slide:8")))


def test_state_over_time_against_the_states_themselves(tokens):
    model = build(depth=2)
    records = state_over_time(model, tokens, longest=40, rows=2, length=10)
    assert [r["position"] for r in records if (r["layer"], r["field"]) == (1, "ssm")] == [10, 20, 30, 40]
    logs, states = [], []
    for number in (0, 1):
        with torch.no_grad():
            out = model(stream_of(tokens, number)[None, :40], ctx=orrery.nn.contract.Context(aux=(aux := orrery.nn.contract.Aux("decay_log"))))
        logs.append(aux.reports["decay_log"][1]["ssm"][0, 10:].sum(0))
        states.append(out.state.blocks[1][1].ssm[0])
    last = next(r for r in records if (r["position"], r["layer"], r["field"]) == (40, 1, "ssm"))
    state, left = torch.stack(states), torch.stack(logs).exp()
    assert last["mean"] == pytest.approx(float(state.mean()), rel=1e-9)
    assert last["variance"] == pytest.approx(float(state.var(unbiased=False)), rel=1e-9)
    assert last["norm"] == pytest.approx(float(state.flatten(2).norm(dim=-1).mean()), rel=1e-9)
    assert last["retention"] == pytest.approx(float(left.mean()), rel=1e-5)
    assert last["kept"] == float((left > 0.01).double().mean())
    assert state_over_time(build("lstm"), tokens, 40, 2, 10)[0]["retention"] is None


def reporting():
    """Every architecture whose layer reports a decay, found by asking."""
    found = []
    for entry in orrery.core.registry.entries("architecture"):
        if "recurrent" in entry.tags:
            model = orrery.create_model(entry.name, width=64, depth=1, vocab_size=V, seed=0).double().eval()
            aux = orrery.nn.contract.Aux("decay_log")
            with torch.no_grad():
                state = model(torch.arange(9)[None], ctx=orrery.nn.contract.Context(aux=aux)).state
            if aux.reports:
                found.append((entry.name, model, state))
    return found


def test_a_reported_decay_is_what_a_window_multiplies_the_state_by():
    """Twice the state before is once more exp(sum g) of it after: for every architecture that reports, in both forms."""
    found = reporting()
    assert {"mamba2", "retnet"} <= {name for name, _, _ in found}
    for name, model, before in found:
        for length in (7, 1):
            text = torch.arange(length)[None] % V
            aux = orrery.nn.contract.Aux("decay_log")
            with torch.no_grad():
                after = model(text, state=before, ctx=orrery.nn.contract.Context(aux=aux)).state
                for field, factor in linear_decays(aux)[0].items():
                    old, new = (getattr(state.blocks[0][1], field) for state in (before, after))
                    twice = with_field(before, 0, field, 2 * old)
                    again = getattr(model(text, state=twice).state.blocks[0][1], field)
                    assert torch.allclose(again - new, factor * old, rtol=1e-8, atol=1e-12), (name, field, length)


@pytest.mark.parametrize("policy", ["slide:8", "normalise:0.5x", "restart:8"])
@pytest.mark.parametrize("name", ["mamba2(head_dim=8,state=8)", "gla(head_dim=8)"])
def test_generate_meets_the_policy_where_reading_does(name, policy):
    """Greedy tokens are the best ones of the same text read in windows of four with the same policy."""
    model = orrery.create_model(name, width=32, depth=2, vocab_size=20, seed=0).eval()
    prompt = torch.randint(0, 20, (2, 13), generator=torch.Generator().manual_seed(0))
    text = orrery.generate(model, prompt, 12, temperature=0, policy=policy, policy_window=4)
    acting, state, best = create_policy(policy), None, []
    acting.begin()
    with torch.no_grad():
        for begin in range(0, 24, 4):
            aux = Aux(*acting.wanted)
            out = model(text[:, begin : begin + 4], state=state, ctx=Context(aux=aux))
            best.append(out.logits.argmax(-1))
            state = acting(out.state, aux, 4)
    assert torch.equal(torch.cat(best, 1)[:, 12:], text[:, 13:])
    scores = [torch.cat([model(text[:, :n]).logits[:, -1:] for n in (24,)], 1)]  # without it the model says something else
    assert not torch.allclose(scores[0][:, -1], out.logits[:, -1], atol=1e-4)


def test_generate_says_what_a_policy_needs():
    model = orrery.create_model("lstm", width=32, depth=1, vocab_size=20)
    prompt = torch.zeros(1, 4, dtype=torch.int64)
    for settings, message in (
        ({"policy": "slide:2"}, "no layer of this model reports"),
        ({"policy": "slide:2", "use_state": False}, "needs a decoder, and use_state"),
        ({"policy": "slip:2"}, "unknown policy"),
        ({"policy": "slide:2", "policy_window": 0}, "at least one token"),
    ):
        with pytest.raises(ConfigError, match=message):
            orrery.generate(model, prompt, 3, **{"policy_window": 2, **settings})
