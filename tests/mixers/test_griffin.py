"""Griffin against transformers' RecurrentGemma with the same weights, both ways; RG-LRU's initialisation and extremes.

The float64 loop of tests/oracles/rg_lru.py runs with the contract checks.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.overrides import TorchFunctionMode

from orrery.core.errors import ConfigError
from orrery.mixers.rg_lru import RGLRU, RGLRUConfig
from orrery.models.build import build as build_model
from orrery.models.build import create_model, resolve
from orrery.models.exchange import from_transformers, to_transformers
from orrery.nn.contract import Place
from orrery.ops.rg_lru import rg_lru

SIZES = {torch.float32: 1e-4, torch.float64: 1e-8}
SETTINGS = {
    "plain": {"num_hidden_layers": 4, "num_key_value_heads": 1},
    "other": {
        "num_hidden_layers": 3, "block_types": ["attention", "recurrent"], "num_key_value_heads": 2, "attention_bias": True,
        "conv1d_width": 3, "logits_soft_cap": 5.0,
    },
}  # fmt: skip


class AllDouble(TorchFunctionMode):
    """transformers casts to float32 inside; here float64 stays float64, so that it can be compared at 1e-8."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            if function is torch.Tensor.float:
                return args[0]
            if function in (torch.Tensor.to, torch.Tensor.type):
                args = tuple(torch.float64 if a is torch.float32 else a for a in args)
                kwargs = {k: torch.float64 if a is torch.float32 else a for k, a in kwargs.items()}
        return function(*args, **kwargs)


def theirs(name, dtype=torch.float32):
    transformers = pytest.importorskip("transformers")
    config = transformers.RecurrentGemmaConfig(
        hidden_size=32, num_attention_heads=4, intermediate_size=80, vocab_size=50, attention_window_size=9,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, attn_implementation="sdpa", **SETTINGS[name],
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.RecurrentGemmaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # defaults hide mistakes
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(dtype)


def exact_rotary(x, positions):
    """Their rotary table without its detour through float32 (theta 10000, 4 of 8 dimensions)."""
    angles = positions[..., None].double() * 10000.0 ** -torch.tensor([0.0, 0.5], dtype=torch.float64)
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def close(ours, right, limit):
    assert ours.shape == right.shape and ours.dtype == right.dtype
    assert (ours - right).abs().max() <= limit * right.abs().max()


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("dtype", list(SIZES), ids=str)
def test_transformers_logits_and_gradients(dtype, name):
    model = theirs(name, dtype)
    ours = from_transformers(model)
    tokens = torch.randint(0, 50, (2, 40))
    if dtype == torch.float64:
        for layer in model.model.layers:
            if hasattr(layer.temporal_block, "rotary_emb"):
                layer.temporal_block.rotary_emb.forward = exact_rotary
    with AllDouble():
        right = model(tokens, use_cache=False).logits
        lru = model.model.layers[1].temporal_block
        some = lru.linear_x.weight, lru.rg_lru.recurrent_param, lru.rg_lru.recurrent_gate_weight
        expected = torch.autograd.grad(right.square().mean(), some)
    logits, mixer = ours(tokens).logits, ours.blocks[1].mixer
    close(logits, right, SIZES[dtype])
    found = torch.autograd.grad(logits.square().mean(), (mixer.inputs.linear.weight, mixer.pace, mixer.recurrence_gate))
    for gradient, want in zip((found[0][32:], *found[1:]), expected, strict=True):
        close(gradient, want, 10 * SIZES[dtype])


@pytest.mark.parametrize("name", SETTINGS)
def test_transformers_decode(name):
    """Their cached decoding and ours, token by token after a prompt, beyond the window."""
    model = theirs(name)
    ours = from_transformers(model)
    tokens = torch.randint(0, 50, (2, 30))
    with torch.no_grad():
        whole = model(tokens, use_cache=False).logits
        generated = model.generate(
            tokens[:, :20], max_new_tokens=8, do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0
        )
        out = ours(tokens[:, :20])
        for t in range(20, 30):
            out = ours(tokens[:, t : t + 1], state=out.state)
            close(out.logits[:, 0], whole[:, t], 1e-4)
        out, picked = ours(generated[:, :20]), []
        for _ in range(8):
            picked.append(out.logits[:, -1].argmax(-1))
            out = ours(picked[-1][:, None], state=out.state)
    assert torch.equal(torch.stack(picked, 1), generated[:, 20:])


@pytest.mark.parametrize("name", SETTINGS)
def test_there_and_back(tmp_path, name):
    model = theirs(name)
    ours = from_transformers(model)
    to_transformers(ours, tmp_path / "theirs")
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", local_files_only=True)
    tokens = torch.randint(0, 50, (2, 20))
    with torch.no_grad():
        close(again(tokens, use_cache=False).logits, model(tokens, use_cache=False).logits, 1e-5)
    back = from_transformers(tmp_path / "theirs")
    for one, other in zip(back.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_what_transformers_cannot_express_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="caps its logits"):
        to_transformers(
            create_model("griffin", width=32, depth=3, vocab_size=11, **{"mixer.head_dim": 8}), tmp_path / "a"
        )
    capped = {"mixer.head_dim": 8, "softcap": 30.0, "canon": "a"}
    with pytest.raises(ConfigError, match="pre-norm blocks"):
        to_transformers(create_model("griffin", width=32, depth=3, vocab_size=11, **capped), tmp_path / "b")


@pytest.mark.parametrize(("preset", "millions"), [("recurrentgemma-2b", 2683), ("recurrentgemma-9b", 8578)])
def test_presets(preset, millions):
    with torch.device("meta"):
        model = build_model(resolve(preset))
    assert model.num_parameters(embedding=True) / 1e6 == pytest.approx(millions, rel=0.002)
    assert [block.mixer.__class__.__name__ for block in model.blocks][:3] == ["RGLRU", "RGLRU", "Attention"]


def test_initial_decays():
    mixer = RGLRU(RGLRUConfig(head_dim=64), Place(width=1024, depth=4))
    squares = torch.exp(-2 * torch.nn.functional.softplus(mixer.pace))
    assert squares.min() >= 0.81 - 1e-4 and squares.max() <= 0.999**2 + 1e-4
    assert squares.mean().item() == pytest.approx((0.81 + 0.999**2) / 2, abs=5 * 0.19 / math.sqrt(12 * 1024))


def test_initial_deviations():
    """The published code's: fan-in^-1/2 for the maps in and the gates, a tenth of that for the taps, sqrt(2 / (depth R)) out."""
    torch.manual_seed(0)
    mixer = RGLRU(RGLRUConfig(head_dim=64, conv=4), Place(width=256, depth=8))
    wanted = {
        mixer.inputs.linear.weight: 256**-0.5,
        mixer.conv.weight: (0.01 / 4) ** 0.5,
        mixer.input_gate: 64**-0.5,
        mixer.recurrence_gate: 64**-0.5,
        mixer.out.weight: (2 / 8 / 256) ** 0.5,
    }
    for weight, deviation in wanted.items():
        assert weight.std().item() == pytest.approx(deviation, rel=5 / math.sqrt(2 * weight.numel()))
    biases = mixer.inputs.linear.bias, mixer.conv.bias, mixer.input_bias, mixer.recurrence_bias, mixer.out.bias
    assert not any(bias.any() for bias in biases)


def test_gates_at_their_ends():
    """A recurrence gate of 0 keeps the state as it is, with finite gradients; one of 1 at a great pace forgets all."""
    x = torch.ones(1, 6, 2, requires_grad=True)
    gate = torch.tensor([-200.0, 200.0]).expand(1, 6, 2).clone().requires_grad_()
    first = torch.zeros(6, dtype=torch.bool)
    pace, state = torch.tensor([0.1, 50.0], requires_grad=True), torch.full((1, 2), 3.0)
    h, after = rg_lru(x, gate, gate, pace, first, state)
    assert torch.equal(h[0, :, 0], torch.full((6,), 3.0)) and torch.equal(h[0, :, 1], torch.ones(6))
    grads = torch.autograd.grad(h.sum() + after.sum(), (x, gate, pace))
    assert all(torch.isfinite(g).all() for g in grads)


def test_impossible_settings():
    with pytest.raises(ConfigError, match="not a multiple of head_dim"):
        RGLRU(RGLRUConfig(head_dim=24), Place(width=32))
    with pytest.raises(ConfigError, match="decay_init"):
        RGLRUConfig(decay_init=(0.9, 1.0))
