"""DeBERTa's whole encoder and its enhanced mask decoder against loops in float64; who has the decoder, and who refuses it."""

from __future__ import annotations

import pytest
import torch

import orrery
from oracles.deberta import deberta
from orrery.core.errors import ConfigError
from orrery.models.convert import with_head
from orrery.models.storage import load, save
from orrery.nn.contract import Context
from orrery.testing.subject import perturb

SEGMENTS = torch.tensor([[0, 0, 0, 2, 2, 5, 5, 5, -1], [1] * 7 + [-1, -1]])
TOKENS = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(0))
SMALL = {"width": 16, "depth": 2, "vocab_size": 11, "seed": 1, "mixer.head_dim": 8, "mixer.buckets": 4, "mixer.max_positions": 9}


def build(**settings):
    model = orrery.create_model("deberta", **SMALL, **settings)
    perturb(model, 1)
    return model.double().eval()


@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["whole", "packed"])
@pytest.mark.parametrize("settings", [{}, {"head.positions": 9}, {"head.positions": 9, "head.passes": 3}], ids=["plain", "twice", "thrice"])
def test_equals_the_equations(segments, settings):
    model = build(**settings)
    with torch.no_grad():
        out = model(TOKENS, segments=segments)
        states, logits = model.hidden_states(TOKENS, segments), out.logits
    values = {name: value.numpy() for name, value in model.state_dict().items()}
    config = {**model.config.to_dict(), "mixer": model.blocks[0].mixer.config.to_dict(), "head": model.head.config.to_dict()}
    expected = torch.from_numpy(deberta(values, config, TOKENS.numpy(), None if segments is None else segments.numpy()))
    valid = torch.ones(2, 9) if segments is None else (segments >= 0).double()
    assert float(((logits - expected) * valid[..., None]).abs().max()) < 1e-10
    torch.testing.assert_close(states[-1], out.hidden)


def test_every_parameter_of_the_decoder_learns_and_recomputation_changes_nothing():
    model = build(**{"head.positions": 9}).train()
    found = []
    for recompute in (False, True):
        model.checkpoint_blocks = recompute
        loss = model.head.loss(model(TOKENS, segments=SEGMENTS).logits, TOKENS.masked_fill(SEGMENTS < 0, -100))
        found.append(torch.autograd.grad(loss, list(model.parameters())))
    names = [name for name, _ in model.named_parameters()]
    for name, one, two in zip(names, *found, strict=True):
        assert bool(one.any()), name
        torch.testing.assert_close(one, two, msg=name)
    unused = found[0][names.index("head.absolute")].abs().sum(1)
    assert bool((unused[:7] > 0).all()) and not unused[7:].any()  # the longest document has 7 tokens


def test_it_belongs_to_the_head(tmp_path):
    model = build(**{"head.positions": 9})
    tuned = with_head(model, "classification", labels=2)
    assert not any("absolute" in name for name in tuned.state_dict())
    bare, plain = with_head(model, None), build()
    with torch.no_grad():
        assert not torch.allclose(bare(TOKENS).hidden, model(TOKENS).hidden)
        plain.load_state_dict({name: value for name, value in model.state_dict().items() if name != "head.absolute"})
        assert torch.equal(bare(TOKENS).hidden, plain(TOKENS).hidden)
        assert model.flops(9) > plain.flops(9)
        save(model.float(), tmp_path / "own")
        kept, hidden = load(tmp_path / "own").eval(), model(TOKENS).hidden
        assert torch.equal(kept(TOKENS).hidden, hidden)
        kept.prepare = True  # weights laid out for reading know nothing of the decoder, so they are not used
        assert torch.equal(kept(TOKENS).hidden, hidden)
    with pytest.raises(ConfigError, match="no class with the head 'masked-lm'"):
        orrery.to_transformers(model, tmp_path / "theirs")


def test_what_cannot_be_is_said():
    with pytest.raises(ConfigError, match="has 4 absolute positions and cannot read position 8"):
        build(**{"head.positions": 4})(TOKENS)
    with pytest.raises(ConfigError, match="queries may be others than its keys, as in deberta, not bert's"):
        orrery.create_model("bert", width=16, depth=1, vocab_size=11, **{"mixer.head_dim": 8, "head.positions": 9})
    for settings in ({"head.positions": -1}, {"head.passes": 0}):
        with pytest.raises(ConfigError, match="must be"):
            build(**settings)
    with pytest.raises(ConfigError, match="cannot honour 'memory'"):
        build()(TOKENS, ctx=Context(memory=torch.zeros(2, 9, 16)))
