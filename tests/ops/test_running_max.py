"""The running maximum against a loop: documents, padding, state, gradients."""

from __future__ import annotations

import pytest
import torch

from orrery.ops.running_max import LOWEST, running_max


def loop(x, state, starts, lengths):
    m = torch.full_like(x[:, 0], LOWEST) if state is None else state
    found = []
    for t in range(x.shape[1]):
        if starts is not None:
            m = torch.where(starts[:, t].view(-1, *[1] * (x.dim() - 2)), LOWEST, m)
        after = torch.maximum(m, x[:, t])
        m = after if lengths is None else torch.where((t < lengths).view(-1, *[1] * (x.dim() - 2)), after, m)
        found.append(m)
    return torch.stack(found, 1), m


@pytest.mark.parametrize("time", [1, 2, 17, 40])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("with_starts", [False, True])
@pytest.mark.parametrize("with_lengths", [False, True])
def test_equals_the_loop(time, with_state, with_starts, with_lengths):
    torch.manual_seed(time)
    x = torch.randn(4, time, 3, 2, dtype=torch.float64, requires_grad=True)
    state = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True) if with_state else None
    lengths = torch.tensor([time, time // 2, 1, 0]) if with_lengths else None
    starts = torch.rand(4, time) < 0.2 if with_starts else None
    if starts is not None and lengths is not None:
        starts &= torch.arange(time) < lengths[:, None]
    got, want = running_max(x, state, starts, lengths), loop(x, state, starts, lengths)
    weight = torch.randn_like(x)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    leaves = [x] if state is None else [x, state]
    mine, right = (torch.autograd.grad((m * weight).sum() + (end * weight[:, 0]).sum(), leaves) for m, end in (got, want))
    for a, b in zip(mine, right, strict=True):
        assert torch.allclose(a, b)
