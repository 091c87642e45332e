"""Mixtral: the Transformer of today with a mixture of experts in place of every feed-forward network.

Paper: Mixtral of Experts (arXiv 2401.04088); the same layers with finer experts and query-key norm: Qwen3 (2505.09388).

Equation:  x += attention(norm(x));  x += sum_{i in top k} softmax_top(W_r norm(x))_i E_i(norm(x)),
    E_i(x) = W2_i (silu(W1_i x) * W3_i x)

Shapes: B batch, T time, D width, E experts, k chosen, F hidden size of one expert.

Cost: train and decode as a Transformer whose feed-forward part is k F wide; parameters as one that is E F wide.

Differs from the paper: initialisation by width, as `transformer` here; the size ladder counts all parameters, not the
    active ones, and its natural F makes the experts together four times a dense layer.

Oracle: transformers' Mixtral and Qwen3-MoE (equal logits through the exchange maps); tests/oracles/moe.py.
"""

from __future__ import annotations

from typing import Any

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.exchange import ExchangeMap, Rule, attention_rules
from orrery.nn.exchange_rope import rope_settings, turning_part, write_rope


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    require(hf.get("hidden_act", "silu") == "silu", f"no counterpart for activation {hf.get('hidden_act')}")
    require(not hf.get("router_jitter_noise"), "router_jitter_noise has no counterpart")
    return {
        "width": hf["hidden_size"],
        "depth": hf["num_hidden_layers"],
        "vocab_size": hf["vocab_size"],
        "mixer.heads": hf["num_attention_heads"],
        "mixer.kv_heads": hf.get("num_key_value_heads") or hf["num_attention_heads"],
        "mixer.head_dim": hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        **rope_settings(hf, "mixer", 1e6),
        "mixer.window": hf.get("sliding_window"),
        "mixer.dropout": hf.get("attention_dropout", 0.0),
        "channel.top_k": hf["num_experts_per_tok"],
        "channel.balance": hf.get("router_aux_loss_coef", 0.001),
        "eps": hf["rms_norm_eps"],
        "tied": hf.get("tie_word_embeddings", False),
    }


def _read_mixtral(hf: dict[str, Any]) -> dict[str, Any]:
    return {**_read(hf), "channel.experts": hf["num_local_experts"], "channel.hidden": hf["intermediate_size"]}


def _read_qwen(hf: dict[str, Any]) -> dict[str, Any]:
    dense = hf.get("mlp_only_layers") or hf.get("decoder_sparse_step", 1) != 1
    require(not dense, "a Qwen3-MoE with dense layers between has no counterpart")
    require(hf["rms_norm_eps"] == 1e-6, "the query-key norm here has the eps 1e-6")
    return {
        **_read(hf),
        "mixer.bias": hf.get("attention_bias", False),
        "mixer.qk_norm": True,
        "channel.experts": hf.get("num_experts") or hf["num_local_experts"],
        "channel.hidden": hf["moe_intermediate_size"],
        "channel.normalise": hf.get("norm_topk_prob", False),
    }


def _write(own: dict[str, Any], cls: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Their config as far as both have it, and the settings of our mixer and channel mixer."""
    block = own["blocks"][0]
    mixer, channel = block["mixer"], block["channel"]
    require(own["layout"] == [0] * len(own["layout"]) and block["placement"] == "pre" and not block["canon"], f"{cls} has one kind of block")
    require(mixer["name"] == "attention" and channel["name"] == "moe", f"{cls} consists of attention and experts")
    odd = turning_part(mixer) != 1.0 or mixer.get("gate") or mixer.get("norm_whole")
    require(not odd, f"{cls} has no partial rotation, output gate or norm over all heads")
    routed = channel.get("score", "softmax") == "softmax" and channel.get("scale", 1.0) == 1.0 and channel.get("bias_rate") is None
    require(routed and not channel.get("shared"), f"{cls} has softmax scores without factor or bias, and no shared experts")
    require(channel.get("activation", "silu") == "silu" and channel.get("gated", True), f"{cls} has SwiGLU experts")
    heads = mixer.get("heads") or own["width"] // mixer["head_dim"]
    theta = mixer.get("rope_theta", 10000.0)
    return (
        {
            "hidden_size": own["width"],
            "num_hidden_layers": len(own["layout"]),
            "num_attention_heads": heads,
            "num_key_value_heads": mixer.get("kv_heads") or heads,
            "head_dim": mixer["head_dim"],
            "vocab_size": own["vocab_size"],
            "hidden_act": "silu",
            "attention_dropout": mixer.get("dropout", 0.0),
            "num_experts_per_tok": channel.get("top_k", 2),
            "router_aux_loss_coef": channel.get("balance", 0.01),
            "sliding_window": mixer.get("window"),
            "rms_norm_eps": own["eps"],
            "rope_theta": theta,
            "max_position_embeddings": 1 << 20,
            **write_rope(mixer.get("rope", 1.0), theta),
            "tie_word_embeddings": own["tied"],
        },
        mixer,
        channel,
    )


def _write_mixtral(own: dict[str, Any]) -> dict[str, Any]:
    config, mixer, channel = _write(own, "Mixtral")
    require(not mixer.get("qk_norm") and not mixer.get("bias"), "Mixtral has no query-key norm and no bias")
    require(channel.get("normalise", True) is True, "Mixtral normalises the gates")
    return {**config, "intermediate_size": channel["hidden"], "num_local_experts": channel.get("experts", 8)}


def _write_qwen(own: dict[str, Any]) -> dict[str, Any]:
    config, mixer, channel = _write(own, "Qwen3-MoE")
    require(mixer.get("qk_norm", False) is True and own["eps"] == 1e-6, "Qwen3-MoE has a query-key norm, and one eps")
    require(isinstance(channel.get("normalise", True), bool), "Qwen3-MoE divides its gates by their sum and nothing more")
    return {
        **config,
        "attention_bias": mixer.get("bias", False),
        "use_sliding_window": config["sliding_window"] is not None,
        "moe_intermediate_size": channel["hidden"],
        "intermediate_size": channel["hidden"],
        "num_experts": channel.get("experts", 8),
        "norm_topk_prob": channel.get("normalise", True),
    }


_LAYER = "model.layers.{i}"
_RULES = (
    Rule("embed.weight", ("model.embed_tokens.weight",)),
    Rule("blocks.{i}.mixer_norm.weight", (f"{_LAYER}.input_layernorm.weight",)),
    *attention_rules("blocks.{i}.mixer", f"{_LAYER}.self_attn"),
    Rule("blocks.{i}.mixer.q_norm.weight", (f"{_LAYER}.self_attn.q_norm.weight",), ("rotary",)),
    Rule("blocks.{i}.mixer.k_norm.weight", (f"{_LAYER}.self_attn.k_norm.weight",), ("rotary",)),
    Rule("blocks.{i}.channel_norm.weight", (f"{_LAYER}.post_attention_layernorm.weight",)),
    Rule("blocks.{i}.channel.router.weight", (f"{_LAYER}.mlp.gate.weight",)),
    Rule("blocks.{i}.channel.wide", (f"{_LAYER}.mlp.experts.gate_up_proj",)),
    Rule("blocks.{i}.channel.out", (f"{_LAYER}.mlp.experts.down_proj",)),
    Rule("norm.weight", ("model.norm.weight",)),
    Rule("head.weight", ("lm_head.weight",)),
)
MIXTRAL = ExchangeMap(
    model_type="mixtral", cls="MixtralForCausalLM", read=_read_mixtral, write=_write_mixtral, rules=_RULES, prefixes=("model.",)
)
QWEN3_MOE = ExchangeMap(
    model_type="qwen3_moe", cls="Qwen3MoeForCausalLM", read=_read_qwen, write=_write_qwen, rules=_RULES, prefixes=("model.",)
)

_MIXTRAL = {"vocab_size": 32000, "mixer.head_dim": 128, "mixer.kv_heads": 8, "mixer.rope_theta": 1e6, "eps": 1e-5, "tied": False}
ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "attention"}, channel={"name": "moe"}),
    frame={"tied": True},
    head="mixer.head_dim",
    fine_step=1,
    fine_ratio=4 / 3,
    presets={
        "mixtral-8x7b": {"width": 4096, "depth": 32, "channel.hidden": 14336, **_MIXTRAL},
        "mixtral-8x22b": {"width": 6144, "depth": 56, "channel.hidden": 16384, **_MIXTRAL},
        "qwen3-30b-a3b": {
            "width": 2048, "depth": 48, "vocab_size": 151936, "mixer.head_dim": 128, "mixer.heads": 32, "mixer.kv_heads": 4,
            "mixer.qk_norm": True, "mixer.rope_theta": 1e6, "channel.experts": 128, "channel.top_k": 8, "channel.hidden": 768,
            "tied": False,
        },
    },
    exchange=(MIXTRAL, QWEN3_MOE),
)  # fmt: skip

register(
    "mixtral",
    architecture="ARCHITECTURE",
    summary="Transformer with a mixture of experts in every layer (Mixtral, Qwen3-MoE)",
    paper="2401.04088",
    year=2024,
    tags=("causal", "parallel", "cache"),
    presets=("mixtral-8x7b", "mixtral-8x22b", "qwen3-30b-a3b"),
    exchange=("mixtral", "qwen3_moe"),
)
