"""OLMo Hybrid: three layers of Gated DeltaNet, then one of attention whose norms stand behind its parts.

Paper: Gated Delta Networks (arXiv 2412.06464), with beta up to 2 (2411.12537); attention layers as in OLMo 2 (2501.00656).

Equation:  linear layers:  x += mixer(norm(x));  x += glu(norm(x))
    attention layers:  x += norm(mixer(x));  x += norm(glu(x)),  with a query-key norm over all heads together and,
    in the released model, no positions

Shapes: B batch, T time, D width; the parts have their own.

Cost: of four layers three are linear in T with a constant state, one is attention.

Differs from the paper: the head is tied to the embedding by default (`tied=False` unties it).

Oracle: transformers' OLMo-Hybrid (equal logits and cached generation through the exchange map); tests/oracles/gated_deltanet.py
    and tests/oracles/attention.py for the mixers.
"""

from __future__ import annotations

from typing import Any, cast

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig, part_config
from orrery.nn.exchange import ExchangeMap, Rule, linear_rules
from orrery.nn.exchange_rope import read_rope, write_rope
from orrery.nn.rotary import part_of


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    theta = (hf.get("rope_parameters") or {}).get("rope_theta")
    rope, _ = read_rope(hf)
    require(hf.get("hidden_act", "silu") == "silu", f"no counterpart for activation {hf.get('hidden_act')}")
    require(hf["rms_norm_eps"] == 1e-6, "the query-key norm here has the eps 1e-6")
    heads, depth = hf["num_attention_heads"], hf["num_hidden_layers"]
    key = hf["linear_key_head_dim"]
    return {
        "width": hf["hidden_size"],
        "depth": depth,
        "vocab_size": hf["vocab_size"],
        "pattern": " + ".join("linear" if kind == "linear_attention" else "full" for kind in hf["layer_types"][:depth]),
        "gated-deltanet.heads": hf["linear_num_key_heads"],
        "gated-deltanet.value_heads": hf["linear_num_value_heads"],
        "gated-deltanet.head_dim": key,
        "gated-deltanet.expand_v": hf["linear_value_head_dim"] / key,
        "gated-deltanet.conv": hf["linear_conv_kernel_dim"],
        "gated-deltanet.negative": hf["linear_allow_neg_eigval"],
        "attention.heads": heads,
        "attention.kv_heads": hf.get("num_key_value_heads") or heads,
        "attention.head_dim": hf["hidden_size"] // heads,
        "attention.rope": 0.0 if theta is None else rope,
        "attention.rope_theta": theta or 10000.0,
        "attention.bias": hf.get("attention_bias", False),
        "attention.dropout": hf.get("attention_dropout", 0.0),
        "glu.hidden": hf["intermediate_size"],
        "tied": hf.get("tie_word_embeddings", False),
    }


def _write(own: dict[str, Any]) -> dict[str, Any]:
    blocks = [own["blocks"][kind] for kind in own["layout"]]
    kinds = {"gated-deltanet": "pre", "attention": "output"}
    known = all(kinds.get(b["mixer"]["name"]) == b["placement"] and b["channel"] and b["channel"]["name"] == "glu" for b in blocks)
    require(known and not any(b["canon"] for b in blocks), "OLMo Hybrid has pre-norm Gated DeltaNet and attention normed at its output")
    require(all(b["eps"] == own["eps"] == 1e-6 and b["norm"] == own["norm"] == "rmsnorm" for b in blocks), "norms are RMSNorm of eps 1e-6")
    both = {name: [b for b in blocks if b["mixer"]["name"] == name] for name in kinds}
    for name, same in both.items():
        require(bool(same) and all(b == same[0] for b in same), f"OLMo Hybrid has layers with {name}, all of them alike")
    full, linear = (cast(Any, part_config(both[name][0]["mixer"], "mixer")) for name in ("attention", "gated-deltanet"))
    hidden = {(b["channel"]["hidden"], b["channel"].get("activation", "silu"), b["channel"].get("bias", False)) for b in blocks}
    require(len(hidden) == 1 and next(iter(hidden))[1:] == ("silu", False), "OLMo Hybrid has SwiGLU of one size, without bias")
    plain = full.qk_norm is True and full.norm_whole and not full.gate and full.window is None and part_of(full.rope) in (0.0, 1.0)
    require(plain, "OLMo Hybrid's attention has a query-key norm over all heads, no gate, window or partial rotation")
    gated = linear.decay and linear.gate and linear.norm_eps == 1e-5
    require(gated, "OLMo Hybrid's linear layers have decay, gate and eps 1e-5")
    heads, width = full.heads or own["width"] // full.head_dim, own["width"]
    require(heads * full.head_dim == width, "the heads of OLMo Hybrid's attention fill the width")
    keys = linear.heads or max(1, round(linear.key_ratio * width / linear.head_dim))
    return {
        "hidden_size": width,
        "num_hidden_layers": len(blocks),
        "vocab_size": own["vocab_size"],
        "layer_types": ["full_attention" if b["mixer"]["name"] == "attention" else "linear_attention" for b in blocks],
        "num_attention_heads": heads,
        "num_key_value_heads": full.kv_heads or heads,
        "attention_bias": full.bias,
        "attention_dropout": full.dropout,
        "max_position_embeddings": 1 << 20,
        **(write_rope(full.rope, full.rope_theta) if full.rope else {"rope_parameters": {"rope_type": "default", "rope_theta": None}}),
        "linear_num_key_heads": keys,
        "linear_num_value_heads": linear.value_heads or keys,
        "linear_key_head_dim": linear.head_dim,
        "linear_value_head_dim": int(linear.expand_v * linear.head_dim),
        "linear_conv_kernel_dim": linear.conv,
        "linear_allow_neg_eigval": linear.negative,
        "intermediate_size": next(iter(hidden))[0],
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "pad_token_id": None,  # theirs, left out, would stand outside a smaller vocabulary
        "eos_token_id": None,
        "tie_word_embeddings": own["tied"],
    }


_LAYER = "model.layers.{i}"
_DELTA, _ATTENTION = f"{_LAYER}.linear_attn", f"{_LAYER}.self_attn"
OLMO_HYBRID = ExchangeMap(
    model_type="olmo_hybrid",
    cls="OlmoHybridForCausalLM",
    read=_read,
    write=_write,
    rules=(
        Rule("embed.weight", ("model.embed_tokens.weight",)),
        Rule("blocks.{i}.mixer_norm.weight", (f"{_LAYER}.input_layernorm.weight",), mixer="gated-deltanet"),
        Rule("blocks.{i}.mixer_norm.weight", (f"{_LAYER}.post_attention_layernorm.weight",), mixer="attention"),
        Rule(
            "blocks.{i}.mixer.inputs.weight",
            tuple(f"{_DELTA}.{part}_proj.weight" for part in "qkvgba"),
            mixer="gated-deltanet",
            rows=("key_rows", "key_rows", "value_rows", "value_rows", "heads", "heads"),
        ),
        Rule("blocks.{i}.mixer.conv.weight", (f"{_DELTA}.conv1d.weight",), ("squeeze",), mixer="gated-deltanet"),
        Rule("blocks.{i}.mixer.decay_log", (f"{_DELTA}.A_log",)),
        Rule("blocks.{i}.mixer.decay_bias", (f"{_DELTA}.dt_bias",)),
        Rule("blocks.{i}.mixer.norm.weight", (f"{_DELTA}.o_norm.weight",)),
        Rule("blocks.{i}.mixer.out.weight", (f"{_DELTA}.o_proj.weight",), mixer="gated-deltanet"),
        *linear_rules("blocks.{i}.mixer.inputs.linear", tuple(f"{_ATTENTION}.{part}_proj" for part in "qkv"), "rotary", "rotary", ""),
        Rule("blocks.{i}.mixer.q_norm.weight", (f"{_ATTENTION}.q_norm.weight",), ("rotary",)),
        Rule("blocks.{i}.mixer.k_norm.weight", (f"{_ATTENTION}.k_norm.weight",), ("rotary",)),
        *linear_rules("blocks.{i}.mixer.out", f"{_ATTENTION}.o_proj", mixer="attention"),
        Rule("blocks.{i}.channel_norm.weight", (f"{_LAYER}.post_attention_layernorm.weight",), mixer="gated-deltanet"),
        Rule("blocks.{i}.channel_norm.weight", (f"{_LAYER}.post_feedforward_layernorm.weight",), mixer="attention"),
        *linear_rules("blocks.{i}.channel.wide", (f"{_LAYER}.mlp.gate_proj", f"{_LAYER}.mlp.up_proj"), "", ""),
        *linear_rules("blocks.{i}.channel.out", f"{_LAYER}.mlp.down_proj"),
        Rule("norm.weight", ("model.norm.weight",)),
        Rule("head.weight", ("lm_head.weight",)),
    ),
    ignored=(".rotary_emb.inv_freq",),
    prefixes=("model.",),
)

ARCHITECTURE = Architecture(
    pattern="linear*3 + full",
    blocks={
        "linear": BlockConfig(mixer={"name": "gated-deltanet", "negative": True}, channel={"name": "glu"}),
        "full": BlockConfig(
            mixer={"name": "attention", "qk_norm": True, "norm_whole": True, "rope": 0.0}, channel={"name": "glu"}, placement="output"
        ),
    },
    frame={"tied": True},
    head="mixer.head_dim",
    presets={
        "olmo-hybrid-7b": {
            "width": 3840, "depth": 32, "vocab_size": 100352, "tied": False, "glu.hidden": 11008, "attention.head_dim": 128,
            "gated-deltanet.heads": 30, "gated-deltanet.head_dim": 96,
        },
    },
    exchange=(OLMO_HYBRID,),
)  # fmt: skip

register(
    "olmo-hybrid",
    architecture="ARCHITECTURE",
    summary="OLMo Hybrid: three layers of Gated DeltaNet to one of attention normed at its output",
    paper="2412.06464",
    year=2026,
    tags=("causal", "parallel", "cache"),
    presets=("olmo-hybrid-7b",),
    exchange=("olmo_hybrid",),
)
