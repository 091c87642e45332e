"""A linear map behind a norm of what it reads, group by group: the group norm between a layer's heads and its way out (2307.08621).

    y = W [n(x_1); ..; n(x_G)] + b        n(x) = x / sqrt(mean(x^2) + eps)

n has no gain of its own: one for each of the I inputs would be a second factor of W's columns.

I inputs, O outputs, G groups.
"""

from __future__ import annotations

from torch import Tensor, nn

from orrery.core.config import require
from orrery.ops.fused.rms_norm import rms_norm


class NormedLinear(nn.Linear):
    """Linear (I -> O) of I numbers that are normed in `groups` equal parts."""

    def __init__(self, inputs: int, outputs: int, groups: int, eps: float, bias: bool = False) -> None:
        require(groups > 0 and inputs % groups == 0, f"{inputs} inputs cannot be divided into {groups} equal groups")
        super().__init__(inputs, outputs, bias=bias)
        self.groups, self.eps = groups, eps

    def forward(self, x: Tensor) -> Tensor:
        """X (..., I) -> (..., O)."""
        return super().forward(self.normed(x))

    def normed(self, x: Tensor) -> Tensor:
        """X (..., I) in its own shape, every group with a mean square of 1."""
        return rms_norm(x.unflatten(-1, (self.groups, -1)), None, self.eps).flatten(-2)
