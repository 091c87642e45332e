"""The compiled way of decoding: the same scores as calls of the model, for rows at different positions, and when it stands back."""

import pytest
import torch

import orrery
from orrery.core.errors import ConfigError
from orrery.nn.state import map_state
from orrery.ops.backend import use_backend

MODELS = [
    "transformer",
    "gpt2",
    "transformer(window=6)",
    "transformer(kv_heads=1,qk_norm=True,rope=0.5,bias=True)",
    "transformer(canon=abcd)",
    "gpt2(canon=acd)",
    "gla(canon=abc)",
    "lstm(canon=ab)",
    "gru(canon=b)",
    "retnet(canon=bd)",
    "hgrn2(canon=b)",
    "lightning(canon=b)",
    "xlstm-large(canon=bc)",
    "mamba2",
    "gated-deltanet",
    "rwkv4",
    "lstm",
    "gru",
    "gpt2 + transformer",
    "lizard(window=6,head_dim=16)",
    "lizard(window=5,head_dim=16,mixer.norm=joint,rope=True,feature_map=softmax,gate_per_head=True)",
    "lizard(window=20,head_dim=32,mixer.norm='none',sinks=0,features=6,canon=b)",
    "slstm",
    "slstm(heads=2,conv=2)",
    "rwkv7",
    "rwkv6",
    "transformer-xl(memory=6,head_dim=16)",
    "transformer-xl(memory=40,head_dim=32,canon=b)",
    "gtrxl(memory=11,head_dim=32)",
    "egru",
    "egru(hidden=40,canon=b)",
    "astro-snn",
    "astro-snn(astrocyte=False)",
    "rrwkv(segment=4)",
    "rrwkv(mixer.segment=none,channel.segment=none)",
]


def build(name, **settings):
    model = orrery.create_model(name, width=64, depth=2, vocab_size=61, seed=1, **settings).eval()
    with torch.no_grad():  # parameters that start at 0 or 1 would hide mistakes
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model


def test_a_softcap_in_place_of_torch():
    model, ids = build("griffin", softcap=3.0, **{"attention.window": 6}), torch.arange(1, 8)[None]
    with torch.inference_mode():
        step, want = model.stepper(model(ids[:, :4]).state, 9), model(ids).logits
        for t in range(4, 7):
            assert torch.allclose(step(ids[:, t]), want[:, t], atol=2e-4 * float(want[:, t].abs().max()))
        assert float(want.abs().max()) < 3.0


def follow(model, tokens, segments, more):
    """The prompt's state, and the scores of calls of the model for each of `more` (B,n)."""
    before = model(tokens, segments=segments).state
    state, scores = before, []
    for t in range(more.shape[1]):
        out = model(more[:, t : t + 1], state=state)
        state = out.state
        scores.append(out.logits[:, 0])
    return before, scores


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_scores_are_those_of_the_model(name):
    model, draw = build(name), torch.Generator().manual_seed(0)
    tokens, more = (torch.randint(0, 61, (3, n), generator=draw) for n in (9, 8))
    segments = torch.zeros(3, 9, dtype=torch.int64)
    segments[1, 4:] = -1  # a shorter prompt: its row stands at an earlier position
    for prompt, marks, rows in ((tokens, segments, more), (tokens[:1], None, more[:1])):
        before, wanted = follow(model, prompt, marks, rows)
        stepper = model.stepper(map_state(torch.clone, before), 17)
        assert stepper is not None
        for t, scores in enumerate(wanted):
            assert torch.allclose(stepper(rows[:, t]), scores, atol=2e-4 * float(scores.abs().max())), t


PREPARED = ["transformer(canon=abcd)", "gpt2(canon=acd)", "lstm(canon=ab)", "transformer-xl", "gtrxl", "egru", "astro-snn", "rrwkv"]


@pytest.mark.parametrize("name", PREPARED)
@torch.inference_mode()
def test_these_have_a_form_of_their_own(name):
    model = build(name)
    assert not model.stepper(model(torch.ones(1, 3, dtype=torch.int64)).state, 9).run.general  # nothing is called as always


def test_it_stands_back_where_it_cannot_answer_for_the_result():
    model, tokens = build("transformer"), torch.ones(1, 3, dtype=torch.int64)
    with torch.inference_mode():
        state = model(tokens).state
        assert model.stepper(state, 9) is not None
        with use_backend("torch"):
            assert model.stepper(state, 9) is None
        handle = model.blocks[0].mixer.register_forward_hook(lambda *_: None)
        assert model.stepper(state, 9) is None
        handle.remove()
        model.train()
        assert model.stepper(state, 9) is None
        double = build("transformer").double()
        assert double.stepper(double(tokens).state, 9) is None
        many = torch.ones(9, 3, dtype=torch.int64)
        model.eval()
        assert model.stepper(model(many).state, 9) is None


def test_an_adapter_in_place_of_a_linear_map_is_called():
    class Louder(torch.nn.Linear):
        def forward(self, x):
            return 3 * super().forward(x)

    model, ids = build("transformer"), torch.ones(1, 5, dtype=torch.int64)
    loud = Louder(64, 64, bias=False)
    loud.weight = model.blocks[1].mixer.out.weight
    model.blocks[1].mixer.out = loud
    assert torch.equal(orrery.generate(model, ids, 6, temperature=0), orrery.generate(model, ids, 6, temperature=0, use_state=False))


def test_learned_positions_end_where_they_end():
    with pytest.raises(ConfigError, match="learned positions"):
        orrery.generate(build("gpt2", max_positions=8), torch.ones(1, 5, dtype=torch.int64), 6, temperature=0)
