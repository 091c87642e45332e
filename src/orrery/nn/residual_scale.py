"""Residual sums with learned scales and shifts of the stream and of what a part puts out (ZAYA1, arXiv 2511.17127).

    x, y -> s * (x + b) + t * (y + c),   s, b, t, c vectors of size D;   before the first layer  x -> s * (x + b)

B batch, T time, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Affine(nn.Module):
    """s * (x + b) for x (B,T,D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The identity."""
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.shift)

    def forward(self, x: Tensor) -> Tensor:
        """X (B,T,D) -> (B,T,D)."""
        return (x + self.shift) * self.scale


class ResidualScale(nn.Module):
    """The sum of a stream and a part's output, each scaled and shifted."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stream, self.change = Affine(width), Affine(width)

    def reset_parameters(self) -> None:
        """A plain sum."""
        self.stream.reset_parameters()
        self.change.reset_parameters()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The stream x and a part's output y, (B,T,D) each -> (B,T,D)."""
        return self.stream(x) + self.change(y)
