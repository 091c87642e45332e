"""minGRU and minLSTM: gates that do not see the state, so that the whole layer is one diagonal scan.

Paper: Were RNNs All We Needed? (arXiv 2410.01201); the log-space form of its appendix B.

Equation: k, v = W u + b, g(v) = v + 1/2 for v >= 0 and sigmoid(v) below (positive, so that logarithms exist);
    minGRU:  z = sigmoid(k);  h_t = (1 - z_t) h_{t-1} + z_t g(v_t)
    minLSTM: f = sigmoid(k), i = sigmoid(k');  h_t = f / (f + i) h_{t-1} + i / (f + i) g(v_t)
    y_t = V h_t;  u = conv(x), a causal depthwise convolution over C tokens (left out with C = 1)

Shapes: B batch, T time, D width, H hidden size (2 D unless set), C taps of the convolution.

Cost: train and prefill O(T) in parallel but for the average, decode O(1): 3 D H multiply-adds a token (minLSTM: 4 D H); state
    H + (C-1) D numbers.

Differs from the paper: h_0 = 0 (its listing puts the zero through g, which gives 1/2); the convolution stands inside the
    mixer's branch, without a residual of its own.

Oracle: tests/oracles/mingru.py (float64 loops, in the linear form).
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
from orrery.nn.conv import ShortConv
from orrery.nn.recompute import recompute
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import fresh_clock
from orrery.ops.decay_matrix import decay_matrix
from orrery.ops.diagonal_scan import diagonal_scan
from orrery.ops.fused.mingru_terms import mingru_parts, mingru_terms
from orrery.ops.steps.diagonal import conv_step
from orrery.ops.steps.gated_average import mingru_step
from orrery.ops.steps.row_linear import RowNorm, row_norm_into


@dataclass(frozen=True, kw_only=True)
class MinGRUConfig(PartConfig):
    """hidden: H (None: 2 D). cell: gru or lstm. conv: C. bias: of the way in."""

    hidden: int | None = None
    cell: str = "gru"
    conv: int = 4
    bias: bool = True

    def __post_init__(self) -> None:
        require(self.hidden is None or self.hidden > 0, f"hidden must be positive, not {self.hidden}")
        require(self.cell in ("gru", "lstm"), f"cell '{self.cell}' must be gru or lstm")
        require(self.conv >= 1, f"conv must be 1 tap or more, not {self.conv}")


@state
class MinGRUState(NamedTuple):
    """inputs: the last inputs of the convolution (B,C-1,D); h: (B,H), float32; clock: (B,2)."""

    inputs: Tensor
    h: Tensor
    clock: Tensor


class MinGRU(Mixer):
    """One minGRU or minLSTM layer."""

    Config = MinGRUConfig
    State = MinGRUState
    config: MinGRUConfig
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"hidden": 24},
        {"hidden": 20, "cell": "lstm", "conv": 1, "bias": False},
    )

    def __init__(self, config: MinGRUConfig, place: Place) -> None:
        super().__init__(config, place)
        self.hidden = config.hidden or 2 * place.width
        self.conv = ShortConv(place.width, config.conv) if config.conv > 1 else None
        gates = 1 if config.cell == "gru" else 2
        self.inputs = nn.Linear(place.width, (1 + gates) * self.hidden, bias=config.bias)  # of v, k, k'
        self.out = nn.Linear(self.hidden, place.width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's linear maps: uniform +-1/sqrt(fan-in), biases too."""
        for linear in (self.inputs, self.out):
            bound = linear.in_features**-0.5
            nn.init.uniform_(linear.weight, -bound, bound)
            if linear.bias is not None:
                nn.init.uniform_(linear.bias, -bound, bound)
        if self.conv is not None:
            self.conv.reset_parameters()

    def mix(self, x: Tensor, state: MinGRUState | None, ctx: Context) -> tuple[Tensor, MinGRUState]:
        time = ctx.timeline
        p, last = self._project(x, None if state is None else state.inputs, ctx)
        a_log, b = recompute(self._terms, p)
        h, after = diagonal_scan(a_log, b, None if state is None else state.h, time.starts, time.lengths)
        return self.out(h.to(x.dtype)), MinGRUState(last, after, time.clock)

    def _project(self, x: Tensor, inputs: Tensor | None, ctx: Context) -> tuple[Tensor, Tensor]:
        """v, k and minLSTM's k' side by side, and the convolution's last inputs."""
        last = x.new_empty(len(x), 0, x.shape[2])
        if self.conv is not None:
            x, last = self.conv(x, inputs, ctx)
        return self.inputs(x), last

    def _terms(self, p: Tensor) -> tuple[Tensor, Tensor]:
        return mingru_terms(p, self.config.cell == "lstm")

    def _gates(self, x: Tensor, inputs: Tensor | None, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """v and k (B,T,H), for minLSTM the k that makes it a minGRU, in float32 at least; and the convolution's last inputs."""
        p, last = self._project(x, inputs, ctx)
        return *mingru_parts(p, self.config.cell == "lstm"), last

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The matrices (B,H,T,T) that map g(v) to h, channel by channel."""
        _, k, _ = self._gates(x, None, ctx)
        return decay_matrix(-F.softplus(k), ctx.timeline.starts) * torch.sigmoid(k).transpose(1, 2)[:, :, None]

    def stepper(self, norm: RowNorm, state: MinGRUState, run: Stepping) -> Step | None:
        if not plain_linear(self.inputs, self.out):
            return None
        x, h = run.x, run.own(state.h)
        p = x.new_empty(len(x), self.inputs.out_features)
        rest = mingru_step(p, h), linear_step(h, self.out, x, add=True)
        if self.conv is None:
            return in_order(linear_step(x, self.inputs, p, norm), *rest)
        normed, u, window = torch.empty_like(x), torch.empty_like(x), run.own(state.inputs)
        convolve = conv_step(normed, window, self.conv.weight, self.conv.bias, u, 0, False)
        return in_order(row_norm_into(x, norm, normed), convolve, linear_step(u, self.inputs, p), *rest)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> MinGRUState:
        """Zeros; h is float32 unless `dtype` is float64."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        inputs = torch.zeros(batch, self.config.conv - 1, self.place.width, device=device, dtype=dtype)
        h = torch.zeros(batch, self.hidden, device=device, dtype=kind)
        return MinGRUState(inputs, h, fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        held = max(4, self.out.weight.element_size()) * self.hidden
        return held + (0 if self.conv is None else self.conv.state_bytes())

    def flops(self, length: int) -> int:
        """Both projections and the convolution; the average itself is not counted."""
        own = 2 * (self.place.width * self.inputs.out_features + self.hidden * self.place.width) * length
        return own + (0 if self.conv is None else self.conv.flops(length))


ARCHITECTURE = Architecture(
    block=BlockConfig(mixer={"name": "mingru"}, channel={"name": "mlp", "activation": "gelu"}),
    frame={"tied": True},
    width_step=32,
    fine_ratio=4.0,
)

MINLSTM = Architecture(
    block=BlockConfig(mixer={"name": "mingru", "cell": "lstm"}, channel={"name": "mlp", "activation": "gelu"}),
    frame={"tied": True},
    width_step=32,
    fine_ratio=4.0,
)

register(
    "minlstm",
    architecture="MINLSTM",
    summary="minLSTM: normalised forget and input gates that do not see the state",
    paper="2410.01201",
    year=2024,
    tags=("causal", "recurrent", "parallel"),
)
register(
    "mingru",
    mixer="MinGRU",
    architecture="ARCHITECTURE",
    summary="minGRU: a gate that does not see the state, one diagonal scan",
    paper="2410.01201",
    year=2024,
    tags=("causal", "recurrent", "parallel", "rectified"),
)
