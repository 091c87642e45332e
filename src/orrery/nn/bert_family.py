"""What BERT and its descendants have in common: their block, frame and heads, and how transformers names all of these.

Each architecture's file says how it differs; what two of them say alike stands here.

    h = LN(E[token] + P[position] + S[type]);  x = LN(x + mixer(x));  x = LN(x + W2 gelu(W1 x))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orrery.core.config import require
from orrery.nn.block import BlockConfig
from orrery.nn.exchange import HeadMap, Rule, linear_rules, norm_rules

MASKED: Mapping[str, Any] = {"name": "masked-lm", "transform": "gelu", "norm": True}  # logits = E LN(gelu(W h)) + b
POOLER = ("pooler.dense.weight", "pooler.dense.bias")  # in checkpoints whose head does not use it
DROPOUT = ("classifier_dropout", "hidden_dropout_prob")  # their names for a head's; the second where the first says nothing

_DRAWN = {"init_std": 0.02, "init_scaled": False}
_ATTENTION = {"name": "bidirectional-attention", "rope": 0.0, "bias": True, **_DRAWN}


def bert_block(eps: float, mixer: Mapping[str, Any] = _ATTENTION) -> BlockConfig:
    """A layer with its norms behind the parts."""
    channel = {"name": "mlp", "activation": "gelu", "bias": True, **_DRAWN}
    return BlockConfig(mixer=dict(mixer), channel=channel, norm="layernorm", eps=eps, placement="post")


def bert_frame(eps: float, types: int = 0) -> dict[str, Any]:
    """Learned positions and token types, and a norm behind them instead of behind the last layer."""
    own = {"embedding.positions": "learned", "embedding.max_positions": 512, "embedding.norm": True}
    return {"norm": "layernorm", "eps": eps, "final_norm": False, **own, **({"embedding.types": types} if types else {})}


def bert_heads(pooled: str, *first: str, twice: bool = False) -> dict[str, Mapping[str, Any]]:
    """Defaults of the heads: documents by their first vector through a layer with the activation `pooled`.

    Args:
        first: heads that come before masked-lm, the usual default. twice: whether dropout stands before that layer, too.
    """
    found: dict[str, Mapping[str, Any]] = {name: {"transform": "gelu"} for name in first}
    found["masked-lm"] = {"transform": "gelu", "norm": True}
    documents = ("classification", "multi-label", "regression", "ordinal", "multiple-choice")
    return {**found, **{name: {"pool": "first", "transform": pooled, "dropout_twice": twice} for name in documents}}


def masked_rules(dense: str, norm: str, weight: str, bias: str) -> tuple[Rule, ...]:
    """Rules of the masked-lm head; `weight` and `bias` are the full names of its last layer's."""
    return (
        *linear_rules("head.dense", dense),
        *norm_rules("head.norm", norm),
        *((Rule("head.out.weight", (weight,)),) if weight else ()),
        Rule("head.out.bias", (bias,)),
    )


def document_map(
    cls: str, pooled: str, dense: str, out: str, ignored: tuple[str, ...] = (), twice: bool = False, dropout: tuple[str, ...] = DROPOUT
) -> HeadMap:
    """Classification (or regression, or several labels) by the first vector, through two layers of these names; `twice`: as above;
    `dropout`: see :func:`dropout_of`."""
    head = {"name": "classification", "pool": "first", "transform": pooled, "norm": False}
    rules = (*linear_rules("head.dense", dense), *linear_rules("head.out", out))
    return HeadMap(cls, head, rules, ignored, labelled=True, read=dropout_of(*dropout, twice=twice))


def dropout_of(*names: str, twice: bool = False) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What a head takes from their config: the dropout that the first of these names gives which says any."""

    def read(hf: dict[str, Any]) -> dict[str, Any]:
        given = next((hf[name] for name in names if hf.get(name) is not None), 0.0)
        return {"dropout": float(given), **({"dropout_twice": True} if twice else {})}

    return read


def token_maps(
    prefix: str, ignored: tuple[str, ...] = (), dropout: tuple[str, ...] = DROPOUT, asked: tuple[str, ...] = ()
) -> tuple[HeadMap, HeadMap]:
    """Tags of tokens and spans of answers, which all of them name alike; `prefix` of their classes; `dropout` of tags, `asked` of spans:
    see :func:`dropout_of`."""
    return (
        HeadMap(
            f"{prefix}ForTokenClassification", {"name": "tagging", "crf": False, "transform": ""}, linear_rules("head.out", "classifier"),
            ignored, labelled=True, read=dropout_of(*dropout),
        ),
        HeadMap(
            f"{prefix}ForQuestionAnswering", {"name": "span", "transform": ""}, linear_rules("head.out", "qa_outputs"), ignored,
            read=dropout_of(*asked),
        ),
    )  # fmt: skip


def pooler_map(cls: str, pooler: str) -> HeadMap:
    """The bare model with its pooler, an embedding of documents."""
    head = {"name": "embedding", "pool": "first", "transform": "tanh", "norm": False, "size": None, "normalise": False}
    return HeadMap(cls, head, linear_rules("head.dense", pooler), needs=f"{pooler}.weight")


def bert_rules(prefix: str) -> tuple[Rule, ...]:
    """Rules for an encoder's body whose parts are named as BERT's: embedding and post-norm layers behind `prefix`."""
    layer, table = f"{prefix}.encoder.layer.{{i}}", f"{prefix}.embeddings"
    inputs = tuple(f"{layer}.attention.self.{part}" for part in ("query", "key", "value"))
    return (
        Rule("embed.weight", (f"{table}.word_embeddings.weight",)),
        Rule("position_embed.weight", (f"{table}.position_embeddings.weight",)),
        Rule("type_embed.weight", (f"{table}.token_type_embeddings.weight",)),
        *norm_rules("embed_norm", f"{table}.LayerNorm"),
        *linear_rules("blocks.{i}.mixer.inputs.linear", inputs),
        *linear_rules("blocks.{i}.mixer.out", f"{layer}.attention.output.dense"),
        *norm_rules("blocks.{i}.mixer_norm", f"{layer}.attention.output.LayerNorm"),
        *linear_rules("blocks.{i}.channel.wide", f"{layer}.intermediate.dense"),
        *linear_rules("blocks.{i}.channel.out", f"{layer}.output.dense"),
        *norm_rules("blocks.{i}.channel_norm", f"{layer}.output.LayerNorm"),
    )


def bert_settings(hf: dict[str, Any]) -> dict[str, Any]:
    """Settings of an encoder whose config is named as BERT's."""
    require(hf.get("hidden_act", "gelu") == "gelu", f"no counterpart for activation {hf.get('hidden_act')}")
    kind = hf.get("position_embedding_type") or "absolute"
    require(kind == "absolute", f"position embedding '{kind}' has no counterpart")
    require(not hf.get("is_decoder") and not hf.get("add_cross_attention"), "a BERT that is a decoder has no counterpart")
    return {
        "width": hf["hidden_size"],
        "depth": hf["num_hidden_layers"],
        "vocab_size": hf["vocab_size"],
        "mixer.head_dim": hf["hidden_size"] // hf["num_attention_heads"],
        "mixer.dropout": hf.get("attention_probs_dropout_prob", 0.0),
        "channel.hidden": hf["intermediate_size"],
        "eps": hf.get("layer_norm_eps", 1e-12),
        "dropout": hf.get("hidden_dropout_prob", 0.0),
        "embedding.max_positions": hf["max_position_embeddings"],
        "embedding.types": hf.get("type_vocab_size", 2),
        "embedding.std": hf.get("initializer_range", 0.02),
    }


def bert_config(own: dict[str, Any], name: str) -> dict[str, Any]:
    """The way back; `name` is theirs, for messages."""
    block, embedding = own["blocks"][0], own["embedding"]
    mixer, channel = block["mixer"], block["channel"] or {}
    plain = own["layout"] == [0] * len(own["layout"]) and block["placement"] == "post" and not block["canon"] and not own["final_norm"]
    require(plain and mixer["name"] == "bidirectional-attention" and channel.get("name") == "mlp", f"{name} has one kind of block")
    odd = any(mixer.get(key) for key in ("window", "relative", "kv_heads")) or mixer.get("rope", 1.0) or not embedding["norm"]
    require(not odd and channel.get("activation") == "gelu", f"{name} has learned positions, GELU, and no window")
    head = own["head"] or {}
    return {
        "hidden_size": own["width"],
        "num_hidden_layers": len(own["layout"]),
        "num_attention_heads": mixer.get("heads") or own["width"] // mixer["head_dim"],
        "intermediate_size": channel["hidden"],
        "vocab_size": own["vocab_size"],
        "hidden_act": "gelu",
        "layer_norm_eps": own["eps"],
        "hidden_dropout_prob": block["dropout"],
        "attention_probs_dropout_prob": mixer.get("dropout", 0.0),
        "classifier_dropout": head.get("dropout"),
        "max_position_embeddings": embedding["max_positions"],
        "type_vocab_size": embedding["types"],
        "initializer_range": embedding["std"],
        "tie_word_embeddings": head.get("tied", True),
    }
