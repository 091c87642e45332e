"""LFM3: LFM2's gated convolutions, longer, among layers of windowed and of full attention; every part between two norms.

Paper: none yet; after LFM2 (arXiv 2511.23404), norms on both sides as in Gemma 2 (2408.00118), gates as in Gated Attention
    (2505.06708), and the released LFM3-1.7B.

Equation:  x += norm(mixer(norm(x)));  x += norm(glu(norm(x)));  the mixer is
    conv:   W_out (c h),  [b, c, u] = W_in x,  h_t = sum_{j<K} w_j (b u)_{t-K+1+j}
    local:  grouped-query attention over the last W tokens, rotary, with an RMSNorm of every query and key, and head i's
            output times sigmoid(W_g x)_i
    full:   the same over all tokens, half of each head rotated

Shapes: B batch, T time, D width, K taps of the convolution, H heads, W window.

Cost: of four layers two are convolutions and one has a window, so that only the fourth costs O(T^2) in training and keeps
    keys and values of all T tokens.

Differs from the paper: initialised by width as `transformer` here. The rotated half is as fast as the first half of all pairs
    ("proportional"); here that is a smaller base of the angles, and the pairs stand next to each other. The released files say
    "default" beside the share; transformers 5.23 turns whole heads then, here they are read as their authors' code reads them.

Oracle: transformers' LFM3 (equal logits and cached generation through the exchange map); tests/oracles/gated_conv.py and
    attention.py for the mixers.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig, part_config
from orrery.nn.exchange import ExchangeMap, Rule, linear_rules
from orrery.nn.exchange_rope import read_rope, rope_of, write_ropes
from orrery.nn.rotary import part_of, rotated_size, scaling_of

_NAMES = {"conv": "conv", "full": "full_attention", "local": "sliding_attention"}


def _kinds(hf: dict[str, Any]) -> list[str]:
    """Our blocks' names, layer by layer."""
    depth, ours = hf["num_hidden_layers"], {theirs: ours for ours, theirs in _NAMES.items()}
    usual = [_NAMES["full" if i % 4 == 2 else "local" if i % 4 == 0 and i > 0 else "conv"] for i in range(depth)]
    types = (hf.get("layer_types") or usual)[:depth]
    require(set(types) <= set(ours), f"the kinds of layers are not known: {sorted(set(types))}")
    return [ours[kind] for kind in types]


def _rotation(hf: dict[str, Any], kind: str) -> tuple[float | dict[str, Any], float]:
    """Share of a head that is rotated (or the scaling of positions), and the base of its angles as it is meant here, for the layers of a kind.

    Their pair j of K/2 turns by base^(-2j/K), and only the first of them turn; here the rotated R numbers have pairs of
    their own, which turn by base^(-2j/R). The released files call this "default" beside a share, transformers' defaults call it
    "proportional".
    """
    own: dict[str, dict[str, Any]] = {
        "full": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
        "local": {"rope_theta": 1e4},
    }
    rope = (hf.get("rope_parameters") or {}).get(_NAMES[kind]) or own[kind]
    name, share = rope.get("rope_type", "default"), rope.get("partial_rotary_factor", 1.0)
    if name not in ("default", "proportional"):
        require(share == 1.0, f"rotary scaling '{name}' of a part of a head has no counterpart")
        return read_rope(hf, own[kind]["rope_theta"], layer=_NAMES[kind])
    require(rope.get("factor", 1.0) == 1.0, "a factor beside proportional rotation has no counterpart")
    rotated = 2 * int(share * hf["head_dim"] // 2)
    return rotated / hf["head_dim"], float(rope.get("rope_theta", own[kind]["rope_theta"])) ** (rotated / hf["head_dim"])


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    hf = {**hf, "head_dim": hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]}
    kinds, eps = _kinds(hf), hf.get("norm_eps", 1e-5)
    found: dict[str, Any] = {
        "width": hf["hidden_size"],
        "depth": len(kinds),
        "vocab_size": hf["vocab_size"],
        "pattern": " + ".join(f"{kind}*{len(list(run))}" for kind, run in groupby(kinds)),
        "placement": "sandwich" if hf.get("use_sandwich_norm", True) else "pre",
        "eps": eps,
        "channel.hidden": hf["intermediate_size"],
        "tied": hf.get("tie_word_embeddings", True),
    }
    if "conv" in kinds:
        found |= {"gated-conv.kernel": hf.get("conv_L_cache", 7), "gated-conv.bias": hf.get("conv_bias", False)}
    if set(kinds) - {"conv"}:
        found |= {
            "attention.heads": hf["num_attention_heads"],
            "attention.kv_heads": hf.get("num_key_value_heads") or hf["num_attention_heads"],
            "attention.head_dim": hf["head_dim"],
            "attention.qk_norm": eps,
            "attention.gate": "head" if hf.get("use_attention_gate", True) else False,
            "attention.bias": hf.get("attention_bias", False),
            "attention.dropout": hf.get("attention_dropout", 0.0),
        }
    require(not (hf.get("attention_bias") and hf.get("use_attention_gate", True)), "biases beside a gate per head have no counterpart")
    if "local" in kinds:
        require(bool(hf.get("sliding_window", 256)), "layers with a window need sliding_window")
        found["local.mixer.window"] = hf.get("sliding_window", 256)
    for kind in {"full", "local"} & set(kinds):
        found |= dict(zip((f"{kind}.mixer.rope", f"{kind}.mixer.rope_theta"), _rotation(hf, kind), strict=True))
    return found


def _write(own: dict[str, Any]) -> dict[str, Any]:
    blocks = [own["blocks"][kind] for kind in own["layout"]]
    placements = {b["placement"] for b in blocks}
    plain = all(not b["canon"] and b["norm"] == "rmsnorm" and b["eps"] == own["eps"] for b in blocks)
    require(plain and own["norm"] == "rmsnorm", "LFM3 has RMSNorms of one eps, without Canon layers")
    require(len(placements) == 1 and placements <= {"pre", "sandwich"}, "LFM3 has norms on both sides of its parts, or before them")
    names = {b["mixer"]["name"] for b in blocks}
    require(names <= {"gated-conv", "attention"}, "LFM3 consists of gated convolutions and attention")
    require(all(b["channel"] and b["channel"]["name"] == "glu" for b in blocks), "LFM3 has SwiGLU in all layers")
    parts: dict[str, Any] = {}
    kinds = []
    for block in blocks:
        mixer, glu = cast(Any, part_config(block["mixer"], "mixer")), cast(Any, part_config(block["channel"], "channel"))
        kinds.append("conv" if block["mixer"]["name"] == "gated-conv" else "full" if mixer.window is None else "local")
        require(parts.setdefault(kinds[-1], mixer) == mixer, f"LFM3 has one kind of {kinds[-1]} layers")
        require(parts.setdefault("glu", glu) == glu, "LFM3 has SwiGLU of one size")
    require(parts["glu"].activation == "silu" and not parts["glu"].bias, "LFM3 has SwiGLU without bias")
    config = {
        "hidden_size": own["width"],
        "num_hidden_layers": len(blocks),
        "vocab_size": own["vocab_size"],
        "layer_types": [_NAMES[kind] for kind in kinds],
        "intermediate_size": parts["glu"].hidden,
        "norm_eps": own["eps"],
        "use_sandwich_norm": placements == {"sandwich"},
        "max_position_embeddings": 1 << 20,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),  # theirs, left out, would end what is generated
        "tie_word_embeddings": own["tied"],
    }
    if "conv" in parts:
        config |= {"conv_L_cache": parts["conv"].kernel, "conv_bias": parts["conv"].bias}
    attention: dict[str, Any] = {kind: parts[kind] for kind in ("full", "local") if kind in parts}
    return {**config, **(_write_attention(attention, own) if attention else {"num_attention_heads": 1, "num_key_value_heads": 1})}


def _write_attention(kinds: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    ropes: dict[str, Any] = {}
    for kind, mixer in kinds.items():
        require(not (mixer.bias and mixer.gate), "LFM3's gates have no bias")
        plain = not (mixer.norm_whole or mixer.relative) and mixer.gate in ("head", False) and mixer.out_bias in (None, mixer.bias)
        require(plain, "LFM3's attention has a gate per head or none, and norms head by head")
        eps = 1e-6 if mixer.qk_norm is True else mixer.qk_norm
        require(eps == own["eps"], f"LFM3 has a query-key norm with the eps of all norms; set attention.qk_norm={own['eps']:g}")
        heads, rotated = mixer.heads or own["width"] // mixer.head_dim, rotated_size(mixer.rope, mixer.head_dim)
        require(rotated > 0, "LFM3's attention knows positions")
        base = mixer.rope_theta ** (mixer.head_dim / rotated)
        whole = rotated == mixer.head_dim
        require(whole or scaling_of(mixer.rope) is None, "LFM3 scales positions of whole heads alone")
        part = {"rope_type": "proportional", "rope_theta": base, "partial_rotary_factor": rotated / mixer.head_dim}
        ropes[_NAMES[kind]] = (mixer.rope, base) if whole else part
        found.append(
            {
                "num_attention_heads": heads,
                "num_key_value_heads": mixer.kv_heads or heads,
                "head_dim": mixer.head_dim,
                "use_attention_gate": mixer.gate == "head",
                "attention_bias": mixer.bias,
                "attention_dropout": mixer.dropout,
            }
        )
    require(all(each == found[0] for each in found), "both kinds of attention are alike in LFM3, but for window and rotation")
    scaled = write_ropes({kind: rope for kind, rope in ropes.items() if isinstance(rope, tuple)})
    parts = {"rope_parameters": {**ropes, **scaled.pop("rope_parameters")}, **scaled}
    return {**found[0], **parts, "sliding_window": kinds["local"].window if "local" in kinds else None}


def _attentions(hf: dict[str, Any]) -> list[tuple[str, Tensor]]:
    """Of every attention layer, where its tensors stand, and their row of a head for each of ours."""
    hf = {**hf, "head_dim": hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]}
    found, half, rows = [], hf["head_dim"] // 2, torch.arange(hf["head_dim"])
    for layer, kind in enumerate(_kinds(hf)):
        if kind != "conv":
            pairs = round(part_of(rope_of(_rotation(hf, kind)[0])) * half)
            turning = torch.stack([rows[:pairs], rows[half : half + pairs]], 1).flatten()
            found.append((f"model.layers.{layer}.self_attn", torch.cat([turning, rows[pairs:half], rows[half + pairs :]])))
    return found


def _by_heads(tensor: Tensor, order: Tensor) -> Tensor:
    return tensor.unflatten(0, (-1, len(order)))[:, order].flatten(0, 1)


def _prepare(hf: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """An attention layer's maps as one, pairs that turn together as neighbours; files call `gate_proj` what is `g_proj` in memory."""
    found = {name.replace(".self_attn.gate_proj.", ".self_attn.g_proj."): tensor for name, tensor in tensors.items()}
    for home, order in _attentions(hf):
        for name in [f"{home}.{part}.{kind}" for part in ("q_proj", "k_proj", "q_norm", "k_norm") for kind in ("weight", "bias")]:
            if name in found:
                found[name] = _by_heads(found[name], order)
        for kind in ("weight", "bias"):
            parts = [found.pop(name) for part in "qkvg" if (name := f"{home}.{part}_proj.{kind}") in found]
            found.update({f"{home}.inputs.{kind}": torch.cat(parts)} if parts else {})
    return found


def _finish(hf: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back."""
    found = dict(tensors)
    heads, size, keys = hf["num_attention_heads"], hf.get("head_dim", 1), hf["num_key_value_heads"]
    sizes = {"q": heads * size, "k": keys * size, "v": keys * size, **({"g": heads} if hf.get("use_attention_gate") else {})}
    for home, order in _attentions({**hf, "head_dim": size}):
        for kind in ("weight", "bias"):
            if (whole := found.pop(f"{home}.inputs.{kind}", None)) is not None:
                parts = zip(sizes, whole.split(list(sizes.values())), strict=True)
                found.update({f"{home}.{part}_proj.{kind}": rows for part, rows in parts})
        for name in [f"{home}.{part}.{kind}" for part in ("q_proj", "k_proj", "q_norm", "k_norm") for kind in ("weight", "bias")]:
            if name in found:
                found[name] = _by_heads(found[name], order.argsort())
    return found


_LAYER = "model.layers.{i}"
_CONV, _ATTENTION, _FEED = f"{_LAYER}.conv", f"{_LAYER}.self_attn", f"{_LAYER}.feed_forward"
EXCHANGE = ExchangeMap(
    model_type="lfm3",
    cls="Lfm3ForCausalLM",
    read=_read,
    write=_write,
    rules=(
        Rule("embed.weight", ("model.embed_tokens.weight",)),
        Rule("blocks.{i}.mixer_norm.weight", (f"{_LAYER}.operator_norm.weight",)),
        *linear_rules("blocks.{i}.mixer.inputs", f"{_CONV}.in_proj", mixer="gated-conv"),
        Rule("blocks.{i}.mixer.conv.weight", (f"{_CONV}.conv.weight",), ("squeeze",), mixer="gated-conv"),
        Rule("blocks.{i}.mixer.conv.bias", (f"{_CONV}.conv.bias",), mixer="gated-conv"),
        *linear_rules("blocks.{i}.mixer.out", f"{_CONV}.out_proj", mixer="gated-conv"),
        *linear_rules("blocks.{i}.mixer.inputs.linear", f"{_ATTENTION}.inputs", mixer="attention"),
        Rule("blocks.{i}.mixer.q_norm.weight", (f"{_ATTENTION}.q_norm.weight",)),
        Rule("blocks.{i}.mixer.k_norm.weight", (f"{_ATTENTION}.k_norm.weight",)),
        *linear_rules("blocks.{i}.mixer.out", f"{_ATTENTION}.o_proj", mixer="attention"),
        Rule("blocks.{i}.out_norms.0.weight", (f"{_LAYER}.post_operator_norm.weight",)),
        Rule("blocks.{i}.channel_norm.weight", (f"{_LAYER}.ffn_norm.weight",)),
        *linear_rules("blocks.{i}.channel.wide", (f"{_FEED}.w1", f"{_FEED}.w3"), "", ""),
        *linear_rules("blocks.{i}.channel.out", f"{_FEED}.w2"),
        Rule("blocks.{i}.out_norms.1.weight", (f"{_LAYER}.post_ffn_norm.weight",)),
        Rule("norm.weight", ("model.embedding_norm.weight",)),
        Rule("head.weight", ("lm_head.weight",)),
    ),
    prefixes=("model.",),
    prepare=_prepare,
    finish=_finish,
)

_ATTEND = {"name": "attention", "qk_norm": 1e-5, "gate": "head"}
_MIXERS: dict[str, dict[str, Any]] = {
    "conv": {"name": "gated-conv", "kernel": 7},
    "local": {**_ATTEND, "window": 256},
    "full": {**_ATTEND, "rope": 0.5, "rope_theta": 1000.0},  # half of the pairs of base 1e6
}
ARCHITECTURE = Architecture(
    pattern="conv + full + conv + local",
    blocks={
        name: BlockConfig(mixer=mixer, channel={"name": "glu"}, placement="sandwich", eps=1e-5) for name, mixer in _MIXERS.items()
    },
    frame={"tied": True, "eps": 1e-5},
    head="full+local/mixer.head_dim",
    fine_ratio=15 / 4,
    presets={
        "lfm3-1.7b": {
            "width": 2048, "depth": 24, "vocab_size": 128000, "pattern": "conv*2 + full + conv" + " + local + conv + full + conv" * 5,
            "attention.heads": 16, "attention.kv_heads": 4, "attention.head_dim": 128, "channel.hidden": 7680,
        },
    },
    exchange=(EXCHANGE,),
)  # fmt: skip

register(
    "lfm3",
    architecture="ARCHITECTURE",
    summary="LFM3: gated short convolutions among layers of windowed and of full attention, every part between two norms",
    paper="2511.23404",
    year=2026,
    tags=("causal", "parallel", "cache"),
    presets=("lfm3-1.7b",),
    exchange=("lfm3",),
)
