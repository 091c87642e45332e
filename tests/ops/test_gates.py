"""The elementwise gates: the compiled loops against the plain formulas, values and gradients, and what is not finite."""

from __future__ import annotations

import pytest
import torch

from orrery.ops.fused.gates import relu_square, sigmoid_gate, silu_gate

SHAPE = (3, 50, 130)  # more than one block of the compiled loop


PLAIN = {sigmoid_gate: torch.sigmoid, silu_gate: torch.nn.functional.silu}


@pytest.mark.parametrize("gate", PLAIN, ids=lambda gate: gate.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gates(dtype, gate):
    g = torch.Generator().manual_seed(0)
    r, v, dy = (torch.randn(SHAPE, generator=g, dtype=torch.float64) * size for size in (5, 1, 1))
    inputs = [r.to(dtype).requires_grad_(), v.to(dtype).requires_grad_()]
    y = gate(*inputs, backend="numba")
    exact = [r.requires_grad_(), v.requires_grad_()]
    want = PLAIN[gate](exact[0]) * exact[1]
    tolerance = 5e-6 if dtype == torch.float32 else 1e-13
    assert (y - want).abs().max() < tolerance
    grads = torch.autograd.grad(y, inputs, dy.to(dtype))
    for got, expected in zip(grads, torch.autograd.grad(want, exact, dy), strict=True):
        assert (got - expected).abs().max() < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relu_square(dtype):
    g = torch.Generator().manual_seed(0)
    h, dy = (torch.randn(SHAPE, generator=g, dtype=torch.float64) for _ in range(2))
    given = h.to(dtype).requires_grad_()
    y = relu_square(given, backend="numba")
    want = h.clamp(min=0).square()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    assert (y - want).abs().max() < tolerance
    (grad,) = torch.autograd.grad(y, given, dy.to(dtype))
    assert (grad - 2 * h.clamp(min=0) * dy).abs().max() < tolerance


def test_what_is_not_finite_stays_so():
    special = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0, 200.0, -200.0])
    x = special.repeat(10_000)
    got, want = relu_square(x, backend="numba")[:6], torch.relu(special).square()
    torch.testing.assert_close(got, want, equal_nan=True)
    gated = sigmoid_gate(x, torch.ones_like(x), backend="numba")[:6]
    torch.testing.assert_close(gated, special.sigmoid(), equal_nan=True, rtol=1e-5, atol=1e-30)


def test_one_backend_for_small_tensors():
    r = torch.randn(4, 5)
    assert torch.equal(sigmoid_gate(r, r), r.sigmoid() * r)
    assert torch.equal(relu_square(r), torch.relu(r).square())
