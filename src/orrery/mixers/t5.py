"""T5: one encoder-decoder for every task that can be written as text to text.

Paper: Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer (arXiv 1910.10683); version 1.1: gated GELU
    (2002.05202) and an untied head; mT5 (2010.11934) is version 1.1.

Equation:  encoder:  x += attention(norm(x));  x += W2 relu(W1 norm(x))
    decoder:  x += attention(norm(x));  x += cross(norm(x), memory);  x += W2 relu(W1 norm(x));   logits = W norm(x)
    attention's scores  q_t . k_s + w[bucket(s - t)],  w held by each stack's first layer;  norm: RMSNorm without mean or bias

Shapes: B batch, S source, U target, D width, H heads, K head dimension, F hidden size (4 D; 8/3 D gated).

Cost: encoder once, O(S^2); decoder O(U^2 + U S); decoding keeps 2 H K (U + S) numbers a layer, those of the memory computed once.

Differs from the paper: the scores' missing 1/sqrt(K) stands in the queries' weights, and version 1.0's division of the logits
    by sqrt(D) in the decoder's last norm; initialisation by width (std sqrt(2 / 5D)) instead of Mesh TensorFlow's; dropout is 0
    unless asked for, and stands behind parts only.

Oracle: transformers' T5 and mT5 (equal logits and greedy generation through the exchange maps); tests/oracles/relative.py.
"""

from __future__ import annotations

from typing import Any

import torch

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.exchange import ExchangeMap, HeadMap, Rule, linear_rules, pair_heads

_HEADED = ("ForSequenceClassification", "ForQuestionAnswering")  # endings of classes whose head reads the decoder
_BODY, _BEHIND_BODY = "transformer.", "ForSequenceClassification"  # what their names of the body begin with there, and there only
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu-tanh", "silu": "silu"}


def _headed(hf: dict[str, Any]) -> bool:
    """Whether a head reads the decoder."""
    return str(next(iter(hf.get("architectures") or ()), "")).endswith(_HEADED)


def _scaled(hf: dict[str, Any]) -> bool:
    """Whether logits are divided by sqrt(D): version 1.0, whose head is the embedding; a task's head reads undivided states."""
    plain = hf.get("model_type") != "mt5" and not _headed(hf)
    return plain and bool(hf.get("scale_decoder_outputs", hf.get("tie_word_embeddings", True)))


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    kind = hf.get("feed_forward_proj", "relu")
    gated, name = kind.startswith("gated-"), kind.removeprefix("gated-")
    name = "gelu_new" if kind == "gated-gelu" else name
    require(name in _ACTIVATIONS, f"no counterpart for feed_forward_proj '{kind}'")
    return {
        "width": hf["d_model"],
        "depth": hf["num_layers"],
        "vocab_size": hf["vocab_size"],
        "heads": hf["num_heads"],
        "head_dim": hf["d_kv"],
        "mixer.relative": [hf.get("relative_attention_num_buckets", 32), hf.get("relative_attention_max_distance", 128)],
        "channel.name": "glu" if gated else "mlp",
        "channel.hidden": hf["d_ff"],
        "channel.activation": _ACTIVATIONS[name],
        "eps": hf.get("layer_norm_epsilon", 1e-6),
        "dropout": hf.get("dropout_rate", 0.0),
    }


def _read_pair(hf: dict[str, Any]) -> dict[str, Any]:
    return {
        **_read(hf),
        "decoder.depth": hf.get("num_decoder_layers") or hf["num_layers"],
        "decoder.tied": _scaled(hf) or _headed(hf),
        "small_logits": _scaled(hf),
        "start": hf.get("decoder_start_token_id") or 0,
        "stop": hf.get("eos_token_id", 1),
    }


def _write(stack: dict[str, Any]) -> dict[str, Any]:
    """Their config of one of our stacks."""
    block = stack["blocks"][0]
    mixer, channel = block["mixer"], block["channel"]
    one = stack["layout"] == [0] * len(stack["layout"]) and block["placement"] == "pre" and block["norm"] == "rmsnorm"
    require(one and not block["canon"], "T5 has one kind of block in each stack")
    plain = mixer.get("relative") and not mixer.get("rope", 1.0) and not mixer.get("bias")
    require(bool(plain) and not mixer.get("kv_heads"), "T5's attention has relative positions and nothing else")
    name = {v: k for k, v in _ACTIVATIONS.items()}[channel.get("activation", "silu")]
    kind = "gated-gelu" if (channel["name"], name) == ("glu", "gelu_new") else f"{'gated-' if channel['name'] == 'glu' else ''}{name}"
    return {
        "vocab_size": stack["vocab_size"],
        "d_model": stack["width"],
        "d_kv": mixer["head_dim"],
        "num_heads": mixer.get("heads") or stack["width"] // mixer["head_dim"],
        "d_ff": channel["hidden"],
        "num_layers": len(stack["layout"]),
        "relative_attention_num_buckets": mixer["relative"][0],
        "relative_attention_max_distance": mixer["relative"][1],
        "feed_forward_proj": kind,
        "layer_norm_epsilon": stack["eps"],
        "dropout_rate": block["dropout"],
        "pad_token_id": 0,
    }


def _write_pair(own: dict[str, Any]) -> dict[str, Any]:
    encoder, decoder, head = own["encoder"], own["decoder"], own["head"]
    divided = decoder["tied"] == own["small_logits"] or head is not None
    require(divided and own["shared"], "T5 divides its logits where, and only where, the head is tied")
    first = encoder["blocks"][0]["channel"]["name"] == "mlp"  # version 1.0
    return {
        **_write(decoder),
        **_write(encoder),
        "num_decoder_layers": len(decoder["layout"]),
        "layer_norm_epsilon": decoder["eps"],
        "dropout_rate": decoder["blocks"][0]["dropout"],
        "tie_word_embeddings": decoder["tied"] if head is None else first,
        **({} if head is None else {"classifier_dropout": head.get("dropout", 0.0), "use_cache": False}),
        "is_encoder_decoder": True,
        "decoder_start_token_id": own["start"],
        "eos_token_id": own["stop"],
    }


def _write_encoder(own: dict[str, Any]) -> dict[str, Any]:
    plain = own["embedding"]["positions"] == "none" and not own["embedding"]["norm"] and own["final_norm"]
    require(plain and own["embedding"]["width"] is None and not own["embedding"]["types"], "T5's embedding has nothing beside its table")
    head = own["head"] or {}
    return {**_write(own), "is_encoder_decoder": False, "use_cache": False, "classifier_dropout": head.get("dropout", 0.0)}


def _prepare(hf: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """The constant factors go into the weights, and both halves of a gate become one matrix."""
    found: dict[str, Any] = {}
    if _headed(hf):
        tensors = {name.removeprefix(_BODY): tensor for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if name.endswith((".SelfAttention.q.weight", ".EncDecAttention.q.weight")):
            tensor = tensor * hf["d_kv"] ** 0.5
        if name == "decoder.final_layer_norm.weight" and _scaled(hf):
            tensor = tensor * hf["d_model"] ** -0.5
        if name.endswith("wi_0.weight"):
            name, tensor = name.replace("wi_0", "wi"), torch.cat([tensor, tensors[name.replace("wi_0", "wi_1")]])
        if not name.endswith("wi_1.weight"):
            found[name] = tensor
    return found


def _finish(hf: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, tensor in tensors.items():
        if name.endswith((".SelfAttention.q.weight", ".EncDecAttention.q.weight")):
            tensor = tensor / hf["d_kv"] ** 0.5
        if name == "decoder.final_layer_norm.weight" and _scaled(hf):
            tensor = tensor * hf["d_model"] ** 0.5
        if name.endswith("wi.weight") and hf["feed_forward_proj"].startswith("gated-"):
            gate, up = tensor.chunk(2)
            found.update({name.replace("wi.", "wi_0."): gate, name.replace("wi.", "wi_1."): up})
            continue
        found[name] = tensor
    if _headed(hf) and hf["architectures"][0].endswith(_BEHIND_BODY):
        return {name if name.startswith("classification_head.") else _BODY + name: tensor for name, tensor in found.items()}
    return found


def _stack(side: str, alone: bool = False) -> tuple[Rule, ...]:
    """Rules for one stack, or for an encoder alone; a decoder's feed-forward network is its third sub-layer."""
    home, prefix = ("", f"transformer.{side}") if alone else (f"{side}.", side)
    ours, theirs = f"{home}blocks.{{i}}", f"{prefix}.block.{{i}}.layer"
    own, last = f"{theirs}.0.SelfAttention", 2 if side == "decoder" else 1
    reading = f"{theirs}.1.EncDecAttention"
    table = Rule(f"{home}blocks.0.mixer.relative.weight", (f"{prefix}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",))
    cross = (
        Rule(f"{ours}.cross_norm.weight", (f"{theirs}.1.layer_norm.weight",)),
        *linear_rules(f"{ours}.cross.query", f"{reading}.q"),
        *linear_rules(f"{ours}.cross.memory", (f"{reading}.k", f"{reading}.v")),
        *linear_rules(f"{ours}.cross.out", f"{reading}.o"),
    )
    return (
        table,
        Rule(f"{ours}.mixer_norm.weight", (f"{theirs}.0.layer_norm.weight",)),
        *linear_rules(f"{ours}.mixer.inputs.linear", (f"{own}.q", f"{own}.k", f"{own}.v")),
        *linear_rules(f"{ours}.mixer.out", f"{own}.o"),
        *(cross if side == "decoder" else ()),
        Rule(f"{ours}.channel_norm.weight", (f"{theirs}.{last}.layer_norm.weight",)),
        *linear_rules(f"{ours}.channel.wide", f"{theirs}.{last}.DenseReluDense.wi"),
        *linear_rules(f"{ours}.channel.out", f"{theirs}.{last}.DenseReluDense.wo"),
        Rule(f"{home}norm.weight", (f"{prefix}.final_layer_norm.weight",)),
    )


def _exchange(model_type: str, cls: str) -> ExchangeMap:
    return ExchangeMap(
        model_type=model_type,
        cls=cls,
        read=_read_pair,
        write=_write_pair,
        rules=(
            Rule("encoder.embed.weight", ("shared.weight",)),
            *_stack("encoder"),
            *_stack("decoder"),
            Rule("decoder.head.weight", ("lm_head.weight",)),
        ),
        ignored=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
        prepare=_prepare,
        finish=_finish,
        heads=pair_heads(cls.removesuffix("ForConditionalGeneration")),
    )


def _encoder_exchange(model_type: str, prefix: str) -> ExchangeMap:
    tags = {"name": "tagging", "crf": False, "transform": "", "norm": False}
    return ExchangeMap(
        model_type=model_type,
        cls=f"{prefix}EncoderModel",
        read=_read,
        write=_write_encoder,
        rules=(Rule("embed.weight", ("transformer.shared.weight",)), *_stack("encoder", alone=True)),
        ignored=("encoder.embed_tokens.weight",),
        prefixes=("transformer.",),
        prepare=_prepare,
        finish=_finish,
        heads=(HeadMap(f"{prefix}ForTokenClassification", tags, linear_rules("head.out", "classifier"), labelled=True),),
    )


def _architecture(channel: dict[str, Any], tied: bool, exchange: tuple[ExchangeMap, ...], presets: dict[str, Any]) -> Architecture:
    positions = {"rope": 0.0, "relative": [32, 128]}
    return Architecture(
        block=BlockConfig(mixer={"name": "bidirectional-attention", **positions}, channel=channel),
        decoder=BlockConfig(mixer={"name": "attention", **positions}, cross={"name": "cross-attention"}, channel=channel),
        kind="encoder-decoder",
        frame={
            "norm": "rmsnorm",
            "encoder.embedding.std": 1.0,
            "decoder.embed_std": 1.0,
            "decoder.tied": tied,
        },
        pair={"shared": True, "small_logits": tied, "start": 0, "stop": 1},
        head="mixer.head_dim",
        fine_ratio=4.0 if channel["name"] == "mlp" else 8 / 3,
        presets=presets,
        exchange=exchange,
    )


def _size(width: int, depth: int, heads: int, hidden: int) -> dict[str, Any]:
    return {"width": width, "depth": depth, "heads": heads, "head_dim": 64, "channel.hidden": hidden, "vocab_size": 32128}


T5 = _architecture(
    {"name": "mlp", "activation": "relu"},
    True,
    (_exchange("t5", "T5ForConditionalGeneration"),),
    {"t5-small": _size(512, 6, 8, 2048), "t5-base": _size(768, 12, 12, 3072), "t5-large": _size(1024, 24, 16, 4096)},
)
T5_V11 = _architecture(
    {"name": "glu", "activation": "gelu-tanh"},
    False,
    (_exchange("mt5", "MT5ForConditionalGeneration"), _exchange("t5", "T5ForConditionalGeneration")),
    {"t5-v1.1-small": _size(512, 8, 6, 1024), "t5-v1.1-base": _size(768, 12, 12, 2048)},
)

T5_ENCODER = Architecture(
    block=T5.block,
    kind="encoder",
    frame={"norm": "rmsnorm", "embedding.std": 1.0},
    heads={"masked-lm": {"transform": "", "norm": False}, "embedding": {"pool": "mean"}, "tagging": {}},
    head="mixer.head_dim",
    fine_ratio=4.0,
    exchange=(_encoder_exchange("t5", "T5"), _encoder_exchange("mt5", "MT5")),
)

register(
    "t5",
    architecture="T5",
    summary="T5: text to text by an encoder and a decoder with relative positions",
    paper="1910.10683",
    year=2019,
    tags=("encoder-decoder", "parallel"),
    presets=("t5-small", "t5-base", "t5-large"),
    exchange=("t5",),
)
register(
    "t5-v1.1",
    architecture="T5_V11",
    summary="T5 version 1.1 and mT5: gated GELU, head of its own",
    paper="2010.11934",
    year=2020,
    tags=("encoder-decoder", "parallel"),
    presets=("t5-v1.1-small", "t5-v1.1-base"),
    exchange=("mt5",),
)
register(
    "t5-encoder",
    architecture="T5_ENCODER",
    summary="The encoder of T5 or mT5 by itself: relative positions, RMSNorm before every part",
    paper="1910.10683",
    year=2019,
    tags=("bidirectional", "parallel", "encoder"),
    exchange=("t5:T5EncoderModel", "t5:T5ForTokenClassification", "mt5:MT5EncoderModel", "mt5:MT5ForTokenClassification"),
)
