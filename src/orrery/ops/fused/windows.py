"""Every token beside the ones before it: what a convolution with dense maps multiplies by its weights.

    y_t = [x_{t-K+1} .. x_t];  what lies before the document's start is zero

Quasi-recurrent networks (1611.01576) have such a convolution; depthwise ones are in :mod:`orrery.ops.fused.short_conv`.

B batch, T time, C channels, K kernel size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from orrery.ops.fused.short_conv import last_inputs


def windows(
    x: Tensor,
    kernel: int,
    inputs: Tensor | None = None,
    starts: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Windows over x (B,T,C).

    Args:
        kernel: K.
        inputs: (B,K-1,C), the tokens before x (zeros when None).
        starts: (B,T) bool, document starts.
        lengths: (B,), valid tokens where padding trails.

    Returns:
        y (B,T,K*C), oldest first, and the last K-1 valid tokens (B,K-1,C); those of an earlier document are zeroed.
    """
    batch, length, channels = x.shape
    inputs = x.new_zeros(batch, kernel - 1, channels) if inputs is None else inputs.to(x.dtype)
    if kernel == 1:
        return x, inputs
    padded = torch.cat([inputs, x], 1)
    pieces = [padded[:, j : j + length] for j in range(kernel)]
    if starts is not None:
        document = torch.nn.functional.pad(starts.cumsum(1), (kernel - 1, 0))
        now = document[:, kernel - 1 :]
        pieces = [
            piece.masked_fill((document[:, j : j + length] != now)[..., None], 0.0) for j, piece in enumerate(pieces)
        ]
    return torch.cat(pieces, 2), last_inputs(x, inputs, starts, lengths)
