"""Residual sum and norm in one compiled pass: equal to torch's own operations, in place and beside."""

import pytest
import torch

from orrery.ops.backend import installed
from orrery.ops.fused.residual_norm import residual_norm, residual_norm_reference
from orrery.ops.steps.row_linear import RowNorm

pytestmark = pytest.mark.skipif(not installed("numba"), reason="numba is not installed")


@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm", "unweighted", ""])
def test_equals_torch(kind, apart, added):
    torch.manual_seed(0)
    rows, width = 5, 37
    x, y = torch.randn(rows, width) * 3 + 1, torch.randn(rows, width)
    weight, bias = torch.randn(width), torch.randn(width) if kind == "layernorm" else None
    norm = {"": RowNorm(), "unweighted": RowNorm("rmsnorm", None, None, 1e-6)}.get(kind, RowNorm(kind, weight, bias, 1e-5))
    own, out = x.clone(), torch.full_like(x, 7.0)
    expected, beside = x.clone(), torch.full_like(x, 7.0)
    step = residual_norm(own, y if added else None, norm, out if apart else own)
    residual_norm_reference(expected, y if added else None, norm, beside if apart else expected)
    step()
    torch.testing.assert_close(own, expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(out, beside, atol=2e-6, rtol=1e-5)
    if apart:
        total = x + y if added else x
        torch.testing.assert_close(own, total)
