"""Performer: softmax attention estimated by positive orthogonal random features (FAVOR+).

Paper: Rethinking Attention with Performers (arXiv 2009.14794).

Equation: phi(x)_m = exp(w_m.x' - |x'|^2 / 2), x' = x / K^(1/4), so that E[phi(q).phi(k)] = exp(q.k / sqrt(K));
    w_1 .. w_F orthogonal in blocks of K, each as long as a Gaussian vector;
    y_t = sum_{s <= t} phi(q_t).phi(k_s) v_s / sum_{s <= t} phi(q_t).phi(k_s)
    with features="relu": phi(x)_m = relu(w_m.x') + 1e-3 (generalised attention)

Shapes: B batch, T time, D width, H heads, K head dimension, F features of a head.

Cost: train and prefill O(T) in chunks, decode O(1): 4 D^2 + 2 H F K + 2 H F (K + 1) multiply-adds a token; state
    H F (K + 1) + H numbers.

Differs from the paper: features are drawn once and kept (buffers `directions`, and `seed`, from which they were drawn), not
    redrawn in training; exponents are taken relative to the greatest key exponent of the document so far, which is exact
    and causal, where the paper's code takes the maximum over all keys of the sequence and adds 1e-4 (in JAX) or 1e-6 (in
    TensorFlow); q and k are rotated by their positions first (rope=0: not); no bias in the projections (bias=True: with).

Oracle: tests/oracles/performer.py (float64, comparing all pairs).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.contract import Context, Place
from orrery.nn.kernel_attention import KernelAttention, KernelAttentionConfig
from orrery.nn.recompute import recompute
from orrery.nn.timeline import Timeline
from orrery.ops.running_max import LOWEST, running_max
from orrery.ops.steps.kernel_attention import RELU_FLOOR, FeatureMap


@dataclass(frozen=True, kw_only=True)
class PerformerConfig(KernelAttentionConfig):
    """random: F, None: 4 K (the paper's 256 at K = 64). features: "softmax" or "relu". orthogonal: False draws directions
    independently."""

    eps: float = 1e-20
    random: int | None = None
    features: str = "softmax"
    orthogonal: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.random is None or self.random > 0, f"random must be positive, not {self.random}")
        require(self.features in ("softmax", "relu"), f"features '{self.features}' must be softmax or relu")


class Performer(KernelAttention):
    """FAVOR+ features."""

    Config = PerformerConfig
    config: PerformerConfig
    examples = ({"head_dim": 8, "random": 12},)
    directions: Tensor
    seed: Tensor

    def __init__(self, config: PerformerConfig, place: Place) -> None:
        super().__init__(config, place)
        self.peaked = config.features == "softmax"
        self.register_buffer("directions", torch.empty(self.feature_count, self.head_dim))
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices as attention's; new directions from a new seed."""
        super().reset_parameters()
        if self.seed.is_meta:  # nothing can be drawn yet
            return
        self.seed.copy_(torch.randint(2**62, ()))
        drawn = draw_directions(self.feature_count, self.head_dim, int(self.seed), self.config.orthogonal)
        self.directions.copy_(drawn)

    @property
    def feature_count(self) -> int:
        """F as it is configured."""
        return self.config.random or 4 * self.head_dim

    def feature_flops(self) -> int:
        """The products with the directions."""
        return 4 * self.feature_count * self.head_dim

    def features(self, q: Tensor, k: Tensor, peak: Tensor | None, ctx: Context) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """phi(q) up to a factor per query, phi(k) relative to the greatest so far (2009.14794 eq. 7 and lemma 1)."""
        found: tuple[Tensor, Tensor, Tensor | None, Tensor] = recompute(partial(self._features, ctx.timeline), q, k, peak)
        return found

    def _features(self, time: Timeline, q: Tensor, k: Tensor, peak: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        root = self.head_dim**-0.25
        directions = self.directions.to(q.dtype)
        a, b = (F.linear(x * root, directions) for x in (q, k))
        if not self.peaked:
            return F.relu(a) + RELU_FLOOR, F.relu(b) + RELU_FLOOR, None, self.no_peak(q)
        b = b - 0.5 * root**2 * k.square().sum(-1, keepdim=True)
        highest, after = running_max(b.amax(-1), peak, time.starts, time.lengths)
        first = torch.full_like(highest[:, 0], LOWEST) if peak is None else peak.to(highest.dtype)
        g_log = torch.cat([first[:, None], highest[:, :-1]], 1) - highest
        phi_k = (b - highest[..., None]).clamp(max=0.0).exp()  # above 0 only where a row is padded
        return (a - a.detach().amax(-1, keepdim=True)).exp(), phi_k, g_log.clamp(max=0.0), after

    def feature_map(self) -> FeatureMap:
        """As configured."""
        return FeatureMap(self.config.features, self.directions)


def draw_directions(count: int, size: int, seed: int, orthogonal: bool = True) -> Tensor:
    """(F,K) float64 directions: Gaussian, or orthogonal in blocks of K with the lengths of Gaussian vectors."""
    generator = torch.Generator().manual_seed(seed)
    shape = (-(-count // size), size, size)
    plain = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    if not orthogonal:
        return plain.flatten(0, 1)[:count]
    turned, triangle = torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu"))
    turned = turned * triangle.diagonal(dim1=1, dim2=2).sign()[:, None]  # uniform over rotations
    return (turned.transpose(1, 2) * plain.norm(dim=2, keepdim=True)).flatten(0, 1)[:count]


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "performer"}, channel={"name": "mlp", "activation": "gelu"}, norm="layernorm", eps=1e-5),
    frame={"tied": True, "norm": "layernorm", "eps": 1e-5},
    head="mixer.head_dim",
    fine_ratio=4.0,
    presets={
        "performer-trembl": {
            "width": 512, "depth": 36, "vocab_size": 30, "mixer.head_dim": 64, "mixer.random": 256, "channel.hidden": 1024,
        }
    },
)  # fmt: skip

register(
    "performer",
    mixer="Performer",
    architecture="ARCHITECTURE",
    summary="Performer: softmax attention by positive orthogonal random features (FAVOR+)",
    paper="2009.14794",
    year=2020,
    tags=("causal", "recurrent", "parallel", "positions"),
    presets=("performer-trembl",),
)
