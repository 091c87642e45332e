"""The diagonal scan: every form against the float64 loop, every gradient, cuts, document starts, padding, hard gates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracles.diagonal_scan import diagonal_scan as oracle
from orrery.core.errors import StateError
from orrery.ops.diagonal_scan import diagonal_scan, diagonal_scan_chunked, diagonal_scan_reference, diagonal_scan_step

BACKENDS = ("torch", "numba")


def make(batch=2, time=37, width=5, dtype=torch.float64, seed=0):
    """Gates from nearly 1 to nearly 0, inputs, state, and a few document starts."""
    g = torch.Generator().manual_seed(seed)
    a_log = -torch.exp(3 * torch.randn(batch, time, width, generator=g, dtype=torch.float64) - 2)
    b = torch.randn(batch, time, width, generator=g, dtype=torch.float64)
    state = torch.randn(batch, width, generator=g, dtype=torch.float64)
    starts = torch.rand(batch, time, generator=g) < 0.15
    return a_log.to(dtype), b.to(dtype), state.to(dtype), starts


def close(got, want, tolerance):
    want = torch.as_tensor(want, dtype=torch.float64)
    assert got.shape == want.shape
    assert torch.isfinite(got).all()
    assert (got.double() - want).abs().max() <= tolerance * max(1.0, want.abs().max())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("time", "width"), [(1, 3), (2, 70), (63, 7), (100, 2)])
def test_equals_oracle(backend, dtype, time, width):
    a_log, b, state, starts = make(time=time, width=width, dtype=dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    for given_starts in (None, starts):
        got = diagonal_scan(a_log, b, state, given_starts, backend=backend)
        want = oracle(a_log.numpy(), b.numpy(), state.numpy(), None if given_starts is None else starts.numpy())
        assert got[0].dtype == dtype
        close(got[0], want[0], tolerance)
        close(got[1], want[1], tolerance)


def test_reference_is_the_equation():
    a_log, b, state, starts = make()
    want = oracle(a_log.numpy(), b.numpy(), state.numpy(), starts.numpy())
    for got, expected in zip(diagonal_scan_reference(a_log, b, state, starts), want, strict=True):
        close(got, expected, 1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_keeps_the_state(backend):
    a_log, b, state, starts = make(batch=4)
    lengths = torch.tensor([37, 20, 1, 0])
    h, after = diagonal_scan(a_log, b, state, starts, lengths, backend=backend)
    want = oracle(a_log.numpy(), b.numpy(), state.numpy(), starts.numpy(), lengths.numpy())
    close(after, want[1], 1e-12)
    close(h[1, :20], want[0][1, :20], 1e-12)
    torch.testing.assert_close(after[3], state[3])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("time", [1, 2, 10])
def test_gradients(backend, time):
    a_log, b, state, starts = make(time=time, width=3)
    lengths = torch.tensor([time, max(1, time - 3)])
    for row_lengths in (None, lengths):
        inputs = [x.clone().requires_grad_() for x in (a_log, b, state)]
        torch.autograd.gradcheck(
            lambda a, i, s, n=row_lengths: diagonal_scan(a, i, s, starts, n, backend=backend), inputs, fast_mode=False
        )


def test_gradients_agree_in_float32():
    operands = make(time=50, width=40, dtype=torch.float32)
    found = []
    for backend in BACKENDS:
        inputs = [x.clone().requires_grad_() for x in operands[:3]]
        h, after = diagonal_scan(*inputs, operands[3], backend=backend)
        found.append(torch.autograd.grad(h.square().sum() + after.sum(), inputs))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@given(cut=st.integers(1, 36), seed=st.integers(0, 50))
def test_cut_anywhere(cut, seed):
    a_log, b, state, starts = make(seed=seed)
    whole, after = diagonal_scan(a_log, b, state, starts)
    left, middle = diagonal_scan(a_log[:, :cut], b[:, :cut], state, starts[:, :cut])
    right, end = diagonal_scan(a_log[:, cut:], b[:, cut:], middle, starts[:, cut:])
    torch.testing.assert_close(torch.cat([left, right], 1), whole)
    torch.testing.assert_close(end, after)


def test_steps_equal_the_scan():
    a_log, b, state, starts = make()
    whole, after = diagonal_scan_chunked(a_log.masked_fill(starts[..., None], -math.inf), b, state)
    for t in range(b.shape[1]):
        h, state = diagonal_scan_step(a_log[:, t : t + 1], b[:, t : t + 1], state, starts[:, t : t + 1])
        torch.testing.assert_close(h[:, 0], whole[:, t])
    torch.testing.assert_close(state, after)


@pytest.mark.parametrize("backend", BACKENDS)
def test_forgetting_is_exact(backend):
    """a_log = -inf: the past is gone, and neither value nor gradient is nan; a gate of 1e-30 is next to it."""
    a_log, b, state, _ = make(dtype=torch.float32)
    a_log[:, 10], a_log[:, 20] = -math.inf, math.log(1e-30)
    inputs = [x.requires_grad_() for x in (a_log, b, state)]
    h, after = diagonal_scan(*inputs, backend=backend)
    assert torch.equal(h[:, 10], b[:, 10])
    grads = torch.autograd.grad(h[:, 10:].sum() + after.sum(), inputs)
    assert all(torch.isfinite(g).all() for g in grads)
    assert not grads[1][:, :10].any() and not grads[2].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_drift_in_64k_tokens(backend):
    """Gates of 1 - 1e-7, which float32 cannot hold, keep their meaning over 65,536 tokens."""
    time = 1 << 16
    a_log = torch.full((1, time, 2), -1e-7)
    b = torch.zeros(1, time, 2)
    b[..., 1] = 1e-3
    h, after = diagonal_scan(a_log, b, torch.ones(1, 2), backend=backend)
    steps = np.arange(1, time + 1)
    kept = np.exp(-1e-7 * steps)
    close(h[0, :, 0], kept, 1e-6)
    close(h[0, :, 1], kept + 1e-3 * -np.expm1(-1e-7 * steps) / -np.expm1(-1e-7), 1e-5)
    close(after[0], h[0, -1], 2e-7)


def hard(case, time, width=8):
    """Gates (their logarithms) and inputs that lose digits in a plain float32 sum."""
    g = torch.Generator().manual_seed(3)
    noise, sign = torch.randn(1, time, width, generator=g), torch.ones(1, time, width)
    sign[:, 1::2] = -1
    rare = torch.where(torch.arange(time)[None, :, None] % 500 == 0, 1e3 * noise, 1e-6 * noise.abs())
    whole, nearly = torch.zeros_like(noise), torch.full_like(noise, -1e-6)
    return {
        "gates of 1": (whole, noise),
        "gates of 1, one sign": (whole, 1e-3 * noise.abs()),
        "alternating": (nearly, sign * (1 + 0.1 * noise)),
        "large among tiny": (nearly, rare),
        "up, then down again": (nearly, torch.cat([noise[:, ::2].abs(), -noise[:, ::2].abs()], 1)),
        "about the factor where the sum changes": (-0.3466 + 1e-3 * noise, noise.roll(1, 1)),
        "tiny": (nearly, 1e-26 * noise.abs()),
    }[case]


@pytest.mark.parametrize("case", [
    "gates of 1", "gates of 1, one sign", "alternating", "large among tiny", "up, then down again",
    "about the factor where the sum changes", "tiny",
])  # fmt: skip
def test_compiled_loop_keeps_the_digits(case):
    """State and gradients after 20,000 tokens against the float64 loop, relative to the greatest state so far."""
    a_log, b = hard(case, 20_000)
    inputs = [a_log.clone().requires_grad_(), b.clone().requires_grad_()]
    h, _ = diagonal_scan(*inputs, backend="numba")
    want = torch.as_tensor(oracle(a_log.numpy(), b.numpy(), np.zeros((1, 8)))[0])
    size = want.abs().cummax(1).values
    assert ((h - want).abs() / size).max() <= 1.5e-6
    given = b.flip(1).contiguous()  # what comes in backwards in time is then what came in forwards
    db = torch.autograd.grad(h, inputs[1], given)[0].flip(1)
    reverse = torch.cat([torch.zeros(1, 1, 8), a_log[:, 1:].flip(1)], 1)
    want = torch.as_tensor(oracle(reverse.numpy(), given.flip(1).numpy(), np.zeros((1, 8)))[0])
    assert ((db - want).abs() / want.abs().cummax(1).values).max() <= 1.5e-6


def test_compiled_loop_and_what_is_not_finite():
    """Not a number stays, also behind a gate of 0, as in 0 * nan; infinity is told; next to nothing becomes nothing."""
    a_log, b = torch.zeros(1, 5, 4), torch.zeros(1, 5, 4)
    b[0, 0] = torch.tensor([math.nan, math.inf, 1e-42, 1.0])
    a_log[:, 2] = -math.inf
    h, after = diagonal_scan(a_log, b, backend="numba")
    assert torch.isnan(h[0, :, 0]).all() and torch.isnan(after[0, 0])
    assert h[0, 0, 1] == math.inf and not torch.isfinite(h[0, :, 1]).any()
    assert h[0, 0, 2] == b[0, 0, 2] and not h[0, 1:, 2].any()
    assert torch.equal(h[0, :, 3], torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]))


def test_threads_change_nothing(monkeypatch):
    monkeypatch.setattr("orrery.ops.compiled._WORTH_A_THREAD", 1)
    a_log, b, state, _ = make(batch=3, width=130, dtype=torch.float32)
    count, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            inputs = [x.clone().requires_grad_() for x in (a_log, b, state)]
            h, _ = diagonal_scan(*inputs, backend="numba")
            found.append((h, *torch.autograd.grad(h.sum(), inputs)))
    finally:
        torch.set_num_threads(count)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("time", "width"), [(1, 16), (5, 528), (16, 64), (17, 16), (47, 208), (48, 32)])
def test_long_arrays_have_the_same_gradients(monkeypatch, time, width, dtype):
    draw = torch.Generator().manual_seed(time)
    a_log, b = (torch.randn(3, time, width, generator=draw, dtype=dtype).requires_grad_() for _ in range(2))
    state = torch.randn(3, width, generator=draw, dtype=dtype).requires_grad_()
    found = []
    for far in (1 << 60, 0):  # nothing is taken to be long, everything
        monkeypatch.setattr("orrery.ops.diagonal_scan._FAR", far)
        y, after = diagonal_scan(-a_log.exp(), b, state, backend="numba")
        found.append(torch.autograd.grad((y * y).sum() + after.sum(), (a_log, b, state)))
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_low_precision_inputs_and_constant_gates():
    _, b, state, _ = make(dtype=torch.float32)
    gate = torch.full((5,), -0.5)
    h, after = diagonal_scan(gate, b.bfloat16(), state)
    want, _ = oracle(np.broadcast_to(gate.numpy(), b.shape), b.bfloat16().float().numpy(), state.numpy())
    assert h.dtype == torch.bfloat16 and after.dtype == torch.float32
    close(h, want, 1e-2)


def test_wrong_shapes_are_told():
    a_log, b, state, starts = make()
    with pytest.raises(StateError, match=r"state of shape \(1, 5\)"):
        diagonal_scan(a_log, b, state[:1])
    with pytest.raises(StateError, match="starts"):
        diagonal_scan(a_log, b, state, starts[:, 1:])
