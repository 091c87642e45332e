"""Zamba and Zamba2 against transformers' own: shared blocks under several names, both ways; decoding; guides."""

import pytest
import torch
from safetensors.torch import load_file

import orrery
from exchanged import check_decoding, check_float64, close, drawn
from orrery.core.errors import ConfigError, StateError
from orrery.models.carry import check_streams
from orrery.nn.contract import Context
from orrery.nn.timeline import plan
from orrery.ops.program import Program

SIZES = {
    "hidden_size": 32, "vocab_size": 61, "num_attention_heads": 4, "intermediate_size": 40, "mamba_d_state": 8, "rms_norm_eps": 1e-3,
    "time_step_min": 1e-6, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
ZAMBA2 = {**SIZES, "n_mamba_heads": 8, "adapter_rank": 3, "chunk_size": 16}
KINDS = {"M": "mamba", "H": "hybrid"}
CASES = {
    "zamba2": ("Zamba2Config", "MHMHHH", {"num_mem_blocks": 2, **ZAMBA2}),
    "zamba2-one": (
        "Zamba2Config",
        "HMH",
        {
            "num_mem_blocks": 1, "use_mem_rope": True, "use_shared_attention_adapter": True, "add_bias_linear": True,
            "mamba_ngroups": 2, "hidden_act": "silu", "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
            **ZAMBA2,
        },
    ),
    "zamba2-grouped": ("Zamba2Config", "MHH", {"num_mem_blocks": 2, "num_key_value_heads": 2, **ZAMBA2, "time_step_min": 0.4}),
}  # fmt: skip
ZAMBA = {**SIZES, "n_mamba_heads": 2, "mamba_dt_rank": 3, "use_associative_scan": False}
CASES["zamba"] = ("ZambaConfig", "MMHMH", {"num_key_value_heads": 4, **ZAMBA})
CASES["zamba-other"] = (
    "ZambaConfig",
    "HMH",
    {"num_key_value_heads": 2, "mamba_proj_bias": True, "mamba_conv_bias": False, "hidden_act": "silu", **ZAMBA, "n_mamba_heads": 4},
)
X = torch.randint(0, 61, (2, 23), generator=torch.Generator().manual_seed(1))


def theirs(case):
    cls, layers, settings = CASES[case]
    kinds = [KINDS[letter] for letter in layers]
    return drawn(cls, {"num_hidden_layers": len(kinds), "layers_block_type": kinds, **settings})


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_are_equal_there_and_back(case, tmp_path):
    hf = theirs(case)
    own = orrery.from_transformers(hf).eval()
    expected = hf(X).logits
    close(own(X).logits, expected)
    assert own.num_parameters(embedding=True) == sum(parameter.numel() for parameter in hf.parameters())
    orrery.to_transformers(own, tmp_path / "ours")
    again, report = type(hf).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    close(again.eval()(X).logits, expected)
    hf.save_pretrained(tmp_path / "theirs")
    assert set(load_file(tmp_path / "ours" / "model.safetensors")) == set(load_file(tmp_path / "theirs" / "model.safetensors"))
    for folder in ("ours", "theirs"):
        found = orrery.from_transformers(tmp_path / folder)
        assert all(torch.equal(a, b) for a, b in zip(found.parameters(), own.parameters(), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_in_float64_logits_are_equal_to_rounding(case):
    check_float64(lambda: theirs(case), X)


@pytest.mark.parametrize("case", ["zamba2", "zamba2-one", "zamba"])
def test_decoding_equals_their_cached_generation(case):
    check_decoding(theirs(case), X)


@pytest.mark.parametrize("case", ["zamba2", "zamba2-one", "zamba"])
def test_gradients_of_shared_weights_are_theirs(case):
    hf = theirs(case)
    own = orrery.from_transformers(hf)
    for model, logits in ((hf, hf(X).logits), (own, own(X).logits)):
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), X.roll(-1, 1).flatten()).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        for parameter in (*hf.parameters(), *own.parameters()):
            parameter.copy_(parameter.grad)
    found = orrery.from_transformers(hf)
    for (name, ours), right in zip(own.named_parameters(), found.parameters(), strict=True):
        assert (ours - right).abs().max() <= 1e-3 * right.abs().max(), name


PREPARED = [
    ("zamba2", {}),
    ("zamba2", {"zamba2.attention_rank": 2, "zamba2.rope": 1.0}),
    ("zamba2", {"zamba2.rank": 0, "canon": "b"}),
    ("zamba", {"window": 6}),
]


@pytest.mark.parametrize(("name", "settings"), PREPARED, ids=str)
@torch.no_grad()
def test_a_prepared_token_is_one_program_and_equals_a_call(name, settings):
    model = orrery.create_model(name, width=32, depth=4, vocab_size=61, seed=0, **settings).eval()
    before = model(X)
    stepper = model.stepper(model(X).state, 40)
    assert isinstance(stepper.ahead, Program) and not stepper.run.general
    state, token = before.state, before.logits[:, -1].argmax(-1)
    for _ in range(4):
        out = model(token[:, None], state=state)
        torch.testing.assert_close(stepper(token), out.logits[:, 0], rtol=1e-4, atol=1e-5)
        state, token = out.state, out.logits[:, 0].argmax(-1)


def test_the_shared_block_is_one_and_what_tells_its_uses_apart_is_not():
    model = orrery.create_model("zamba2", width=32, depth=8, vocab_size=61)
    first, other, third = (model.blocks[layer].guide for layer in (1, 3, 5))
    assert first.attention.inputs.linear.weight is third.attention.inputs.linear.weight
    assert first.norm.weight is third.norm.weight and first.mlp.wide.weight is third.mlp.wide.weight
    assert first.mlp.wide.down is not third.mlp.wide.down and first.back.weight is not third.back.weight
    assert first.attention.out.weight is not other.attention.out.weight


@torch.no_grad()
def test_layers_run_one_by_one_need_the_models_context():
    model = orrery.create_model("zamba2", width=32, depth=4, vocab_size=61).eval()
    time, _ = plan(None, None, 2, 23, X.device)
    with pytest.raises(StateError, match="reads the embedding"):
        model.run(model.embed(X), 0, 4, None, Context(time=time))
    ctx = Context(time=time, shared={})
    h = model._embed(X, None, ctx)
    for layer in range(4):
        h, _ = model.run(h, layer, layer + 1, None, ctx)
    torch.testing.assert_close(model.norm(h), model(X).hidden)


@torch.no_grad()
def test_without_tied_embeddings_transformers_shares_no_block_either(tmp_path):
    transformers = pytest.importorskip("transformers")
    own = orrery.create_model("zamba2", width=32, depth=8, vocab_size=61, seed=0, tied=False, **{"zamba2.attention_rank": 16}).eval()
    orrery.to_transformers(own, tmp_path / "ours")
    hf, report = transformers.Zamba2ForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    close(hf.eval()(X).logits, own(X).logits)
    assert all(torch.equal(a, b) for a, b in zip(orrery.from_transformers(hf).parameters(), own.parameters(), strict=True))
    hf.model.layers[5].shared_transformer.self_attn.o_proj.weight.add_(0.1)
    with pytest.raises(ConfigError, match="differs from the same of layer 1"):
        orrery.from_transformers(hf)


def test_with_a_window_it_reads_an_endless_stream():
    check_streams(orrery.create_model("zamba2", width=32, depth=4, vocab_size=61, window=8))
    with pytest.raises(ConfigError, match="grows with the text"):
        check_streams(orrery.create_model("zamba2", width=32, depth=4, vocab_size=61))


def test_published_sizes():
    with torch.device("meta"):
        models = [orrery.create_model(name) for name in ("zamba2-1.2b", "zamba2-2.7b", "zamba-7b-v1")]
    sizes = [model.num_parameters(embedding=True) for model in models]
    assert sizes[0] == 1_215_064_704  # what their file holds
    assert sizes[1] / 1e9 == pytest.approx(2.69, rel=0.015)  # theirs holds 26 M more: maps beside blocks that do not use them
    assert [layer for layer, block in enumerate(models[1].blocks) if block.guide] == [6, 12, 18, 24, 30, 36, 42, 47, 51]
    assert 2 * sizes[2] / 1e9 == pytest.approx(14.47, rel=0.001)  # gigabytes of their files
    assert [layer for layer, block in enumerate(models[2].blocks) if block.guide] == [2, *range(7, 76, 6)]


def test_what_has_no_counterpart_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="in common"):
        orrery.to_transformers(orrery.create_model("zamba2", width=32, depth=6, vocab_size=61, common=()), tmp_path / "a")
    with pytest.raises(ConfigError, match="by turns"):
        orrery.to_transformers(orrery.create_model("zamba2", pattern="hybrid + hybrid-2*2", width=32, depth=3, vocab_size=61), tmp_path / "b")
    with pytest.raises(ConfigError, match="two or more layers"):
        orrery.to_transformers(orrery.create_model("zamba", width=32, depth=3, vocab_size=61), tmp_path / "c")
    with pytest.raises(ConfigError, match="reads the embedding again needs a decoder"):
        orrery.create_model("transformer", width=32, depth=1, vocab_size=9, frame="encoder", **{"mixer.name": "zamba2"})
    with pytest.raises(ConfigError, match="qk_norm is true, false or an eps between 0 and 1, not 1"):
        orrery.create_model("transformer", width=32, depth=1, vocab_size=9, **{"mixer.qk_norm": 1})
    with pytest.raises(ConfigError, match="cannot be an encoder"):
        orrery.create_model("zamba2", width=32, depth=4, vocab_size=61, frame="encoder")
    hf = theirs("zamba2")
    hf.config.num_mem_blocks = 9
    with pytest.raises(ConfigError, match="between 1 and 4"):
        orrery.from_transformers(hf)
    hf.config.num_mem_blocks, hf.config.rope_parameters = 2, {"rope_type": "axial", "factor": 2.0}
    with pytest.raises(ConfigError, match="rotary scaling"):
        orrery.from_transformers(hf)
