"""EGRU: a gated recurrent unit whose units send events, as one layer of a pre-norm residual stack.

Paper: Efficient Recurrent Architectures through Activity Sparsity (arXiv 2206.06178); on neuromorphic hardware: Language
    Modeling on a SpiNNaker 2 Neuromorphic Chip (2312.09084).

Equation: [z', r', m] = U y_{t-1} + (0, 0, inner bias);  [a, b, d] = W x_t + bias;  z = sigmoid(a + z');  r = sigmoid(b + r');
    g = tanh(d + r m);  c_t = z h_{t-1} + (1 - z) g;  o_t = 1 if c_t > theta else 0;  h_t = c_t - o_t theta;  y_t = o_t c_t;
    out = V y_t, or y_t where H = D;  gradient of o_t: damping max(0, 1 - support |c_t - theta|)

Shapes: B batch, T time, D width, H hidden size.

Cost: train, prefill and decode O(T), one token after another: 3 H (D + H) multiply-adds a token, of which hardware that
    skips silent units needs 3 H (D + a H), a the share of units that fire; state 2 H numbers.

Differs from the paper: no zoneout and no drop-connect; the stack around it (x += egru(norm(x)), tied embedding) is of our
    time, the paper's has no residual. Asked for the report "activity" (`ctx.aux`), it tells the share of units that fired;
    "macs", the multiply-adds a token that were not with zeros.

Oracle: tests/oracles/egru.py (float64 loops); torch's nn.GRU where no unit can be silent or reset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.projection import Projection
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import fresh_clock
from orrery.ops.egru import egru_sequence
from orrery.ops.steps.row_linear import RowNorm, row_linear
from orrery.ops.steps.row_steps import add_rows
from orrery.ops.steps.spiking import event_step


@dataclass(frozen=True, kw_only=True)
class EGRUConfig(PartConfig):
    """hidden: H, with an output projection; None: H = D without one. threshold: mean of the initial thresholds, which are
    drawn from a beta distribution. damping, support: of the surrogate gradient."""

    hidden: int | None = None
    threshold: float = 0.3
    damping: float = 0.7
    support: float = 1.0

    def __post_init__(self) -> None:
        require(self.hidden is None or self.hidden > 0, f"hidden must be positive, not {self.hidden}")
        require(0 < self.threshold < 1, f"threshold is a mean in (0, 1), not {self.threshold}")
        require(self.damping > 0 and self.support > 0, "damping and support must be positive")


@state
class EGRUState(NamedTuple):
    """h, y: (B,H), potentials and what was sent last, float32; inputs: the convolution's last, if any; clock: (B,2)."""

    h: Tensor
    y: Tensor
    inputs: Tensor
    clock: Tensor


class EGRU(Mixer):
    """One EGRU layer."""

    Config = EGRUConfig
    State = EGRUState
    config: EGRUConfig
    examples = ({"hidden": 24}, {"threshold": 0.1, "support": 2.0})

    def __init__(self, config: EGRUConfig, place: Place) -> None:
        super().__init__(config, place)
        self.hidden = config.hidden or place.width
        self.inputs = Projection(place, 3 * self.hidden, bias=True)
        self.recurrent = nn.Parameter(torch.empty(3 * self.hidden, self.hidden))
        self.inner_bias = nn.Parameter(torch.empty(self.hidden))
        self.theta = nn.Parameter(torch.empty(self.hidden))
        self.out = nn.Linear(self.hidden, place.width, bias=False) if config.hidden else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices Xavier-normal, biases 0, thresholds from Beta(3 m / (1 - m), 3) of mean m (the paper's code)."""
        for weight in (*self.inputs.linear.weight.chunk(3), *self.recurrent.chunk(3)):
            nn.init.xavier_normal_(weight)
        if self.out is not None:
            nn.init.xavier_normal_(self.out.weight)
        nn.init.zeros_(self.inputs.linear.bias)
        nn.init.zeros_(self.inner_bias)
        if self.inputs.conv is not None:
            self.inputs.conv.reset_parameters()
        if not self.theta.is_meta:
            mean = self.config.threshold
            with torch.no_grad():
                self.theta.copy_(torch.distributions.Beta(3 * mean / (1 - mean), 3.0).sample((self.hidden,)))

    def mix(self, x: Tensor, state: EGRUState | None, ctx: Context) -> tuple[Tensor, EGRUState]:
        time = ctx.timeline
        gates, inputs = self.inputs(x, None if state is None else state.inputs, ctx)
        y, (h, last) = egru_sequence(  # 2206.06178 eq. 1 to 4
            gates,
            self.recurrent,
            self.theta.clamp(0.0, 1.0),
            F.pad(self.inner_bias, (2 * self.hidden, 0)),
            None if state is None else (state.h, state.y),
            time.starts,
            time.lengths,
            self.config.damping,
            self.config.support,
        )
        if ctx.aux is not None and ctx.aux.wanted & {"activity", "macs"}:
            self._report(y, ctx)
        return (y if self.out is None else self.out(y)), EGRUState(h, last, inputs, time.clock)

    def stepper(self, norm: RowNorm, state: EGRUState, run: Stepping) -> Step | None:
        if not plain_linear(self.inputs.linear, *(() if self.out is None else (self.out,))):
            return None
        gates, product = run.x.new_empty(2, len(run.x), 3 * self.hidden)
        h, y = run.own(state.h), run.own(state.y)
        project = self.inputs.step(run.x, state.inputs, gates, norm)
        recur = row_linear(y, self.recurrent, F.pad(self.inner_bias.detach(), (2 * self.hidden, 0)), product)
        cell = event_step(gates, product, self.theta.detach().clamp(0.0, 1.0), h, y)
        return in_order(project, recur, cell, add_rows(run.x, y) if self.out is None else linear_step(y, self.out, run.x, add=True))

    def _report(self, y: Tensor, ctx: Context) -> None:
        """The share of units that fired over valid tokens, and multiply-adds a token with operands that are not zero."""
        assert ctx.aux is not None
        valid, fired = ctx.timeline.valid(y.shape[1]), y.detach() != 0
        activity = float((fired if valid is None else fired[valid]).float().mean())
        heard = activity * self.hidden
        out = 0 if self.out is None else self.place.width
        ctx.aux.put("activity", self.place.layer, activity)
        ctx.aux.put("macs", self.place.layer, 3 * self.hidden * self.place.width + heard * (3 * self.hidden + out))

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> EGRUState:
        """Zeros; float32 unless `dtype` is float64."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        h, y = torch.zeros(2, batch, self.hidden, device=device, dtype=kind)
        return EGRUState(h, y, self.inputs.init_state(batch, device, dtype), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        return 2 * self.hidden * max(4, self.recurrent.element_size()) + self.inputs.state_bytes()

    def flops(self, length: int) -> int:
        """Both products with the gates, and the way out, as if every unit fired."""
        out = 0 if self.out is None else self.hidden * self.place.width
        return self.inputs.flops(length) + 2 * (3 * self.hidden**2 + out) * length


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "egru"}),
    frame={"tied": True},
    width_step=32,
    fine="mixer.hidden",
    fine_ratio=1.0,
    presets={"egru-wikitext2": {"width": 750, "depth": 3, "vocab_size": 33278, "mixer.hidden": 1350}},
)

register(
    "egru",
    mixer="EGRU",
    architecture="ARCHITECTURE",
    summary="Event-based gated recurrent unit: units send only when they cross a threshold",
    paper="2206.06178",
    year=2022,
    tags=("causal", "recurrent", "sequential", "surrogate"),
    presets=("egru-wikitext2",),
)
