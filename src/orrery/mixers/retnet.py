"""RetNet: retention, a rotated linear attention whose heads forget at fixed rates.

Paper: Retentive Network: A Successor to Transformer for Large Language Models (arXiv 2307.08621, section 2); the rotation
    is that of xPos (2212.10554), whose decay is gamma here.

Equation: q_n = K^{-1/2} e^{i n theta} W_q x_n,  k_n = e^{i n theta} W_k x_n,  v_n = W_v x_n;  per head
    S_n = gamma S_{n-1} + k_n v_n^T,  y_n = q_n S_n,  gamma_h = 1 - 2^{-5-h}
    out = W_o (silu(W_g x) * groupnorm(y))

Shapes: B batch, T time, D width, H heads, K key dimension of a head, V value dimension (2 K).

Cost: train and prefill O(T) in chunks, decode O(1): 2 H K V multiply-adds a token; state H K V numbers.

Differs from the paper: the norm of a head is the RMSNorm of the authors' released code, with a weight that all heads share.

Oracle: tests/oracles/retnet.py (float64 loops).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.heads import check_heads, count_heads
from orrery.nn.projection import Projection
from orrery.nn.recompute import linear_of
from orrery.nn.rotary import cached_table, rotate
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import fresh_clock
from orrery.ops.fused.rms_norm_gate import rms_norm_gate
from orrery.ops.scalar_decay import scalar_decay, scalar_decay_matrix, scalar_decay_step
from orrery.ops.steps.retnet import retnet_stepper
from orrery.ops.steps.row_linear import RowNorm


@dataclass(frozen=True, kw_only=True)
class RetNetConfig(PartConfig):
    """head_dim: K. heads None: width / head_dim. expand_v: V / K. slowest: heads keep 1 - 2^{-5} to 1 - 2^{-5-(H-1)} per
    token; a `slowest` other than None spreads the exponents evenly from 5 to it instead."""

    head_dim: int = 64
    heads: int | None = None
    expand_v: int = 2
    slowest: float | None = None
    rope_theta: float = 10000.0
    eps: float = 1e-6
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_heads(self)
        require(self.expand_v > 0, f"expand_v must be positive, not {self.expand_v}")
        require(self.chunk is None or self.chunk > 0, f"chunk must be positive, not {self.chunk}")
        require(self.slowest is None or self.slowest > 0, f"slowest must be positive, not {self.slowest}")


@state
class RetNetState(NamedTuple):
    """memory: (B,H,K,V); conv: the projection's last inputs; clock: (B,2)."""

    memory: Tensor
    conv: Tensor
    clock: Tensor


class RetNet(Mixer):
    """Multi-scale retention, gate and norm included."""

    Config = RetNetConfig
    State = RetNetState
    config: RetNetConfig
    honours = frozenset({"positions"})
    # After the first token y = c v: its norm is the sign of c, which bfloat16 cannot tell where c is small, unless eps is large.
    examples = ({"head_dim": 8, "eps": 1e-2}, {"head_dim": 16, "heads": 3, "expand_v": 1, "slowest": 8.0})

    def __init__(self, config: RetNetConfig, place: Place) -> None:
        super().__init__(config, place)
        self.heads = count_heads(config, place)
        self.key, self.value = config.head_dim, config.head_dim * config.expand_v
        self.decays = retnet_decays(self.heads, config.slowest)
        keys, values = self.heads * self.key, self.heads * self.value
        self.parts = [2 * keys, values, values]
        self.inputs = Projection(place, sum(self.parts), canon=2 * keys + values)
        self.norm = nn.Parameter(torch.empty(self.value))
        self.out = nn.Linear(values, place.width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier uniform with gain 2^-2.5 for each map inwards and 1/2 for the way out (the published code's choices)."""
        keys, values, width = self.heads * self.key, self.heads * self.value, self.place.width
        with torch.no_grad():
            for part in self.inputs.linear.weight.split([keys, keys, values, values]):
                bound = 2**-2.5 * math.sqrt(6 / (width + len(part)))
                part.uniform_(-bound, bound)
        nn.init.xavier_uniform_(self.out.weight, gain=0.5)
        nn.init.ones_(self.norm)
        if self.inputs.conv is not None:
            self.inputs.conv.reset_parameters()

    def mix(self, x: Tensor, state: RetNetState | None, ctx: Context) -> tuple[Tensor, RetNetState]:
        time = ctx.timeline
        q, k, v, z, conv = self._project(x, None if state is None else state.conv, ctx)
        g_log, scale = self._decay(v), self.key**-0.5
        memory = None if state is None else state.memory
        ctx.report_decay(self.place.layer, memory=g_log.expand(v.shape[:3]))
        if x.shape[1] == 1 and memory is not None and time.starts is None and time.lengths is None:
            decay = g_log.expand(len(x), -1)
            y, memory = scalar_decay_step(
                q[:, 0], k[:, 0], v[:, 0], decay, memory, None, scale, donate=ctx.donate and not torch.is_grad_enabled()
            )
            y = y[:, None]
        else:
            y, memory = scalar_decay(  # 2307.08621 eq. 5 and 6
                q, k, v, g_log, memory, time.starts, scale, self.config.chunk, lengths=time.lengths
            )
        return linear_of(self._read, self.out, y, z, self.norm), RetNetState(memory, conv, time.clock)

    def _read(self, y: Tensor, z: Tensor, gain: Tensor) -> Tensor:
        return rms_norm_gate(y, z, gain, self.config.eps)

    def stepper(self, norm: RowNorm, state: RetNetState, run: Stepping) -> Step | None:
        if not plain_linear(self.inputs.linear, self.out):
            return None
        config, x = self.config, run.x
        p, y = x.new_empty(len(x), sum(self.parts)), x.new_empty(len(x), self.heads * self.value)
        memory = run.own(state.memory)
        project = self.inputs.step(x, state.conv, p, norm)
        recur = retnet_stepper(p, memory, y, self.decays, run.positions, config.rope_theta, self.norm, config.eps)
        out = linear_step(y, self.out, x, add=True)
        return in_order(project, recur, out)

    def _project(self, x: Tensor, conv: Tensor | None, ctx: Context) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Rotated q and k (B,T,H,K), v (B,T,H,V), gate (B,T,H*V), and the projection's last inputs."""
        time = ctx.timeline
        p, conv = self.inputs(x, conv, ctx)
        qk, v, z = p.split(self.parts, -1)
        length = int(ctx.positions.max()) + 1 if ctx.positions is not None else time.past + x.shape[1]
        table = cached_table(time.positions, length, self.key, self.config.rope_theta, x.dtype)
        q, k = rotate(qk.unflatten(-1, (2 * self.heads, self.key)), table).split(self.heads, 2)
        return q, k, v.unflatten(-1, (self.heads, self.value)), z, conv

    def _decay(self, like: Tensor) -> Tensor:
        """log gamma (H,)."""
        kind = torch.float64 if like.dtype == torch.float64 else torch.float32
        return torch.tensor(self.decays, dtype=kind, device=like.device)

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The matrix (B,H,T,T) that maps values to y (before norm and gate) for a whole sequence."""
        q, k, v, _, _ = self._project(x, None, ctx)
        return scalar_decay_matrix(q, k, self._decay(v), ctx.timeline.starts, self.key**-0.5)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> RetNetState:
        """Nothing seen; the memory is float32 unless `dtype` is float64."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        memory = torch.zeros(batch, self.heads, self.key, self.value, device=device, dtype=kind)
        return RetNetState(memory, self.inputs.init_state(batch, device, dtype), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        number = max(4, self.out.weight.element_size())
        return number * self.heads * self.key * self.value + self.inputs.state_bytes()

    def flops(self, length: int) -> int:
        """Projections, and 2 H K V each for writing the memory and reading it, per token."""
        linear = 2 * self.place.width * self.out.in_features
        return self.inputs.flops(length) + (linear + 4 * self.heads * self.key * self.value) * length


def retnet_decays(heads: int, slowest: float | None = None) -> list[float]:
    """Logarithms of gamma = 1 - 2^-e of every head (2307.08621 eq. 8): e = 5, 6, ..., or evenly from 5 to `slowest`."""
    step = 1.0 if slowest is None else (slowest - 5.0) / max(1, heads - 1)
    return [math.log1p(-(2.0 ** -(5.0 + step * head))) for head in range(heads)]


def _published(width: int, depth: int) -> dict[str, Any]:
    return {"width": width, "depth": depth, "vocab_size": 50257, "mixer.head_dim": 256, "channel.hidden": 2 * width}


ARCHITECTURE = Architecture(
    block=BlockConfig(
        mixer={"name": "retnet"}, channel={"name": "mlp", "activation": "gelu", "hidden": None}, norm="layernorm", eps=1e-5
    ),
    frame={"norm": "layernorm", "eps": 1e-5},
    head="mixer.head_dim",
    fine_ratio=2.0,
    presets={
        "retnet-1.3b": _published(2048, 24),
        "retnet-2.7b": _published(2560, 32),
        "retnet-6.7b": _published(4096, 32),
    },
)

register(
    "retnet",
    mixer="RetNet",
    architecture="ARCHITECTURE",
    summary="RetNet: retention, linear attention with rotary positions and a fixed decay per head",
    paper="2307.08621",
    year=2023,
    tags=("causal", "recurrent", "parallel", "positions"),
    presets=("retnet-1.3b", "retnet-2.7b", "retnet-6.7b"),
)
