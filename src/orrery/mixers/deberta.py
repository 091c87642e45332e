"""DeBERTa (versions 2 and 3): an encoder whose layers look at content and at relative position apart.

Paper: DeBERTa (arXiv 2006.03654); DeBERTaV3 (2111.09543), which is pre-trained by the objective `replaced-tokens` with disentangled
    embeddings. mDeBERTa and CamemBERTa (2306.01497) are the same architecture.

Equation: h = LN(E[token]);  x = LN(x + disentangled(x));  x = LN(x + W2 gelu(W1 x));  the first layer holds the table of positions
    classification:  W2 gelu(W1 h_first) + b;   masked-lm:  logits = E LN(gelu(W h)) + b

Shapes: B batch, T time, D width, H heads, K head dimension 64, F hidden size 4 D.

Cost: that of BERT, and two position terms in every layer (mixers/disentangled_attention.py); no learned absolute positions.

    enhanced mask decoder (section 3.2; `head.positions=512`, off by default), with h the input of the last layer:
        q = h + P[position];  twice  q = layer_L(queries and residual q, keys and values h);  logits = E LN(gelu(W q)) + b

Differs from the paper: the enhanced mask decoder is off unless asked for: replaced-token pre-training does not use it,
    published checkpoints of version 3 do not hold its table, and transformers does not have it, so a model with it is not
    written there. It belongs to the masked-lm head: other heads on the same body read the last layer as it is. The convolution beside the first layer
    (version 2, xlarge and xxlarge) is the setting `beside`, without dropout of its own. Dropout is 0 unless asked for.

Oracle: transformers' DeBERTa-v2 with all its heads (equal outputs through the exchange map);
    tests/oracles/disentangled_attention.py, and tests/oracles/deberta.py for the whole encoder and the mask decoder.
"""

from __future__ import annotations

from typing import Any

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.bert_family import (
    MASKED,
    bert_block,
    bert_heads,
    bert_rules,
    bert_settings,
    document_map,
    masked_rules,
    token_maps,
)
from orrery.nn.exchange import ExchangeMap, HeadMap, Rule, linear_rules, norm_rules


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    require(bool(hf.get("relative_attention")), "a DeBERTa without relative attention has no counterpart")
    require(hf.get("embedding_size", hf["hidden_size"]) == hf["hidden_size"], "DeBERTa's tables must be as wide as the model")
    terms = hf.get("pos_att_type") or []
    terms = [part.strip() for part in terms.lower().split("|")] if isinstance(terms, str) else list(terms)
    most, kernel = int(hf.get("max_relative_positions", -1)), int(hf.get("conv_kernel_size") or 0)
    beside = {"kernel": kernel, "groups": int(hf.get("conv_groups", 1)), "activation": hf.get("conv_act", "tanh")}
    return {
        **bert_settings(hf),
        "embedding.types": hf.get("type_vocab_size", 0),
        "embedding.positions": "learned" if hf.get("position_biased_input", True) else "none",
        "beside": beside if kernel else None,
        "mixer.terms": terms,
        "mixer.buckets": max(0, int(hf.get("position_buckets", -1))),
        "mixer.max_positions": most if most > 0 else hf["max_position_embeddings"],
        "mixer.shared_key": bool(hf.get("share_att_key", False)),
        "mixer.norm_positions": "layer_norm" in str(hf.get("norm_rel_ebd", "none")),
        "mixer.eps": hf.get("layer_norm_eps", 1e-7),
    }


def _write(own: dict[str, Any]) -> dict[str, Any]:
    block, embedding = own["blocks"][0], own["embedding"]
    mixer, channel = block["mixer"], block["channel"] or {}
    one = own["layout"] == [0] * len(own["layout"]) and block["placement"] == "post" and not block["canon"] and not own["final_norm"]
    plain = mixer["name"] == "disentangled-attention" and channel.get("name") == "mlp" and channel.get("activation") == "gelu"
    require(one and plain and embedding["norm"] and embedding["width"] is None, "DeBERTa has one kind of block, with GELU")
    require(mixer.get("shared_table", False), "DeBERTa's layers share one table of positions")
    require(mixer.get("bias", True) and mixer.get("eps", own["eps"]) == own["eps"], "DeBERTa's maps have biases, and its norms one eps")
    head, beside = own["head"] or {}, own["beside"]
    return {
        **({} if beside is None else {f"conv_{key}": beside[ours] for key, ours in _CONV.items()}),
        "hidden_size": own["width"],
        "num_hidden_layers": len(own["layout"]),
        "num_attention_heads": own["width"] // mixer["head_dim"],
        "intermediate_size": channel["hidden"],
        "vocab_size": own["vocab_size"],
        "hidden_act": "gelu",
        "layer_norm_eps": own["eps"],
        "hidden_dropout_prob": block["dropout"],
        "attention_probs_dropout_prob": mixer.get("dropout", 0.0),
        "cls_dropout": head.get("dropout"),
        "max_position_embeddings": embedding["max_positions"],
        "position_biased_input": embedding["positions"] == "learned",
        "type_vocab_size": embedding["types"],
        "initializer_range": embedding["std"],
        "relative_attention": True,
        "max_relative_positions": mixer.get("max_positions", 512),
        "position_buckets": mixer.get("buckets", 256) or -1,
        "pos_att_type": list(mixer.get("terms", ["c2p", "p2c"])),
        "share_att_key": mixer.get("shared_key", True),
        "norm_rel_ebd": "layer_norm" if mixer.get("norm_positions", True) else "none",
        "pooler_hidden_size": own["width"],
        "pooler_hidden_act": "gelu",
        "pooler_dropout": 0.0,
        "legacy": True,
        "tie_word_embeddings": head.get("tied", True),
    }


_CONV = {"kernel_size": "kernel", "groups": "groups", "act": "activation"}  # theirs -> ours


def _finish(hf: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """Their map of position keys has a bias, which changes nothing."""
    added = {f"{name.removesuffix('weight')}bias": t.new_zeros(len(t)) for name, t in tensors.items() if name.endswith("pos_key_proj.weight")}
    return {**tensors, **added}


_OWN = "deberta.encoder.layer.{i}.attention.self"
_MASKED = {**MASKED, "positions": 0}  # transformers has no enhanced mask decoder
_OLDER, _NEWER = "cls.predictions", "lm_predictions.lm_head"

EXCHANGE = ExchangeMap(
    model_type="deberta-v2",
    cls="DebertaV2Model",
    read=_read,
    write=_write,
    rules=(
        *(rule for rule in bert_rules("deberta") if ".inputs." not in rule.ours),
        *linear_rules("blocks.{i}.mixer.inputs.linear", tuple(f"{_OWN}.{part}_proj" for part in ("query", "key", "value"))),
        Rule("blocks.{i}.mixer.position_key.weight", (f"{_OWN}.pos_key_proj.weight",)),
        *linear_rules("blocks.{i}.mixer.position_query", f"{_OWN}.pos_query_proj"),
        Rule("blocks.0.mixer.positions", ("deberta.encoder.rel_embeddings.weight",)),
        *norm_rules("blocks.0.mixer.position_norm", "deberta.encoder.LayerNorm"),
        *linear_rules("beside.conv", "deberta.encoder.conv.conv"),
        *norm_rules("beside.norm", "deberta.encoder.conv.LayerNorm"),
    ),
    ignored=(
        ".embeddings.position_ids",
        ".pos_key_proj.bias",  # adds the same to all scores of a query
        *(f"mask_predictions.{part}.{kind}" for part in ("dense", "LayerNorm", "classifier") for kind in ("weight", "bias")),
    ),
    prefixes=("deberta.",),
    finish=_finish,
    heads=(
        HeadMap(
            "DebertaV2ForMaskedLM",
            _MASKED,
            masked_rules(f"{_OLDER}.transform.dense", f"{_OLDER}.transform.LayerNorm", f"{_OLDER}.decoder.weight", f"{_OLDER}.bias"),
            (f"{_OLDER}.decoder.weight", f"{_OLDER}.decoder.bias"),
            needs=f"{_OLDER}.bias",
        ),
        HeadMap(
            "DebertaV2ForMaskedLM",
            _MASKED,
            masked_rules(f"{_NEWER}.dense", f"{_NEWER}.LayerNorm", "", f"{_NEWER}.bias"),
            needs=f"{_NEWER}.bias",
        ),
        document_map(
            "DebertaV2ForSequenceClassification", "gelu", "pooler.dense", "classifier", dropout=("cls_dropout", "hidden_dropout_prob")
        ),
        *token_maps("DebertaV2", dropout=("hidden_dropout_prob",)),
    ),
)

ARCHITECTURE = Architecture(
    block=bert_block(1e-7, {"name": "disentangled-attention", "shared_table": True}),
    kind="encoder",
    frame={"norm": "layernorm", "eps": 1e-7, "final_norm": False, "embedding.norm": True},
    heads={**bert_heads("gelu"), "replaced-tokens": {"transform": "gelu"}},
    head="mixer.head_dim",
    fine_ratio=4.0,
    presets={
        "deberta-v3-xsmall": {"width": 384, "depth": 12, "vocab_size": 128100},
        "deberta-v3-small": {"width": 768, "depth": 6, "vocab_size": 128100},
        "deberta-v3-base": {"width": 768, "depth": 12, "vocab_size": 128100},
        "deberta-v3-large": {"width": 1024, "depth": 24, "vocab_size": 128100},
        "deberta-v2-xlarge": {"width": 1536, "depth": 24, "vocab_size": 128100, "beside": {"kernel": 3, "groups": 1, "activation": "gelu"}},
    },
    exchange=(EXCHANGE,),
)

register(
    "deberta",
    architecture="ARCHITECTURE",
    summary="DeBERTa v2 and v3: disentangled attention to content and relative position",
    paper="2006.03654",
    year=2020,
    tags=("bidirectional", "parallel", "encoder"),
    presets=("deberta-v3-xsmall", "deberta-v3-small", "deberta-v3-base", "deberta-v3-large", "deberta-v2-xlarge"),
    exchange=("deberta-v2",),
)
