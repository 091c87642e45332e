"""Grouped linear maps and their sorting, against loops; gradients against finite differences."""

import pytest
import torch

from orrery.ops.fused.experts import (
    combine,
    dispatch,
    drop_beyond,
    experts,
    grouped_linear,
    grouped_linear_reference,
    plan_dispatch,
)


@pytest.mark.parametrize("counts", [[3, 0, 4, 1], [0, 0, 0, 8], [2, 2, 0, 0]])
def test_grouped_linear_is_its_loop(counts):
    torch.manual_seed(0)
    x = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    y, want = grouped_linear(x, weight, counts), grouped_linear_reference(x, weight, counts)
    torch.testing.assert_close(y, want)
    dy = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, weight), dy)
    for gradient, expected in zip(found, torch.autograd.grad(want, (x, weight), dy, allow_unused=True), strict=True):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient) if expected is None else expected)


def test_dispatch_and_combine_by_loops():
    torch.manual_seed(1)
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    gates = torch.rand(6, 2, dtype=torch.float64, requires_grad=True)
    chosen = torch.tensor([[0, 2], [2, 1], [3, 0], [2, 3], [3, 3], [0, 1]])  # 3: no expert
    scales = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)

    def whole(x, gates):
        plan = plan_dispatch(chosen, 3)
        assert plan.counts == [3, 2, 3]
        rows = grouped_linear(dispatch(x, plan), scales[:3, None, None] * torch.eye(4, dtype=torch.float64), plan.counts)
        return combine(rows, gates, plan)

    want = torch.stack([sum(gates[n, i] * scales[chosen[n, i]] * x[n] for i in range(2)) for n in range(6)])
    torch.testing.assert_close(whole(x, gates), want)
    assert torch.autograd.gradcheck(whole, (x, gates))


def test_capacity_keeps_first_choices_and_earlier_tokens():
    chosen = torch.tensor([[0, 1], [0, 1], [1, 0], [0, 2], [3, 3]])
    assert drop_beyond(chosen, 3, 2).tolist() == [[0, 1], [0, 3], [1, 3], [3, 2], [3, 3]]
    assert torch.equal(drop_beyond(chosen, 3, 99), chosen)


def test_no_rows_at_all():
    x, weight = torch.randn(3, 5, requires_grad=True), torch.randn(2, 4, 5, requires_grad=True)
    y = grouped_linear(x, weight, [0, 0])
    assert not y.any() and not any(g.any() for g in torch.autograd.grad(y.sum(), (x, weight)))


@pytest.mark.parametrize("dropped", [False, True])
def test_experts_are_their_parts_and_keep_less(dropped):
    torch.manual_seed(2)
    chosen = torch.tensor([[0, 2], [2, 1], [1, 0], [2, 3 if dropped else 0], [0, 1]])
    plan = plan_dispatch(chosen, 3)
    given = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((5, 4), (5, 2), (3, 6, 4), (3, 7, 3))]

    def activate(h):
        gate, up = h.chunk(2, -1)
        return torch.tanh(gate) * up

    def parts(x, gates, wide, out):
        h = activate(grouped_linear(dispatch(x, plan), wide, plan.counts))
        return combine(grouped_linear(h, out, plan.counts), gates, plan)

    def whole(*tensors):
        return experts(*tensors, plan, activate)

    y, want, kept = whole(*given), parts(*given), []
    dy = torch.randn_like(y)
    torch.testing.assert_close(y, want)
    for found, expected in zip(torch.autograd.grad(y, given, dy), torch.autograd.grad(want, given, dy), strict=True):
        torch.testing.assert_close(found, expected)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        whole(*given)
    own = {t.data_ptr() for t in given}
    assert [tuple(t.shape) for t in kept if t.data_ptr() not in own] == [(10, 6)]  # the hidden rows before the activation
