"""RG-LRU: Griffin's recurrent block, a gated diagonal recurrence behind a short convolution. As every layer's mixer: Hawk.

Paper: Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language Models (arXiv 2402.19427,
    sections 2.3 and 2.4).

Equation: [g, u] = W x + b;  u = conv(u);  i = sigmoid(W_i u + b_i), r = sigmoid(W_r u + b_r), both block-diagonal;
    log a_t = -8 r_t softplus(P);  h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t u_t;  y = W_o (gelu(g) * h) + b_o

Shapes: B batch, T time, D width, R width of the recurrence (D unless set), H blocks of the gates' maps, K = R / H their
    size, C taps of the convolution.

Cost: train and prefill O(T), decode O(1): 3 D R + 2 R K multiply-adds a token; state R + (C-1) R numbers.

Differs from the paper: a document's first token is not scaled by sqrt(1 - a^2), and P is drawn so that a at r = 1/8 (a^(1/c)
    in the paper's letters), not at r = 1, lies between 0.9 and 0.999, both as in the published code.

Oracle: tests/oracles/rg_lru.py (float64 loops); transformers' RecurrentGemma with the same weights.
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
from orrery.nn.conv import ShortConv
from orrery.nn.marks import no_decay
from orrery.nn.projection import Projection
from orrery.nn.recompute import linear_of
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import fresh_clock
from orrery.ops.decay_matrix import decay_matrix
from orrery.ops.rg_lru import rg_lru, rg_lru_terms
from orrery.ops.steps.diagonal import conv_step, rg_lru_step
from orrery.ops.steps.row_linear import RowNorm


@dataclass(frozen=True, kw_only=True)
class RGLRUConfig(PartConfig):
    """hidden: R (None: D). head_dim: K. conv: C. decay_init: range of exp(-softplus(P)) in the beginning."""

    hidden: int | None = None
    head_dim: int = 64
    conv: int = 4
    decay_init: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        require(self.head_dim > 0 and self.conv > 0, "head_dim and conv must be positive")
        require(self.hidden is None or self.hidden > 0, f"hidden must be positive, not {self.hidden}")
        low, high = self.decay_init
        require(0 < low <= high < 1, f"decay_init must be a range within (0, 1), not {low} to {high}")


@state
class RGLRUState(NamedTuple):
    """conv: the last inputs of the convolution (B,C-1,R); h: (B,R), float32; clock: (B,2)."""

    conv: Tensor
    h: Tensor
    clock: Tensor


class RGLRU(Mixer):
    """The recurrent block: gate branch, convolution and RG-LRU."""

    Config = RGLRUConfig
    State = RGLRUState
    config: RGLRUConfig
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"head_dim": 8}, {"head_dim": 12, "hidden": 24, "conv": 2})

    def __init__(self, config: RGLRUConfig, place: Place) -> None:
        super().__init__(config, place)
        self.hidden = config.hidden or place.width
        require(
            self.hidden % config.head_dim == 0,
            f"the width of the recurrence, {self.hidden}, is not a multiple of head_dim {config.head_dim}",
        )
        size = config.head_dim
        heads = self.hidden // size
        self.inputs = Projection(place, 2 * self.hidden, bias=True, canon=False)
        self.conv = ShortConv(self.hidden, config.conv, bias=True)
        self.input_gate = nn.Parameter(torch.empty(heads, size, size))
        self.input_bias = nn.Parameter(torch.empty(heads, size))
        self.recurrence_gate = nn.Parameter(torch.empty(heads, size, size))
        self.recurrence_bias = nn.Parameter(torch.empty(heads, size))
        self.pace = nn.Parameter(torch.empty(self.hidden))  # P
        self.out = nn.Linear(self.hidden, place.width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with deviation fan-in^-1/2 (gates too), the taps with a tenth of that, the way out with sqrt(2 / (depth R));
        biases 0; squares of decays uniform (the published code's choices); biases do not decay."""
        nn.init.normal_(self.inputs.linear.weight, std=self.place.width**-0.5)
        nn.init.normal_(self.out.weight, std=math.sqrt(2 / (self.place.depth * self.hidden)))
        nn.init.normal_(self.conv.weight, std=0.1 * self.config.conv**-0.5)
        for gate in (self.input_gate, self.recurrence_gate):
            nn.init.normal_(gate, std=self.config.head_dim**-0.5)
        for bias in (self.inputs.linear.bias, self.out.bias, self.conv.bias, self.input_bias, self.recurrence_bias):
            if bias is not None:
                nn.init.zeros_(bias)
        low, high = self.config.decay_init
        with torch.no_grad():
            pace = -0.5 * self.pace.uniform_(low**2, high**2).log()
            self.pace.copy_(torch.log(torch.expm1(pace)))  # the inverse of softplus
        no_decay(self.input_bias, self.recurrence_bias)

    def mix(self, x: Tensor, state: RGLRUState | None, ctx: Context) -> tuple[Tensor, RGLRUState]:
        time = ctx.timeline
        g, u = self.inputs.linear(x).chunk(2, -1)
        u, conv = self.conv(u, None if state is None else state.conv, ctx)
        i, r = self._gates(u)
        h, after = rg_lru(  # 2402.19427 section 2.4
            u,
            i,
            r,
            F.softplus(self.pace),
            time.positions == 0,
            None if state is None else state.h,
            time.starts,
            time.lengths,
        )
        y = linear_of(lambda g, h: F.gelu(g, approximate="tanh") * h, self.out, g, h)
        return y, RGLRUState(conv, after, time.clock)

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The matrices (B,R,T,T) that map u to h, channel by channel."""
        time = ctx.timeline
        u, _ = self.conv(self.inputs.linear(x).chunk(2, -1)[1], None, ctx)
        a_log, share = rg_lru_terms(torch.ones_like(u), *self._gates(u), F.softplus(self.pace), time.positions == 0)
        return decay_matrix(a_log, time.starts) * share.transpose(1, 2)[:, :, None]

    def _gates(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Input gate and recurrence gate (B,T,R) before their sigmoids."""
        heads = u.unflatten(-1, self.input_bias.shape).flatten(0, 1).transpose(0, 1)  # (H,BT,K)
        weight = torch.cat([self.input_gate, self.recurrence_gate], 2)
        bias = torch.cat([self.input_bias, self.recurrence_bias], 1)
        both = torch.bmm(heads, weight.to(heads.dtype)).transpose(0, 1) + bias  # (BT,H,2K)
        i, r = both.unflatten(0, u.shape[:2]).chunk(2, -1)
        return i.flatten(2), r.flatten(2)

    def stepper(self, norm: RowNorm, state: RGLRUState, run: Stepping) -> Step | None:
        fresh = bool((state.clock[:, 1] == 0).any())  # a document's first token follows another rule
        if fresh or not plain_linear(self.inputs.linear, self.out):
            return None
        p, u, y = (run.x.new_empty(len(run.x), size) for size in (2 * self.hidden, self.hidden, self.hidden))
        window, h = run.own(state.conv), run.own(state.h)
        gates = (self.input_gate, self.input_bias, self.recurrence_gate, self.recurrence_bias)
        project = linear_step(run.x, self.inputs.linear, p, norm)
        convolve = conv_step(p, window, self.conv.weight, self.conv.bias, u, self.hidden, False)
        recur = rg_lru_step(u, p, *gates, F.softplus(self.pace), h, y)
        out = linear_step(y, self.out, run.x, add=True)
        return in_order(project, convolve, recur, out)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> RGLRUState:
        """Nothing seen; h is float32 unless `dtype` is float64."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        h = torch.zeros(batch, self.hidden, device=device, dtype=kind)
        return RGLRUState(self.conv.init_state(batch, device, dtype), h, fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        return max(4, self.out.weight.element_size()) * self.hidden + self.conv.state_bytes()

    def flops(self, length: int) -> int:
        """Projections, convolution and gates; the recurrence itself (some 10 R) is not counted."""
        own = 2 * self.hidden * (self.place.width + 2 * self.config.head_dim)
        return self.inputs.flops(length) + self.conv.flops(length) + own * length


ARCHITECTURE = Architecture(
    block=BlockConfig(
        mixer={"name": "rg-lru"}, channel={"name": "glu", "activation": "gelu-tanh", "bias": True}, eps=1e-6
    ),
    frame={"tied": True, "eps": 1e-6},
    head="mixer.head_dim",
    fine_ratio=3.0,
)

register(
    "rg-lru",
    mixer="RGLRU",
    architecture="ARCHITECTURE",
    summary="RG-LRU: Griffin's gated diagonal recurrence behind a short convolution; alone it is Hawk",
    paper="2402.19427",
    year=2024,
    tags=("causal", "recurrent", "parallel"),
)
