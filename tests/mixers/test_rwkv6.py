"""RWKV-6's initialisation, sizes and parts, RWKV-5 as its setting; the float64 loop runs with the contract checks."""

from __future__ import annotations

import pytest
import torch

from orrery.core.errors import ConfigError
from orrery.core.registry import lookup
from orrery.mixers.rwkv6 import ARCHITECTURE, EAGLE, RWKV6, RWKV6Config
from orrery.models.build import build as build_model
from orrery.models.build import create_model, resolve
from orrery.nn.contract import Place
from orrery.optim.groups import parameter_groups


def build(layer=0, depth=4, width=32, **settings):
    return RWKV6(RWKV6Config(**{"head_dim": 8, **settings}), Place(width=width, layer=layer, depth=depth))


@pytest.mark.parametrize("layer", [0, 3])
def test_initialisation_is_the_published_one(layer):
    mixer = build(layer=layer, width=64)
    share, last, fill = torch.arange(64) / 64, layer / 3, 1 - layer / 4
    w, k, v, r, g = mixer.mixture
    for row, power, more in ((w, fill, 0), (k, fill, 0), (v, fill, 0.3 * last), (r, fill / 2, 0), (g, fill / 2, 0)):
        assert torch.allclose(row, 1 - (share**power + more), atol=1e-6)
    assert mixer.decay[0] == -6 and mixer.decay[-1].item() == pytest.approx(-1) and (mixer.decay.diff() > 0).all()
    flat = mixer.bonus.flatten()
    assert torch.allclose(flat[:3] - last * (1 - torch.arange(3) / 63), torch.tensor([0.0, 0.1, -0.1]), atol=1e-6)
    assert not mixer.mix_in.any() and not mixer.decay_in.any() and not mixer.out.weight.any()
    assert 0.009 < mixer.mix_out.abs().max() <= 0.01 and 0.009 < mixer.decay_out.abs().max() <= 0.01
    eye = torch.eye(64)
    for linear, gain in ((mixer.receptance, 1.0), (mixer.keys, 0.1), (mixer.values, 1.0), (mixer.gate, 0.1)):
        assert torch.allclose(linear.weight @ linear.weight.t(), gain**2 * eye, atol=1e-5)
    assert torch.allclose(mixer.norm.weight, torch.tensor(((1 + layer) / 4) ** 0.7))


@pytest.mark.parametrize("name", ["rwkv5", "rwkv6"])
def test_keys_of_the_channel_mix_start_as_long_as_the_token(name):
    key = create_model(name, width=64, depth=1, vocab_size=8).blocks[0].channel.key.weight
    assert key.shape == (224, 64)
    torch.testing.assert_close(key.t() @ key, torch.eye(64), rtol=0, atol=1e-5)


def test_only_the_five_projections_decay():
    groups = parameter_groups(build(mix_rank=4, decay_rank=4), weight_decay=0.1)
    decaying = {name for group in groups if group["weight_decay"] for name in group["names"]}
    assert decaying == {f"{name}.weight" for name in ("receptance", "keys", "values", "gate", "out")}


def test_the_shift_sees_one_token_back_and_no_further():
    mixer = build(mix_rank=4, decay_rank=4).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(1, 9, 32, dtype=torch.float64, requires_grad=True)
    from orrery.nn.timeline import plan

    for part in mixer._shift(x, None, plan(None, None, 1, 9, x.device)[0])[0]:
        (seen,) = torch.autograd.grad(part[0, 5].sum(), x, retain_graph=True)
        assert seen[0].any(1).tolist() == [False, False, False, False, True, True, False, False, False]


def test_low_rank_parts_at_zero_are_rwkv_5():
    """Finch with what its initialisation starts from is Eagle with the same other parameters."""
    finch, eagle = build(mix_rank=4, decay_rank=4), build(mix_rank=0, decay_rank=0)
    assert {name for name, _ in eagle.named_parameters()} < {name for name, _ in finch.named_parameters()}
    with torch.no_grad():
        for name, parameter in eagle.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
            own = dict(finch.named_parameters())[name]
            own[own.shape[0] - parameter.shape[0] :].copy_(parameter)
        x = torch.randn(2, 20, 32)
        torch.testing.assert_close(finch(x)[0], eagle(x)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("preset", "billions"),
    [
        ("rwkv-6-1.6b", 1.6),
        ("rwkv-6-3b", 3.1),
        ("rwkv-6-7b", 7.6),
        ("rwkv-5-0.4b", 0.46),
        ("rwkv-5-1.5b", 1.58),
        ("rwkv-5-3b", 3.06),
        ("rwkv-5-7b", 7.52),
    ],
)
def test_presets_have_their_published_sizes(preset, billions):
    assert lookup(preset).name == f"rwkv{preset[5]}" and preset in {**ARCHITECTURE.presets, **EAGLE.presets}
    with torch.device("meta"):
        model = build_model(resolve(preset))
    assert model.num_parameters(embedding=True) / 1e9 == pytest.approx(billions, rel=0.02)


def test_a_model_begins_as_the_identity_between_embedding_and_head():
    model = create_model("rwkv6", size="nano", seed=0)
    tokens = torch.randint(0, 257, (1, 7))
    with torch.no_grad():
        hidden = model(tokens).hidden
        torch.testing.assert_close(hidden, model.norm(model.embed_norm(model.embed(tokens))))


def test_impossible_settings():
    for settings, message in (
        ({"head_dim": 0}, "head_dim must be positive"),
        ({"mix_rank": -1}, "mix_rank must not be negative"),
        ({"decay_rank": 0}, "mix_rank without decay_rank"),
    ):
        with pytest.raises(ConfigError, match=message):
            RWKV6Config(**settings)
    with pytest.raises(ConfigError, match="not a multiple of head_dim"):
        build(width=20)
