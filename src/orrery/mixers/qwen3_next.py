"""Qwen3-Next and Qwen3.5: three layers of Gated DeltaNet, then one of gated attention; dense or with a mixture of experts.

Paper: Gated Delta Networks (arXiv 2412.06464) and Gated Attention for LLMs (2505.06708); the released Qwen3-Next-80B-A3B and
    Qwen3.5 have no paper of their own.

Equation:  x += mixer(norm(x));  x += channel(norm(x));  the mixer of every fourth layer is attention with query-key norm,
    a quarter of each head rotated, and sigmoid(W_g x) on what comes out; elsewhere Gated DeltaNet whose heads of v
    outnumber those of q and k

Shapes: B batch, T time, D width; the parts have their own.

Cost: of four layers three are linear in T with a constant state, one is attention.

Differs from the paper: norms hold 1 + w where transformers' hold w (the exchange converts; weight decay then pulls towards
    0 instead of 1); the layers for predicting several tokens are left out, as in transformers.

Oracle: transformers' Qwen3-Next and Qwen3.5 (equal logits and cached generation through the exchange map); tests/oracles/gated_deltanet.py
    and tests/oracles/attention.py for the mixers.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig, part_config
from orrery.nn.exchange import ExchangeMap, Rule, linear_rules, plain_blocks
from orrery.nn.exchange_rope import rope_settings, write_rope

_LINEAR = {"name": "gated-deltanet", "norm_eps": 1e-6}
_FULL = {"name": "attention", "qk_norm": True, "gate": True, "rope": 0.25}
_MOE = {"name": "moe", "shared": 1.0, "shared_gate": True}


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    require(hf.get("hidden_act", "silu") == "silu", f"no counterpart for activation {hf.get('hidden_act')}")
    require(hf["rms_norm_eps"] == 1e-6, "the query-key norm here has the eps 1e-6")
    depth, kinds = hf["num_hidden_layers"], []
    dense = set(hf.get("mlp_only_layers") or ())
    for layer, kind in enumerate(hf["layer_types"][:depth]):
        sparse = layer not in dense and hf["num_experts"] > 0 and (layer + 1) % hf.get("decoder_sparse_step", 1) == 0
        kinds.append(("linear" if kind == "linear_attention" else "full") + ("-moe" if sparse else ""))
    found: dict[str, Any] = {
        "width": hf["hidden_size"],
        "depth": depth,
        "vocab_size": hf["vocab_size"],
        "pattern": " + ".join(kinds),
        "tied": hf.get("tie_word_embeddings", False),
    }
    if any(kind.startswith("linear") for kind in kinds):
        found |= {
            "gated-deltanet.heads": hf["linear_num_key_heads"],
            "gated-deltanet.value_heads": hf["linear_num_value_heads"],
            "gated-deltanet.head_dim": hf["linear_key_head_dim"],
            "gated-deltanet.expand_v": hf["linear_value_head_dim"] / hf["linear_key_head_dim"],
            "gated-deltanet.conv": hf["linear_conv_kernel_dim"],
        }
    if any(kind.startswith("full") for kind in kinds):
        found |= {
            "attention.heads": hf["num_attention_heads"],
            "attention.kv_heads": hf["num_key_value_heads"],
            "attention.head_dim": hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
            **rope_settings(hf, "attention", part=0.25),
            "attention.bias": hf.get("attention_bias", False),
            "attention.dropout": hf.get("attention_dropout", 0.0),
        }
    if any(not kind.endswith("-moe") for kind in kinds):
        found["glu.hidden"] = hf["intermediate_size"]
    if any(kind.endswith("-moe") for kind in kinds):
        found |= {
            "moe.experts": hf["num_experts"],
            "moe.top_k": hf["num_experts_per_tok"],
            "moe.hidden": hf["moe_intermediate_size"],
            "moe.shared": hf["shared_expert_intermediate_size"] / hf["moe_intermediate_size"],
            "moe.normalise": hf.get("norm_topk_prob", True),
            "moe.balance": hf.get("router_aux_loss_coef", 0.001),
        }
    return found


def _write(own: dict[str, Any]) -> dict[str, Any]:
    blocks = plain_blocks(own, "Qwen3-Next", eps=1e-6)
    config: dict[str, Any] = {
        "hidden_size": own["width"],
        "num_hidden_layers": len(blocks),
        "vocab_size": own["vocab_size"],
        "layer_types": ["full_attention" if b["mixer"]["name"] == "attention" else "linear_attention" for b in blocks],
        "mlp_only_layers": [layer for layer, b in enumerate(blocks) if b["channel"]["name"] == "glu"],
        "num_experts": 0,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "max_position_embeddings": 1 << 20,
        "tie_word_embeddings": own["tied"],
    }
    writers = {"attention": _write_attention, "gated-deltanet": _write_linear, "glu": _write_glu, "moe": _write_moe}
    seen: dict[str, dict[str, Any]] = {}
    for block in blocks:
        for kind in ("mixer", "channel"):
            spec = block[kind]
            require(spec["name"] in writers, f"Qwen3-Next has no {kind} '{spec['name']}'")
            part = writers[spec["name"]](cast(Any, part_config(spec, kind)), own["width"])
            require(seen.setdefault(spec["name"], part) == part, f"all layers with '{spec['name']}' are alike in Qwen3-Next")
    for part in seen.values():
        config |= part
    return config


def _write_attention(mixer: Any, width: int) -> dict[str, Any]:
    alike = mixer.qk_norm is True and not mixer.norm_whole and mixer.gate is True and mixer.window is None
    require(alike, "Qwen3-Next's attention has a gate, a query-key norm per head, and no window")
    heads = mixer.heads or width // mixer.head_dim
    rope = write_rope(mixer.rope, mixer.rope_theta, partial=True)
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": mixer.kv_heads or heads,
        "head_dim": mixer.head_dim,
        **rope,
        "partial_rotary_factor": rope["rope_parameters"]["partial_rotary_factor"],
        "attention_bias": mixer.bias,
        "attention_dropout": mixer.dropout,
    }


def _write_linear(mixer: Any, width: int) -> dict[str, Any]:
    alike = mixer.decay and mixer.gate and not mixer.negative and mixer.norm_eps == 1e-6
    require(alike, "Qwen3-Next's linear layers have decay, gate, eps 1e-6 and beta below 1")
    heads = mixer.heads or max(1, round(mixer.key_ratio * width / mixer.head_dim))
    return {
        "linear_num_key_heads": heads,
        "linear_num_value_heads": mixer.value_heads or heads,
        "linear_key_head_dim": mixer.head_dim,
        "linear_value_head_dim": int(mixer.expand_v * mixer.head_dim),
        "linear_conv_kernel_dim": mixer.conv,
    }


def _write_glu(channel: Any, width: int) -> dict[str, Any]:
    require(channel.activation == "silu" and not channel.bias, "Qwen3-Next has SwiGLU without bias")
    return {"intermediate_size": channel.hidden}


def _write_moe(channel: Any, width: int) -> dict[str, Any]:
    routed = channel.score == "softmax" and isinstance(channel.normalise, bool) and channel.scale == 1.0
    require(routed and channel.bias_rate is None and channel.gated, "Qwen3-Next has plain softmax routing to gated experts")
    require(channel.shared > 0 and channel.shared_gate, "Qwen3-Next has gated shared experts")
    return {
        "num_experts": channel.experts,
        "num_experts_per_tok": channel.top_k,
        "moe_intermediate_size": channel.hidden,
        "shared_expert_intermediate_size": max(1, round(channel.shared * channel.hidden)),
        "norm_topk_prob": channel.normalise,
        "router_aux_loss_coef": channel.balance,
    }


_CENTRED = ("layernorm.weight", "self_attn.q_norm.weight", "self_attn.k_norm.weight", "model.norm.weight")


def _grouped(hf: dict[str, Any]) -> dict[str, tuple[int, dict[str, int]]]:
    """Ending of a tensor that holds several maps head by head -> heads, and rows of a head for each of the maps."""
    keys, ratio = hf["linear_num_key_heads"], hf["linear_num_value_heads"] // hf["linear_num_key_heads"]
    value = ratio * hf["linear_value_head_dim"]
    size = hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]
    wide = {"q": hf["linear_key_head_dim"], "k": hf["linear_key_head_dim"], "v": value, "z": value}
    gated = {"query_proj": size, "gate_proj": size}
    return {
        "linear_attn.in_proj_qkvz.weight": (keys, wide),
        "linear_attn.in_proj_ba.weight": (keys, {"b": ratio, "a": ratio}),
        "self_attn.q_proj.weight": (hf["num_attention_heads"], gated),
        "self_attn.q_proj.bias": (hf["num_attention_heads"], gated),
    }


def _prepare(hf: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Maps that they keep together head by head, apart; norm weights around 1."""
    found, grouped = {}, _grouped(hf)
    for name, tensor in tensors.items():
        ending = next((end for end in grouped if name.endswith(end)), None)
        if ending is None:
            found[name] = tensor + 1 if name.endswith(_CENTRED) else tensor
            continue
        heads, rows = grouped[ending]
        home, kind = name.rsplit(".", 2)[0], name.rsplit(".", 1)[1]
        parts = tensor.unflatten(0, (heads, -1)).split(list(rows.values()), 1)
        found.update({f"{home}.{part}.{kind}": each.flatten(0, 1) for part, each in zip(rows, parts, strict=True)})
    return found


def _finish(hf: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back."""
    full = {key: hf.get(key, 1) for key in ("linear_num_key_heads", "linear_num_value_heads", "linear_value_head_dim")}
    full |= {"linear_key_head_dim": hf.get("linear_key_head_dim", 1), "num_attention_heads": hf.get("num_attention_heads", 1)}
    found = {name: tensor - 1 if name.endswith(_CENTRED) else tensor for name, tensor in tensors.items()}
    for ending, (heads, rows) in _grouped({**hf, **full}).items():
        inner, kind = ending.split(".")[0], ending.rsplit(".", 1)[1]
        first = f".{inner}.{next(iter(rows))}.{kind}"
        for home in [name.removesuffix(first) for name in found if name.endswith(first)]:
            parts = [found.pop(f"{home}.{inner}.{part}.{kind}").unflatten(0, (heads, -1)) for part in rows]
            found[f"{home}.{ending}"] = torch.cat(parts, 1).flatten(0, 1)
    return found


_LAYER = "model.layers.{i}"
_DELTA, _ATTENTION, _MLP = f"{_LAYER}.linear_attn", f"{_LAYER}.self_attn", f"{_LAYER}.mlp"


def _rules(parts: tuple[str, ...], rows: tuple[str, ...]) -> tuple[Rule, ...]:
    """Rules for the weights; `parts` are their maps into a linear layer, `rows` the sizes of each."""
    return (
        Rule("embed.weight", ("model.embed_tokens.weight",)),
        Rule("blocks.{i}.mixer_norm.weight", (f"{_LAYER}.input_layernorm.weight",)),
        Rule("blocks.{i}.mixer.inputs.weight", tuple(f"{_DELTA}.{part}.weight" for part in parts), mixer="gated-deltanet", rows=rows),
        Rule("blocks.{i}.mixer.conv.weight", (f"{_DELTA}.conv1d.weight",), ("squeeze",), mixer="gated-deltanet"),
        Rule("blocks.{i}.mixer.decay_log", (f"{_DELTA}.A_log",)),
        Rule("blocks.{i}.mixer.decay_bias", (f"{_DELTA}.dt_bias",)),
        Rule("blocks.{i}.mixer.norm.weight", (f"{_DELTA}.norm.weight",)),
        Rule("blocks.{i}.mixer.out.weight", (f"{_DELTA}.out_proj.weight",), mixer="gated-deltanet"),
        *linear_rules(
            "blocks.{i}.mixer.inputs.linear",
            tuple(f"{_ATTENTION}.{part}_proj" for part in ("query", "k", "v", "gate")),
            "rotary", "rotary", "", "",
        ),
        Rule("blocks.{i}.mixer.q_norm.weight", (f"{_ATTENTION}.q_norm.weight",), ("rotary",)),
        Rule("blocks.{i}.mixer.k_norm.weight", (f"{_ATTENTION}.k_norm.weight",), ("rotary",)),
        *linear_rules("blocks.{i}.mixer.out", f"{_ATTENTION}.o_proj", mixer="attention"),
        Rule("blocks.{i}.channel_norm.weight", (f"{_LAYER}.post_attention_layernorm.weight",)),
        Rule("blocks.{i}.channel.wide.weight", (f"{_MLP}.gate_proj.weight", f"{_MLP}.up_proj.weight")),
        Rule("blocks.{i}.channel.out.weight", (f"{_MLP}.down_proj.weight",)),
        Rule("blocks.{i}.channel.router.weight", (f"{_MLP}.gate.weight",)),
        Rule("blocks.{i}.channel.wide", (f"{_MLP}.experts.gate_up_proj",)),
        Rule("blocks.{i}.channel.out", (f"{_MLP}.experts.down_proj",)),
        Rule("blocks.{i}.channel.shared.wide.weight", (f"{_MLP}.shared_expert.gate_proj.weight", f"{_MLP}.shared_expert.up_proj.weight")),
        Rule("blocks.{i}.channel.shared.out.weight", (f"{_MLP}.shared_expert.down_proj.weight",)),
        Rule("blocks.{i}.channel.shared_gate.weight", (f"{_MLP}.shared_expert_gate.weight",)),
        Rule("norm.weight", ("model.norm.weight",)),
        Rule("head.weight", ("lm_head.weight",)),
    )  # fmt: skip


QWEN3_NEXT = ExchangeMap(
    model_type="qwen3_next",
    cls="Qwen3NextForCausalLM",
    read=_read,
    write=_write,
    rules=_rules(tuple("qkvzba"), ("key_rows", "key_rows", "value_rows", "value_rows", "heads", "heads")),
    prefixes=("model.",),
    prepare=_prepare,
    finish=_finish,
)


def _qwen3_5(model_type: str, cls: str, channel: str) -> ExchangeMap:
    """The text models of Qwen3.5: the same layers, their maps apart; one kind of channel mixer in all of them."""

    def read(hf: dict[str, Any]) -> dict[str, Any]:
        return _read(hf if channel == "moe" else {**hf, "num_experts": 0})

    def write(own: dict[str, Any]) -> dict[str, Any]:
        alike = all(own["blocks"][kind]["channel"]["name"] == channel for kind in own["layout"])
        require(alike, f"all layers of {model_type} have '{channel}' as their channel mixer")
        config = _write(own)
        require(config.pop("norm_topk_prob", True), "Qwen3.5 normalises the gates of its experts")
        return {key: value for key, value in config.items() if key != "mlp_only_layers" and (channel == "moe" or key != "num_experts")}

    return ExchangeMap(
        model_type=model_type,
        cls=cls,
        read=read,
        write=write,
        rules=_rules(("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"), ("convolved", "value_rows", "heads", "heads")),
        prefixes=("model.",),
        prepare=_prepare,
        finish=_finish,
    )


QWEN3_5 = (
    _qwen3_5("qwen3_5_text", "Qwen3_5ForCausalLM", "glu"),
    _qwen3_5("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", "moe"),
)

_BLOCKS = {
    "linear": BlockConfig(mixer=_LINEAR, channel={"name": "glu"}),
    "full": BlockConfig(mixer=_FULL, channel={"name": "glu"}),
    "linear-moe": BlockConfig(mixer=_LINEAR, channel=_MOE),
    "full-moe": BlockConfig(mixer=_FULL, channel=_MOE),
}
ARCHITECTURE = Architecture(
    pattern="linear*3 + full",
    blocks=_BLOCKS,
    frame={"tied": True},
    head="mixer.head_dim",
    presets={
        "qwen3-next-80b-a3b": {
            "width": 2048, "depth": 48, "vocab_size": 151936, "pattern": "linear-moe*3 + full-moe", "tied": False,
            "gated-deltanet.heads": 16, "gated-deltanet.value_heads": 32, "gated-deltanet.head_dim": 128, "gated-deltanet.expand_v": 1.0,
            "attention.heads": 16, "attention.kv_heads": 2, "attention.head_dim": 256, "attention.rope_theta": 1e7,
            "moe.experts": 512, "moe.top_k": 10, "moe.hidden": 512,
        },
    },
    exchange=(QWEN3_NEXT,),
)  # fmt: skip

_HEADS = {"gated-deltanet.head_dim": 128, "gated-deltanet.expand_v": 1.0, "attention.head_dim": 256, "attention.rope_theta": 1e7}
QWEN3_5_ARCHITECTURE = Architecture(
    pattern="linear*3 + full",
    blocks=_BLOCKS,
    frame={"tied": True},
    head="mixer.head_dim",
    presets={
        "qwen3.5-9b": {
            "width": 4096, "depth": 32, "vocab_size": 248320, "tied": False, "glu.hidden": 12288, **_HEADS,
            "gated-deltanet.heads": 16, "gated-deltanet.value_heads": 32, "attention.heads": 16, "attention.kv_heads": 4,
        },
        "qwen3.5-35b-a3b": {
            "width": 2048, "depth": 40, "vocab_size": 248320, "tied": False, "pattern": "linear-moe*3 + full-moe", **_HEADS,
            "gated-deltanet.heads": 16, "gated-deltanet.value_heads": 32, "attention.heads": 16, "attention.kv_heads": 2,
            "moe.experts": 256, "moe.top_k": 8, "moe.hidden": 512,
        },
    },
    exchange=QWEN3_5,
)  # fmt: skip

register(
    "qwen3-next",
    architecture="ARCHITECTURE",
    summary="Qwen3-Next: three layers of Gated DeltaNet to one of gated attention",
    paper="2505.06708",
    year=2025,
    tags=("causal", "parallel", "cache"),
    presets=("qwen3-next-80b-a3b",),
    exchange=("qwen3_next",),
)
register(
    "qwen3.5",
    architecture="QWEN3_5_ARCHITECTURE",
    summary="Qwen3.5's text models: Qwen3-Next's layers, dense or all of them with experts",
    paper="2505.06708",
    year=2026,
    tags=("causal", "parallel", "cache"),
    presets=("qwen3.5-9b", "qwen3.5-35b-a3b"),
    exchange=("qwen3_5_text", "qwen3_5_moe_text"),
)
