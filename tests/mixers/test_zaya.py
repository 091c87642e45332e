"""ZAYA against transformers and against loops: logits both ways, cached generation, documents, experts that a token may leave out."""

from __future__ import annotations

import pytest
import torch

import orrery
from exchanged import check_decoding, check_float64, close, drawn
from oracles.cca import experts
from orrery.core.errors import ConfigError
from orrery.models.exchange import find_map
from orrery.models.storage import read_weights, stored_tensors, write_tensors
from orrery.nn.block import part_config
from orrery.nn.carried_moe import CarriedMoE, CarriedMoEConfig
from orrery.nn.contract import Aux, Context, Place
from orrery.nn.residual_scale import ResidualScale

pytest.importorskip("transformers")
SIZES = {
    "vocab_size": 61, "hidden_size": 32, "moe_intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "router_hidden_size": 12, "rms_norm_eps": 1e-3,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 8, "partial_rotary_factor": 0.5}
CASES = {
    "plain": SIZES,
    "windows": {
        **SIZES, "layer_types": ["hybrid", "hybrid_sliding", "hybrid"], "sliding_window": 7, "cca_time0": 3, "cca_time1": 4,
        "tie_word_embeddings": False, "attention_bias": True, "num_key_value_heads": 4,
        "rope_parameters": {
            "hybrid": YARN, "hybrid_sliding": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 1.0},
        },
    },
}  # fmt: skip
X = torch.randint(1, 61, (2, 23), generator=torch.Generator().manual_seed(1))


def theirs(case):
    hf = drawn("ZayaConfig", CASES[case])
    for name, parameter in hf.named_parameters():
        if "router_mlp" in name and parameter.dim() == 2:
            parameter.data.mul_(6.0)  # so that tokens differ in what they choose
    for name, buffer in hf.named_buffers():
        if name.endswith("balancing_biases"):
            buffer.copy_(-0.95 + 0.1 * torch.randn(buffer.shape, generator=torch.Generator().manual_seed(7)))
            buffer[-1] = -1.0  # their loader sets that of no expert to -1, whatever the file says
    return hf


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_there_and_back_and_cached_generation(case, tmp_path):
    hf = theirs(case)
    own, aux = orrery.from_transformers(hf).eval(), Aux("experts")
    expected = hf(X).logits
    close(own(X, ctx=Context(aux=aux)).logits, expected)
    chosen = torch.stack([aux.reports["experts"][layer] for layer in range(3)])
    assert len(chosen.unique()) == {"plain": 4, "windows": 5}[case]  # four experts, and none
    orrery.to_transformers(own, tmp_path / "ours")
    again = type(hf).from_pretrained(tmp_path / "ours").eval()
    close(again(X).logits, expected)
    for mine, same in zip(orrery.from_transformers(tmp_path / "ours").state_dict().values(), own.state_dict().values(), strict=True):
        assert torch.equal(mine, same)
    check_decoding(hf, X, 12)


@pytest.mark.parametrize("case", CASES)
def test_in_float64_logits_are_equal_to_rounding(case):
    check_float64(lambda: theirs(case), X)


@torch.no_grad()
def test_documents_of_one_row_are_theirs_each_alone():
    """Every cut lies within the reach of the taps, of the second row twice; a document goes on over a cut of the call."""
    hf = theirs("windows")
    own = orrery.from_transformers(hf).eval()
    segments = torch.tensor([[0] * 9 + [1] * 14, [4] * 20 + [5] + [6] * 2])
    first = own(X[:, :12], segments=segments[:, :12])
    found = torch.cat([first.logits, own(X[:, 12:], state=first.state, segments=segments[:, 12:]).logits], 1)
    close(own(X, segments=segments).logits, found)
    for row, cuts in ((0, (0, 9, 23)), (1, (0, 20, 21, 23))):
        for begin, end in zip(cuts[:-1], cuts[1:], strict=True):
            close(found[row, begin:end], hf(X[row : row + 1, begin:end]).logits[0])


@pytest.mark.parametrize("layer", [0, 1])
@torch.no_grad()
def test_experts_are_those_of_plain_loops(layer):
    part = CarriedMoE(CarriedMoEConfig(experts=3, hidden=10, router=6), Place(width=16, layer=layer, depth=2)).double().eval()
    generator = torch.Generator().manual_seed(5)
    for tensor in (*part.parameters(), part.selection_bias):
        tensor.copy_(0.5 * torch.randn(tensor.shape, generator=generator))
    part.selection_bias.mul_(0.1)
    part.router.out.weight.mul_(20.0)
    x, before = torch.randn(2, 30, 16, dtype=torch.float64, generator=generator), torch.randn(2, 30, 6, dtype=torch.float64, generator=generator)
    ctx = Context(aux=Aux("experts"), shared={"router": before})
    y, _ = part(x, None, ctx)
    named = {name: tensor.numpy() for name, tensor in part.state_dict().items()}
    for row in range(2):
        right, left, choices = experts(named, x[row].numpy(), before[row].numpy() if layer else None)
        torch.testing.assert_close(y[row], torch.tensor(right), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ctx.shared["router"][row], torch.tensor(left), rtol=1e-10, atol=1e-10)
        assert ctx.aux.reports["experts"][layer][row, :, 0].tolist() == choices and 3 in choices


def test_training_moves_the_bias_of_experts_alone():
    model = orrery.create_model("zaya", width=32, depth=2, vocab_size=50, seed=0, **{"mixer.head_dim": 8, "carried-moe.bias_rate": 0.01})
    objective, seen = orrery.create_objective("next-token"), X.clamp(max=49)
    for _ in range(2):
        objective(model, {"tokens": seen})[0].backward()
        with torch.no_grad():
            for p in model.parameters():
                assert p.grad is not None and p.grad.abs().max() > 0
                p -= 0.01 * p.grad
                p.grad = None
    bias = model.blocks[1].channel.selection_bias
    assert bias[-1] == -1 and bias[:-1].abs().max() == pytest.approx(0.01)


@torch.no_grad()
def test_loads_of_the_step_at_hand_are_no_weights(tmp_path):
    """They go neither to transformers nor need they lie in a folder; the bias that followed them does both."""
    sizes = {"mixer.head_dim": 8, "carried-moe.hidden": 8, "carried-moe.bias_rate": 0.01}
    model = orrery.create_model("zaya", width=32, depth=2, vocab_size=61, seed=0, **sizes).eval()
    for block in model.blocks:
        block.channel.selection_bias[:-1] = 0.1
        block.channel.load.fill_(3.0)
    orrery.to_transformers(model, tmp_path / "hf")
    close(orrery.from_transformers(tmp_path / "hf").eval()(X).logits, model(X).logits)
    orrery.save(model, tmp_path / "whole")
    assert torch.equal(orrery.load(tmp_path / "whole").blocks[1].channel.load, torch.full((8,), 3.0))
    tensors = {name: tensor for name, tensor in stored_tensors(model).items() if not name.endswith(".load")}
    write_tensors(tensors, tmp_path / "bare.safetensors")
    again = orrery.create_model("zaya", width=32, depth=2, vocab_size=61, seed=1, **sizes).eval()
    read_weights(again, tmp_path / "bare.safetensors")
    assert torch.equal(again(X).logits, model(X).logits) and not again.blocks[1].channel.load.any()


def test_a_residual_sum_begins_as_a_plain_one():
    x, y = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    part = ResidualScale(8)
    assert torch.equal(part(x, y), x + y)
    with torch.no_grad():
        part.stream.shift.fill_(1.0)
        part.change.scale.fill_(2.0)
    torch.testing.assert_close(part(x, y), x + 1 + 2 * y)


def test_the_published_size_is_transformers():
    from transformers import AutoModelForCausalLM, ZayaConfig

    with torch.device("meta"):
        want, found = AutoModelForCausalLM.from_config(ZayaConfig()), orrery.create_model("zaya1-8b")
    assert found.num_parameters(embedding=True) == sum(p.numel() for p in want.parameters())
    read = find_map("zaya")[0].read(ZayaConfig().to_dict())
    own = orrery.models.build.resolve("zaya", **{key: read.pop(key) for key in ("width", "depth", "vocab_size")}, overrides=read)
    for mine, right in zip(own.blocks, found.config.blocks, strict=True):
        assert all(part_config(getattr(mine, kind), kind) == part_config(getattr(right, kind), kind) for kind in ("mixer", "channel"))
        assert (mine.eps, mine.placement, own.eps, own.layout) == (right.eps, right.placement, found.config.eps, found.config.layout)


def test_routers_of_other_sizes_are_named():
    layers = (f"gla(channel.name=carried-moe, channel.router={size})" for size in (8, 12))
    model = orrery.create_model(" + ".join(layers), width=32, depth=2)
    with pytest.raises(ConfigError, match="8 and 12 meet in layer 1"):
        model(X)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lm_head_bias": True}, "bias of the head"),
        ({"layer_types": ["mamba"] * 3}, "kinds of layers"),
        ({"hidden_act": "gelu"}, "activation gelu"),
        ({"rope_parameters": {"hybrid": {"rope_type": "axial"}}}, "rotary scaling 'axial'"),
    ],
)
def test_what_has_no_counterpart_here_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        find_map("zaya")[0].read({**CASES["plain"], **change})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"placement": "pre"}, "scaled residual sums"),
        ({"carried-moe.top_k": 2}, "one SwiGLU expert"),
        ({"channel.name": "moe"}, "compressed convolutional attention and carried experts"),
    ],
)
def test_what_they_have_no_place_for_is_named(settings, message, tmp_path):
    model = orrery.create_model("zaya", width=32, depth=2, vocab_size=11, **{"mixer.head_dim": 8, **settings})
    with pytest.raises(ConfigError, match=message):
        orrery.to_transformers(model, tmp_path / "x")
