"""The vector-decay recurrence: every form against the float64 loop, every gradient, cuts, document starts, hard gates."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles.vector_decay import vector_decay as oracle
from orrery.core.errors import ConfigError, StateError
from orrery.ops import backend as backends
from orrery.ops.vector_decay import (
    vector_decay,
    vector_decay_chunked,
    vector_decay_matrix,
    vector_decay_reference,
    vector_decay_step,
)

BACKENDS = ("torch", "numba")
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5}  # of the largest number of the tensor compared
SEQUENCES = ("q", "k", "v", "g_log")


def make(T=50, B=2, H=2, K=5, V=6, bonus=False, dtype=torch.float64, seed=0):
    """Operands with every option in use; gates log-normal so that some keep all and some forget nearly all."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    operands = {
        "q": normal(B, T, H, K),
        "k": normal(B, T, H, K),
        "v": normal(B, T, H, V),
        "g_log": -torch.exp(3.0 * normal(B, T, H, K) - 2.0),
        "state": normal(B, H, K, V),
        "bonus": normal(H, K) if bonus else None,
    }
    starts = torch.rand(B, T, generator=g) < 0.08
    return {name: x if x is None else x.to(dtype) for name, x in operands.items()}, starts


def numpy_of(operands):
    return {name: None if x is None else x.double().numpy() for name, x in operands.items()}


def part(operands, where):
    return {name: x[:, where] if name in SEQUENCES else x for name, x in operands.items()}


def close(got, want, tolerance, what="", size=0.0):
    """The largest difference, as a share of the largest wanted number or of `size`, whichever is larger."""
    want = torch.as_tensor(want, dtype=torch.float64)
    got = got.detach().double()
    assert got.shape == want.shape
    assert torch.isfinite(got).all(), what
    worst = (got - want).abs().max().item() / max(want.abs().max().item(), size, 1e-30)
    assert worst <= tolerance, f"{what}: {worst:.1e} of the largest number"


def gradients(function, operands, starts, **more):
    """Outputs, and the gradients of a fixed random functional of both of them, by name."""
    leaves = {name: x if x is None else x.detach().clone().requires_grad_() for name, x in operands.items()}
    y, after = function(**leaves, starts=starts, **more)
    g = torch.Generator().manual_seed(9)
    loss = (y.double() * torch.randn(y.shape, generator=g, dtype=torch.float64)).sum()
    loss = loss + (after.double() * torch.randn(after.shape, generator=g, dtype=torch.float64)).sum()
    used = {name: x for name, x in leaves.items() if x is not None}
    found = torch.autograd.grad(loss, list(used.values()))
    return {"y": y, "after": after, **dict(zip(used, found, strict=True))}


@pytest.mark.parametrize("bonus", [False, True])
@pytest.mark.parametrize("time", [1, 2, 65])
def test_values_against_the_oracle(time, bonus):
    operands, starts = make(T=time, bonus=bonus, seed=time)
    for chosen, marks in ((operands, starts), (dict(operands, state=None), None)):
        want = oracle(**numpy_of(chosen), starts=None if marks is None else marks.numpy(), scale=0.3)
        for form in (vector_decay_reference, vector_decay_chunked, vector_decay):
            for got, right in zip(form(**chosen, starts=marks, scale=0.3), want, strict=True):
                close(got, right, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bonus", [False, True])
@pytest.mark.parametrize("time", [1, 2, 64, 100, 300])
def test_values_and_gradients_against_autograd_of_the_reference(time, bonus, backend):
    """300 tokens cross the spans in which the compiled form sums the gradient of the gates."""
    operands, starts = make(T=time, bonus=bonus, seed=time)
    for chosen, marks in ((operands, starts), (dict(operands, state=None), None)):
        want = gradients(vector_decay_reference, chosen, marks, scale=0.7)
        for dtype, tolerance in TOLERANCE.items():
            low = {name: None if x is None else x.to(dtype) for name, x in chosen.items()}
            got = gradients(vector_decay, low, marks, scale=0.7, backend=backend)
            assert got["y"].dtype == dtype
            for name, right in want.items():
                close(got[name], right, tolerance, f"{name} in {dtype}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bonus", [False, True])
def test_gradcheck(backend, bonus):
    """Against finite differences, which share nothing with our derivation or with autograd."""
    operands, _ = make(T=6, B=1, H=1, K=2, V=3, bonus=bonus)
    starts = torch.zeros(1, 6, dtype=torch.bool)
    starts[0, 3] = True
    operands = {name: x.requires_grad_() for name, x in operands.items() if x is not None}

    def run(*values):
        return vector_decay(**dict(zip(operands, values, strict=True)), starts=starts, scale=0.7, chunk=4, backend=backend)

    assert torch.autograd.gradcheck(run, tuple(operands.values()), eps=1e-6, atol=1e-7)


@settings(max_examples=12, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 69), max_size=3, unique=True).map(sorted),
    chunk=st.integers(1, 80),
    bonus=st.booleans(),
    backend=st.sampled_from(BACKENDS),
)
def test_split_anywhere(cuts, chunk, bonus, backend):
    """Running on after a cut is running through; one-token pieces take the step form."""
    operands, starts = make(T=70, bonus=bonus)
    y, after = vector_decay(**operands, starts=starts, backend=backend)
    state, rows = operands["state"], []
    for first, last in zip([0, *cuts], [*cuts, 70], strict=True):
        piece = dict(part(operands, slice(first, last)), state=state)
        row, state = vector_decay(**piece, starts=starts[:, first:last], chunk=chunk, backend=backend)
        rows.append(row)
    close(torch.cat(rows, 1), y, 1e-11)
    close(state, after, 1e-11)


@pytest.mark.parametrize("bonus", [False, True])
def test_steps_are_the_sequence_and_a_donated_state_is_overwritten(bonus):
    operands, starts = make(T=20, bonus=bonus)
    y, after = oracle(**numpy_of(operands), starts=starts.numpy(), scale=0.5)
    for donate in (False, True):
        state = operands["state"].clone()
        for t in range(20):
            one = [operands[name][:, t] for name in SEQUENCES]
            kept = state.clone()
            before = state
            row, state = vector_decay_step(
                *one, state, starts[:, t : t + 1] if starts[:, t].any() else None, 0.5, bonus=operands["bonus"], donate=donate
            )
            close(row, y[:, t], 1e-12)
            assert donate or torch.equal(before, kept)
        close(state, after, 1e-12)
    assert vector_decay_step(*one, state, bonus=operands["bonus"], donate=True)[1].data_ptr() == state.data_ptr()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bonus", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("gate", [-math.inf, -1e9, math.log(1e-30), -20.0, math.log1p(-1e-7), 0.0], ids=lambda g: f"{g:.3g}")
def test_extreme_gates(gate, dtype, bonus, backend):
    """One gate everywhere, and mixed with mild ones, whose accuracy it must not spoil; gradients stay finite and right.

    The gradient of g is a sum of terms q.dq, so its accuracy is measured against the largest of them.
    """
    operands, starts = make(T=70, bonus=bonus, dtype=dtype, seed=2)
    for share, marks in ((1.0, None), (0.3, starts)):
        mixed = torch.rand(2, 70, 2, 5, generator=torch.Generator().manual_seed(1)) < share
        chosen = dict(operands, g_log=torch.where(mixed, gate, operands["g_log"] * 0.01))
        double = {name: None if x is None else x.double() for name, x in chosen.items()}
        want = gradients(vector_decay_reference, double, marks)
        got = gradients(vector_decay, chosen, marks, backend=backend)
        terms = (want["q"] * double["q"]).abs().max().item()
        for name, right in want.items():
            close(got[name], right, TOLERANCE[dtype], name, size=terms if name == "g_log" else 0.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mild_rows_keep_their_accuracy_beside_and_behind_strong_ones(backend):
    """Differences of one running sum, or one scale for all rows, would lose four digits here."""
    operands, _ = make(T=64, B=1, H=1, K=2, V=2, dtype=torch.float32)
    gates = torch.full((1, 64, 1, 2), -1e-3)
    gates[..., 0] = -900.0
    gates[:, :32, :, 1] = -29.0
    chosen = dict(operands, g_log=gates)
    want = oracle(**numpy_of(chosen))
    for got, right in zip(vector_decay(**chosen, backend=backend), want, strict=True):
        close(got, right, 2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_drift_over_64k_steps(backend):
    """A decay of 1 - 1e-7 takes 0.65 % from a state in 65,536 steps; its float32 neighbour would take 0.78 %."""
    T, gate = 65_536, torch.tensor(math.log1p(-1e-7))
    zero, q = torch.zeros(1, T, 1, 2), torch.ones(1, T, 1, 2)
    state = torch.tensor([[[[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]]]])
    gates = gate.expand(1, T, 1, 2)
    y, after = vector_decay(q, zero, torch.zeros(1, T, 1, 3), gates, state, backend=backend)
    kept = math.exp(float(gate.double()) * T)
    close(after, state.double() * kept, 2e-6)
    close(y[0, -1, 0], state[0, 0].double().sum(0) * kept, 2e-6)
    _, summed = vector_decay(q, q, torch.full((1, T, 1, 3), 1e-3), gates, backend=backend)
    close(summed[0, 0, 0, 0], 1e-3 * math.expm1(T * float(gate.double())) / math.expm1(float(gate.double())), 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bonus", [False, True])
def test_a_start_hides_all_that_came_before(backend, bonus):
    """Exactly, in values and in gradients."""
    operands, _ = make(T=60, bonus=bonus, dtype=torch.float32)
    starts = torch.zeros(2, 60, dtype=torch.bool)
    starts[:, 41] = True
    y, after = vector_decay(**operands, starts=starts, backend=backend)
    louder = dict(operands, state=operands["state"] * 1e30)
    got_y, got = vector_decay(**louder, starts=starts, backend=backend)
    assert torch.equal(got_y[:, 41:], y[:, 41:]) and torch.equal(got, after)
    leaves = {name: x if x is None else x.clone().requires_grad_() for name, x in operands.items()}
    y, after = vector_decay(**leaves, starts=starts, backend=backend)
    sequences = [leaves[name] for name in SEQUENCES]
    for gradient in torch.autograd.grad(y[:, 41:].sum() + after.sum(), [*sequences, leaves["state"]], retain_graph=True):
        assert not gradient[:, :41].any()
    for gradient in torch.autograd.grad(y[:, :41].sum(), sequences):
        assert not gradient[:, 41:].any() and gradient[:, 10:30].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_future_cannot_be_seen(backend):
    operands, _ = make(T=70, bonus=True)
    leaves = {name: x.requires_grad_() for name, x in operands.items()}
    y, _ = vector_decay(**leaves, backend=backend)
    for t in (0, 31, 32, 63):
        for gradient in torch.autograd.grad(y[:, t].sum(), [leaves[name] for name in SEQUENCES], retain_graph=True):
            assert not gradient[:, t + 1 :].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_leaves_the_state_as_it_is(backend):
    operands, starts = make(T=60, bonus=True)
    y, after = vector_decay(**operands, starts=starts, lengths=torch.tensor([60, 23]), backend=backend)
    row = {name: x if name == "bonus" else x[1:] for name, x in part(operands, slice(23)).items() if name != "state"}
    want_y, want = vector_decay(**row, state=operands["state"][1:], starts=starts[1:, :23], backend=backend)
    close(y[1:, :23], want_y, 1e-12)
    close(after[1:], want, 1e-12)
    _, after = vector_decay(**part(operands, slice(1)), lengths=torch.tensor([1, 0]))
    assert torch.equal(after[1], operands["state"][1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_keeps_a_float32_state_and_autocast_stays_outside(backend):
    operands, _ = make(T=80, dtype=torch.bfloat16)
    y, after = vector_decay(**operands, backend=backend)
    want_y, want = oracle(**numpy_of(operands))
    assert y.dtype == torch.bfloat16 and after.dtype == torch.float32
    close(y, want_y, 2**-8)
    close(after, want, TOLERANCE[torch.float32])
    single = {name: x if x is None else x.float() for name, x in operands.items()}
    plain = gradients(vector_decay, single, None, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = gradients(vector_decay, single, None, backend=backend)
    assert all(torch.equal(plain[name], cast[name]) for name in plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_operands_and_no_change_to_them(backend):
    wide = torch.randn(2, 50, 10 + 10 + 12)
    before = wide.clone()
    q, k, v = (x.unflatten(-1, (2, -1)) for x in wide.split([10, 10, 12], -1))
    gates = -torch.rand(2, 50, 2, 5)
    got = vector_decay(q, k, v, gates, backend=backend)
    want = vector_decay(q.contiguous(), k.contiguous(), v.contiguous(), gates, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert torch.equal(wide, before)


def test_threads_do_not_change_the_result():
    operands, starts = make(T=100, B=4, K=32, V=32, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(gradients(vector_decay, operands, starts, backend="numba"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_is_linear_in_time(backend):
    """Kept for the backward pass beyond the inputs: K x V a head and chunk (64 tokens, or a span of 256). No (T,K,V)."""

    def kept(T):
        operands, _ = make(T=T, B=1, H=2, K=8, V=8, dtype=torch.float32)
        leaves = {name: x if x is None else x.requires_grad_() for name, x in operands.items()}
        given = {x.data_ptr() for x in leaves.values() if x is not None}
        sizes = {}

        def pack(x):
            if x.data_ptr() not in given:
                sizes[x.data_ptr()] = x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            vector_decay(**leaves, backend=backend)
        return sum(sizes.values())

    for T in (512, 1024):
        assert kept(T) <= 2 * 8 * 8 * T / (64 if backend == "torch" else 256) + 2 * 8 * 8 + 64


@pytest.mark.parametrize("backend", BACKENDS)
def test_uninitialised_memory_is_never_read(backend):
    for time in (2, 65):
        operands, starts = make(T=time, bonus=True, dtype=torch.float32)
        plain = gradients(vector_decay, operands, starts, backend=backend)
        torch.use_deterministic_algorithms(True)  # torch.empty is then full of NaN
        try:
            assert torch.empty(3).isnan().all()
            poisoned = gradients(vector_decay, operands, starts, backend=backend)
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(torch.equal(plain[name], poisoned[name]) for name in plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gate_of_nan_is_seen_from_its_token_on(backend):
    operands, _ = make(T=20, dtype=torch.float32)
    operands["g_log"][0, 12, 1, 3] = math.nan
    y, after = vector_decay(**operands, backend=backend)
    assert not y[0, :12].isnan().any() or backend == "torch"  # a product with a masked zero carries NaN within a chunk
    assert y[0, 12:, 1].isnan().all() and after[0, 1, 3].isnan().all() and not y[1].isnan().any()


@pytest.mark.parametrize("bonus", [False, True])
def test_the_matrix_maps_values_to_outputs(bonus):
    operands, starts = make(T=30, bonus=bonus)
    plain = dict(operands, state=None)
    y, _ = vector_decay(**plain, starts=starts, scale=0.3)
    del plain["state"], plain["v"]
    matrix = vector_decay_matrix(**plain, starts=starts, scale=0.3)
    close(torch.einsum("bhts,bshv->bthv", matrix, operands["v"]), y, 1e-12)
    assert not matrix.triu(1).any()


@pytest.mark.parametrize("wrong", ["q", "v", "g_log", "state", "bonus", "starts"])
def test_wrong_shapes_are_named(wrong):
    operands, starts = make(T=5, bonus=True)
    operands["starts"] = starts
    operands[wrong] = operands[wrong][:1]
    with pytest.raises(StateError, match=f"vector_decay was given {wrong} of shape"):
        vector_decay(**operands)


def test_the_backend_is_recorded():
    operands, _ = make(T=5, dtype=torch.float32)
    backends.forget_backends()
    vector_decay(**operands)
    assert backends.current_backend() == {"vector_decay": "numba"}
    with pytest.raises(ConfigError, match="it offers fla, numba, torch"):
        vector_decay(**operands, backend="triton")
