"""LSTM: a gated recurrent network, as one layer of a pre-norm residual stack.

Paper: Long Short-Term Memory (Hochreiter and Schmidhuber 1997), with the forget gate of Gers et al. (2000); no arXiv ids.
    The forget gate's bias of 1: Jozefowicz et al. (2015, proceedings of ICML).

Equation: [i, f, g, o] = W x_t + U h_{t-1} + b
    c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g);  h_t = sigmoid(o) tanh(c_t);  y_t = V h_t, or h_t where H = D

Shapes: B batch, T time, D width, H hidden size.

Cost: train, prefill and decode O(T), one token after another: 4 H (D + H) multiply-adds a token; state 2 H numbers.

Differs from the paper: none of its peepholes or truncated gradients; the stack around it (x += lstm(norm(x)), tied
    embedding) is of our time.

Oracle: tests/oracles/lstm.py (float64 loops); torch's nn.LSTM with the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.architecture import Architecture
from orrery.nn.block import BlockConfig
from orrery.nn.contract import Context, Mixer, PartConfig, Place
from orrery.nn.projection import Projection
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import fresh_clock
from orrery.ops.lstm import lstm_layer, lstm_sequence, lstm_stepper
from orrery.ops.steps.row_linear import RowNorm, row_linear
from orrery.ops.steps.row_steps import add_rows


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(PartConfig):
    """hidden: H, with an output projection; None: H = D without one. forget_bias: the forget gate's initial bias."""

    hidden: int | None = None
    forget_bias: float = 1.0

    def __post_init__(self) -> None:
        require(self.hidden is None or self.hidden > 0, f"hidden must be positive, not {self.hidden}")


@state
class LSTMState(NamedTuple):
    """h, c: output and cell (B,H), float32; inputs: the convolution's last inputs (B,K-1,4H), if any; clock: (B,2)."""

    h: Tensor
    c: Tensor
    inputs: Tensor
    clock: Tensor


class LSTM(Mixer):
    """One LSTM layer."""

    Config = LSTMConfig
    State = LSTMState
    config: LSTMConfig
    examples = ({"hidden": 24}, {})

    def __init__(self, config: LSTMConfig, place: Place) -> None:
        super().__init__(config, place)
        self.hidden = config.hidden or place.width
        self.inputs = Projection(place, 4 * self.hidden, bias=True)
        self.recurrent = nn.Parameter(torch.empty(4 * self.hidden, self.hidden))
        self.out = nn.Linear(self.hidden, place.width, bias=False) if config.hidden else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices uniform +-1/sqrt(fan-in); biases 0, the forget gate's as configured."""
        for weight in (
            self.inputs.linear.weight,
            self.recurrent,
            *((self.out.weight,) if self.out is not None else ()),
        ):
            nn.init.uniform_(weight, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5)
        nn.init.zeros_(self.inputs.linear.bias)
        nn.init.constant_(self.inputs.linear.bias[self.hidden : 2 * self.hidden], self.config.forget_bias)
        if self.inputs.conv is not None:
            self.inputs.conv.reset_parameters()

    def mix(self, x: Tensor, state: LSTMState | None, ctx: Context) -> tuple[Tensor, LSTMState]:
        time, linear = ctx.timeline, self.inputs.linear
        before = None if state is None else (state.h, state.c)
        if self.inputs.conv is None:
            last = x.new_empty(len(x), 0, 0)
            y, (h, c) = lstm_layer(x, linear.weight, self.recurrent, linear.bias, before, time.starts, time.lengths)
        else:
            gates, last = self.inputs(x, None if state is None else state.inputs, ctx)
            y, (h, c) = lstm_sequence(gates, self.recurrent, None, before, time.starts, time.lengths)
        return (y if self.out is None else self.out(y)), LSTMState(h, c, last, time.clock)

    def stepper(self, norm: RowNorm, state: LSTMState, run: Stepping) -> Step | None:
        if not plain_linear(self.inputs.linear, *(() if self.out is None else (self.out,))):
            return None
        gates = run.x.new_empty(len(run.x), 4 * self.hidden)
        h, c = run.own(state.h), run.own(state.c)
        project = self.inputs.step(run.x, state.inputs, gates, norm)
        recur = row_linear(h, self.recurrent, None, gates, add=True)
        return in_order(project, recur, lstm_stepper(gates, h, c), self._way_out(h, run))

    def _way_out(self, h: Tensor, run: Stepping) -> Step:
        """x += V h, or h itself."""
        if self.out is not None:
            return linear_step(h, self.out, run.x, add=True)
        return add_rows(run.x, h)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> LSTMState:
        """Zeros; float32 unless `dtype` is float64."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        zero = torch.zeros(batch, self.hidden, device=device, dtype=kind)
        return LSTMState(zero, zero.clone(), self.inputs.init_state(batch, device, dtype), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        return 2 * self.hidden * max(4, self.recurrent.element_size()) + self.inputs.state_bytes()

    def flops(self, length: int) -> int:
        """Both products with the gates, and the way out."""
        out = 0 if self.out is None else self.hidden * self.place.width
        return self.inputs.flops(length) + 2 * (4 * self.hidden**2 + out) * length


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "lstm"}),
    frame={"tied": True},
    width_step=32,
    fine="mixer.hidden",
    fine_ratio=1.0,
)

register(
    "lstm",
    mixer="LSTM",
    architecture="ARCHITECTURE",
    summary="Long short-term memory in a pre-norm residual stack",
    year=1997,
    tags=("causal", "recurrent", "sequential"),
)
