"""Turning heads: the compiled pass, the torch form and their gradients against complex products in float64."""

import pytest
import torch

from orrery.nn.rotary import rotary_table
from orrery.ops.fused.rotation import turn, turn_reference


@pytest.mark.parametrize("heads", [2, 3])
@pytest.mark.parametrize("rotated", [2, 6])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_turn_and_its_gradient(heads, rotated, per_row, backend):
    batch, time, size = 2, 1000, 6
    positions = torch.randint(0, 50, (batch, time)) if per_row else torch.arange(time)
    x, dy = torch.randn(batch, time, 3, size), torch.randn(batch, time, 3, size)
    table = rotary_table(positions, rotated, 100.0)
    exact = x.double().requires_grad_()
    wanted = turn_reference(exact, rotary_table(positions, rotated, 100.0, double=True), heads)
    assert torch.equal(wanted[:, :, heads:], exact[:, :, heads:]) and torch.equal(wanted[..., rotated:], exact[..., rotated:])
    t, (even, odd) = 7, x[1, 7, 0, :2].double()
    angle = positions.expand(batch, -1)[1, t].double()  # of the first pair: the position itself
    by_hand = torch.stack([even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()])
    assert torch.allclose(wanted[1, t, 0, :2], by_hand)
    wanted.backward(dy.double())
    given = x.clone().requires_grad_()
    y = turn(given, table, heads, backend)
    y.backward(dy)
    assert torch.allclose(y.double(), wanted, atol=1e-5) and torch.allclose(given.grad.double(), exact.grad, atol=1e-5)
