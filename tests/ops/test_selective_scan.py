"""The selective scan: every form against the float64 loop, every gradient, cuts, document starts, padding, hard gates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from oracles.selective_scan import selective_scan as oracle
from orrery.core.errors import StateError
from orrery.ops.compiled import compiled, expm1, softplus
from orrery.ops.selective_scan import selective_scan, selective_scan_matrix, selective_scan_reference

BACKENDS = ("torch", "numba")
NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "state")


def make(batch=2, time=37, width=5, size=3, dtype=torch.float64, seed=0):
    """Operands by name, and a few document starts. Gates range from nearly 1 to nearly 0."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    tokens, states = (batch, time, width), (batch, time, size)
    operands = {
        "x": draw(*tokens), "dt": 3 * draw(*tokens) - 2, "A": -torch.exp(2 * draw(width, size)), "B": draw(*states),
        "C": draw(*states), "D": draw(width), "z": draw(*tokens), "dt_bias": draw(width), "state": draw(batch, size, width),
    }  # fmt: skip
    return {name: value.to(dtype) for name, value in operands.items()}, torch.rand(batch, time, generator=g) < 0.15


def arrays(operands):
    return {name: value.double().numpy() for name, value in operands.items()}


def close(got, want, tolerance):
    want = torch.as_tensor(want, dtype=torch.float64)
    assert got.shape == want.shape and torch.isfinite(got).all()
    assert (got.double() - want).abs().max() <= tolerance * max(1.0, want.abs().max())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("time", "width"), [(1, 3), (33, 70), (70, 4)])
def test_equals_oracle(backend, dtype, time, width):
    operands, starts = make(time=time, width=width, dtype=dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    for given in (None, starts):
        got = selective_scan(**operands, starts=given, backend=backend)
        assert got[0].dtype == dtype
        for one, want in zip(got, oracle(**arrays(operands), starts=given), strict=True):
            close(one, want, tolerance)


def test_reference_is_the_equation():
    operands, starts = make()
    for got, want in zip(
        selective_scan_reference(**operands, starts=starts), oracle(**arrays(operands), starts=starts), strict=True
    ):
        close(got, want, 1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_keeps_the_state(backend):
    operands, starts = make(batch=4)
    lengths = torch.tensor([37, 20, 1, 0])
    got = selective_scan(**operands, starts=starts, lengths=lengths, backend=backend)
    for one, want in zip(got, oracle(**arrays(operands), starts=starts, lengths=lengths), strict=True):
        close(one, want, 1e-12)
    torch.testing.assert_close(got[1][3], operands["state"][3])


def gradients(function, operands, **settings):
    leaves = [operands[name].clone().requires_grad_() for name in NAMES]
    y, after = function(**dict(zip(NAMES, leaves, strict=True)), **settings)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return torch.autograd.grad((y * weight).sum() + after.square().sum(), leaves)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("time", "width"), [(1, 2), (70, 5), (37, 300)])
def test_gradients_are_those_of_the_loop(backend, dtype, time, width):
    """Over several stretches and chunks, a remainder of channels, two groups of them, and document starts."""
    operands, starts = make(time=time, width=width)
    want = gradients(selective_scan_reference, operands, starts=starts)
    found = gradients(selective_scan, {k: v.to(dtype) for k, v in operands.items()}, starts=starts, backend=backend)
    for name, one, other in zip(NAMES, found, want, strict=True):
        assert (one - other).abs().max() <= (1e-12 if dtype == torch.float64 else 5e-6) * other.abs().max(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_with_padding_by_differences(backend):
    operands, _ = make(time=5, width=2, size=2)
    lengths = torch.tensor([5, 3])
    leaves = [operands[name].requires_grad_() for name in NAMES]
    torch.autograd.gradcheck(
        lambda *given: selective_scan(**dict(zip(NAMES, given, strict=True)), lengths=lengths, backend=backend), leaves
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_skip_gate_and_bias(backend):
    operands, _ = make()
    for name in ("D", "z", "dt_bias", "state"):
        del operands[name]
    leaves = [value.requires_grad_() for value in operands.values()]
    for function in (selective_scan_reference, lambda **k: selective_scan(**k, backend=backend)):
        y, _ = function(**operands)
        found = torch.autograd.grad(y.square().sum(), leaves)
        if function is selective_scan_reference:
            want = (y, *found)
    for one, other in zip((y, *found), want, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_cuts_and_steps(backend):
    operands, starts = make(time=70)
    whole, after = selective_scan(**operands, starts=starts, backend=backend)
    pieces, state = [], operands.pop("state")
    for begin, end in ((0, 33), (33, 34), (34, 35), (35, 70)):
        part = {k: v[:, begin:end] if k in ("x", "dt", "B", "C", "z") else v for k, v in operands.items()}
        y, state = selective_scan(**part, state=state, starts=starts[:, begin:end], backend=backend)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    torch.testing.assert_close(state, after)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hard_gates(backend):
    """Steps so long that exp(delta A) is 0, and so short that it is 1: finite, and the past is gone, or whole."""
    operands, _ = make(dtype=torch.float32)
    operands["dt"][:, 10], operands["A"] = 1e6, -torch.ones(5, 3)
    operands["dt"][:, 20] = -1e6
    leaves = [value.requires_grad_() for value in operands.values()]
    y, after = selective_scan(**operands, backend=backend)
    grads = torch.autograd.grad(y[:, 10:].sum() + after.sum(), leaves, retain_graph=True)
    assert torch.isfinite(y).all() and all(torch.isfinite(g).all() for g in grads)
    assert not grads[0][:, :10].any() and not grads[-1].any()
    assert torch.isfinite(torch.autograd.grad(y.sum(), leaves)[0]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_drift_in_64k_tokens(backend):
    """Gates of 1 - 1e-7, which float32 cannot hold, keep their meaning over 65,536 tokens."""
    time = 1 << 16
    dt = torch.full((1, time, 1), math.log(math.expm1(1.0)))  # delta = 1
    x, ones = torch.full((1, time, 1), 1e-3), torch.ones(1, time, 1)
    y, after = selective_scan(x, dt, torch.tensor([[-1e-7]]), ones, ones, state=torch.ones(1, 1, 1), backend=backend)
    steps = np.arange(1, time + 1)
    want = np.exp(-1e-7 * steps) + 1e-3 * -np.expm1(-1e-7 * steps) / -np.expm1(-1e-7)
    close(y[0, :, 0], want, 2e-6)
    close(after[0, 0], want[-1:], 2e-6)


def test_a_slice_of_a_wider_tensor_is_read_where_it_lies():
    operands, _ = make(dtype=torch.float32, width=8)
    wide = torch.randn(2, 37, 16)
    want, _ = selective_scan(**{**operands, "z": wide[..., 8:].contiguous()}, backend="numba")
    found, _ = selective_scan(**{**operands, "z": wide[..., 8:]}, backend="numba")
    assert torch.equal(found, want)


def test_threads_change_nothing(monkeypatch):
    monkeypatch.setattr("orrery.ops.compiled._WORTH_A_THREAD", 1)
    operands, _ = make(batch=3, width=300, dtype=torch.float32)
    count, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(gradients(selective_scan, operands, backend="numba"))
    finally:
        torch.set_num_threads(count)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_memory_of_a_training_step_holds_no_states():
    """What is kept for the backward pass: the inputs, and a state for every 32nd token."""
    operands, _ = make(time=640, width=16, size=16, dtype=torch.float32)
    kept = []
    leaves = {name: value.requires_grad_() for name, value in operands.items()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        selective_scan(**leaves, backend="numba")
    numbers = sum({t.data_ptr(): t.numel() for t in kept}.values())
    assert numbers <= 2 * 640 * (3 * 16 + 2 * 16 + 16 * 16 / 32) + 2000  # the states would be 2 * 640 * 256


def test_the_matrix_is_the_scan():
    operands, starts = make(time=12)
    for name in ("state", "z"):
        del operands[name]
    x = operands.pop("x")
    matrix = selective_scan_matrix(**operands, starts=starts)
    want, _ = selective_scan_reference(x, **operands, starts=starts)
    torch.testing.assert_close(torch.einsum("bets,bse->bte", matrix, x), want)


def test_wrong_shapes_are_told():
    operands, starts = make()
    with pytest.raises(StateError, match="starts"):
        selective_scan(**operands, starts=starts[:, 1:])
    operands["state"] = operands["state"][:1]
    with pytest.raises(StateError, match=r"state of shape \(1, 3, 5\)"):
        selective_scan(**operands)


@compiled
def _both(first, last, x, less, soft):  # type: ignore[no-untyped-def]
    for i in range(first, last):
        less[i] = expm1(x[i])
        soft[i] = softplus(x[i])


@pytest.mark.parametrize(("dtype", "limit"), [(np.float32, 3e-7), (np.float64, 1e-14)])
def test_functions_of_kernels(dtype, limit):
    """Relative errors, near 0 too, where a sum of large numbers would lose them."""
    small = np.logspace(-30, -1, 300)
    x = np.concatenate([-small, small, np.linspace(-80, 80, 1001), [0.0]]).astype(dtype)
    less, soft = np.empty_like(x), np.empty_like(x)
    _both(0, len(x), x, less, soft)
    exact = x.astype(np.float64)
    for found, want in ((less, np.expm1(exact)), (soft, np.maximum(exact, 0) + np.log1p(np.exp(-np.abs(exact))))):
        assert (np.abs(found - want) <= limit * np.abs(want)).all()
    assert math.isclose(expm1(0.3), math.expm1(0.3)) and math.isclose(softplus(0.3), math.log1p(math.exp(0.3)))
