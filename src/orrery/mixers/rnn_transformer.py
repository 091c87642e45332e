"""Hybrid RNN-Transformer: QRNN layers in most places where a Transformer has attention.

Paper: Efficient Language Modeling for Low-Resource Settings with Hybrid RNN-Transformer Architectures (arXiv 2502.00617);
    its pattern of few attention layers after PAR Transformer (2009.04534), its QRNN layers 1611.01576.

Equation:  x += mixer(LN(x));  x += W2 gelu(W1 LN(x));  the mixer is attention in every third layer, else a QRNN

Shapes: B batch, T time, D width, F hidden size 4 D.

Cost: train O(T^2) in every third layer, else O(T); decode O(T) there, else O(1).

Differs from the paper: a reconstruction. Only its abstract was at hand: the layers are QRNN, attention and feed-forward blocks,
    with few attention layers. Here every mixer is followed by a feed-forward block, attention opens each group of three, and
    it sees all of the document through rotary positions, not a Transformer-XL memory.

Oracle: tests/oracles/qrnn.py and attention.py for the mixers.
"""

from __future__ import annotations

from typing import Any

from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig


def _layer(mixer: dict[str, Any]) -> BlockConfig:
    return BlockConfig(mixer=mixer, channel={"name": "mlp", "activation": "gelu"}, norm="layernorm", eps=1e-5)


ARCHITECTURE = Architecture(
    pattern="attention + recurrent*2",
    blocks={
        "attention": _layer({"name": "attention"}),
        "recurrent": _layer({"name": "qrnn", "window": 2}),
    },
    frame={"tied": True, "norm": "layernorm", "eps": 1e-5},
    head="attention/mixer.head_dim",
    fine_ratio=4.0,
)

register(
    "rnn-transformer",
    architecture="ARCHITECTURE",
    summary="Hybrid RNN-Transformer: two QRNN layers for every layer of attention (reconstruction)",
    paper="2502.00617",
    year=2025,
    tags=("causal", "parallel", "cache", "positions"),
)
