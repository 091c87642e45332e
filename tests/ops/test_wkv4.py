"""RWKV-4's recurrence: every form against the float64 sums, every gradient, cuts, document starts, padding, extreme keys."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracles.wkv4 import wkv4 as oracle
from orrery.core.errors import StateError
from orrery.ops.wkv4 import NO_PEAK, wkv4, wkv4_chunked, wkv4_initial, wkv4_matrix, wkv4_reference, wkv4_step

BACKENDS = ("torch", "numba")


def make(batch=2, time=37, width=5, dtype=torch.float64, seed=0):
    """(k, v, w_log, u, state) and document starts."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    w_log = -torch.exp(2 * normal(width) - 1)
    state = (normal(batch, width), normal(batch, width).exp(), normal(batch, width))
    operands = [2 * normal(batch, time, width), normal(batch, time, width), w_log, normal(width)]
    return (
        [x.to(dtype) for x in operands],
        tuple(x.to(dtype) for x in state),
        torch.rand(batch, time, generator=g) < 0.1,
    )


def sums(state):
    """Numerator and denominator without the factor of the running maximum."""
    num, den, peak = (x.double() for x in state)
    return num * peak.exp(), den * peak.exp()


def close(got, want, tolerance):
    want = torch.as_tensor(want, dtype=torch.float64)
    assert got.shape == want.shape
    assert torch.isfinite(got).all()
    assert (got.double() - want).abs().max() <= tolerance * max(1.0, want.abs().max())


def numpy_of(tensors):
    return [x.double().numpy() for x in tensors]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("time", [1, 2, 31])
def test_equals_oracle(backend, dtype, time):
    operands, state, starts = make(time=time, width=35, dtype=dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    for before in (None, state):
        for reset in (None, starts):
            y, after = wkv4(*operands, before, reset, backend=backend)
            held = None if before is None else numpy_of(before)
            want, want_sums = oracle(*numpy_of(operands), held, None if reset is None else reset.numpy())
            assert y.dtype == dtype
            close(y, want, tolerance)
            for got, expected in zip(sums(after), want_sums, strict=True):
                close(got, expected, 5 * tolerance)


def test_reference_is_the_equation():
    operands, state, starts = make()
    y, after = wkv4_reference(*operands, state, starts)
    want, want_sums = oracle(*numpy_of(operands), numpy_of(state), starts.numpy())
    close(y, want, 1e-12)
    for got, expected in zip(sums(after), want_sums, strict=True):
        close(got, expected, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_keeps_the_state(backend):
    operands, state, starts = make(batch=4)
    lengths = torch.tensor([37, 20, 1, 0])
    y, after = wkv4(*operands, state, starts, lengths, backend=backend)
    want, want_sums = oracle(*numpy_of(operands), numpy_of(state), starts.numpy(), lengths.numpy())
    close(y, want, 1e-12)
    for got, expected in zip(sums(after), want_sums, strict=True):
        close(got, expected, 1e-12)
    for got, before in zip(after, state, strict=True):
        torch.testing.assert_close(got[3], before[3])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("time", [1, 2, 19])
def test_gradients(backend, time):
    """Of everything, the initial state and the returned one (with its running maximum) included."""
    operands, state, starts = make(time=time, width=2)
    starts[1] = False  # so that one row's initial state lives to the end
    for reset, lengths in ((None, None), (starts, torch.tensor([time, max(1, time - 5)]))):
        inputs = [x.clone().requires_grad_() for x in (*operands, *state)]

        def function(*tensors, reset=reset, lengths=lengths):
            y, after = wkv4(*tensors[:4], tensors[4:], reset, lengths, backend=backend)
            return (y, *after)

        torch.autograd.gradcheck(function, inputs)


def test_gradients_agree_in_float32():
    operands, state, starts = make(time=70, width=40, dtype=torch.float32)
    found = []
    for backend in BACKENDS:
        inputs = [x.clone().requires_grad_() for x in (*operands, *state)]
        y, after = wkv4(*inputs[:4], tuple(inputs[4:]), starts, backend=backend)
        found.append(torch.autograd.grad(y.square().sum() + (after[0] * after[1]).sum(), inputs))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-4)


@given(cut=st.integers(1, 36), seed=st.integers(0, 50))
def test_cut_anywhere(cut, seed):
    (k, v, w_log, u), state, starts = make(seed=seed)
    whole, after = wkv4(k, v, w_log, u, state, starts)
    left, middle = wkv4(k[:, :cut], v[:, :cut], w_log, u, state, starts[:, :cut])
    right, end = wkv4(k[:, cut:], v[:, cut:], w_log, u, middle, starts[:, cut:])
    torch.testing.assert_close(torch.cat([left, right], 1), whole)
    for got, expected in zip(end, after, strict=True):
        torch.testing.assert_close(got, expected)


def test_steps_equal_the_scan():
    (k, v, w_log, u), state, starts = make()
    whole, after = wkv4_chunked(k, v, w_log, u, state, starts)
    for t in range(k.shape[1]):
        now = slice(t, t + 1)
        y, state = wkv4_step(k[:, now], v[:, now], w_log, u, state, starts[:, now])
        torch.testing.assert_close(y[:, 0], whole[:, t])
    for got, expected in zip(state, after, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_keys_and_decays(backend):
    """Keys of +-300 overflow e^k in float32; a decay of -inf forgets all, one of 1e-9 keeps all."""
    g = torch.Generator().manual_seed(1)
    k = 300 * (2 * torch.rand(2, 40, 4, generator=g) - 1)
    v = torch.randn(2, 40, 4, generator=g)
    w_log, u = torch.tensor([-math.inf, -1e-9, -1.0, -30.0]), torch.zeros(4)
    inputs = [x.requires_grad_() for x in (k, v, w_log, u)]
    y, after = wkv4(*inputs, backend=backend)
    want, _ = wkv4_reference(*(x.detach().double() for x in inputs))
    close(y, want, 1e-5)
    grads = torch.autograd.grad(y.square().sum() + after[0].sum(), inputs)
    assert all(torch.isfinite(x).all() for x in grads)
    two = (k[:, 1:, 0] + u[0]) - k[:, :-1, 0]
    close(y[:, 1:, 0], torch.lerp(v[:, :-1, 0].double(), v[:, 1:, 0].double(), two.double().sigmoid()), 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_drift_in_64k_tokens(backend):
    """With equal keys and next to no decay, y is the plain mean of all values so far."""
    time = 1 << 16
    v = (torch.arange(time) % 7).float().view(1, time, 1)
    y, after = wkv4(torch.zeros(1, time, 1), v, torch.full((1,), -1e-12), torch.zeros(1), backend=backend)
    want = np.cumsum(v.double().numpy()[0, :, 0]) / np.arange(1, time + 1)
    close(y[0, :, 0], want, 3e-6)
    close(after[1][0], np.array([time]), 3e-6)


def test_threads_change_nothing(monkeypatch):
    monkeypatch.setattr("orrery.ops.compiled._WORTH_A_THREAD", 1)
    operands, state, _ = make(batch=3, width=70, dtype=torch.float32)
    count, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            inputs = [x.clone().requires_grad_() for x in operands]
            y, _ = wkv4(*inputs, state, backend="numba")
            found.append((y, *torch.autograd.grad(y.sum(), inputs)))
    finally:
        torch.set_num_threads(count)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_initial_state_is_none():
    operands, _, _ = make(dtype=torch.float32)
    y, after = wkv4(*operands)
    again, after_again = wkv4(*operands, wkv4_initial(2, 5))
    assert torch.equal(y, again) and all(map(torch.equal, after, after_again))
    assert wkv4_initial(2, 5)[2].eq(NO_PEAK).all()


def test_wrong_shapes_are_told():
    operands, state, starts = make()
    with pytest.raises(StateError, match="state of shape"):
        wkv4(*operands, tuple(x[:1] for x in state))
    with pytest.raises(StateError, match="starts"):
        wkv4(*operands, state, starts[:, 1:])


def test_the_matrix_is_the_average():
    (k, v, w_log, u), _, starts = make(time=12)
    for given_starts in (None, starts):
        matrix = wkv4_matrix(k, w_log, u, given_starts)
        torch.testing.assert_close(matrix.sum(-1), torch.ones_like(matrix[..., 0]))
        want, _ = wkv4_reference(k, v, w_log, u, None, given_starts)
        torch.testing.assert_close(torch.einsum("bdts,bsd->btd", matrix, v), want)
