"""HGRN2: a gated linear recurrence whose forget gates are the keys of a matrix memory.

Paper: HGRN2: Gated Linear RNNs with State Expansion (arXiv 2404.07904, section 3); lower bounds of HGRN 2311.04823.

Equation: q = silu(W_q x);  v = W_i x;  f = gamma + (1 - gamma) sigmoid(W_f x), gamma growing with the layer; per head
    S_t = diag(f_t) S_{t-1} + (1 - f_t) v_t^T;  o_t = S_t^T q_t;  y = W_o RMSNorm([o_1 .. o_H])

Shapes: B batch, T time, D width, H heads, K dimension of a head, both of forget gates (the expansion) and of values.

Cost: train and prefill 8 D^2 + 5 D K a token; decode the same, independent of T; state D K numbers.

Differs from the paper: the paper ties the bounds of all layers, gamma_l = sum_{m=1..l} softmax(beta)_m over the L layers. Here
    every layer but the first, whose bound is 0, has a bound of its own, gamma = l e^b / (l e^b + L - l) with b = 0 at the
    start, which is the paper's initial l / L; any trained bounds can be expressed. Queries through silu, values as they are,
    RMSNorm and no biases as in flash-linear-attention; the authors' first code has sigmoid(q), silu(v), LayerNorm and biases.
    Matrices are normal with deviation sqrt(2 / 5D), which is the published code's 0.02 at width 1000.

Oracle: tests/oracles/hgrn2.py (float64 loops).
"""

from __future__ import annotations

import math
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
from orrery.nn.norms import RMSNorm
from orrery.nn.projection import Projection
from orrery.nn.recompute import linear_of, recompute
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import fresh_clock
from orrery.ops.fused.rms_norm import rms_norm
from orrery.ops.steps.row_linear import RowNorm
from orrery.ops.steps.vector_decay import hgrn2_stepper
from orrery.ops.vector_decay import vector_decay, vector_decay_matrix, vector_decay_step

_LEAST = -12.0  # logit of the smallest bound above 0 (6e-6): below, 1 - f could round to 1 and log f to -inf


@dataclass(frozen=True, kw_only=True)
class HGRN2Config(PartConfig):
    """head_dim: K, the factor by which the state is larger than the width. bound: with lower bounds of the forget gates."""

    head_dim: int = 128
    bound: bool = True
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        require(self.head_dim > 0, f"head_dim must be positive, not {self.head_dim}")


@state
class HGRN2State(NamedTuple):
    """inputs: of the convolution of Canon-B, if any; memory: S (B,H,K,K), float32; clock: (B,2)."""

    inputs: Tensor
    memory: Tensor
    clock: Tensor


class HGRN2(Mixer):
    """The gated recurrence with outer-product state expansion."""

    Config = HGRN2Config
    State = HGRN2State
    config: HGRN2Config
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"head_dim": 8}, {"head_dim": 16, "bound": False})

    def __init__(self, config: HGRN2Config, place: Place) -> None:
        super().__init__(config, place)
        width, self.key = place.width, config.head_dim
        self.heads = width // self.key
        require(width % self.key == 0 and self.heads > 0, f"width {width} is not a multiple of head_dim {self.key}")
        self.inputs = Projection(place, 3 * width)  # of q, f, v, in this order
        self.bound = nn.Parameter(torch.empty(width)) if config.bound and place.layer > 0 else None
        self.norm = RMSNorm(width, config.norm_eps)
        self.out = nn.Linear(width, width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices normal with deviation sqrt(2 / 5D), bounds at layer / depth."""
        for weight in (self.inputs.linear.weight, self.out.weight):
            nn.init.normal_(weight, std=math.sqrt(2 / (5 * self.place.width)))
        self.norm.reset_parameters()
        if self.bound is not None:
            nn.init.zeros_(self.bound)
        if self.inputs.conv is not None:
            self.inputs.conv.reset_parameters()

    def mix(self, x: Tensor, state: HGRN2State | None, ctx: Context) -> tuple[Tensor, HGRN2State]:
        time = ctx.timeline
        p, inputs = self.inputs(x, None if state is None else state.inputs, ctx)
        q, k, v, g_log = self._split(p)
        ctx.report_decay(self.place.layer, memory=g_log)
        memory = None if state is None else state.memory
        if x.shape[1] == 1 and time.starts is None and time.lengths is None:
            o, memory = vector_decay_step(q[:, 0], k[:, 0], v[:, 0], g_log[:, 0], memory, donate=ctx.donate)
            o = o[:, None]
        else:
            o, memory = vector_decay(q, k, v, g_log, memory, time.starts, lengths=time.lengths)  # 2404.07904 eq. 5
        return linear_of(self._read, self.out, o, self.norm.weight), HGRN2State(inputs, memory, time.clock)

    def _read(self, o: Tensor, gain: Tensor) -> Tensor:
        return rms_norm(o.flatten(2), gain, self.config.norm_eps)

    def stepper(self, norm: RowNorm, state: HGRN2State, run: Stepping) -> Step | None:
        if not plain_linear(self.inputs.linear, self.out):
            return None
        p, y = run.x.new_empty(len(run.x), 3 * self.place.width), torch.empty_like(run.x)
        memory = run.own(state.memory)
        bound = run.x.new_zeros(self.place.width) if self.bound is None else torch.sigmoid(self._bound_logit(self.bound))
        project = self.inputs.step(run.x, state.inputs, p, norm)
        recur = hgrn2_stepper(p, memory, y, bound)
        own = RowNorm("rmsnorm", self.norm.weight, None, self.config.norm_eps)
        out = linear_step(y, self.out, run.x, own, add=True)
        return in_order(project, recur, out)

    def _bound_logit(self, bound: Tensor) -> Tensor:
        """The logarithm of gamma / (1 - gamma), of a layer that has a bound."""
        layer, depth = self.place.layer, self.place.depth
        return (bound + math.log(layer / (depth - layer))).clamp(min=_LEAST)

    def _split(self, p: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Q, 1 - f, v and log f, (B,T,H,K) each; the gates in float32 at least."""
        found: tuple[Tensor, Tensor, Tensor, Tensor] = recompute(self._parts, p, self.bound)
        return found

    def _parts(self, p: Tensor, bound: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, f, v = p.chunk(3, -1)
        raw = f.to(torch.promote_types(f.dtype, torch.float32))
        if bound is None:
            k, g_log = torch.sigmoid(-raw), F.logsigmoid(raw)
        else:
            k = torch.sigmoid(-raw) * torch.sigmoid(-self._bound_logit(bound).to(raw.dtype))
            g_log = torch.log1p(-k)
        q, k, v, g_log = (part.unflatten(-1, (self.heads, -1)) for part in (F.silu(q), k, v, g_log))
        return q, k, v, g_log

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The matrices M (B,H,T,T) with o = M v, before the norm."""
        q, k, _, g_log = self._split(self.inputs(x, None, ctx)[0])
        return vector_decay_matrix(q.to(k.dtype), k, g_log, ctx.timeline.starts).to(x.dtype)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> HGRN2State:
        """Nothing seen; the memory is float32 unless `dtype` is float64."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        memory = torch.zeros(batch, self.heads, self.key, self.key, device=device, dtype=kind)
        return HGRN2State(self.inputs.init_state(batch, device, dtype), memory, fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        return self.inputs.state_bytes() + max(4, self.out.weight.element_size()) * self.place.width * self.key

    def flops(self, length: int) -> int:
        """The projections, and to fade, write and read the memory."""
        return self.inputs.flops(length) + self.place.width * (2 * self.place.width + 5 * self.key) * length


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "hgrn2"}, channel={"name": "glu"}, eps=1e-5),
    frame={"tied": True, "eps": 1e-5},
    head="mixer.head_dim",
    presets={
        "hgrn2-340m": {"width": 1024, "depth": 24, "vocab_size": 32000, "head_dim": 128, "channel.hidden": 2816},
        "hgrn2-1.3b": {"width": 2048, "depth": 24, "vocab_size": 32000, "head_dim": 128, "channel.hidden": 5632},
    },
)

register(
    "hgrn2",
    mixer="HGRN2",
    architecture="ARCHITECTURE",
    summary="HGRN2: forget gates with lower bounds as the keys of a matrix memory",
    paper="2404.07904",
    year=2024,
    tags=("causal", "recurrent", "parallel"),
    presets=("hgrn2-340m", "hgrn2-1.3b"),
)
