"""Normalisation over the last dimension.

RMSNorm (arXiv 1910.07467):  y = x / sqrt(mean(x^2) + eps) * w
LayerNorm (arXiv 1607.06450): y = (x - mean(x)) / sqrt(var(x) + eps) * w + b
SimpleRMSNorm (TransNormerLLM, arXiv 2307.14995): RMSNorm without weight.
"layernorm-unbiased": LayerNorm without b. "none": y = x.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core.errors import ConfigError, suggest
from orrery.ops.fused.rms_norm import rms_norm


class RMSNorm(nn.Module):
    """RMSNorm over the last dimension of size `width`; statistics in float32 under lower precision."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """X (..., D) -> (..., D)."""
        return rms_norm(x, self.weight, self.eps)

    def reset_parameters(self) -> None:
        """Weight 1."""
        nn.init.ones_(self.weight)


class SimpleRMSNorm(nn.Module):
    """RMSNorm without weight."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """X (..., D) -> (..., D)."""
        return rms_norm(x, None, self.eps)

    def reset_parameters(self) -> None:
        """Nothing to draw."""


class LayerNorm(nn.Module):
    """LayerNorm over the last dimension, with weight and (by default) bias."""

    def __init__(self, width: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """X (..., D) -> (..., D)."""
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)

    def reset_parameters(self) -> None:
        """Weight 1, bias 0."""
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class NoNorm(nn.Module):
    """The place of a norm where there is none."""

    def __init__(self, width: int, eps: float = 0.0) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """X (..., D) as it is."""
        return x

    def reset_parameters(self) -> None:
        """Nothing to draw."""


NORMS: dict[str, Callable[[int, float], nn.Module]] = {
    "rmsnorm": RMSNorm,
    "layernorm": LayerNorm,
    "layernorm-unbiased": functools.partial(LayerNorm, bias=False),
    "simple-rmsnorm": SimpleRMSNorm,
    "none": NoNorm,
}


def make_norm(kind: str, width: int, eps: float) -> nn.Module:
    """A norm by its name in configs."""
    if kind not in NORMS:
        raise ConfigError(f"unknown norm '{kind}'.{suggest(kind, NORMS)} Known: {', '.join(NORMS)}")
    return NORMS[kind](width, eps)
