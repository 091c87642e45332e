"""Hybrids of Mamba-2 and attention against transformers' own: logits both ways, cached generation, sizes."""

import pytest
import torch

import orrery
from exchanged import check_decoding, check_float64, close, drawn
from orrery.core.errors import ConfigError
from orrery.models.exchange import find_map

SIZES = {
    "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 61, "intermediate_size": 40,
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 0, "rms_norm_eps": 1e-3, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}  # fmt: skip
MULTIPLIERS = {
    "lm_head_multiplier": 0.6, "embedding_multiplier": 1.7, "mlp_multipliers": [0.7, 1.3], "key_multiplier": 0.8,
    "attention_out_multiplier": 1.2, "attention_in_multiplier": 0.9, "ssm_multipliers": [0.5, 1.5, 0.8, 1.1, 0.9],
    "ssm_in_multiplier": 1.1, "ssm_out_multiplier": 0.7,
}  # fmt: skip
BIASES = {"attention_bias": True, "mlp_bias": True, "mamba_proj_bias": True}
GRANITE = {
    "num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"], "num_experts_per_tok": 2,
    "shared_intermediate_size": 24, "embedding_multiplier": 1.7, "logits_scaling": 1.4, "residual_multiplier": 0.6,
    "attention_multiplier": 0.2,
}  # fmt: skip
CASES = {
    "falcon": ("FalconH1Config", {"num_hidden_layers": 2, "mamba_d_ssm": 64, **MULTIPLIERS, **SIZES}),
    "falcon-normed": (
        "FalconH1Config",
        {
            "num_hidden_layers": 1, "mamba_d_ssm": 64, "mamba_rms_norm": True, "mamba_norm_before_gate": False, "mamba_n_groups": 2,
            "tie_word_embeddings": True, "projectors_bias": True, **BIASES, **MULTIPLIERS, **SIZES,
        },
    ),
    "falcon-norm-first": (
        "FalconH1Config",
        {"num_hidden_layers": 1, "mamba_d_ssm": 64, "mamba_rms_norm": True, "mamba_norm_before_gate": True, **SIZES},
    ),
    "bamba": ("BambaConfig", {"num_hidden_layers": 4, "attn_layer_indices": [1, 3], "tie_word_embeddings": False, **SIZES}),
    "bamba-other": (
        "BambaConfig",
        {"num_hidden_layers": 3, "attn_layer_indices": [1], "mamba_n_groups": 2, "tie_word_embeddings": True, **BIASES, **SIZES},
    ),
    "granite": ("GraniteMoeHybridConfig", {"num_local_experts": 5, "tie_word_embeddings": False, **GRANITE, **SIZES}),
    "granite-dense": (
        "GraniteMoeHybridConfig",
        {
            "num_local_experts": 0, "tie_word_embeddings": True, "position_embedding_type": "rope", "attention_bias": True,
            "mamba_proj_bias": True, **GRANITE, **SIZES,
        },
    ),
}  # fmt: skip
SMALL = {key: SIZES[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size", "intermediate_size", "rms_norm_eps")}
JAMBA = {"mamba_d_state": 4, "attn_layer_period": 3, "attn_layer_offset": 1, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
CASES["jamba"] = ("JambaConfig", {"num_hidden_layers": 5, "num_experts": 4, **JAMBA, **SMALL})
CASES["jamba-dense"] = (
    "JambaConfig",
    {"num_hidden_layers": 2, "num_experts": 1, "mamba_proj_bias": True, "mamba_dt_rank": 3, "tie_word_embeddings": True, **JAMBA, **SMALL},
)
NEMOTRON = {
    "ssm_state_size": 8, "mamba_num_heads": 8, "mamba_head_dim": 6, "n_groups": 2, "head_dim": 6, "layer_norm_epsilon": 1e-3,
    "n_routed_experts": 4, "moe_intermediate_size": 16, "moe_shared_expert_intermediate_size": 24, "routed_scaling_factor": 1.7,
    "chunk_size": 16, **{key: SMALL[key] for key in SMALL if key != "rms_norm_eps"},
}  # fmt: skip
CASES["nemotron"] = ("NemotronHConfig", {"hybrid_override_pattern": "M-MM*-M", "use_bias": True, "time_step_min": 0.4, **NEMOTRON})
CASES["nemotron-moe"] = ("NemotronHConfig", {"hybrid_override_pattern": "MEM*E", "tie_word_embeddings": True, **NEMOTRON})
X = torch.randint(0, 61, (2, 23), generator=torch.Generator().manual_seed(1))


def theirs(case):
    return drawn(*CASES[case])


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_are_equal_there_and_back(case, tmp_path):
    hf = theirs(case)
    own = orrery.from_transformers(hf).eval()
    expected = hf(X).logits
    close(own(X).logits, expected)
    orrery.to_transformers(own, tmp_path / "ours")
    again = type(hf).from_pretrained(tmp_path / "ours").eval()
    close(again(X).logits, expected)
    assert all(torch.equal(a, b) for a, b in zip(orrery.from_transformers(tmp_path / "ours").parameters(), own.parameters(), strict=True))


@pytest.mark.parametrize("case", ["falcon", "falcon-normed", "falcon-norm-first", "bamba", "granite", "granite-dense", "jamba", "nemotron"])
def test_in_float64_logits_are_equal_to_rounding(case):
    check_float64(lambda: theirs(case), X)


@pytest.mark.parametrize("case", ["falcon", "bamba", "granite", "jamba", "nemotron-moe"])
def test_decoding_equals_their_cached_generation(case):
    check_decoding(theirs(case), X)


SIZE = {
    "falcon-h1-0.5b": 0.521, "falcon-h1-7b": 7.59, "bamba-9b": 9.78, "granite-4.0-h-tiny": 6.94, "jamba-v0.1": 51.6,
    "nemotron-h-8b": 8.1, "nemotron-3-nano-30b-a3b": 31.6,
}  # fmt: skip


@pytest.mark.parametrize(("preset", "billions"), SIZE.items())
def test_published_sizes(preset, billions):
    with torch.device("meta"):
        model = orrery.create_model(preset)
    assert model.num_parameters(embedding=True) / 1e9 == pytest.approx(billions, rel=0.005)


def test_bamba_9b_attends_where_it_does():
    with torch.device("meta"):
        model = orrery.create_model("bamba-9b")
    assert [i for i, kind in enumerate(model.config.layout) if model.config.blocks[kind].mixer["name"] == "attention"] == [9, 18, 27]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("falcon-h1", {"fusion": "mean"}, "adds its branches"),
        ("falcon-h1", {"attention.window": 4}, "attention is plain"),
        ("bamba", {"attention.rope": 1.0}, "rotates half"),
        ("bamba", {"canon": "a"}, "pre-norm blocks"),
        ("bamba", {"mamba2.gate_norm": "none"}, "norm after the gate"),
        ("jamba", {"attention.rope": 1.0}, "attention is plain"),
        ("jamba", {"moe.normalise": True}, "softmax scores that are not normalised"),
        ("nemotron-h", {"attention.rope": 1.0}, "without positions"),
        ("nemotron-h", {"mlp.activation": "relu"}, "squares a ReLU"),
        ("jamba", {"pattern": "attend*2 + scan*2"}, "even distances"),
    ],
)
def test_what_they_cannot_express_is_named(name, settings, message, tmp_path):
    model = orrery.create_model(name, width=32, depth=4, vocab_size=11, **settings)
    with pytest.raises(ConfigError, match=message):
        orrery.to_transformers(model, tmp_path / "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers_block_type": ["linear_attention", "mlp", "mlp"]}, "stands behind a layer that mixes"),
        ({"moe_latent_size": 4}, "moe_latent_size"),
        ({"n_group": 2}, "chosen by groups"),
    ],
)
def test_what_has_no_counterpart_here_is_named(change, message):
    transformers = pytest.importorskip("transformers")
    cls, settings = CASES["nemotron-moe"]
    config = getattr(transformers, cls)(**settings).to_dict()
    with pytest.raises(ConfigError, match=message):
        find_map("nemotron_h")[0].read({**config, **change})


@torch.no_grad()
def test_files_with_experts_one_by_one_are_read(tmp_path):
    hf = theirs("nemotron-moe")
    hf.save_pretrained(tmp_path / "theirs")
    close(orrery.from_transformers(tmp_path / "theirs").eval()(X).logits, hf(X).logits)


@torch.no_grad()
def test_a_tied_model_is_written_with_a_head_of_its_own(tmp_path):
    transformers = pytest.importorskip("transformers")
    own = orrery.create_model("nemotron-h", width=32, depth=4, vocab_size=61, tied=True, seed=0).eval()
    orrery.to_transformers(own, tmp_path / "ours")
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    close(own(X).logits, hf(X).logits)
