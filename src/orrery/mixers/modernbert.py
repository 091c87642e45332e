"""ModernBERT: an encoder with rotary positions, gated feed-forward layers, and two of three layers that see a window only.

Paper: Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder (arXiv 2412.13663).

Equation: h = LN(E[token]);  x += attention(LN(x));  x += W2 (gelu(Wg LN(x)) * Wu LN(x));   hidden = LN(x)
    layer l sees everything where l mod 3 = 0, with angles of base 160000; elsewhere 64 tokens on either side, base 10000;
    the first layer has no norm before its attention;  masked-lm:  logits = E LN(gelu(W h)) + b

Shapes: B batch, T time, D width, H heads, K head dimension 64, F hidden size (3/2 D).

Cost: O(T^2) attention in a third of the layers, O(64 T) in the others; no state, no learned positions. Padding is never
    computed: the frame packs documents, which is the paper's unpadding.

Differs from the paper: matrices are normal, not truncated normal; dropout, where asked for, stands on embeddings and attention
    weights, not inside the feed-forward layers. No biases but the one of the masked-lm head.

Oracle: transformers' ModernBERT with all its heads (equal outputs through the exchange map, windows shorter than the text);
    the attention's own is tests/oracles/bidirectional_attention.py.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.exchange import ExchangeMap, HeadMap, Rule, linear_rules, norm_rules
from orrery.nn.exchange_rope import read_rope, turning_part, write_ropes

_KINDS = {"full_attention": "global", "sliding_attention": "local"}
_THETA = {"global": 160000.0, "local": 10000.0}
_UNBIASED = {True: "layernorm", False: "layernorm-unbiased"}


def _layers(hf: dict[str, Any]) -> list[str]:
    """Global or local, layer by layer; published configs give a period in the place of a list."""
    every = int(hf.get("global_attn_every_n_layers") or 3)
    kinds = hf.get("layer_types") or ["sliding_attention" if i % every else "full_attention" for i in range(hf["num_hidden_layers"])]
    require(set(kinds) <= set(_KINDS), f"layers of the kind {sorted(set(kinds) - set(_KINDS))} have no counterpart")
    return [_KINDS[kind] for kind in kinds]


def _rope(hf: dict[str, Any], kind: str) -> dict[str, Any]:
    base = hf.get(f"{kind}_rope_theta") or _THETA[kind]
    rope, theta = read_rope(hf, base, layer={ours: theirs for theirs, ours in _KINDS.items()}[kind])
    return {**({} if rope == 1.0 else {f"{kind}.mixer.rope": rope}), f"{kind}.rope_theta": theta}


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    require(hf.get("hidden_activation", "gelu") == "gelu", f"no counterpart for activation {hf.get('hidden_activation')}")
    layers = _layers(hf)
    bases = {name: value for kind in dict.fromkeys(layers) for name, value in _rope(hf, kind).items()}
    window = {"local.window": int(hf["local_attention"]) // 2} if "local" in layers else {}
    return {
        "width": hf["hidden_size"],
        "depth": hf["num_hidden_layers"],
        "vocab_size": hf["vocab_size"],
        "pattern": _pattern(layers),
        "mixer.head_dim": hf["hidden_size"] // hf["num_attention_heads"],
        "mixer.bias": hf.get("attention_bias", False),
        "mixer.dropout": hf.get("attention_dropout", 0.0),
        "channel.hidden": hf["intermediate_size"],
        "channel.bias": hf.get("mlp_bias", False),
        "norm": _UNBIASED[bool(hf.get("norm_bias", False))],
        "eps": hf.get("norm_eps", 1e-5),
        "embedding.dropout": hf.get("embedding_dropout", 0.0),
        "embedding.std": hf.get("initializer_range", 0.02),
        **bases,
        **window,
    }


def _pattern(layers: list[str]) -> str:
    """The shortest part that, repeated, gives the layers."""
    size = next(n for n in range(1, len(layers) + 1) if all(layers[i] == layers[i % n] for i in range(len(layers))))
    return " + ".join(f"{kind}*{len(list(run))}" for kind, run in groupby(layers[:size]))


def _write(own: dict[str, Any]) -> dict[str, Any]:
    blocks = own["blocks"]
    for block in blocks:
        mixer, channel = block["mixer"], block["channel"] or {}
        plain = mixer["name"] == "bidirectional-attention" and channel.get("name") == "glu" and channel.get("activation") == "gelu"
        odd = mixer.get("relative") or mixer.get("kv_heads") or turning_part(mixer) != 1 or mixer.get("heads") or block["canon"]
        require(plain and not odd and block["placement"] == "pre" and not block["first_norm"], "ModernBERT has rotary attention and GeGLU")
    windows = {block["mixer"]["window"] for block in blocks if block["mixer"].get("window")}
    kinds = ["sliding_attention" if blocks[kind]["mixer"].get("window") else "full_attention" for kind in own["layout"]]
    bases: dict[str, tuple[Any, float]] = {kind: (1.0, _THETA[ours]) for kind, ours in _KINDS.items()}
    for index, kind in zip(own["layout"], kinds, strict=True):
        bases[kind] = blocks[index]["mixer"].get("rope", 1.0), blocks[index]["mixer"].get("rope_theta", 10000.0)
    require(len(windows) < 2 and len(blocks) < 3, "ModernBERT has one kind of local and one of global layers")
    require(own["embedding"]["norm"] and own["final_norm"], "ModernBERT has a norm behind its embedding and behind its last layer")
    head, first = own["head"] or {}, blocks[0]
    pool = head.get("pool", "first")
    require(pool in ("first", "mean"), f"ModernBERT does not pool '{pool}'")
    return {
        "vocab_size": own["vocab_size"],
        "hidden_size": own["width"],
        "intermediate_size": first["channel"]["hidden"],
        "num_hidden_layers": len(own["layout"]),
        "num_attention_heads": own["width"] // first["mixer"]["head_dim"],
        "hidden_activation": "gelu",
        "norm_eps": own["eps"],
        "norm_bias": own["norm"] == "layernorm",
        "attention_bias": first["mixer"].get("bias", False),
        "attention_dropout": first["mixer"].get("dropout", 0.0),
        "mlp_bias": first["channel"].get("bias", False),
        "embedding_dropout": own["embedding"]["dropout"],
        "initializer_range": own["embedding"]["std"],
        "local_attention": 2 * next(iter(windows), 64),
        "layer_types": kinds,
        **write_ropes(bases),
        "classifier_pooling": {"first": "cls", "mean": "mean"}[pool],
        "classifier_bias": head.get("transform_bias", False),
        "classifier_activation": head.get("transform", "gelu"),
        "classifier_dropout": head.get("dropout", 0.0),
        "decoder_bias": head.get("bias", True),
        "tie_word_embeddings": head.get("tied", True),
        "pad_token_id": None,  # the head's and the tokenizer's marks are not the model's
        "bos_token_id": None,
        "eos_token_id": None,
        "cls_token_id": None,
        "sep_token_id": None,
    }


def _prepare(hf: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """Queries, keys and values apart: only the first two are rotated."""
    found = {}
    for name, tensor in tensors.items():
        if ".attn.Wqkv." in name:
            found.update({name.replace("Wqkv", f"W{part}"): own for part, own in zip("qkv", tensor.chunk(3), strict=True)})
        else:
            found[name] = tensor
    return found


def _finish(hf: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, tensor in tensors.items():
        if ".attn.Wq." in name:
            found[name.replace("Wq.", "Wqkv.")] = torch.cat([tensors[name.replace("Wq.", f"W{part}.")] for part in "qkv"])
        elif ".attn.Wk." not in name and ".attn.Wv." not in name:
            found[name] = tensor
    return found


def _transformed(hf: dict[str, Any]) -> dict[str, Any]:
    return {
        "transform": hf.get("classifier_activation", "gelu"),
        "transform_bias": hf.get("classifier_bias", False),
    }


def _classified(hf: dict[str, Any]) -> dict[str, Any]:
    pool = {"cls": "first", "mean": "mean"}[hf.get("classifier_pooling", "cls")]
    return {**_transformed(hf), "pool": pool, "dropout": hf.get("classifier_dropout", 0.0)}


def _scored(hf: dict[str, Any]) -> dict[str, Any]:
    return {**_transformed(hf), "bias": hf.get("decoder_bias", True), "tied": hf.get("tie_word_embeddings", True)}


_LAYER = "model.layers.{i}"
_TRANSFORM = (*linear_rules("head.dense", "head.dense"), *norm_rules("head.norm", "head.norm"))
_CLASSIFIER = (*_TRANSFORM, *linear_rules("head.out", "classifier"))

EXCHANGE = ExchangeMap(
    model_type="modernbert",
    cls="ModernBertModel",
    read=_read,
    write=_write,
    rules=(
        Rule("embed.weight", ("model.embeddings.tok_embeddings.weight",)),
        *norm_rules("embed_norm", "model.embeddings.norm"),
        *norm_rules("blocks.{i}.mixer_norm", f"{_LAYER}.attn_norm"),
        *linear_rules("blocks.{i}.mixer.inputs.linear", tuple(f"{_LAYER}.attn.W{part}" for part in "qkv"), "rotary", "rotary", ""),
        *linear_rules("blocks.{i}.mixer.out", f"{_LAYER}.attn.Wo"),
        *norm_rules("blocks.{i}.channel_norm", f"{_LAYER}.mlp_norm"),
        *linear_rules("blocks.{i}.channel.wide", f"{_LAYER}.mlp.Wi"),
        *linear_rules("blocks.{i}.channel.out", f"{_LAYER}.mlp.Wo"),
        *norm_rules("norm", "model.final_norm"),
    ),
    prefixes=("model.",),
    prepare=_prepare,
    finish=_finish,
    heads=(
        HeadMap(
            "ModernBertForMaskedLM",
            {"name": "masked-lm", "norm": True},
            (*_TRANSFORM, Rule("head.out.weight", ("decoder.weight",)), Rule("head.out.bias", ("decoder.bias",))),
            ("decoder.weight",),
            read=_scored,
        ),
        HeadMap(
            "ModernBertForSequenceClassification", {"name": "classification", "norm": True}, _CLASSIFIER, labelled=True, read=_classified
        ),
        HeadMap(
            "ModernBertForTokenClassification", {"name": "tagging", "crf": False, "norm": True}, _CLASSIFIER, labelled=True, read=_transformed
        ),
        HeadMap("ModernBertForQuestionAnswering", {"name": "span", "norm": True}, _CLASSIFIER, read=_transformed),
    ),
)


def _block(window: int | None, theta: float) -> BlockConfig:
    return BlockConfig(
        mixer={"name": "bidirectional-attention", "window": window, "rope_theta": theta, "init_std": 0.02},
        channel={"name": "glu", "activation": "gelu", "init_std": 0.02},
        norm="layernorm-unbiased",
        eps=1e-5,
        first_norm=False,
    )


_HEAD = {"transform": "gelu", "norm": True, "transform_bias": False}

ARCHITECTURE = Architecture(
    pattern="global + local*2",
    blocks={"global": _block(None, _THETA["global"]), "local": _block(64, _THETA["local"])},
    kind="encoder",
    frame={"norm": "layernorm-unbiased", "eps": 1e-5, "embedding.norm": True},
    heads={
        "masked-lm": _HEAD,
        "classification": {"pool": "mean", **_HEAD},
        "multi-label": {"pool": "mean", **_HEAD},
        "regression": {"pool": "mean", **_HEAD},
        "ordinal": {"pool": "mean", **_HEAD},
        "tagging": _HEAD,
        "span": _HEAD,
    },
    head="mixer.head_dim",
    fine_ratio=1.5,
    presets={
        "modernbert-base": {"width": 768, "depth": 22, "mixer.head_dim": 64, "channel.hidden": 1152, "vocab_size": 50368},
        "modernbert-large": {"width": 1024, "depth": 28, "mixer.head_dim": 64, "channel.hidden": 2624, "vocab_size": 50368},
    },
    exchange=(EXCHANGE,),
)

register(
    "modernbert",
    architecture="ARCHITECTURE",
    summary="ModernBERT: a pre-norm encoder with rotary positions, GeGLU, and local attention in two of three layers",
    paper="2412.13663",
    year=2024,
    tags=("bidirectional", "parallel", "encoder"),
    presets=("modernbert-base", "modernbert-large"),
    exchange=("modernbert",),
)
