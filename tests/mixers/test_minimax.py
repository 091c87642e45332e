"""MiniMax against transformers' with the same weights, both ways; its layers, scales and published size."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.overrides import TorchFunctionMode

from orrery.core.errors import ConfigError
from orrery.core.registry import lookup
from orrery.models.build import build as build_model
from orrery.models.build import create_model, resolve
from orrery.models.exchange import from_transformers, to_transformers

SIZES = {torch.float32: 1e-4, torch.float64: 1e-8}


class AllDouble(TorchFunctionMode):
    """transformers casts to float32 inside; here float64 stays float64, so that it can be compared at 1e-8."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            if function is torch.Tensor.float:
                return args[0]
            if function is torch.Tensor.to:
                args = tuple(torch.float64 if a is torch.float32 else a for a in args)
                kwargs = {k: torch.float64 if a is torch.float32 else a for k, a in kwargs.items()}
        return function(*args, **kwargs)


@contextlib.contextmanager
def default(dtype):
    """Their decay tables are made in the default type."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def theirs(dtype=torch.float32, **settings):
    """Their layer 0 has softmax attention: their cache counts positions there, and else starts from 0 with every call."""
    pytest.importorskip("transformers")
    from transformers import MiniMaxConfig, MiniMaxForCausalLM

    config = MiniMaxConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_hidden_layers=3, vocab_size=50,
        intermediate_size=24, num_local_experts=4, block_size=16, mlp_alpha_factor=1.5, linear_attn_beta_factor=0.5,
        full_attn_alpha_factor=1.25, layer_types=["full_attention", "linear_attention", "linear_attention"],
        bos_token_id=0, eos_token_id=0, pad_token_id=0, **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    with default(dtype):
        model = MiniMaxForCausalLM(config).eval()
        model.set_experts_implementation("eager")  # theirs is for single precision otherwise
        rates = 1e6 ** (-torch.arange(0, 8, 2, dtype=dtype) / 8)
        model.model.rotary_emb.inv_freq.data = rates  # theirs are single precision
    with torch.no_grad():
        for parameter in model.parameters():  # defaults hide mistakes
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def close(ours, right, limit):
    assert ours.shape == right.shape
    assert (ours - right).abs().max() <= limit * right.abs().max()


@pytest.mark.parametrize("dtype", list(SIZES), ids=str)
def test_transformers_logits_and_gradients(dtype):
    model = theirs(dtype)
    ours, tokens = from_transformers(model), torch.randint(1, 50, (2, 45))
    with AllDouble() if dtype == torch.float64 else contextlib.nullcontext():
        right = model(tokens).logits
        some = model.model.layers[2].self_attn.out_proj.weight, model.model.layers[1].mlp.experts.down_proj
        expected = torch.autograd.grad(right.square().mean(), (*some, model.model.embed_tokens.weight))
    logits = ours(tokens).logits
    close(logits, right, SIZES[dtype])
    same = ours.blocks[2].mixer.out.weight, ours.blocks[1].channel.out, ours.embed.weight
    for gradient, want in zip(torch.autograd.grad(logits.square().mean(), same), expected, strict=True):
        close(gradient, want, 10 * SIZES[dtype])


def test_transformers_decode():
    """Their cached decoding and ours, token by token after a prompt."""
    model = theirs()
    ours, tokens = from_transformers(model), torch.randint(0, 50, (2, 40))
    with torch.no_grad():
        right, out = model(tokens[:, :30], use_cache=True), ours(tokens[:, :30])
        for t in range(30, 40):
            close(out.logits[:, -1], right.logits[:, -1], 1e-4)
            right = model(tokens[:, t : t + 1], past_key_values=right.past_key_values, use_cache=True)
            out = ours(tokens[:, t : t + 1], state=out.state)


def test_there_and_back(tmp_path):
    model = theirs()
    ours = from_transformers(model)
    assert [block.scales for block in ours.config.blocks] == [(1.25, 1.0, 1.5, 1.0), (1.0, 0.5, 1.5, 1.0)]
    to_transformers(ours, tmp_path / "theirs")
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", local_files_only=True)
    tokens = torch.randint(0, 50, (2, 20))
    with torch.no_grad():
        close(again(tokens).logits, model(tokens).logits, 1e-5)
    back = from_transformers(tmp_path / "theirs")
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), ours.parameters(), strict=True))


def test_what_transformers_cannot_express_is_refused(tmp_path):
    settings = {"width": 32, "depth": 2, "vocab_size": 11, "pattern": "linear + full"}
    for change, message in (
        ({"attention.rope": 0.5}, "no partial rotation"),
        ({"lightning.output_gate": "linear"}, "has lightning attention with"),
        ({"placement": "pre"}, "the placement 'normed'"),
    ):
        with pytest.raises(ConfigError, match=message):
            to_transformers(create_model("minimax", **settings, **change), tmp_path / "a")


def test_preset_and_pattern():
    assert lookup("minimax-text-01").name == "minimax"
    with torch.device("meta"):
        model = build_model(resolve("minimax-text-01"))
    assert model.num_parameters(embedding=True) / 1e9 == pytest.approx(456, rel=0.005)
    kinds = [model.config.blocks[i].mixer["name"] for i in model.config.layout]
    assert kinds == (["lightning"] * 7 + ["attention"]) * 10
    assert model.blocks[7].mixer.rotated == 64 and model.blocks[0].config.scales[0] == pytest.approx(3.5566, rel=1e-4)


def test_layers_of_an_architecture_in_other_patterns():
    config = resolve("minimax/linear + transformer", width=64, depth=2)
    assert [block.mixer["name"] for block in config.blocks] == ["lightning", "attention"]
    assert config.blocks[0].channel["name"] == "moe" and config.blocks[1].placement == "pre"
    with pytest.raises(ConfigError, match="has no layer 'linea'"):
        resolve("minimax/linea")
    with pytest.raises(ConfigError, match="stands alone"):
        resolve("minimax | attention")
    with pytest.raises(ConfigError, match="whose name stands for a pattern"):
        resolve("transformer", overrides={"pattern": "gpt2"})


@pytest.mark.parametrize("rows", [1, 3])
def test_decoding_steps_are_the_model(rows):
    """The prepared steps (:mod:`orrery.nn.stepping`) after a prompt, token by token, against calls of the model."""
    settings = {"pattern": "full + linear*2", "scales": (1.5, 0.5, 1.25, 0.75), "mixer.head_dim": 8}
    model = create_model("minimax", width=32, depth=3, vocab_size=50, **settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    tokens = torch.randint(0, 50, (rows, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        stepper, want = model.stepper(model(tokens[:, :4]).state, 12), model(tokens).logits
        assert stepper is not None and not stepper.run.general
        for t in range(4, 12):
            close(stepper(tokens[:, t]), want[:, t], 2e-4)
