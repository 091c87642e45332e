"""RG-LRU's gate and input: the compiled pass against the formula, with a document's first token, open and shut gates."""

from __future__ import annotations

import pytest
import torch

from orrery.ops.rg_lru import rg_lru, rg_lru_terms


def operands(kind, batch=2, time=150, width=70):
    """More tokens than a block, more channels than a register; gates from shut to open."""
    g = torch.Generator().manual_seed(0)
    x, i, r = (torch.randn(batch, time, width, generator=g, dtype=torch.float64) for _ in range(3))
    if time > 20:
        r[0, :20], r[1, :20] = -30.0, 30.0
    pace = torch.rand(width, generator=g, dtype=torch.float64)
    return [each.to(kind) for each in (x, i, r, pace)], torch.rand(batch, time, generator=g) < 0.1


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("rows", [True, False])
def test_compiled_terms_equal_the_formula(kind, tolerance, rows):
    given, first = operands(kind)
    first = first if rows else first[0]
    found = []
    for backend in ("torch", "numba"):
        inputs = [each.clone().requires_grad_() for each in given]
        a_log, b = rg_lru_terms(*inputs, first, backend)
        found.append((a_log, b, *torch.autograd.grad(a_log.sin().sum() + b.square().sum(), inputs)))
    for want, got in zip(*found, strict=True):
        assert ((got - want).abs().max() / want.abs().max()).item() <= tolerance


def test_gradients_of_the_compiled_pass():
    given, first = operands(torch.float64, batch=1, time=5, width=3)
    inputs = [(0.3 * each).requires_grad_() for each in given]
    torch.autograd.gradcheck(lambda *inputs: rg_lru(*inputs, first, backend="numba")[0], inputs, fast_mode=False)


def test_threads_change_nothing(monkeypatch):
    monkeypatch.setattr("orrery.ops.compiled._WORTH_A_THREAD", 1)
    given, first = operands(torch.float32)
    count, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            inputs = [each.clone().requires_grad_() for each in given]
            a_log, b = rg_lru_terms(*inputs, first, "numba")
            found.append((a_log, b, *torch.autograd.grad(a_log.sum() + b.sum(), inputs)))
    finally:
        torch.set_num_threads(count)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
