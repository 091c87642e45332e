"""The scalar-decay recurrence: every form against the float64 loop, every gradient, cuts, document starts, hard gates."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles.scalar_decay import scalar_decay as oracle
from orrery.core.errors import ConfigError, StateError
from orrery.ops import backend as backends
from orrery.ops.scalar_decay import (
    chunk_length,
    scalar_decay,
    scalar_decay_chunked,
    scalar_decay_reference,
    scalar_decay_step,
)

BACKENDS = ("torch", "numba")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 3e-5}  # of the largest number of the tensor compared


def make(T=50, B=2, G=2, H=4, K=5, V=6, decay=1.0, dtype=torch.float64, seed=0):
    """Operands with every option in use; gates log-uniform so that some keep all and some forget nearly all."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    gates = -decay * torch.exp(3.0 * normal(B, T, H) - 2.0)
    operands = {
        "q": normal(B, T, G, K),
        "k": normal(B, T, G, K),
        "v": normal(B, T, H, V),
        "g_log": gates,
        "state": normal(B, H, K, V),
        "beta": torch.rand(B, T, H, generator=g, dtype=torch.float64),
        "skip": normal(H),
    }
    starts = torch.rand(B, T, generator=g) < 0.08
    return {name: x.to(dtype) for name, x in operands.items()}, starts


def without(operands, *names):
    return {name: None if name in names else x for name, x in operands.items()}


def numpy_of(operands):
    return {name: None if x is None else x.double().numpy() for name, x in operands.items()}


def close(got, want, tolerance, what="", size=0.0):
    """The largest difference, as a share of the largest wanted number or of `size`, whichever is larger."""
    want = torch.as_tensor(want, dtype=torch.float64)
    got = got.double()
    assert got.shape == want.shape
    assert torch.isfinite(got).all(), what
    worst = (got - want).abs().max().item() / max(want.abs().max().item(), size, 1e-30)
    assert worst <= tolerance, f"{what}: {worst:.1e} of the largest number"


def gradients(function, operands, starts, weights):
    leaves = {name: x if x is None else x.detach().clone().requires_grad_() for name, x in operands.items()}
    y, after = function(**leaves, starts=starts)
    loss = (y.double() * weights[0]).sum() + (after.double() * weights[1]).sum()
    used = {name: x for name, x in leaves.items() if x is not None}
    found = torch.autograd.grad(loss, list(used.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(used, found, strict=True))


def test_reference_is_the_equation():
    operands, starts = make(T=9)
    y, after = scalar_decay_reference(**operands, starts=starts, scale=0.3)
    want_y, want_after = oracle(**numpy_of(operands), starts=starts.numpy(), scale=0.3)
    close(y, want_y, 1e-13)
    close(after, want_after, 1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("time", [1, 2, 63, 64, 65, 100, 257])
def test_values_against_the_oracle(time, dtype, backend):
    operands, starts = make(T=time, dtype=dtype, seed=time)
    for given_starts in (None, starts):
        for chosen in (operands, without(operands, "state", "beta", "skip")):
            y, after = scalar_decay(**chosen, starts=given_starts, backend=backend)
            marks = None if given_starts is None else given_starts.numpy()
            want_y, want_after = oracle(**numpy_of(chosen), starts=marks)
            assert y.dtype == dtype
            close(y, want_y, TOLERANCE[dtype], "y")
            close(after, want_after, TOLERANCE[dtype], "state")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("time", [1, 2, 63, 64, 65, 100, 257])
def test_gradients_against_autograd_of_the_reference(time, dtype, backend):
    """257 tokens in chunks of 16 cross the spans in which the gradient of the gates is summed."""
    operands, starts = make(T=time, seed=time)
    weights = torch.randn(2, time, 4, 6, dtype=torch.float64), torch.randn(2, 4, 5, 6, dtype=torch.float64)
    for chunk, given_starts in ((None, None), (16, starts)):
        for chosen in (operands, without(operands, "state", "beta", "skip")):
            want = gradients(scalar_decay_reference, chosen, given_starts, weights)

            def fast(chunk=chunk, **arguments):
                return scalar_decay(**arguments, chunk=chunk, backend=backend)

            low = {name: None if x is None else x.to(dtype) for name, x in chosen.items()}
            got = gradients(fast, low, given_starts, weights)
            for name, gradient in want.items():
                close(got[name], gradient, TOLERANCE[dtype], name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    """Against finite differences, which share nothing with our derivation or with autograd."""
    operands, _ = make(T=7, B=1, G=1, H=2, K=2, V=3)
    starts = torch.zeros(1, 7, dtype=torch.bool)
    starts[0, 4] = True
    leaves = [x.requires_grad_() for x in operands.values()]

    def run(*values):
        named = dict(zip(operands, values, strict=True))
        return scalar_decay_chunked(**named, starts=starts, scale=0.7, chunk=3, backend=backend)

    assert torch.autograd.gradcheck(run, leaves, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_are_repeated_heads(groups, backend):
    operands, starts = make(T=40, G=groups, seed=groups)
    repeated = dict(operands)
    for name in ("q", "k"):
        repeated[name] = operands[name].repeat_interleave(4 // groups, 2)
    for got, want in zip(
        scalar_decay(**operands, starts=starts, backend=backend),
        scalar_decay(**repeated, starts=starts, backend=backend),
        strict=True,
    ):
        close(got, want, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_equal_chunks(backend):
    operands, starts = make(T=37)
    y, after = scalar_decay_chunked(**operands, starts=starts, scale=0.5, chunk=8, backend=backend)
    state, rows = operands["state"], []
    for t in range(37):
        row, state = scalar_decay_step(
            *(operands[name][:, t] for name in ("q", "k", "v", "g_log")),
            state,
            starts[:, t : t + 1],
            0.5,
            beta=operands["beta"][:, t],
            skip=operands["skip"],
        )
        rows.append(row)
    close(y, torch.stack(rows, 1), 1e-12)
    close(after, state, 1e-12)


def test_a_donated_state_is_overwritten_and_any_other_is_not():
    operands, _ = make(T=1, dtype=torch.float32)
    args = [operands[name][:, 0] for name in ("q", "k", "v", "g_log")]
    state = operands["state"]
    before = state.clone()
    want_y, want = scalar_decay_step(*args, state)
    assert torch.equal(state, before)
    y, after = scalar_decay_step(*args, state, donate=True)
    assert after.data_ptr() == state.data_ptr()
    assert torch.equal(after, want) and torch.equal(y, want_y)


@settings(max_examples=30, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 89), max_size=4, unique=True).map(sorted),
    chunk=st.integers(1, 40),
    seed=st.integers(0, 3),
    backend=st.sampled_from(BACKENDS),
)
def test_split_anywhere(cuts, chunk, seed, backend):
    """Running on after a cut is running through; one-token pieces take the step form."""
    operands, starts = make(T=90, seed=seed)
    y, after = scalar_decay(**operands, starts=starts, backend=backend)
    state, rows = operands["state"], []
    for first, last in zip([0, *cuts], [*cuts, 90], strict=True):
        piece = {name: x[:, first:last] for name, x in operands.items() if name not in ("state", "skip")}
        row, state = scalar_decay(
            **piece,
            state=state,
            skip=operands["skip"],
            starts=starts[:, first:last],
            chunk=chunk,
            backend=backend,
        )
        rows.append(row)
    close(torch.cat(rows, 1), y, 1e-11)
    close(state, after, 1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_a_state_reaches_back_through_a_cut(backend):
    operands, _ = make(T=30)
    whole = {name: x.clone().requires_grad_() for name, x in operands.items()}
    y, after = scalar_decay(**whole, backend=backend)
    want = torch.autograd.grad(y.square().sum() + after.square().sum(), list(whole.values()))
    cut = {name: x.clone().requires_grad_() for name, x in operands.items()}
    pieces, state = [], cut["state"]
    for part in (slice(0, 11), slice(11, 12), slice(12, 30)):
        piece = {name: x[:, part] for name, x in cut.items() if name not in ("state", "skip")}
        row, state = scalar_decay(**piece, state=state, skip=cut["skip"], chunk=4, backend=backend)
        pieces.append(row)
    got = torch.autograd.grad(torch.cat(pieces, 1).square().sum() + state.square().sum(), list(cut.values()))
    for name, mine, other in zip(operands, got, want, strict=True):
        close(mine, other, 1e-11, name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_start_hides_all_that_came_before(backend):
    """Exactly: what stands before a start may be NaN."""
    operands, _ = make(T=70, dtype=torch.float32)
    starts = torch.zeros(2, 70, dtype=torch.bool)
    starts[:, 41] = True
    y, after = scalar_decay(**operands, starts=starts, backend=backend)
    later = {name: x[:, 41:] for name, x in operands.items() if name not in ("state", "skip")}
    want_y, want = scalar_decay(**later, skip=operands["skip"], backend=backend)
    close(y[:, 41:], want_y, 1e-6)
    close(after, want, 1e-6)
    louder = dict(operands, state=operands["state"] * 1e30)
    got_y, got = scalar_decay(**louder, starts=starts, backend=backend)
    assert torch.equal(got_y[:, 41:], y[:, 41:]) and torch.equal(got, after)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(
    "gate", [-math.inf, -1e9, math.log(1e-30), -100.0, -20.0, math.log1p(-1e-7), 0.0], ids=lambda g: f"{g:.3g}"
)
def test_extreme_gates(gate, dtype, backend):
    """One gate everywhere, and mixed with mild ones, whose accuracy it must not spoil; gradients stay finite and right.

    The gradient of g is a sum of terms y.dy and v.dv, so its accuracy is measured against the largest y.dy: where gates
    forget nearly all, the terms cancel to next to nothing.
    """
    operands, _ = make(T=100, dtype=dtype)
    weights = torch.randn(2, 100, 4, 6, dtype=torch.float64), torch.randn(2, 4, 5, 6, dtype=torch.float64)
    for share in (1.0, 0.3):
        mixed = torch.rand(2, 100, 4, generator=torch.Generator().manual_seed(1)) < share
        chosen = dict(operands, g_log=torch.where(mixed, gate, operands["g_log"] * 0.01))
        y, after = scalar_decay(**chosen, backend=backend)
        want_y, want_after = oracle(**numpy_of(chosen))
        close(y, want_y, TOLERANCE[dtype], "y")
        close(after, want_after, TOLERANCE[dtype], "state")

        def fast(**arguments):
            return scalar_decay(**arguments, backend=backend)

        got = gradients(fast, chosen, None, weights)
        double = {name: x.double() for name, x in chosen.items()}
        terms = (torch.from_numpy(want_y) * weights[0]).sum(-1).abs().max().item()
        for name, want in gradients(scalar_decay_reference, double, None, weights).items():
            close(got[name], want, TOLERANCE[dtype], name, size=terms if name == "g_log" else 0.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mild_gates_keep_their_accuracy_behind_strong_ones(backend):
    """Differences of one running sum would lose four digits here."""
    T = 64
    operands, _ = make(T=T, B=1, G=1, H=1, K=2, V=2, dtype=torch.float32)
    gates = torch.full((1, T, 1), -900.0)
    gates[:, T // 2 :] = -1e-3
    operands.update(g_log=gates, state=torch.zeros(1, 1, 2, 2))
    y, after = scalar_decay(**operands, chunk=T, backend=backend)
    want_y, want_after = oracle(**numpy_of(operands))
    close(y, want_y, 2e-6)
    close(after, want_after, 2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_drift_over_64k_steps(backend):
    """A decay of 1 - 1e-7 takes 0.65 % from a state in 65,536 steps; its float32 neighbour would take 0.78 %."""
    T, gate = 65_536, math.log1p(-1e-7)
    zero = torch.zeros(1, T, 1, 2)
    state = torch.tensor([[[[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]]]])
    gates = torch.full((1, T, 1), gate)
    q = torch.ones(1, T, 1, 2)
    y, after = scalar_decay(q, zero, torch.zeros(1, T, 1, 3), gates, state, backend=backend)
    kept = math.exp(float(gates[0, 0, 0].double()) * T)
    close(after, state.double() * kept, 2e-6)
    close(y[0, -1, 0], state[0, 0].double().sum(0) * kept, 2e-6)
    strengths = torch.zeros(1, T, 1, 3).fill_(1e-3)
    _, summed = scalar_decay(q, q, strengths, gates, backend=backend)
    rate = float(gates[0, 0, 0].double())
    close(summed[0, 0, 0, 0], 1e-3 * math.expm1(T * rate) / math.expm1(rate), 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_leaves_the_state_as_it_is(backend):
    operands, starts = make(T=60)
    lengths = torch.tensor([60, 23])
    y, after = scalar_decay(**operands, starts=starts, lengths=lengths, chunk=16, backend=backend)
    row = {name: x[1:, :23] if name not in ("state", "skip") else x for name, x in operands.items()}
    row["state"] = operands["state"][1:]
    want_y, want = scalar_decay(**row, starts=starts[1:, :23], backend=backend)
    close(y[1:, :23], want_y, 1e-12)
    close(after[1:], want, 1e-12)
    last = {name: x[:, :1] if name not in ("state", "skip") else x for name, x in operands.items()}
    _, after = scalar_decay(**last, lengths=torch.tensor([1, 0]))
    assert torch.equal(after[1], operands["state"][1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_keeps_a_float32_state(backend):
    operands, _ = make(T=80, dtype=torch.bfloat16)
    y, after = scalar_decay(**operands, backend=backend)
    want_y, want = oracle(**numpy_of(operands))
    assert y.dtype == torch.bfloat16 and after.dtype == torch.float32
    close(y, want_y, 2**-8)
    close(after, want, TOLERANCE[torch.float32])
    one = {name: x[:, :1] if name not in ("state", "skip") else x for name, x in operands.items()}
    y, after = scalar_decay(**one)
    assert y.dtype == torch.bfloat16 and after.dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_operands_and_no_change_to_them(backend):
    """Mamba-2 hands over slices of one wide tensor."""
    wide = torch.randn(2, 50, 24 + 5 + 5)
    before = wide.clone()
    v, q, k = wide.split([24, 5, 5], -1)
    operands = {"q": q.unflatten(-1, (1, 5)), "k": k.unflatten(-1, (1, 5)), "v": v.unflatten(-1, (4, 6))}
    gates = -torch.rand(2, 50, 4)
    got = scalar_decay(**operands, g_log=gates, backend=backend)
    want = scalar_decay(**{name: x.contiguous() for name, x in operands.items()}, g_log=gates, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert torch.equal(wide, before)


def test_threads_do_not_change_the_result():
    operands, starts = make(T=257, B=4, K=32, V=32, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(scalar_decay(**operands, starts=starts, backend="numba"))
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*results, strict=True):
        close(a, b, 1e-6)


def test_memory_is_linear_in_time():
    """Kept for the backward pass beyond the inputs: y, and K x V a head and chunk. No (T,T), no (T,K,V)."""

    def kept(T):
        operands, _ = make(T=T, B=1, G=1, H=2, K=8, V=8, dtype=torch.float32)
        leaves = {name: x.requires_grad_() for name, x in operands.items()}
        given = {x.data_ptr() for x in leaves.values()}
        sizes = {}

        def pack(x):
            if x.data_ptr() not in given:
                sizes[x.data_ptr()] = x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            scalar_decay_chunked(**leaves, chunk=16)
        return sum(sizes.values())

    per_token = 2 * 8 + 2 * 8 * 8 / 16
    assert kept(512) <= per_token * 512 + 2 * 8 * 8 + 64
    assert kept(1024) <= per_token * 1024 + 2 * 8 * 8 + 64


@pytest.mark.parametrize("time, target, length", [(1, 64, 1), (64, 64, 64), (65, 64, 33), (100, 64, 50), (257, 64, 52)])
def test_chunks_split_time_evenly(time, target, length):
    assert chunk_length(time, target) == length


def test_wrong_shapes_are_named():
    operands, starts = make(T=5)
    with pytest.raises(StateError, match="state of shape"):
        scalar_decay(**dict(operands, state=operands["state"][:1]))
    with pytest.raises(StateError, match="starts of shape"):
        scalar_decay(**operands, starts=starts[:, :3])
    with pytest.raises(StateError, match="H a multiple of G"):
        scalar_decay(**dict(operands, q=operands["q"][:, :4]))


def test_backend_is_chosen_by_rule_announced_once_and_recorded(caplog):
    operands, _ = make(T=5, dtype=torch.float32)
    backends.forget_backends()
    with caplog.at_level(logging.INFO, logger="orrery.ops"):
        scalar_decay(**operands)
        scalar_decay(**operands)
    assert [record.getMessage() for record in caplog.records] == ["scalar_decay runs on backend numba"]
    assert backends.current_backend() == {"scalar_decay": "numba"}
    with backends.use_backend("torch"):
        scalar_decay(**operands)
    assert backends.current_backend() == {"scalar_decay": "numba+torch"}
    with pytest.raises(ConfigError, match="it offers fla, numba, torch"):
        scalar_decay(**operands, backend="triton")
    with pytest.raises(ConfigError, match="Did you mean 'numba'"):
        scalar_decay(**operands, backend="nunba")
    with pytest.raises(ConfigError, match="Unknown backend 'cuda'"), backends.use_backend("cuda"):
        pass


def test_a_missing_package_is_announced_not_hidden(monkeypatch):
    operands, _ = make(T=5, dtype=torch.float32)
    backends.forget_backends()
    monkeypatch.setattr(backends, "installed", lambda name: name == "torch")
    with pytest.warns(RuntimeWarning, match="'numba'"):
        scalar_decay(**operands)
    assert backends.current_backend() == {"scalar_decay": "torch"}
    with pytest.raises(ConfigError, match="needs the package"):
        scalar_decay(**operands, backend="numba")


def test_numpy_oracle_handles_plain_arrays():
    """A recurrence small enough to do by hand: decay 1/2, k = q = 1, v = 1, 2, 4."""
    one = np.ones((1, 3, 1, 1))
    values = np.array([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1)
    y, state = oracle(one, one, values, np.full((1, 3, 1), math.log(0.5)))
    assert y.reshape(-1).tolist() == [1.0, 2.5, 5.25]
    assert state.item() == 5.25
