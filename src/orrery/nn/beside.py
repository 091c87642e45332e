"""A convolution beside an encoder's first layer, which sees neighbours before attention sees everything (DeBERTa-v2, xlarge and up).

    x_1 = LN( layer_1(x_0) + act( sum_j W_j x_{0, t + j - K/2} + b ) )        zero beyond the document

B batch, T time, D width, K kernel size, N tokens of a packed row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from orrery.core.config import Config, require
from orrery.nn.contract import Context
from orrery.nn.feedforward import activation
from orrery.nn.norms import make_norm
from orrery.nn.packing import pack_timeline


@dataclass(frozen=True, kw_only=True)
class BesideConfig(Config):
    """kernel: K, odd. groups: of channels that do not see one another. activation: behind the convolution."""

    kernel: int = 3
    groups: int = 1
    activation: str = "gelu"

    def __post_init__(self) -> None:
        require(self.kernel > 0 and self.kernel % 2 == 1, f"beside.kernel must be odd and positive, not {self.kernel}")
        require(self.groups > 0, f"beside.groups must be positive, not {self.groups}")


class Beside(nn.Module):
    """The convolution, the sum with the first layer's output, and their norm."""

    def __init__(self, config: BesideConfig, width: int, norm: str, eps: float) -> None:
        super().__init__()
        require(width % config.groups == 0, f"beside.groups {config.groups} must divide the width {width}")
        self.conv = nn.Conv1d(width, width, config.kernel, padding=config.kernel // 2, groups=config.groups)
        self.act = activation(config.activation)
        self.norm = make_norm(norm, width, eps)

    def forward(self, before: Tensor, after: Tensor, ctx: Context) -> Tensor:
        """What goes into the first layer and what comes out of it (B,T,D) -> what goes into the second."""
        out: Tensor = self.norm(after + self.act(self._convolved(before, ctx)))
        return out

    def _convolved(self, x: Tensor, ctx: Context) -> Tensor:
        time = ctx.timeline
        if time.groups is not None:
            blocks = x[0].split([count * length for count, length in time.groups])
            found = [
                self._rows(block.unflatten(0, shape)).flatten(0, 1) for block, shape in zip(blocks, time.groups, strict=True)
            ]
            return torch.cat(found)[None]
        if time.starts is not None or time.lengths is not None:
            packing, packed = pack_timeline(time, len(x), x.shape[1])
            return packing.spread(self._convolved(packing.gather(x), ctx.replace(time=packed)))
        return self._rows(x)

    def _rows(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x.transpose(1, 2))
        return y.transpose(1, 2)

    def flops(self, length: int) -> int:
        """Of `length` tokens."""
        return 2 * self.conv.weight.numel() * length

    def reset_parameters(self) -> None:
        """As torch draws a convolution; the norm's weight 1."""
        self.conv.reset_parameters()
        self.norm.reset_parameters()  # type: ignore[operator]
