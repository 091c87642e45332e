"""Transformer: the decoder as it is built today (Llama's choices).

Paper: Attention Is All You Need (arXiv 1706.03762); with pre-RMSNorm, SwiGLU and rotary positions as in LLaMA (2302.13971).

Equation:  x += attention(norm(x));  x += W2 (silu(Wg norm(x)) * Wu norm(x));  logits = W norm(x)

Shapes: B batch, T time, D width, H heads, K head dimension, F hidden size (8/3 D).

Cost: train O(T^2) attention beside 12 D^2 a token and layer; decode O(T); state 2 D numbers a token and layer.

Differs from the paper: the head is tied to the embedding by default (`tied=False` unties it); initialisation by width
    (std sqrt(2 / 5D)), way out scaled by 1/sqrt(2 depth).

Oracle: transformers' Llama (equal logits through the exchange map); tests/oracles/attention.py for the mixer.
"""

from __future__ import annotations

from typing import Any

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.exchange import ExchangeMap, Rule, attention_rules, linear_rules
from orrery.nn.exchange_rope import rope_settings, turning_part, write_rope

_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu-tanh", "relu": "relu"}


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    require(hf.get("hidden_act", "silu") in _ACTIVATIONS, f"no counterpart for activation {hf.get('hidden_act')}")
    return {
        "width": hf["hidden_size"],
        "depth": hf["num_hidden_layers"],
        "vocab_size": hf["vocab_size"],
        "mixer.heads": hf["num_attention_heads"],
        "mixer.kv_heads": hf.get("num_key_value_heads") or hf["num_attention_heads"],
        "mixer.head_dim": hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        **rope_settings(hf, "mixer"),
        "mixer.bias": hf.get("attention_bias", False),
        "mixer.dropout": hf.get("attention_dropout", 0.0),
        "channel.hidden": hf["intermediate_size"],
        "channel.activation": _ACTIVATIONS[hf.get("hidden_act", "silu")],
        "channel.bias": hf.get("mlp_bias", False),
        "eps": hf.get("rms_norm_eps", 1e-6),
        "tied": hf.get("tie_word_embeddings", False),
    }


def _write(own: dict[str, Any]) -> dict[str, Any]:
    block = own["blocks"][0]
    mixer, channel = block["mixer"], block["channel"]
    require(own["layout"] == [0] * len(own["layout"]) and block["placement"] == "pre" and not block["canon"], "Llama has one kind of block")
    plain = turning_part(mixer) == 1.0 and not any(mixer.get(key) for key in ("window", "qk_norm", "gate"))
    require(plain, "Llama has no window, query-key norm, gate or partial rotation")
    heads = mixer.get("heads") or own["width"] // mixer["head_dim"]
    theta = mixer.get("rope_theta", 10000.0)
    return {
        "hidden_size": own["width"],
        "num_hidden_layers": len(own["layout"]),
        "num_attention_heads": heads,
        "num_key_value_heads": mixer.get("kv_heads") or heads,
        "head_dim": mixer["head_dim"],
        "intermediate_size": channel["hidden"],
        "vocab_size": own["vocab_size"],
        "hidden_act": {v: k for k, v in _ACTIVATIONS.items()}[channel.get("activation", "silu")],
        "attention_bias": mixer.get("bias", False),
        "attention_dropout": mixer.get("dropout", 0.0),
        "mlp_bias": channel.get("bias", False),
        "rms_norm_eps": own["eps"],
        "rope_theta": theta,
        "max_position_embeddings": 1 << 20,
        **write_rope(mixer.get("rope", 1.0), theta),
        "tie_word_embeddings": own["tied"],
    }


_LAYER = "model.layers.{i}"
LLAMA = ExchangeMap(
    model_type="llama",
    cls="LlamaForCausalLM",
    read=_read,
    write=_write,
    rules=(
        Rule("embed.weight", ("model.embed_tokens.weight",)),
        Rule("blocks.{i}.mixer_norm.weight", (f"{_LAYER}.input_layernorm.weight",)),
        *attention_rules("blocks.{i}.mixer", f"{_LAYER}.self_attn"),
        Rule("blocks.{i}.channel_norm.weight", (f"{_LAYER}.post_attention_layernorm.weight",)),
        *linear_rules("blocks.{i}.channel.wide", (f"{_LAYER}.mlp.gate_proj", f"{_LAYER}.mlp.up_proj"), "", ""),
        *linear_rules("blocks.{i}.channel.out", f"{_LAYER}.mlp.down_proj"),
        Rule("norm.weight", ("model.norm.weight",)),
        Rule("head.weight", ("lm_head.weight",)),
    ),
    ignored=(".rotary_emb.inv_freq",),
    prefixes=("model.",),
)

ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "attention"}, channel={"name": "glu"}),
    frame={"tied": True},
    head="mixer.head_dim",
    exchange=(LLAMA,),
)

register(
    "transformer",
    architecture="ARCHITECTURE",
    summary="Decoder-only Transformer: rotary attention, RMSNorm, SwiGLU",
    paper="1706.03762",
    year=2017,
    tags=("causal", "parallel", "cache"),
    exchange=("llama",),
)
