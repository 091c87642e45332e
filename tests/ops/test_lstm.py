"""LSTM and GRU: every form against the float64 loop and torch's layers, every gradient, cuts, document starts, padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from oracles import lstm_gru_cell as oracle
from orrery.core.errors import StateError
from orrery.ops.gru import gru_layer, gru_reference, gru_sequence, gru_step
from orrery.ops.lstm import lstm_layer, lstm_reference, lstm_sequence, lstm_step

BACKENDS = ("torch", "numba")
KINDS = ("lstm", "gru")
GATES = {"lstm": 4, "gru": 3}
PARTS = {"lstm": 2, "gru": 1}


def make(kind, batch=3, time=17, width=6, inputs=5, dtype=torch.float64, seed=0):
    """(x, weight_ih, weight_hh, bias, bias_hh), a tuple of states, and document starts."""
    g = torch.Generator().manual_seed(seed)
    total = GATES[kind] * width

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    operands = [normal(batch, time, inputs), normal(total, inputs), normal(total, width), normal(total), normal(total)]
    return operands, tuple(normal(batch, width) for _ in range(PARTS[kind])), torch.rand(batch, time, generator=g) < 0.2


def sequence(kind, operands, state, starts=None, lengths=None, backend=None):
    """Projection and recurrence; returns (y, state...)."""
    x, weight_ih, weight_hh, bias, bias_hh = operands
    if kind == "lstm":
        y, after = lstm_sequence(F.linear(x, weight_ih, bias), weight_hh, bias_hh, state, starts, lengths, backend)
        return (y, *after)
    before = None if state is None else state[0]
    return gru_sequence(F.linear(x, weight_ih, bias), weight_hh, bias_hh, before, starts, lengths, backend)


def layer(kind, operands, state, starts=None, lengths=None, backend=None):
    """The same by the layer that projects itself."""
    x, weight_ih, weight_hh, bias, bias_hh = operands
    if kind == "lstm":
        y, after = lstm_layer(x, weight_ih, weight_hh, bias + bias_hh, state, starts, lengths, backend)
        return (y, *after)
    before = None if state is None else state[0]
    return gru_layer(x, weight_ih, weight_hh, bias, bias_hh, before, starts, lengths, backend)


def reference(kind, operands, state, starts=None):
    x, weight_ih, weight_hh, bias, bias_hh = operands
    if kind == "lstm":
        y, after = lstm_reference(F.linear(x, weight_ih, bias), weight_hh, bias_hh, state, starts)
        return (y, *after)
    return gru_reference(F.linear(x, weight_ih, bias), weight_hh, bias_hh, state[0], starts)


def wanted(kind, operands, state, starts=None, lengths=None):
    x, weight_ih, weight_hh, bias, bias_hh = (t.double().numpy() for t in operands)
    gates = np.einsum("btd,gd->btg", x, weight_ih) + bias
    marks = None if starts is None else starts.numpy()
    ends = None if lengths is None else lengths.numpy()
    return getattr(oracle, kind)(gates, weight_hh, bias_hh, *(s.double().numpy() for s in state), marks, ends)


def close(got, want, tolerance):
    want = torch.as_tensor(want, dtype=torch.float64)
    assert got.shape == want.shape
    assert torch.isfinite(got).all()
    assert (got.double() - want).abs().max() <= tolerance


@pytest.mark.parametrize("form", [sequence, layer])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_oracle(form, backend, dtype, kind):
    tolerance = 1e-12 if dtype == torch.float64 else 5e-6
    for time, width in ((1, 7), (2, 6), (17, 16)):
        operands, state, starts = make(kind, time=time, width=width, dtype=dtype)
        lengths = torch.tensor([time, max(1, time - 6), 0])
        for reset in (None, starts):
            for ends in (None, lengths):
                got = form(kind, operands, state, reset, ends, backend)
                for one, other in zip(got, wanted(kind, operands, state, reset, ends), strict=True):
                    close(one, other, tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_reference_is_the_equation(kind):
    operands, state, starts = make(kind)
    for got, want in zip(reference(kind, operands, state, starts), wanted(kind, operands, state, starts), strict=True):
        close(got, want, 1e-13)


@pytest.mark.parametrize("form", [sequence, layer])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [2, 3])
def test_gradients(form, backend, kind, width):
    operands, state, starts = make(kind, batch=2, time=5, width=width, inputs=2)
    for reset, lengths in ((None, None), (starts, torch.tensor([5, 3]))):
        inputs = [x.clone().requires_grad_() for x in (*operands, *state)]
        torch.autograd.gradcheck(
            lambda *t, r=reset, n=lengths: form(kind, t[:5], t[5:], r, n, backend), inputs, atol=1e-6
        )


@pytest.mark.parametrize("kind", KINDS)
def test_equals_torch(kind):
    """Values and gradients of torch's own layer with the same weights, in float32."""
    torch.manual_seed(0)
    peer = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](12, 20, batch_first=True)
    x, dy = torch.randn(4, 33, 12), torch.randn(4, 33, 20)
    operands = [x, peer.weight_ih_l0, peer.weight_hh_l0, peer.bias_ih_l0, peer.bias_hh_l0]
    want, _ = peer(x)
    want_grads = torch.autograd.grad(want, list(peer.parameters()), dy)
    for form in (sequence, layer):
        got = form(kind, operands, None, backend="numba")[0]
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        grads = torch.autograd.grad(got, operands[1:], dy)
        for one, other in zip(grads, want_grads, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-4)


@given(cut=st.integers(1, 16), seed=st.integers(0, 50), kind=st.sampled_from(KINDS))
def test_cut_anywhere(cut, seed, kind):
    (x, *weights), state, starts = make(kind, seed=seed)
    whole, *after = sequence(kind, [x, *weights], state, starts)
    left, *middle = sequence(kind, [x[:, :cut], *weights], state, starts[:, :cut])
    right, *end = sequence(kind, [x[:, cut:], *weights], tuple(middle), starts[:, cut:])
    torch.testing.assert_close(torch.cat([left, right], 1), whole)
    for got, want in zip(end, after, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_equal_the_sequence(kind):
    operands, state, _ = make(kind)
    x, weight_ih, weight_hh, bias, bias_hh = operands
    whole, *after = sequence(kind, operands, state)
    gates = F.linear(x, weight_ih, bias)
    held = state if kind == "lstm" else state[0]
    for t in range(x.shape[1]):
        y, held = (lstm_step if kind == "lstm" else gru_step)(gates[:, t], weight_hh, bias_hh, held)
        torch.testing.assert_close(y, whole[:, t])
    for got, want in zip(held if kind == "lstm" else (held,), after, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_kept_cell_does_not_drift(backend):
    """An LSTM that keeps its cell (forget gate 1) and never writes holds it for 65,536 tokens (8,192 in torch's loop)."""
    gates = torch.tensor([-200.0, 200.0, 0.0, 0.0]).expand(1, 1 << (16 if backend == "numba" else 13), 4)
    start = torch.tensor([[0.3]])
    y, (_, cell) = lstm_sequence(gates, torch.zeros(4, 1), None, (torch.zeros(1, 1), start), backend=backend)
    close(cell, start, 1e-7)
    close(y[:, -1], 0.5 * torch.tanh(start.double()), 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_saturated_gates_have_finite_gradients(backend, kind):
    operands, state, _ = make(kind, dtype=torch.float32)
    inputs = [(1e4 * x if n == 0 else x).requires_grad_() for n, x in enumerate(operands)]
    y, *after = sequence(kind, inputs, state, backend=backend)
    grads = torch.autograd.grad(y.sum() + after[0].sum(), inputs)
    assert torch.isfinite(y).all() and all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("kind", KINDS)
def test_the_callers_gates_are_not_overwritten(kind):
    operands, state, _ = make(kind)
    gates = F.linear(operands[0].transpose(0, 1).contiguous(), operands[1]).transpose(0, 1)  # time-major in memory
    kept = gates.clone()
    if kind == "lstm":
        lstm_sequence(gates, operands[2], None, state, backend="numba")
    else:
        gru_sequence(gates, operands[2], None, state[0], backend="numba")
    assert torch.equal(gates, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_computes_the_recurrence_in_float32(kind):
    operands, state, _ = make(kind, dtype=torch.float32)
    operands = [x.requires_grad_() for x in operands]
    want = sequence(kind, operands, state, backend="numba")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = sequence(kind, operands, state, backend="numba")
        grads = torch.autograd.grad(got[0].float().sum(), operands)
    assert got[1].dtype == torch.float32
    close(got[1], want[1].detach(), 0.1)
    assert all(torch.isfinite(g).all() for g in grads)


def test_wrong_shapes_are_told():
    gates, weight = torch.zeros(2, 3, 8), torch.zeros(8, 2)
    with pytest.raises(StateError, match="state of shape"):
        lstm_sequence(gates, weight, None, (torch.zeros(1, 2), torch.zeros(1, 2)))
    with pytest.raises(StateError, match="needs 4 H"):
        lstm_sequence(gates, torch.zeros(6, 2))
    with pytest.raises(StateError, match="starts"):
        lstm_sequence(gates, weight, starts=torch.zeros(2, 4, dtype=torch.bool))
