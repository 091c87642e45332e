"""GPT-2: the Transformer decoder of 2019.

Paper: Language Models are Unsupervised Multitask Learners (Radford et al. 2019; no arXiv id).

Equation:  h = E[token] + P[position];  x += attention(LN(x));  x += W2 gelu(W1 LN(x));  logits = E LN(x)

Shapes: B batch, T time, D width, H heads, K head dimension 64, F hidden size 4 D.

Cost: as the Transformer's; at most `max_positions` tokens of context.

Differs from the paper: dropout is 0 unless asked for (0.1 in the paper), so that comparisons are of architectures.

Oracle: transformers' GPT-2 (equal logits through the exchange map).
"""

from __future__ import annotations

from typing import Any

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.exchange import ExchangeMap, Rule, linear_rules, norm_rules

_ACTIVATIONS = {"gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh", "gelu": "gelu", "relu": "relu", "silu": "silu"}


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    require(hf.get("activation_function", "gelu_new") in _ACTIVATIONS, f"no counterpart for activation {hf.get('activation_function')}")
    plain = not hf.get("scale_attn_by_inverse_layer_idx") and not hf.get("reorder_and_upcast_attn") and hf.get("scale_attn_weights", True)
    require(plain, "GPT-2 variants that scale attention by layer have no counterpart")
    return {
        "width": hf["n_embd"],
        "depth": hf["n_layer"],
        "vocab_size": hf["vocab_size"],
        "mixer.head_dim": hf["n_embd"] // hf["n_head"],
        "mixer.dropout": hf.get("attn_pdrop", 0.0),
        "channel.hidden": hf.get("n_inner") or 4 * hf["n_embd"],
        "channel.activation": _ACTIVATIONS[hf.get("activation_function", "gelu_new")],
        "eps": hf.get("layer_norm_epsilon", 1e-5),
        "dropout": hf.get("resid_pdrop", 0.0),
        "max_positions": hf["n_positions"],
        "tied": hf.get("tie_word_embeddings", True),
    }


def _write(own: dict[str, Any]) -> dict[str, Any]:
    block = own["blocks"][0]
    require(own["layout"] == [0] * len(own["layout"]) and block["placement"] == "pre" and not block["canon"], "GPT-2 has one kind of block")
    return {
        "n_embd": own["width"],
        "n_layer": len(own["layout"]),
        "n_head": own["width"] // block["mixer"]["head_dim"],
        "n_inner": block["channel"]["hidden"],
        "n_positions": own["max_positions"],
        "vocab_size": own["vocab_size"],
        "activation_function": {v: k for k, v in reversed(_ACTIVATIONS.items())}[block["channel"]["activation"]],
        "layer_norm_epsilon": own["eps"],
        "attn_pdrop": block["mixer"].get("dropout", 0.0),
        "resid_pdrop": block["dropout"],
        "embd_pdrop": own["dropout"],
        "tie_word_embeddings": own["tied"],
        "bos_token_id": None,
        "eos_token_id": None,
    }


_LAYER = "transformer.h.{i}"
EXCHANGE = ExchangeMap(
    model_type="gpt2",
    cls="GPT2LMHeadModel",
    read=_read,
    write=_write,
    rules=(
        Rule("embed.weight", ("transformer.wte.weight",)),
        Rule("position_embed.weight", ("transformer.wpe.weight",)),
        *norm_rules("blocks.{i}.mixer_norm", f"{_LAYER}.ln_1"),
        *linear_rules("blocks.{i}.mixer.inputs.linear", f"{_LAYER}.attn.c_attn", "transpose"),
        *linear_rules("blocks.{i}.mixer.out", f"{_LAYER}.attn.c_proj", "transpose"),
        *norm_rules("blocks.{i}.channel_norm", f"{_LAYER}.ln_2"),
        *linear_rules("blocks.{i}.channel.wide", f"{_LAYER}.mlp.c_fc", "transpose"),
        *linear_rules("blocks.{i}.channel.out", f"{_LAYER}.mlp.c_proj", "transpose"),
        *norm_rules("norm", "transformer.ln_f"),
        Rule("head.weight", ("lm_head.weight",)),
    ),
    ignored=(".attn.bias", ".attn.masked_bias"),
    prefixes=("transformer.",),
)

ARCHITECTURE = Architecture(
    block=BlockConfig(
        mixer={"name": "attention", "rope": 0.0, "bias": True, "init_std": 0.02},
        channel={"name": "mlp", "activation": "gelu-tanh", "bias": True, "init_std": 0.02},
        norm="layernorm",
        eps=1e-5,
    ),
    frame={"tied": True, "norm": "layernorm", "eps": 1e-5, "positions": "learned", "max_positions": 1024},
    head="mixer.head_dim",
    fine_ratio=4.0,
    presets={
        "gpt2-124m": {"width": 768, "depth": 12, "vocab_size": 50257},
        "gpt2-355m": {"width": 1024, "depth": 24, "vocab_size": 50257},
        "gpt2-774m": {"width": 1280, "depth": 36, "vocab_size": 50257},
        "gpt2-1.5b": {"width": 1600, "depth": 48, "vocab_size": 50257},
    },
    exchange=(EXCHANGE,),
)

register(
    "gpt2",
    architecture="ARCHITECTURE",
    summary="GPT-2: learned positions, LayerNorm, GELU",
    paper="Radford et al. 2019",
    year=2019,
    tags=("causal", "parallel", "cache"),
    presets=("gpt2-124m", "gpt2-355m", "gpt2-774m", "gpt2-1.5b"),
    exchange=("gpt2",),
)
