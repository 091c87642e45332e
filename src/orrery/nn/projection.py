"""The input projection of a mixer: one matrix product, optionally followed by a convolution over time.

    p_t = W x_t (+ b);   with Canon-B:  p_t + sum_j w_j p_{t-K+1+j}

Canon-B (Physics of LMs 4.1) stands on queries, keys and values side by side, before they are split into heads; gates that the same
product makes go by it. A mixer whose paper has a short convolution of its own already has that layer; it passes `canon=False`.

B batch, T time, D width, E output size, C outputs convolved, K taps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.nn.contract import Context, Place
from orrery.nn.conv import ShortConv
from orrery.nn.stepping import Step, in_order, linear_step
from orrery.ops.steps.canon import residual_conv_step
from orrery.ops.steps.row_linear import RowNorm


class Projection(nn.Module):
    """Linear (D -> E) with Canon-B where `place.canon` asks for it.

    Args:
        place: where the mixer stands; `b` in `place.canon` turns the convolution on.
        out: E.
        bias: of the linear map.
        canon: outputs that the convolution is for, from the first on; True: all; False: none, for mixers that bring their own.
    """

    def __init__(self, place: Place, out: int, bias: bool = False, canon: bool | int = True) -> None:
        super().__init__()
        self.linear = nn.Linear(place.width, out, bias=bias)
        self.convolved = out if canon is True else int(canon)
        self.conv = ShortConv(self.convolved, residual=True) if self.convolved and "b" in place.canon else None

    def forward(self, x: Tensor, inputs: Tensor | None, ctx: Context) -> tuple[Tensor, Tensor]:
        """X (B,T,D), last inputs (B,K-1,C) or None -> p (B,T,E) and the new last inputs, of the C convolved outputs ((B,0,0) where none
        is)."""
        p = self.linear(x)
        if self.conv is None:
            return p, p.new_empty(len(p), 0, 0)
        if self.convolved == p.shape[-1]:
            return self.conv(p, inputs, ctx)
        first, inputs = self.conv(p[..., : self.convolved], inputs, ctx)
        return torch.cat([first, p[..., self.convolved :]], -1), inputs

    def step(self, x: Tensor, inputs: Tensor, y: Tensor, norm: RowNorm | None = None) -> Step:
        """One token as a step (:mod:`orrery.nn.stepping`): y (B,E) from norm(x) (B,D), the last inputs copied and then kept."""
        if self.conv is None:
            return linear_step(x, self.linear, y, norm)
        others = y.shape[1] - self.convolved  # with taps of 0 they are what they were
        raw, window = torch.empty_like(y), F.pad(inputs.float(), (0, others)).contiguous().clone()
        taps = F.pad(self.conv.weight.detach(), (0, 0, 0, others))
        return in_order(linear_step(x, self.linear, raw, norm), residual_conv_step(raw, window, taps, y))

    def init_state(self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Last inputs before the first token."""
        if self.conv is None:
            return torch.zeros(batch, 0, 0, device=device, dtype=dtype)
        return self.conv.init_state(batch, device, dtype)

    def state_bytes(self) -> int:
        """Bytes per sequence."""
        return 0 if self.conv is None else self.conv.state_bytes()

    def flops(self, length: int) -> int:
        """2 D E per token, and the convolution."""
        own = 2 * self.linear.in_features * self.linear.out_features * length
        return own + (0 if self.conv is None else self.conv.flops(length))
