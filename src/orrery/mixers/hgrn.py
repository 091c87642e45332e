"""HGRN: a gated linear recurrence of complex numbers whose forget gates have lower bounds that grow with the layer.

Paper: Hierarchically Gated Recurrent Neural Network for Sequence Modeling (arXiv 2311.04823, section 3).

Equation: c = silu(W_r x + b_r) + i silu(W_i x + b_i);  f = gamma + (1 - gamma) sigmoid(W_f x + b_f), gamma growing with the layer;
    h_t = f_t e^{i theta} h_{t-1} + (1 - f_t) c_t;  y = W_o LN(sigmoid(W_g x + b_g) * [Re h_t, Im h_t]) + b_o

Shapes: B batch, T time, D width, H complex channels (D unless set).

Cost: train and prefill O(T) in parallel but for the scan, decode O(1): 7 D H multiply-adds a token; state 2 H numbers.

Differs from the paper: it ties the bounds of all layers, gamma_l = sum_{m<=l} softmax(beta)_m. Here every layer but the first,
    whose bound is 0, has a bound of its own that begins at l / L, the paper's initial value. Angles end at 1 / theta, as of rotary
    positions of 2 H dimensions; the published code's end at the square of that, and its maps to f and g may be of low rank. In
    the frame that turns by theta a token the recurrence is real, so that the real diagonal scan serves it.

Oracle: tests/oracles/hgrn.py (float64 loops over complex numbers).
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
from orrery.nn.norms import LayerNorm
from orrery.nn.projection import Projection
from orrery.nn.recompute import linear_of, recompute
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, norm_of, plain_linear
from orrery.nn.timeline import fresh_clock
from orrery.ops.decay_matrix import decay_matrix
from orrery.ops.diagonal_scan import diagonal_scan
from orrery.ops.steps.gated_average import hgrn_step
from orrery.ops.steps.row_linear import RowNorm


@dataclass(frozen=True, kw_only=True)
class HGRNConfig(PartConfig):
    """hidden: H (None: D). bound: with lower bounds of the forget gates. theta: the slowest channel turns by 1 / theta a token."""

    hidden: int | None = None
    bound: bool = True
    theta: float = 10000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        require(self.hidden is None or self.hidden > 0, f"hidden must be positive, not {self.hidden}")
        require(self.theta > 0, f"theta must be positive, not {self.theta}")


@state
class HGRNState(NamedTuple):
    """h: real and imaginary parts (B,2H), float32; inputs: the convolution's last inputs (B,K-1,5H), if any; clock: (B,2)."""

    h: Tensor
    inputs: Tensor
    clock: Tensor


class HGRN(Mixer):
    """One HGRN layer, gate and norm included."""

    Config = HGRNConfig
    State = HGRNState
    config: HGRNConfig
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"hidden": 12}, {"hidden": 20, "theta": 50.0})

    def __init__(self, config: HGRNConfig, place: Place) -> None:
        super().__init__(config, place)
        self.hidden = config.hidden or place.width
        self.inputs = Projection(place, 5 * self.hidden, bias=True)  # of c's parts, f, g's parts
        bounded = config.bound and place.layer > 0
        self.bound = nn.Parameter(torch.empty(self.hidden)) if bounded else None  # logit of gamma
        self.angle = nn.Parameter(torch.empty(self.hidden))
        self.norm = LayerNorm(2 * self.hidden, config.norm_eps)
        self.out = nn.Linear(2 * self.hidden, place.width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's linear maps; angles geometric from 1 to 1 / theta, as of rotary positions; bounds l / L."""
        for linear in (self.inputs.linear, self.out):
            bound = linear.in_features**-0.5
            nn.init.uniform_(linear.weight, -bound, bound)
            nn.init.zeros_(linear.bias)
        if self.inputs.conv is not None:
            self.inputs.conv.reset_parameters()
        self.norm.reset_parameters()
        with torch.no_grad():
            self.angle.copy_(self.config.theta ** -(torch.arange(self.hidden) / self.hidden))
        if self.bound is not None:
            layer, depth = self.place.layer, max(self.place.depth, self.place.layer + 1)
            nn.init.constant_(self.bound, math.log(layer / (depth - layer)))

    def mix(self, x: Tensor, state: HGRNState | None, ctx: Context) -> tuple[Tensor, HGRNState]:
        time, length = ctx.timeline, x.shape[1]
        p, last = self.inputs(x, None if state is None else state.inputs, ctx)
        angle = self.angle.to(torch.promote_types(p.dtype, torch.float32))  # once, so that its gradients are summed in float32
        a_log, write = recompute(self._written, p, angle, self.bound)
        before = None if state is None else state.h
        h, after = diagonal_scan(a_log, write, before, time.starts, time.lengths)  # 2311.04823 equation 3, in a frame that turns
        ends = torch.full((len(x),), length, device=x.device) if time.lengths is None else time.lengths
        after = _turned(after, *_turns(angle, ends, after.dtype))
        y = linear_of(self._read, self.out, p, h, angle, self.norm.weight, self.norm.bias)
        return y, HGRNState(after, last, time.clock)

    def _parts(self, p: Tensor) -> tuple[Tensor, ...]:
        """C (B,T,2H), f (B,T,H) and g (B,T,2H) of the projection, in float32 at least."""
        kind = torch.float64 if p.dtype == torch.float64 else torch.float32
        return p.to(kind).split([2 * self.hidden, self.hidden, 2 * self.hidden], -1)

    def _written(self, p: Tensor, angle: Tensor, bound: Tensor | None) -> tuple[Tensor, Tensor]:
        """The gates' logarithms and what is written, both (B,T,2H), in the frame that turns."""
        c, f, _ = self._parts(p)
        a_log, write_log = _gates(f, bound)
        cos, sin = _turns(angle, torch.arange(1, p.shape[1] + 1, device=p.device), f.dtype)
        write = torch.cat([write_log, write_log], -1).exp() * _turned(F.silu(c), cos, -sin)
        return torch.cat([a_log, a_log], -1), write

    def _read(self, p: Tensor, h: Tensor, angle: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        """The memory, turned back, through the output gate and the norm (B,T,2H)."""
        cos, sin = _turns(angle, torch.arange(1, p.shape[1] + 1, device=p.device), h.dtype)
        read = (torch.sigmoid(self._parts(p)[2]) * _turned(h, cos, sin)).to(p.dtype)
        return F.layer_norm(read, read.shape[-1:], gain.to(read.dtype), bias.to(read.dtype), self.config.norm_eps)

    def stepper(self, norm: RowNorm, state: HGRNState, run: Stepping) -> Step | None:
        if not plain_linear(self.inputs.linear, self.out):
            return None
        x, h = run.x, run.own(state.h)
        p, y = x.new_empty(len(x), 5 * self.hidden), torch.empty_like(h)
        recur = hgrn_step(p, h, self.angle, self.bound, y)
        project = self.inputs.step(x, state.inputs, p, norm)
        return in_order(project, recur, linear_step(y, self.out, x, norm_of(self.norm), add=True))

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The complex matrices (B,H,T,T) that map silu(c) to h, both as complex numbers, channel by channel."""
        f = self._parts(self.inputs(x, None, ctx)[0])[1]
        a_log, write_log = _gates(f, self.bound)
        matrix = decay_matrix(a_log, ctx.timeline.starts) * write_log.exp().transpose(1, 2)[:, :, None]
        turned = torch.complex(*_turns(self.angle, torch.arange(x.shape[1], device=x.device), f.dtype)).t()  # (H,T)
        return matrix * turned[:, :, None] * turned[:, None].conj()

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> HGRNState:
        """Zeros; h is float32 unless `dtype` is float64."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        h = torch.zeros(batch, 2 * self.hidden, device=device, dtype=kind)
        return HGRNState(h, self.inputs.init_state(batch, device, dtype), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        return max(4, self.out.weight.element_size()) * 2 * self.hidden + self.inputs.state_bytes()

    def flops(self, length: int) -> int:
        """Both projections; the recurrence itself (some 30 H) is not counted."""
        return self.inputs.flops(length) + 4 * self.hidden * self.place.width * length


def _gates(f: Tensor, bound: Tensor | None) -> tuple[Tensor, Tensor]:
    """From f (B,T,H): the logarithms of what is kept and of what is written."""
    a_log, write_log = F.logsigmoid(f), F.logsigmoid(-f)
    if bound is None:
        return a_log, write_log
    above = F.logsigmoid(-bound.to(f.dtype))
    return torch.logaddexp(F.logsigmoid(bound.to(f.dtype)), above + a_log), above + write_log


def _turns(angle: Tensor, steps: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine (..., H) of so many steps; float64 inside, since angles grow with the length."""
    wide = torch.float32 if steps.device.type == "mps" else torch.float64
    angles = steps[:, None].to(wide) * angle.to(wide)
    return angles.cos().to(kind), angles.sin().to(kind)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Complex numbers (..., 2H), real parts first, times cos + i sin (..., H)."""
    real, imaginary = x.chunk(2, -1)
    return torch.cat([real * cos - imaginary * sin, real * sin + imaginary * cos], -1)


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "hgrn"}, channel={"name": "glu"}, norm="layernorm", eps=1e-5),
    frame={"tied": True, "norm": "layernorm", "eps": 1e-5},
    width_step=32,
)

register(
    "hgrn",
    mixer="HGRN",
    architecture="ARCHITECTURE",
    summary="HGRN: complex gated linear recurrence, forget gates bounded from below by depth",
    paper="2311.04823",
    year=2023,
    tags=("causal", "recurrent", "parallel"),
)
