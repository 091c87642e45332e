"""Zamba: Mamba with one attention block that a few layers share, which reads the embedding beside the stream.

Paper: Zamba: A Compact 7B SSM Hybrid Model (arXiv 2405.16712).

Equation, in a layer with shared attention, e the embedding and h the stream:
    s = W_o attend(norm_1([h; e]));  g = W_l F(norm_2(s));  h += mamba(norm(h + g));  elsewhere  h += mamba(norm(h))
    F and the scores as in `zamba2`, whose mixer this is, without maps of low rank; W_l is every use's own. Mamba's channels are
    divided into heads, each with B, C and step sizes from its own channels.

Shapes: B batch, T time, D width.

Cost: as Mamba; a layer with shared attention as in `zamba2`.

Differs from the paper: along the size ladder every third layer has shared attention (in the paper about every sixth);
    initialisation as `mamba` and `transformer` here.

Oracle: transformers' Zamba (equal logits through the exchange map); tests/oracles/zamba2.py and mamba.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.exchange import ExchangeMap, Rule, attention_rules, linear_rules, plain_blocks
from orrery.nn.zamba import ACTIVATIONS, COMMON, kinds_of, own_places, pattern_of, shared_blocks, their_places

_HOME = "shared_transf"
_BY_HEADS = ("x_proj_weight", "dt_proj_weight", "dt_proj_bias", "A_log", "D")


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    require(hf.get("hidden_act", "gelu") in ACTIVATIONS, f"no counterpart for activation {hf.get('hidden_act')}")
    require(hf.get("hidden_mamba_act", "silu") == "silu", f"no counterpart for Mamba's activation {hf.get('hidden_mamba_act')}")
    width, kinds, rank = hf["hidden_size"], _kinds(hf), hf.get("mamba_dt_rank", "auto")
    heads = hf["num_attention_heads"]
    sizes = hf.get("attention_hidden_size") or 2 * width, (hf.get("attention_head_dim") or 2 * width // heads) * heads
    require(sizes == (2 * width, 2 * width), "shared attention reads, and its heads together have, twice the width")
    guide = {
        "zamba2.heads": heads,
        "zamba2.kv_heads": hf.get("num_key_value_heads") or heads,
        "zamba2.hidden": hf["intermediate_size"],
        "zamba2.activation": ACTIVATIONS[hf.get("hidden_act", "gelu")],
        "zamba2.dropout": hf.get("attention_dropout", 0.0),
        "zamba2.eps": hf["rms_norm_eps"],
    }
    return {
        "width": width,
        "depth": len(kinds),
        "vocab_size": hf["vocab_size"],
        "pattern": pattern_of(kinds, 1),
        "mamba.hidden": hf["mamba_expand"] * width,
        "mamba.heads": hf["n_mamba_heads"],
        "mamba.state": hf["mamba_d_state"],
        "mamba.rank": math.ceil(width / 16) if rank == "auto" else rank,
        "mamba.conv": hf.get("mamba_d_conv", 4),
        "mamba.dt_init": (hf.get("time_step_min", 1e-3), hf.get("time_step_max", 0.1)),
        "mamba.dt_floor": hf.get("time_step_floor", 1e-4),
        "mamba.bias": hf.get("mamba_proj_bias", False),
        "mamba.conv_bias": hf.get("mamba_conv_bias", True),
        **(guide if "hybrid" in kinds else {}),
        "eps": hf["rms_norm_eps"],
        "tied": hf.get("tie_word_embeddings", True),
    }


def _kinds(hf: dict[str, Any]) -> list[str]:
    """The layers; older files say how far apart those with attention are, the first of which stands third."""
    if hf.get("layers_block_type") or hf.get("layer_types"):
        return kinds_of(hf)
    period, offset = hf["attn_layer_period"], hf["attn_layer_offset"]
    later = ("hybrid" if i % period == offset else "mamba" for i in range(hf["num_hidden_layers"] - 3))
    return ["mamba", "mamba", "hybrid", *later]


def _write(own: dict[str, Any]) -> dict[str, Any]:
    width, blocks = own["width"], plain_blocks(own, "Zamba")
    mamba = blocks[0]["mixer"]
    alone = all(block["mixer"] == mamba and not block["channel"] for block in blocks)
    require(alone, "Zamba has blocks of one kind of Mamba, without channel mixers")
    require(mamba["name"] == "mamba" and mamba.get("norm_eps") is None, "Zamba consists of Mamba without norms inside, and shared attention")
    require(shared_blocks(own) == 1, "Zamba has one shared block")
    uses = sum(block["guide"] is not None for block in blocks)
    require(uses > 1, "transformers builds a Zamba with two or more layers that share attention, not with one")
    guide = next(block["guide"] for block in blocks if block["guide"])
    odd = any(guide.get(key) for key in ("rank", "attention_rank", "rope", "bias", "window"))
    require(guide["name"] == "zamba2" and not odd, "Zamba's shared attention has no maps of low rank, positions, biases or window")
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    require(guide.get("activation", "gelu") in names, f"no counterpart for activation {guide.get('activation')}")
    require(guide.get("eps", 1e-5) == own["eps"], "Zamba has one eps")
    inner = mamba.get("hidden") or 2 * width
    require(inner % width == 0, f"Zamba needs an inner size that is a multiple of the width {width}")
    dt = mamba.get("dt_init") or (1e-3, 1e-1)
    heads = guide.get("heads", 4)
    return {
        "hidden_size": width,
        "num_hidden_layers": len(blocks),
        "layers_block_type": ["hybrid" if block["guide"] else "mamba" for block in blocks],
        "vocab_size": own["vocab_size"],
        "num_attention_heads": heads,
        "num_key_value_heads": guide.get("kv_heads") or heads,
        "attention_hidden_size": 2 * width,
        "attention_head_dim": 2 * width // heads,
        "intermediate_size": guide.get("hidden") or 4 * width,
        "hidden_act": names[guide.get("activation", "gelu")],
        "hidden_mamba_act": "silu",
        "attention_dropout": guide.get("dropout", 0.0),
        "n_mamba_heads": mamba.get("heads", 1),
        "mamba_expand": inner // width,
        "mamba_d_state": mamba.get("state", 16),
        "mamba_d_conv": mamba.get("conv", 4),
        "mamba_dt_rank": mamba.get("rank") or math.ceil(width / 16),
        "mamba_conv_bias": mamba.get("conv_bias", True),
        "mamba_proj_bias": mamba.get("bias", False),
        "time_step_min": float(dt[0]),
        "time_step_max": float(dt[1]),
        "time_step_floor": mamba.get("dt_floor", 1e-4),
        "rms_norm_eps": own["eps"],
        "tie_word_embeddings": own["tied"],
    }


def _prepare(hf: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """Shared tensors once; those of Mamba's heads one below the other; the way in with all channels before all gates."""
    found = {}
    for name, tensor in own_places(_kinds(hf), 1, tensors, _HOME).items():
        leaf = name.rpartition(".")[2]
        if ".mamba.in_proj." in name:
            tensor = torch.cat([tensor[0::2], tensor[1::2]])
        elif ".mamba." in name and leaf in _BY_HEADS:
            tensor = tensor.flatten(0, 1)
        found[name] = tensor
    return found


def _finish(hf: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, tensor in tensors.items():
        leaf = name.rpartition(".")[2]
        if ".mamba.in_proj." in name:
            tensor = torch.stack(tensor.chunk(2), 1).flatten(0, 1)
        elif ".mamba." in name and leaf in _BY_HEADS:
            tensor = tensor.unflatten(0, (hf["n_mamba_heads"], -1))
        found[name] = tensor
    return their_places(_kinds(hf), 1, found, _HOME, hf["tie_word_embeddings"])


_LAYER, _MIXER, _GUIDE = "model.layers.{i}", "blocks.{i}.mixer", "blocks.{i}.guide"
_SHARED, _MAMBA_THERE = f"{_LAYER}.{_HOME}", f"{_LAYER}.mamba"
_FORWARD = f"{_SHARED}.feed_forward"
EXCHANGE = ExchangeMap(
    model_type="zamba",
    cls="ZambaForCausalLM",
    read=_read,
    write=_write,
    rules=(
        Rule("embed.weight", ("model.embed_tokens.weight",)),
        Rule("blocks.{i}.mixer_norm.weight", (f"{_LAYER}.input_layernorm.weight",)),
        *linear_rules(f"{_MIXER}.inputs.linear", f"{_MAMBA_THERE}.in_proj"),
        Rule(f"{_MIXER}.conv.weight", (f"{_MAMBA_THERE}.conv1d.weight",), ("squeeze",)),
        Rule(f"{_MIXER}.conv.bias", (f"{_MAMBA_THERE}.conv1d.bias",)),
        Rule(f"{_MIXER}.select.weight", (f"{_MAMBA_THERE}.x_proj_weight",)),
        Rule(f"{_MIXER}.dt.weight", (f"{_MAMBA_THERE}.dt_proj_weight",)),
        Rule(f"{_MIXER}.dt.bias", (f"{_MAMBA_THERE}.dt_proj_bias",)),
        *(Rule(f"{_MIXER}.{name}", (f"{_MAMBA_THERE}.{name}",)) for name in ("A_log", "D")),
        *linear_rules(f"{_MIXER}.out", f"{_MAMBA_THERE}.out_proj"),
        Rule(f"{_GUIDE}.entry_norm.weight", (f"{_SHARED}.input_layernorm.weight",)),
        *attention_rules(f"{_GUIDE}.attention", f"{_SHARED}.self_attn"),
        Rule(f"{_GUIDE}.norm.weight", (f"{_SHARED}.pre_ff_layernorm.weight",)),
        *linear_rules(f"{_GUIDE}.mlp.wide", (f"{_FORWARD}.gate_proj", f"{_FORWARD}.up_proj"), "", ""),
        *linear_rules(f"{_GUIDE}.mlp.out", f"{_FORWARD}.down_proj"),
        Rule(f"{_GUIDE}.back.weight", (f"{_LAYER}.linear.weight",)),
        Rule("norm.weight", ("model.final_layernorm.weight",)),
        Rule("head.weight", ("lm_head.weight",)),
    ),
    prefixes=("model.",),
    prepare=_prepare,
    finish=_finish,
)

_MAMBA = {"name": "mamba", "heads": 2}
ARCHITECTURE = Architecture(
    pattern="mamba*2 + hybrid",
    blocks={
        "mamba": BlockConfig(mixer=_MAMBA, eps=1e-5),
        "hybrid": BlockConfig(mixer=_MAMBA, guide={"name": "zamba2"}, common=COMMON, eps=1e-5),
    },
    frame={"tied": True, "eps": 1e-5},
    depth_factor=2.0,
    width_step=16,
    fine="mixer.hidden",
    fine_ratio=2.0,
    presets={
        "zamba-7b-v1": {
            "width": 3712, "depth": 76, "vocab_size": 32000, "mamba.rank": 232, "zamba2.heads": 16,
            "pattern": "mamba*2 + hybrid + mamba*4 + hybrid" + " + mamba*5 + hybrid" * 11 + " + mamba*2",
        }
    },
    exchange=(EXCHANGE,),
)  # fmt: skip

register(
    "zamba",
    architecture="ARCHITECTURE",
    summary="Zamba: Mamba in heads with one attention block that layers share",
    paper="2405.16712",
    year=2024,
    tags=("causal", "parallel", "cache"),
    presets=("zamba-7b-v1",),
    exchange=("zamba",),
)
