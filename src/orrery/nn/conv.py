"""Short causal depthwise convolution over time, alone and as a Canon layer.

ShortConv:    y_t = act( sum_{j<K} w_j x_{t-K+1+j} + b )         (Mamba, DeltaNet and others, before their recurrence)
Canon layer:  y_t = x_t + sum_{j<K} w_j x_{t-K+1+j}              (Physics of LMs 4.1; residual, no bias, no activation)

The state is the last K-1 inputs. Documents do not leak into each other: taps that reach over a document start are
zero. Initialised as PyTorch initialises a convolution with fan-in K (uniform +-1/sqrt(K)), which both papers rely on.

B batch, T time, C channels, K kernel size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from orrery.nn.contract import Context
from orrery.nn.recompute import recompute
from orrery.nn.state import state
from orrery.nn.timeline import fresh_clock
from orrery.nn.unchanged import listened_to
from orrery.ops.fused.short_conv import last_inputs, short_conv


@state
class ConvState(NamedTuple):
    """The last K-1 inputs (B,K-1,C), oldest first; zeros where the document is shorter."""

    inputs: Tensor
    clock: Tensor


class ShortConv(nn.Module):
    """Depthwise causal convolution with an optional SiLU and an optional residual.

    Args:
        channels: C.
        kernel: K, taps including the present token.
        activation: "silu" or "" (none), applied to the convolution before the residual is added.
        bias: adds a bias per channel.
        residual: adds the input (a Canon layer).
    """

    def __init__(self, channels: int, kernel: int = 4, activation: str = "", bias: bool = False, residual: bool = False) -> None:
        super().__init__()
        self.channels, self.kernel, self.activation, self.residual = channels, kernel, activation, residual
        self.weight = nn.Parameter(torch.empty(channels, kernel))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform +-1/sqrt(K), for the bias too."""
        bound = 1 / math.sqrt(self.kernel)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, inputs: Tensor | None, ctx: Context) -> tuple[Tensor, Tensor]:
        """X (B,T,C) and the last inputs (B,K-1,C) or None -> y (B,T,C) and the new last inputs.

        Called from a part's `mix`, so padding is trailing and `ctx.time` is set.
        """
        time = ctx.timeline
        y, inputs = short_conv(x, self.weight, self.bias, inputs, time.starts, time.lengths, self.activation)
        return (x + y if self.residual else y), inputs

    def recomputed(
        self, x: Tensor, inputs: Tensor | None, ctx: Context, split: Callable[[Tensor], Any] = lambda y: y
    ) -> tuple[Any, Tensor]:
        """`split(y)` and the new last inputs; for a recurrence that need not hold what it is given, since it can be computed again.

        split: of y (B,T,C) into a tuple of tensors.
        """
        time, starts = ctx.timeline, ctx.timeline.starts
        if listened_to((self,), back=True):
            y, inputs = self(x, inputs, ctx)
            return split(y), inputs

        def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, inputs: Tensor | None) -> Any:
            y = short_conv(x, weight, bias, inputs, starts, time.lengths, self.activation)[0]
            return split(x + y if self.residual else y)

        held = x.new_zeros(len(x), self.kernel - 1, x.shape[2]) if inputs is None else inputs.to(x.dtype)
        return recompute(convolve, x, self.weight, self.bias, inputs), last_inputs(x, held, starts, time.lengths)

    def init_state(self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Zeros (B,K-1,C)."""
        return torch.zeros(batch, self.kernel - 1, self.channels, device=device, dtype=dtype)

    def state_bytes(self) -> int:
        """Bytes per sequence."""
        return (self.kernel - 1) * self.channels * self.weight.element_size()

    def flops(self, length: int) -> int:
        """2 K C per token."""
        return 2 * self.kernel * self.channels * length


class Canon(nn.Module):
    """A Canon layer as a part of its own (places A and C of a block): `y, state = canon(x, state, ctx)`."""

    def __init__(self, width: int, kernel: int = 4) -> None:
        super().__init__()
        self.conv = ShortConv(width, kernel, residual=True)

    def forward(self, x: Tensor, state: ConvState | None, ctx: Context) -> tuple[Tensor, ConvState]:
        """X (B,T,D) -> (B,T,D)."""
        y, inputs = self.conv(x, None if state is None else state.inputs, ctx)
        return y, ConvState(inputs, ctx.timeline.clock)

    def reset_parameters(self) -> None:
        """As the convolution's."""
        self.conv.reset_parameters()

    def init_state(self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ConvState:
        """Nothing seen."""
        return ConvState(self.conv.init_state(batch, device, dtype), fresh_clock(batch, device))

    def state_bytes(self, length: int) -> int:
        """Constant in the length."""
        return self.conv.state_bytes()

    def flops(self, length: int) -> int:
        """Of the convolution."""
        return self.conv.flops(length)
