"""RoBERTa: BERT, trained longer on whole documents with masks drawn anew every time.

Paper: RoBERTa: A Robustly Optimized BERT Pretraining Approach (arXiv 1907.11692); CamemBERT (1911.03894) and XLM-R (1911.02116)
    are the same architecture.

Equation: as BERT's, without sentence types;  classification:  W2 tanh(W1 h_first) + b, both of the head

Shapes: B batch, T time, D width, H heads, K head dimension 64, F hidden size 4 D.

Cost: as BERT's.

Differs from the paper: positions begin at 0; published checkpoints begin behind the padding id, which the exchange takes away.
    Dropout is 0 unless asked for.

Oracle: transformers' RoBERTa, CamemBERT and XLM-RoBERTa with all their heads (equal outputs through the exchange maps).
"""

from __future__ import annotations

from typing import Any

import torch

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

_POSITIONS = "roberta.embeddings.position_embeddings.weight"
_PADDING = 1  # the padding id of all published checkpoints; their first position is the one behind it


def _offset(hf: dict[str, Any]) -> int:
    padding = hf.get("pad_token_id")
    return (_PADDING if padding is None else int(padding)) + 1


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    return {**bert_settings(hf), "embedding.max_positions": hf["max_position_embeddings"] - _offset(hf)}


def _write(own: dict[str, Any]) -> dict[str, Any]:
    config = bert_config(own, "RoBERTa")
    config["max_position_embeddings"] += _PADDING + 1
    return {**config, "pad_token_id": _PADDING, "bos_token_id": 0, "eos_token_id": 2}


def _prepare(hf: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    return {**tensors, _POSITIONS: tensors[_POSITIONS][_offset(hf) :]}


def _finish(hf: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    table = tensors[_POSITIONS]
    return {**tensors, _POSITIONS: torch.cat([table.new_zeros(_PADDING + 1, table.shape[1]), table])}


_MLM = {"name": "masked-lm", "transform": "gelu", "norm": True}
_POOLER = ("pooler.dense.weight", "pooler.dense.bias")
_POOLED = {"pool": "first", "transform": "tanh", "norm": False}


def _exchange(model_type: str, prefix: str) -> ExchangeMap:
    return ExchangeMap(
        model_type=model_type,
        cls=f"{prefix}Model",
        read=_read,
        write=_write,
        rules=bert_rules("roberta"),
        ignored=(".embeddings.position_ids", ".embeddings.token_type_ids"),
        prefixes=("roberta.",),
        prepare=_prepare,
        finish=_finish,
        heads=(
            HeadMap(
                f"{prefix}ForMaskedLM",
                _MLM,
                (
                    *linear_rules("head.dense", "lm_head.dense"),
                    *norm_rules("head.norm", "lm_head.layer_norm"),
                    Rule("head.out.weight", ("lm_head.decoder.weight",)),
                    Rule("head.out.bias", ("lm_head.bias",)),
                ),
                ("lm_head.decoder.weight", "lm_head.decoder.bias", *_POOLER),
            ),
            HeadMap(
                f"{prefix}ForSequenceClassification",
                {"name": "classification", **_POOLED},
                (*linear_rules("head.dense", "classifier.dense"), *linear_rules("head.out", "classifier.out_proj")),
                _POOLER,
                labelled=True,
            ),
            HeadMap(
                f"{prefix}ForTokenClassification",
                {"name": "tagging", "crf": False, "transform": ""},
                linear_rules("head.out", "classifier"),
                _POOLER,
                labelled=True,
            ),
            HeadMap(f"{prefix}ForQuestionAnswering", {"name": "span", "transform": ""}, linear_rules("head.out", "qa_outputs"), _POOLER),
            HeadMap(
                f"{prefix}Model",
                {"name": "embedding", **_POOLED, "size": None, "normalise": False},
                linear_rules("head.dense", "roberta.pooler.dense"),
                needs="roberta.pooler.dense.weight",
            ),
        ),
    )


ARCHITECTURE = Architecture(
    block=BlockConfig(
        mixer={"name": "bidirectional-attention", "rope": 0.0, "bias": True, "init_std": 0.02, "init_scaled": False},
        channel={"name": "mlp", "activation": "gelu", "bias": True, "init_std": 0.02, "init_scaled": False},
        norm="layernorm",
        eps=1e-5,
        placement="post",
    ),
    kind="encoder",
    frame={
        "norm": "layernorm",
        "eps": 1e-5,
        "final_norm": False,
        "embedding.positions": "learned",
        "embedding.max_positions": 512,
        "embedding.types": 1,
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
        "roberta-base": {"width": 768, "depth": 12, "vocab_size": 50265},
        "roberta-large": {"width": 1024, "depth": 24, "vocab_size": 50265},
    },
    exchange=(_exchange("roberta", "Roberta"), _exchange("camembert", "Camembert"), _exchange("xlm-roberta", "XLMRoberta")),
)

register(
    "roberta",
    architecture="ARCHITECTURE",
    summary="RoBERTa: BERT's architecture without sentence types",
    paper="1907.11692",
    year=2019,
    tags=("bidirectional", "parallel", "encoder"),
    presets=("roberta-base", "roberta-large"),
    exchange=("roberta", "camembert", "xlm-roberta"),
)
