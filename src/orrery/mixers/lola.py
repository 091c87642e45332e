"""LOLA: GPT-2 with a Switch layer of experts in place of every second feed-forward network.

Paper: LOLA -- An Open-Source Massively Multilingual Large Language Model (arXiv 2409.11272); Switch Transformers 2101.03961.

Equation:  x += attention(norm(x));  x += p_i E_i(norm(x)),  i = argmax p,  p = softmax(W_r norm(x)),  in every second layer

Shapes: B batch, T time, D width, E experts, F hidden size (4 D).

Cost: that of GPT-2 of the same width; 7.4 billion parameters, 1.3 billion of them active.

Differs from the paper: experts have no biases; an expert takes its even share of a batch's tokens in training and drops the
    rest, and all of them afterwards; along the size ladder there are 8 experts.

Oracle: tests/oracles/moe.py for the experts, transformers' GPT-2 for everything else.
"""

from __future__ import annotations

from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig

_ATTENTION = {"name": "attention", "rope": 0.0, "bias": True, "init_std": 0.01}
ARCHITECTURE = Architecture(
    pattern="dense + moe",
    blocks={
        "dense": BlockConfig(
            mixer=_ATTENTION,
            channel={"name": "mlp", "activation": "gelu-tanh", "bias": True, "init_std": 0.01},
            norm="layernorm",
            eps=1e-5,
        ),
        "moe": BlockConfig(
            mixer=_ATTENTION,
            channel={
                "name": "moe", "experts": 8, "top_k": 1, "gated": False, "activation": "gelu-tanh", "normalise": False,
                "balance": 0.01, "capacity": 1.0,
            },
            norm="layernorm",
            eps=1e-5,
        ),
    },
    frame={"tied": True, "norm": "layernorm", "eps": 1e-5, "positions": "learned", "max_positions": 2048, "embed_std": 0.01},
    head="mixer.head_dim",
    fine_ratio=4.0,
    presets={
        "lola-7b": {
            "width": 2048, "depth": 24, "vocab_size": 100000, "mixer.head_dim": 128, "channel.hidden": 8192, "moe.experts": 16,
        }
    },
)  # fmt: skip

register(
    "lola",
    architecture="ARCHITECTURE",
    summary="LOLA: GPT-2 with one of many experts per token in every second layer",
    paper="2409.11272",
    year=2024,
    tags=("causal", "parallel", "cache"),
    presets=("lola-7b",),
)
