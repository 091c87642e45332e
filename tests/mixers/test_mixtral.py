"""Transformers with experts against transformers' own, both ways and step by step; sizes."""

import pytest
import torch

import orrery
from all_double import AllDouble, double
from orrery.core.errors import ConfigError, CorruptionError

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 61,
    "num_experts_per_tok": 2, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
CASES = {
    "mixtral": ("MixtralConfig", {"intermediate_size": 24, "num_local_experts": 4, "sliding_window": 9, **SMALL}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {"moe_intermediate_size": 16, "num_experts": 6, "head_dim": 16, "attention_bias": True, "norm_topk_prob": False, **SMALL},
    ),
}
X = torch.randint(0, 61, (2, 23), generator=torch.Generator().manual_seed(1))


def theirs(case):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    cls, settings = CASES[case]
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, cls)(**settings)).eval()
    for parameter in model.parameters():  # default norms and biases would hide mistakes
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_are_equal_there_and_back(case, tmp_path):
    hf = theirs(case)
    own = orrery.from_transformers(hf).eval()
    expected = hf(X).logits
    torch.testing.assert_close(own(X).logits, expected, atol=1e-4, rtol=1e-4)
    hf.save_pretrained(tmp_path / "theirs")  # there the experts are stored one by one
    torch.testing.assert_close(orrery.from_transformers(tmp_path / "theirs")(X).logits, own(X).logits)
    orrery.to_transformers(own, tmp_path / "ours")
    again = type(hf).from_pretrained(tmp_path / "ours").eval()
    torch.testing.assert_close(again(X).logits, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_in_float64_logits_are_equal_to_rounding():
    with AllDouble():
        hf = double(theirs("mixtral"))
        expected = hf(X).logits
    found = orrery.from_transformers(hf).eval()(X).logits
    assert expected.dtype == torch.float64 and (found - expected).abs().max() <= 1e-8 * expected.abs().max()


@pytest.mark.parametrize("case", CASES)
def test_decoding_equals_their_cached_generation(case):
    hf = theirs(case)
    expected = hf.generate(X, max_new_tokens=8, do_sample=False, eos_token_id=None, attention_mask=torch.ones_like(X))
    assert torch.equal(orrery.generate(orrery.from_transformers(hf), X, 8, temperature=0), expected)


def test_what_cannot_be_exchanged_is_named(tmp_path):
    hf = theirs("qwen3_moe")
    hf.save_pretrained(tmp_path / "theirs")
    from safetensors.torch import load_file, save_file

    file = tmp_path / "theirs" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.0.mlp.experts.2.up_proj.weight"]
    save_file(tensors, file)
    with pytest.raises(CorruptionError, match=r"layers\.0\.mlp\.experts"):
        orrery.from_transformers(tmp_path / "theirs")
    with pytest.raises(ConfigError, match="shared experts"):
        orrery.to_transformers(orrery.create_model("mixtral", width=32, depth=1, shared=1.0), tmp_path / "x")


@pytest.mark.parametrize(
    ("preset", "total", "active"),
    [
        ("mixtral-8x7b", 46.7, 12.9),
        ("mixtral-8x22b", 140.6, 39.2),
        ("qwen3-30b-a3b", 30.5, 3.3),
        ("gigachat-20b-a3b", 20.6, 3.3),
        ("lola-7b", 7.4, 1.41),
    ],
)
def test_published_sizes(preset, total, active):
    with torch.device("meta"):
        model = orrery.create_model(preset)
    assert model.num_parameters(embedding=True) / 1e9 == pytest.approx(total, rel=0.012)
    assert model.num_parameters(embedding=True, active=True) / 1e9 == pytest.approx(active, rel=0.02)


def test_gigachat_and_lola_place_their_experts():
    with torch.device("meta"):
        gigachat, lola = (orrery.create_model(name).config for name in ("gigachat-20b-a3b", "lola-7b"))
    assert [gigachat.blocks[kind].channel["name"] for kind in gigachat.layout] == ["glu"] + ["moe"] * 27
    assert [lola.blocks[kind].channel["name"] for kind in lola.layout] == ["mlp", "moe"] * 12
    experts = gigachat.blocks[1].channel
    assert (experts["experts"], experts["top_k"], experts["shared"], experts["normalise"]) == (64, 6, 2.0, False)
    assert gigachat.blocks[0].channel["hidden"] == 8 * experts["hidden"]
