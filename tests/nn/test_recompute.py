"""Formulas computed again in the backward pass: the same values and gradients, and nothing held but what went in."""

import pytest
import torch

from orrery.nn.recompute import recompute


def formula(x, y, none):
    assert none is None
    return torch.tanh(x) * torch.sigmoid(y), None, (x + y).exp()


@pytest.mark.parametrize("which", [(0,), (2,), (0, 2)])
def test_values_and_gradients_are_those_of_the_formula(which):
    torch.manual_seed(0)
    x, y = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.randn(4, dtype=torch.float64, requires_grad=True)
    found, wanted = recompute(formula, x, y, None), formula(x, y, None)
    assert found[1] is None and all(torch.equal(found[i], wanted[i]) for i in (0, 2))
    slopes = [torch.autograd.grad(sum(out[i].sin().sum() for i in which), [x, y]) for out in (found, wanted)]
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(*slopes, strict=True))


def test_only_what_needs_a_gradient_gets_one_and_nothing_else_is_held():
    x, y, held = torch.randn(5, requires_grad=True), torch.randn(5), []

    def pack(tensor):
        held.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = recompute(formula, x, y, None)
    assert set(held) == {x.data_ptr(), y.data_ptr()}
    out[0].sum().backward()
    assert x.grad is not None and y.grad is None
    with torch.no_grad():
        assert not recompute(formula, x, y, None)[0].requires_grad


def test_autocast_is_the_same_in_both_passes():
    """A product in bfloat16 whose other operand is a float32 parameter: computed again in float32 it would not even run."""
    x, w = torch.randn(3, 4).bfloat16().requires_grad_(), torch.randn(4, 2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = recompute(lambda a, b: a @ b, x, w)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16 and w.grad.dtype == torch.float32
