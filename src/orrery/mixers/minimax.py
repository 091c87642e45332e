"""MiniMax-01: seven layers of lightning attention for each of softmax attention, a mixture of experts behind all of them.

Paper: MiniMax-01: Scaling Foundation Models with Lightning Attention (arXiv 2501.08313).

Equation: x = norm(x); x = a x + b mixer(x);  x = norm(x); x = c x + d experts(x);  the mixer is :mod:`orrery.mixers.lightning`
    with v = silu(W_v x), a sigmoid gate and a norm with weights, without positions, or :mod:`orrery.mixers.attention`.

Shapes: B batch, T time, D width, H heads of both mixers.

Cost: that of the mixers; the cache grows in one layer of eight.

Differs from the paper: a, b, c, d are 1 unless a preset or setting says otherwise (DeepNorm's grow with the depth).

Oracle: transformers' MiniMax with the same weights; the mixers have oracles of their own.
"""

from __future__ import annotations

from typing import Any

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.exchange import ExchangeMap, Rule, linear_rules
from orrery.nn.exchange_rope import rope_settings, turning_part, write_rope

_KINDS = {"full_attention": ("full", "attention"), "linear_attention": ("linear", "lightning")}


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    require(hf.get("hidden_act", "silu") == "silu", f"no counterpart for activation {hf.get('hidden_act')}")
    require(not hf.get("router_jitter_noise"), "router_jitter_noise has no counterpart")
    depth = hf["num_hidden_layers"]
    default = ["full_attention" if i % 2 == 0 else "linear_attention" for i in range(depth)]
    kinds = hf.get("layer_types") or default
    after = [float(hf.get(f"mlp_{letter}_factor", 1)) for letter in ("alpha", "beta")]
    found: dict[str, Any] = {
        "width": hf["hidden_size"],
        "depth": depth,
        "vocab_size": hf["vocab_size"],
        "pattern": " + ".join(_KINDS[kind][0] for kind in kinds),
        "mixer.heads": hf["num_attention_heads"],
        "mixer.head_dim": hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        "channel.experts": hf.get("num_local_experts") or hf["num_experts"],
        "channel.top_k": hf["num_experts_per_tok"],
        "channel.hidden": hf["intermediate_size"],
        "channel.balance": hf.get("router_aux_loss_coef", 0.001),
        "eps": hf["rms_norm_eps"],
        "tied": hf.get("tie_word_embeddings", False),
    }
    for kind in set(kinds):
        prefix = "full_attn" if kind == "full_attention" else "linear_attn"
        before = [float(hf.get(f"{prefix}_{letter}_factor", 1)) for letter in ("alpha", "beta")]
        found[f"{_KINDS[kind][0]}.scales"] = (*before, *after)
    if "full_attention" in kinds:
        found["attention.kv_heads"] = hf.get("num_key_value_heads") or hf["num_attention_heads"]
        found |= rope_settings(hf, "attention", 1e6)
        found["attention.window"] = hf.get("sliding_window")
        found["attention.dropout"] = hf.get("attention_dropout", 0.0)
    return found


def _write(own: dict[str, Any]) -> dict[str, Any]:
    names = {mixer: (kind, settings) for kind, (_, mixer) in _KINDS.items() for settings in [_settings(own, mixer)]}
    kinds = []
    for index in own["layout"]:
        block = own["blocks"][index]
        require(block["mixer"]["name"] in names, f"MiniMax has no layer of {block['mixer']['name']}")
        require(block["placement"] == "normed" and not block["canon"], "MiniMax has the placement 'normed', without Canon layers")
        kinds.append(names[block["mixer"]["name"]][0])
    attention, lightning = names["attention"][1], names["lightning"][1]
    first = own["blocks"][own["layout"][0]]
    channel, width = first["channel"], own["width"]
    require(all(own["blocks"][i]["channel"] == channel for i in own["layout"]), "MiniMax has the same experts in all layers")
    _check_parts(attention, lightning, channel)
    heads = first["mixer"].get("heads") or width // first["mixer"]["head_dim"]
    theta = attention.get("rope_theta", 10000.0)
    return {
        "hidden_size": width,
        "num_hidden_layers": len(kinds),
        "layer_types": kinds,
        "vocab_size": own["vocab_size"],
        "num_attention_heads": heads,
        "num_key_value_heads": attention.get("kv_heads") or heads,
        "head_dim": first["mixer"]["head_dim"],
        "intermediate_size": channel["hidden"],
        "num_local_experts": channel.get("experts", 8),
        "num_experts_per_tok": channel.get("top_k", 2),
        "router_aux_loss_coef": channel.get("balance", 0.01),
        "rms_norm_eps": own["eps"],
        "sliding_window": attention.get("window"),
        "attention_dropout": attention.get("dropout", 0.0),
        "rope_theta": theta,
        "max_position_embeddings": 1 << 20,
        **write_rope(attention.get("rope", 1.0), theta),
        "block_size": 64,
        "tie_word_embeddings": own["tied"],
        **_factors("full_attn", _scales(own, "attention")[:2]),
        **_factors("linear_attn", _scales(own, "lightning")[:2]),
        **_factors("mlp", first["scales"][2:]),
    }


def _layers(own: dict[str, Any], mixer: str) -> list[dict[str, Any]]:
    return [own["blocks"][i] for i in sorted(set(own["layout"])) if own["blocks"][i]["mixer"]["name"] == mixer]


def _settings(own: dict[str, Any], mixer: str) -> dict[str, Any]:
    """The settings of the layers with this mixer, which must be the same; {} when there is none."""
    found = [block["mixer"] for block in _layers(own, mixer)]
    require(all(each == found[0] for each in found), f"MiniMax has one kind of {mixer}")
    return found[0] if found else {}


def _scales(own: dict[str, Any], mixer: str) -> tuple[float, ...]:
    blocks = _layers(own, mixer)
    return tuple(blocks[0]["scales"]) if blocks else (1.0, 1.0, 1.0, 1.0)


def _factors(prefix: str, values: Any) -> dict[str, float]:
    return {f"{prefix}_{letter}_factor": value for letter, value in zip(("alpha", "beta"), values, strict=True)}


def _check_parts(attention: dict[str, Any], lightning: dict[str, Any], channel: dict[str, Any] | None) -> None:
    odd = turning_part(attention) != 1.0 or any(attention.get(name) for name in ("qk_norm", "bias", "gate", "norm_whole"))
    require(not odd, "MiniMax in transformers has no partial rotation, query-key norm, bias or output gate")
    same = all(lightning.get(key) == value for key, value in _LIGHTNING.items() if key != "name") if lightning else True
    require(same and lightning.get("eps", 1e-6) == 1e-6, f"MiniMax has lightning attention with {_LIGHTNING} and eps 1e-6")
    require(channel is not None and channel["name"] == "moe", "MiniMax has experts in all layers")
    channel = channel or {}
    plain = channel.get("score", "softmax") == "softmax" and channel.get("scale", 1.0) == 1.0 and channel.get("bias_rate") is None
    require(plain and not channel.get("shared") and channel.get("normalise", True) is True, "MiniMax has normalised softmax scores alone")
    require(channel.get("activation", "silu") == "silu" and channel.get("gated", True), "MiniMax has SwiGLU experts")


_LIGHTNING = {"name": "lightning", "lrpe": "none", "activate_values": True, "output_gate": "sigmoid", "gain": True}
_LAYER = "model.layers.{i}"
_ATTENTION = f"{_LAYER}.self_attn"
EXCHANGE = ExchangeMap(
    model_type="minimax",
    cls="MiniMaxForCausalLM",
    read=_read,
    write=_write,
    rules=(
        Rule("embed.weight", ("model.embed_tokens.weight",)),
        Rule("blocks.{i}.mixer_norm.weight", (f"{_LAYER}.input_layernorm.weight",)),
        *linear_rules(
            "blocks.{i}.mixer.inputs.linear", tuple(f"{_ATTENTION}.{p}_proj" for p in "qkv"), "rotary", "rotary", "",
            mixer="attention",
        ),
        *linear_rules("blocks.{i}.mixer.out", f"{_ATTENTION}.o_proj", mixer="attention"),
        Rule(
            "blocks.{i}.mixer.inputs.linear.weight", (f"{_ATTENTION}.qkv_proj.weight", f"{_ATTENTION}.output_gate.weight"),
            ("heads", ""), "lightning", ("three_inner", "inner"),
        ),
        Rule("blocks.{i}.mixer.norm", (f"{_ATTENTION}.norm.weight",), mixer="lightning"),
        Rule("blocks.{i}.mixer.out.weight", (f"{_ATTENTION}.out_proj.weight",), mixer="lightning"),
        Rule("blocks.{i}.channel_norm.weight", (f"{_LAYER}.post_attention_layernorm.weight",)),
        Rule("blocks.{i}.channel.router.weight", (f"{_LAYER}.mlp.gate.weight",)),
        Rule("blocks.{i}.channel.wide", (f"{_LAYER}.mlp.experts.gate_up_proj",)),
        Rule("blocks.{i}.channel.out", (f"{_LAYER}.mlp.experts.down_proj",)),
        Rule("norm.weight", ("model.norm.weight",)),
        Rule("head.weight", ("lm_head.weight",)),
    ),
    ignored=("slope_rate", "query_decay", "key_decay", "diagonal_decay"),
    prefixes=("model.",),
)  # fmt: skip

_DEEPNORM = (3.5565588200778455, 1.0, 3.5565588200778455, 1.0)
ARCHITECTURE = Architecture(
    pattern="linear*7 + full",
    blocks={
        "linear": BlockConfig(mixer=_LIGHTNING, channel={"name": "moe"}, placement="normed", eps=1e-5),
        "full": BlockConfig(mixer={"name": "attention"}, channel={"name": "moe"}, placement="normed", eps=1e-5),
    },
    frame={"tied": False, "eps": 1e-5},
    head="mixer.head_dim",
    fine_step=1,
    fine_ratio=4 / 3,
    presets={
        "minimax-text-01": {
            "width": 6144, "depth": 80, "vocab_size": 200064, "mixer.heads": 64, "mixer.head_dim": 128, "attention.kv_heads": 8,
            "attention.rope": 0.5, "attention.rope_theta": 1e7, "channel.experts": 32, "channel.hidden": 9216,
            "scales": _DEEPNORM,
        },
    },
    exchange=(EXCHANGE,),
)  # fmt: skip

register(
    "minimax",
    architecture="ARCHITECTURE",
    summary="MiniMax-01: lightning attention, softmax attention in every eighth layer, a mixture of experts",
    paper="2501.08313",
    year=2025,
    tags=("causal", "parallel", "positions", "cache"),
    presets=("minimax-text-01",),
    exchange=("minimax",),
)
