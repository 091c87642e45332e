"""Linear maps whose weights are laid out once for the processor, with activation and residual in the same pass.

    y = act(x W^T + b)        y = r + x W^T + b

oneDNN multiplies in blocks and wants W in blocks; torch's own linear map finds it in rows, copies the bias into the result
first, and makes a pass of its own for whatever comes next. A layout is a copy of the weights, so only who reads many inputs
with the same weights asks for it (:mod:`orrery.models.reader`). Without gradients, float32 on a CPU.

x (..., D), W (E, D), b (E,), r and y (..., E).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str, tuple[str, str]] = {
    "gelu": ("gelu", "none"), "gelu-tanh": ("gelu", "tanh"), "relu": ("relu", ""), "silu": ("swish", ""), "tanh": ("tanh", ""),
    "sigmoid": ("sigmoid", ""),
}  # fmt: skip
"""Ours -> oneDNN's name and algorithm."""


def available() -> bool:
    """Whether torch was built with oneDNN and offers its fused linear maps."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class PackedLinear:
    """A linear map laid out once. The weights are copied: a later change of them is not seen.

    Args:
        weight: (E,D) float32 on a CPU. bias: (E,) or None. activation: a name of ACTIVATIONS, or "" for none.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str = "") -> None:
        ops: Any = torch.ops.mkldnn
        self._plain, self._binary = ops._linear_pointwise.default, ops._linear_pointwise.binary
        self.weight = ops._reorder_linear_weight(weight.detach(), None)
        self.bias = None if bias is None else bias.detach().clone()
        self.act, self.how = ACTIVATIONS[activation] if activation else ("none", "")

    def __call__(self, x: Tensor) -> Tensor:
        """X (...,D) -> act(x W^T + b) (...,E)."""
        y: Tensor = self._plain(x, self.weight, self.bias, self.act, [], self.how)
        return y

    def onto(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + x W^T + b."""
        y: Tensor = self._binary(x, residual, self.weight, self.bias, "add")
        return y


def packed_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "", residual: Tensor | None = None) -> Tensor:
    """The same by torch's own operations."""
    y = F.linear(x, weight, bias)
    known: dict[str, Any] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}
    if activation == "gelu-tanh":
        y = F.gelu(y, approximate="tanh")
    elif activation:
        y = known[activation](y)
    return y if residual is None else residual + y
