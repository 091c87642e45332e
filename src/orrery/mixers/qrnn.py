"""QRNN: a convolution computes all gates at once, and only a running average is left of the recurrence.

Paper: Quasi-Recurrent Neural Networks (arXiv 1611.01576).

Equation: with X_t = [x_{t-K+1} .. x_t]:  z = tanh(W_z X_t + b_z);  f, o, i = sigmoid(W_f X_t + b_f), ..;
    c_t = f_t c_{t-1} + (1 - f_t) z_t  ("fo", "f"), or  f_t c_{t-1} + i_t z_t  ("ifo");  h_t = o_t c_t, or c_t ("f");
    y_t = V h_t, or h_t where H = D

Shapes: B batch, T time, D width, H hidden size, K window, G gates and candidate together (2 to 4).

Cost: train and prefill O(T) in parallel but for the average, decode O(1): G K D H + D H multiply-adds a token; state
    H + (K-1) D numbers.

Differs from the paper: the stack around it (x += qrnn(norm(x)), tied embedding) is of our time, in place of dense connections;
    the forget gate starts with a bias of 1. Salesforce's library has the opposite gate (f is 1 - f here) and x_t before x_{t-1}:
    its weights come over with W_f and b_f negated and the halves of the window exchanged.

Oracle: tests/oracles/qrnn.py (float64 loops).
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
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import fresh_clock
from orrery.ops.decay_matrix import decay_matrix
from orrery.ops.diagonal_scan import diagonal_scan
from orrery.ops.fused.windows import windows
from orrery.ops.steps.gated_average import qrnn_step, window_step
from orrery.ops.steps.row_linear import RowNorm, row_norm_into

_PARTS = {"f": 2, "fo": 3, "ifo": 4}  # candidate and gates


@dataclass(frozen=True, kw_only=True)
class QRNNConfig(PartConfig):
    """hidden: H, with an output projection; None: H = D without one. window: K. pooling: f, fo or ifo. zoneout: in training,
    the part of forget gates that are 1 (the paper's section 2.1). forget_bias: the forget gate's initial bias."""

    hidden: int | None = None
    window: int = 2
    pooling: str = "fo"
    zoneout: float = 0.0
    forget_bias: float = 1.0

    def __post_init__(self) -> None:
        require(self.hidden is None or self.hidden > 0, f"hidden must be positive, not {self.hidden}")
        require(self.window >= 1, f"window must be 1 token or more, not {self.window}")
        require(self.pooling in _PARTS, f"pooling '{self.pooling}' must be one of {', '.join(_PARTS)}")
        require(0 <= self.zoneout < 1, f"zoneout must lie in [0, 1), not {self.zoneout}")


@state
class QRNNState(NamedTuple):
    """inputs: the last tokens of the window (B,K-1,D); c: (B,H), float32; clock: (B,2)."""

    inputs: Tensor
    c: Tensor
    clock: Tensor


class QRNN(Mixer):
    """One QRNN layer."""

    Config = QRNNConfig
    State = QRNNState
    config: QRNNConfig
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"hidden": 24},
        {"window": 3, "pooling": "ifo"},
        {"window": 1, "pooling": "f", "hidden": 20},
    )

    def __init__(self, config: QRNNConfig, place: Place) -> None:
        super().__init__(config, place)
        self.hidden = config.hidden or place.width
        self.inputs = nn.Linear(config.window * place.width, _PARTS[config.pooling] * self.hidden)  # of z, f, o, i
        self.out = nn.Linear(self.hidden, place.width, bias=False) if config.hidden else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices uniform +-1/sqrt(fan-in); biases 0, the forget gate's as configured."""
        for linear in (self.inputs, *((self.out,) if self.out is not None else ())):
            nn.init.uniform_(linear.weight, -(linear.in_features**-0.5), linear.in_features**-0.5)
        nn.init.zeros_(self.inputs.bias)
        nn.init.constant_(self.inputs.bias[self.hidden : 2 * self.hidden], self.config.forget_bias)

    def mix(self, x: Tensor, state: QRNNState | None, ctx: Context) -> tuple[Tensor, QRNNState]:
        time, pooling = ctx.timeline, self.config.pooling
        near, last = windows(x, self.config.window, None if state is None else state.inputs, time.starts, time.lengths)
        p = self.inputs(near)
        kind = torch.float64 if p.dtype == torch.float64 else torch.float32
        z, f, *rest = p.chunk(_PARTS[pooling], -1)
        f = f.to(kind)
        a_log, write = F.logsigmoid(f), torch.sigmoid(-f)
        if self.training and self.config.zoneout:
            kept = torch.rand_like(write) >= self.config.zoneout
            a_log, write = a_log * kept, write * kept
        write = torch.sigmoid(rest[1].to(kind)) if pooling == "ifo" else write
        c, after = diagonal_scan(  # 1611.01576 section 2.1
            a_log, write * torch.tanh(z.to(kind)), None if state is None else state.c, time.starts, time.lengths
        )
        h = c if pooling == "f" else torch.sigmoid(rest[0].to(kind)) * c
        y = h.to(p.dtype)
        return (y if self.out is None else self.out(y)), QRNNState(last, after, time.clock)

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The matrices (B,H,T,T) that map tanh(z) to h, channel by channel, without zoneout."""
        time, pooling = ctx.timeline, self.config.pooling
        p = self.inputs(windows(x, self.config.window, None, time.starts, time.lengths)[0])
        _, f, *rest = p.chunk(_PARTS[pooling], -1)
        write = torch.sigmoid(rest[1] if pooling == "ifo" else -f)
        matrix = decay_matrix(F.logsigmoid(f), time.starts) * write.transpose(1, 2)[:, :, None]
        return matrix if pooling == "f" else torch.sigmoid(rest[0]).transpose(1, 2)[..., None] * matrix

    def stepper(self, norm: RowNorm, state: QRNNState, run: Stepping) -> Step | None:
        maps = (self.inputs,) if self.out is None else (self.inputs, self.out)
        if not plain_linear(*maps):
            return None
        x, c = run.x, run.own(state.c)
        near = x.new_zeros(len(x), self.config.window * x.shape[1])  # the oldest token leaves before it is read
        run.own(state.inputs, near, lambda to, held: to[:, x.shape[1] :].copy_(held.flatten(1)))
        p, h = x.new_empty(len(x), self.inputs.out_features), torch.empty_like(x)
        into = [row_norm_into(x, norm, h), window_step(h, near), linear_step(near, self.inputs, p)]
        if self.out is None:
            return in_order(*into, qrnn_step(p, c, x, True))
        y = torch.empty_like(c)
        return in_order(*into, qrnn_step(p, c, y, False), linear_step(y, self.out, x, add=True))

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> QRNNState:
        """Zeros; c is float32 unless `dtype` is float64."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        inputs = torch.zeros(batch, self.config.window - 1, self.place.width, device=device, dtype=dtype)
        c = torch.zeros(batch, self.hidden, device=device, dtype=kind)
        return QRNNState(inputs, c, fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        number = self.inputs.weight.element_size()
        return max(4, number) * self.hidden + number * (self.config.window - 1) * self.place.width

    def flops(self, length: int) -> int:
        """The convolution and the way out."""
        out = 0 if self.out is None else self.hidden * self.place.width
        return 2 * (self.inputs.in_features * self.inputs.out_features + out) * length


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "qrnn"}),
    frame={"tied": True},
    width_step=32,
    fine="mixer.hidden",
    fine_ratio=1.0,
)

register(
    "qrnn",
    mixer="QRNN",
    architecture="ARCHITECTURE",
    summary="Quasi-recurrent network: gates from a convolution, a running average between tokens",
    paper="1611.01576",
    year=2016,
    tags=("causal", "recurrent", "parallel"),
)
