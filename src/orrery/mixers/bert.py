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

from dataclasses import replace
from typing import Any

from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.bert_family import (
    MASKED,
    POOLER,
    bert_block,
    bert_config,
    bert_frame,
    bert_heads,
    bert_rules,
    bert_settings,
    document_map,
    masked_rules,
    pooler_map,
    token_maps,
)
from orrery.nn.exchange import ExchangeMap, HeadMap


def _write(own: dict[str, Any]) -> dict[str, Any]:
    return bert_config(own, "BERT")


_PREDICTIONS = "cls.predictions"
_RULES = masked_rules(
    f"{_PREDICTIONS}.transform.dense", f"{_PREDICTIONS}.transform.LayerNorm", f"{_PREDICTIONS}.decoder.weight", f"{_PREDICTIONS}.bias"
)
_UNUSED = (f"{_PREDICTIONS}.decoder.weight", f"{_PREDICTIONS}.decoder.bias", *POOLER)

_DOCUMENT = document_map("BertForNextSentencePrediction", "tanh", "bert.pooler.dense", "cls.seq_relationship")
_CHOICE = document_map("BertForMultipleChoice", "tanh", "bert.pooler.dense", "classifier")
_CHOICE = replace(_CHOICE, head={**(_CHOICE.head or {}), "name": "multiple-choice", "labels": 1}, labelled=False)
_NEXT = replace(_DOCUMENT, head={**(_DOCUMENT.head or {}), "labels": 2, "names": ["next", "random"]}, labelled=False, read=None)

EXCHANGE = ExchangeMap(
    model_type="bert",
    cls="BertModel",
    read=bert_settings,
    write=_write,
    rules=bert_rules("bert"),
    ignored=(".embeddings.position_ids", ".embeddings.token_type_ids"),
    prefixes=("bert.",),
    heads=(
        HeadMap("BertForMaskedLM", MASKED, _RULES, _UNUSED),
        HeadMap("BertForPreTraining", MASKED, _RULES, (*_UNUSED, "cls.seq_relationship.weight", "cls.seq_relationship.bias")),
        document_map("BertForSequenceClassification", "tanh", "bert.pooler.dense", "classifier"),
        _NEXT,
        _CHOICE,
        *token_maps("Bert", POOLER),
        pooler_map("BertModel", "bert.pooler.dense"),
    ),
)

ARCHITECTURE = Architecture(
    block=bert_block(1e-12),
    kind="encoder",
    frame=bert_frame(1e-12, types=2),
    heads=bert_heads("tanh"),
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
