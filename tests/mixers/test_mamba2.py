"""Mamba-2 against transformers' with the same weights, both ways; its initialisation, sizes and decode step.

The float64 loop of tests/oracles/mamba2.py runs with the contract checks.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.overrides import TorchFunctionMode

from orrery.core.errors import ConfigError
from orrery.core.registry import lookup
from orrery.mixers.mamba2 import Mamba2, Mamba2Config
from orrery.models.build import build as build_model
from orrery.models.build import create_model, resolve
from orrery.models.exchange import from_transformers, to_transformers
from orrery.nn.contract import Context, Place
from orrery.nn.timeline import plan
from orrery.ops.backend import current_backend, forget_backends, use_backend

SIZES = {torch.float32: 1e-4, torch.float64: 1e-8}
SETTINGS = (
    {"n_groups": 1, "use_bias": False, "use_conv_bias": True, "tie_word_embeddings": True},
    {"n_groups": 2, "use_bias": True, "use_conv_bias": False, "tie_word_embeddings": False, "time_step_limit": (0.01, 0.5)},
)


class AllDouble(TorchFunctionMode):
    """transformers casts to float32 inside; here float64 stays float64, so that it can be compared at 1e-8."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            if function is torch.Tensor.float:
                return args[0]
            if function is torch.Tensor.to:
                args = tuple(torch.float64 if a is torch.float32 else a for a in args)
                kwargs = {k: torch.float64 if a is torch.float32 else a for k, a in kwargs.items()}
        return function(*args, **kwargs)


def theirs(dtype=torch.float32, **settings):
    pytest.importorskip("transformers")
    from transformers import Mamba2Config as TheirConfig
    from transformers import Mamba2ForCausalLM

    config = TheirConfig(
        hidden_size=32, num_heads=8, head_dim=8, state_size=16, num_hidden_layers=3, vocab_size=50, chunk_size=32,
        conv_kernel=4, pad_token_id=0, bos_token_id=0, eos_token_id=0, **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Mamba2ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # defaults hide mistakes
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(dtype)


def close(ours, right, limit):
    assert ours.shape == right.shape and ours.dtype == right.dtype
    assert (ours - right).abs().max() <= limit * right.abs().max()


@pytest.mark.parametrize("settings", SETTINGS, ids=("plain", "other"))
@pytest.mark.parametrize("dtype", list(SIZES), ids=str)
def test_transformers_logits_and_gradients(dtype, settings):
    model = theirs(dtype, **settings)
    ours = from_transformers(model)
    tokens = torch.randint(0, 50, (2, 100))
    layers, mixers = model.backbone.layers, [block.mixer for block in ours.blocks]
    with AllDouble():
        right = model(tokens).logits
        some = layers[0].mixer.in_proj.weight, layers[1].mixer.A_log, layers[1].mixer.dt_bias, model.backbone.embeddings.weight
        expected = torch.autograd.grad(right.square().mean(), some)
    logits = ours(tokens).logits
    close(logits, right, SIZES[dtype])
    same = mixers[0].inputs.linear.weight, mixers[1].A_log, mixers[1].dt_bias, ours.embed.weight
    found = torch.autograd.grad(logits.square().mean(), same)
    for gradient, want in zip(found, expected, strict=True):
        close(gradient, want, 10 * SIZES[dtype])


def test_transformers_decode():
    """Their cached decoding and ours, token by token after a prompt. (Theirs ignores time_step_limit there.)"""
    model = theirs(**SETTINGS[0])
    ours = from_transformers(model)
    tokens = torch.randint(0, 50, (2, 60))
    with torch.no_grad():
        right = model(tokens[:, :50], use_cache=True)
        out = ours(tokens[:, :50])
        close(out.logits, right.logits, 1e-4)
        for t in range(50, 60):
            right = model(tokens[:, t : t + 1], cache_params=right.cache_params, use_cache=True)
            out = ours(tokens[:, t : t + 1], state=out.state)
            close(out.logits, right.logits, 1e-4)


@pytest.mark.parametrize("settings", SETTINGS, ids=("plain", "other"))
def test_there_and_back(tmp_path, settings):
    model = theirs(**settings)
    ours = from_transformers(model)
    to_transformers(ours, tmp_path / "theirs")
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", local_files_only=True)
    tokens = torch.randint(0, 50, (2, 70))
    with torch.no_grad():
        close(again(tokens).logits, model(tokens).logits, 1e-5)
    back = from_transformers(tmp_path / "theirs")
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), ours.parameters(), strict=True))


def test_what_transformers_cannot_express_is_refused(tmp_path):
    model = create_model("mamba2", width=40, depth=1, vocab_size=11, **{"mixer.head_dim": 32})
    with pytest.raises(ConfigError, match="multiple of the width"):
        to_transformers(model, tmp_path / "a")
    with pytest.raises(ConfigError, match="one kind of block"):
        to_transformers(create_model("mamba2", width=32, depth=1, vocab_size=11, canon="ac"), tmp_path / "b")


def build(width=32, dtype=torch.float32, depth=1, **settings):
    return Mamba2(Mamba2Config(**settings), Place(width=width, depth=depth)).to(dtype)


def test_initialisation_is_the_paper_s():
    mixer = build(width=1024, depth=4, head_dim=4, expand=2.0)
    rates, steps = mixer.A_log.exp(), torch.nn.functional.softplus(mixer.dt_bias)
    heads = mixer.heads
    assert heads == 512
    assert rates.min() >= 1 and rates.max() <= 16
    assert rates.mean().item() == pytest.approx(8.5, abs=5 * 15 / math.sqrt(12 * heads))
    assert steps.min() >= 0.00099 and steps.max() <= 0.101
    assert steps.log().mean().item() == pytest.approx(math.log(1e-2), abs=5 * math.log(100) / math.sqrt(12 * heads))
    assert torch.equal(mixer.D, torch.ones(heads)) and torch.equal(mixer.norm, torch.ones(2048))
    assert mixer.inputs.linear.weight.std().item() == pytest.approx((3 * 1024) ** -0.5, rel=0.02)
    assert mixer.out.weight.std().item() == pytest.approx((3 * 2048) ** -0.5 / 2, rel=0.02)
    assert mixer.conv.weight.abs().max() <= 0.5 and mixer.conv.weight.std().item() == pytest.approx(0.5 / 3**0.5, rel=0.05)


def test_step_sizes_keep_their_floor_and_their_bounds():
    mixer = build(width=64, dt_init=(1e-8, 1e-6), head_dim=4)
    assert torch.nn.functional.softplus(mixer.dt_bias).min().item() == pytest.approx(1e-4, rel=1e-3)
    bounded = build(dt_limit=(0.2, 0.3), head_dim=8)
    _, dt = bounded._gates(torch.linspace(-20, 20, 8).expand(1, 1, 8))
    assert dt.min() >= 0.2 and dt.max() <= 0.3 and dt.max() > dt.min()


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("mamba2-130m", 129), ("mamba2-370m", 368), ("mamba2-780m", 780), ("mamba2-1.3b", 1344), ("mamba2-2.7b", 2703)],
)
def test_presets(preset, millions):
    assert lookup(preset).name == "mamba2"
    with torch.device("meta"):
        model = build_model(resolve(preset))
    assert model.num_parameters(embedding=True) / 1e6 == pytest.approx(millions, rel=0.005)
    assert model.blocks[0].mixer.config.state == 128 and model.blocks[0].mixer.config.head_dim == 64


def test_no_decay_for_rates_steps_and_skips():
    from orrery.optim.groups import parameter_groups

    groups = parameter_groups(build(), weight_decay=0.1)
    free = {name for group in groups if group["weight_decay"] == 0 for name in group["names"]}
    assert free >= {"A_log", "dt_bias", "D", "norm", "conv.bias"} and "out.weight" not in free


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"groups": 2, "dt_limit": (0.01, 0.3), "conv_bias": False, "conv": 1, "bias": True},
        {"groups": 2, "gate_norm": "before"},
        {"gate_norm": "none"},
    ],
)
def test_the_compiled_step_is_the_step_in_torch(settings, donate):
    """Outputs and both states; a state that is not donated stays as it was."""
    torch.manual_seed(0)
    mixer = build(head_dim=8, state=12, **settings)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        x = torch.randn(3, 9, 32)
        _, start = mixer(x[:, :8])
        kept = [t.clone() for t in start]
        forget_backends()
        with use_backend("torch"):
            want, after = mixer(x[:, 8:], start)
        assert current_backend()["mamba2_step"] == "torch"
        found, other = mixer(x[:, 8:], start, Context(donate=donate))
        assert current_backend()["mamba2_step"] == "numba+torch"
    close(found, want, 2e-6)
    close(other.ssm, after.ssm, 2e-6)
    assert torch.equal(other.conv, after.conv)
    assert (other.ssm.data_ptr() == start.ssm.data_ptr()) == donate
    assert donate or all(torch.equal(a, b) for a, b in zip(start, kept, strict=True))


def test_a_step_with_gradients_runs_in_torch():
    mixer = build(head_dim=8, state=12)
    x = torch.randn(2, 1, 32)
    forget_backends()
    y, _ = mixer(x, mixer.init_state(2))
    y.square().sum().backward()
    assert current_backend()["mamba2_step"] == "torch"
    assert mixer.inputs.linear.weight.grad.abs().sum() > 0


def test_transfer_times_inputs_is_what_the_heads_put_out():
    """Before gate and norm, seen by a gate that is open and a norm that is undone."""
    mixer = build(dtype=torch.float64, head_dim=8, state=4, groups=2)
    x = torch.randn(2, 30, 32, dtype=torch.float64)
    time = plan(None, None, 2, 30, x.device)[0]
    context = Context(time=time)
    matrix = mixer.transfer(x, context)
    p = mixer.inputs.linear(x)
    z, xbc, _ = p.split([mixer.inner, mixer.mixed, mixer.heads], -1)
    values = mixer._heads(mixer.conv(xbc, None, context)[0])[0]
    y = torch.einsum("bhts,bshp->bthp", matrix, values).flatten(2) * torch.nn.functional.silu(z)
    parts = y.unflatten(-1, (2, -1))
    parts = parts / (parts.square().mean(-1, keepdim=True) + mixer.config.eps).sqrt()
    close(mixer.out(parts.flatten(2) * mixer.norm), mixer(x)[0], 1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_dim": 0}, "head_dim must be positive"),
        ({"chunk": 0}, "chunk must be positive"),
        ({"dt_init": (0.1, 0.01)}, "dt_init must be a range"),
        ({"dt_limit": (-1.0, 0.5)}, "dt_limit must be a range"),
        ({"gate_norm": "both"}, "gate_norm 'both' must be one of"),
        ({"groups": 3, "head_dim": 8}, "groups 3 must divide the 8 heads"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(**settings)
