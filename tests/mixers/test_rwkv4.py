"""RWKV-4 against transformers' model with the same weights, its channel mix against a float64 loop, and its initialisation."""

from __future__ import annotations

import math

import pytest
import torch

from oracles.rwkv4 import rwkv4_channel as channel_oracle
from orrery.core.errors import ConfigError
from orrery.core.registry import lookup
from orrery.mixers.rwkv4 import ARCHITECTURE, RWKV4, RWKV4Channel, RWKV4ChannelConfig, RWKV4Config
from orrery.models.build import build as build_model
from orrery.models.build import create_model, resolve
from orrery.models.exchange import from_transformers, to_transformers
from orrery.nn.contract import Context, Place


def randomise(model, seed=0, size=0.3):
    """Every parameter moves off its default, which would hide mistakes (zero matrices, equal norms)."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return model


def peer(dtype=torch.float32, **settings):
    transformers = pytest.importorskip("transformers")
    config = transformers.RwkvConfig(
        **{
            "vocab_size": 31,
            "hidden_size": 24,
            "num_hidden_layers": 3,
            "attention_hidden_size": 40,
            "intermediate_size": 56,
            **settings,
        }
    )
    return randomise(transformers.RwkvForCausalLM(config)).to(dtype).eval()


def test_equals_transformers():
    theirs = peer()
    ours = from_transformers(theirs)
    tokens = torch.randint(31, (2, 45))
    with torch.no_grad():
        want, got = theirs(tokens, use_cache=False).logits, ours(tokens).logits
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()


def test_equals_transformers_in_float64_to_the_last_digits(monkeypatch):
    """Its recurrence computes in float32 whatever the weights are; with these casts undone, both agree to 1e-8."""
    theirs = peer(torch.float64)
    ours = from_transformers(theirs)
    tokens = torch.randint(31, (2, 45))
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)
    with torch.no_grad():
        want = theirs(tokens, use_cache=False).logits
    monkeypatch.undo()
    with torch.no_grad():
        got = ours(tokens).logits
    assert (got - want).abs().max() <= 1e-8 * want.abs().max()


def test_equals_transformers_with_a_state():
    theirs = peer(attention_hidden_size=24)  # its states have the model's width, so that no other works
    ours = from_transformers(theirs)
    tokens = torch.randint(31, (1, 20))  # with more rows its single step mixes their shifted tokens
    with torch.no_grad():
        first, own = theirs(tokens[:, :11], use_cache=True), ours(tokens[:, :11])
        state, own_state = first.state, own.state
        for t in range(11, 20):
            want = theirs(tokens[:, t : t + 1], state=state, use_cache=True)
            got = ours(tokens[:, t : t + 1], own_state)
            state, own_state = want.state, got.state
            assert (got.logits - want.logits).abs().max() <= 1e-4 * want.logits.abs().max()


def test_gradients_equal_transformers():
    theirs = peer()
    ours = from_transformers(theirs)
    tokens = torch.randint(31, (2, 33))
    for model in (theirs, ours):
        model.train()
        model(tokens).logits.float().log_softmax(-1)[..., 3].mean().backward()
    block, other = ours.blocks[1], theirs.rwkv.blocks[1]
    pairs = [
        (ours.embed.weight, theirs.rwkv.embeddings.weight),
        (block.mixer.time_decay, other.attention.time_decay),
        (block.mixer.time_first, other.attention.time_first),
        (block.mixer.mix_v, other.attention.time_mix_value),
        (block.mixer.key.weight, other.attention.key.weight),
        (block.channel.mix_k, other.feed_forward.time_mix_key),
        (block.channel.key.weight, other.feed_forward.key.weight),
        (block.channel.receptance.weight, other.feed_forward.receptance.weight),
    ]
    for mine, right in pairs:
        assert (mine.grad - right.grad.reshape(mine.shape)).abs().max() <= 1e-4 * right.grad.abs().max()


def test_back_to_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = randomise(create_model("rwkv4", width=32, depth=2, vocab_size=19, seed=0))
    to_transformers(ours, tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    tokens = torch.randint(19, (1, 12))
    with torch.no_grad():
        want, got = ours(tokens).logits, theirs(tokens).logits
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()


def test_other_norms_cannot_be_exchanged():
    with pytest.raises(ConfigError, match="eps"):
        from_transformers(peer(layer_norm_epsilon=1e-3))


def channel(dtype=torch.float64, **settings):
    part = RWKV4Channel(RWKV4ChannelConfig(**settings), Place(width=16, layer=1, depth=3))
    return randomise(part).to(dtype).eval()


@pytest.mark.parametrize("settings", [{}, {"hidden": 40}])
def test_channel_mix_equals_the_loop(settings):
    part = channel(**settings)
    x = torch.randn(3, 21, 16, dtype=torch.float64)
    segments = torch.tensor([0] * 8 + [1] * 13).repeat(3, 1)
    segments[1, 15:], segments[2, 3:6] = -1, -1
    parameters = {name: p.detach().numpy() for name, p in part.named_parameters()}
    for given in (None, segments):
        got, _ = part(x, None, None if given is None else Context(segments=given))
        want = channel_oracle(parameters, settings, x.numpy(), None if given is None else given.numpy())
        assert (got.detach() - torch.as_tensor(want)).abs().max() <= 1e-12


def test_channel_mix_cut_anywhere():
    part = channel()
    x = torch.randn(2, 21, 16, dtype=torch.float64)
    whole, end = part(x)
    for cut in (1, 2, 20):
        left, state = part(x[:, :cut])
        right, last = part(x[:, cut:], state)
        torch.testing.assert_close(torch.cat([left, right], 1), whole)
        assert torch.equal(last.shift, end.shift) and torch.equal(last.clock, end.clock)
    assert part.state_bytes(21) == end.shift[0].numel() * 8 == part.init_state(2, dtype=torch.float64).bytes() // 2


def test_initialisation_is_the_paper_s():
    """Channel 0 decays most slowly; with depth, mixtures move from the token before to the token itself."""
    width, depth = 96, 5
    mixers = [RWKV4(RWKV4Config(), Place(width=width, layer=layer, depth=depth)) for layer in range(depth)]
    for layer, mixer in enumerate(mixers):
        for i in (0, 1, 50, 95):
            assert mixer.time_decay[i].item() == pytest.approx(-5 + 8 * (i / 95) ** (0.7 + 1.3 * layer / 4), abs=1e-5)
            assert mixer.time_first[i].item() == pytest.approx(math.log(0.3) + (0.0, 0.5, -0.5)[i % 3], abs=1e-6)
            assert mixer.mix_k[i].item() == pytest.approx((i / width) ** (1 - layer / depth), abs=1e-6)
            assert mixer.mix_v[i].item() == pytest.approx(
                (i / width) ** (1 - layer / depth) + 0.3 * layer / 4, abs=1e-6
            )
            assert mixer.mix_r[i].item() == pytest.approx((i / width) ** (0.5 * (1 - layer / depth)), abs=1e-6)
        assert not mixer.key.weight.any() and not mixer.receptance.weight.any() and not mixer.out.weight.any()
        torch.testing.assert_close(mixer.value.weight @ mixer.value.weight.t(), torch.eye(width), atol=1e-5, rtol=0)
    part = RWKV4Channel(RWKV4ChannelConfig(), Place(width=width, layer=0, depth=1))
    torch.testing.assert_close(part.key.weight.t() @ part.key.weight, 4 * torch.eye(width), atol=1e-4, rtol=0)
    assert not part.value.weight.any() and not part.receptance.weight.any()


def test_a_fresh_model_learns():
    """All ways out start at zero, and still every matrix moves within three steps."""
    model = create_model("rwkv4", width=32, depth=2, vocab_size=16, seed=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    tokens = torch.randint(16, (4, 25), generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("rwkv-4-169m", 169.34), ("rwkv-4-430m", 430.40), ("rwkv-4-1b5", 1515.11), ("rwkv-4-3b", 2984.63),
     ("rwkv-4-7b", 7392.27), ("rwkv-4-14b", 14148.69)],
)  # fmt: skip
def test_presets(preset, millions):
    """The sizes of the paper's table of models (all parameters, in millions)."""
    assert lookup(preset).name == "rwkv4" and preset in ARCHITECTURE.presets
    with torch.device("meta"):
        model = build_model(resolve(preset))
    assert model.num_parameters(embedding=True) / 1e6 == pytest.approx(millions, rel=0.002)


def test_impossible_sizes():
    with pytest.raises(ConfigError, match="hidden must be positive"):
        RWKV4Config(hidden=0)
    with pytest.raises(ConfigError, match=r"channel\.hidden must be positive"):
        RWKV4ChannelConfig(hidden=-1)
