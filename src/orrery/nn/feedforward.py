"""Channel mixers of the Transformer family: parts that mix over features, one token at a time.

MLP:  y = W2 act(W1 x)                          (arXiv 1706.03762; GELU as in GPT-2)
GLU:  y = W2 (act(Wg x) * Wu x)                 (arXiv 2002.05202; SwiGLU with SiLU)

Canon-D (Physics of LMs 4.1) stands on the hidden features before the activation: 2F wide in a GLU, F in an MLP.

B batch, T time, D width, F hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core.config import require
from orrery.core.errors import ConfigError, suggest
from orrery.core.registry import register
from orrery.nn.contract import Context, Part, PartConfig, Place
from orrery.nn.conv import ConvState, ShortConv
from orrery.nn.pieces import by_pieces
from orrery.nn.recompute import linear_of
from orrery.nn.short_text import ShortText, short_linears
from orrery.nn.stepping import Step, Stepping, in_order, linear_step, plain_linear
from orrery.nn.timeline import fresh_clock
from orrery.ops.fused.packed_linear import ACTIVATIONS as FUSED
from orrery.ops.fused.packed_linear import PackedLinear
from orrery.ops.fused.short_ends import gate_text
from orrery.ops.fused.swiglu import geglu, swiglu
from orrery.ops.steps.canon import activate_step, residual_conv_step
from orrery.ops.steps.row_linear import ACTIVATIONS as ACTIVATION_CODES
from orrery.ops.steps.row_linear import RowNorm, row_linear
from orrery.ops.steps.row_steps import multiply_rows


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu-tanh": _gelu_tanh,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


GATED_CODES = {"silu": "swiglu", "gelu-tanh": "geglu"}  # activations whose product with the other half is one compiled pass


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """An activation by its name in configs."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"unknown activation '{name}'.{suggest(name, ACTIVATIONS)} Known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


@dataclass(frozen=True, kw_only=True)
class FeedForwardConfig(PartConfig):
    """hidden F (None: 8/3 D rounded up to a multiple of 8 in a GLU, 4 D in an MLP); init_std None: sqrt(2 / 5D);
    init_scaled: the way out starts smaller by sqrt(2 depth)."""

    hidden: int | None = None
    activation: str = "silu"
    bias: bool = False
    init_std: float | None = None
    init_scaled: bool = True

    def __post_init__(self) -> None:
        require(self.hidden is None or self.hidden > 0, f"channel.hidden must be positive, not {self.hidden}")


class _FeedForward(Part):
    """What MLP and GLU share: `branches` hidden vectors side by side, an optional Canon-D on them, and the way out."""

    Config = FeedForwardConfig
    State = ConvState
    config: FeedForwardConfig
    branches: ClassVar[int] = 1

    def __init__(self, config: FeedForwardConfig, place: Place) -> None:
        super().__init__(config, place)
        self.packs = "d" not in place.canon
        hidden = config.hidden or self.default_hidden(place.width)
        self.hidden = hidden
        self.wide = nn.Linear(place.width, self.branches * hidden, bias=config.bias)
        self.conv = ShortConv(self.branches * hidden, residual=True) if "d" in place.canon else None
        self.out = nn.Linear(hidden, place.width, bias=config.bias)
        self.act = activation(config.activation)
        if self.conv is None:
            self.State = None  # type: ignore[misc, assignment]
        self.reset_parameters()

    @classmethod
    def default_hidden(cls, width: int) -> int:
        """The papers' sizes: 4 D, or 8/3 D where a gate adds a third matrix."""
        return 4 * width if cls.branches == 1 else 8 * math.ceil(width / 3)

    def reset_parameters(self) -> None:
        """Normal with std sqrt(2 / 5D) (arXiv 1910.05895) or as configured; the way out by 1/sqrt(2 depth) less."""
        std = self.config.init_std or math.sqrt(2 / (5 * self.place.width))
        nn.init.normal_(self.wide.weight, std=std)
        nn.init.normal_(self.out.weight, std=std / math.sqrt(2 * self.place.depth) if self.config.init_scaled else std)
        for linear in (self.wide, self.out):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        if self.conv is not None:
            self.conv.reset_parameters()

    def mix(self, x: Tensor, state: ConvState | None, ctx: Context) -> tuple[Tensor, ConvState | None]:
        if self.conv is None:
            return by_pieces(lambda piece: self._way_out(self.wide(piece)), x), None
        h = self.wide(x)
        h, inputs = self.conv(h, None if state is None else state.inputs, ctx)
        return self._way_out(h), ConvState(inputs, ctx.timeline.clock)

    def _way_out(self, h: Tensor) -> Tensor:
        """W2 of the activated hidden features, which are not held for the backward pass where they cost little to make again.

        A second tanh costs 3 % of a training step of gpt2.
        """
        cheap = self.config.activation not in (("silu",) if self.branches == 2 else ("relu", "identity", "gelu-tanh"))
        return linear_of(self.activate, self.out, h) if cheap else self.out(self.activate(h))

    def stepper(self, norm: RowNorm, state: Any, run: Stepping) -> Step | None:
        code = {"identity": ""}.get(self.config.activation, self.config.activation)
        code = GATED_CODES.get(code, code) if self.branches == 2 else code
        if code not in ACTIVATION_CODES or not plain_linear(self.wide, self.out):
            return None
        h = run.x.new_empty(len(run.x), self.hidden)
        out = linear_step(h, self.out, run.x, add=True)
        if self.conv is not None:
            return None if self.branches == 2 and code not in GATED_CODES.values() else self._canon_step(norm, state, run, h, code, out)
        if self.branches == 1 or code in GATED_CODES.values():
            wide = linear_step(run.x, self.wide, h, norm, code)
            return in_order(wide, out)
        up = torch.empty_like(h)
        (gate_weight, up_weight), bias = self.wide.weight.chunk(2), self.wide.bias
        gate_bias, up_bias = (None, None) if bias is None else bias.chunk(2)
        gate_half = row_linear(run.x, gate_weight, gate_bias, h, norm, code)
        up_half = row_linear(run.x, up_weight, up_bias, up, norm)
        return in_order(gate_half, up_half, multiply_rows(h, up), out)

    def _canon_step(self, norm: RowNorm, state: ConvState, run: Stepping, h: Tensor, code: str, out: Step) -> Step:
        assert self.conv is not None
        raw, p = run.x.new_empty(2, len(run.x), self.wide.out_features)
        window = run.own(state.inputs)
        convolve = residual_conv_step(raw, window, self.conv.weight, p)
        return in_order(linear_step(run.x, self.wide, raw, norm), convolve, activate_step(p, h, code), out)

    def prepared(self) -> Callable[[Tensor, Tensor, Context], Tensor] | None:
        if self.conv is not None or not plain_linear(self.wide, self.out):
            return None
        fused = self.config.activation if self.branches == 1 and self.config.activation in FUSED else ""
        wide, out = PackedLinear(self.wide.weight, self.wide.bias, fused), PackedLinear(self.out.weight, self.out.bias)
        if fused:
            return lambda x, residual, ctx: out.onto(wide(x), residual)
        return lambda x, residual, ctx: out.onto(self.activate(wide(x)), residual)

    def short(self) -> Callable[[ShortText], list[Callable[[], Any]]] | None:
        """Both maps laid out for few rows."""
        maps = short_linears(self.wide, self.out) if self.conv is None else None
        if maps is None:
            return None
        wide, out = maps
        code = {"identity": ""}.get(self.config.activation, self.config.activation)
        fused = wide.compiled and code in ACTIVATION_CODES

        def bind(run: ShortText) -> list[Callable[[], Any]]:
            h = run.buffer("hidden", self.hidden)
            if fused and self.branches == 1:
                return [wide.step(run.given, h, code), out.step(h, run.y)]
            both = run.buffer("branches", wide.size)
            between = gate_text(both, h, code) if fused else lambda: h.copy_(self.activate(both))
            return [wide.step(run.given, both), between, out.step(h, run.y)]

        return bind

    def activate(self, h: Tensor) -> Tensor:
        """H (B,T,branches*F) -> (B,T,F)."""
        return self.act(h)

    def init_state(self, batch: int, device: Any = None, dtype: torch.dtype | None = None) -> ConvState | None:
        if self.conv is None:
            return None
        return ConvState(self.conv.init_state(batch, device, dtype), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        return 0 if self.conv is None else self.conv.state_bytes()

    def flops(self, length: int) -> int:
        matmuls = 2 * self.place.width * self.hidden * (self.branches + 1) * length
        return matmuls + (0 if self.conv is None else self.conv.flops(length))


class MLP(_FeedForward):
    """Two layers with an activation between."""


class GLU(_FeedForward):
    """Gated linear unit; SwiGLU with the default activation."""

    branches = 2

    def activate(self, h: Tensor) -> Tensor:
        if self.config.activation == "silu":
            return swiglu(h)
        if self.config.activation == "gelu-tanh":
            return geglu(h)
        gate, up = h.chunk(2, -1)
        return self.act(gate) * up


register("mlp", channel="MLP", summary="Two-layer feed-forward network", paper="1706.03762", year=2017, tags=("causal",))
register("glu", channel="GLU", summary="Gated linear unit (SwiGLU)", paper="2002.05202", year=2020, tags=("causal",))
