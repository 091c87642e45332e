"""Linear attention: softmax's kernel replaced by a product of positive features, so that attention is a recurrence.

Paper: Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention (arXiv 2006.16236).

Equation: phi(x) = elu(x) + 1;  S_t = S_{t-1} + phi(k_t) v_t^T;  z_t = z_{t-1} + phi(k_t);
    y_t = phi(q_t) S_t / phi(q_t).z_t;  out = W_o [y of all heads]

Shapes: B batch, T time, D width, H heads, K head dimension.

Cost: train and prefill O(T) in chunks, decode O(1): 4 D^2 + 2 H K (K + 1) multiply-adds a token; state H K (K + 1) numbers.

Differs from the paper: q and k are rotated by their positions before the feature map, so that any length can be read
    (rope=0 and positions="learned" give the paper's absolute positions); no bias in the projections.

Oracle: tests/oracles/linear_attention.py (float64, comparing all pairs).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.contract import Context, Place
from orrery.nn.kernel_attention import KernelAttention, KernelAttentionConfig
from orrery.ops.steps.kernel_attention import FeatureMap


class LinearAttention(KernelAttention):
    """phi(x) = elu(x) + 1."""

    examples = ({"head_dim": 8}, {"head_dim": 16, "rope": 0.0, "bias": True})

    def __init__(self, config: KernelAttentionConfig, place: Place) -> None:
        super().__init__(config, place)
        self.reset_parameters()

    def features(self, q: Tensor, k: Tensor, peak: Tensor | None, ctx: Context) -> tuple[Tensor, Tensor, None, Tensor]:
        """Elu(x) + 1 (2006.16236 eq. 7)."""
        return F.elu(q) + 1, F.elu(k) + 1, None, self.no_peak(q)

    def feature_map(self) -> FeatureMap:
        """Elu(x) + 1."""
        return FeatureMap("elu")


def _published(depth: int) -> dict[str, Any]:
    return {"width": 256, "depth": depth, "vocab_size": 256, "mixer.head_dim": 32, "channel.hidden": 1024}


ARCHITECTURE = Architecture(
    block=BlockConfig(
        mixer={"name": "linear-attention"}, channel={"name": "mlp", "activation": "gelu"}, norm="layernorm", eps=1e-5
    ),
    frame={"tied": True, "norm": "layernorm", "eps": 1e-5},
    head="mixer.head_dim",
    fine_ratio=4.0,
    presets={"linear-attention-mnist": _published(8), "linear-attention-cifar10": _published(16)},
)

register(
    "linear-attention",
    mixer="LinearAttention",
    architecture="ARCHITECTURE",
    summary="Linear attention with the features elu(x) + 1 and a normaliser",
    paper="2006.16236",
    year=2020,
    tags=("causal", "recurrent", "parallel", "positions"),
    presets=("linear-attention-mnist", "linear-attention-cifar10"),
)
