"""Kimi Linear, Ling 3.0 and DeepSeek-V3 against transformers: equal logits, the way back, cached generation, prepared steps, gradients, sizes."""

from __future__ import annotations

import pytest
import torch

import orrery
from exchanged import check_decoding, check_float64, close, drawn
from orrery.core.errors import ConfigError
from orrery.models.build import build, resolve
from orrery.models.exchange import find_map
from orrery.nn.state import map_state

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `hf`)")
LINEAR, FULL = "linear_attention", "full_attention"
SIZES = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "layer_types": [LINEAR, FULL, LINEAR], "intermediate_size": 48,
    "num_attention_heads": 4, "num_key_value_heads": 4, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6, "kv_lora_rank": 10,
    "moe_intermediate_size": 16, "num_experts_per_tok": 3, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
    "mlp_layer_types": ["dense", "sparse", "sparse"], "routed_scaling_factor": 1.7,
}  # fmt: skip
KIMI = {**SIZES, "linear_head_dim": 6, "linear_num_heads": 3, "num_local_experts": 5, "n_shared_experts": 2}
LING = {**SIZES, "head_dim": 6, "num_local_experts": 8, "n_group": 4, "topk_group": 2, "n_shared_experts": 1, "num_mtp_layers": 0}
CASES = {
    "kimi": ("KimiLinearConfig", KIMI),
    "kimi-groups": (
        "KimiLinearConfig",
        {**KIMI, "num_local_experts": 6, "n_group": 3, "topk_group": 2, "q_lora_rank": 14, "norm_topk_prob": False},
    ),
    "ling": ("BailingHybridConfig", LING),
    "ling-unbounded": (
        "BailingHybridConfig",
        {**LING, "kda_safe_gate": False, "n_group": 1, "topk_group": 1, "rope_theta": 500.0, "short_conv_kernel_size": 3},
    ),
}  # fmt: skip
DEEP = {key: value for key, value in SIZES.items() if key not in ("layer_types", "mlp_layer_types")}
CASES["deepseek"] = (
    "DeepseekV3Config",
    {**DEEP, "q_lora_rank": 14, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 1, "num_mtp_layers": 0},
)
X = torch.randint(0, 61, (2, 23), generator=torch.Generator().manual_seed(1))


def theirs(case):
    return drawn(*CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_logits_there_and_back_and_cached_generation(case, tmp_path):
    hf = theirs(case)
    own = orrery.from_transformers(hf).eval()
    with torch.no_grad():
        expected = hf(X).logits
        close(own(X).logits, expected)
    orrery.to_transformers(own, tmp_path / "hf")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert type(again) is type(hf)
    for name, tensor in hf.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    with torch.no_grad():
        assert torch.equal(again.eval()(X).logits, expected)
    check_decoding(hf, X[:, :15], 12)


@pytest.mark.parametrize("case", CASES)
def test_a_folder_that_they_saved_is_read(case, tmp_path):
    """Their files name tensors as the published ones do: experts one by one, three convolutions, other homes of the gates."""
    hf = theirs(case)
    hf.save_pretrained(tmp_path / "hf")
    own, direct = orrery.from_transformers(tmp_path / "hf"), orrery.from_transformers(hf)
    assert own.config == direct.config
    for (name, one), other in zip(own.state_dict().items(), direct.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("case", ["kimi", "ling", "ling-unbounded", "deepseek"])
def test_in_float64_logits_are_equal_to_rounding(case):
    check_float64(lambda: theirs(case), X)


@pytest.mark.parametrize("case", ["kimi-groups", "ling", "deepseek"])
@torch.inference_mode()
def test_prepared_steps_give_the_scores_of_calls(case):
    pytest.importorskip("numba")
    model = orrery.from_transformers(theirs(case)).eval()
    state = model(X[:, :9]).state
    stepper = model.stepper(map_state(torch.clone, state), 23)
    for t in range(9, 23):
        out = model(X[:, t : t + 1], state=state)
        state, scores = out.state, stepper(X[:, t])
        assert (scores - out.logits[:, 0]).abs().max() <= 5e-5 * out.logits.abs().max()


@pytest.mark.parametrize("case", ["kimi", "ling"])
def test_gradients_are_theirs(case):
    hf = theirs(case)
    own = orrery.from_transformers(hf)
    for model in (hf, own):
        torch.nn.functional.cross_entropy(model(X[:, :-1]).logits.flatten(0, 1), X[:, 1:].flatten()).backward()
    mine, right = own.embed.weight.grad[1:], hf.model.embed_tokens.weight.grad[1:]  # id 0 is their padding
    assert (mine - right).abs().max() <= 1e-4 * right.abs().max()
    mine, right = own.blocks[1].mixer.expand.weight.grad, hf.model.layers[1].self_attn.kv_b_proj.weight.grad
    assert (mine - right).abs().max() <= 1e-4 * right.abs().max()


@pytest.mark.parametrize(
    ("preset", "millions", "digits"),
    [
        ("kimi-linear-48b-a3b", 49_120, 1e-4), ("ling-3.0-flash", 124_000, 0.005), ("deepseek-v3-671b", 671_000, 1e-4),
        ("moonlight-16b-a3b", 16_000, 0.005),
    ],
)
def test_presets_have_their_published_sizes(preset, millions, digits):  # fmt: skip
    """The routers' biases count among published parameters."""
    with torch.device("meta"):
        model = build(resolve(preset))
    biases = sum(buffer.numel() for name, buffer in model.named_buffers() if name.endswith("selection_bias"))
    assert (model.num_parameters(embedding=True) + biases) / 1e6 == pytest.approx(millions, rel=digits)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("deepseek-v3", {"mixer.gate": True}, "without a gate"),
        ("deepseek-v3", {"pattern": "full-moe + full"}, "dense layers are its first"),
        ("kimi-linear", {"canon": "a"}, "without Canon layers"),
        ("kimi-linear", {"latent-attention.window": 4}, "no window"),
        ("kimi-linear", {"latent-attention.rope": True}, "neither positions nor a gate"),
        ("kimi-linear", {"kda.bound": -5.0}, "without a bound"),
        ("bailing-hybrid", {"latent-attention.query_rank": 8}, "rotated and gated"),
    ],
)
def test_what_they_cannot_express_is_named(name, settings, message, tmp_path):
    depth = 4 if name == "kimi-linear" else 6
    with pytest.raises(ConfigError, match=message):
        orrery.to_transformers(orrery.create_model(name, width=64, depth=depth, **settings), tmp_path / "x")


@pytest.mark.parametrize(
    ("case", "settings", "message"),
    [
        ("kimi", {"mla_use_nope": False}, "no positions"),
        ("ling", {"rope_parameters": {"rope_type": "axial", "rope_theta": 1e4, "factor": 4.0}}, "rotary scaling 'axial'"),
        ("ling", {"attention_bias": True}, "biases of the attention's maps"),
        ("deepseek", {"topk_method": "greedy"}, "by scores with a bias"),
        ("deepseek", {"rope_interleave": False}, "are neighbours"),
        ("ling", {"score_function": "softmax"}, "sigmoids"),
    ],
)
def test_settings_without_a_counterpart_are_named(case, settings, message):
    cls, given = CASES[case]
    config = {**getattr(transformers, cls)(**given).to_dict(), **settings}
    exchange, _ = find_map(config["model_type"])
    with pytest.raises(ConfigError, match=message):
        exchange.read(config)


@pytest.mark.parametrize(("name", "depth"), [("kimi-linear", 4), ("bailing-hybrid", 6), ("deepseek-v3", 2)])
def test_a_tied_model_of_the_ladder_goes_there(name, depth, tmp_path):
    own = orrery.create_model(name, width=64, depth=depth, vocab_size=61).eval()
    orrery.to_transformers(own, tmp_path / "hf")
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        close(hf(X).logits, own(X).logits)
