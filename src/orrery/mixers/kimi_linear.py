"""Kimi Linear: three layers of Kimi Delta Attention, then one of latent attention without positions; dense or with experts.

Paper: Kimi Linear: An Expressive, Efficient Attention Architecture (arXiv 2510.26692, section 4).

Equation:  x += mixer(norm(x));  x += F(norm(x));  the mixer of every fourth layer is latent attention whose shared part is not
    rotated: order in time is left to the others, Kimi Delta Attention
    F: SwiGLU, or E_shared(h) + s sum_{i in S} p_i / sum_{j in S} p_j E_i(h), S the k largest of p_i + bias_i, p = sigmoid(W_r h)

Shapes: B batch, T time, D width, E experts, k chosen; the mixers have their own.

Cost: of four layers three are linear in T with a constant state; the fourth caches C + R numbers a token.

Differs from the paper: along the size ladder the channel mixers are dense, as `qwen3-next` here; the published model's are
    experts in all layers but the first.

Oracle: transformers' Kimi Linear (equal logits and cached generation through the exchange map); tests/oracles/kda.py,
    latent_attention.py and moe.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.exchange import ExchangeMap
from orrery.nn.exchange_latent import (
    COMMON_RULES,
    delta_rules,
    finished,
    first,
    latent_rules,
    prepared,
    read_common,
    renamed,
    write_common,
    write_latent,
)


def _layers(hf: dict[str, Any]) -> list[tuple[str, str]]:
    """Mixer and channel mixer of every layer; published files count layers from 1, in lists of a part of their own."""
    depth, inner = hf["num_hidden_layers"], hf.get("linear_attn_config") or {}
    mixers = hf.get("layer_types") or [
        "full_attention" if layer + 1 in inner.get("full_attn_layers", ()) else "linear_attention" for layer in range(depth)
    ]
    dense = hf.get("first_k_dense_replace", 1)
    channels = hf.get("mlp_layer_types") or ["dense" if layer < dense else "sparse" for layer in range(depth)]
    return [
        ("linear" if mixer == "linear_attention" else "full", "moe" if channel == "sparse" else "dense")
        for mixer, channel in zip(mixers, channels, strict=True)
    ]


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    require(hf.get("mla_use_nope", True), "Kimi Linear's attention has no positions (mla_use_nope)")
    layers, inner = _layers(hf), hf.get("linear_attn_config") or {}
    found = read_common(hf, layers)
    if any(mixer == "linear" for mixer, _ in layers):
        found |= {
            "kda.heads": first(inner, "num_heads", default=hf.get("linear_num_heads")),
            "kda.head_dim": first(inner, "head_dim", default=hf.get("linear_head_dim")),
            "kda.conv": first(inner, "short_conv_kernel_size", default=hf.get("linear_conv_kernel_dim", 4)),
            "kda.norm_eps": hf["rms_norm_eps"],
        }
    return found


def _write(own: dict[str, Any]) -> dict[str, Any]:
    def delta(mixer: Any, width: int) -> dict[str, Any]:
        plain = mixer.low_rank and mixer.bound is None and not mixer.negative and mixer.norm_eps == own["eps"]
        require(plain, "Kimi Linear's KDA has low-rank maps, decays without a bound, beta below 1, and the model's eps")
        return {
            "linear_num_heads": mixer.heads or max(1, round(width / mixer.head_dim)),
            "linear_head_dim": mixer.head_dim,
            "linear_conv_kernel_dim": mixer.conv,
        }

    def latent(mixer: Any, width: int) -> dict[str, Any]:
        require(not mixer.rope and not mixer.gate, "Kimi Linear's attention has neither positions nor a gate")
        return {**write_latent(mixer, width), "q_lora_rank": mixer.query_rank}

    config = write_common(own, "Kimi Linear", {"kda": delta, "latent-attention": latent})
    names = [own["blocks"][kind]["mixer"]["name"] for kind in own["layout"]]
    return config | {"layer_types": ["linear_attention" if name == "kda" else "full_attention" for name in names]}


_NAMES = {  # of published files -> in memory
    r"self_attn\.(f_[ab]_proj\.|dt_bias|A_log)": r"self_attn.forget_gate.\1",
}


def _prepare(hf: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return prepared(hf, renamed(tensors, _NAMES))


def _finish(hf: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    found = finished(hf, tensors)
    return {name: tensor.view(1, 1, -1, 1) if name.endswith(".A_log") else tensor for name, tensor in found.items()}


EXCHANGE = ExchangeMap(
    model_type="kimi_linear",
    cls="KimiLinearForCausalLM",
    read=_read,
    write=_write,
    rules=(*COMMON_RULES, *latent_rules(gate=False), *delta_rules("forget_gate.f_a_proj", "g_a_proj")),
    prefixes=("model.",),
    prepare=_prepare,
    finish=_finish,
)

_LINEAR, _FULL = {"name": "kda"}, {"name": "latent-attention", "rope": False}
_MOE = {"name": "moe", "shared": 1.0, "score": "sigmoid", "bias_rate": 0.0}
ARCHITECTURE = Architecture(
    pattern="linear*3 + full",
    blocks={
        "linear": BlockConfig(mixer=_LINEAR, channel={"name": "glu"}, eps=1e-5),
        "full": BlockConfig(mixer=_FULL, channel={"name": "glu"}, eps=1e-5),
        "linear-moe": BlockConfig(mixer=_LINEAR, channel=_MOE, eps=1e-5),
        "full-moe": BlockConfig(mixer=_FULL, channel=_MOE, eps=1e-5),
    },
    frame={"tied": True, "eps": 1e-5},
    head="mixer.head_dim",
    presets={
        "kimi-linear-48b-a3b": {
            "width": 2304, "depth": 27, "vocab_size": 163840, "tied": False,
            "pattern": "linear + linear-moe*2 + full-moe" + " + linear-moe*3 + full-moe" * 5 + " + linear-moe*2 + full-moe",
            "kda.heads": 32, "kda.head_dim": 128, "latent-attention.heads": 32, "latent-attention.head_dim": 128, "glu.hidden": 9216,
            "moe.experts": 256, "moe.top_k": 8, "moe.hidden": 1024, "moe.scale": 2.446,
        },
    },
    exchange=(EXCHANGE,),
)  # fmt: skip

register(
    "kimi-linear",
    architecture="ARCHITECTURE",
    summary="Kimi Linear: three layers of Kimi Delta Attention to one of latent attention without positions",
    paper="2510.26692",
    year=2025,
    tags=("causal", "parallel", "cache"),
    presets=("kimi-linear-48b-a3b",),
    exchange=("kimi_linear",),
)
