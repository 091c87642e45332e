"""Sums along links: the compiled loop and the doubled torch form against the loop; links against comparing all pairs."""

from __future__ import annotations

import pytest
import torch

from orrery.core.errors import StateError
from orrery.ops.linked_sums import earlier_same, linked_sums, linked_sums_reference


def chains(batch, time, seed=0):
    torch.manual_seed(seed)
    link = (torch.rand(batch, time) * (torch.arange(time) + 1)).long() - 1
    return torch.where(torch.rand(batch, time) < 0.2, -1, link)


@pytest.mark.parametrize("time", [1, 2, 37])
@pytest.mark.parametrize(("dtype", "backend", "limit"), [
    (torch.float64, "torch", 1e-12), (torch.float64, "numba", 1e-12), (torch.float32, "numba", 1e-5), (torch.float32, "torch", 1e-5),
])  # fmt: skip
def test_forms_and_gradients(time, dtype, backend, limit):
    link, x = chains(3, time), torch.randn(3, time, 70, dtype=torch.float64)
    weight = torch.randn_like(x)
    exact = x.clone().requires_grad_()
    want = linked_sums_reference(exact, link)
    (want * weight).sum().backward()
    own = x.to(dtype).requires_grad_()
    got = linked_sums(own, link, backend)
    (got * weight.to(dtype)).sum().backward()
    assert got.dtype == dtype
    assert (got - want).abs().max() <= limit * want.abs().max()
    assert (own.grad - exact.grad).abs().max() <= limit * exact.grad.abs().max()


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_long_chain_and_what_lies_beside_it(backend):
    """64k links in one row are the running sum; NaN in tokens that a chain does not hold stays where it is."""
    x = torch.ones(1, 65536, 1)
    link = torch.arange(65536)[None] - 1
    assert linked_sums(x, link, backend)[0, -1, 0] == 65536
    x = torch.ones(1, 6, 2)
    x[0, 0] = torch.nan
    found = linked_sums(x, torch.tensor([[-1, -1, 0, 1, 3, -1]]), backend)
    assert found[0, :, 0].isnan().tolist() == [True, False, True, False, False, False] and found[0, 4, 0] == 3


def test_shapes_that_do_not_fit():
    with pytest.raises(StateError, match="linked_sums"):
        linked_sums(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.int64))


@pytest.mark.parametrize("order", [1, 2, 4])
def test_links_are_what_comparing_all_pairs_finds(order):
    torch.manual_seed(order)
    tokens = torch.randint(3, (3, 50))
    documents = torch.tensor([[0] * 50, [0] * 20 + [1] * 30, [0] * 3 + [1] * 3 + [2] * 44])
    positions = torch.stack([torch.cat([torch.arange(int((row == d).sum())) for d in row.unique()]) for row in documents])
    positions[0, 45:] = -1
    found = earlier_same(tokens, documents, positions, order)
    for b in range(3):
        for i in range(50):
            want = -1
            for j in range(i):
                fits = positions[b, i] >= order - 1 and positions[b, j] >= order - 1 and documents[b, i] == documents[b, j]
                if fits and torch.equal(tokens[b, i - order + 1 : i + 1], tokens[b, j - order + 1 : j + 1]):
                    want = j
            assert found[b, i] == want
