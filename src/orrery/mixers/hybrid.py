"""Hybrids of attention and Mamba-2 as the design study recommends them: between layers, and within a layer.

Paper: Hybrid Architectures for Language Models: Systematic Analysis and Design Insights (arXiv 2510.04800).

Equation:  x += mixer(norm(x));  x += W2 (silu(Wg norm(x)) * Wu norm(x))
    inter: the mixer is Mamba-2, in a few layers in the middle attention
    intra: in these layers half the heads are attention, half Mamba-2: W_a groupnorm(attention(h)) - W_m groupnorm(mamba2(h))

Shapes: B batch, T time, D width, L layers, n of them with attention.

Cost: per layer that of its mixer; state: keys and values of n layers (half the heads, within a layer), the rest constant.

Differs from the paper: the group norm, whose groups are the heads here, divides by the root mean square, without mean and gain;
    of the paper's grid the ratios 1:1 to 1:12 are presets at the 1B size of its attention block (Llama 3.2), with Mamba-2's
    usual state; along the size ladder the ratio is 1:3.

Oracle: the branches' own; tests/oracles/parallel.py for the fusion.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig

_GLU = {"name": "glu"}
_MAMBA = BlockConfig(mixer={"name": "mamba2"}, channel=_GLU)


def scattered(depth: int, count: int, name: str, other: str = "mamba") -> str:
    """The pattern with `count` of `depth` layers called `name`, evenly spread, neither first nor last where avoidable."""
    chosen = {int((index + 1) * depth / (count + 1)) for index in range(count)} if count * 2 < depth else set(range(1, depth, 2))
    names = [name if layer in chosen else other for layer in range(depth)]
    return " + ".join(f"{kind}*{len(list(run))}" for kind, run in groupby(names))


def _billion(name: str, count: int) -> dict[str, Any]:
    """The study's 1B size with `count` of 16 layers of another kind."""
    return {
        "width": 2048,
        "depth": 16,
        "vocab_size": 128256,
        "pattern": scattered(16, count, name),
        "attention.head_dim": 64,
        "attention.kv_heads": 8,
        "mamba2.head_dim": 64,
        "channel.hidden": 8192,
        "tied": True,
    }


INTER = Architecture(
    pattern="mamba*2 + attention + mamba",
    blocks={"mamba": _MAMBA, "attention": BlockConfig(mixer={"name": "attention"}, channel=_GLU)},
    frame={"tied": True},
    head="mixer.head_dim",
    presets={f"inter-hybrid-1b-1-{ratio}": _billion("attention", count) for ratio, count in ((1, 8), (3, 4), (5, 3), (12, 1))},
)
INTRA = Architecture(
    pattern="mamba*2 + both + mamba",
    blocks={
        "mamba": _MAMBA,
        "both": BlockConfig(
            mixer={
                "name": "parallel",
                "branches": [{"name": "attention"}, {"name": "mamba2"}],
                "fusion": "difference",
                "norm_at": "heads",
                "beta": "none",
                "shares": [0.5, 0.5],
            },
            channel=_GLU,
        ),
    },
    frame={"tied": True},
    head="mixer.head_dim",
    presets={f"intra-hybrid-1b-1-{ratio}": _billion("both", count) for ratio, count in ((1, 8), (5, 3))},
)

register(
    "inter-hybrid",
    architecture="INTER",
    summary="Mamba-2 with attention layers scattered in the middle",
    paper="2510.04800",
    year=2025,
    tags=("causal", "parallel", "cache"),
    presets=("inter-hybrid-1b-1-1", "inter-hybrid-1b-1-3", "inter-hybrid-1b-1-5", "inter-hybrid-1b-1-12"),
)
register(
    "intra-hybrid",
    architecture="INTRA",
    summary="Mamba-2 with layers in the middle whose heads are half attention, half Mamba-2, group-normed and subtracted",
    paper="2510.04800",
    year=2025,
    tags=("causal", "parallel", "cache"),
    presets=("intra-hybrid-1b-1-1", "intra-hybrid-1b-1-5"),
)
