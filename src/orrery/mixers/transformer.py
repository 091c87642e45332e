"""Transformer: the decoder as it is built today (Llama's choices).

Paper: Attention Is All You Need (arXiv 1706.03762); with pre-RMSNorm, SwiGLU and rotary positions as in LLaMA (2302.13971).

Equation:  x += attention(norm(x));  x += W2 (silu(Wg norm(x)) * Wu norm(x));  logits = W norm(x)

Shapes: B batch, T time, D width, H heads, K head dimension, F hidden size (8/3 D).

Cost: train O(T^2) attention beside 12 D^2 a token and layer; decode O(T); state 2 D numbers a token and layer.

Differs from the paper: the head is tied to the embedding by default (`tied=False` unties it); initialisation by width
    (std sqrt(2 / 5D)), way out scaled by 1/sqrt(2 depth).

Oracle: transformers' Llama (equal logits through the exchange map); tests/oracles/attention.py for the mixer.
"""

from __future__ import annotations

from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig

ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "attention"}, channel={"name": "glu"}),
    frame={"tied": True},
    head="mixer.head_dim",
)

register(
    "transformer",
    architecture="ARCHITECTURE",
    summary="Decoder-only Transformer: rotary attention, RMSNorm, SwiGLU",
    paper="1706.03762",
    year=2017,
    tags=("causal", "parallel", "cache"),
)
