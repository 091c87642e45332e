"""The short convolution: the compiled loop equals the torch form and a plain sum over taps, at any shape and document cut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from orrery.core.errors import ConfigError
from orrery.ops.fused import short_conv as module
from orrery.ops.fused.short_conv import short_conv


def make(batch, time, channels, taps, dtype=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    shapes = [(batch, time, channels), (channels, taps), (channels,), (batch, taps - 1, channels)]
    return [torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def plain(x, weight, bias, inputs, starts, activation):
    """Token by token, tap by tap."""
    taps, out = weight.shape[1], []
    padded = torch.cat([inputs, x], 1)
    for t in range(x.shape[1]):
        rows = []
        for b in range(len(x)):
            z = 0.0 if bias is None else bias
            for back in range(taps):
                if starts is not None and starts[b, max(0, t - back + 1) : t + 1].any():
                    break
                z = z + weight[:, taps - 1 - back] * padded[b, taps - 1 + t - back]
            rows.append(z)
        out.append(torch.stack(rows))
    y = torch.stack(out, 1)
    return F.silu(y) if activation else y


def outcomes(function, given, **settings):
    y = function(*given, **settings)
    y = y[0] if isinstance(y, tuple) else y
    weight = torch.linspace(0.5, 1, y.numel(), dtype=torch.float64).view_as(y)  # sums of it do not cancel
    grads = torch.autograd.grad((y * weight).sum(), [g for g in given if g is not None])
    return [y.detach().double(), *(g.double() for g in grads)]


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("activation", ["", "silu"])
@pytest.mark.parametrize(("time", "taps"), [(2, 4), (3, 4), (31, 4), (33, 4), (70, 3), (65, 2)])
@pytest.mark.parametrize("cuts", ["none", "some", "first"])
def test_forms_agree(monkeypatch, backend, activation, time, taps, cuts):
    monkeypatch.setattr(module, "SMALL", 0)
    dtype, limit = (torch.float32, 3e-6) if backend == "numba" else (torch.float64, 1e-13)
    if backend == "numba":
        pytest.importorskip("numba")
    starts = None
    if cuts != "none":
        starts = torch.rand(2, time, generator=torch.Generator().manual_seed(1)) < 0.2
        starts[0, 0] = cuts == "first"
    exact = make(2, time, 5, taps)
    given = make(2, time, 5, taps, dtype)
    wanted = outcomes(lambda x, w, b, i: plain(x, w, b, i, starts, activation), exact)
    found = outcomes(
        lambda x, w, b, i: short_conv(x, w, b, i, starts, None, activation, backend),
        given,
    )
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() <= limit * b.abs().max()


def test_a_slice_of_wider_rows_without_bias():
    """As a fused projection leaves its input; the last slice ends where the memory does."""
    pytest.importorskip("numba")
    wide = torch.randn(3, 50, 300, generator=torch.Generator().manual_seed(2))
    weight = torch.randn(128, 4, generator=torch.Generator().manual_seed(3))
    for low in (0, 100, 172):
        x = wide[..., low : low + 128]
        fast, last = short_conv(x, weight, activation="silu", backend="numba")
        slow, kept = short_conv(x.double(), weight.double(), activation="silu", backend="torch")
        assert (fast - slow).abs().max() < 1e-5
        assert torch.equal(last.double(), kept)
    turned = wide.transpose(0, 1)[..., :128]
    fast = short_conv(turned, weight, backend="numba")[0]
    assert (fast - short_conv(turned, weight, backend="torch")[0]).abs().max() < 1e-5


@pytest.mark.parametrize("lengths", [None, [0, 1, 9]])
@pytest.mark.parametrize("cut", [None, 0, 7])
def test_the_last_inputs_continue_the_row(lengths, cut):
    """Whatever was consumed before: the rest of the row comes out as if it had not been cut."""
    x, weight, bias, inputs = make(3, 14, 4, 4)
    starts = None
    if cut is not None:
        starts = torch.zeros(3, 14, dtype=torch.bool)
        starts[:, cut] = True
    whole = plain(x, weight, bias, inputs, starts, "")
    ends = torch.tensor([9, 9, 9] if lengths is None else lengths)
    valid = torch.arange(9) < ends[:, None]
    first = None if starts is None else starts[:, :9] & valid
    _, last = short_conv(x[:, :9], weight, bias, inputs, first, None if lengths is None else ends)
    for row, end in enumerate(ends.tolist()):
        later = None if starts is None else starts[row : row + 1, end:]
        y, _ = short_conv(x[row : row + 1, end:], weight, bias, last[row : row + 1], later)
        assert torch.allclose(y, whole[row : row + 1, end:], atol=1e-12)


def test_unknown_activation():
    with pytest.raises(ConfigError, match="'silu' or none"):
        short_conv(torch.zeros(1, 2, 3), torch.zeros(3, 4), activation="gelu")
