"""Kimi Delta Attention: Gated DeltaNet with a decay of its own for every key channel, through a low-rank map.

Paper: Kimi Linear: An Expressive, Efficient Attention Architecture (arXiv 2510.26692, section 3).

Equation: q, k, v = silu(conv(W x)), split;  q, k divided by their norms;  beta = sigmoid(W_b x);
    g = -exp(A_log) softplus(W_f2 W_f1 x + dt_bias), a number per head and channel, or with `bound` (Ling 3.0)
    g = bound sigmoid(exp(A_log) (W_f2 W_f1 x + dt_bias));  and per head
    S_t = (I - beta_t k_t k_t^T) diag(exp(g_t)) S_{t-1} + beta_t k_t v_t^T;  o_t = S_t^T q_t / sqrt(K);
    y = W_o [ RMSNorm(o_1) * sigmoid(z_1) .. RMSNorm(o_H) * sigmoid(z_H) ],  z = W_z2 W_z1 x;  without `low_rank` one matrix for each two

Shapes: B batch, T time, D width, H heads, K = V head size (also the rank of both low-rank maps), E = 3 H K convolved.

Cost: train and prefill 2 D (4 H K + 2 K + H) + 4 H K^2 + 7 H K^2 a token; decode the same, independent of T;
    state H K^2 + 3 E numbers.

Differs from the paper: one convolution over q, k, v side by side, which is the same as three; W_z2 has no bias (as in
    transformers' Kimi-Linear; fla's has one). With a bound A starts at 1, as in fla; transformers' Ling 3.0 draws it as
    without one, which leaves most heads no gradient to their decays. Kimi Linear itself puts one layer of latent attention
    behind every three of these (`kimi-linear`).

Oracle: tests/oracles/kda.py (float64 loops); transformers' KimiLinearDeltaAttention with the same weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from orrery.core.config import require
from orrery.core.errors import ConfigError
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.conv import ShortConv
from orrery.nn.norms import RMSNorm
from orrery.nn.recompute import linear_of, small_linear
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import fresh_clock
from orrery.ops.dplr import dplr
from orrery.ops.fused.gates import sigmoid_gate
from orrery.ops.fused.kda_gates import kda_gates
from orrery.ops.fused.rms_norm import rms_norm
from orrery.ops.kda import kda
from orrery.ops.steps.dplr import KDAWeights, kda_stepper
from orrery.ops.steps.row_linear import RowNorm


@dataclass(frozen=True, kw_only=True)
class KDAConfig(PartConfig):
    """heads None: width / head_dim, rounded. conv: taps of the convolution. negative: beta in (0, 2) instead of (0, 1). low_rank: the
    maps to decay and gate go through head_dim numbers. bound: of the logarithm of a decay, from below; None: none."""

    heads: int | None = None
    head_dim: int = 128
    conv: int = 4
    negative: bool = False
    low_rank: bool = True
    bound: float | None = None
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        require(self.head_dim > 0, f"head_dim must be positive, not {self.head_dim}")
        require(self.heads is None or self.heads > 0, f"heads must be positive, not {self.heads}")
        require(self.conv >= 1, f"conv must be 1 tap or more, not {self.conv}")
        require(self.bound is None or self.bound < 0, f"bound must be below 0, not {self.bound}")


_Given = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@state
class KDAState(NamedTuple):
    """conv: the last inputs of the convolution (B,conv-1,E); memory: S (B,H,K,K), float32; clock: (B,2)."""

    conv: Tensor
    memory: Tensor
    clock: Tensor


class KDA(Mixer):
    """The delta rule with vector decay over heads, with its convolution and output gate."""

    Config = KDAConfig
    State = KDAState
    config: KDAConfig
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"head_dim": 16},
        {"head_dim": 6, "heads": 3, "negative": True, "conv": 3},
        {"head_dim": 8, "low_rank": False, "bound": -5.0},
    )

    def __init__(self, config: KDAConfig, place: Place) -> None:
        super().__init__(config, place)
        self.head_dim = config.head_dim
        self.heads = config.heads or max(1, round(place.width / config.head_dim))
        self.inner = self.heads * self.head_dim
        self.between = self.head_dim if config.low_rank else self.inner
        self._parts = [3 * self.inner, self.between, self.between, self.heads]
        self.inputs = nn.Linear(place.width, sum(self._parts), bias=False)  # of q, k, v; W_f1; W_z1; beta, in this order
        self.conv = ShortConv(3 * self.inner, config.conv, activation="silu")
        self.decay = nn.Linear(self.head_dim, self.inner, bias=False) if config.low_rank else None  # W_f2
        self.decay_log = nn.Parameter(torch.empty(self.heads))
        self.decay_bias = nn.Parameter(torch.empty(self.inner))
        self.gate = nn.Linear(self.head_dim, self.inner, bias=False) if config.low_rank else None  # W_z2
        self.norm = RMSNorm(self.head_dim, config.norm_eps)
        self.out = nn.Linear(self.inner, place.width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Linear maps uniform +-1/sqrt(fan in); A uniform in [1, 16], or 1 with a bound; softplus(dt_bias) log-uniform in
        [0.001, 0.1]."""
        for linear in self._maps:
            nn.init.uniform_(linear.weight, -(linear.in_features**-0.5), linear.in_features**-0.5)
        self.conv.reset_parameters()
        self.norm.reset_parameters()
        with torch.no_grad():
            self.decay_log.uniform_(1, 16).log_()
            if self.config.bound is not None:  # an A of 16 would hold the sigmoid at its flat end
                self.decay_log.zero_()
            step = self.decay_bias.uniform_(math.log(1e-3), math.log(1e-1)).exp_()
            self.decay_bias.copy_(step + torch.log(-torch.expm1(-step)))

    def mix(self, x: Tensor, state: KDAState | None, ctx: Context) -> tuple[Tensor, KDAState]:
        time = ctx.timeline
        given, z, conv = self._project(x, None if state is None else state.conv, ctx)
        before, valid = None if state is None else state.memory, time.valid(x.shape[1])
        o, memory = kda(*given, before, time.starts, most=self._most, valid=valid, bound=self.config.bound or 0.0)
        return linear_of(self._read, self.out, o, z, self.norm.weight), KDAState(conv, memory, time.clock)

    def _read(self, o: Tensor, z: Tensor, gain: Tensor) -> Tensor:
        """The normed heads side by side, gated."""
        normed = rms_norm(o, gain.to(o.dtype), self.config.norm_eps).flatten(2)
        return sigmoid_gate(z.to(o.dtype), normed).to(z.dtype)

    def stepper(self, norm: RowNorm, state: KDAState, run: Stepping) -> Step | None:
        if not plain_linear(*self._maps):
            return None
        p, y = run.x.new_empty(len(run.x), self.inputs.out_features), run.x.new_empty(len(run.x), self.inner)
        window, memory = run.own(state.conv), run.own(state.memory)
        nothing = run.x.new_empty(0, self.head_dim)
        decay, gate = (nothing if linear is None else linear.weight for linear in (self.decay, self.gate))
        limits = self.config.norm_eps, self._most, self.config.bound or 0.0
        weights = KDAWeights(self.conv.weight, decay, self.decay_log, self.decay_bias, gate, self.norm.weight, *limits)
        project = linear_step(run.x, self.inputs, p, norm)
        recur = kda_stepper(p, window, memory, y, weights)
        out = linear_step(y, self.out, run.x, add=True)
        return in_order(project, recur, out)

    @property
    def _maps(self) -> list[nn.Linear]:
        return [linear for linear in (self.inputs, self.decay, self.gate, self.out) if linear is not None]

    @property
    def _most(self) -> float:
        return 2.0 if self.config.negative else 1.0

    def _project(self, x: Tensor, conv: Tensor | None, ctx: Context) -> tuple[_Given, Tensor, Tensor]:
        """What the gates are made of (:func:`orrery.ops.kda.kda`); z (B,T,H*K), and the convolution's last inputs."""
        mixed, f, z, raw = self.inputs(x).split(self._parts, -1)
        mixed, conv = self.conv.recomputed(mixed, conv, ctx)
        if self.decay is not None and self.gate is not None:
            f, z = small_linear(self.decay, f), small_linear(self.gate, z)
        return (mixed, raw, f, self.decay_log, self.decay_bias), z, conv

    @torch.no_grad()
    def forget_more(self, decay: float, insertion: float) -> None:
        """Raise every token's decay to the power `decay`. What a delta rule writes depends on what stands there: no insertion."""
        if self.config.bound is not None:
            raise ConfigError("a decay with a bound cannot be raised to a power; leave it as it is")
        if insertion != 1.0:
            raise ConfigError("what a delta rule writes cannot be scaled as a whole; leave insertion at 1")
        self.decay_log.add_(math.log(decay))

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The matrices M (B,H,T,T) with o = M v: the recurrence, given unit vectors as values."""
        batch, length = x.shape[:2]
        given, _, _ = self._project(x, None, ctx)
        q, k, _, a, b, g_log = kda_gates(*given, self._most, ctx.timeline.valid(length), self.config.bound or 0.0)
        units = torch.eye(length, dtype=k.dtype, device=x.device)[None, :, None].expand(batch, -1, self.heads, -1)
        return dplr(q, k, units, a, b, g_log, None, ctx.timeline.starts, self.head_dim**-0.5)[0].transpose(1, 2)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> KDAState:
        wide = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        memory = torch.zeros(batch, self.heads, self.head_dim, self.head_dim, device=device, dtype=wide)
        return KDAState(self.conv.init_state(batch, device, dtype), memory, fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        wide = 8 if self.out.weight.dtype == torch.float64 else 4
        return self.conv.state_bytes() + wide * self.inner * self.head_dim

    def flops(self, length: int) -> int:
        wide = self.place.width * (self.inputs.out_features + self.inner)
        linear = 2 * (wide + (2 * self.head_dim * self.inner if self.config.low_rank else 0))
        recurrence = 8 * self.inner * self.head_dim  # ask, write twice, read
        return (linear + recurrence) * length + self.conv.flops(length)


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "kda"}, channel={"name": "glu"}, eps=1e-5),
    frame={"tied": True, "eps": 1e-5},
    head="mixer.head_dim",
)

register(
    "kda",
    mixer="KDA",
    architecture="ARCHITECTURE",
    summary="Kimi Delta Attention: the delta rule with a decay for every key channel",
    paper="2510.26692",
    year=2025,
    tags=("causal", "recurrent", "parallel"),
)
