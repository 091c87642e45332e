"""LFM2, LFM2-MoE and LFM3 against transformers: logits both ways, cached generation, documents, sizes; the prepared decode step."""

from __future__ import annotations

import json

import pytest
import torch

import orrery
from exchanged import check_decoding, check_float64, close, drawn
from orrery.core.errors import ConfigError
from orrery.models.exchange import find_map

SIZES = {
    "vocab_size": 61, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4, "norm_eps": 1e-3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "layer_types": ["conv", "full_attention", "conv", "conv"],
}  # fmt: skip
EXPERTS = {"intermediate_size": 40, "moe_intermediate_size": 16, "num_experts": 5, "num_experts_per_tok": 2, **SIZES}
CASES = {
    "dense": ("Lfm2Config", {**SIZES, "intermediate_size": 60, "block_multiple_of": 16, "conv_bias": True}),
    "dense-other": (
        "Lfm2Config",
        {
            **{key: value for key, value in SIZES.items() if key != "layer_types"}, "full_attn_idxs": [0, 3], "conv_L_cache": 5,
            "intermediate_size": 40, "block_auto_adjust_ff_dim": False, "tie_word_embeddings": False, "head_dim": 12,
        },
    ),
    "moe": ("Lfm2MoeConfig", {**EXPERTS, "num_dense_layers": 1, "routed_scaling_factor": 1.7}),
    "moe-plain": ("Lfm2MoeConfig", {**EXPERTS, "num_dense_layers": 0, "norm_topk_prob": False, "use_expert_bias": False, "conv_bias": True}),
}  # fmt: skip
THIRD = {
    **{key: SIZES[key] for key in SIZES if key not in ("rope_parameters", "layer_types")}, "num_hidden_layers": 5, "head_dim": 12,
    "intermediate_size": 40, "sliding_window": 7, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
CASES["third"] = ("Lfm3Config", THIRD)
CASES["third-plain"] = (
    "Lfm3Config",
    {
        **THIRD, "use_sandwich_norm": False, "use_attention_gate": False, "attention_bias": True, "conv_bias": True, "conv_L_cache": 4,
        "tie_word_embeddings": False, "layer_types": ["sliding_attention", "conv", "full_attention", "conv", "conv"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "proportional", "rope_theta": 700.0, "partial_rotary_factor": 0.35},
            "full_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
    },
)  # fmt: skip
X = torch.randint(1, 61, (2, 23), generator=torch.Generator().manual_seed(1))


def theirs(case):
    return drawn(*CASES[case])


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_there_and_back_and_cached_generation(case, tmp_path):
    hf = theirs(case)
    own = orrery.from_transformers(hf).eval()
    expected = hf(X).logits
    close(own(X).logits, expected)
    orrery.to_transformers(own, tmp_path / "ours")
    again = type(hf).from_pretrained(tmp_path / "ours").eval()
    close(again(X).logits, expected)
    for mine, same in zip(orrery.from_transformers(tmp_path / "ours").state_dict().values(), own.state_dict().values(), strict=True):
        assert torch.equal(mine, same)
    check_decoding(hf, X, 12)


@pytest.mark.parametrize("case", CASES)
def test_in_float64_logits_are_equal_to_rounding(case):
    check_float64(lambda: theirs(case), X)


@pytest.mark.parametrize("case", ["dense-other", "third"])
@torch.no_grad()
def test_documents_of_one_row_are_theirs_each_alone(case):
    """Every cut lies within the reach of the taps, of the second row twice."""
    hf = theirs(case)
    own = orrery.from_transformers(hf).eval()
    segments = torch.tensor([[0] * 9 + [1] * 14, [4] * 20 + [5] + [6] * 2])
    found = own(X, segments=segments).logits
    for row, cuts in ((0, (0, 9, 23)), (1, (0, 20, 21, 23))):
        for begin, end in zip(cuts[:-1], cuts[1:], strict=True):
            close(found[row, begin:end], hf(X[row : row + 1, begin:end]).logits[0])


@torch.no_grad()
def test_files_are_read_as_they_were_published(tmp_path):
    """Experts one by one; the settings under the names that the first checkpoints have."""
    hf = theirs("moe")
    hf.save_pretrained(tmp_path / "moe")
    close(orrery.from_transformers(tmp_path / "moe").eval()(X).logits, hf(X).logits)
    hf = theirs("third")
    hf.save_pretrained(tmp_path / "third")
    close(orrery.from_transformers(tmp_path / "third").eval()(X).logits, hf(X).logits)
    hf = theirs("dense")
    hf.save_pretrained(tmp_path / "dense")
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    config |= {
        "block_ff_dim": config.pop("intermediate_size"), "tie_embedding": config.pop("tie_word_embeddings"),
        "rope_theta": config.pop("rope_parameters")["rope_theta"], "full_attn_idxs": [1],
    }  # fmt: skip
    del config["layer_types"], config["block_auto_adjust_ff_dim"]
    (tmp_path / "dense" / "config.json").write_text(json.dumps(config))
    close(orrery.from_transformers(tmp_path / "dense").eval()(X).logits, hf(X).logits)


@pytest.mark.parametrize(
    "name", ["lfm2", "lfm2-moe", "lfm3", "gated-conv", "lfm2(canon=ad)", "gated-conv(kernel=1)", "gated-conv(kernel=5,bias=True) + lstm"]
)
@torch.inference_mode()
def test_the_prepared_step_is_the_model(name):
    name, _, canon = name.partition("(canon=")
    settings = {"canon": canon.rstrip(")")} if canon else {}
    model = orrery.create_model(name, width=32, depth=4, vocab_size=61, seed=1, **settings).eval()
    for p in model.parameters():
        p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    segments = torch.zeros(2, 9, dtype=torch.int64)
    segments[1, 4:] = -1  # a shorter prompt: its row stands at an earlier position
    state = model(X[:, :9], segments=segments).state
    stepper = model.stepper(state, 15)
    for t in range(9, 14):
        out = model(X[:, t : t + 1], state=state)
        scores, state = out.logits[:, 0], out.state
        assert (stepper(X[:, t]) - scores).abs().max() <= 2e-4 * scores.abs().max()
    assert not stepper.run.general  # no part is called as always


def test_the_state_of_a_convolution_does_not_grow():
    model = orrery.create_model("gated-conv", width=32, depth=3, vocab_size=61)
    assert model.state_bytes(4) == model.state_bytes(100_000) == 3 * 2 * 32 * 4
    found = model(X).state
    assert sum(tensor.numel() for block in found.blocks for tensor in block[1][:-1]) * 4 == 2 * model.state_bytes(23)


def test_both_ways_it_is_an_encoder():
    model = orrery.create_model("lfm2", width=32, depth=3, vocab_size=61, frame="encoder").eval()
    with torch.no_grad():
        before, after = model(X).hidden, model(torch.cat([X[:, :-1], 60 - X[:, -1:]], 1)).hidden
    assert (before[:, 0] - after[:, 0]).abs().max() > 1e-6  # the last token is seen from the first


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("lfm2-350m", 354_483_968),
        ("lfm2-700m", 742_489_344),
        ("lfm2-1.2b", 1_170_340_608),
        ("lfm2-2.6b", 2_569_272_320),
        ("lfm2-8b-a1b", 8_339_929_856),
        ("lfm3-1.7b", 1_728_801_536),
    ],
)
def test_published_sizes(preset, parameters):
    """Of the model cards, to the parameter; 8B-A1B and LFM3 by transformers' classes with the published configs (their cards
    say 8.3B and 1.7B)."""
    with torch.device("meta"):
        assert orrery.create_model(preset).num_parameters(embedding=True) == parameters


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lfm2", {"attention.qk_norm": True}, "set attention.qk_norm=1e-05"),
        ("lfm2", {"attention.window": 4}, "attention is rotary"),
        ("lfm2", {"canon": "a"}, "without Canon layers"),
        ("lfm2", {"channel.bias": True}, "SwiGLU without bias"),
        ("lfm2", {"pattern": "conv + full-moe"}, "SwiGLU in all layers"),
        ("lfm2-moe", {"pattern": "conv-moe + full"}, "come first"),
        ("lfm2-moe", {"moe.normalise": True}, "set moe.normalise"),
        ("lfm2-moe", {"moe.score": "softmax"}, "sigmoid scores"),
        ("lfm3", {"placement": "output"}, "both sides"),
        ("lfm3", {"attention.gate": True}, "a gate per head"),
        ("lfm3", {"attention.rope": 0.0}, "knows positions"),
        ("lfm3", {"full.mixer.kv_heads": 1}, "alike"),
    ],
)
def test_what_they_cannot_express_is_named(name, settings, message, tmp_path):
    model = orrery.create_model(name, width=32, depth=4, vocab_size=11, **{"attention.head_dim": 16, **settings})
    with pytest.raises(ConfigError, match=message):
        orrery.to_transformers(model, tmp_path / "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"rope_parameters": {"rope_type": "axial", "factor": 2.0}}, "rotary scaling 'axial'"), ({"layer_types": ["conv", "mamba"]}, "kinds of layers")],
)
def test_what_has_no_counterpart_here_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        find_map("lfm2")[0].read({**CASES["dense"][1], **change})


def test_a_share_of_each_head_has_one_meaning():
    """Released files call "default" what transformers' defaults call "proportional"."""
    read = find_map("lfm3")[0].read
    rope = {"full_attention": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}}
    assert read({**THIRD, "rope_parameters": rope}) == read(THIRD)
    assert read(THIRD)["full.mixer.rope"] == 0.5 and read(THIRD)["full.mixer.rope_theta"] == pytest.approx(1000.0)
    with pytest.raises(ConfigError, match="rotary scaling 'yarn'"):
        read({**THIRD, "rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0, "partial_rotary_factor": 0.5}}})


def test_settings_that_cannot_be():
    with pytest.raises(ConfigError, match="1 token or more"):
        orrery.create_model("gated-conv", width=32, depth=1, kernel=0)
    with pytest.raises(ConfigError, match="eps between 0 and 1"):
        orrery.create_model("transformer", width=32, depth=1, qk_norm=-1.0)
