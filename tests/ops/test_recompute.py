"""What a recurrence is given and can be computed again: not held, the same values and gradients, and asked for once by all."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from orrery.ops.diagonal_scan import diagonal_scan
from orrery.ops.dplr import dplr
from orrery.ops.recompute import held, hold, recompute, with_ones
from orrery.ops.scalar_decay import scalar_decay
from orrery.ops.vector_decay import vector_decay


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        hold(ctx, a, b)
        return a * b

    @staticmethod
    def backward(ctx, dy):
        a, b = held(ctx)
        return dy * b, dy * a


def made(calls):
    def function(x):
        calls.append(x.requires_grad)
        return x.sin(), x.exp()

    return function


def kept(run):
    """Numbers of each storage that a forward pass holds."""
    found = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: found.setdefault(x.data_ptr(), x.numel()) and x, lambda x: x):
        return run(), list(found.values())


@pytest.mark.parametrize("block", [False, True])
def test_what_is_made_is_asked_for_once_and_its_gradient_is_exact(block):
    x, calls = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), []

    def product(x):
        a, b = recompute(made(calls), x)
        return Product.apply(a, b) + Product.apply(b, a)

    y = checkpoint(product, x, use_reentrant=False) if block else product(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(slope, 2 * x.exp() * (x.sin() + x.cos()), rtol=1e-14)
    assert len(calls) == (3 if block else 2)  # in each forward pass, and once for all who ask
    assert torch.autograd.gradcheck(product, x)


def test_a_graph_may_be_run_through_twice():
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    a, b = recompute(made([]), x)
    y = Product.apply(a, b).sum()
    first, second = (torch.autograd.grad(y, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.autograd.grad(y, a, retain_graph=True)[0], b)  # without the gradient of what makes them


def test_what_is_written_to_is_held_as_it_is():
    x = torch.ones(4, requires_grad=True)
    a, b = recompute(made([]), x)
    with torch.no_grad():
        a.mul_(2.0)
    assert torch.equal(torch.autograd.grad(Product.apply(a, b).sum(), b)[0], a)


def test_what_is_cut_off_from_its_history_is_held_as_it_is():
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    a, b = recompute(made([]), x)
    (a * b).sum().backward()  # which lets go of x
    a.detach_()
    b = b.detach().requires_grad_()
    assert torch.equal(torch.autograd.grad(Product.apply(a, b).sum(), b)[0], a)


def operands(kinds, seed=0):
    """x, and a function of it that gives operands (1,32,2,16): gates below 0, the rest as they come."""
    x = 0.3 * torch.randn(1, 32, len(kinds) * 32, generator=torch.Generator().manual_seed(seed))

    def split(x):
        parts = (part.unflatten(-1, (2, -1)) for part in x.chunk(len(kinds), -1))
        return tuple(-part.exp() if kind == "g" else part.sin() for kind, part in zip(kinds, parts, strict=True))

    return x, split


@pytest.mark.parametrize("backend", [None, "torch"])
@pytest.mark.parametrize(("op", "kinds"), [(vector_decay, "qkvg"), (dplr, "qkvabg"), (scalar_decay, "qkvg")])
@pytest.mark.parametrize("documents", [False, True])
def test_recurrences_do_not_hold_what_can_be_computed_again(op, kinds, backend, documents):
    x, split = operands(kinds)
    starts = (torch.arange(32) % 7 == 3)[None] if documents else None

    def run(x, parts):
        *others, g_log = parts
        if op is scalar_decay:
            g_log = g_log[..., 0]
        return op(*others, g_log, None, starts, backend=backend)[0]

    leaves = [x.clone().requires_grad_() for _ in range(2)]
    wanted, many = kept(lambda: run(leaves[0], split(leaves[0])))
    found, few = kept(lambda: run(leaves[1], recompute(split, leaves[1])))
    assert torch.equal(found, wanted)
    slopes = [torch.autograd.grad(y.square().sum(), leaf)[0] for y, leaf in zip((wanted, found), leaves, strict=True)]
    assert torch.allclose(*slopes, rtol=1e-5, atol=1e-6)
    operand = 32 * 2 * 16
    assert sum(few) <= sum(many) - (len(kinds) - 1) * operand  # x in the place of all


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_a_scan_does_not_hold_gates_that_can_be_computed_again(backend):
    x, split = operands("gv")

    def flat(x):
        return tuple(part.flatten(2) for part in split(x))

    leaves = [x.clone().requires_grad_() for _ in range(2)]
    wanted = diagonal_scan(*flat(leaves[0]), backend=backend)[0]
    found, few = kept(lambda: diagonal_scan(*recompute(flat, leaves[1]), backend=backend)[0])
    assert torch.equal(found, wanted)
    slopes = [torch.autograd.grad(y.square().sum(), leaf)[0] for y, leaf in zip((wanted, found), leaves, strict=True)]
    assert torch.equal(*slopes)
    assert sorted(few) == [32, 32 * 32, x.numel()]  # the state before, all states, and x in the place of the gates


def test_ones_behind_values_are_not_held():
    v = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    y, few = kept(lambda: Product.apply(with_ones(v), torch.ones(2, 5, 3, 5, dtype=torch.float64)))
    assert torch.equal(y, torch.cat([v, torch.ones(2, 5, 3, 1)], -1)) and v.numel() in few and len(few) == 2
    assert torch.autograd.gradcheck(with_ones, v)
