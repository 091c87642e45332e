"""GigaChat: a Transformer of fine-grained experts with shared ones, its first layer dense.

Paper: GigaChat Family: Efficient Russian Language Modeling Through Mixture of Experts Architecture (arXiv 2506.09440), after
    DeepSeekMoE (2401.06066).

Equation:  x += attention(norm(x));  x += E_shared(h) + sum_{i in top 6} p_i E_i(h),  h = norm(x),  p = softmax(W_r h) over all
    64 experts, not normalised after the choice

Shapes: B batch, T time, D width, E experts, k chosen, F hidden size of one expert (an eighth of a dense layer's).

Cost: a token uses k + 2 experts of F; 20.6 billion parameters, 3.3 billion of them active.

Differs from the paper: attention has grouped queries, as in the paper and the published GigaChat-20B-A3B; GigaChat 3 (2025), which
    caches a compressed vector, is a DeepSeek-V3 (`deepseek-v3`) and no size of this one. Along the size ladder 16 experts, 4
    chosen and 1 shared, and the dense layer comes first in every three; initialisation by width, as `transformer` here.

Oracle: tests/oracles/moe.py for the layer; transformers' Mixtral and DeepSeek-V3 blocks.
"""

from __future__ import annotations

from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig

ARCHITECTURE = Architecture(
    pattern="dense + moe*2",
    blocks={
        "dense": BlockConfig(mixer={"name": "attention"}, channel={"name": "glu"}),
        "moe": BlockConfig(
            mixer={"name": "attention"},
            channel={"name": "moe", "experts": 16, "top_k": 4, "shared": 1.0, "normalise": False, "balance": 0.01},
        ),
    },
    frame={"tied": True},
    head="mixer.head_dim",
    fine="moe/channel.hidden",
    fine_step=1,
    fine_ratio=8 / 15,
    presets={
        "gigachat-20b-a3b": {
            "width": 2048,
            "depth": 28,
            "vocab_size": 128256,
            "pattern": "dense + moe*27",
            "mixer.head_dim": 128,
            "mixer.kv_heads": 8,
            "mixer.rope_theta": 1.4e6,
            "eps": 1e-5,
            "dense.channel.hidden": 14336,
            "moe.experts": 64,
            "moe.top_k": 6,
            "moe.shared": 2.0,
            "moe.hidden": 1792,
            "tied": False,
        }
    },
)

register(
    "gigachat",
    architecture="ARCHITECTURE",
    summary="GigaChat: fine-grained experts with shared ones, gates not normalised, first layer dense",
    paper="2506.09440",
    year=2025,
    tags=("causal", "parallel", "cache"),
    presets=("gigachat-20b-a3b",),
)
