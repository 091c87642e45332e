"""The sliding past: distances whole and in parts, and what a row keeps, against rows taken one by one."""

from __future__ import annotations

import pytest
import torch

from orrery.nn.memory import columns, distances, join, keep
from orrery.nn.timeline import plan

SEGMENTS = torch.tensor([[0] * 9, [0] * 4 + [1] * 5, [0, 1, 1, 1, 2, 2, -1, -1, -1]])


@pytest.mark.parametrize("memory", [None, 3, 20])
@pytest.mark.parametrize("packed", [False, True])
def test_every_token_finds_its_predecessors(memory, packed):
    """Two calls; the value of a token names its row and place, so that what is seen can be read off."""
    values = torch.arange(27.0).view(3, 9, 1)
    segments = SEGMENTS if packed else torch.zeros(3, 9, dtype=torch.int64)
    clock, past = None, None
    for low, high in ((0, 5), (5, 9)):
        time, order = plan(segments[:, low:high], clock, 3, high - low, values.device)
        assert order is None
        far, held = distances(time, clock, high - low, memory), join(past, values[:, low:high], time, memory)
        far = far.expand(3, -1, -1)
        assert held.shape[1] == far.shape[2] == columns(time, memory) + high - low
        for b in range(3):
            for t in range(low, high):
                if segments[b, t] < 0:
                    continue
                seen = {float(held[b, s, 0]): int(d) for s, d in enumerate(far[b, t - low]) if d >= 0}
                reach = 9 if memory is None else memory
                want = {float(9 * b + s): t - s for s in range(t + 1) if t - s <= reach and segments[b, s] == segments[b, t]}
                assert seen == want
        part = distances(time, clock, high - low, memory, slice(1, 3), slice(1, 4))
        assert torch.equal(part.expand(3, -1, -1), far[:, 1:3, 1:4])
        (past,), clock = keep((held,), time, clock, memory), time.clock
    for b in range(3):
        last = [s for s in range(9) if segments[b, s] >= 0]
        last = [s for s in last if segments[b, s] == segments[b, last[-1]]][-(memory or 9) :]
        assert past[b, : len(last), 0].tolist() == [float(9 * b + s) for s in last] and not past[b, len(last) :].any()
