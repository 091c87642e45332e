"""Experts whose router is a small network that goes on from the router of the layer before, and may choose none of them.

Paper: ZAYA1 (arXiv 2511.17127): one expert a token, chosen by an MLP over an exponential average of depth; a class of the
    router that skips the layer. Selection bias 2408.15664.

Equation:  z_l = W_d x + b_d (+ a * z_{l-1});   p = softmax(W_3 gelu(W_2 gelu(W_1 RMSNorm(z_l))))  over E + 1 classes
    S = the k classes with the largest p_i + bias_i;   y = sum_{i in S, i <= E} p_i E_i(x);   class E + 1 is no expert: it adds nothing

Shapes: B batch, T time, N = B T tokens, D width, R size of the router, E experts, k chosen, F hidden size of one expert.

Cost: D R + 2 R^2 + R (E + 1) for the router of a token, beside what its expert costs.

z goes from layer to layer within a call and concerns the same tokens, so it is no state.

Oracle: tests/oracles/cca.py (float64 loops); transformers' ZAYA block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orrery.core.config import require
from orrery.core.registry import register
from orrery.nn.contract import Context, Place
from orrery.nn.moe import MoE, MoEConfig
from orrery.nn.norms import RMSNorm
from orrery.nn.stepping import Step, Stepping
from orrery.ops.steps.row_linear import RowNorm


@dataclass(frozen=True, kw_only=True)
class CarriedMoEConfig(MoEConfig):
    """router: R (None: D / 8). router_eps: of the router's norm."""

    top_k: int = 1
    normalise: bool | float = False
    bias_rate: float | None = 0.0
    balance: float = 0.0
    router: int | None = None
    router_eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        plain = self.score == "softmax" and not self.normalise and not self.balance and self.bias_rate is not None
        require(plain, "this router has softmax scores that are not normalised, a selection bias (bias_rate) and no balance loss")
        require(self.router is None or self.router > 0, f"router must be positive, not {self.router}")


class CarriedRouter(nn.Module):
    """x (N,D), z of the layer before (N,R) or None -> scores (N,E+1) and z."""

    def __init__(self, place: Place, size: int, classes: int, eps: float) -> None:
        super().__init__()
        self.depth = place.depth
        self.down = nn.Linear(place.width, size)
        self.carry = nn.Parameter(torch.empty(size)) if place.layer else None
        self.norm = RMSNorm(size, eps)
        self.first, self.second = nn.Linear(size, size), nn.Linear(size, size)
        self.out = nn.Linear(size, classes, bias=False)

    @property
    def weight(self) -> Tensor:
        """The last map: its precision and its steps are the router's."""
        return self.out.weight

    def reset_parameters(self) -> None:
        """Normal with std sqrt(2 / 5 fan in), biases 0; what is carried counts fully."""
        for linear in (self.down, self.first, self.second, self.out):
            nn.init.normal_(linear.weight, std=math.sqrt(2 / (5 * linear.in_features)))
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        self.norm.reset_parameters()
        if self.carry is not None:
            nn.init.ones_(self.carry)

    def forward(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores (N,E+1) and z (N,R)."""
        z = self.down(x)
        if self.carry is not None and before is not None:
            z = z + before * self.carry
        return self.out(F.gelu(self.second(F.gelu(self.first(self.norm(z)))))), z

    def flops(self, length: int) -> int:
        """Four maps."""
        return 2 * length * sum(linear.weight.numel() for linear in (self.down, self.first, self.second, self.out))


class CarriedMoE(MoE):
    """Routed experts, or none, chosen by a network that goes on from the layer before."""

    Config = CarriedMoEConfig
    config: CarriedMoEConfig

    def __init__(self, config: CarriedMoEConfig, place: Place) -> None:
        super().__init__(config, place)
        size = config.router or max(8, place.width // 8)
        self.router: Any = CarriedRouter(place, size, config.experts + 1, config.router_eps)
        self.selection_bias = torch.zeros(config.experts + 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As everywhere; the class without an expert begins one probability behind."""
        if isinstance(self.router, nn.Linear):  # as the base class made it
            super().reset_parameters()
            return
        std = math.sqrt(2 / (5 * self.place.width))
        nn.init.normal_(self.wide, std=std)
        nn.init.normal_(self.out, std=std / math.sqrt(2 * self.place.depth))
        self.router.reset_parameters()
        if self.shared is not None:
            self.shared.reset_parameters()
        for buffer in self.buffers(recurse=False):
            nn.init.zeros_(buffer)
        self.selection_bias[-1] = -1.0

    def scored(self, x: Tensor, ctx: Context) -> Tensor:
        """Router logits (N,E+1) of x (B,T,D); z is left for the next layer."""
        shared, kind = ctx.shared if ctx.shared is not None else {}, self.router.weight.dtype
        before = shared.get("router")
        if before is not None:
            sizes = (before.shape[-1], self.router.down.out_features)
            alike = f"routers that go on from each other are of one size; {sizes[0]} and {sizes[1]} meet in layer {self.place.layer}"
            require(sizes[0] == sizes[1], alike)
            before = before[:, -x.shape[1] :].flatten(0, 1)
        logits, z = self.router(x.reshape(-1, x.shape[-1]).to(kind), before)
        shared["router"] = z.unflatten(0, x.shape[:2])
        return logits

    def stepper(self, norm: RowNorm, state: None, run: Stepping) -> Step | None:
        return None

    def flops(self, length: int) -> int:
        """Router, chosen experts, shared experts."""
        plain = 2 * self.place.width * self.config.experts * length
        return super().flops(length) - plain + self.router.flops(length)


register(
    "carried-moe",
    channel="CarriedMoE",
    summary="Mixture of experts whose router goes on from the layer before and may choose no expert (ZAYA1)",
    paper="2511.17127",
    year=2025,
    tags=("causal",),
)
