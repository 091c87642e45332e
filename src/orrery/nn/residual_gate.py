"""Gates that stand in the place of a residual's sum: x, y -> g(x, y), both (B,T,D) (GTrXL, arXiv 1910.06764, section 3.2).

input:    g = sigmoid(W x) * x + y
output:   g = x + sigmoid(W x - b) * y
highway:  g = sigmoid(W x + b) * x + (1 - sigmoid(W x + b)) * y
sigtanh:  g = x + sigmoid(W y - b) * tanh(U y)
gru:      r = sigmoid(W_r y + U_r x);  z = sigmoid(W_z y + U_z x - b);  h = tanh(W_g y + U_g (r * x));  g = (1 - z) * x + z * h

A bias b above 0 lets a block begin near the identity.

B batch, T time, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core.errors import ConfigError, suggest

KINDS = {"input": 1, "output": 1, "highway": 1, "sigtanh": 2, "gru": 6}
"""Names and the number of D x D matrices each has."""


class ResidualGate(nn.Module):
    """One gate of a `kind` above for vectors of size `width`; `bias` is the initial b."""

    def __init__(self, kind: str, width: int, bias: float = 2.0) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ConfigError(f"unknown gate '{kind}'.{suggest(kind, KINDS)} Known: {', '.join(KINDS)}")
        self.kind, self.width, self.initial = kind, width, bias
        self.weight = nn.Parameter(torch.empty(KINDS[kind], width, width))
        self.bias = nn.Parameter(torch.empty(width)) if kind != "input" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices uniform with Xavier's bound, b as configured."""
        bound = (3 / self.width) ** 0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.constant_(self.bias, self.initial)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The stream x and a part's output y, (B,T,D) each -> (B,T,D)."""
        w, b = self.weight, self.bias
        if self.kind == "input":
            return torch.sigmoid(F.linear(x, w[0])) * x + y
        assert b is not None
        if self.kind == "output":
            return x + torch.sigmoid(F.linear(x, w[0], -b)) * y
        if self.kind == "highway":
            return _between(y, x, torch.sigmoid(F.linear(x, w[0], b)))
        if self.kind == "sigtanh":
            return x + torch.sigmoid(F.linear(y, w[0], -b)) * torch.tanh(F.linear(y, w[1]))
        r_y, z_y, h_y = F.linear(y, w[:3].flatten(0, 1)).chunk(3, -1)
        r_x, z_x = F.linear(x, w[3:5].flatten(0, 1)).chunk(2, -1)
        h = torch.tanh(h_y + F.linear(torch.sigmoid(r_y + r_x) * x, w[5]))
        return _between(x, h, torch.sigmoid(z_y + z_x - b))

    def flops(self, length: int) -> int:
        """2 D^2 for every matrix and token."""
        return 2 * KINDS[self.kind] * self.width**2 * length


def _between(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """A + share (b - a) in the wider type of the two; autocast hands over 16-bit ones beside float32."""
    kind = torch.promote_types(a.dtype, b.dtype)
    return torch.lerp(a.to(kind), b.to(kind), share.to(kind))
