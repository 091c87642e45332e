"""DistilBERT: half of BERT's layers, without token types, begun from the teacher's own layers.

Paper: DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter (arXiv 1910.01108).

Equation: as BERT's, h = LN(E[token] + P[position]);  classification:  W2 relu(W1 h_first) + b

Shapes: B batch, T time, D width, H heads, K head dimension 64, F hidden size 4 D.

Cost: half of BERT's at equal width.

Differs from the paper: dropout is 0 unless asked for; drawn anew unless :func:`orrery.methods.distil.distil_start` takes a
    teacher's layers; the triple loss is the objective `distilled-masked-lm` (`orrery pretrain distilbert --teacher ...`).

Oracle: transformers' DistilBERT with all its heads (equal outputs through the exchange map).
"""

from __future__ import annotations

from typing import Any

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.bert_family import (
    MASKED,
    bert_block,
    bert_config,
    bert_frame,
    bert_heads,
    bert_settings,
    document_map,
    masked_rules,
    token_maps,
)
from orrery.nn.exchange import ExchangeMap, HeadMap, Rule, linear_rules, norm_rules

_NAMES = {  # theirs -> BERT's
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "initializer_range": "initializer_range",
    "tie_word_embeddings": "tie_word_embeddings",
}


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    same = {bert: hf[name] for name, bert in _NAMES.items() if name in hf}
    return bert_settings({**same, "type_vocab_size": 0, "layer_norm_eps": 1e-12})


def _write(own: dict[str, Any]) -> dict[str, Any]:
    require(own["embedding"]["types"] == 0, "DistilBERT has no token types")
    require(own["eps"] == 1e-12, f"DistilBERT's norms have eps 1e-12, not {own['eps']}")
    config = bert_config(own, "DistilBERT")
    found = {name: config[bert] for name, bert in _NAMES.items()}
    dropout = config["classifier_dropout"]
    return {**found, "sinusoidal_pos_embds": False, "seq_classif_dropout": dropout or 0.0, "qa_dropout": dropout or 0.0}


_TABLE, _LAYER = "distilbert.embeddings", "distilbert.transformer.layer.{i}"

EXCHANGE = ExchangeMap(
    model_type="distilbert",
    cls="DistilBertModel",
    read=_read,
    write=_write,
    rules=(
        Rule("embed.weight", (f"{_TABLE}.word_embeddings.weight",)),
        Rule("position_embed.weight", (f"{_TABLE}.position_embeddings.weight",)),
        *norm_rules("embed_norm", f"{_TABLE}.LayerNorm"),
        *linear_rules("blocks.{i}.mixer.inputs.linear", tuple(f"{_LAYER}.attention.{part}_lin" for part in "qkv")),
        *linear_rules("blocks.{i}.mixer.out", f"{_LAYER}.attention.out_lin"),
        *norm_rules("blocks.{i}.mixer_norm", f"{_LAYER}.sa_layer_norm"),
        *linear_rules("blocks.{i}.channel.wide", f"{_LAYER}.ffn.lin1"),
        *linear_rules("blocks.{i}.channel.out", f"{_LAYER}.ffn.lin2"),
        *norm_rules("blocks.{i}.channel_norm", f"{_LAYER}.output_layer_norm"),
    ),
    ignored=(".embeddings.position_ids",),
    prefixes=("distilbert.",),
    heads=(
        HeadMap(
            "DistilBertForMaskedLM",
            MASKED,
            masked_rules("vocab_transform", "vocab_layer_norm", "vocab_projector.weight", "vocab_projector.bias"),
            ("vocab_projector.weight",),
        ),
        document_map("DistilBertForSequenceClassification", "relu", "pre_classifier", "classifier", dropout=("seq_classif_dropout",)),
        *token_maps("DistilBert", dropout=("dropout",), asked=("qa_dropout",)),
    ),
)

ARCHITECTURE = Architecture(
    block=bert_block(1e-12),
    kind="encoder",
    frame=bert_frame(1e-12),
    heads=bert_heads("relu"),
    depth_factor=0.5,
    head="mixer.head_dim",
    fine_ratio=4.0,
    presets={"distilbert-base": {"width": 768, "depth": 6, "vocab_size": 30522}},
    exchange=(EXCHANGE,),
)

register(
    "distilbert",
    architecture="ARCHITECTURE",
    summary="DistilBERT: half of BERT's layers, begun from a teacher's",
    paper="1910.01108",
    year=2019,
    tags=("bidirectional", "parallel", "encoder"),
    presets=("distilbert-base",),
    exchange=("distilbert",),
)
