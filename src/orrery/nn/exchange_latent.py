"""What the exchange maps of models with latent attention share: names of DeepSeek-V3's attention and experts, and of KDA beside them.

Kimi Linear, Ling 3.0 and DeepSeek-V3 name these parts alike. Their query heads are [own part, shared part], ours the other way
round; their router's bias is `e_score_correction_bias`; their heads are never tied to the embedding.

B batch, T time, D width, H heads, N own part of a head's key, R shared part, C rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor

from orrery.core.config import require
from orrery.nn.block import part_config
from orrery.nn.exchange import Rule, plain_blocks
from orrery.nn.exchange_rope import rope_settings, write_rope
from orrery.nn.rotary import part_of

Layers = Sequence[tuple[str, str]]  # of every layer its mixer, "linear" or "full", and its channel mixer, "dense" or "moe"


def first(hf: dict[str, Any], *names: str, default: Any = None) -> Any:
    """The value that a config has under one of several names."""
    return next((hf[name] for name in names if hf.get(name) is not None), default)


def pattern_of(layers: Layers) -> str:
    """Our pattern: layers "linear", "full", "linear-moe", "full-moe", in runs."""
    names = [mixer if channel == "dense" else f"{mixer}-{channel}" for mixer, channel in layers]
    return " + ".join(f"{name}*{len(list(run))}" for name, run in groupby(names))


def read_common(hf: dict[str, Any], layers: Layers) -> dict[str, Any]:
    """Settings of the frame, the latent attention and the channel mixers."""
    require(hf.get("hidden_act", "silu") == "silu", f"no counterpart for activation {hf.get('hidden_act')}")
    require(not hf.get("attention_bias"), "biases of the attention's maps have no counterpart")
    found: dict[str, Any] = {
        "width": hf["hidden_size"],
        "depth": len(layers),
        "vocab_size": hf["vocab_size"],
        "pattern": pattern_of(layers),
        "eps": hf["rms_norm_eps"],
        "tied": False,  # their classes have a head of its own whatever the config says
    }
    mixers, channels = ({layer[at] for layer in layers} for at in (0, 1))
    if "full" in mixers:
        heads = hf["num_attention_heads"]
        require((hf.get("num_key_value_heads") or heads) == heads, "in latent attention every head has its own keys (num_key_value_heads)")
        found |= {
            "latent-attention.heads": heads,
            "latent-attention.head_dim": hf["qk_nope_head_dim"],
            "latent-attention.value_dim": hf["v_head_dim"],
            "latent-attention.rank": hf["kv_lora_rank"],
            "latent-attention.shared": hf["qk_rope_head_dim"],
            "latent-attention.query_rank": hf.get("q_lora_rank"),
            "latent-attention.dropout": hf.get("attention_dropout") or 0.0,
        }
    if "dense" in channels:
        found["glu.hidden"] = hf["intermediate_size"]
    return found | (_read_experts(hf, layers) if "moe" in channels else {})


def _read_experts(hf: dict[str, Any], layers: Layers) -> dict[str, Any]:
    require(first(hf, "moe_router_activation_func", "scoring_func", "score_function", default="sigmoid") == "sigmoid", "scores are sigmoids here")
    require(hf.get("moe_layer_freq", 1) == 1, "experts in every so many layers (moe_layer_freq) have no counterpart")
    groups, kept = first(hf, "n_group", "num_expert_group", default=1), hf.get("topk_group") or 1
    name, found = "moe", dict[str, Any]()
    if groups > 1:
        name = "grouped-moe"
        found |= {f"{layer}.channel.name": name for layer in {f"{mixer}-moe" for mixer, channel in layers if channel == "moe"}}
        found |= {f"{name}.experts": _count(hf), f"{name}.group_count": groups, f"{name}.group_top": kept}
    return found | {
        f"{name}.experts": _count(hf),
        f"{name}.top_k": first(hf, "num_experts_per_tok", "num_experts_per_token"),
        f"{name}.hidden": hf["moe_intermediate_size"],
        f"{name}.shared": float(first(hf, "n_shared_experts", "num_shared_experts", default=0)),
        f"{name}.scale": float(hf.get("routed_scaling_factor") or 1.0),
        f"{name}.normalise": first(hf, "norm_topk_prob", "moe_renormalize", default=True),
    }


def _count(hf: dict[str, Any]) -> int:
    return int(first(hf, "num_experts", "num_local_experts", "n_routed_experts"))


def read_positions(hf: dict[str, Any]) -> dict[str, Any]:
    """Base and scaling of the angles. Raises ConfigError where pairs are not neighbours."""
    require(hf.get("rope_interleave", True), "pairs of rotated features are neighbours here (rope_interleave)")
    return rope_settings(hf, "latent-attention")


def write_positions(mixer: Any) -> dict[str, Any]:
    """The same, theirs."""
    rope = 1.0 if mixer.rope is True else mixer.rope
    require(part_of(rope) == 1.0, "the shared part of a head is rotated whole")
    return {"rope_theta": mixer.rope_theta, **write_rope(rope, mixer.rope_theta)}


Writer = Callable[[Any, int], dict[str, Any]]


def write_common(own: dict[str, Any], title: str, writers: dict[str, Writer]) -> dict[str, Any]:
    """Their config. `writers`: of the mixers, (typed config, width) -> what they say; all layers with a part are alike."""
    blocks = plain_blocks(own, title)
    channels: dict[str, Writer] = {"glu": _write_glu, "moe": _write_experts, "grouped-moe": _write_experts}
    seen: dict[str, dict[str, Any]] = {}
    for block in blocks:
        for kind, known in (("mixer", writers), ("channel", channels)):
            spec = block[kind]
            require(spec is not None and spec["name"] in known, f"{title} has no {kind} '{spec and spec['name']}'")
            part = known[spec["name"]](cast(Any, part_config(spec, kind)), own["width"])
            name = kind if spec["name"] != "glu" and kind == "channel" else spec["name"]
            require(seen.setdefault(name, part) == part, f"all layers with '{spec['name']}' are alike in {title}")
    config = {
        "hidden_size": own["width"],
        "num_hidden_layers": len(blocks),
        "vocab_size": own["vocab_size"],
        "mlp_layer_types": ["dense" if block["channel"]["name"] == "glu" else "sparse" for block in blocks],
        "rms_norm_eps": own["eps"],
        "hidden_act": "silu",
        "max_position_embeddings": 1 << 20,
        "attention_bias": False,
        "tie_word_embeddings": False,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),  # their own lie beyond a small vocabulary
    }
    for part in seen.values():
        config |= part
    return config


def write_latent(mixer: Any, width: int) -> dict[str, Any]:
    """Of latent attention, what all of them say; rope, gate and query_rank are the caller's to judge."""
    require(mixer.window is None and mixer.norm_eps == 1e-6, "latent attention there has no window and the eps 1e-6")
    heads = mixer.heads or width // mixer.head_dim
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "qk_nope_head_dim": mixer.head_dim,
        "qk_rope_head_dim": 2 * (mixer.head_dim // 4) if mixer.shared is None else mixer.shared,
        "v_head_dim": mixer.value_dim or mixer.head_dim,
        "kv_lora_rank": mixer.rank or 4 * mixer.head_dim,
        "attention_dropout": mixer.dropout,
    }


def _write_glu(channel: Any, width: int) -> dict[str, Any]:
    require(channel.activation == "silu" and not channel.bias, "their dense layers are SwiGLU without bias")
    return {"intermediate_size": channel.hidden}


def _write_experts(channel: Any, width: int) -> dict[str, Any]:
    routed = channel.score == "sigmoid" and channel.bias_rate is not None and channel.gated and channel.activation == "silu"
    require(routed and channel.added == 0, "their experts are SwiGLU, chosen by sigmoid scores with a bias")
    whole = channel.shared > 0 and channel.shared == int(channel.shared) and not channel.shared_gate
    require(whole, "their shared experts are a whole number, without a gate")
    return {
        "num_experts": channel.experts,
        "num_experts_per_tok": channel.top_k,
        "moe_intermediate_size": channel.hidden,
        "n_shared_experts": int(channel.shared),
        "n_group": getattr(channel, "group_count", 1),
        "topk_group": getattr(channel, "group_top", 1),
        "routed_scaling_factor": channel.scale,
        "norm_topk_prob": bool(channel.normalise),
    }


LAYER = "model.layers.{i}"
_MIXER, _OURS, _MLP, _CHANNEL = f"{LAYER}.self_attn", "blocks.{i}.mixer", f"{LAYER}.mlp", "blocks.{i}.channel"


def latent_rules(gate: bool) -> tuple[Rule, ...]:
    """Of latent attention; :func:`prepared` has made one name of q_proj and q_a_proj."""
    inputs = ("q_proj", "kv_a_proj_with_mqa", "g_proj") if gate else ("q_proj", "kv_a_proj_with_mqa")
    rows = ("first", "compressed", "heads") if gate else ("first", "compressed")
    names = {"query_norm": "q_a_layernorm", "query": "q_b_proj", "norm": "kv_a_layernorm", "expand": "kv_b_proj", "out": "o_proj"}
    own = "latent-attention"
    return (
        Rule(f"{_OURS}.inputs.linear.weight", tuple(f"{_MIXER}.{name}.weight" for name in inputs), mixer=own, rows=rows),
        *(Rule(f"{_OURS}.{ours}.weight", (f"{_MIXER}.{theirs}.weight",), mixer=own) for ours, theirs in names.items()),
    )


def delta_rules(decay: str, gate: str) -> tuple[Rule, ...]:
    """Of KDA, whose maps to decay and gate, or the first of two each, have these names."""
    inputs = tuple(f"{_MIXER}.{name}.weight" for name in ("q_proj", "k_proj", "v_proj", decay, gate, "b_proj"))
    names = {"decay": "forget_gate.f_b_proj.weight", "gate": "g_b_proj.weight", "norm": "o_norm.weight", "out": "o_proj.weight"}
    return (
        Rule(f"{_OURS}.inputs.weight", inputs, mixer="kda", rows=("inner", "inner", "inner", "between", "between", "heads")),
        Rule(f"{_OURS}.conv.weight", (f"{_MIXER}.conv1d.weight",), ("squeeze",), mixer="kda"),
        Rule(f"{_OURS}.decay_log", (f"{_MIXER}.forget_gate.A_log",), mixer="kda"),
        Rule(f"{_OURS}.decay_bias", (f"{_MIXER}.forget_gate.dt_bias",), mixer="kda"),
        *(Rule(f"{_OURS}.{ours}.weight", (f"{_MIXER}.{theirs}",), mixer="kda") for ours, theirs in names.items()),
    )


COMMON_RULES = (
    Rule("embed.weight", ("model.embed_tokens.weight",)),
    Rule("blocks.{i}.mixer_norm.weight", (f"{LAYER}.input_layernorm.weight",)),
    Rule("blocks.{i}.channel_norm.weight", (f"{LAYER}.post_attention_layernorm.weight",)),
    Rule(f"{_CHANNEL}.wide.weight", (f"{_MLP}.gate_proj.weight", f"{_MLP}.up_proj.weight")),
    Rule(f"{_CHANNEL}.out.weight", (f"{_MLP}.down_proj.weight",)),
    Rule(f"{_CHANNEL}.router.weight", (f"{_MLP}.gate.weight",)),
    Rule(f"{_CHANNEL}.selection_bias", (f"{_MLP}.gate.e_score_correction_bias",)),
    Rule(f"{_CHANNEL}.wide", (f"{_MLP}.experts.gate_up_proj",)),
    Rule(f"{_CHANNEL}.out", (f"{_MLP}.experts.down_proj",)),
    Rule(f"{_CHANNEL}.shared.wide.weight", (f"{_MLP}.shared_experts.gate_proj.weight", f"{_MLP}.shared_experts.up_proj.weight")),
    Rule(f"{_CHANNEL}.shared.out.weight", (f"{_MLP}.shared_experts.down_proj.weight",)),
    Rule("norm.weight", ("model.norm.weight",)),
    Rule("head.weight", ("lm_head.weight",)),
)
_LATENT = ".kv_a_proj_with_mqa.weight"  # which only these layers have


def renamed(tensors: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Tensors whose names are rewritten by regular expressions, and the three convolutions of a published file made one."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for old, new in names.items():
            name = re.sub(old, new, name)
        found[name] = tensor
    for name in [name for name in found if name.endswith(".q_conv1d.weight")]:
        home = name.removesuffix("q_conv1d.weight")
        found[f"{home}conv1d.weight"] = torch.cat([found.pop(f"{home}{part}_conv1d.weight") for part in "qkv"])
    return found


def prepared(hf: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Layers that predict further tokens left out; of latent attention one name for the first map of the queries, and shared parts
    of a head before its own."""
    layer = re.compile(r"model\.layers\.(\d+)\.")
    found = {}
    for name, tensor in tensors.items():
        number = layer.match(name)
        if number is None or int(number[1]) < hf["num_hidden_layers"]:
            found[name] = tensor.flatten() if name.endswith(".A_log") else tensor
    for home in [name.removesuffix(_LATENT) for name in found if name.endswith(_LATENT)]:
        last = f"{home}.q_b_proj.weight" if f"{home}.q_b_proj.weight" in found else f"{home}.q_proj.weight"
        found[last] = _turned(found[last], hf, hf["qk_nope_head_dim"])
        if f"{home}.q_a_proj.weight" in found:
            found[f"{home}.q_proj.weight"] = found.pop(f"{home}.q_a_proj.weight")
    return found


def finished(hf: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back; a tied model's head is a copy of its embedding."""
    found = dict(tensors)
    for home in [name.removesuffix(_LATENT) for name in tensors if name.endswith(_LATENT)]:
        low = f"{home}.q_b_proj.weight" in found
        last = f"{home}.{'q_b_proj' if low else 'q_proj'}.weight"
        found[last] = _turned(found[last], hf, hf["qk_rope_head_dim"])
        if low:
            found[f"{home}.q_a_proj.weight"] = found.pop(f"{home}.q_proj.weight")
    return {"lm_head.weight": found["model.embed_tokens.weight"].clone(), **found}


def _turned(weight: Tensor, hf: dict[str, Any], front: int) -> Tensor:
    """Rows of queries (H*(R+N),D), the first `front` of every head put behind the others."""
    heads = weight.unflatten(0, (hf["num_attention_heads"], -1))
    return torch.cat([heads[:, front:], heads[:, :front]], 1).flatten(0, 1)
