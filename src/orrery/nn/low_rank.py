"""A linear map and a map of low rank beside it: what tells the uses of one matrix apart (LoRA, arXiv 2106.09685; as a part of the
architecture 2411.15242).

    y = W x + b + [U_1 V_1 x; ..; U_G V_G x]        V_g (R,I), U_g (O/G,R): G parts of the output have a map each

Where layers have `weight` and `bias` in common, `down` (all V) and `up` (all U) are every layer's own.

I inputs, O outputs, R rank, G parts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core.config import require


class LowRankLinear(nn.Linear):
    """Linear (I -> O) with maps of a rank beside it, one for each of `parts` equal parts of the output."""

    def __init__(self, inputs: int, outputs: int, rank: int, parts: int = 1, bias: bool = False) -> None:
        require(rank > 0, f"a map of low rank needs a rank of 1 or more, not {rank}")
        require(outputs % parts == 0, f"{outputs} outputs cannot be divided into {parts} equal parts")
        super().__init__(inputs, outputs, bias=bias)
        self.rank, self.parts = rank, parts
        self.down = nn.Parameter(torch.empty(parts * rank, inputs))
        self.up = nn.Parameter(torch.empty(outputs, rank))
        self.reset_low_rank()

    def forward(self, x: Tensor) -> Tensor:
        """X (..., I) -> (..., O)."""
        low = F.linear(x, self.down)
        if self.parts == 1:
            return super().forward(x) + F.linear(low, self.up)
        found = [F.linear(v, u) for v, u in zip(low.chunk(self.parts, -1), self.up.chunk(self.parts), strict=True)]
        return super().forward(x) + torch.cat(found, -1)

    def wide_up(self) -> Tensor:
        """All U as one matrix (O,G*R), so that y = W x + b + U V x."""
        return torch.block_diag(*self.up.detach().chunk(self.parts))

    def flops(self, length: int) -> int:
        """Of the low-rank maps of `length` tokens; the linear map's own are whose it is."""
        return 2 * self.rank * (self.parts * self.in_features + self.out_features) * length

    def reset_low_rank(self) -> None:
        """Both factors as PyTorch's linear maps: their product starts small against W, and different in every layer."""
        nn.init.uniform_(self.down, -(self.in_features**-0.5), self.in_features**-0.5)
        nn.init.normal_(self.up, std=self.in_features**-0.5)
