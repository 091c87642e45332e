"""ELECTRA: an encoder that learns to tell which tokens a small generator has replaced.

Paper: ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators (arXiv 2003.10555).

Equation: h = U LN(E[token] + P[position] + S[type]), U from the table's width to D, where they differ; layers as BERT's.
    discriminator:  p(replaced) = sigmoid(w . gelu(W h) + b);   generator (masked-lm):  logits = E LN(gelu(W h)) + b
    classification:  W2 gelu(W1 h_first) + b

Shapes: B batch, T time, D width, E width of the tables (128 in the small model), H heads, K head dimension 64, F 4 D.

Cost: as BERT's; the objective `replaced-tokens` trains a generator of a quarter to a half of the size beside it.

Differs from the paper: dropout is 0 unless asked for; matrices are normal, not truncated normal. The tables are as wide as the
    model unless `embed_width` or a preset says otherwise.

Oracle: transformers' ELECTRA, generator, discriminator and task heads (equal outputs through the exchange map).
"""

from __future__ import annotations

from typing import Any

from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.bert_family import (
    MASKED,
    bert_block,
    bert_config,
    bert_frame,
    bert_heads,
    bert_rules,
    bert_settings,
    document_map,
    masked_rules,
    token_maps,
)
from orrery.nn.exchange import ExchangeMap, HeadMap, linear_rules


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    narrow = hf.get("embedding_size", hf["hidden_size"])
    return {**bert_settings(hf), "embedding.width": None if narrow == hf["hidden_size"] else narrow}


def _write(own: dict[str, Any]) -> dict[str, Any]:
    return {**bert_config(own, "ELECTRA"), "embedding_size": own["embedding"]["width"] or own["width"]}


EXCHANGE = ExchangeMap(
    model_type="electra",
    cls="ElectraModel",
    read=_read,
    write=_write,
    rules=(*bert_rules("electra"), *linear_rules("embed_map", "electra.embeddings_project")),
    ignored=(".embeddings.position_ids", ".embeddings.token_type_ids"),
    prefixes=("electra.",),
    heads=(
        HeadMap(
            "ElectraForPreTraining",
            {"name": "replaced-tokens", "transform": "gelu", "norm": False},
            (
                *linear_rules("head.dense", "discriminator_predictions.dense"),
                *linear_rules("head.out", "discriminator_predictions.dense_prediction"),
            ),
        ),
        HeadMap(
            "ElectraForMaskedLM",
            MASKED,
            masked_rules(
                "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.weight", "generator_lm_head.bias"
            ),
            ("generator_lm_head.weight",),
        ),
        document_map("ElectraForSequenceClassification", "gelu", "classifier.dense", "classifier.out_proj", twice=True),
        *token_maps("Electra"),
    ),
)

ARCHITECTURE = Architecture(
    block=bert_block(1e-12),
    kind="encoder",
    frame=bert_frame(1e-12, types=2),
    heads=bert_heads("gelu", "replaced-tokens", twice=True),
    head="mixer.head_dim",
    fine_ratio=4.0,
    presets={
        "electra-small": {"width": 256, "depth": 12, "embed_width": 128, "vocab_size": 30522},
        "electra-base": {"width": 768, "depth": 12, "vocab_size": 30522},
        "electra-large": {"width": 1024, "depth": 24, "vocab_size": 30522},
    },
    exchange=(EXCHANGE,),
)

register(
    "electra",
    architecture="ARCHITECTURE",
    summary="ELECTRA: BERT's layers behind narrower tables, pre-trained to find replaced tokens",
    paper="2003.10555",
    year=2020,
    tags=("bidirectional", "parallel", "encoder"),
    presets=("electra-small", "electra-base", "electra-large"),
    exchange=("electra",),
)
