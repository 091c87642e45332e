"""xLSTM-7B's layer against transformers' with the same weights, both ways; its compiled step, gate and norm, sizes, settings."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.overrides import TorchFunctionMode

from orrery.core.errors import ConfigError
from orrery.core.registry import lookup
from orrery.mixers.xlstm_large import XLSTMLarge, XLSTMLargeConfig
from orrery.models.build import build as build_model
from orrery.models.build import create_model, resolve
from orrery.models.exchange import from_transformers, to_transformers
from orrery.nn.contract import Context, Place
from orrery.ops.backend import current_backend, forget_backends, use_backend
from orrery.ops.fused.head_norm_gate import head_norm_gate, head_norm_gate_reference

SIZES = {torch.float32: 1e-4, torch.float64: 1e-8}


class AllDouble(TorchFunctionMode):
    """transformers casts to float32 inside; here float64 stays float64, so that it can be compared at 1e-8."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") is torch.float32 and function in (torch.zeros, torch.Tensor.to):
            kwargs["dtype"] = torch.float64
        if function is torch.Tensor.float and args[0].dtype == torch.float64:
            return args[0]
        return function(*args, **kwargs)


def theirs(dtype=torch.float32):
    pytest.importorskip("transformers")
    from transformers import xLSTMConfig, xLSTMForCausalLM

    config = xLSTMConfig(hidden_size=128, num_hidden_layers=2, num_heads=4, vocab_size=50, chunk_size=16, pad_token_id=0)
    torch.manual_seed(0)
    model = xLSTMForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # defaults hide mistakes; gates that write something
            parameter.add_(0.2 * torch.randn_like(parameter) + 8.0 * name.endswith("igate_preact.bias"))
    return model.to(dtype)


def close(ours, right, limit):
    assert ours.shape == right.shape
    assert (ours - right).abs().max() <= limit * right.abs().max()


@pytest.mark.parametrize("dtype", list(SIZES), ids=str)
def test_transformers_logits_and_gradients(dtype):
    model = theirs(dtype)
    ours = from_transformers(model)
    tokens = torch.randint(0, 50, (2, 64))
    layer, mixer = model.backbone.blocks[0].mlstm_layer, ours.blocks[0].mixer
    with AllDouble() if dtype == torch.float64 else contextlib.nullcontext():
        right = model(tokens, use_cache=False).logits  # with a cache, theirs cannot be differentiated
        some = layer.igate_preact.bias, layer.v.weight, model.backbone.embeddings.weight
        expected = torch.autograd.grad(right.square().mean(), some)
    logits = ours(tokens).logits
    close(logits, right, SIZES[dtype])
    bias, inwards, embed = torch.autograd.grad(
        logits.square().mean(), (mixer.gate_bias, mixer.inputs.linear.weight, ours.embed.weight)
    )
    for gradient, want in zip((bias[:4], inwards[128:256], embed), expected, strict=True):
        close(gradient, want, 10 * SIZES[dtype])


def test_transformers_decode():
    """Their cached decoding and ours, token by token after a prompt."""
    model = theirs()
    ours, tokens = from_transformers(model), torch.randint(0, 50, (2, 30))
    with torch.no_grad():
        right, out = model(tokens[:, :20], use_cache=True), ours(tokens[:, :20])
        for t in range(20, 30):
            close(out.logits[:, -1], right.logits[:, -1], 1e-4)
            right = model(tokens[:, t : t + 1], cache_params=right.cache_params, use_cache=True)
            out = ours(tokens[:, t : t + 1], state=out.state)


def test_there_and_back(tmp_path):
    model = theirs()
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
    model = create_model("xlstm-large", width=32, depth=1, vocab_size=11, softcap=None)
    with pytest.raises(ConfigError, match="bounds its logits"):
        to_transformers(model, tmp_path / "a")
    pytest.importorskip("transformers")
    from transformers import xLSTMConfig, xLSTMForCausalLM

    fused = xLSTMForCausalLM(xLSTMConfig(hidden_size=64, num_hidden_layers=1, num_heads=2, vocab_size=9, use_bias=True))
    with pytest.raises(ConfigError, match="use_bias"):
        from_transformers(fused)


def build(width=32, dtype=torch.float32, **settings):
    return XLSTMLarge(XLSTMLargeConfig(**settings), Place(width=width)).to(dtype)


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("settings", [{}, {"heads": 3, "key_dim": 12, "gate_cap": 3.0}])
def test_the_compiled_step_is_the_step_in_torch(settings, donate):
    torch.manual_seed(0)
    mixer = build(head_dim=8, **settings)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        x = torch.randn(3, 9, 32)
        _, start = mixer(x[:, :8])
        kept = [t.clone() for t in start]
        forget_backends()
        with use_backend("torch"):
            want, after = mixer(x[:, 8:], start)
        found, other = mixer(x[:, 8:], start, Context(donate=donate))
        assert current_backend()["mlstm_step"] == "numba+torch"
    close(found, want, 1e-5)
    close(other.memory, after.memory, 2e-6)
    close(other.peak, after.peak, 2e-6)
    assert (other.memory.data_ptr() == start.memory.data_ptr()) == donate
    assert donate or all(torch.equal(a, b) for a, b in zip(start, kept, strict=True))


@pytest.mark.parametrize("heads", [(4, 16), (3, 21)])
def test_norm_and_gate_in_one_pass(heads):
    torch.manual_seed(0)
    count, values = heads
    leaves = [torch.randn(2, 150, count, values) + 1, torch.randn(2, 150, count * values), torch.randn(count * values)]
    weight = torch.randn(2, 150, count * values)
    results = []
    for form, kind in ((head_norm_gate, torch.float32), (head_norm_gate_reference, torch.float64)):
        own = [x.to(kind).requires_grad_() for x in leaves]
        settings = {"backend": "numba"} if form is head_norm_gate and leaves[0].numel() >= 1 << 14 else {}
        y = form(*own, 1e-5, **settings)
        results.append((y, *torch.autograd.grad((y * weight).sum(), own)))
    for mine, want in zip(*results, strict=True):
        close(mine, want, 3e-6)


def test_initialisation_and_preset():
    mixer = build(width=256, head_dim=64)
    assert torch.equal(mixer.gate_bias, torch.tensor([-10.0] * 4 + [3.0, 4.0, 5.0, 6.0]))
    assert not mixer.inputs.linear.weight[-8:].any()
    assert mixer.inputs.linear.weight[:-8].std().item() == pytest.approx((2 / (5 * 256)) ** 0.5, rel=0.02)
    assert mixer.out.weight.std().item() == pytest.approx(2 / 16, rel=0.02)
    assert lookup("xlstm-7b").name == "xlstm-large"
    with torch.device("meta"):
        model = build_model(resolve("xlstm-7b"))
    assert model.num_parameters(embedding=True) / 1e9 == pytest.approx(6.87, rel=0.005)
    assert model.blocks[0].mixer.key == 256 and model.blocks[0].mixer.heads == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_dim": 0}, "head_dim must be positive"),
        ({"head_dim": 24}, "width 32 is not a multiple"),
        ({"heads": 0}, "heads must be positive"),
        ({"key_dim": 0}, "key_dim must be positive"),
        ({"gate_cap": 0.0}, "gate_cap must be positive"),
        ({"chunk": 0}, "chunk must be positive"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(**settings)


@pytest.mark.parametrize("rows", [1, 3])
def test_decoding_steps_are_the_model(rows):
    """The prepared steps (:mod:`orrery.nn.stepping`) after a prompt, token by token, against calls of the model."""
    model = create_model("xlstm-large", width=32, depth=2, vocab_size=50, **{"mixer.head_dim": 8}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    tokens = torch.randint(0, 50, (rows, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        stepper, want = model.stepper(model(tokens[:, :4]).state, 12), model(tokens).logits
        assert stepper is not None and not stepper.run.general
        for t in range(4, 12):
            close(stepper(tokens[:, t]), want[:, t], 2e-4)
