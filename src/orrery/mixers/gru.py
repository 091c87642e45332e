"""GRU: a recurrent network with two gates, as one layer of a pre-norm residual stack.

Paper: Learning Phrase Representations using RNN Encoder-Decoder (arXiv 1406.1078).

Equation: [a, b, c] = W x_t + bias;  [r', z', m] = U h_{t-1} + (0, 0, inner bias)
    r = sigmoid(a + r');  z = sigmoid(b + z');  n = tanh(c + r m);  h_t = (1 - z) n + z h_{t-1};  y_t = V h_t, or h_t where H = D

Shapes: B batch, T time, D width, H hidden size.

Cost: train, prefill and decode O(T), one token after another: 3 H (D + H) multiply-adds a token; state H numbers.

Differs from the paper: the reset gate acts after the recurrent product, as in cuDNN and torch, not before it; the update
    gate starts with a bias of 1, as the LSTM's forget gate does; the stack around it (x += gru(norm(x)), tied
    embedding) is of our time.

Oracle: tests/oracles/gru.py (float64 loops); torch's nn.GRU with the same weights.
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
from orrery.ops.gru import gru_layer, gru_sequence, gru_stepper
from orrery.ops.steps.row_linear import RowNorm, row_linear
from orrery.ops.steps.row_steps import add_rows


@dataclass(frozen=True, kw_only=True)
class GRUConfig(PartConfig):
    """hidden: H, with an output projection; None: H = D without one. update_bias: the update gate's initial bias."""

    hidden: int | None = None
    update_bias: float = 1.0

    def __post_init__(self) -> None:
        require(self.hidden is None or self.hidden > 0, f"hidden must be positive, not {self.hidden}")


@state
class GRUState(NamedTuple):
    """h: (B,H), float32; inputs: the convolution's last inputs (B,K-1,3H), if any; clock: (B,2)."""

    h: Tensor
    inputs: Tensor
    clock: Tensor


class GRU(Mixer):
    """One GRU layer."""

    Config = GRUConfig
    State = GRUState
    config: GRUConfig
    examples = ({"hidden": 24}, {})

    def __init__(self, config: GRUConfig, place: Place) -> None:
        super().__init__(config, place)
        self.hidden = config.hidden or place.width
        self.inputs = Projection(place, 3 * self.hidden, bias=True)
        self.recurrent = nn.Parameter(torch.empty(3 * self.hidden, self.hidden))
        self.inner_bias = nn.Parameter(torch.empty(self.hidden))
        self.out = nn.Linear(self.hidden, place.width, bias=False) if config.hidden else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices uniform +-1/sqrt(fan-in); biases 0, the update gate's as configured."""
        for weight in (
            self.inputs.linear.weight,
            self.recurrent,
            *((self.out.weight,) if self.out is not None else ()),
        ):
            nn.init.uniform_(weight, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5)
        nn.init.zeros_(self.inner_bias)
        nn.init.zeros_(self.inputs.linear.bias)
        nn.init.constant_(self.inputs.linear.bias[self.hidden : 2 * self.hidden], self.config.update_bias)
        if self.inputs.conv is not None:
            self.inputs.conv.reset_parameters()

    def mix(self, x: Tensor, state: GRUState | None, ctx: Context) -> tuple[Tensor, GRUState]:
        time, linear = ctx.timeline, self.inputs.linear
        before = None if state is None else state.h
        inner = F.pad(self.inner_bias, (2 * self.hidden, 0))
        if self.inputs.conv is None:
            last = x.new_empty(len(x), 0, 0)
            y, h = gru_layer(x, linear.weight, self.recurrent, linear.bias, inner, before, time.starts, time.lengths)
        else:
            gates, last = self.inputs(x, None if state is None else state.inputs, ctx)
            y, h = gru_sequence(gates, self.recurrent, inner, before, time.starts, time.lengths)
        return (y if self.out is None else self.out(y)), GRUState(h, last, time.clock)

    def stepper(self, norm: RowNorm, state: GRUState, run: Stepping) -> Step | None:
        if not plain_linear(self.inputs.linear, *(() if self.out is None else (self.out,))):
            return None
        gates, product = run.x.new_empty(2, len(run.x), 3 * self.hidden)
        h = run.own(state.h)
        project = self.inputs.step(run.x, state.inputs, gates, norm)
        recur = row_linear(h, self.recurrent, F.pad(self.inner_bias.detach(), (2 * self.hidden, 0)), product)
        return in_order(project, recur, gru_stepper(gates, product, h), self._way_out(h, run))

    def _way_out(self, h: Tensor, run: Stepping) -> Step:
        """x += V h, or h itself."""
        if self.out is not None:
            return linear_step(h, self.out, run.x, add=True)
        return add_rows(run.x, h)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> GRUState:
        """Zeros; float32 unless `dtype` is float64."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        zero = torch.zeros(batch, self.hidden, device=device, dtype=kind)
        return GRUState(zero, self.inputs.init_state(batch, device, dtype), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        return self.hidden * max(4, self.recurrent.element_size()) + self.inputs.state_bytes()

    def flops(self, length: int) -> int:
        """Both products with the gates, and the way out."""
        out = 0 if self.out is None else self.hidden * self.place.width
        return self.inputs.flops(length) + 2 * (3 * self.hidden**2 + out) * length


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "gru"}),
    frame={"tied": True},
    width_step=32,
    fine="mixer.hidden",
    fine_ratio=1.0,
)

register(
    "gru",
    mixer="GRU",
    architecture="ARCHITECTURE",
    summary="Gated recurrent unit in a pre-norm residual stack",
    paper="1406.1078",
    year=2014,
    tags=("causal", "recurrent", "sequential"),
)
