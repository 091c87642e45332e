"""What graph-aware attention mixers share: attention as the adjacency of a causal graph, and one small network per head.

    A = softmax(s q k^T / (sqrt(K) tau)) over s <= t, same document;  y_h = MLP_h(aggregate(A_h, nodes_h))     (2501.02393)
    MLP_h(z) = W2_h silu(rmsnorm(W1_h z + b1_h)) + b2_h, with or without the norm

B batch, T time, D width, H heads, K head dimension, S tokens held, N size of what is aggregated, F hidden size of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core.config import require
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.heads import check_heads, count_heads, turns
from orrery.nn.marks import no_decay
from orrery.nn.memory import columns, distances
from orrery.nn.projection import Projection
from orrery.nn.rotary import Rope, rotate, rotated_size, scaling_of
from orrery.ops.fused.rms_norm import rms_norm

_SATURATED = 1000.0
"""Queries and keys are cut here: the softmax is saturated long before, and at scores of 1e9, to which a learned s may drive
them, flash kernels recompute weights that no longer sum to 1 and return gradients of 1e23."""


@dataclass(frozen=True, kw_only=True)
class GraphAttentionConfig(PartConfig):
    """heads None: width / head_dim. hidden: F / K. temperature: tau. sharpen: s is learned (it starts at 1). rope: the
    rotated part of a head, or how positions are scaled. project: a linear map after the heads. normed: the RMSNorm in the heads'
    networks. init_std None: sqrt(2 / 5D)."""

    heads: int | None = None
    head_dim: int = 64
    hidden: float = 0.5
    temperature: float = 1.0
    sharpen: bool = True
    rope: Rope = 1.0
    rope_theta: float = 10000.0
    project: bool = True
    normed: bool = True
    bias: bool = False
    eps: float = 1e-6
    init_std: float | None = None

    def __post_init__(self) -> None:
        check_heads(self)
        require(self.hidden * self.head_dim >= 1, f"hidden {self.hidden} leaves a head of {self.head_dim} without a hidden unit")
        require(self.temperature > 0, f"temperature must be positive, not {self.temperature}")


class HeadMLP(nn.Module):
    """One two-layer network per head: z (B,T,H,N) -> (B,T,H,K)."""

    def __init__(self, heads: int, size: int, hidden: int, out: int, eps: float, normed: bool) -> None:
        super().__init__()
        self.eps = eps
        self.wide = nn.Parameter(torch.empty(heads, size, hidden))
        self.wide_bias = nn.Parameter(torch.empty(heads, hidden))
        self.norm = nn.Parameter(torch.empty(heads, hidden)) if normed else None
        self.narrow = nn.Parameter(torch.empty(heads, hidden, out))
        self.narrow_bias = nn.Parameter(torch.empty(heads, out))

    def reset_parameters(self) -> None:
        """As PyTorch's linear maps; norms 1."""
        for weight, bias in ((self.wide, self.wide_bias), (self.narrow, self.narrow_bias)):
            bound = weight.shape[1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)
        no_decay(self.wide_bias, self.narrow_bias)
        if self.norm is not None:
            nn.init.ones_(self.norm)
            no_decay(self.norm)

    def forward(self, z: Tensor) -> Tensor:
        """Z (B,T,H,N) -> (B,T,H,K)."""
        h = torch.einsum("bthn,hnf->bthf", z, self.wide) + self.wide_bias
        h = F.silu(h if self.norm is None else rms_norm(h, None, self.eps) * self.norm)
        return torch.einsum("bthf,hfk->bthk", h, self.narrow) + self.narrow_bias

    def flops(self, length: int) -> int:
        """Both products."""
        return 2 * (self.wide.numel() + self.narrow.numel()) * length


class GraphAttention(Mixer):
    """Queries, keys and adjacency; subclasses say what the nodes are and how they are aggregated."""

    Config = GraphAttentionConfig
    config: GraphAttentionConfig

    def __init__(self, config: GraphAttentionConfig, place: Place, branches: int, aggregated: int) -> None:
        super().__init__(config, place)
        self.head_dim = config.head_dim
        self.heads = count_heads(config, place)
        inner = self.heads * self.head_dim
        require(
            config.project or inner == place.width,
            f"without a projection {self.heads} heads of {self.head_dim} must make the width {place.width}; set project=true",
        )
        self.rotated, self.scaling = rotated_size(config.rope, self.head_dim), scaling_of(config.rope)
        self.inputs = Projection(place, branches * inner, bias=config.bias)
        self.sharpness = nn.Parameter(torch.empty(1)) if config.sharpen else None
        hidden = int(config.hidden * self.head_dim)
        self.network = HeadMLP(self.heads, aggregated * self.head_dim, hidden, self.head_dim, config.eps, config.normed)
        self.out = nn.Linear(inner, place.width, bias=config.bias) if config.project else None

    def reset_parameters(self) -> None:
        """Normal with std sqrt(2 / 5D) or as configured, the way out scaled by 1/sqrt(2 depth); s 1."""
        std = self.config.init_std or math.sqrt(2 / (5 * self.place.width))
        nn.init.normal_(self.inputs.linear.weight, std=std)
        if self.out is not None:
            nn.init.normal_(self.out.weight, std=std / math.sqrt(2 * self.place.depth))
        for linear in (self.inputs.linear, self.out):
            if linear is not None and linear.bias is not None:
                nn.init.zeros_(linear.bias)
        if self.sharpness is not None:
            nn.init.ones_(self.sharpness)
        self.network.reset_parameters()
        if self.inputs.conv is not None:
            self.inputs.conv.reset_parameters()

    def project(self, x: Tensor, conv: Tensor | None, ctx: Context) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Q and k (B,T,H,K), rotated; whatever else was projected (B,T,.,H,K); the projection's last inputs."""
        p, conv = self.inputs(x, conv, ctx)
        p = p.unflatten(-1, (-1, self.heads, self.head_dim))
        q, k, rest = p[:, :, 0], p[:, :, 1], p[:, :, 2:]
        if self.rotated:
            table = turns(q, ctx, self.rotated, self.config.rope_theta, self.scaling)
            q, k = rotate(q, table), rotate(k, table)
        if self.sharpness is not None:
            q = (q.to(self._kind(q)) * self.sharpness.to(self._kind(q))).to(q.dtype)
        return q.clamp(-_SATURATED, _SATURATED), k.clamp(-_SATURATED, _SATURATED), rest, conv

    @staticmethod
    def _kind(x: Tensor) -> torch.dtype:
        """The gradient of s sums over all queries: float32 at least."""
        return torch.float64 if x.dtype == torch.float64 else torch.float32

    def seen(self, clock: Tensor | None, length: int, ctx: Context) -> Tensor | str:
        """Which columns a query sees: "causal", "all" or bool (1|B,1,T,old+T)."""
        time = ctx.timeline
        if time.starts is None and columns(time, None) == 0:
            return "causal"
        if time.starts is None and time.even and length == 1:
            return "all"
        return (distances(time, clock, length, None) >= 0)[:, None]

    def aggregate(self, q: Tensor, k: Tensor, nodes: Tensor, seen: Tensor | str) -> Tensor:
        """A X: q (B,T,H,K), k and nodes (B,S,H,K) -> (B,T,H,K)."""
        q, k, nodes = q.transpose(1, 2), k.transpose(1, 2), nodes.transpose(1, 2)
        mask = None if isinstance(seen, str) else seen
        scale = 1 / (math.sqrt(self.head_dim) * self.config.temperature)
        causal = isinstance(seen, str) and seen == "causal"
        return F.scaled_dot_product_attention(q, k, nodes, mask, is_causal=causal, scale=scale).transpose(1, 2)

    def combine(self, z: Tensor) -> Tensor:
        """The networks on z (B,T,H,N), and the way out: (B,T,D)."""
        y = self.network(z).flatten(2)
        return y if self.out is None else self.out(y)

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The adjacency (B,H,T,T) of a whole sequence; row t sums to 1."""
        q, k, _, _ = self.project(x, None, ctx)
        scores = torch.einsum("bthk,bshk->bhts", q, k) / (math.sqrt(self.head_dim) * self.config.temperature)
        far = distances(ctx.timeline, None, x.shape[1], None)
        return scores.masked_fill((far < 0)[:, None], -math.inf).softmax(-1)

    def flops(self, length: int) -> int:
        """Projections, A X once, the networks, the way out."""
        inner, pairs = self.heads * self.head_dim, length * (length + 1) // 2
        out = 0 if self.out is None else 2 * inner * self.place.width
        return self.inputs.flops(length) + 4 * inner * pairs + self.network.flops(length) + out * length
