"""Gated DeltaNet: a matrix memory corrected by the delta rule and cleared by a decay gate. DeltaNet is one setting of it.

Paper: Gated Delta Networks: Improving Mamba2 with Delta Rule (arXiv 2412.06464); DeltaNet (arXiv 2406.06484); beta up to 2,
    for negative eigenvalues of the state's transition, 2411.12537.

Equation: q, k, v = silu(conv(W x)), split;  q, k divided by their norms;  beta = sigmoid(W_b x);
    g = -exp(A_log) softplus(W_a x + dt_bias);  and per head
    S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T;  o_t = S_t^T q_t / sqrt(K);
    y = W_o [ RMSNorm(o_1) * silu(z_1) .. RMSNorm(o_H) * silu(z_H) ],  z = W_z x

Shapes: B batch, T time, D width, H heads, K key dimension of a head, V value dimension of a head, E = H (2 K + V) convolved.

    With fewer heads G for q and k than for v (Qwen3-Next), each serves H / G heads of v in turn.

Cost: train and prefill 2 D H (2 K + 3 V) + 7 H K V a token (in chunks, as matrix products); decode the same, independent of
    T; state H K V + 3 E numbers. With the paper's H K = 3/4 D, V = 2 K: 6 D^2 parameters.

Differs from the paper: W_b has no bias (as in fla and Qwen3-Next; the authors' training code has one); A is drawn from
    (0.0001, 16) instead of (0, 16), whose logarithm may be infinite; one convolution over q, k, v side by side, which is
    the same as three.

Oracle: tests/oracles/gated_deltanet.py (float64 loops); transformers' Qwen3NextGatedDeltaNet with the same weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from orrery.core.config import require
from orrery.core.errors import ConfigError
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.conv import ShortConv
from orrery.nn.norms import RMSNorm
from orrery.nn.recompute import linear_of
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import fresh_clock
from orrery.ops.delta_rule import delta_rule
from orrery.ops.fused.rms_norm_gate import rms_norm_gate
from orrery.ops.steps.gated_delta import StepWeights, can_step, gated_delta_step, gated_delta_stepper
from orrery.ops.steps.row_linear import RowNorm

_L2_EPS = 1e-6  # under the root of |q|^2 + eps, as fla and transformers have it


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNetConfig(PartConfig):
    """heads None: key_ratio * width / head_dim, rounded. value_heads: of v, z, beta and g, a multiple of heads (None: as many).
    head_dim: K; V is expand_v times it. conv: taps of the convolution.
    decay, gate: with the decay g, with the output gate z (DeltaNet has neither). negative: beta in (0, 2) instead of (0, 1)."""

    heads: int | None = None
    value_heads: int | None = None
    head_dim: int = 128
    key_ratio: float = 0.75
    expand_v: float = 2.0
    conv: int = 4
    decay: bool = True
    gate: bool = True
    negative: bool = False
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        require(self.head_dim > 0, f"head_dim must be positive, not {self.head_dim}")
        require(self.heads is None or self.heads > 0, f"heads must be positive, not {self.heads}")
        require(self.conv >= 1, f"conv must be 1 tap or more, not {self.conv}")
        value = self.expand_v * self.head_dim
        require(
            value >= 1 and value == int(value),
            f"expand_v {self.expand_v} times head_dim {self.head_dim} must be a whole number",
        )


@state
class GatedDeltaNetState(NamedTuple):
    """conv: the last inputs of the convolution (B,conv-1,E); memory: S (B,H,K,V), float32; clock: (B,2)."""

    conv: Tensor
    memory: Tensor
    clock: Tensor


class GatedDeltaNet(Mixer):
    """The gated delta rule over heads, with its convolution and output gate."""

    Config = GatedDeltaNetConfig
    State = GatedDeltaNetState
    config: GatedDeltaNetConfig
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"head_dim": 8, "heads": 2, "value_heads": 4},
        {"heads": 2, "head_dim": 6, "expand_v": 1.5, "negative": True, "conv": 3},
        {"head_dim": 8, "expand_v": 1.0, "key_ratio": 1.0, "decay": False, "gate": False},
    )

    def __init__(self, config: GatedDeltaNetConfig, place: Place) -> None:
        super().__init__(config, place)
        self.key = config.head_dim
        self.value = int(config.expand_v * config.head_dim)
        self.key_heads = config.heads or max(1, round(config.key_ratio * place.width / config.head_dim))
        self.heads = config.value_heads or self.key_heads
        require(
            self.heads % self.key_heads == 0, f"value_heads {self.heads} must be a multiple of the {self.key_heads} heads of q and k"
        )
        inner = self.heads * self.value
        self.convolved = 2 * self.key_heads * self.key + inner
        self.key_rows, self.value_rows = self.key_heads * self.key, inner
        self._parts = [self.convolved, inner if config.gate else 0, self.heads, self.heads if config.decay else 0]
        self.inputs = nn.Linear(place.width, sum(self._parts), bias=False)  # of q, k, v; z; beta; g, in this order
        self.conv = ShortConv(self.convolved, config.conv, activation="silu")
        self.decay_log = nn.Parameter(torch.empty(self.heads)) if config.decay else None
        self.decay_bias = nn.Parameter(torch.empty(self.heads)) if config.decay else None
        self.norm = RMSNorm(self.value, config.norm_eps)
        self.out = nn.Linear(inner, place.width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Linear maps uniform +-1/sqrt(fan in); A uniform up to 16; softplus(dt_bias) log-uniform in [0.001, 0.1] (Mamba-2's)."""
        for linear in (self.inputs, self.out):
            nn.init.uniform_(linear.weight, -(linear.in_features**-0.5), linear.in_features**-0.5)
        self.conv.reset_parameters()
        self.norm.reset_parameters()
        if self.decay_log is not None and self.decay_bias is not None:
            with torch.no_grad():
                self.decay_log.uniform_(1e-4, 16).log_()
                step = self.decay_bias.uniform_(math.log(1e-3), math.log(1e-1)).exp_()
                self.decay_bias.copy_(step + torch.log(-torch.expm1(-step)))

    def mix(self, x: Tensor, state: GatedDeltaNetState | None, ctx: Context) -> tuple[Tensor, GatedDeltaNetState]:
        time, p = ctx.timeline, self.inputs(x)
        plain = x.shape[1] == 1 and time.starts is None and time.lengths is None
        if plain and state is not None and can_step(p, state.conv, state.memory):
            y, conv, memory = gated_delta_step(p[:, 0], state.conv, state.memory, self._step_weights(), ctx.donate)
            return self.out(y[:, None]), GatedDeltaNetState(conv, memory, time.clock)
        q, k, v, z, beta, g_log, conv = self._project(p, None if state is None else state.conv, ctx)
        o, memory = delta_rule(
            q, k, v, beta, g_log, None if state is None else state.memory, time.starts, self.key**-0.5, l2_eps=_L2_EPS
        )
        y = linear_of(self._read, self.out, o, z if self.config.gate else None, self.norm.weight)
        return y, GatedDeltaNetState(conv, memory, time.clock)

    def _read(self, o: Tensor, z: Tensor | None, gain: Tensor) -> Tensor:
        if z is None:
            return cast(Tensor, functional_call(self.norm, {"weight": gain}, (o,))).flatten(2)
        return rms_norm_gate(o, z, gain, self.config.norm_eps)

    def stepper(self, norm: RowNorm, state: GatedDeltaNetState, run: Stepping) -> Step | None:
        if not plain_linear(self.inputs, self.out):
            return None
        p, y = run.x.new_empty(len(run.x), self.inputs.out_features), run.x.new_empty(len(run.x), self.out.in_features)
        window, memory = run.own(state.conv), run.own(state.memory)
        project = linear_step(run.x, self.inputs, p, norm)
        recur = gated_delta_stepper(p, window, memory, y, self._step_weights())
        out = linear_step(y, self.out, run.x, add=True)
        return in_order(project, recur, out)

    def _step_weights(self) -> StepWeights:
        """What a single token meets between the two projections."""
        config, most = self.config, 2.0 if self.config.negative else 1.0
        decay = self.decay_log, self.decay_bias
        return StepWeights(self.conv.weight, *decay, self.norm.weight, config.norm_eps, _L2_EPS, config.gate, most)

    def _project(
        self, p: Tensor, conv: Tensor | None, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor]:
        """Q, k (B,T,H,K), v (B,T,H,V), z (B,T,H*V), beta and g (B,T,H), and the convolution's last inputs."""
        time = ctx.timeline
        mixed, z, b, a = p.split(self._parts, -1)
        if self.config.decay:
            mixed, conv = self.conv(mixed, conv, ctx)
            q, k, v = self._heads(mixed)
        else:
            (q, k, v), conv = self.conv.recomputed(mixed, conv, ctx, self._heads)
        wide = torch.promote_types(p.dtype, torch.float32)
        beta, g_log = torch.sigmoid(b.to(wide)), None
        if self.config.negative:
            beta = 2 * beta  # 2411.12537
        if self.decay_log is not None and self.decay_bias is not None:
            g_log = -self.decay_log.to(wide).exp() * F.softplus(
                a.to(wide) + self.decay_bias
            )  # 2412.06464, after Mamba-2
        valid = time.valid(p.shape[1])
        if valid is not None:  # padding leaves the memory as it is
            beta = beta.masked_fill(~valid[..., None], 0.0)
            g_log = None if g_log is None else g_log.masked_fill(~valid[..., None], 0.0)
        return q, k, v, z, beta, g_log, conv

    def _heads(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q, k (B,T,H,K) and v (B,T,H,V) of what has been convolved."""
        keys = self.key_heads * self.key
        q, k, v = mixed.split([keys, keys, self.heads * self.value], -1)
        q, k, v = (part.unflatten(-1, (-1, size)) for part, size in ((q, self.key), (k, self.key), (v, self.value)))
        if self.heads != self.key_heads:
            q, k = (part.repeat_interleave(self.heads // self.key_heads, 2) for part in (q, k))
        return q, k, v

    @torch.no_grad()
    def forget_more(self, decay: float, insertion: float) -> None:
        """Raise every token's decay to the power `decay`. What a delta rule writes depends on what stands there: no insertion."""
        if self.decay_log is None:
            raise ConfigError("DeltaNet has no decay that could be raised")
        if insertion != 1.0:
            raise ConfigError("what a delta rule writes cannot be scaled as a whole; leave insertion at 1")
        self.decay_log.add_(math.log(decay))

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The matrices M (B,H,T,T) with o = M v: the delta rule, given unit vectors as values."""
        q, k, _, _, beta, g_log, _ = self._project(self.inputs(x), None, ctx)
        batch, length = x.shape[:2]
        units = torch.eye(length, dtype=k.dtype, device=x.device)[None, :, None].expand(batch, -1, self.heads, -1)
        rows, _ = delta_rule(q, k, units, beta, g_log, None, ctx.timeline.starts, self.key**-0.5, l2_eps=_L2_EPS)
        return rows.transpose(1, 2)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> GatedDeltaNetState:
        wide = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)
        memory = torch.zeros(batch, self.heads, self.key, self.value, device=device, dtype=wide)
        return GatedDeltaNetState(self.conv.init_state(batch, device, dtype), memory, fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        wide = 8 if self.out.weight.dtype == torch.float64 else 4
        return self.conv.state_bytes() + wide * self.heads * self.key * self.value

    def flops(self, length: int) -> int:
        linear = 2 * self.place.width * (self.inputs.out_features + self.out.in_features)
        recurrence = 7 * self.heads * self.key * self.value  # fade, ask, write, read
        return (linear + recurrence) * length + self.conv.flops(length)


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "gated-deltanet"}, channel={"name": "glu"}, eps=1e-5),
    frame={"tied": True, "eps": 1e-5},
    head="mixer.head_dim",
    presets={  # the authors' training code; both have 9 heads
        "gated-deltanet-0.4b": {
            "width": 1536, "depth": 11, "vocab_size": 32000, "heads": 9, "head_dim": 128, "channel.hidden": 6144
        },
        "gated-deltanet-1.3b": {
            "width": 2400, "depth": 16, "vocab_size": 32000, "heads": 9, "head_dim": 200, "channel.hidden": 5888
        },
    },
)  # fmt: skip

DELTANET = Architecture(
    block=BlockConfig(
        mixer={"name": "gated-deltanet", "key_ratio": 1.0, "expand_v": 1.0, "decay": False, "gate": False},
        channel={"name": "glu"},
    ),
    frame={"tied": True},
    head="mixer.head_dim",
    presets={
        "deltanet-340m": {"width": 1024, "depth": 24, "vocab_size": 32000, "head_dim": 128, "channel.hidden": 2816},
        "deltanet-1.3b": {"width": 2048, "depth": 24, "vocab_size": 32000, "head_dim": 128, "channel.hidden": 5632},
    },
)

register(
    "deltanet",
    architecture="DELTANET",
    summary="DeltaNet: the delta rule without decay or output gate",
    paper="2406.06484",
    year=2024,
    tags=("causal", "recurrent", "parallel"),
    presets=("deltanet-340m", "deltanet-1.3b"),
)
register(
    "gated-deltanet",
    mixer="GatedDeltaNet",
    architecture="ARCHITECTURE",
    summary="Gated DeltaNet: a matrix memory, corrected by the delta rule and cleared by a decay gate",
    paper="2412.06464",
    year=2024,
    tags=("causal", "recurrent", "parallel"),
    presets=("gated-deltanet-0.4b", "gated-deltanet-1.3b"),
)
