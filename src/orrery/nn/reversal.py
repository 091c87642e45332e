"""Documents read from their end: the order that reverses each of them within its row."""

from __future__ import annotations

import torch
from torch import Tensor

from orrery.nn.timeline import Timeline


def reversal(time: Timeline, length: int) -> Tensor | None:
    """The place (B,T) at which each token of a reversed document stands; padding stays. None: every row is flipped whole.

    Reversing twice changes nothing, so it is its own inverse.
    """
    if time.starts is None and time.lengths is None:
        return None
    steps = torch.arange(length, device=time.clock.device)
    starts = torch.zeros(1, length, dtype=torch.bool, device=steps.device) if time.starts is None else time.starts.clone()
    batch = len(time.clock)
    starts = starts.expand(batch, -1).clone()
    starts[:, 0] = True
    first = torch.where(starts, steps, 0).cummax(1).values
    valid = torch.full((batch,), length, device=steps.device) if time.lengths is None else time.lengths
    ends = torch.where(starts.roll(-1, 1), steps, length - 1)
    ends[:, -1] = length - 1
    ends = torch.minimum(ends, (valid - 1)[:, None]).masked_fill(steps >= valid[:, None], length - 1)
    last = ends.flip(1).cummin(1).values.flip(1)
    return torch.where(steps < valid[:, None], first + last - steps, steps)
