"""The gated short convolution: the compiled loop equals the torch form and a plain sum over taps, at any shape and document cut."""

from __future__ import annotations

import pytest
import torch

from orrery.ops.fused import gated_conv as module
from orrery.ops.fused.gated_conv import gated_conv, last_gated


def make(time, width, taps, bias=True, dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    shapes = [(2, time, 3 * width), (width, taps), (width,), (2, taps - 1, width)]
    p, weight, shift, inputs = (torch.randn(*s, generator=rng, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes)
    return [p, weight, shift, inputs] if bias else [p, weight, inputs]


def plain(p, weight, bias, inputs, starts):
    """Token by token, tap by tap."""
    before, behind, u = p.chunk(3, -1)
    padded, taps, out = torch.cat([inputs, before * u], 1), weight.shape[1], []
    for t in range(p.shape[1]):
        rows = []
        for b in range(len(p)):
            h = torch.zeros_like(weight[:, 0]) if bias is None else bias
            for back in range(taps):
                if starts is not None and starts[b, max(0, t - back + 1) : t + 1].any():
                    break
                h = h + weight[:, taps - 1 - back] * padded[b, taps - 1 + t - back]
            rows.append(behind[b, t] * h)
        out.append(torch.stack(rows))
    return torch.stack(out, 1)


def marks(cuts, time):
    if cuts == "none":
        return None
    starts = torch.rand(2, time, generator=torch.Generator().manual_seed(1)) < 0.2
    starts[0, 0] = cuts == "first"
    return starts


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize(("time", "taps", "bias"), [(2, 4, True), (33, 3, False), (70, 7, True), (31, 2, True)])
@pytest.mark.parametrize("cuts", ["none", "some", "first"])
def test_forms_and_gradients_agree(monkeypatch, backend, time, taps, bias, cuts):
    monkeypatch.setattr(module, "SMALL", 0)
    dtype, limit = (torch.float32, 3e-6) if backend == "numba" else (torch.float64, 1e-13)
    if backend == "numba":
        pytest.importorskip("numba")
    starts, results = marks(cuts, time), []
    for given, form in ((make(time, 5, taps, bias), plain), (make(time, 5, taps, bias, dtype), lambda *a: gated_conv(*a, backend=backend))):
        p, weight, *shift, inputs = given
        y = form(p, weight, shift[0] if shift else None, inputs, starts)
        slope = torch.linspace(0.5, 1, y.numel(), dtype=torch.float64).view_as(y)  # sums of it do not cancel
        results.append([y.detach(), *torch.autograd.grad((y * slope).sum(), given)])
    for wanted, found in zip(*results, strict=True):
        assert (found - wanted).abs().max() <= limit * max(1e-30, wanted.abs().max())


@pytest.mark.parametrize("lengths", [None, [0, 9]])
@pytest.mark.parametrize(("cut", "taps"), [(None, 4), (0, 4), (7, 4), (8, 12), (3, 1)])
def test_the_last_inputs_continue_the_row(lengths, cut, taps):
    """Whatever was consumed before: the rest of the row comes out as if it had not been cut."""
    p, weight, bias, inputs = make(14, 4, taps)
    starts = None
    if cut is not None:
        starts = torch.zeros(2, 14, dtype=torch.bool)
        starts[:, cut] = True
    whole = plain(p, weight, bias, inputs, starts)
    ends = torch.tensor([9, 9] if lengths is None else lengths)
    first = None if starts is None else starts[:, :9] & (torch.arange(9) < ends[:, None])
    last = last_gated(p[:, :9], taps, inputs, first, None if lengths is None else ends)
    for row, end in enumerate(ends.tolist()):
        later = None if starts is None else starts[row : row + 1, end:]
        y = gated_conv(p[row : row + 1, end:], weight, bias, last[row : row + 1], later)
        assert torch.allclose(y, whole[row : row + 1, end:], atol=1e-12)
