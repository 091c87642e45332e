"""The gated norm of heads: both backends against the formula in float64, with gradients by autograd and by differences."""

from __future__ import annotations

import pytest
import torch

from orrery.ops.fused import rms_norm_gate as module
from orrery.ops.fused.rms_norm_gate import rms_norm_gate, rms_norm_gate_reference


def make(heads, value, dtype, tokens=(3, 23), seed=0):
    rng = torch.Generator().manual_seed(seed)
    shapes = [(*tokens, heads, value), (*tokens, heads * value), (value,)]
    return [torch.randn(*s, generator=rng, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def formula(x, gate, weight, eps):
    normed = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight
    return normed.flatten(-2) * gate * torch.sigmoid(gate)


def outcomes(function, given):
    y = function(*given)
    weight = torch.linspace(0.5, 1, y.numel(), dtype=torch.float64).view_as(y)
    return [y.detach().double(), *(g.double() for g in torch.autograd.grad((y * weight).sum(), given))]


@pytest.mark.parametrize(
    ("backend", "dtype", "limit"), [("numba", torch.float32, 4e-6), ("torch", torch.float64, 1e-13)]
)
@pytest.mark.parametrize(("heads", "value"), [(1, 1), (3, 16), (2, 21), (4, 64)])
def test_forms_agree(monkeypatch, backend, dtype, limit, heads, value):
    if backend == "numba":
        pytest.importorskip("numba")
    monkeypatch.setattr(module, "SMALL", 0)
    wanted = outcomes(lambda *a: formula(*a, 1e-3), make(heads, value, torch.float64))
    found = outcomes(lambda *a: rms_norm_gate(*a, 1e-3, backend), make(heads, value, dtype))
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() <= limit * b.abs().max()


def test_gradients_by_differences():
    given = make(2, 3, torch.float64, tokens=(4,))
    assert torch.autograd.gradcheck(lambda *a: rms_norm_gate(*a, 1e-3), given)
    with torch.no_grad():
        assert torch.equal(rms_norm_gate(*given, 1e-3), rms_norm_gate_reference(*given, 1e-3))


@pytest.mark.parametrize("low", [0, 100, 172])
def test_a_gate_that_is_a_slice_of_wider_rows(low):
    pytest.importorskip("numba")
    x, _, weight = make(4, 32, torch.float32, tokens=(2, 70))
    wide = torch.randn(2, 70, 300, generator=torch.Generator().manual_seed(1), requires_grad=True)
    for gate in (wide[..., low : low + 128], wide.transpose(0, 1)[..., :128].transpose(0, 1)):
        fast, slow = (
            outcomes(lambda x, w, _, b=b, g=gate: rms_norm_gate(x, g, w, 1e-5, b), (x, weight, wide))
            for b in ("numba", "torch")
        )
        for a, b in zip(fast, slow, strict=True):
            assert (a - b).abs().max() <= 4e-6 * b.abs().max()


def test_half_precision_counts_in_float32():
    x, gate, weight = make(2, 16, torch.float32)
    y = rms_norm_gate(100 * x, gate.bfloat16(), weight, 1e-5)
    right = rms_norm_gate(100 * x, gate.bfloat16().float(), weight, 1e-5)
    assert y.dtype == torch.bfloat16
    assert (y - right).abs().max() <= 2**-8 * right.abs().max()
