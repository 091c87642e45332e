"""GLA: linear attention whose memory fades key by key, at a rate that every token sets.

Paper: Gated Linear Attention Transformers with Hardware-Efficient Training (arXiv 2312.06635, section 4).

Equation: q, k, v, z = W x;  g_t = log(sigmoid(W_2 W_1 x + b)) / 16 for each key channel;  and per head
    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T;  o_t = S_t^T q_t / sqrt(K);
    y = W_o [ RMSNorm(o_1) * silu(z_1) .. RMSNorm(o_H) * silu(z_H) ]

Shapes: B batch, T time, D width, H heads, K key dimension of a head (V / 2), V value dimension of a head (D / H), R rank
    of the gate.

Cost: train and prefill 2 D H (2 K + 3 V) + 5 H K V a token; decode the same, independent of T; state H K V numbers. With
    K = V / 2 that is 4 D^2 parameters.

Differs from the paper: RMSNorm instead of LayerNorm on the heads, queries divided by sqrt(K), no bias in the output gate, all as
    in the authors' later code; heads of 64 values by default where the paper has four heads whatever the width (the presets
    have four).

Oracle: tests/oracles/gla.py (float64 loops).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.heads import check_heads, count_heads
from orrery.nn.norms import RMSNorm
from orrery.nn.projection import Projection
from orrery.nn.recompute import linear_of
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import fresh_clock
from orrery.ops.fused.rms_norm_gate import rms_norm_gate
from orrery.ops.steps.row_linear import RowNorm
from orrery.ops.steps.vector_decay import gla_stepper
from orrery.ops.vector_decay import vector_decay, vector_decay_matrix, vector_decay_step

_GAIN = 2**-2.5  # the authors' initialisation


@dataclass(frozen=True, kw_only=True)
class GLAConfig(PartConfig):
    """heads None: width / head_dim. head_dim: V; K is expand_k times it. gate_rank: R. gate_norm: what divides the log of
    the gate: 16 keeps memories long."""

    heads: int | None = None
    head_dim: int = 64
    expand_k: float = 0.5
    gate_rank: int = 16
    gate_norm: float = 16.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_heads(self, even=False)
        require(self.gate_rank > 0, f"gate_rank must be positive, not {self.gate_rank}")
        require(self.gate_norm > 0, f"gate_norm must be positive, not {self.gate_norm}")
        key = self.expand_k * self.head_dim
        require(key >= 1 and key == int(key), f"expand_k {self.expand_k} times head_dim {self.head_dim} must be a whole number")


@state
class GLAState(NamedTuple):
    """inputs: of the convolution of Canon-B, if any; memory: S (B,H,K,V), float32; clock: (B,2)."""

    inputs: Tensor
    memory: Tensor
    clock: Tensor


class GLA(Mixer):
    """Gated linear attention over heads, with its output gate."""

    Config = GLAConfig
    State = GLAState
    config: GLAConfig
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"head_dim": 16, "gate_rank": 4},
        {"head_dim": 6, "heads": 3, "expand_k": 1.0, "gate_rank": 3, "gate_norm": 4.0},
    )

    def __init__(self, config: GLAConfig, place: Place) -> None:
        super().__init__(config, place)
        self.value, self.key = config.head_dim, int(config.expand_k * config.head_dim)
        self.heads = count_heads(config, place)
        keys, values = self.heads * self.key, self.heads * self.value
        self._parts = [keys, keys, values, values, config.gate_rank]
        self.inputs = Projection(place, sum(self._parts), canon=2 * keys + values)  # of q, k, v, z and the gate's rank, in this order
        self.gate = nn.Linear(config.gate_rank, keys)
        self.norm = RMSNorm(self.value, config.norm_eps)
        self.out = nn.Linear(values, place.width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every matrix Xavier uniform with gain 2^-2.5, the gate's bias 0 (the published code's choices)."""
        with torch.no_grad():
            for part in self.inputs.linear.weight.split(self._parts):
                nn.init.xavier_uniform_(part, _GAIN)
        nn.init.xavier_uniform_(self.gate.weight, _GAIN)
        nn.init.zeros_(self.gate.bias)
        nn.init.xavier_uniform_(self.out.weight, _GAIN)
        self.norm.reset_parameters()
        if self.inputs.conv is not None:
            self.inputs.conv.reset_parameters()

    def mix(self, x: Tensor, state: GLAState | None, ctx: Context) -> tuple[Tensor, GLAState]:
        time = ctx.timeline
        p, inputs = self.inputs(x, None if state is None else state.inputs, ctx)
        q, k, v, z, g_log = self._split(p)
        ctx.report_decay(self.place.layer, memory=g_log)
        memory, scale = None if state is None else state.memory, self.key**-0.5
        if x.shape[1] == 1 and time.starts is None and time.lengths is None:
            one = (q[:, 0], k[:, 0], v[:, 0], g_log[:, 0])
            o, memory = vector_decay_step(*one, memory, None, scale, donate=ctx.donate)
            o = o[:, None]
        else:
            o, memory = vector_decay(q, k, v, g_log, memory, time.starts, scale, lengths=time.lengths)  # 2312.06635 eq. 3
        return linear_of(self._read, self.out, o, z, self.norm.weight), GLAState(inputs, memory, time.clock)

    def _read(self, o: Tensor, z: Tensor, gain: Tensor) -> Tensor:
        return rms_norm_gate(o, z, gain, self.config.norm_eps)

    def stepper(self, norm: RowNorm, state: GLAState, run: Stepping) -> Step | None:
        if not plain_linear(self.inputs.linear, self.out, self.gate):
            return None
        p, y = run.x.new_empty(len(run.x), sum(self._parts)), run.x.new_empty(len(run.x), self.out.in_features)
        memory, gate = run.own(state.memory), (self.gate.weight, self.gate.bias)
        project = self.inputs.step(run.x, state.inputs, p, norm)
        recur = gla_stepper(p, memory, y, gate, self.norm.weight, self.config.norm_eps, self.config.gate_norm)
        out = linear_step(y, self.out, run.x, add=True)
        return in_order(project, recur, out)

    def _split(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Q, k (B,T,H,K), v (B,T,H,V), z (B,T,H*V) and the gates (B,T,H,K), these in float32 at least."""
        q, k, v, z, low = p.split(self._parts, -1)
        raw = self.gate(low)
        wide = torch.promote_types(raw.dtype, torch.float32)
        g_log, v = F.logsigmoid(raw.to(wide)) / self.config.gate_norm, v.to(wide)  # the heads' norm wants an exact output
        q, k, v, g_log = (part.unflatten(-1, (self.heads, -1)) for part in (q, k, v, g_log))
        return q, k, v, z, g_log

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The matrices M (B,H,T,T) with o = M v, before norm and gate."""
        q, k, _, _, g_log = self._split(self.inputs(x, None, ctx)[0])
        return vector_decay_matrix(q, k, g_log, ctx.timeline.starts, self.key**-0.5)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> GLAState:
        """Nothing seen; the memory is float32 unless `dtype` is float64."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        memory = torch.zeros(batch, self.heads, self.key, self.value, device=device, dtype=kind)
        return GLAState(self.inputs.init_state(batch, device, dtype), memory, fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        return self.inputs.state_bytes() + max(4, self.out.weight.element_size()) * self.heads * self.key * self.value

    def flops(self, length: int) -> int:
        """The projections, the gate, and to fade, write and read the memory."""
        gate, out = self.gate.in_features * self.gate.out_features, self.out.in_features * self.place.width
        recurrence = 5 * self.heads * self.key * self.value
        return self.inputs.flops(length) + (2 * (gate + out) + recurrence) * length


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "gla"}, channel={"name": "glu"}, eps=1e-5),
    frame={"tied": True, "eps": 1e-5},
    head="mixer.head_dim",
    presets={
        "gla-340m": {"width": 1024, "depth": 24, "vocab_size": 32000, "heads": 4, "head_dim": 256, "channel.hidden": 2816},
        "gla-1.3b": {"width": 2048, "depth": 24, "vocab_size": 32000, "heads": 4, "head_dim": 512, "channel.hidden": 5632},
    },
)

register(
    "gla",
    mixer="GLA",
    architecture="ARCHITECTURE",
    summary="Gated linear attention: a matrix memory with a data-dependent decay per key channel",
    paper="2312.06635",
    year=2023,
    tags=("causal", "recurrent", "parallel"),
    presets=("gla-340m", "gla-1.3b"),
)
