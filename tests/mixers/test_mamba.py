"""Mamba and Falcon Mamba against transformers' with the same weights, both ways; initialisation, sizes, matrix form.

The float64 loop of tests/oracles/mamba.py runs with the contract checks.
"""

from __future__ import annotations

import math

import pytest
import torch

from all_double import AllDouble
from orrery.core.errors import ConfigError
from orrery.core.registry import lookup
from orrery.mixers.mamba import Mamba, MambaConfig
from orrery.models.build import build as build_model
from orrery.models.build import create_model, resolve
from orrery.models.exchange import from_transformers, to_transformers
from orrery.nn.contract import Context, Place
from orrery.nn.timeline import plan

SIZES = {torch.float32: 1e-4, torch.float64: 1e-8}
SETTINGS = {
    "mamba": {"tie_word_embeddings": True},
    "mamba other": {
        "use_bias": True, "use_conv_bias": False, "tie_word_embeddings": False, "state_size": 5, "time_step_rank": 3, "conv_kernel": 3
    },
    "falcon": {"tie_word_embeddings": False, "mixer_rms_eps": 1e-2},
}  # fmt: skip


def theirs(name, dtype=torch.float32):
    transformers = pytest.importorskip("transformers")
    family = "FalconMamba" if name == "falcon" else "Mamba"
    sizes = {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "vocab_size": 50, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(**{**sizes, **SETTINGS[name]}, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # defaults hide mistakes
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(dtype)


def close(ours, right, limit):
    assert ours.shape == right.shape and ours.dtype == right.dtype
    assert (ours - right).abs().max() <= limit * right.abs().max()


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("dtype", list(SIZES), ids=str)
def test_transformers_logits_and_gradients(dtype, name):
    model = theirs(name, dtype)
    ours = from_transformers(model)
    tokens = torch.randint(0, 50, (2, 40))
    layers, mixers = model.backbone.layers, [block.mixer for block in ours.blocks]
    with AllDouble():
        right = model(tokens).logits
        some = (
            layers[0].mixer.in_proj.weight,
            layers[1].mixer.A_log,
            layers[1].mixer.dt_proj.bias,
            model.backbone.embeddings.weight,
        )
        expected = torch.autograd.grad(right.square().mean(), some)
    logits = ours(tokens).logits
    close(logits, right, SIZES[dtype])
    same = mixers[0].inputs.linear.weight, mixers[1].A_log, mixers[1].dt.bias, ours.embed.weight
    for gradient, want in zip(torch.autograd.grad(logits.square().mean(), same), expected, strict=True):
        close(gradient, want, 10 * SIZES[dtype])


@pytest.mark.parametrize("name", SETTINGS)
def test_transformers_decode(name):
    """Their cached decoding and ours, token by token after a prompt."""
    model = theirs(name)
    ours = from_transformers(model)
    tokens = torch.randint(0, 50, (2, 40))
    with torch.no_grad():
        right = model(tokens[:, :30], use_cache=True)
        out = ours(tokens[:, :30])
        close(out.logits, right.logits, 1e-4)
        for t in range(30, 40):
            right = model(tokens[:, t : t + 1], cache_params=right.cache_params, use_cache=True)
            out = ours(tokens[:, t : t + 1], state=out.state)
            close(out.logits, right.logits, 1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_there_and_back(tmp_path, name):
    model = theirs(name)
    ours = from_transformers(model)
    to_transformers(ours, tmp_path / "theirs")
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", local_files_only=True)
    tokens = torch.randint(0, 50, (2, 20))
    with torch.no_grad():
        close(again(tokens).logits, model(tokens).logits, 1e-5)
    back = from_transformers(tmp_path / "theirs")
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), ours.parameters(), strict=True))


def test_what_transformers_cannot_express_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="multiple of the width"):
        to_transformers(create_model("mamba", width=32, depth=1, vocab_size=11, **{"mixer.hidden": 40}), tmp_path / "a")
    with pytest.raises(ConfigError, match="one kind of block"):
        to_transformers(create_model("mamba", width=32, depth=1, vocab_size=11, canon="ac"), tmp_path / "b")


def build(width=32, depth=1, **settings):
    return Mamba(MambaConfig(**settings), Place(width=width, depth=depth))


def test_initialisation_is_the_paper_s():
    mixer = build(width=256, depth=4)
    assert mixer.inner == 512 and mixer.rank == 16
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 17).expand(512, 16))
    steps = torch.nn.functional.softplus(mixer.dt.bias)
    assert steps.min() >= 0.00099 and steps.max() <= 0.101
    assert steps.log().mean().item() == pytest.approx(math.log(1e-2), abs=5 * math.log(100) / math.sqrt(12 * 512))
    assert mixer.dt.weight.abs().max() <= 0.25 and mixer.dt.weight.std().item() == pytest.approx(
        0.25 / 3**0.5, rel=0.03
    )
    assert torch.equal(mixer.D, torch.ones(512))
    assert mixer.out.weight.std().item() == pytest.approx((3 * 512) ** -0.5 / 2, rel=0.02)


@pytest.mark.parametrize(
    ("preset", "millions"),
    [
        ("mamba-130m", 129.1),
        ("mamba-370m", 371.5),
        ("mamba-790m", 793),
        ("mamba-1.4b", 1372),
        ("mamba-2.8b", 2768),
        ("falcon-mamba-7b", 7273),
    ],
)
def test_presets(preset, millions):
    assert lookup(preset).name == "mamba"
    with torch.device("meta"):
        model = build_model(resolve(preset))
    assert model.num_parameters(embedding=True) / 1e6 == pytest.approx(millions, rel=0.002)


def test_no_decay_for_rates_biases_and_skips():
    from orrery.optim.groups import parameter_groups

    groups = parameter_groups(build(), weight_decay=0.1)
    free = {name for group in groups if group["weight_decay"] == 0 for name in group["names"]}
    assert free == {"A_log", "dt.bias", "D", "conv.bias"}


def test_transfer_times_inputs_is_what_the_channels_put_out():
    """Before the gate, which is then applied by hand."""
    mixer = build(state=4, hidden=24).double()
    x = torch.randn(2, 30, 32, dtype=torch.float64)
    context = Context(time=plan(None, None, 2, 30, x.device)[0])
    u, z, _ = mixer._inputs(x, None, context)
    s = torch.einsum("bets,bse->bte", mixer.transfer(x, context), u)
    close(mixer.out(s * torch.nn.functional.silu(z)), mixer(x)[0], 1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"state": 0}, "state must be positive"),
        ({"rank": 0}, "rank must be positive"),
        ({"dt_init": (0.1, 0.01)}, "dt_init must be a range"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(**settings)
