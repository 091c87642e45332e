"""cosFormer: linear attention with ReLU features whose weights fall with distance as a cosine.

Paper: cosFormer: Rethinking Softmax in Attention (arXiv 2202.08791).

Equation: w_ts = relu(q_t).relu(k_s) cos(pi/2 (p_t - p_s) / M),  p = min(position, M);
    y_t = sum_{s <= t} w_ts v_s / sum_{s <= t} w_ts;  the cosine of a difference is a sum of two products, so that
    phi(x) = [relu(x) cos(pi/2 p/M), relu(x) sin(pi/2 p/M)]

Shapes: B batch, T time, D width, H heads, K head dimension, F features of a head (2 K), M horizon.

Cost: train and prefill O(T) in chunks, decode O(1): 4 D^2 + 4 H K (K + 1) multiply-adds a token; state 2 H K (K + 1) numbers.

Differs from the paper: M is a setting, not the length of the sequence at hand, since a token must not depend on how much
    follows it. Beyond M positions stand still: all later tokens count as equally far from each other (weight 1), and what
    stood at position p < M keeps the weight cos(pi/2 (1 - p/M)), so weights never become negative and any length continues.
    No bias in the projections (bias=True: with).

Oracle: tests/oracles/cosformer.py (float64, comparing all pairs).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.contract import Context, Place
from orrery.nn.kernel_attention import KernelAttention, KernelAttentionConfig
from orrery.nn.rotary import Rope
from orrery.ops.steps.kernel_attention import FeatureMap


@dataclass(frozen=True, kw_only=True)
class CosFormerConfig(KernelAttentionConfig):
    """horizon: M. rope is off: the cosine is what knows positions."""

    rope: Rope = 0.0
    horizon: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.horizon > 0, f"horizon must be positive, not {self.horizon}")


class CosFormer(KernelAttention):
    """ReLU features, reweighted by a cosine of the distance."""

    Config = CosFormerConfig
    config: CosFormerConfig
    examples = ({"head_dim": 8, "horizon": 50}, {"head_dim": 16, "horizon": 1000, "bias": True})

    def __init__(self, config: CosFormerConfig, place: Place) -> None:
        super().__init__(config, place)
        self.reset_parameters()

    @property
    def feature_count(self) -> int:
        """Two for every dimension of a head."""
        return 2 * self.head_dim

    def features(self, q: Tensor, k: Tensor, peak: Tensor | None, ctx: Context) -> tuple[Tensor, Tensor, None, Tensor]:
        """relu(x) cos and relu(x) sin of the position's angle (2202.08791 eq. 10)."""
        positions = ctx.timeline.positions.clamp(max=self.config.horizon).double()
        angle = (math.pi / 2 / self.config.horizon * positions)[..., None, None]
        turns = angle.cos().to(q.dtype), angle.sin().to(q.dtype)
        q, k = F.relu(q), F.relu(k)
        return torch.cat([q * turn for turn in turns], -1), torch.cat([k * turn for turn in turns], -1), None, self.no_peak(q)

    def feature_map(self) -> FeatureMap:
        """relu(x) cos and relu(x) sin."""
        return FeatureMap("cosine", horizon=self.config.horizon)


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "cosformer"}, channel={"name": "mlp", "activation": "gelu"}, norm="layernorm", eps=1e-5),
    frame={"tied": True, "norm": "layernorm", "eps": 1e-5},
    head="mixer.head_dim",
    fine_ratio=4.0,
)

register(
    "cosformer",
    mixer="CosFormer",
    architecture="ARCHITECTURE",
    summary="cosFormer: linear attention with ReLU features and cosine reweighting",
    paper="2202.08791",
    year=2022,
    tags=("causal", "recurrent", "parallel", "positions", "rectified"),
)
