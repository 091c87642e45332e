"""Nemotron-H: Mamba-2 and a few attention layers; a squared-ReLU MLP or experts behind most of them, not behind all.

Paper: Nemotron-H: A Family of Accurate and Efficient Hybrid Mamba-Transformer Models (arXiv 2504.03624); with experts Nemotron 3
    Nano (NVIDIA, 2025), whose routing is DeepSeek-V3's (2412.19437).

Equation:  x += mixer(norm(x));  and where the layer has it  x += F(norm(x))
    mixer: Mamba-2 whose norm works group by group, or grouped-query attention without positions
    F: W_2 relu(W_1 h)^2, or E_shared(h) + s sum_{i in S} p_i / sum_{j in S} p_j E_i(h), S the k largest of p_i + bias_i,
    p = sigmoid(W_r h), every E such an MLP

Shapes: B batch, T time, D width, E experts, k chosen, F hidden size of an MLP or expert.

Cost: as Mamba-2; the few attention layers cost O(T^2) in training and O(T) a token in decoding.

Differs from the paper: an MLP belongs to the mixer before it, so that the 52 layers of the paper's 8B model are 28 here; along
    the size ladder every fourth layer is attention and one in four has no MLP. Theirs bounds step sizes from below when it
    reads a prompt and not when it decodes; here they are bounded in both.

Oracle: transformers' Nemotron-H (equal logits through the exchange map); tests/oracles/mamba2.py, attention.py and moe.py.
"""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.exchange import ExchangeMap, Rule, attention_rules, linear_rules, mamba2_rules, plain_blocks

_KINDS = {  # their names of a layer, with those of older files, and the letters of their patterns
    **dict.fromkeys(("linear_attention", "mamba", "M"), "mamba"),
    **dict.fromkeys(("full_attention", "attention", "*"), "attend"),
    **dict.fromkeys(("mlp", "-"), "mlp"),
    **dict.fromkeys(("moe", "E"), "moe"),
}
_THEIRS = {"mamba": "linear_attention", "mamba2": "linear_attention", "attention": "full_attention", "mlp": "mlp", "moe": "moe"}
_CHANNELS = ("mlp", "moe")


def _blocks(hf: dict[str, Any]) -> list[tuple[int, int | None, str]]:
    """Our blocks: number of the layer of theirs that mixes, of the one behind it that does not (or None), and our block's name."""
    theirs = hf.get("layers_block_type") or hf.get("layer_types") or list(hf.get("hybrid_override_pattern") or "")
    require(bool(theirs) and all(kind in _KINDS for kind in theirs), f"the kinds of layers are not known: {theirs}")
    kinds, found = [_KINDS[kind] for kind in theirs], list[tuple[int, int | None, str]]()
    for number, kind in enumerate(kinds):
        if kind not in _CHANNELS:
            found.append((number, None, kind))
            continue
        require(bool(found) and found[-1][1] is None, "here every MLP or mixture of experts stands behind a layer that mixes, one at most")
        found[-1] = (found[-1][0], number, f"{found[-1][2]}-{kind}")
    return found


def _joined(names: list[str]) -> str:
    return " + ".join(f"{name}*{len(list(run))}" for name, run in groupby(names))


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    known = hf.get("mlp_hidden_act", "relu2") == "relu2" and hf.get("mamba_hidden_act", "silu") == "silu"
    require(known, "no counterpart for activations other than relu2 and silu")
    require(hf.get("moe_latent_size") is None, "experts between two maps of their own (moe_latent_size) have no counterpart")
    require(hf.get("topk_group", 1) == hf.get("n_group", 1), "experts chosen by groups (n_group) have no counterpart")
    require(not hf.get("sliding_window"), "a window has no counterpart in Nemotron-H's attention")
    width, names = hf["hidden_size"], [name for _, _, name in _blocks(hf)]
    used = {part for name in names for part in name.split("-")}
    least = hf.get("time_step_min", 0.001)
    found: dict[str, Any] = {
        "width": width,
        "depth": len(names),
        "vocab_size": hf["vocab_size"],
        "pattern": _joined(names),
        "eps": hf["layer_norm_epsilon"],
        "tied": False,  # their class has a head of its own whatever the config says
    }
    if "mamba" in used:
        found |= {
            "mamba2.head_dim": hf["mamba_head_dim"],
            "mamba2.expand": hf["mamba_num_heads"] * hf["mamba_head_dim"] / width,
            "mamba2.state": hf["ssm_state_size"],
            "mamba2.groups": hf["n_groups"],
            "mamba2.conv": hf["conv_kernel"],
            "mamba2.conv_bias": hf.get("use_conv_bias", True),
            "mamba2.bias": hf.get("use_bias", False),
            "mamba2.eps": hf["layer_norm_epsilon"],
            "mamba2.dt_limit": (float(least), math.inf) if least > _LEAST else None,
        }
    if "attend" in used:
        found |= {
            "attention.heads": hf["num_attention_heads"],
            "attention.kv_heads": hf.get("num_key_value_heads") or hf["num_attention_heads"],
            "attention.head_dim": hf.get("head_dim") or width // hf["num_attention_heads"],
            "attention.dropout": hf.get("attention_dropout", 0.0),
        }
    if "mlp" in used:
        found |= {"mlp.hidden": hf["intermediate_size"], "mlp.bias": hf.get("mlp_bias", False)}
    if "moe" in used:
        require(not hf.get("mlp_bias"), "experts with biases have no counterpart")
        found |= {
            "moe.experts": hf["n_routed_experts"],
            "moe.top_k": hf["num_experts_per_tok"],
            "moe.hidden": hf["moe_intermediate_size"],
            "moe.shared": hf["moe_shared_expert_intermediate_size"] / hf["moe_intermediate_size"],
            "moe.scale": float(hf.get("routed_scaling_factor", 1.0)),
            "moe.normalise": hf.get("norm_topk_prob", True),
        }
    return found


_LEAST = 1e-30  # a step size that bounds nothing: they need a positive one


def _write(own: dict[str, Any]) -> dict[str, Any]:
    width, blocks = own["width"], plain_blocks(own, "Nemotron-H")
    parts: dict[str, dict[str, Any]] = {}
    layers: list[str] = []
    for block in blocks:
        for part in (block["mixer"], block["channel"]):
            if part is not None:
                require(part["name"] in _THEIRS, f"Nemotron-H has no '{part['name']}'")
                require(parts.setdefault(part["name"], part) == part, f"Nemotron-H has one kind of {part['name']}")
                layers.append(_THEIRS[part["name"]])
    config = {
        "hidden_size": width,
        "layers_block_type": layers,
        "vocab_size": own["vocab_size"],
        "layer_norm_epsilon": own["eps"],
        "mlp_hidden_act": "relu2",
        "tie_word_embeddings": False,
    }
    writers = {"mamba2": _write_mamba, "attention": _write_attention, "mlp": _write_mlp, "moe": _write_moe}
    for name, part in parts.items():
        config |= writers[name](part, own)
    return config


def _write_mamba(mamba: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    least, most = mamba.get("dt_limit") or (0.0, math.inf)
    alike = mamba.get("eps", 1e-5) == own["eps"] and mamba.get("gate_norm", "after") == "after" and most == math.inf
    require(alike, "Nemotron-H's Mamba-2 has its norm after the gate, the model's eps, and no upper bound of the step size")
    return {
        "mamba_num_heads": max(1, round(mamba.get("expand", 2.0) * own["width"] / mamba["head_dim"])),
        "mamba_head_dim": mamba["head_dim"],
        "ssm_state_size": mamba.get("state", 128),
        "n_groups": mamba.get("groups", 1),
        "conv_kernel": mamba.get("conv", 4),
        "use_conv_bias": mamba.get("conv_bias", True),
        "use_bias": mamba.get("bias", False),
        "time_step_min": max(least, _LEAST),
        "chunk_size": 64,
    }


def _write_attention(attention: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    odd = any(attention.get(key) for key in ("window", "qk_norm", "gate", "bias", "relative")) or attention.get("rope", 1.0)
    require(not odd, "Nemotron-H's attention is plain, without positions and bias")
    heads = attention.get("heads") or own["width"] // attention["head_dim"]
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": attention.get("kv_heads") or heads,
        "head_dim": attention["head_dim"],
        "attention_dropout": attention.get("dropout", 0.0),
    }


def _write_mlp(mlp: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    require(mlp.get("activation") == "relu2", "Nemotron-H's MLP squares a ReLU")
    return {"intermediate_size": mlp["hidden"], "mlp_bias": mlp.get("bias", False)}


def _write_moe(moe: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    routed = moe.get("score") == "sigmoid" and moe.get("bias_rate") is not None and not moe.get("gated", True)
    routed = routed and isinstance(moe.get("normalise", True), bool)
    shared = moe.get("shared", 0) > 0 and not moe.get("shared_gate")
    require(routed and shared and moe.get("activation") == "relu2", "Nemotron-H has sigmoid scores with a bias, a shared expert, squared ReLUs")
    return {
        "n_routed_experts": moe.get("experts", 8),
        "num_experts_per_tok": moe.get("top_k", 2),
        "moe_intermediate_size": moe["hidden"],
        "moe_shared_expert_intermediate_size": max(1, round(moe["shared"] * moe["hidden"])),
        "routed_scaling_factor": moe.get("scale", 1.0),
        "norm_topk_prob": moe.get("normalise", True),
        "n_group": 1,
        "topk_group": 1,
    }


def _homes(hf: dict[str, Any]) -> dict[str, str]:
    """Where a layer of theirs stands -> where its tensors stand in the rules."""
    homes = {}
    for block, (mixes, behind, _) in enumerate(_blocks(hf)):
        homes[f"model.layers.{mixes}."] = f"model.layers.{block}.mixing."
        if behind is not None:
            homes[f"model.layers.{behind}."] = f"model.layers.{block}.behind."
    return homes


def _moved(tensors: dict[str, Any], homes: dict[str, str]) -> dict[str, Any]:
    found = {}
    for name, tensor in tensors.items():
        home = next((home for home in homes if name.startswith(home)), "")
        found[homes.get(home, "") + name.removeprefix(home)] = tensor
    return found


def _prepare(hf: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """Layers counted as here; files call `backbone` what is `model` in memory, and may hold layers that predict further tokens."""
    plain = {name.removeprefix("model.").replace("backbone.", "model.", 1) if "backbone." in name else name: t for name, t in tensors.items()}
    return _moved({name: tensor for name, tensor in plain.items() if not name.removeprefix("model.").startswith("mtp.")}, _homes(hf))


def _finish(hf: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    found = _moved(tensors, {ours: theirs for theirs, ours in _homes(hf).items()})
    return {"lm_head.weight": found["model.embeddings.weight"].clone(), **found}  # of a tied model a copy


_MIX, _BEHIND, _MIXER, _CHANNEL = "model.layers.{i}.mixing", "model.layers.{i}.behind", "blocks.{i}.mixer", "blocks.{i}.channel"
EXCHANGE = ExchangeMap(
    model_type="nemotron_h",
    cls="NemotronHForCausalLM",
    read=_read,
    write=_write,
    rules=(
        Rule("embed.weight", ("model.embeddings.weight",)),
        Rule("blocks.{i}.mixer_norm.weight", (f"{_MIX}.norm.weight",)),
        *mamba2_rules(_MIXER, f"{_MIX}.mixer", mixer="mamba2"),
        *attention_rules(_MIXER, f"{_MIX}.mixer", mixer="attention"),
        Rule("blocks.{i}.channel_norm.weight", (f"{_BEHIND}.norm.weight",)),
        *linear_rules(f"{_CHANNEL}.wide", f"{_BEHIND}.mixer.up_proj"),
        *linear_rules(f"{_CHANNEL}.out", f"{_BEHIND}.mixer.down_proj"),
        Rule(f"{_CHANNEL}.router.weight", (f"{_BEHIND}.mixer.gate.weight",)),
        Rule(f"{_CHANNEL}.selection_bias", (f"{_BEHIND}.mixer.gate.e_score_correction_bias",)),
        Rule(f"{_CHANNEL}.wide", (f"{_BEHIND}.mixer.experts.up_proj",)),
        Rule(f"{_CHANNEL}.out", (f"{_BEHIND}.mixer.experts.down_proj",)),
        Rule(f"{_CHANNEL}.shared.wide.weight", (f"{_BEHIND}.mixer.shared_experts.up_proj.weight",)),
        Rule(f"{_CHANNEL}.shared.out.weight", (f"{_BEHIND}.mixer.shared_experts.down_proj.weight",)),
        Rule("norm.weight", ("model.norm_f.weight",)),
        Rule("head.weight", ("lm_head.weight",)),
    ),
    prefixes=("model.",),
    prepare=_prepare,
    finish=_finish,
)

_MAMBA, _ATTENTION = {"name": "mamba2"}, {"name": "attention", "rope": 0.0}
_MLP = {"name": "mlp", "activation": "relu2"}
_MOE = {
    "name": "moe", "activation": "relu2", "gated": False, "shared": 1.0, "score": "sigmoid", "bias_rate": 0.0,
}  # fmt: skip
ARCHITECTURE = Architecture(
    pattern="mamba-mlp*2 + mamba + attend-mlp",
    blocks={
        f"{mixer}-{channel}".removesuffix("-"): BlockConfig(mixer=own, channel=behind, eps=1e-5)
        for mixer, own in (("mamba", _MAMBA), ("attend", _ATTENTION))
        for channel, behind in (("", None), ("mlp", _MLP), ("moe", _MOE))
    },
    frame={"tied": True, "eps": 1e-5},
    head="mixer.head_dim",
    fine_ratio=21 / 4,
    presets={
        "nemotron-h-8b": {
            "width": 4096, "depth": 28, "vocab_size": 131072, "tied": False, "mamba2.head_dim": 64, "mamba2.groups": 8,
            "pattern": "mamba-mlp*3 + mamba + attend-mlp" + " + mamba-mlp*4 + mamba + attend-mlp" * 3 + " + mamba-mlp*5",
            "attention.head_dim": 128, "attention.kv_heads": 8, "mlp.hidden": 21504,
        },
        "nemotron-3-nano-30b-a3b": {
            "width": 2688, "depth": 29, "vocab_size": 131072, "tied": False, "mamba2.head_dim": 64, "mamba2.expand": 4096 / 2688,
            "mamba2.groups": 8, "pattern": "mamba-moe*2 + mamba + attend-moe" + " + mamba-moe*2 + mamba + attend-moe" * 4
            + " + mamba-moe*3 + mamba + attend-moe + mamba-moe*4",
            "attention.heads": 32, "attention.head_dim": 128, "attention.kv_heads": 2, "moe.experts": 128, "moe.top_k": 6,
            "moe.hidden": 1856, "moe.shared": 2.0, "moe.scale": 2.5,
        },
    },
    exchange=(EXCHANGE,),
)  # fmt: skip

register(
    "nemotron-h",
    architecture="ARCHITECTURE",
    summary="Nemotron-H: Mamba-2 with attention now and then, squared-ReLU MLPs or experts behind most layers",
    paper="2504.03624",
    year=2025,
    tags=("causal", "parallel", "cache"),
    presets=("nemotron-h-8b", "nemotron-3-nano-30b-a3b"),
    exchange=("nemotron_h",),
)
