"""BART: an encoder-decoder with learned positions and norms behind its parts, pre-trained to undo noise.

Paper: BART: Denoising Sequence-to-Sequence Pre-training (arXiv 1910.13461); noise: the objective `denoising`.

Equation: h = LN(E[token] + P[position]) in both stacks, E shared, P of each stack
    encoder:  x = LN(x + attention(x));  x = LN(x + W2 gelu(W1 x))
    decoder:  x = LN(x + attention(x));  x = LN(x + cross(x, memory));  x = LN(x + W2 gelu(W1 x));   logits = E x

Shapes: B batch, S source, U target, D width, H heads, K head dimension 64, F hidden size 4 D.

Cost: encoder once, O(S^2); decoder O(U^2 + U S); decoding keeps 2 H K (U + S) numbers a layer. At most `max_positions` tokens on
    either side.

Differs from the paper: positions begin at 0; published checkpoints begin at 2, which the exchange takes away. Dropout is 0 unless
    asked for, and none stands inside the feed-forward layers.

Oracle: transformers' BART (equal logits and greedy generation through the exchange map); the attention's own is
    tests/oracles/bidirectional_attention.py and cross_attention.py.
"""

from __future__ import annotations

from typing import Any

import torch

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.exchange import ExchangeMap, Rule, linear_rules, norm_rules, pair_heads

_OFFSET = 2  # places at the beginning of both tables of positions that are never read


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    width = hf["d_model"]
    require(hf.get("activation_function", "gelu") == "gelu", f"no counterpart for activation {hf.get('activation_function')}")
    require(not hf.get("scale_embedding"), "an embedding that is scaled (mBART, some summarisers) has no counterpart")
    require(hf.get("tie_word_embeddings", True), "a BART whose head is not its embedding has no counterpart")
    return {
        "width": width,
        "depth": hf["encoder_layers"],
        "decoder.depth": hf["decoder_layers"],
        "vocab_size": hf["vocab_size"],
        "encoder.head_dim": width // hf["encoder_attention_heads"],
        "decoder.head_dim": width // hf["decoder_attention_heads"],
        "encoder.channel.hidden": hf["encoder_ffn_dim"],
        "decoder.channel.hidden": hf["decoder_ffn_dim"],
        "max_positions": hf["max_position_embeddings"],
        "mixer.dropout": hf.get("attention_dropout", 0.0),
        "dropout": hf.get("dropout", 0.0),
        "encoder.embedding.std": hf.get("init_std", 0.02),
        "decoder.embed_std": hf.get("init_std", 0.02),
        "start": hf.get("decoder_start_token_id", 2),
        "stop": hf.get("eos_token_id", 2),
    }


def _write(own: dict[str, Any]) -> dict[str, Any]:
    encoder, decoder = own["encoder"], own["decoder"]
    found: dict[str, Any] = {}
    for side, stack in (("encoder", encoder), ("decoder", decoder)):
        block = stack["blocks"][0]
        mixer, channel = block["mixer"], block["channel"] or {}
        one = stack["layout"] == [0] * len(stack["layout"]) and block["placement"] == "post" and not block["canon"]
        odd = any(mixer.get(key) for key in ("window", "relative", "kv_heads", "heads", "qk_norm", "gate")) or mixer.get("rope", 1.0)
        plain = channel.get("name") == "mlp" and channel.get("activation") == "gelu" and mixer.get("bias") and not odd
        require(one and plain, "BART has one kind of block in each stack, with learned positions, GELU and biases")
        found[f"{side}_layers"] = len(stack["layout"])
        found[f"{side}_attention_heads"] = stack["width"] // mixer["head_dim"]
        found[f"{side}_ffn_dim"] = channel["hidden"]
    framed = encoder["embedding"]["positions"] == decoder["positions"] == "learned" and decoder["norm"] == "none"
    same = encoder["embedding"]["max_positions"] == decoder["max_positions"] and own["shared"] and decoder["tied"]
    require(framed and same and decoder["embed_norm"], "BART's stacks have one embedding and as many positions, and no last norm")
    return {
        **found,
        "d_model": decoder["width"],
        "vocab_size": decoder["vocab_size"],
        "activation_function": "gelu",
        "max_position_embeddings": decoder["max_positions"],
        "attention_dropout": decoder["blocks"][0]["mixer"].get("dropout", 0.0),
        "dropout": decoder["blocks"][0]["dropout"],
        "activation_dropout": 0.0,
        "init_std": decoder["embed_std"],
        **({"classifier_dropout": own["head"].get("dropout", 0.0)} if own["head"] else {}),
        "scale_embedding": False,
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "decoder_start_token_id": own["start"],
        "eos_token_id": own["stop"],
        "bos_token_id": 0,
        "pad_token_id": 1,
        "forced_eos_token_id": None,
    }


def _prepare(hf: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    bias = tensors.get("final_logits_bias")
    require(bias is None or not bool(bias.any()), "a BART with a bias of its logits has no counterpart")
    return {name: tensor[_OFFSET:] if name.endswith("embed_positions.weight") else tensor for name, tensor in tensors.items()}


def _finish(hf: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    return {
        name: torch.cat([tensor.new_zeros(_OFFSET, tensor.shape[1]), tensor]) if name.endswith("embed_positions.weight") else tensor
        for name, tensor in tensors.items()
    }


def _attention(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (
        *linear_rules(f"{ours}.inputs.linear", tuple(f"{theirs}.{part}_proj" for part in "qkv")),
        *linear_rules(f"{ours}.out", f"{theirs}.out_proj"),
    )


def _stack(side: str) -> tuple[Rule, ...]:
    ours, theirs = f"{side}.blocks.{{i}}", f"model.{side}.layers.{{i}}"
    reading = f"{theirs}.encoder_attn"
    cross = (
        *linear_rules(f"{ours}.cross.query", f"{reading}.q_proj"),
        *linear_rules(f"{ours}.cross.memory", (f"{reading}.k_proj", f"{reading}.v_proj")),
        *linear_rules(f"{ours}.cross.out", f"{reading}.out_proj"),
        *norm_rules(f"{ours}.cross_norm", f"{theirs}.encoder_attn_layer_norm"),
    )
    return (
        Rule(f"{side}.position_embed.weight", (f"model.{side}.embed_positions.weight",)),
        *norm_rules(f"{side}.embed_norm", f"model.{side}.layernorm_embedding"),
        *_attention(f"{ours}.mixer", f"{theirs}.self_attn"),
        *norm_rules(f"{ours}.mixer_norm", f"{theirs}.self_attn_layer_norm"),
        *(cross if side == "decoder" else ()),
        *linear_rules(f"{ours}.channel.wide", f"{theirs}.fc1"),
        *linear_rules(f"{ours}.channel.out", f"{theirs}.fc2"),
        *norm_rules(f"{ours}.channel_norm", f"{theirs}.final_layer_norm"),
    )


EXCHANGE = ExchangeMap(
    model_type="bart",
    cls="BartForConditionalGeneration",
    read=_read,
    write=_write,
    rules=(Rule("encoder.embed.weight", ("model.shared.weight",)), *_stack("encoder"), *_stack("decoder")),
    ignored=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight", "final_logits_bias"),
    prefixes=("model.",),
    prepare=_prepare,
    finish=_finish,
    heads=pair_heads("Bart"),
)

_INIT = {"init_std": 0.02}
_CHANNEL = {"name": "mlp", "activation": "gelu", "bias": True, "init_scaled": False, **_INIT}
_PLAIN = {"rope": 0.0, "bias": True, **_INIT}


def _size(width: int, depth: int) -> dict[str, Any]:
    return {"width": width, "depth": depth, "head_dim": 64, "channel.hidden": 4 * width, "vocab_size": 50265}


ARCHITECTURE = Architecture(
    block=BlockConfig(
        mixer={"name": "bidirectional-attention", "init_scaled": False, **_PLAIN},
        channel=_CHANNEL,
        norm="layernorm",
        eps=1e-5,
        placement="post",
    ),
    decoder=BlockConfig(
        mixer={"name": "attention", **_PLAIN},
        cross={"name": "cross-attention", "bias": True, "init_scaled": False, **_INIT},
        channel=_CHANNEL,
        norm="layernorm",
        eps=1e-5,
        placement="post",
    ),
    kind="encoder-decoder",
    frame={
        "eps": 1e-5,
        "encoder.norm": "layernorm",
        "encoder.final_norm": False,
        "encoder.embedding.norm": True,
        "encoder.embedding.positions": "learned",
        "encoder.embedding.max_positions": 1024,
        "decoder.norm": "none",
        "decoder.embed_norm": True,
        "decoder.positions": "learned",
        "decoder.max_positions": 1024,
    },
    pair={"shared": True, "start": 2, "stop": 2},
    head="mixer.head_dim",
    fine_ratio=4.0,
    presets={"bart-base": _size(768, 6), "bart-large": _size(1024, 12)},
    exchange=(EXCHANGE,),
)

register(
    "bart",
    architecture="ARCHITECTURE",
    summary="BART: a post-norm encoder-decoder with learned positions, pre-trained to undo noise",
    paper="1910.13461",
    year=2019,
    tags=("encoder-decoder", "parallel"),
    presets=("bart-base", "bart-large"),
    exchange=("bart",),
)
