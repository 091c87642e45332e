"""sLSTM: an LSTM with exponential gates and heads, in xLSTM's block with the projection up behind it.

Paper: xLSTM: Extended Long Short-Term Memory (arXiv 2405.04517, section 2.2 and figure 9).

Equation: c = silu(conv(x));  per head  i, f = W c,  z, o = W x,  each plus R h_{t-1} + b;  h = slstm(i, f, z, o)
    (:mod:`orrery.ops.slstm`);  out = w * layernorm_head(h)

Shapes: B batch, T time, D width, H heads, K = D / H, width of a head, C taps of the convolution.

Cost: sequential over T: 4 D K multiply-adds a token for the recurrence and as many for the gates; state 4 D + (C-1) D numbers.

Differs from the paper: the norms before the parts and the head have a bias; embedding and head are drawn as the frame draws
    them (normal with deviation 0.02; D^-1/2), where the published code has sqrt(2 / 5D) for both, and the feed-forward's way
    out with 1 / sqrt(5 D L), where it has 2 / (L sqrt(D)).

Oracle: tests/oracles/slstm.py (float64 loops).
"""

from __future__ import annotations

import math
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
from orrery.nn.conv import ShortConv
from orrery.nn.marks import no_decay
from orrery.nn.state import state
from orrery.nn.stepping import Step, Stepping, in_order
from orrery.nn.timeline import fresh_clock
from orrery.ops.decay_matrix import decay_matrix
from orrery.ops.slstm import slstm, slstm_initial
from orrery.ops.steps.diagonal import conv_step
from orrery.ops.steps.row_linear import RowNorm, row_norm_into
from orrery.ops.steps.slstm import SLSTMWeights, slstm_stepper


@dataclass(frozen=True, kw_only=True)
class SLSTMConfig(PartConfig):
    """heads: H, a divisor of the width. conv: C. eps: of the norm of heads."""

    heads: int = 4
    conv: int = 4
    eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("heads", "conv"):
            require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")


@state
class SLSTMState(NamedTuple):
    """h, c, n, m: (B,H,K); conv: the last inputs of the convolution (B,C-1,D); clock: (B,2)."""

    h: Tensor
    c: Tensor
    n: Tensor
    m: Tensor
    conv: Tensor
    clock: Tensor


class SLSTM(Mixer):
    """The sLSTM layer, convolution and norm included."""

    Config = SLSTMConfig
    State = SLSTMState
    config: SLSTMConfig
    examples = ({"heads": 4}, {"heads": 2, "conv": 2})

    def __init__(self, config: SLSTMConfig, place: Place) -> None:
        super().__init__(config, place)
        width, heads = place.width, config.heads
        require(width % heads == 0, f"heads {heads} must divide the width {width}")
        self.head = width // heads
        self.conv = ShortConv(width, config.conv, activation="silu", bias=True)
        self.gates = nn.Parameter(torch.empty(2, heads, self.head, 2 * self.head))  # i, f of c; z, o of x
        self.recurrent = nn.Parameter(torch.empty(heads, self.head, 4 * self.head))
        self.bias = nn.Parameter(torch.empty(heads, 4 * self.head))
        self.norm = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gates normal with std sqrt(2 / 5D), R zero, forget biases from 5 down to -7, more bent in later layers; neither R nor
        the biases decay (the published code's choices)."""
        nn.init.normal_(self.gates, std=math.sqrt(2 / (5 * self.place.width)))
        nn.init.zeros_(self.recurrent)
        nn.init.zeros_(self.bias)
        nn.init.ones_(self.norm)
        self.conv.reset_parameters()
        power = 0.3 + 1.3 * self.place.layer / max(1, self.place.depth - 1)
        with torch.no_grad():
            falling = 5.0 - 12.0 * torch.linspace(0, 1, self.head) ** power
            self.bias[:, self.head : 2 * self.head] = falling.to(self.bias.device)
        no_decay(self.recurrent, self.bias)

    def mix(self, x: Tensor, state: SLSTMState | None, ctx: Context) -> tuple[Tensor, SLSTMState]:
        time = ctx.timeline
        raw, conv = self._gates(x, None if state is None else state.conv, ctx)
        h, held = slstm(raw, self.recurrent, None if state is None else state[:4], time.starts, time.lengths)
        y = F.layer_norm(h, (self.head,), eps=self.config.eps).flatten(2) * self.norm
        return y.to(x.dtype), SLSTMState(*held, conv, time.clock)

    def _gates(self, x: Tensor, conv: Tensor | None, ctx: Context) -> tuple[Tensor, Tensor]:
        """The input's part of the gates (B,T,H,4K) in float32 at least, and the convolution's last inputs."""
        smooth, conv = self.conv(x, conv, ctx)
        rows = torch.stack([smooth, x]).flatten(1, 2).unflatten(-1, (self.config.heads, self.head))  # (2,BT,H,K)
        raw = torch.matmul(rows.transpose(1, 2), self.gates)  # (2,H,BT,2K)
        wide = torch.promote_types(raw.dtype, torch.float32)
        return raw.permute(2, 1, 0, 3).flatten(2).to(wide).add(self.bias).unflatten(0, x.shape[:2]), conv

    def stepper(self, norm: RowNorm, state: SLSTMState, run: Stepping) -> Step | None:
        x = run.x
        u, smooth, window = torch.empty_like(x), torch.empty_like(x), run.own(state.conv)
        h, c, n, m = (run.own(held) for held in state[:4])
        weights = SLSTMWeights(self.gates, self.recurrent, self.bias, self.norm, self.config.eps)
        convolve = conv_step(u, window, self.conv.weight, self.conv.bias, smooth, 0, True)
        return in_order(row_norm_into(x, norm, u), convolve, slstm_stepper(u, smooth, (h, c, n, m), x, weights))

    def transfer(self, x: Tensor, ctx: Context) -> Tensor:
        """The matrices (B,D,T,T) that map the cell's inputs tanh(z) to h, given the gates that this x makes.

        Gates and cell inputs hear h of the token before, so these are no matrices of x: they say what h holds of every token.
        """
        starts = ctx.timeline.starts
        raw, _ = self._gates(x, None, ctx)
        h, _ = slstm(raw, self.recurrent, None, starts)
        heard = F.pad(h[:, :-1], (0, 0, 0, 0, 1, 0))
        heard = heard if starts is None else heard.masked_fill(starts[..., None, None], 0.0)
        i, f, _, o = (raw + torch.einsum("bthk,hkg->bthg", heard, self.recurrent)).chunk(4, -1)
        i, f, o = (gate.flatten(2) for gate in (i, f, o))
        most = i.amax(1, keepdim=True)  # of a channel; its weights are divided by their sum
        weights = decay_matrix(F.logsigmoid(f), starts) * (i - most).exp().transpose(1, 2)[:, :, None]
        return torch.sigmoid(o).transpose(1, 2)[..., None] * weights / weights.sum(-1, keepdim=True)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> SLSTMState:
        """Nothing seen; float32 unless `dtype` is float64."""
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        held = slstm_initial(batch, self.config.heads, self.head, device, kind)
        return SLSTMState(*held, self.conv.init_state(batch, device, dtype), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        return 4 * max(4, self.norm.element_size()) * self.place.width + self.conv.state_bytes()

    def flops(self, length: int) -> int:
        """8 D K each for the gates and for the recurrence, per token, and the convolution."""
        return 16 * self.place.width * self.head * length + self.conv.flops(length)


ARCHITECTURE = Architecture(
    block=BlockConfig(
        mixer={"name": "slstm"}, channel={"name": "glu", "activation": "gelu"}, norm="layernorm", eps=1e-5
    ),
    frame={"norm": "layernorm", "eps": 1e-5, "tied": False},
    depth_factor=2.0,
    width_step=8,
    fine_ratio=4 / 3,
    fine_step=4,
)

register(
    "slstm",
    mixer="SLSTM",
    architecture="ARCHITECTURE",
    summary="sLSTM: an LSTM with exponential gates and heads (xLSTM[0:1])",
    paper="2405.04517",
    year=2024,
    tags=("causal", "recurrent", "sequential"),
)
