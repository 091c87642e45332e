"""RMSNorm and SwiGLU: the compiled loops equal the torch form, forward and backward, at any shape."""

import pytest
import torch

from orrery.core.errors import ConfigError
from orrery.ops.backend import current_backend, forget_backends
from orrery.ops.fused.rms_norm import rms_norm
from orrery.ops.fused.swiglu import geglu, swiglu

pytest.importorskip("numba", reason="numba is not installed")


def both(function, *inputs):
    """Outputs and gradients of each backend for the same inputs (float32), and of torch in float64."""
    results = []
    for backend, dtype in (("numba", torch.float32), ("torch", torch.float64)):
        given = [x.detach().to(dtype).requires_grad_() for x in inputs]
        y = function(*given, backend)
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y))
        results.append([y.detach().double(), *(x.grad.double() for x in given)])
    return results


@pytest.mark.parametrize("shape", [(70, 256), (3, 129, 93), (2, 5, 4096), (20000, 1)])
def test_rms_norm_forms_agree(shape):
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(*shape, generator=g) * 3, torch.randn(shape[-1], generator=g)
    for fast, exact in zip(*both(lambda x, w, b: rms_norm(x, w, 1e-6, b), x, w), strict=True):
        assert (fast - exact).abs().max() <= 2e-6 * exact.abs().max()


@pytest.mark.parametrize("shape", [(70, 256), (3, 129, 94), (2, 8192), (9000, 2)])
@pytest.mark.parametrize("scale", [1.0, 60.0])
@pytest.mark.parametrize("gate", [swiglu, geglu])
def test_gated_forms_agree(gate, shape, scale):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * scale
    for fast, exact in zip(*both(gate, x), strict=True):
        assert (fast - exact).abs().max() <= 2e-6 * exact.abs().max()


def test_strided_inputs_and_no_grad():
    wide = torch.randn(300, 200, generator=torch.Generator().manual_seed(2))
    view, w = wide[:, 40:168], torch.ones(128)
    assert torch.allclose(rms_norm(view, w, 1e-6, "numba"), rms_norm(view, w, 1e-6, "torch"), atol=1e-6)
    assert torch.allclose(swiglu(view, "numba"), swiglu(view, "torch"), atol=1e-6)


def test_small_inputs_stay_with_torch_and_the_record_says_so():
    forget_backends()
    swiglu(torch.randn(2, 8))
    swiglu(torch.randn(100, 400))
    assert current_backend()["swiglu"] == "numba+torch"
    with pytest.raises(ConfigError, match="no backend"):
        swiglu(torch.randn(2, 8), "numba")
