"""Ling 3.0 (bailing_hybrid): five layers of Kimi Delta Attention with bounded decays, then one of gated latent attention; experts.

Paper: the released Ling-3.0-flash has none of its own; its parts are Kimi Delta Attention (arXiv 2510.26692), latent attention
    (2405.04434), a gate per head (2505.06708) and experts chosen by groups (2412.19437).

Equation:  x += mixer(norm(x));  x += F(norm(x));  the mixer of every sixth layer is latent attention with rotary positions and a gate
    sigmoid(g_h . x) per head; elsewhere KDA whose maps to decay and gate have full rank, log decay = -5 sigmoid(exp(A) (W_f x + b))
    F: SwiGLU, or E_shared(h) + s sum_{i in S} p_i / sum_{j in S} p_j E_i(h), S the k largest of p_i + bias_i in the 4 best of 8
    groups of experts, p = sigmoid(W_r h)

Shapes: B batch, T time, D width, E experts, k chosen; the mixers have their own.

Cost: of six layers five are linear in T with a constant state; the sixth caches C + R numbers a token.

Differs from the paper: along the size ladder the channel mixers are dense, as `qwen3-next` here; the published model's are
    experts in all layers but the first two. The layer that predicts a second token is left out, as in transformers.

Oracle: transformers' BailingHybrid (equal logits and cached generation through the exchange map); tests/oracles/kda.py,
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
    read_positions,
    renamed,
    write_common,
    write_latent,
    write_positions,
)


def _layers(hf: dict[str, Any]) -> list[tuple[str, str]]:
    """Mixer and channel mixer of every layer."""
    depth, group, dense = hf["num_hidden_layers"], hf.get("layer_group_size", 6), hf.get("first_k_dense_replace", 2)
    mixers = hf.get("layer_types") or ["full_attention" if (layer + 1) % group == 0 else "linear_attention" for layer in range(depth)]
    channels = hf.get("mlp_layer_types") or ["dense" if layer < dense else "sparse" for layer in range(depth)]
    return [
        ("linear" if mixer == "linear_attention" else "full", "moe" if channel == "sparse" else "dense")
        for mixer, channel in zip(mixers, channels, strict=True)
    ]


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    require(hf.get("no_kda_lora", True), "here the maps to Ling's decays and gates have full rank (no_kda_lora)")
    layers = _layers(hf)
    found = read_common(hf, layers)
    if any(mixer == "full" for mixer, _ in layers):
        found |= read_positions(hf)
    if any(mixer == "linear" for mixer, _ in layers):
        found |= {
            "kda.heads": first(hf, "linear_num_heads", "num_attention_heads"),
            "kda.head_dim": first(hf, "linear_head_dim", "head_dim"),
            "kda.conv": first(hf, "linear_conv_kernel_dim", "short_conv_kernel_size", default=4),
            "kda.bound": float(hf.get("kda_lower_bound", -5.0)) if hf.get("kda_safe_gate", True) else None,
            "kda.norm_eps": hf["rms_norm_eps"],
        }
    return found


def _write(own: dict[str, Any]) -> dict[str, Any]:
    def delta(mixer: Any, width: int) -> dict[str, Any]:
        plain = not mixer.low_rank and not mixer.negative and mixer.norm_eps == own["eps"]
        require(plain, "Ling's KDA has maps of full rank, beta below 1, and the model's eps")
        sizes = {"heads": mixer.heads or max(1, round(width / mixer.head_dim)), "conv": mixer.conv, "head_dim": mixer.head_dim}
        return {
            "linear_num_heads": sizes["heads"],
            "linear_head_dim": sizes["head_dim"],
            "linear_conv_kernel_dim": sizes["conv"],
            "head_dim": sizes["head_dim"],
            "short_conv_kernel_size": sizes["conv"],
            "kda_safe_gate": mixer.bound is not None,
            "kda_lower_bound": mixer.bound or -5.0,
        }

    def latent(mixer: Any, width: int) -> dict[str, Any]:
        require(mixer.rope and mixer.gate and mixer.query_rank is None, "Ling's attention in transformers is rotated and gated, its queries whole")
        return {**write_latent(mixer, width), **write_positions(mixer)}

    config = write_common(own, "Ling", {"kda": delta, "latent-attention": latent})
    names = [own["blocks"][kind]["mixer"]["name"] for kind in own["layout"]]
    layers = {"layer_types": ["linear_attention" if name == "kda" else "full_attention" for name in names]}
    return {"num_attention_heads": config.get("linear_num_heads"), **config, **layers, "num_nextn_predict_layers": 0}


_NAMES = {  # of published files -> in memory
    r"^model\.word_embeddings\.": "model.embed_tokens.",
    r"\.attention\.": ".self_attn.",
    r"self_attn\.(f_proj\.|dt_bias|A_log)": r"self_attn.forget_gate.\1",
    r"\.self_attn\.dense\.": ".self_attn.o_proj.",
    r"\.mlp\.gate\.expert_bias": ".mlp.gate.e_score_correction_bias",
}


def _prepare(hf: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return prepared(hf, renamed(tensors, _NAMES))


EXCHANGE = ExchangeMap(
    model_type="bailing_hybrid",
    cls="BailingHybridForCausalLM",
    read=_read,
    write=_write,
    rules=(*COMMON_RULES, *latent_rules(gate=True), *delta_rules("forget_gate.f_proj", "g_proj")),
    prefixes=("model.",),
    prepare=_prepare,
    finish=finished,
)

_LINEAR = {"name": "kda", "low_rank": False, "bound": -5.0, "norm_eps": 1e-6}
_FULL = {"name": "latent-attention", "gate": True, "rope_theta": 6e6}
_MOE = {"name": "moe", "shared": 1.0, "score": "sigmoid", "bias_rate": 0.0}
ARCHITECTURE = Architecture(
    pattern="linear*5 + full",
    blocks={
        "linear": BlockConfig(mixer=_LINEAR, channel={"name": "glu"}),
        "full": BlockConfig(mixer=_FULL, channel={"name": "glu"}),
        "linear-moe": BlockConfig(mixer=_LINEAR, channel=_MOE),
        "full-moe": BlockConfig(mixer=_FULL, channel=_MOE),
    },
    frame={"tied": True},
    head="mixer.head_dim",
    presets={
        "ling-3.0-flash": {
            "width": 2560, "depth": 42, "vocab_size": 157184, "tied": False,
            "pattern": "linear*2 + linear-moe*3 + full-moe" + " + linear-moe*5 + full-moe" * 6,
            "linear-moe.channel.name": "grouped-moe", "full-moe.channel.name": "grouped-moe",
            "kda.heads": 32, "kda.head_dim": 128, "latent-attention.heads": 32, "latent-attention.head_dim": 128, "glu.hidden": 6144,
            "grouped-moe.experts": 512, "grouped-moe.group_count": 8, "grouped-moe.group_top": 4, "grouped-moe.top_k": 8,
            "grouped-moe.hidden": 768, "grouped-moe.scale": 2.5,
        },
    },
    exchange=(EXCHANGE,),
)  # fmt: skip

register(
    "bailing-hybrid",
    architecture="ARCHITECTURE",
    summary="Ling 3.0: five layers of Kimi Delta Attention with bounded decays to one of gated latent attention",
    paper="2510.26692",
    year=2026,
    tags=("causal", "parallel", "positions", "cache"),
    presets=("ling-3.0-flash",),
    exchange=("bailing_hybrid",),
)
