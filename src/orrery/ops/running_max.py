"""The greatest value so far, over documents and from call to call.

Equation: ``m_t = max(m_{t-1}, x_t)``, elementwise.

Stabilises sums of exponentials that grow with time (performer, 2009.14794), and is the maximum over a causal neighbourhood
(principal neighbourhood aggregation, 2004.05718). The gradient goes to the token that was greatest.

B batch, T time.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOWEST = -1e30
"""Stands for the maximum of nothing: finite, so that differences of it are numbers."""


def running_max(
    x: Tensor, state: Tensor | None = None, starts: Tensor | None = None, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """All ``m_t``.

    Args:
        x: (B,T,...).
        state: m before the first token (B,...); None: :data:`LOWEST`.
        starts: (B,T) bool; True forgets everything before the token.
        lengths: (B,) int64, valid tokens per row; tokens after them leave the maximum as it is.

    Returns:
        m (B,T,...), and m after the last valid token (B,...).
    """
    more = (1,) * (x.dim() - 2)
    if lengths is not None:
        padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
        x = x.masked_fill(padding.view(*padding.shape, *more), LOWEST)
        starts = None if starts is None else starts & ~padding
    if starts is None:
        m = torch.cummax(x, 1).values if x.shape[1] > 1 else x
        m = m if state is None else torch.maximum(m, state[:, None].to(x.dtype))
        return m, m[:, -1]
    steps = torch.arange(x.shape[1], device=x.device)
    first = torch.where(starts, steps, -1).cummax(1).values  # where the token's document begins; -1: before the call
    reach, m = 1, x
    while reach < x.shape[1]:  # m holds the maximum of the last `reach` tokens of the document
        earlier = torch.maximum(m[:, reach:], m[:, :-reach])
        inside = (steps - reach >= first)[:, reach:].view(len(x), -1, *more)
        m = torch.cat([m[:, :reach], torch.where(inside, earlier, m[:, reach:])], 1)
        reach *= 2
    if state is not None:
        open_ = (first < 0).view(*first.shape, *more)
        m = torch.where(open_, torch.maximum(m, state[:, None].to(x.dtype)), m)
    return m, m[:, -1]
