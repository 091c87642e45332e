"""Every map of a model with rotary positions carries a scaling both ways: logits within and beyond the trained length, generation."""

from __future__ import annotations

import json

import pytest
import torch

import orrery
from exchanged import check_decoding, check_float64, close, drawn
from orrery.core.errors import ConfigError
from orrery.nn.rotary import RopeScaling

pytest.importorskip("transformers")
SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 3.0}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 2.0, "beta_slow": 0.5}
DEEPSEEK = {**YARN, "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.1}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 0.5, "high_freq_factor": 2.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0],
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {
    "num_key_value_heads": 4, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "kv_lora_rank": 12, "moe_intermediate_size": 16,
    "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
}  # fmt: skip
CASES = {
    "llama-linear": ("LlamaConfig", LINEAR, {}),
    "llama-dynamic": ("LlamaConfig", DYNAMIC, {"max_position_embeddings": 16}),
    "llama-yarn": ("LlamaConfig", {**YARN, "attention_factor": 1.4, "truncate": False}, {}),
    "llama-llama3": ("LlamaConfig", LLAMA3, {}),
    "llama-longrope": ("LlamaConfig", LONGROPE, {}),
    "mixtral": ("MixtralConfig", YARN, {"num_local_experts": 3, "head_dim": 8}),
    "qwen3-moe": ("Qwen3MoeConfig", YARN, {**EXPERTS, "head_dim": 8, "rms_norm_eps": 1e-6}),
    "bamba": ("BambaConfig", {**LLAMA3, "partial_rotary_factor": 0.5}, {"attn_layer_indices": [1], **MAMBA}),
    "falcon-h1": ("FalconH1Config", LINEAR, {"mamba_d_ssm": 64, **MAMBA}),
    "granite": (
        "GraniteMoeHybridConfig",
        YARN,
        {"layer_types": ["linear_attention", "full_attention"], "shared_intermediate_size": 24, "position_embedding_type": "rope", **MAMBA,
         "num_local_experts": 0},
    ),
    "lfm2": ("Lfm2Config", YARN, {"layer_types": ["conv", "full_attention"]}),
    "lfm2-moe": ("Lfm2MoeConfig", DYNAMIC, {"layer_types": ["conv", "full_attention"], "max_position_embeddings": 16, **EXPERTS}),
    "lfm3": ("Lfm3Config", {"sliding_attention": YARN, "full_attention": LINEAR}, {
        "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 7, "head_dim": 8}),
    "minimax": ("MiniMaxConfig", YARN, {"num_local_experts": 3, "block_size": 8, "head_dim": 8}),
    "olmo-hybrid": ("OlmoHybridConfig", YARN, {"layer_types": ["linear_attention", "full_attention"], "rms_norm_eps": 1e-6, **DELTA}),
    "qwen3-next": ("Qwen3NextConfig", {**YARN, "partial_rotary_factor": 0.5}, {
        "layer_types": ["linear_attention", "full_attention"], "head_dim": 16, "mlp_only_layers": [0, 1], "linear_conv_kernel_dim": 4,
        **EXPERTS, **DELTA}),
    "zamba2": ("Zamba2Config", YARN, {
        "layers_block_type": ["mamba", "hybrid"], "use_mem_rope": True, "n_mamba_heads": 8, "mamba_d_state": 8, "mamba_ngroups": 1,
        "adapter_rank": 4, "num_mem_blocks": 1, "chunk_size": 16}),
    "deepseek": ("DeepseekV3Config", DEEPSEEK, {**LATENT, "n_routed_experts": 4, "n_shared_experts": 1, "q_lora_rank": 10}),
    "deepseek-linear": ("DeepseekV3Config", LINEAR, {**LATENT, "n_routed_experts": 4, "n_shared_experts": 1, "q_lora_rank": None}),
    "ling": ("BailingHybridConfig", DEEPSEEK, {
        **LATENT, "num_experts": 4, "num_shared_experts": 1, "layer_types": ["linear_attention", "full_attention"], "linear_num_heads": 4,
        "linear_head_dim": 8, "mlp_layer_types": ["dense", "sparse"]}),
}  # fmt: skip
X = torch.randint(1, 61, (2, 40), generator=torch.Generator().manual_seed(1))


def theirs(case):
    cls, rope, more = CASES[case]
    return drawn(cls, {**SIZES, "rope_parameters": json.loads(json.dumps(rope)), **more})


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_there_and_back(case, tmp_path):
    hf = theirs(case)
    own = orrery.from_transformers(hf).eval()
    scaled = [part.scaling for part in own.modules() if getattr(part, "scaling", None) is not None]
    assert scaled and all(isinstance(each, RopeScaling) for each in scaled)
    for length in (40, 14):
        close(own(X[:, :length]).logits, hf(X[:, :length]).logits)
    orrery.to_transformers(own, tmp_path / "ours")
    again = type(hf).from_pretrained(tmp_path / "ours").eval()
    close(again(X).logits, own(X).logits)
    back = orrery.from_transformers(tmp_path / "ours")
    assert back.config.to_dict() == own.config.to_dict()


@pytest.mark.parametrize("case", ["llama-dynamic", "llama-longrope", "deepseek", "bamba"])
@torch.no_grad()
def test_cached_generation_runs_beyond_the_trained_length(case):
    """From 12 tokens to 30 where 16 were trained: what grows is turned by the length of each moment."""
    hf, x = theirs(case), X[:1, :12]
    own = orrery.from_transformers(hf).eval()
    expected = hf.generate(x, max_new_tokens=18, do_sample=False, eos_token_id=None, attention_mask=torch.ones_like(x))
    assert torch.equal(orrery.generate(own, x, 18, temperature=0), expected)
    if case in ("deepseek", "bamba"):
        check_decoding(hf, X, 6)


@pytest.mark.parametrize("case", ["llama-yarn", "llama-llama3", "deepseek", "ling", "lfm3"])
def test_in_float64_logits_are_equal_to_rounding(case):
    check_float64(lambda: theirs(case), X)


@torch.no_grad()
def test_an_encoder_with_two_kinds_of_layers(tmp_path):
    from transformers import ModernBertConfig, ModernBertModel

    ropes = {"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}
    marks = {"cls_token_id": 0, "sep_token_id": 0}
    config = ModernBertConfig(**SIZES, **marks, rope_parameters=json.loads(json.dumps(ropes)), local_attention=12, norm_bias=True)
    torch.manual_seed(0)
    hf = ModernBertModel(config).eval()
    own = orrery.from_transformers(hf).eval()
    close(own(X).hidden, hf(X).last_hidden_state)
    orrery.to_transformers(own, tmp_path / "ours")
    close(ModernBertModel.from_pretrained(tmp_path / "ours").eval()(X).last_hidden_state, own(X).hidden)


@torch.no_grad()
def test_a_file_as_deepseek_published_it(tmp_path):
    """The scaling under its older name, with `type` and whole numbers; the base beside it."""
    hf = theirs("deepseek")
    hf.save_pretrained(tmp_path / "ds")
    config = json.loads((tmp_path / "ds" / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": {**rope, "type": rope.pop("rope_type"), "factor": 40}}
    (tmp_path / "ds" / "config.json").write_text(json.dumps(config))
    close(orrery.from_transformers(tmp_path / "ds").eval()(X).logits, hf(X).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_type": "mrope", "rope_theta": 500.0}, "rotary scaling 'mrope' has no counterpart"),
        ({**LINEAR, "mscale_all_dim": 1.0}, "mscale beside 'linear'"),
        ({**YARN, "factor": 0.5}, "must be 1 or more"),
        ({**LONGROPE, "long_factor": [1.0]}, "as many divisors"),
        ({**YARN, "partial_rotary_factor": 0.5}, "partial rotation beside a scaling"),
    ],
)
def test_what_has_no_counterpart_is_refused(change, message):
    hf = theirs("llama-linear")
    hf.config.rope_parameters = change
    with pytest.raises(ConfigError, match=message):
        orrery.from_transformers(hf)


def test_what_cannot_be_written_is_refused(tmp_path):
    part = {"kind": "yarn", "factor": 4.0, "original": 16, "part": 0.5}
    model = orrery.create_model("transformer", width=32, depth=1, **{"mixer.head_dim": 8, "mixer.rope": part})
    with pytest.raises(ConfigError, match="partial rotation"):
        orrery.to_transformers(model, tmp_path / "a")
    model = orrery.create_model("deepseek-v3", width=32, depth=1, **{"mixer.head_dim": 8, "mixer.shared": 8, "mixer.rope": part})
    with pytest.raises(ConfigError, match="rotated whole"):
        orrery.to_transformers(model, tmp_path / "b")
    model = orrery.create_model("griffin", width=32, depth=3, softcap=30.0, **{"mixer.head_dim": 8, "attention.rope": part})
    with pytest.raises(ConfigError, match="does not scale positions"):
        orrery.to_transformers(model, tmp_path / "c")
