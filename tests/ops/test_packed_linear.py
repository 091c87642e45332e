"""Linear maps with weights laid out once: equal to torch's own, with activation and residual."""

import pytest
import torch

from orrery.ops.fused.packed_linear import ACTIVATIONS, PackedLinear, available, packed_linear_reference

pytestmark = pytest.mark.skipif(not available(), reason="torch was built without oneDNN")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["", *ACTIVATIONS])
def test_equals_torch(activation, bias):
    torch.manual_seed(0)
    x, weight, shift = torch.randn(3, 5, 24), torch.randn(40, 24), torch.randn(40) if bias else None
    with torch.inference_mode():
        packed = PackedLinear(weight, shift, activation)
        assert torch.allclose(packed(x), packed_linear_reference(x, weight, shift, activation), atol=2e-5)
        residual = torch.randn(3, 5, 40)
        plain = PackedLinear(weight, shift)
        assert torch.allclose(plain.onto(x, residual), packed_linear_reference(x, weight, shift, residual=residual), atol=2e-5)
        kept = plain(x).clone()
        weight.zero_()
        assert torch.equal(plain(x), kept)  # a copy
