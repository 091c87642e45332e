"""Formulas computed again in the backward pass: the same values and gradients, and nothing held but what went in."""

import pytest
import torch

import orrery
from orrery.nn.recompute import block_linear, linear_of, linears_of, recompute, small_linear


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


def kept(run):
    """Addresses of what a forward pass holds."""
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: held.append(x.data_ptr()) or x, lambda x: x):
        return run(), set(held)


def test_linear_maps_of_formulas_have_their_values_and_gradients_and_hold_what_went_in():
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True), torch.randn(4, dtype=torch.float64, requires_grad=True)
    first, second = torch.nn.Linear(4, 5).double(), torch.nn.Linear(4, 2, bias=False).double()
    linears, leaves = (first, second), [x, y, *first.parameters(), *second.parameters()]

    def mixed(x, y, none):
        assert none is None
        return x.exp() * y, torch.lerp(x, y.expand_as(x), 0.3)

    found, held = kept(lambda: linears_of(mixed, linears, x, y, None))
    wanted = [linear(part) for linear, part in zip(linears, mixed(x, y, None), strict=True)]
    assert held == {x.data_ptr(), y.data_ptr(), first.weight.data_ptr(), second.weight.data_ptr()}
    for which in ((0,), (1,), (0, 1)):
        slopes = [
            torch.autograd.grad(sum(out[i].sin().sum() for i in which), leaves, retain_graph=True, materialize_grads=True)
            for out in (found, wanted)
        ]
        assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in zip(*slopes, strict=True))


def test_a_frozen_map_gets_no_gradient_and_what_is_no_plain_map_is_called():
    x, linear = torch.randn(3, 4, requires_grad=True), torch.nn.Linear(4, 2).requires_grad_(False)
    linear_of(torch.tanh, linear, x).sum().backward()
    assert x.grad is not None and linear.weight.grad is None
    called = []
    handle = linear.register_forward_hook(lambda *_: called.append("hook"))
    assert torch.equal(linear_of(torch.tanh, linear, x), linear(torch.tanh(x)))
    handle.remove()
    assert called == ["hook", "hook"]
    with linear.register_full_backward_hook(lambda *_: called.append("back")):
        linear_of(torch.tanh, linear, x).sum().backward()
    assert called.pop() == "back" and not called[2:]
    linear.forward = lambda x: 2 * x
    assert torch.equal(linear_of(torch.tanh, linear, x), 2 * torch.tanh(x))
    del linear.forward
    adapted = torch.nn.Sequential(linear, torch.nn.ReLU())
    assert torch.equal(linear_of(torch.tanh, adapted, x), adapted(torch.tanh(x)))


def test_maps_of_formulas_cast_in_both_passes():
    x, linear = torch.randn(3, 4, requires_grad=True), torch.nn.Linear(4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        out = linear_of(torch.tanh, linear, x)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16 and linear.weight.grad.dtype == x.grad.dtype == torch.float32
    assert torch.allclose(linear.weight.grad, torch.tanh(x).detach().sum(0).expand(2, -1), rtol=2e-2, atol=2e-2)


def test_a_convolution_that_is_listened_to_is_called():
    model = orrery.create_model("mlstm", width=32, depth=1, vocab_size=61)
    tokens, calls = torch.arange(12)[None], []
    want = model(tokens).hidden
    with model.blocks[0].mixer.conv.register_forward_hook(lambda *_: calls.append("forward")):
        assert torch.equal(model(tokens).hidden, want)
    with model.blocks[0].mixer.conv.register_full_backward_hook(lambda *_: calls.append("back")):
        model(tokens).hidden.square().sum().backward()
    assert calls == ["forward", "back"]


def test_block_diagonal_and_small_maps_hold_nothing_that_is_made_again():
    x, blocks = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True), torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    wanted = torch.stack([x.flatten(0, 1)[:, 2 * g : 2 * g + 2] @ blocks[g] for g in range(3)])
    found, held = kept(lambda: block_linear(recompute(torch.sin, x), blocks))
    assert torch.allclose(block_linear(x, blocks), wanted) and torch.allclose(found, block_linear(x.sin(), blocks))
    assert held == {x.data_ptr(), blocks.data_ptr()}
    assert torch.autograd.gradcheck(lambda x, blocks: block_linear(recompute(torch.sin, x), blocks), (x, blocks))
    linear = torch.nn.Linear(6, 5, dtype=torch.float64)
    y, held = kept(lambda: linear_of(torch.exp, linear, small_linear(torch.nn.Linear(6, 6).double(), x)))
    assert y.shape == (2, 3, 5) and x.data_ptr() in held and len(held) == 4  # x and three parameters
    called = []
    linear.register_forward_hook(lambda *_: called.append("hook"))
    assert torch.equal(small_linear(linear, x), linear(x)) and len(called) == 2
