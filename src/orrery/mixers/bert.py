"""BERT: the encoder of 2018, pre-trained by filling in masked words.

Paper: BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding (arXiv 1810.04805).

Equation:  h = LN(E[token] + P[position] + S[type]);  x = LN(x + attention(x));  x = LN(x + W2 gelu(W1 x))
    masked-lm:  logits = E LN(gelu(W h)) + b;   classification:  W2 tanh(W1 h_first) + b

Shapes: B batch, T time, D width, H heads, K head dimension 64, F hidden size 4 D.

Cost: O(T^2) attention beside 12 D^2 a token and layer; at most `max_positions` tokens; no state.

Differs from the paper: no next-sentence head (RoBERTa 1907.11692 finds it needless); dropout is 0 unless asked for (0.1 in
    the paper), so that comparisons are of architectures; matrices are normal, not truncated normal, with std 0.02.

Oracle: transformers' BERT with all its heads (equal outputs through the exchange map); tests/oracles/bert.py.
"""

from __future__ import annotations

from typing import Any

from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.exchange import (
    ExchangeMap,
    HeadMap,
    Rule,
    bert_config,
    bert_rules,
    bert_settings,
    linear_rules,
    norm_rules,
)


def _write(own: dict[str, Any]) -> dict[str, Any]:
    return bert_config(own, "BERT")


_MASKED = (
    *linear_rules("head.dense", "cls.predictions.transform.dense"),
    *norm_rules("head.norm", "cls.predictions.transform.LayerNorm"),
    Rule("head.out.weight", ("cls.predictions.decoder.weight",)),
    Rule("head.out.bias", ("cls.predictions.bias",)),
)
_MLM = {"name": "masked-lm", "transform": "gelu", "norm": True}
_TIED = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
_POOLER = ("pooler.dense.weight", "pooler.dense.bias")
_POOLED = {"pool": "first", "transform": "tanh", "norm": False}

EXCHANGE = ExchangeMap(
    model_type="bert",
    cls="BertModel",
    read=bert_settings,
    write=_write,
    rules=bert_rules("bert"),
    ignored=(".embeddings.position_ids", ".embeddings.token_type_ids"),
    prefixes=("bert.",),
    heads=(
        HeadMap("BertForMaskedLM", _MLM, _MASKED, (*_TIED, *_POOLER)),
        HeadMap("BertForPreTraining", _MLM, _MASKED, (*_TIED, *_POOLER, "cls.seq_relationship.weight", "cls.seq_relationship.bias")),
        HeadMap(
            "BertForSequenceClassification",
            {"name": "classification", **_POOLED},
            (*linear_rules("head.dense", "bert.pooler.dense"), *linear_rules("head.out", "classifier")),
            labelled=True,
        ),
        HeadMap(
            "BertForTokenClassification",
            {"name": "tagging", "crf": False, "transform": ""},
            linear_rules("head.out", "classifier"),
            _POOLER,
            labelled=True,
        ),
        HeadMap("BertForQuestionAnswering", {"name": "span", "transform": ""}, linear_rules("head.out", "qa_outputs"), _POOLER),
        HeadMap(
            "BertModel",
            {"name": "embedding", **_POOLED, "size": None, "normalise": False},
            linear_rules("head.dense", "bert.pooler.dense"),
            needs="bert.pooler.dense.weight",
        ),
    ),
)

ARCHITECTURE = Architecture(
    block=BlockConfig(
        mixer={"name": "bidirectional-attention", "rope": 0.0, "bias": True, "init_std": 0.02, "init_scaled": False},
        channel={"name": "mlp", "activation": "gelu", "bias": True, "init_std": 0.02, "init_scaled": False},
        norm="layernorm",
        eps=1e-12,
        placement="post",
    ),
    kind="encoder",
    frame={
        "norm": "layernorm",
        "eps": 1e-12,
        "final_norm": False,
        "embedding.positions": "learned",
        "embedding.max_positions": 512,
        "embedding.types": 2,
        "embedding.norm": True,
    },
    heads={
        "masked-lm": {"transform": "gelu", "norm": True},
        "classification": {"pool": "first", "transform": "tanh"},
        "multi-label": {"pool": "first", "transform": "tanh"},
        "regression": {"pool": "first", "transform": "tanh"},
        "ordinal": {"pool": "first", "transform": "tanh"},
    },
    head="mixer.head_dim",
    fine_ratio=4.0,
    presets={
        "bert-mini": {"width": 256, "depth": 4, "vocab_size": 30522},
        "bert-base": {"width": 768, "depth": 12, "vocab_size": 30522},
        "bert-large": {"width": 1024, "depth": 24, "vocab_size": 30522},
    },
    exchange=(EXCHANGE,),
)

register(
    "bert",
    architecture="ARCHITECTURE",
    summary="BERT: a post-norm encoder with learned positions, pre-trained by masked words",
    paper="1810.04805",
    year=2018,
    tags=("bidirectional", "parallel", "encoder"),
    presets=("bert-mini", "bert-base", "bert-large"),
    exchange=("bert",),
)
