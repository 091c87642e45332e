"""Griffin: two layers of gated linear recurrence for every layer of local attention. RecurrentGemma is its published form.

Paper: Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language Models (arXiv 2402.19427);
    RecurrentGemma (2404.07839), whose logits are soft-capped.

Equation:  x += mixer(norm(x));  x += W2 (gelu(Wg norm(x)) * Wu norm(x));  the mixers are the RG-LRU block, the RG-LRU block,
    and attention to the last W tokens with one key-value head, half of whose dimensions are rotated;  logits = s tanh(W norm(x) / s)

Shapes: B batch, T time, D width, W window, F hidden size 3 D.

Cost: train O(T W) in every third layer, else O(T); decode constant in T once W tokens are seen.

Differs from the paper: the embedding is not multiplied by sqrt(D); a checkpoint's factor goes into its weights when they are
    read, and comes out when they are written. Attention and feed-forward are initialised as everywhere here, and logits are
    capped in the presets alone, as in RecurrentGemma.

Oracle: transformers' RecurrentGemma (equal logits through the exchange map); tests/oracles/rg_lru.py and attention.py.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.exchange import ExchangeMap, Rule, linear_rules
from orrery.nn.exchange_rope import rope_of, rope_settings, write_rope
from orrery.nn.rotary import scaling_of

_PATTERN = "recurrent*2 + attention"
_CYCLE = ["recurrent", "recurrent", "attention"]


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    act = hf.get("hidden_activation", "gelu_pytorch_tanh")
    require(act == "gelu_pytorch_tanh", f"no counterpart for activation {act}")
    width, heads, cycle = hf["hidden_size"], hf["num_attention_heads"], list(hf.get("block_types") or _CYCLE)
    hidden = hf.get("lru_width") or width
    require(
        hidden == width, "RG-LRU in transformers has one number of heads and here one size: lru_width must be the width"
    )
    kinds = (cycle * hf["num_hidden_layers"])[: hf["num_hidden_layers"]]
    found = {
        "width": width,
        "depth": len(kinds),
        "vocab_size": hf["vocab_size"],
        "mixer.head_dim": width // heads,
        "channel.hidden": hf["intermediate_size"] // 2,
        "eps": hf.get("rms_norm_eps", 1e-6),
        "softcap": hf.get("logits_soft_cap", 30.0),
        "tied": hf.get("tie_word_embeddings", True),
    }
    if cycle != _CYCLE:
        found["pattern"] = " + ".join(f"{kind}*{len(list(run))}" for kind, run in groupby(cycle))
    if "recurrent" in kinds:
        found["rg-lru.conv"] = hf.get("conv1d_width", 4)
    if "attention" in kinds:
        found["attention.kv_heads"] = hf.get("num_key_value_heads") or heads
        found["attention.window"] = hf.get("attention_window_size", 2048)
        found |= rope_settings(hf, "attention", part=0.5)
        require(scaling_of(rope_of(found["attention.rope"])) is None, "RecurrentGemma in transformers does not scale positions")
        found["attention.bias"] = hf.get("attention_bias", False)
        found["attention.dropout"] = hf.get("attention_dropout", 0.0)
    return found


def _settings(own: dict[str, Any], mixer: str) -> dict[str, Any]:
    """The settings of the layers with this mixer, which must be the same; {} when there is none."""
    found = [block["mixer"] for block in own["blocks"] if block["mixer"]["name"] == mixer]
    require(all(each == found[0] for each in found), f"Griffin has one kind of {mixer}")
    return found[0] if found else {}


def _write(own: dict[str, Any]) -> dict[str, Any]:
    names = {"rg-lru": "recurrent", "attention": "attention"}
    first, width = own["blocks"][0], own["width"]
    for block in own["blocks"]:
        plain = block["placement"] == "pre" and not block["canon"] and block["norm"] == own["norm"] == "rmsnorm"
        require(plain and block["mixer"]["name"] in names, "RecurrentGemma has RG-LRU and attention in pre-norm blocks")
        require(
            block["channel"] == first["channel"] and block["eps"] == own["eps"],
            "RecurrentGemma's layers have one channel mixer",
        )
    channel, lru, attention = first["channel"], _settings(own, "rg-lru"), _settings(own, "attention")
    like = {"name": "glu", "activation": "gelu-tanh", "bias": True}
    require({k: channel.get(k) for k in like} == like, "RecurrentGemma has a gated MLP with GELU (tanh) and biases")
    sizes = {part["head_dim"] for part in (lru, attention) if part}
    require(len(sizes) == 1 and lru.get("hidden") in (None, width), "RecurrentGemma has heads of one size, and R = D")
    odd = any(attention.get(name) for name in ("qk_norm", "gate")) or (attention and not attention.get("out_bias"))
    require(not odd, "attention in RecurrentGemma has a bias behind it, and no query-key norm or gate")
    require(own["softcap"] is not None and not own["embed_norm"], "RecurrentGemma caps its logits")
    heads = width // sizes.pop()
    require(scaling_of(rope_of(attention.get("rope", 1.0))) is None, "RecurrentGemma in transformers does not scale positions")
    rope = write_rope(attention.get("rope", 1.0), attention.get("rope_theta", 10000.0), partial=True)
    return {
        "hidden_size": width,
        "num_hidden_layers": len(own["layout"]),
        "block_types": [names[own["blocks"][i]["mixer"]["name"]] for i in own["layout"]],
        "vocab_size": own["vocab_size"],
        "num_attention_heads": heads,
        "num_key_value_heads": attention.get("kv_heads") or heads,
        "intermediate_size": 2 * channel["hidden"],
        "lru_width": width,
        "attention_window_size": attention.get("window") or 1 << 20,
        "attention_bias": attention.get("bias", False),
        "attention_dropout": attention.get("dropout", 0.0),
        "conv1d_width": lru.get("conv", 4),
        "logits_soft_cap": own["softcap"],
        "rms_norm_eps": own["eps"],
        "hidden_activation": "gelu_pytorch_tanh",
        **rope,
        "partial_rotary_factor": rope["rope_parameters"]["partial_rotary_factor"],
        "tie_word_embeddings": own["tied"],
    }


_LAYER = "model.layers.{i}"
_MIXER = f"{_LAYER}.temporal_block"
_LRU = f"{_MIXER}.rg_lru"
EXCHANGE = ExchangeMap(
    model_type="recurrent_gemma",
    cls="RecurrentGemmaForCausalLM",
    read=_read,
    write=_write,
    rules=(
        Rule("embed.weight", ("model.embed_tokens.weight",), ("root",)),
        Rule("blocks.{i}.mixer_norm.weight", (f"{_LAYER}.temporal_pre_norm.weight",), ("gain",)),
        *linear_rules("blocks.{i}.mixer.inputs.linear", (f"{_MIXER}.linear_y", f"{_MIXER}.linear_x"), mixer="rg-lru"),
        Rule("blocks.{i}.mixer.conv.weight", (f"{_MIXER}.conv_1d.weight",), ("squeeze",), "rg-lru"),
        Rule("blocks.{i}.mixer.conv.bias", (f"{_MIXER}.conv_1d.bias",), mixer="rg-lru"),
        Rule("blocks.{i}.mixer.input_gate", (f"{_LRU}.input_gate_weight",), mixer="rg-lru"),
        Rule("blocks.{i}.mixer.input_bias", (f"{_LRU}.input_gate_bias",), mixer="rg-lru"),
        Rule("blocks.{i}.mixer.recurrence_gate", (f"{_LRU}.recurrent_gate_weight",), mixer="rg-lru"),
        Rule("blocks.{i}.mixer.recurrence_bias", (f"{_LRU}.recurrent_gate_bias",), mixer="rg-lru"),
        Rule("blocks.{i}.mixer.pace", (f"{_LRU}.recurrent_param",), mixer="rg-lru"),
        *linear_rules("blocks.{i}.mixer.out", f"{_MIXER}.linear_out", mixer="rg-lru"),
        *linear_rules(
            "blocks.{i}.mixer.inputs.linear", tuple(f"{_MIXER}.{p}_proj" for p in "qkv"), "rotary", "rotary", "",
            mixer="attention",
        ),
        *linear_rules("blocks.{i}.mixer.out", f"{_MIXER}.o_proj", mixer="attention"),
        Rule("blocks.{i}.channel_norm.weight", (f"{_LAYER}.channel_pre_norm.weight",), ("gain",)),
        *linear_rules("blocks.{i}.channel.wide", (f"{_LAYER}.mlp_block.gate_proj", f"{_LAYER}.mlp_block.up_proj")),
        *linear_rules("blocks.{i}.channel.out", f"{_LAYER}.mlp_block.down_proj"),
        Rule("norm.weight", ("model.final_norm.weight",), ("gain-root",)),
        Rule("head.weight", ("lm_head.weight",), ("root",)),
    ),
    ignored=("rotary_emb.inv_freq", "normalizer"),
    prefixes=("model.",),
)  # fmt: skip

_CHANNEL = {"name": "glu", "activation": "gelu-tanh", "bias": True}
_LOCAL = {"name": "attention", "kv_heads": 1, "window": 1024, "rope": 0.5, "out_bias": True}


def _published(width: int, depth: int, heads: int, hidden: int) -> dict[str, Any]:
    return {
        "width": width, "depth": depth, "vocab_size": 256000, "mixer.head_dim": width // heads, "channel.hidden": hidden,
        "attention.window": 2048, "softcap": 30.0,
    }  # fmt: skip


ARCHITECTURE = Architecture(
    pattern=_PATTERN,
    blocks={
        "recurrent": BlockConfig(mixer={"name": "rg-lru"}, channel=_CHANNEL, eps=1e-6),
        "attention": BlockConfig(mixer=_LOCAL, channel=_CHANNEL, eps=1e-6),
    },
    frame={"tied": True, "eps": 1e-6},
    head="mixer.head_dim",
    fine_ratio=3.0,
    presets={
        "recurrentgemma-2b": _published(2560, 26, 10, 7680),
        "recurrentgemma-9b": _published(4096, 38, 16, 12288),
    },
    exchange=(EXCHANGE,),
)

register(
    "griffin",
    architecture="ARCHITECTURE",
    summary="Griffin: two RG-LRU layers for every layer of local attention (RecurrentGemma)",
    paper="2402.19427",
    year=2024,
    tags=("causal", "parallel", "cache", "positions"),
    presets=("recurrentgemma-2b", "recurrentgemma-9b"),
    exchange=("recurrent_gemma",),
)
