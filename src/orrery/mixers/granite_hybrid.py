"""Granite 4 hybrids: Mamba-2 with an attention layer in every ten, each followed by experts and a shared one.

Paper: Granite 4.0 (IBM, 2025), after Bamba; experts as in Mixture of Experts (arXiv 1701.06538).

Equation:  x += mixer(norm(x));  x += E_shared(h) + sum_{i in top k} softmax_top(W_r h)_i E_i(h),  h = norm(x);
    mixer: Mamba-2, or grouped-query attention without positions

Shapes: B batch, T time, D width, H heads, N state size, E experts, k chosen, F hidden size of one expert.

Cost: as Bamba; a token uses k experts and the shared one.

Differs from the paper: its constant multipliers (of embedding, attention scores, residual branches and logits) are multiplied
    into the matrices when a checkpoint is read: the same function, other effective rates in training; along the size ladder
    every fourth layer is attention and there are 8 experts.

Oracle: transformers' GraniteMoeHybrid with every multiplier different (equal logits through the exchange map).
"""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.exchange import ExchangeMap, Rule, attention_rules, hybrid_settings, mamba2_rules, plain_blocks
from orrery.nn.exchange_rope import read_rope, turning_part, write_rope


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    require(hf.get("hidden_act", "silu") == "silu", f"no counterpart for activation {hf.get('hidden_act')}")
    types = hf.get("layer_types") or hf.get("layers_block_type") or ["mamba"] * hf["num_hidden_layers"]
    kinds = ["mamba" if kind in ("linear_attention", "mamba") else "attention" for kind in types]
    experts = hf.get("num_local_experts") or 0
    shared, hidden = hf["shared_intermediate_size"], hf["intermediate_size"]
    channel: dict[str, Any] = {"channel.name": "glu", "channel.hidden": shared}
    if experts:
        channel = {
            "channel.experts": experts,
            "channel.top_k": hf["num_experts_per_tok"],
            "channel.hidden": hidden,
            "channel.shared": shared / hidden,
            "channel.balance": hf.get("router_aux_loss_coef", 0.001),
        }
    rotated, theta = read_rope(hf)
    layers = hybrid_settings(hf, set(kinds), rotated if hf.get("position_embedding_type") == "rope" else 0.0, theta)
    return {
        "width": hf["hidden_size"],
        "depth": hf["num_hidden_layers"],
        "vocab_size": hf["vocab_size"],
        "pattern": " + ".join(f"{kind}*{len(list(run))}" for kind, run in groupby(kinds)),
        **channel,
        **layers,
        "eps": hf["rms_norm_eps"],
        "tied": hf.get("tie_word_embeddings", False),
    }


_FILES = {  # names in checkpoints -> names in memory
    "input_linear.weight": "experts.gate_up_proj",
    "output_linear.weight": "experts.down_proj",
    "router.layer.weight": "router.weight",
}


def _prepare(hf: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """Their tensors under one set of names, with every constant multiplier multiplied in."""
    residual, embedding, logits = (hf.get(key, 1.0) for key in ("residual_multiplier", "embedding_multiplier", "logits_scaling"))
    tied = hf.get("tie_word_embeddings", False)
    scores = hf.get("attention_multiplier", 1.0) * math.sqrt(hf["hidden_size"] // hf["num_attention_heads"])
    factors = {
        "embed_tokens.weight": embedding,
        "lm_head.weight": 1.0 if tied else 1 / logits,
        "model.norm.weight": 1 / (logits * embedding) if tied else 1.0,
        "q_proj.weight": scores,
        "q_proj.bias": scores,
        **dict.fromkeys(("o_proj.weight", "o_proj.bias", "out_proj.weight", "out_proj.bias"), residual),
        **dict.fromkeys(("experts.down_proj", "shared_mlp.output_linear.weight"), residual),
    }
    prepared = {}
    for name, tensor in tensors.items():
        home, mark, rest = name.partition(".mlp.")
        name = f"{home}.block_sparse_moe.{_FILES.get(rest, rest)}" if mark else name
        for ending, factor in factors.items():
            if name.endswith(ending):
                tensor = tensor * factor
        prepared[name] = tensor
    return prepared


def _write(own: dict[str, Any]) -> dict[str, Any]:
    width, blocks = own["width"], plain_blocks(own, "Granite")
    names = [block["mixer"]["name"] for block in blocks]
    require(set(names) == {"mamba2", "attention"}, "a Granite hybrid consists of Mamba-2 and attention")
    mamba, attention = (blocks[names.index(name)]["mixer"] for name in ("mamba2", "attention"))
    channel = blocks[0]["channel"]
    require(all(block["channel"] == channel and block["mixer"] in (mamba, attention) for block in blocks), "Granite has one kind of each layer")
    heads = max(1, round(mamba.get("expand", 2.0) * width / mamba["head_dim"]))
    require(heads * mamba["head_dim"] % width == 0, f"Granite needs an inner size that is a multiple of the width {width}")
    require(mamba.get("eps", 1e-5) == own["eps"] and mamba.get("gate_norm", "after") == "after", "Granite's Mamba-2 has its norm after the gate")
    queries, rope = attention.get("heads") or width // attention["head_dim"], turning_part(attention)
    odd = any(attention.get(key) for key in ("window", "qk_norm", "gate")) or rope not in (0.0, 1.0)
    require(queries * attention["head_dim"] == width and not odd, "Granite's attention is plain and as wide as the model")
    moe = channel["name"] == "moe"
    require(moe or channel["name"] == "glu", "Granite has experts or SwiGLU")
    strange = ("score", "scale", "bias_rate", "shared_gate", "gated", "activation", "bias")
    require(not any(key in channel for key in strange) and channel.get("normalise", True) is True, "Granite has plain SwiGLU experts")
    require(not moe or channel.get("shared", 0) > 0, "Granite has a shared expert")
    theta = attention.get("rope_theta", 10000.0)
    return {
        "hidden_size": width,
        "num_hidden_layers": len(blocks),
        "vocab_size": own["vocab_size"],
        "layer_types": ["linear_attention" if name == "mamba2" else "full_attention" for name in names],
        "num_attention_heads": queries,
        "num_key_value_heads": attention.get("kv_heads") or queries,
        "attention_bias": attention.get("bias", False),
        "attention_dropout": attention.get("dropout", 0.0),
        "attention_multiplier": attention["head_dim"] ** -0.5,
        **dict.fromkeys(("residual_multiplier", "embedding_multiplier", "logits_scaling"), 1.0),
        "position_embedding_type": "rope" if rope else None,
        **write_rope(attention.get("rope", 1.0) if rope else 1.0, theta),
        "num_local_experts": channel.get("experts", 8) if moe else 0,
        "num_experts_per_tok": channel.get("top_k", 2) if moe else 0,
        "router_aux_loss_coef": channel.get("balance", 0.01) if moe else 0.0,
        "intermediate_size": channel["hidden"],
        "shared_intermediate_size": max(1, round(channel["shared"] * channel["hidden"])) if moe else channel["hidden"],
        "mamba_n_heads": heads,
        "mamba_d_head": mamba["head_dim"],
        "mamba_expand": heads * mamba["head_dim"] // width,
        "mamba_d_state": mamba.get("state", 128),
        "mamba_n_groups": mamba.get("groups", 1),
        "mamba_d_conv": mamba.get("conv", 4),
        "mamba_conv_bias": mamba.get("conv_bias", True),
        "mamba_proj_bias": mamba.get("bias", False),
        **({"time_step_limit": list(mamba["dt_limit"])} if mamba.get("dt_limit") else {}),
        "mamba_chunk_size": 64,
        "rms_norm_eps": own["eps"],
        "tie_word_embeddings": own["tied"],
    }


_LAYER, _MIXER, _CHANNEL = "model.layers.{i}", "blocks.{i}.mixer", "blocks.{i}.channel"
EXCHANGE = ExchangeMap(
    model_type="granitemoehybrid",
    cls="GraniteMoeHybridForCausalLM",
    read=_read,
    write=_write,
    prepare=_prepare,
    rules=(
        Rule("embed.weight", ("model.embed_tokens.weight",)),
        Rule("blocks.{i}.mixer_norm.weight", (f"{_LAYER}.input_layernorm.weight",)),
        *mamba2_rules(_MIXER, f"{_LAYER}.mamba", mixer="mamba2"),
        *attention_rules(_MIXER, f"{_LAYER}.self_attn", mixer="attention"),
        Rule("blocks.{i}.channel_norm.weight", (f"{_LAYER}.post_attention_layernorm.weight",)),
        Rule(f"{_CHANNEL}.router.weight", (f"{_LAYER}.block_sparse_moe.router.weight",)),
        Rule(f"{_CHANNEL}.wide", (f"{_LAYER}.block_sparse_moe.experts.gate_up_proj",)),
        Rule(f"{_CHANNEL}.out", (f"{_LAYER}.block_sparse_moe.experts.down_proj",)),
        *(
            Rule(f"{home}.{ours}.weight", (f"{_LAYER}.shared_mlp.{theirs}_linear.weight",))
            for home in (_CHANNEL, f"{_CHANNEL}.shared")
            for ours, theirs in (("wide", "input"), ("out", "output"))
        ),
        Rule("norm.weight", ("model.norm.weight",)),
        Rule("head.weight", ("lm_head.weight",)),
    ),
    prefixes=("model.",),
)

_EXPERTS = {"name": "moe", "experts": 8, "top_k": 2, "shared": 1.0, "balance": 0.001}
ARCHITECTURE = Architecture(
    pattern="mamba*3 + attention",
    blocks={
        "mamba": BlockConfig(mixer={"name": "mamba2"}, channel=_EXPERTS, eps=1e-5),
        "attention": BlockConfig(mixer={"name": "attention", "rope": 0.0}, channel=_EXPERTS, eps=1e-5),
    },
    frame={"tied": True, "eps": 1e-5},
    head="mixer.head_dim",
    fine_step=1,
    fine_ratio=8 / 9,
    presets={
        "granite-4.0-h-tiny": {
            "width": 1536, "depth": 40, "vocab_size": 100352, "mamba2.head_dim": 64,
            "pattern": "mamba*5 + attention + mamba*9 + attention + mamba*9 + attention + mamba*9 + attention + mamba*4",
            "attention.head_dim": 128, "attention.kv_heads": 4, "channel.experts": 64, "channel.top_k": 6,
            "channel.hidden": 512, "channel.shared": 2.0, "tied": True,
        }
    },
    exchange=(EXCHANGE,),
)  # fmt: skip

register(
    "granite-hybrid",
    architecture="ARCHITECTURE",
    summary="Granite 4: Mamba-2 with attention now and then, routed and shared experts",
    paper="IBM 2025",
    year=2025,
    tags=("causal", "parallel", "cache"),
    presets=("granite-4.0-h-tiny",),
    exchange=("granitemoehybrid",),
)
