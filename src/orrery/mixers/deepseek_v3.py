"""DeepSeek-V3: a Transformer of latent attention and fine-grained experts, its first layers dense.

Paper: DeepSeek-V3 Technical Report (arXiv 2412.19437), attention after DeepSeek-V2 (2405.04434), experts after DeepSeekMoE (2401.06066).

Equation:  x += latent_attention(norm(x));  x += F(norm(x))
    F: SwiGLU, or E_shared(h) + s sum_{i in S} p_i / sum_{j in S} p_j E_i(h), S the k largest of p_i + bias_i in the best groups of
    experts, p = sigmoid(W_r h)

Shapes: B batch, T time, D width, E experts, k chosen; the mixer has its own.

Cost: O(T^2) as attention; the cache holds C + R numbers a token.

Differs from the paper: along the size ladder the channel mixers are dense and positions are as trained; the layer that predicts a second
    token is left out.

Oracle: transformers' DeepSeek-V3 (equal logits and cached generation through the exchange map); tests/oracles/latent_attention.py
    and moe.py.
"""

from __future__ import annotations

from typing import Any

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.exchange import ExchangeMap
from orrery.nn.exchange_latent import (
    COMMON_RULES,
    finished,
    latent_rules,
    prepared,
    read_common,
    read_positions,
    write_common,
    write_latent,
    write_positions,
)


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    require(hf.get("topk_method", "noaux_tc") == "noaux_tc", "experts are chosen by scores with a bias here (topk_method noaux_tc)")
    dense = hf.get("first_k_dense_replace") or 0
    layers = [("full", "dense" if layer < dense else "moe") for layer in range(hf["num_hidden_layers"])]
    return {**read_common(hf, layers), **read_positions(hf)}


def _write(own: dict[str, Any]) -> dict[str, Any]:
    def latent(mixer: Any, width: int) -> dict[str, Any]:
        require(mixer.rope and not mixer.gate, "DeepSeek-V3's attention is rotated, without a gate")
        sizes = {**write_latent(mixer, width), "q_lora_rank": mixer.query_rank}
        return {**sizes, **write_positions(mixer), "rope_interleave": True}

    config = write_common(own, "DeepSeek-V3", {"latent-attention": latent})
    kinds = config.pop("mlp_layer_types")
    dense = kinds.count("dense")
    require(kinds[:dense].count("dense") == dense, "DeepSeek-V3's dense layers are its first")
    config = {("n_routed_experts" if key == "num_experts" else key): value for key, value in config.items()}
    return {**config, "first_k_dense_replace": dense, "num_nextn_predict_layers": 0}


EXCHANGE = ExchangeMap(
    model_type="deepseek_v3",
    cls="DeepseekV3ForCausalLM",
    read=_read,
    write=_write,
    rules=(*COMMON_RULES, *latent_rules(gate=False)),
    ignored=("rotary_emb.inv_freq",),
    prefixes=("model.",),
    prepare=prepared,
    finish=finished,
)

_FULL = {"name": "latent-attention"}
_YARN = {"kind": "yarn", "factor": 40.0, "original": 4096, "mscale": 1.0, "mscale_all": 1.0}
_MOE = {"name": "moe", "shared": 1.0, "score": "sigmoid", "bias_rate": 0.0}
ARCHITECTURE = Architecture(
    pattern="full",
    blocks={
        "full": BlockConfig(mixer=_FULL, channel={"name": "glu"}),
        "full-moe": BlockConfig(mixer=_FULL, channel=_MOE),
    },
    frame={"tied": True},
    head="mixer.head_dim",
    presets={
        "deepseek-v3-671b": {
            "width": 7168, "depth": 61, "vocab_size": 129280, "tied": False, "pattern": "full*3 + full-moe*58",
            "full-moe.channel.name": "grouped-moe", "mixer.heads": 128, "mixer.rope": _YARN, "mixer.head_dim": 128,
            "mixer.query_rank": 1536, "glu.hidden": 18432,
            "grouped-moe.experts": 256, "grouped-moe.group_count": 8, "grouped-moe.group_top": 4, "grouped-moe.top_k": 8,
            "grouped-moe.hidden": 2048, "grouped-moe.scale": 2.5,
        },
        "moonlight-16b-a3b": {
            "width": 2048, "depth": 27, "vocab_size": 163840, "tied": False, "eps": 1e-5, "pattern": "full + full-moe*26",
            "mixer.heads": 16, "mixer.head_dim": 128, "mixer.rope_theta": 5e4, "glu.hidden": 11264,
            "moe.experts": 64, "moe.top_k": 6, "moe.hidden": 1408, "moe.shared": 2.0, "moe.scale": 2.446,
        },
    },
    exchange=(EXCHANGE,),
)  # fmt: skip

register(
    "deepseek-v3",
    architecture="ARCHITECTURE",
    summary="DeepSeek-V3: latent attention in every layer, fine-grained experts chosen by groups",
    paper="2412.19437",
    year=2024,
    tags=("causal", "parallel", "positions", "cache"),
    presets=("deepseek-v3-671b", "moonlight-16b-a3b"),
    exchange=("deepseek_v3",),
)
