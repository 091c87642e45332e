"""GPT-2: the Transformer decoder of 2019.

Paper: Language Models are Unsupervised Multitask Learners (Radford et al. 2019; no arXiv id).

Equation:  h = E[token] + P[position];  x += attention(LN(x));  x += W2 gelu(W1 LN(x));  logits = E LN(x)

Shapes: B batch, T time, D width, H heads, K head dimension 64, F hidden size 4 D.

Cost: as the Transformer's; at most `max_positions` tokens of context.

Differs from the paper: dropout is 0 unless asked for (0.1 in the paper), so that comparisons are of architectures.

Oracle: transformers' GPT-2 (equal logits through the exchange map).
"""

from __future__ import annotations

from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig

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
)

register(
    "gpt2",
    architecture="ARCHITECTURE",
    summary="GPT-2: learned positions, LayerNorm, GELU",
    paper="Radford et al. 2019",
    year=2019,
    tags=("causal", "parallel", "cache"),
    presets=("gpt2-124m", "gpt2-355m", "gpt2-774m", "gpt2-1.5b"),
)
