"""The gated RMSNorm against a float64 loop, finite differences and autograd of the formula."""

from __future__ import annotations

import pytest
import torch

from oracles.gated_rms_norm import gated_rms_norm as oracle
from orrery.ops.backend import current_backend, forget_backends
from orrery.ops.fused.gated_rms_norm import gated_rms_norm, gated_rms_norm_reference

EPS = 1e-5


def make(rows=(3, 5), width=24, dtype=torch.float64, size=1.0):
    g = torch.Generator().manual_seed(0)
    x, gate, w = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((*rows, width), (*rows, width), (width,)))
    return (size * x).to(dtype), (2 * gate).to(dtype), w.to(dtype)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 2**-7)], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e-4, 1e6])
def test_values(dtype, limit, groups, grad, size):
    """On the torch backend."""
    x, gate, weight = make(dtype=dtype, size=size)
    want = oracle(*(t.double().reshape(-1, 24).numpy() for t in (x, gate)), weight.double().numpy(), EPS, groups)
    y = gated_rms_norm(x.requires_grad_(grad), gate, weight, EPS, groups, backend="torch")
    assert y.dtype == dtype and y.shape == x.shape
    want = torch.from_numpy(want).reshape(x.shape)
    assert (y.double() - want).abs().max() <= limit * want.abs().max()


@pytest.mark.parametrize("groups", [1, 3])
def test_gradcheck(groups):
    leaves = [t.requires_grad_() for t in make()]
    assert torch.autograd.gradcheck(lambda *args: gated_rms_norm(*args, EPS, groups), leaves)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 3e-6), (torch.bfloat16, 3e-2)], ids=str)
def test_gradients_in_lower_precision(dtype, limit):
    exact = [t.requires_grad_() for t in make(rows=(4, 50), width=64)]
    low = [t.detach().to(dtype).requires_grad_() for t in exact]
    weight = torch.randn(4, 50, 64, dtype=torch.float64)
    want = torch.autograd.grad((gated_rms_norm_reference(*exact, EPS, 2) * weight).sum(), exact)
    got = torch.autograd.grad((gated_rms_norm(*low, EPS, 2) * weight.to(dtype)).sum(), low)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        assert (a.double() - b).norm() <= limit * b.norm()


@pytest.mark.parametrize(("width", "groups"), [(24, 1), (24, 3), (256, 1), (130, 2)])
def test_compiled_loop(width, groups):
    """Values and gradients against the formula in float64, from a gate that is a slice of wider rows."""
    rows = (3, 1 + (1 << 14) // width)  # large enough for the compiled loop, and no multiple of its block
    exact = [t.requires_grad_() for t in make(rows=rows, width=width)]
    low = [t.detach().float().requires_grad_() for t in exact]
    wide = torch.cat([low[1].detach(), torch.full((*rows, 7), torch.nan)], -1).requires_grad_()
    weight = torch.randn(*rows, width, dtype=torch.float64)
    forget_backends()
    y = gated_rms_norm(low[0], wide[..., :width], low[2], EPS, groups)
    assert current_backend() == {"gated_rms_norm": "numba"}
    want = gated_rms_norm_reference(*exact, EPS, groups)
    assert (y.double() - want).abs().max() <= 1e-6 * want.abs().max()
    got = torch.autograd.grad((y * weight.float()).sum(), [low[0], wide, low[2]])
    expected = torch.autograd.grad((want * weight).sum(), exact)
    assert not got[1][..., width:].any()
    for a, b in zip((got[0], got[1][..., :width], got[2]), expected, strict=True):
        assert (a.double() - b).abs().max() <= 3e-6 * b.abs().max()


def test_huge_gates_and_zero_inputs_stay_finite():
    x, gate, weight = make(rows=(3, 300), dtype=torch.float32)
    gate = torch.where(gate > 0, torch.tensor(1e4), torch.tensor(-1e4))
    for inputs in (x, torch.zeros_like(x)):
        leaves = [t.clone().requires_grad_() for t in (inputs, gate, weight)]
        for backend in ("torch", "numba"):
            y = gated_rms_norm(*leaves, EPS, backend=backend)
            found = torch.autograd.grad(y.sum(), leaves)
            assert all(torch.isfinite(t).all() for t in (y, *found))


def test_strided_gates():
    x, gate, weight = make(dtype=torch.float32)
    wide = torch.cat([gate, gate, gate], -1)
    found, want = gated_rms_norm(x, wide[..., 24:48], weight, EPS), gated_rms_norm(x, gate, weight, EPS)
    assert torch.allclose(found, want, rtol=1e-6, atol=1e-6)
