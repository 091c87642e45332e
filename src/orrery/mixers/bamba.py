"""Bamba: Mamba-2 layers with a few attention layers between them, each followed by SwiGLU.

Paper: Bamba-9B (IBM, Princeton, CMU, UIUC, 2024), after An Empirical Study of Mamba-based Language Models (arXiv 2406.07887).

Equation:  x += mixer(norm(x));  x += W2 (silu(Wg norm(x)) * Wu norm(x));
    mixer: Mamba-2, or grouped-query attention with half of each head rotated

Shapes: B batch, T time, D width, H heads, K head dimension, N state size, F hidden size.

Cost: as Mamba-2; the few attention layers cost O(T^2) in training and O(T) a token in decoding.

Differs from the paper: along the size ladder every fourth layer is attention (in Bamba-9B layers 9, 18 and 27 of 32);
    initialisation as `mamba2` and `transformer` here.

Oracle: transformers' Bamba (equal logits through the exchange map).
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.exchange import (
    ExchangeMap,
    Rule,
    attention_rules,
    hybrid_settings,
    linear_rules,
    mamba2_rules,
    plain_blocks,
)
from orrery.nn.exchange_rope import read_rope, turning_part, write_rope


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    require(hf.get("hidden_act", "silu") == "silu", f"no counterpart for activation {hf.get('hidden_act')}")
    attending = set(hf.get("attn_layer_indices") or ())
    kinds = ["attention" if i in attending else "mamba" for i in range(hf["num_hidden_layers"])]
    shared = {
        "width": hf["hidden_size"],
        "depth": hf["num_hidden_layers"],
        "vocab_size": hf["vocab_size"],
        "pattern": " + ".join(f"{kind}*{len(list(run))}" for kind, run in groupby(kinds)),
        "channel.hidden": hf["intermediate_size"],
        "channel.bias": hf.get("mlp_bias", False),
        "eps": hf["rms_norm_eps"],
        "tied": hf.get("tie_word_embeddings", False),
    }
    layers = hybrid_settings(hf, set(kinds), *read_rope(hf, part=0.5))
    return {**shared, **layers}


def _write(own: dict[str, Any]) -> dict[str, Any]:
    width, blocks = own["width"], plain_blocks(own, "Bamba")
    names = [block["mixer"]["name"] for block in blocks]
    require(set(names) <= {"mamba2", "attention"}, "Bamba consists of Mamba-2 and attention")
    require("mamba2" in names, "Bamba has at least one Mamba-2 layer")
    mamba = next(block["mixer"] for block in blocks if block["mixer"]["name"] == "mamba2")
    attention: dict[str, Any] = next((block["mixer"] for block in blocks if block["mixer"]["name"] == "attention"), {"head_dim": width})
    channel = blocks[0]["channel"]
    same = all(block["channel"] == channel and block["mixer"] in (mamba, attention) for block in blocks)
    require(same and channel["name"] == "glu", "Bamba has one kind of Mamba-2, of attention, and of SwiGLU")
    heads = max(1, round(mamba.get("expand", 2.0) * width / mamba["head_dim"]))
    require(heads * mamba["head_dim"] % width == 0, f"Bamba needs an inner size that is a multiple of the width {width}")
    require(mamba.get("eps", 1e-5) == own["eps"] and mamba.get("gate_norm", "after") == "after", "Bamba's Mamba-2 has its norm after the gate")
    queries = attention.get("heads") or width // attention["head_dim"]
    require(queries * attention["head_dim"] == width, "Bamba's query heads together are as wide as the model")
    odd = any(attention.get(key) for key in ("window", "qk_norm", "gate"))
    require(turning_part(attention, 0.5) == 0.5 and not odd, "Bamba's attention rotates half of each head, and is plain otherwise")
    theta = attention.get("rope_theta", 10000.0)
    return {
        "hidden_size": width,
        "num_hidden_layers": len(blocks),
        "vocab_size": own["vocab_size"],
        "attn_layer_indices": [i for i, name in enumerate(names) if name == "attention"],
        "num_attention_heads": queries,
        "num_key_value_heads": attention.get("kv_heads") or queries,
        "intermediate_size": channel["hidden"],
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
        "attention_bias": attention.get("bias", False),
        "attention_dropout": attention.get("dropout", 0.0),
        "mlp_bias": channel.get("bias", False),
        "rms_norm_eps": own["eps"],
        "rope_theta": theta,
        **write_rope(attention.get("rope", 0.5), theta, partial=True),
        "tie_word_embeddings": own["tied"],
    }


_LAYER, _MIXER = "model.layers.{i}", "blocks.{i}.mixer"
EXCHANGE = ExchangeMap(
    model_type="bamba",
    cls="BambaForCausalLM",
    read=_read,
    write=_write,
    rules=(
        Rule("embed.weight", ("model.embed_tokens.weight",)),
        Rule("blocks.{i}.mixer_norm.weight", (f"{_LAYER}.input_layernorm.weight",)),
        *mamba2_rules(_MIXER, f"{_LAYER}.mamba", mixer="mamba2"),
        *attention_rules(_MIXER, f"{_LAYER}.self_attn", mixer="attention"),
        Rule("blocks.{i}.channel_norm.weight", (f"{_LAYER}.pre_ff_layernorm.weight",)),
        *linear_rules("blocks.{i}.channel.wide", (f"{_LAYER}.feed_forward.gate_proj", f"{_LAYER}.feed_forward.up_proj"), "", ""),
        *linear_rules("blocks.{i}.channel.out", f"{_LAYER}.feed_forward.down_proj"),
        Rule("norm.weight", ("model.final_layernorm.weight",)),
        Rule("head.weight", ("lm_head.weight",)),
    ),
    prefixes=("model.",),
)

ARCHITECTURE = Architecture(
    pattern="mamba*3 + attention",
    blocks={
        "mamba": BlockConfig(mixer={"name": "mamba2"}, channel={"name": "glu"}, eps=1e-5),
        "attention": BlockConfig(mixer={"name": "attention", "rope": 0.5}, channel={"name": "glu"}, eps=1e-5),
    },
    frame={"tied": True, "eps": 1e-5},
    head="mixer.head_dim",
    presets={
        "bamba-9b": {
            "width": 4096,
            "depth": 32,
            "vocab_size": 128256,
            "pattern": "mamba*9 + attention + mamba*8 + attention + mamba*8 + attention + mamba*4",
            "mamba2.head_dim": 64,
            "attention.head_dim": 128,
            "attention.kv_heads": 8,
            "channel.hidden": 14336,
            "tied": False,
        }
    },
    exchange=(EXCHANGE,),
)

register(
    "bamba",
    architecture="ARCHITECTURE",
    summary="Bamba: Mamba-2 with an attention layer now and then, SwiGLU after each",
    paper="2406.07887",
    year=2024,
    tags=("causal", "parallel", "cache"),
    presets=("bamba-9b",),
    exchange=("bamba",),
)
