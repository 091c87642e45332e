"""Qwen3-Next, Qwen3.5 and OLMo Hybrid against transformers: equal logits, the way back, cached generation, gradients."""

from __future__ import annotations

import pytest
import torch

import orrery
from exchanged import check_decoding, close, drawn
from orrery.core.errors import ConfigError
from orrery.models.build import build, resolve

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `hf`)")
LINEAR, FULL = "linear_attention", "full_attention"
NEXT = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "layer_types": [LINEAR, FULL, LINEAR], "intermediate_size": 48,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 12, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24}
OLMO = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "layer_types": [LINEAR, FULL, LINEAR], "intermediate_size": 48,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
CASES = {
    "qwen3-next": ("Qwen3NextConfig", {**NEXT, "num_experts": 0, "attention_bias": True}),
    "qwen3-next-moe": ("Qwen3NextConfig", {**NEXT, **MOE, "mlp_only_layers": [0], "tie_word_embeddings": True}),
    "qwen3.5": ("Qwen3_5TextConfig", NEXT),
    "qwen3.5-moe": ("Qwen3_5MoeTextConfig", {**NEXT, **MOE, "tie_word_embeddings": True, "linear_value_head_dim": 8}),
    "olmo-hybrid": ("OlmoHybridConfig", {**OLMO, "rope_parameters": None}),
    "olmo-hybrid-rope": (
        "OlmoHybridConfig",
        {
            **OLMO, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
            "linear_allow_neg_eigval": False, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
}  # fmt: skip
X = torch.randint(0, 61, (2, 37), generator=torch.Generator().manual_seed(1))


def theirs(case):
    return drawn(*CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_logits_there_and_back_and_cached_generation(case, tmp_path):
    hf = theirs(case)
    own = orrery.from_transformers(hf)
    with torch.no_grad():
        close(own(X).logits, hf(X).logits)
    orrery.to_transformers(own, tmp_path / "hf")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert type(again) is type(hf)
    for name, tensor in hf.state_dict().items():  # 1 + w in float32 rounds w
        assert torch.allclose(again.state_dict()[name], tensor, rtol=0, atol=1e-6), name
    check_decoding(hf, X[:, :19], 12)


@pytest.mark.parametrize("case", ["qwen3-next", "olmo-hybrid"])
def test_gradients_are_theirs(case):
    hf = theirs(case)
    own = orrery.from_transformers(hf)
    for model in (hf, own):
        torch.nn.functional.cross_entropy(model(X[:, :-1]).logits.flatten(0, 1), X[:, 1:].flatten()).backward()
    mine, right = own.embed.weight.grad[1:], hf.model.embed_tokens.weight.grad[1:]  # id 0 is their padding
    assert (mine - right).abs().max() <= 1e-4 * right.abs().max()
    assert torch.allclose(own.norm.weight.grad, hf.model.norm.weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("preset", "billions"), [("qwen3-next-80b-a3b", 79.7), ("qwen3.5-9b", 8.95), ("qwen3.5-35b-a3b", 34.7), ("olmo-hybrid-7b", 7.4)]
)
def test_presets_have_their_published_sizes(preset, billions):
    with torch.device("meta"):
        assert build(resolve(preset)).num_parameters(embedding=True) / 1e9 == pytest.approx(billions, rel=0.01)


def test_what_has_no_counterpart_is_named(tmp_path):
    with pytest.raises(ConfigError, match="eps 1e-6"):
        orrery.to_transformers(orrery.create_model("qwen3-next", width=32, depth=4, canon="a"), tmp_path / "x")
    with pytest.raises(ConfigError, match="no gate, window or partial"):
        orrery.to_transformers(orrery.create_model("olmo-hybrid", width=32, depth=4, window=4), tmp_path / "x")
    with pytest.raises(ConfigError, match="must be a multiple"):
        orrery.create_model("gated-deltanet", width=32, heads=2, value_heads=3)
