"""GTrXL: a Transformer-XL that learns stably, by gates in the place of residual sums and an identity path from end to end.

Paper: Stabilizing Transformers for Reinforcement Learning (arXiv 1910.06764).

Equation:  x = g(x, relu(attention(LN(x))));  x = g'(x, relu(W2 relu(W1 LN(x))));
    g(x, y): r = sigmoid(W_r y + U_r x), z = sigmoid(W_z y + U_z x - b), h = tanh(W_g y + U_g (r * x)), (1 - z) * x + z * h, b = 2
    attention: Transformer-XL's, over the last M tokens

Shapes: B batch, T time, D width, H heads, K head dimension, M memory, F hidden size.

Cost: Transformer-XL's, and two gates of 6 D^2 multiply-adds a token and layer.

Differs from the paper: what Transformer-XL differs in (transformer_xl.py: a memory that slides, gradients through it); a
    language model's embedding, final norm and head around it, where the paper has a policy.

Oracle: tests/mixers/test_transformer_xl.py (float64 loops over the block); tests/oracles/transformer_xl.py for the mixer.
"""

from __future__ import annotations

from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig

ARCHITECTURE = Architecture(
    block=BlockConfig(
        mixer={"name": "transformer-xl"},
        channel={"name": "mlp", "activation": "relu", "bias": True},
        norm="layernorm",
        eps=1e-5,
        placement="gated",
        gate="gru",
        gate_bias=2.0,
    ),
    frame={"tied": True, "norm": "layernorm", "eps": 1e-5},
    head="mixer.head_dim",
    fine_ratio=4.0,
    presets={"gtrxl-dmlab": {"width": 512, "depth": 12, "mixer.heads": 8, "mixer.head_dim": 64, "mixer.memory": 512}},
)

register(
    "gtrxl",
    architecture="ARCHITECTURE",
    summary="GTrXL: Transformer-XL with GRU gates in the place of residual sums",
    paper="1910.06764",
    year=2019,
    tags=("causal", "parallel", "cache", "positions"),
    presets=("gtrxl-dmlab",),
)
