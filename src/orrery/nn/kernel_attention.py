"""What linear attention mixers share: a kernel in the place of the softmax, a normaliser, a state of constant size.

    y_t = sum_{s <= t} phi(q_t).phi(k_s) v_s / sum_{s <= t} phi(q_t).phi(k_s),   phi >= 0          (2006.16236, eq. 9)

The normaliser is one more value, always 1, so that numerator and denominator are one scalar-decay recurrence; its decay is
0 unless the features are scaled by a running maximum, which then decays what is stored.

B batch, T time, D width, H heads, K head dimension, F features of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core.config import require
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.heads import check_heads, count_heads, turns
from orrery.nn.projection import Projection
from orrery.nn.rotary import Rope, rotate, rotated_size, scaling_of
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import fresh_clock
from orrery.ops.running_max import LOWEST
from orrery.ops.scalar_decay import scalar_decay, scalar_decay_matrix, scalar_decay_step
from orrery.ops.steps.kernel_attention import FeatureMap, kernel_attention_step
from orrery.ops.steps.row_linear import RowNorm


@dataclass(frozen=True, kw_only=True)
class KernelAttentionConfig(PartConfig):
    """heads None: width / head_dim. rope: the part of each head that is rotated before the feature map, or how
    positions are scaled; 0: no positions.
    eps: least denominator. init_std None: sqrt(2 / 5D)."""

    heads: int | None = None
    head_dim: int = 64
    rope: Rope = 1.0
    rope_theta: float = 10000.0
    bias: bool = False
    eps: float = 1e-6
    init_std: float | None = None

    def __post_init__(self) -> None:
        check_heads(self)
        require(self.eps > 0, f"eps must be positive, not {self.eps}")


@state
class KernelAttentionState(NamedTuple):
    """memory: (B,H,F,K+1), numerators and denominators, float32. peak: (B,H), the logarithm of their scale, or (B,0).

    conv: the projection's last inputs; clock: (B,2).
    """

    memory: Tensor
    peak: Tensor
    conv: Tensor
    clock: Tensor


class KernelAttention(Mixer):
    """Causal linear attention; subclasses say what phi is."""

    Config = KernelAttentionConfig
    State = KernelAttentionState
    config: KernelAttentionConfig
    peaked = False  # phi(k) is scaled by its greatest value so far

    def __init__(self, config: KernelAttentionConfig, place: Place) -> None:
        super().__init__(config, place)
        self.head_dim = config.head_dim
        self.heads = count_heads(config, place)
        self.rotated, self.scaling = rotated_size(config.rope, self.head_dim), scaling_of(config.rope)
        inner = self.heads * self.head_dim
        self.inputs = Projection(place, 3 * inner, bias=config.bias)
        self.out = nn.Linear(inner, place.width, bias=config.bias)

    def reset_parameters(self) -> None:
        """Normal with std sqrt(2 / 5D) or as configured; the way out is scaled by 1/sqrt(2 depth)."""
        std = self.config.init_std or math.sqrt(2 / (5 * self.place.width))
        nn.init.normal_(self.inputs.linear.weight, std=std)
        nn.init.normal_(self.out.weight, std=std / math.sqrt(2 * self.place.depth))
        for linear in (self.inputs.linear, self.out):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        if self.inputs.conv is not None:
            self.inputs.conv.reset_parameters()

    @property
    def feature_count(self) -> int:
        """F, the features of a head."""
        return self.head_dim

    def feature_flops(self) -> int:
        """Operations of phi on a query and a key of one head."""
        return 0

    def features(self, q: Tensor, k: Tensor, peak: Tensor | None, ctx: Context) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Phi of q and k (B,T,H,K), float32 or float64.

        Returns:
            phi(q), phi(k) (B,T,H,F), the decays that go with them (B,T,H) or None, and the new peak (B,H) or (B,0).
        """
        raise NotImplementedError(f"{type(self).__name__} must define features(q, k, peak, ctx)")

    def feature_map(self) -> FeatureMap | None:
        """Phi as the compiled step takes it; None: the step knows no such features."""
        return None

    def mix(self, x: Tensor, state: KernelAttentionState | None, ctx: Context) -> tuple[Tensor, KernelAttentionState]:
        time = ctx.timeline
        q, k, v, g_log, peak, conv = self._prepare(x, state, ctx)
        values = F.pad(v, (0, 1), value=1.0)
        if x.shape[1] == 1 and state is not None and time.starts is None and time.lengths is None:
            now = q[:, 0], k[:, 0], values[:, 0], g_log[:, 0]
            read, memory = scalar_decay_step(*now, state.memory, donate=ctx.donate)
            read = read[:, None]
        else:
            before = None if state is None else state.memory
            read, memory = scalar_decay(q, k, values, g_log, before, time.starts, lengths=time.lengths)
        y = read[..., :-1] / read[..., -1:].clamp(min=self.config.eps)  # 2006.16236 eq. 12
        return self.out(y.flatten(2).to(x.dtype)), KernelAttentionState(memory, peak, conv, time.clock)

    def _prepare(self, x: Tensor, state: KernelAttentionState | None, ctx: Context) -> tuple[Tensor, ...]:
        """phi(q), phi(k) (B,T,H,F), v (B,T,H,K), decays (B,T,H), the new peak, the projection's last inputs."""
        p, conv = self.inputs(x, None if state is None else state.conv, ctx)
        q, k, v = p.unflatten(-1, (3, self.heads, self.head_dim)).unbind(2)
        if self.rotated:
            table = turns(q, ctx, self.rotated, self.config.rope_theta, self.scaling)
            q, k = rotate(q, table), rotate(k, table)
        kind = torch.float64 if p.dtype == torch.float64 else torch.float32
        with torch.autocast(x.device.type, enabled=False):
            q, k, g_log, peak = self.features(q.to(kind), k.to(kind), None if state is None else state.peak, ctx)
        return q, k, v.to(kind), (k.new_zeros(k.shape[:3]) if g_log is None else g_log), peak, conv

    def stepper(self, norm: RowNorm, state: KernelAttentionState, run: Stepping) -> Step | None:
        features = self.feature_map()
        if features is None or not plain_linear(self.inputs.linear, self.out):
            return None
        batch = len(run.x)
        p, y = run.x.new_empty(batch, self.inputs.linear.out_features), run.x.new_empty(batch, self.out.in_features)
        memory, peak = run.own(state.memory), run.own(state.peak)
        table = run.turns(self.rotated, self.config.rope_theta, self.scaling)
        project = self.inputs.step(run.x, state.conv, p, norm)
        attend = kernel_attention_step(p, memory, peak, y, features, run.positions, table, self.config.eps)
        return in_order(project, attend, linear_step(y, self.out, run.x, add=True))

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The attention matrix (B,H,T,T) of a whole sequence; row t sums to 1 where the denominator is not near 0."""
        q, k, _, g_log, _, _ = self._prepare(x, None, ctx)
        weights = scalar_decay_matrix(q, k, g_log, ctx.timeline.starts)
        return weights / weights.sum(-1, keepdim=True).clamp(min=self.config.eps)

    def no_peak(self, like: Tensor) -> Tensor:
        """What stands for a peak where there is none: (B,0)."""
        return like.new_zeros(len(like), 0)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> KernelAttentionState:
        """Nothing seen; float32 unless `dtype` is float64."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        memory = torch.zeros(batch, self.heads, self.feature_count, self.head_dim + 1, device=device, dtype=kind)
        peak = torch.full((batch, self.heads if self.peaked else 0), LOWEST, device=device, dtype=kind)
        return KernelAttentionState(memory, peak, self.inputs.init_state(batch, device, dtype), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        numbers = self.heads * (self.feature_count * (self.head_dim + 1) + int(self.peaked))
        return numbers * max(4, self.out.weight.element_size()) + self.inputs.state_bytes()

    def flops(self, length: int) -> int:
        """Projections, features, and 2 F (K + 1) each for writing and reading, per head and token."""
        out = 2 * self.heads * self.head_dim * self.place.width
        head = self.feature_flops() + 4 * self.feature_count * (self.head_dim + 1)
        return self.inputs.flops(length) + (out + self.heads * head) * length
