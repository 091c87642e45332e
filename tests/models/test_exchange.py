"""Exchange with transformers: equal logits both ways, every parameter randomised; mistakes by name."""

import pytest
import torch

import orrery
from orrery.core import registry
from orrery.core.errors import ConfigError, CorruptionError
from orrery.models.build import resolve
from orrery.models.exchange import find_map

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `hf`)")
TINY = {"vocab_size": 61}
ENDS = {"bos_token_id": 0, "eos_token_id": 0}
THETA = {"rope_type": "default", "rope_theta": 500.0}
SMALL = {"hidden_size": 32, "intermediate_size": 48, **TINY}
CASES = {
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48, **ENDS, **TINY}),
    "gpt2-untied": (
        "GPT2Config",
        {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_inner": 40, "tie_word_embeddings": False, "activation_function": "gelu", **ENDS, **TINY},
    ),
    "llama-grouped": (
        "LlamaConfig",
        {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True, "rope_parameters": THETA, **SMALL},
    ),
    "llama-tied": (
        "LlamaConfig",
        {"num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8, "tie_word_embeddings": True, "mlp_bias": True, **SMALL},
    ),
}


def theirs(case):
    torch.manual_seed(0)
    cls, settings = CASES[case]
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, cls)(**settings)).eval()
    for p in model.parameters():  # default norms and biases would hide mistakes
        torch.nn.init.normal_(p, std=0.3)
    return model


def logits(model, x):
    with torch.no_grad():
        return model.eval()(x).logits


X = torch.randint(0, 61, (2, 23), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", CASES)
def test_logits_are_equal_there_and_back(case, tmp_path):
    hf = theirs(case)
    own = orrery.from_transformers(hf)
    assert torch.allclose(logits(own, X), logits(hf, X), atol=1e-4)
    orrery.to_transformers(own, tmp_path / "hf")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert type(again) is type(hf) and torch.equal(logits(again, X), logits(hf, X))
    assert torch.equal(logits(orrery.from_transformers(tmp_path / "hf"), X), logits(own, X))


@pytest.mark.parametrize(("case", "bound"), [("gpt2", 1e-8), ("llama-grouped", 2e-5)])
def test_float64(case, bound):
    """Llama there computes its rotary angles in float32 whatever the model's type, hence its bound."""
    hf = theirs(case).double()
    assert torch.allclose(logits(orrery.from_transformers(hf), X), logits(hf, X), atol=bound)


def test_decoding_equals_their_cached_generation():
    hf = theirs("llama-grouped")
    own = orrery.from_transformers(hf)
    expected = hf.generate(X, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(orrery.generate(own, X, 12, temperature=0), expected)


def test_what_has_no_counterpart_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no exchange map"):
        orrery.to_transformers(orrery.create_model("kneser-ney"), tmp_path / "x")
    with pytest.raises(ConfigError, match="window"):
        orrery.to_transformers(orrery.create_model("transformer", width=32, window=4), tmp_path / "x")
    with pytest.raises(ConfigError, match="one kind of block"):
        orrery.to_transformers(orrery.create_model("gpt2", width=32, canon="a"), tmp_path / "x")
    albert = transformers.AlbertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    with pytest.raises(ConfigError, match="no exchange for the model type"):
        orrery.from_transformers(transformers.AlbertModel(albert))
    with pytest.raises(ConfigError, match=r"config\.json"):
        orrery.from_transformers(tmp_path)
    with pytest.raises(ConfigError, match="llama has no place for softcap"):  # no tensor of theirs would miss it
        orrery.to_transformers(orrery.create_model("transformer", width=32, depth=2, softcap=5.0), tmp_path / "x")
    with pytest.raises(ConfigError, match="no parameters in common"):
        orrery.to_transformers(orrery.create_model("transformer", width=32, depth=2, common="all"), tmp_path / "x")
    assert not (tmp_path / "x").exists()


PLAIN = {
    "bamba": "Bamba", "granite-hybrid": "Granite", "jamba": "Jamba", "nemotron-h": "Nemotron-H", "zamba": "Zamba", "zamba2": "Zamba2",
    "lfm2": "LFM2", "deepseek-v3": "DeepSeek-V3", "kimi-linear": "Kimi Linear", "bailing-hybrid": "Ling", "qwen3-next": "Qwen3-Next",
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
    "change",
    [{"canon": "a"}, {"norm": "layernorm"}, {"placement": "post"}, {"eps": 3e-3}, {"norm": "simple-rmsnorm"}],
    ids=lambda change: "-".join(map(str, *change.items())),
)
def test_blocks_that_are_not_plain_are_refused_by_every_writer(name, change):
    """One block of many is enough, and so is the last norm, for another kind or eps than the others'."""
    exchange = find_map(registry.lookup(name, "architecture").exchange[0])[0]
    own = resolve(name, width=64).to_dict()
    exchange.write(own)  # as it is, it can be written
    ((key, value),) = change.items()
    last = own["layout"][-1]
    blocks = [{**block, key: value} if kind == last else block for kind, block in enumerate(own["blocks"])]
    eps = "eps 1e-6" if name == "qwen3-next" else "one eps"
    message = rf"{PLAIN[name]} has pre-norm blocks with RMSNorm of {eps}, without Canon layers"
    with pytest.raises(ConfigError, match=message):
        exchange.write({**own, "blocks": blocks})
    if key in ("norm", "eps"):
        with pytest.raises(ConfigError, match=message):
            exchange.write({**own, key: value})
    if key == "norm" or (key, name) == ("eps", "qwen3-next"):
        with pytest.raises(ConfigError, match=message):
            exchange.write({**own, key: value, "blocks": [{**block, key: value} for block in own["blocks"]]})


def test_pickled_weights_are_not_read(tmp_path):
    theirs("gpt2").config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ConfigError, match="can run code"):
        orrery.from_transformers(tmp_path)


def test_damaged_checkpoints_are_named(tmp_path):
    theirs("gpt2").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CorruptionError, match="damaged"):
        orrery.from_transformers(tmp_path)
    hf = theirs("gpt2")
    del hf.transformer.h[0].ln_1.bias
    with pytest.raises((CorruptionError, AttributeError), match=r"ln_1\.bias"):
        orrery.from_transformers(hf)


def test_what_parameters_carry_survives():
    """Marks such as `no_decay`, by which the optimizer groups parameters, are those of a model that was built here."""
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "tie_word_embeddings": True}
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.MambaConfig(vocab_size=32, **settings))
    ours = orrery.from_transformers(theirs)
    marked = [name for name, parameter in ours.named_parameters() if getattr(parameter, "no_decay", False)]
    assert marked == ["blocks.0.mixer.A_log", "blocks.1.mixer.A_log"]
