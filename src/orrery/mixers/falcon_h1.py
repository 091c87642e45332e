"""Falcon-H1: Mamba-2 and attention side by side in every layer, added up.

Paper: Falcon-H1: A Family of Hybrid-Head Language Models (arXiv 2507.22448).

Equation:  x += mamba2(norm(x)) + attention(norm(x));  x += W2 (silu(Wg norm(x)) * Wu norm(x));
    Mamba-2 gates its output, y silu(z), without a norm; the numbers of heads of both are free

Shapes: B batch, T time, D width, H heads, K head dimension, N state size, F hidden size.

Cost: train O(T^2) attention beside O(T) Mamba-2; decode O(T); state 2 G K numbers a token and layer, and E N.

Differs from the paper: its constant multipliers (of embedding, keys, projections, branches, channel mixer and head) are
    multiplied into the matrices when a checkpoint is read: the same function, but training goes on with other effective
    rates; Mamba-2 starts as `mamba2` here.

Oracle: transformers' Falcon-H1 with every multiplier different (equal logits through the exchange map).
"""

from __future__ import annotations

import math
from typing import Any

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.exchange import ExchangeMap, Rule, attention_rules, linear_rules, mamba2_rules
from orrery.nn.exchange_rope import rope_settings, turning_part, write_rope


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    require(hf.get("hidden_act", "silu") == "silu", f"no counterpart for activation {hf.get('hidden_act')}")
    biases = hf.get("mamba_proj_bias", False), hf.get("projectors_bias", False)
    require(biases[0] == biases[1], "Mamba-2 here has biases on both projections or on none")
    limit = tuple(float(bound) for bound in hf.get("time_step_limit") or (0.0, math.inf))
    heads, head = hf["mamba_n_heads"], hf["mamba_d_head"]
    normed = "before" if hf.get("mamba_norm_before_gate", True) else "after"
    return {
        "width": hf["hidden_size"],
        "depth": hf["num_hidden_layers"],
        "vocab_size": hf["vocab_size"],
        "mamba2.head_dim": head,
        "mamba2.expand": heads * head / hf["hidden_size"],
        "mamba2.state": hf["mamba_d_state"],
        "mamba2.groups": hf["mamba_n_groups"],
        "mamba2.conv": hf["mamba_d_conv"],
        "mamba2.conv_bias": hf.get("mamba_conv_bias", True),
        "mamba2.bias": biases[0],
        "mamba2.eps": hf["rms_norm_eps"],
        "mamba2.dt_limit": None if limit == (0.0, math.inf) else limit,
        "mamba2.gate_norm": normed if hf.get("mamba_rms_norm") else "none",
        "attention.heads": hf["num_attention_heads"],
        "attention.kv_heads": hf.get("num_key_value_heads") or hf["num_attention_heads"],
        "attention.head_dim": hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        **rope_settings(hf, "attention"),
        "attention.bias": hf.get("attention_bias", False),
        "attention.dropout": hf.get("attention_dropout", 0.0),
        "channel.hidden": hf["intermediate_size"],
        "channel.bias": hf.get("mlp_bias", False),
        "eps": hf["rms_norm_eps"],
        "tied": hf.get("tie_word_embeddings", False),
    }


def _prepare(hf: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """Their tensors with every constant multiplier multiplied in."""
    inner, shared = hf["mamba_n_heads"] * hf["mamba_d_head"], hf["mamba_n_groups"] * hf["mamba_d_state"]
    sections = (inner, inner, shared, shared, hf["mamba_n_heads"])  # z, x, B, C, dt
    gate, down = hf.get("mlp_multipliers") or (1.0, 1.0)
    into, out, key = hf.get("attention_in_multiplier", 1.0), hf.get("attention_out_multiplier", 1.0), hf.get("key_multiplier", 1.0)
    embedding, head = hf.get("embedding_multiplier", 1.0), hf.get("lm_head_multiplier", 1.0)
    tied = hf.get("tie_word_embeddings", False)
    factors = {  # ending of a name -> factors of weight and bias
        "self_attn.q_proj": (into, 1.0),
        "self_attn.k_proj": (into * key, key),
        "self_attn.v_proj": (into, 1.0),
        "self_attn.o_proj": (out, out),
        "feed_forward.gate_proj": (gate, gate),
        "feed_forward.down_proj": (down, down),
        "mamba.out_proj": (hf.get("ssm_out_multiplier", 1.0),) * 2,
        "embed_tokens": (embedding, 1.0),
        "lm_head": (1.0 if tied else head, 1.0),
        "final_layernorm": (head / embedding if tied else 1.0, 1.0),
    }
    prepared = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if module.endswith("mamba.in_proj"):
            rows = tensor.new_tensor(hf.get("ssm_multipliers") or [1.0] * 5).repeat_interleave(tensor.new_tensor(sections).long())
            rows = rows * (hf.get("ssm_in_multiplier", 1.0) if kind == "weight" else 1.0)
            tensor = tensor * (rows[:, None] if kind == "weight" else rows)
        for ending, (weight, bias) in factors.items():
            if module.endswith(ending):
                tensor = tensor * (weight if kind == "weight" else bias)
        prepared[name] = tensor
    return prepared


def _write(own: dict[str, Any]) -> dict[str, Any]:
    block = own["blocks"][0]
    mixer, channel = block["mixer"], block["channel"]
    require(own["layout"] == [0] * len(own["layout"]) and block["placement"] == "pre" and not block["canon"], "Falcon-H1 has one kind of block")
    names = [part["name"] for part in mixer.get("branches", ())]
    require(names == ["mamba2", "attention"], "Falcon-H1 has Mamba-2 and attention side by side")
    plain = mixer.get("fusion") == "sum" and not mixer.get("normed", True) and mixer.get("beta") == "none" and not mixer.get("shares")
    require(plain, "Falcon-H1 adds its branches as they are")
    mamba, attention = mixer["branches"]
    require(turning_part(attention) == 1.0 and not any(attention.get(k) for k in ("window", "qk_norm", "gate")), "Falcon-H1's attention is plain")
    require(mamba.get("eps", 1e-5) == own["eps"] == block["eps"], "Falcon-H1 has one eps for all of its norms")
    require(channel["name"] == "glu" and channel.get("activation", "silu") == "silu", "Falcon-H1 has SwiGLU")
    heads = max(1, round(mamba.get("expand", 2.0) * own["width"] / mamba["head_dim"]))
    norm, theta = mamba.get("gate_norm", "after"), attention.get("rope_theta", 10000.0)
    queries = attention.get("heads") or own["width"] // attention["head_dim"]
    return {
        "hidden_size": own["width"],
        "num_hidden_layers": len(own["layout"]),
        "vocab_size": own["vocab_size"],
        "num_attention_heads": queries,
        "num_key_value_heads": attention.get("kv_heads") or queries,
        "head_dim": attention["head_dim"],
        "intermediate_size": channel["hidden"],
        "mamba_d_ssm": heads * mamba["head_dim"],
        "mamba_n_heads": heads,
        "mamba_d_head": mamba["head_dim"],
        "mamba_d_state": mamba.get("state", 128),
        "mamba_n_groups": mamba.get("groups", 1),
        "mamba_d_conv": mamba.get("conv", 4),
        "mamba_conv_bias": mamba.get("conv_bias", True),
        "mamba_proj_bias": mamba.get("bias", False),
        "projectors_bias": mamba.get("bias", False),
        "mamba_rms_norm": norm != "none",
        "mamba_norm_before_gate": norm == "before",
        **({"time_step_limit": list(mamba["dt_limit"])} if mamba.get("dt_limit") else {}),
        "mamba_chunk_size": 64,
        "attention_bias": attention.get("bias", False),
        "attention_dropout": attention.get("dropout", 0.0),
        "mlp_bias": channel.get("bias", False),
        "rms_norm_eps": own["eps"],
        "rope_theta": theta,
        **write_rope(attention.get("rope", 1.0), theta),
        "tie_word_embeddings": own["tied"],
    }


_LAYER, _MAMBA, _ATTENTION = "model.layers.{i}", "blocks.{i}.mixer.branches.0", "blocks.{i}.mixer.branches.1"
EXCHANGE = ExchangeMap(
    model_type="falcon_h1",
    cls="FalconH1ForCausalLM",
    read=_read,
    write=_write,
    prepare=_prepare,
    rules=(
        Rule("embed.weight", ("model.embed_tokens.weight",)),
        Rule("blocks.{i}.mixer_norm.weight", (f"{_LAYER}.input_layernorm.weight",)),
        *mamba2_rules(_MAMBA, f"{_LAYER}.mamba"),
        *attention_rules(_ATTENTION, f"{_LAYER}.self_attn"),
        Rule("blocks.{i}.channel_norm.weight", (f"{_LAYER}.pre_ff_layernorm.weight",)),
        *linear_rules("blocks.{i}.channel.wide", (f"{_LAYER}.feed_forward.gate_proj", f"{_LAYER}.feed_forward.up_proj"), "", ""),
        *linear_rules("blocks.{i}.channel.out", f"{_LAYER}.feed_forward.down_proj"),
        Rule("norm.weight", ("model.final_layernorm.weight",)),
        Rule("head.weight", ("lm_head.weight",)),
    ),
    prefixes=("model.",),
)


def _published(width: int, depth: int, vocab_size: int, hidden: int, heads: int, head: int, mamba: int, part: int, size: int) -> dict[str, Any]:
    return {
        "width": width, "depth": depth, "vocab_size": vocab_size, "channel.hidden": hidden, "attention.heads": heads,
        "attention.kv_heads": 2, "attention.head_dim": head, "attention.rope_theta": 1e11, "mamba2.head_dim": part,
        "mamba2.expand": mamba * part / width, "mamba2.state": size, "tied": False,
    }  # fmt: skip


ARCHITECTURE = Architecture(
    block=BlockConfig(
        mixer={
            "name": "parallel",
            "branches": [{"name": "mamba2", "gate_norm": "none", "expand": 1.5}, {"name": "attention"}],
            "fusion": "sum",
            "normed": False,
            "beta": "none",
        },
        channel={"name": "glu"},
        eps=1e-5,
    ),
    frame={"tied": True, "eps": 1e-5},
    head="mixer.head_dim",
    fine_ratio=2.0,
    presets={
        "falcon-h1-0.5b": _published(1024, 36, 32784, 2048, 8, 64, 24, 64, 128),
        "falcon-h1-7b": _published(3072, 44, 130048, 12288, 12, 128, 24, 128, 256),
    },
    exchange=(EXCHANGE,),
)

register(
    "falcon-h1",
    architecture="ARCHITECTURE",
    summary="Falcon-H1: Mamba-2 and attention in parallel in every layer, added",
    paper="2507.22448",
    year=2025,
    tags=("causal", "parallel", "cache"),
    presets=("falcon-h1-0.5b", "falcon-h1-7b"),
    exchange=("falcon_h1",),
)
