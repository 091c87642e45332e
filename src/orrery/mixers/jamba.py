"""Jamba: Mamba with an attention layer in every eight, every second layer's feed-forward network a mixture of experts.

Paper: Jamba: A Hybrid Transformer-Mamba Language Model (arXiv 2403.19887); larger in Jamba-1.5 (2408.12570).

Equation:  x += mixer(norm(x));  x += F(norm(x))
    mixer: Mamba whose step size, B and C pass RMSNorms with weights, or grouped-query attention without positions
    F: SwiGLU, or sum_{i in top 2} p_i E_i(x) with p = softmax(W_r x) over all experts, not normalised after the choice

Shapes: B batch, T time, D width, E experts, k chosen, F hidden size of one expert and of a dense layer.

Cost: as Mamba; one layer in eight costs O(T^2) in training and O(T) a token in decoding; half the layers use k experts of F.

Differs from the paper: along the size ladder every fourth layer is attention and there are 8 experts; initialisation as
    `mamba` and `transformer` here.

Oracle: transformers' Jamba (equal logits through the exchange map).
"""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.exchange import ExchangeMap, Rule, attention_rules, linear_rules, plain_blocks

_NAMES = {("mamba", "glu"): "scan", ("mamba", "moe"): "scan-moe", ("attention", "glu"): "attend", ("attention", "moe"): "attend-moe"}


def _joined(names: list[str]) -> str:
    return " + ".join(f"{name}*{len(list(run))}" for name, run in groupby(names))


def _layers(depth: int, attention: tuple[int, int], experts: tuple[int, int]) -> list[str]:
    """Names of the layers; a pair is a period and the place in it."""
    kinds = (("attention" if i % attention[0] == attention[1] else "mamba", "moe" if i % experts[0] == experts[1] else "glu") for i in range(depth))
    return [_NAMES[kind] for kind in kinds]


def _period(marks: list[bool], what: str) -> tuple[int, int]:
    """The period of marked layers and the first one's place; a period beyond the depth where one or none is marked."""
    places = [i for i, mark in enumerate(marks) if mark]
    first = places[0] if places else len(marks)
    period = places[1] - first if len(places) > 1 else len(marks) + 1
    require(marks == [i % period == first for i in range(len(marks))], f"Jamba's {what} layers come at even distances")
    return period, first


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    require(hf.get("hidden_act", "silu") == "silu", f"no counterpart for activation {hf.get('hidden_act')}")
    width, rank = hf["hidden_size"], hf.get("mamba_dt_rank", "auto")
    periods = [(hf[f"{kind}_layer_period"], hf[f"{kind}_layer_offset"]) for kind in ("attn", "expert")]
    layers = _layers(hf["num_hidden_layers"], periods[0], periods[1] if hf["num_experts"] > 1 else (1, 1))
    mamba = {
        "mamba.hidden": hf["mamba_expand"] * width,
        "mamba.state": hf["mamba_d_state"],
        "mamba.rank": math.ceil(width / 16) if rank == "auto" else rank,
        "mamba.conv": hf["mamba_d_conv"],
        "mamba.conv_bias": hf.get("mamba_conv_bias", True),
        "mamba.bias": hf.get("mamba_proj_bias", False),
        "mamba.norm_eps": hf["rms_norm_eps"],
    }
    attention = {
        "attention.heads": hf["num_attention_heads"],
        "attention.kv_heads": hf.get("num_key_value_heads") or hf["num_attention_heads"],
        "attention.head_dim": width // hf["num_attention_heads"],
        "attention.dropout": hf.get("attention_dropout", 0.0),
    }
    experts = {
        "moe.experts": hf["num_experts"],
        "moe.top_k": hf["num_experts_per_tok"],
        "moe.balance": hf.get("router_aux_loss_coef", 0.001),
    }
    return {
        "width": width,
        "depth": hf["num_hidden_layers"],
        "vocab_size": hf["vocab_size"],
        "pattern": _joined(layers),
        "channel.hidden": hf["intermediate_size"],
        **(mamba if any(name.startswith("scan") for name in layers) else {}),
        **(attention if any(name.startswith("attend") for name in layers) else {}),
        **(experts if any(name.endswith("moe") for name in layers) else {}),
        "eps": hf["rms_norm_eps"],
        "tied": hf.get("tie_word_embeddings", False),
    }


def _write(own: dict[str, Any]) -> dict[str, Any]:
    width, blocks = own["width"], plain_blocks(own, "Jamba")
    kinds = [(block["mixer"]["name"], block["channel"]["name"] if block["channel"] else None) for block in blocks]
    require(set(kinds) <= set(_NAMES), "Jamba consists of Mamba or attention, each followed by SwiGLU or experts")
    parts: dict[str, dict[str, Any]] = {}
    for block in blocks:
        for part in (block["mixer"], block["channel"]):
            require(parts.setdefault(part["name"], part) == part, f"Jamba has one kind of {part['name']}")
    mamba, attention, moe = (parts.get(name) for name in ("mamba", "attention", "moe"))
    require(mamba is not None, "Jamba has at least one Mamba layer")
    assert mamba is not None
    hidden = mamba.get("hidden") or 2 * width
    require(mamba.get("heads", 1) == 1, "Jamba's Mamba has one head")
    require(hidden % width == 0, f"Jamba needs an inner size that is a multiple of the width {width}")
    require(mamba.get("norm_gain", False) and mamba.get("norm_eps") == own["eps"], "Jamba's Mamba has norms with weights inside, of the same eps")
    heads = width // 64 or 1
    if attention is not None:
        heads = attention.get("heads") or width // attention["head_dim"]
        odd = any(attention.get(key) for key in ("window", "qk_norm", "gate", "bias", "relative")) or attention.get("rope", 1.0)
        require(heads * attention["head_dim"] == width and not odd, "Jamba's attention is plain, without positions, and as wide as the model")
    sizes = {part["hidden"] for part in parts.values() if part["name"] in ("glu", "moe")}
    require(len(sizes) == 1, "Jamba's experts are as wide as its dense layers")
    if moe is not None:
        strange = ("scale", "bias_rate", "shared", "shared_gate", "gated", "activation")
        routed = moe.get("score", "softmax") == "softmax" and not moe.get("normalise", True) and not any(key in moe for key in strange)
        require(routed, "Jamba's experts are plain SwiGLU with softmax scores that are not normalised")
    periods = [_period([name in kind for kind in kinds], what) for name, what in (("attention", "attention"), ("moe", "expert"))]
    return {
        "hidden_size": width,
        "num_hidden_layers": len(blocks),
        "vocab_size": own["vocab_size"],
        "intermediate_size": sizes.pop(),
        "num_attention_heads": heads,
        "num_key_value_heads": (attention or {}).get("kv_heads") or heads,
        "attention_dropout": (attention or {}).get("dropout", 0.0),
        "attn_layer_period": periods[0][0],
        "attn_layer_offset": periods[0][1],
        "expert_layer_period": periods[1][0],
        "expert_layer_offset": periods[1][1],
        "num_experts": (moe or {}).get("experts", 8) if moe else 1,
        "num_experts_per_tok": (moe or {}).get("top_k", 2) if moe else 1,
        "router_aux_loss_coef": (moe or {}).get("balance", 0.01),
        "mamba_d_state": mamba.get("state", 16),
        "mamba_d_conv": mamba.get("conv", 4),
        "mamba_expand": hidden // width,
        "mamba_dt_rank": mamba.get("rank") or math.ceil(width / 16),
        "mamba_conv_bias": mamba.get("conv_bias", True),
        "mamba_proj_bias": mamba.get("bias", False),
        "rms_norm_eps": own["eps"],
        "tie_word_embeddings": own["tied"],
    }


_LAYER, _MIXER, _CHANNEL = "model.layers.{i}", "blocks.{i}.mixer", "blocks.{i}.channel"
_THEIRS = f"{_LAYER}.mamba"
EXCHANGE = ExchangeMap(
    model_type="jamba",
    cls="JambaForCausalLM",
    read=_read,
    write=_write,
    rules=(
        Rule("embed.weight", ("model.embed_tokens.weight",)),
        Rule("blocks.{i}.mixer_norm.weight", (f"{_LAYER}.input_layernorm.weight",)),
        *linear_rules(f"{_MIXER}.inputs.linear", f"{_THEIRS}.in_proj", mixer="mamba"),
        Rule(f"{_MIXER}.conv.weight", (f"{_THEIRS}.conv1d.weight",), ("squeeze",), "mamba"),
        Rule(f"{_MIXER}.conv.bias", (f"{_THEIRS}.conv1d.bias",), mixer="mamba"),
        Rule(f"{_MIXER}.select.weight", (f"{_THEIRS}.x_proj.weight",), mixer="mamba"),
        *(Rule(f"{_MIXER}.gains.{n}", (f"{_THEIRS}.{part}_layernorm.weight",), mixer="mamba") for n, part in enumerate(("dt", "b", "c"))),
        *linear_rules(f"{_MIXER}.dt", f"{_THEIRS}.dt_proj", mixer="mamba"),
        *(Rule(f"{_MIXER}.{name}", (f"{_THEIRS}.{name}",), mixer="mamba") for name in ("A_log", "D")),
        *linear_rules(f"{_MIXER}.out", f"{_THEIRS}.out_proj", mixer="mamba"),
        *attention_rules(_MIXER, f"{_LAYER}.self_attn", mixer="attention"),
        Rule("blocks.{i}.channel_norm.weight", (f"{_LAYER}.pre_ff_layernorm.weight",)),
        Rule(f"{_CHANNEL}.router.weight", (f"{_LAYER}.feed_forward.router.weight",)),
        Rule(f"{_CHANNEL}.wide", (f"{_LAYER}.feed_forward.experts.gate_up_proj",)),
        Rule(f"{_CHANNEL}.out", (f"{_LAYER}.feed_forward.experts.down_proj",)),
        Rule(f"{_CHANNEL}.wide.weight", (f"{_LAYER}.feed_forward.gate_proj.weight", f"{_LAYER}.feed_forward.up_proj.weight")),
        Rule(f"{_CHANNEL}.out.weight", (f"{_LAYER}.feed_forward.down_proj.weight",)),
        Rule("norm.weight", ("model.final_layernorm.weight",)),
        Rule("head.weight", ("lm_head.weight",)),
    ),
    prefixes=("model.",),
)

_MAMBA = {"name": "mamba", "norm_eps": 1e-6, "norm_gain": True}
_ATTENTION = {"name": "attention", "rope": 0.0}
_GLU, _MOE = {"name": "glu"}, {"name": "moe", "normalise": False, "balance": 0.001}
ARCHITECTURE = Architecture(
    pattern="scan + scan-moe + attend + scan-moe",
    blocks={
        "scan": BlockConfig(mixer=_MAMBA, channel=_GLU),
        "scan-moe": BlockConfig(mixer=_MAMBA, channel=_MOE),
        "attend": BlockConfig(mixer=_ATTENTION, channel=_GLU),
        "attend-moe": BlockConfig(mixer=_ATTENTION, channel=_MOE),
    },
    frame={"tied": True},
    head="attend/mixer.head_dim",
    fine_step=1,
    fine_ratio=2 / 3,
    presets={
        "jamba-v0.1": {
            "width": 4096, "depth": 32, "vocab_size": 65536, "pattern": _joined(_layers(32, (8, 4), (2, 1))),
            "attention.head_dim": 128, "attention.kv_heads": 8, "moe.experts": 16, "channel.hidden": 14336, "tied": False,
        }
    },
    exchange=(EXCHANGE,),
)  # fmt: skip

register(
    "jamba",
    architecture="ARCHITECTURE",
    summary="Jamba: Mamba with attention now and then, experts in every second layer",
    paper="2403.19887",
    year=2024,
    tags=("causal", "parallel", "cache"),
    presets=("jamba-v0.1",),
    exchange=("jamba",),
)
