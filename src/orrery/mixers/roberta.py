"""RoBERTa: BERT, trained longer on whole documents with masks drawn anew every time.

Paper: RoBERTa: A Robustly Optimized BERT Pretraining Approach (arXiv 1907.11692); CamemBERT (1911.03894) and XLM-R (1911.02116)
    are the same architecture.

Equation: as BERT's, without sentence types;  classification:  W2 tanh(W1 h_first) + b, both of the head

Shapes: B batch, T time, D width, H heads, K head dimension 64, F hidden size 4 D.

Cost: as BERT's.

Differs from the paper: positions begin at 0; published checkpoints begin behind the padding id, which the exchange takes away and,
    of those, puts back. A model that is drawn here has no padding id, and is written with -1, lest a token of its text lose its
    position. Dropout is 0 unless asked for.

Oracle: transformers' RoBERTa, CamemBERT and XLM-RoBERTa with all their heads (equal outputs through the exchange maps).
"""

from __future__ import annotations

from typing import Any

import torch

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

_POSITIONS = "roberta.embeddings.position_embeddings.weight"
_PADDING = 1  # the padding id of all published checkpoints; their first position is the one behind it
_NONE = -1  # for transformers an id that no text has, so that every token takes a position


def _offset(hf: dict[str, Any]) -> int:
    padding = hf.get("pad_token_id")
    return (_PADDING if padding is None else int(padding)) + 1


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    padding = _offset(hf) - 1
    places = {"embedding.max_positions": hf["max_position_embeddings"] - padding - 1}
    return {**bert_settings(hf), **places, "embedding.padding": None if padding == _NONE else padding}


def _write(own: dict[str, Any]) -> dict[str, Any]:
    config, padding = bert_config(own, "RoBERTa"), own["embedding"].get("padding")
    padding = _NONE if padding is None else padding
    config["max_position_embeddings"] += padding + 1
    return {**config, "pad_token_id": padding, "bos_token_id": 0, "eos_token_id": 2}


def _prepare(hf: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    return {**tensors, _POSITIONS: tensors[_POSITIONS][_offset(hf) :]}


def _finish(hf: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    table = tensors[_POSITIONS]
    return {**tensors, _POSITIONS: torch.cat([table.new_zeros(_offset(hf), table.shape[1]), table])}


_RULES = masked_rules("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder.weight", "lm_head.bias")


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
            HeadMap(f"{prefix}ForMaskedLM", MASKED, _RULES, ("lm_head.decoder.weight", "lm_head.decoder.bias", *POOLER)),
            document_map(f"{prefix}ForSequenceClassification", "tanh", "classifier.dense", "classifier.out_proj", POOLER, twice=True),
            *token_maps(prefix, POOLER),
            pooler_map(f"{prefix}Model", "roberta.pooler.dense"),
        ),
    )


ARCHITECTURE = Architecture(
    block=bert_block(1e-5),
    kind="encoder",
    frame=bert_frame(1e-5, types=1),
    heads=bert_heads("tanh", twice=True),
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
