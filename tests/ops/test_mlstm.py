"""The mLSTM: every form against the unstabilised float64 loop, every gradient, cuts, document starts, hard gates."""

from __future__ import annotations

import math

import pytest
import torch

from oracles.mlstm_cell import mlstm_cell as oracle
from orrery.core.errors import StateError
from orrery.ops.mlstm import LOWEST, mlstm, mlstm_chunked, mlstm_reference, mlstm_step

BACKENDS = ("torch", "numba")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 3e-5}  # of the largest number of the tensor compared
NAMES = ("q", "k", "v", "i_log", "f_log")


def make(T=50, B=2, H=3, K=4, V=5, dtype=torch.float64, seed=0):
    """Input gates around 1, some large; forget gates from all to next to nothing; a state as from an earlier call."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    operands = {
        "q": normal(B, T, H, K),
        "k": normal(B, T, H, K),
        "v": normal(B, T, H, V),
        "i_log": 3 * normal(B, T, H),
        "f_log": torch.nn.functional.logsigmoid(3 * normal(B, T, H) + 2),
    }
    state = normal(B, H, K, V + 1), normal(B, H)
    starts = torch.rand(B, T, generator=g) < 0.08
    return {n: x.to(dtype) for n, x in operands.items()}, tuple(x.to(dtype) for x in state), starts


def close(got, want, tolerance, what=""):
    want, got = torch.as_tensor(want).double(), got.double()
    assert got.shape == want.shape and torch.isfinite(got).all(), what
    worst = (got - want).abs().max().item() / max(want.abs().max().item(), 1e-30)
    assert worst <= tolerance, f"{what}: {worst:.1e} of the largest number"


def arrays(operands):
    return [operands[name].double().numpy() for name in NAMES]


@pytest.mark.parametrize("eps", [0.0, 1e-3])
def test_reference_is_the_unstabilised_equation(eps):
    operands, _, starts = make(T=30)
    h, (memory, m) = mlstm_reference(**operands, starts=starts, scale=0.3, eps=eps)
    want, C, n, peak = oracle(*arrays(operands), starts.numpy(), 0.3, eps)
    close(h, want, 1e-12)
    close(m, peak, 1e-12)
    close(memory * m.exp()[..., None, None], torch.cat([torch.tensor(C), torch.tensor(n)[..., None]], -1), 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("time", [1, 2, 63, 64, 65, 130])
def test_values_and_gradients_against_the_reference(time, dtype, backend):
    """Gradients of everything, initial state included, through h and both parts of the state."""
    operands, state, starts = make(T=time, seed=time)
    weights = [torch.randn(s, dtype=torch.float64) for s in ((2, time, 3, 5), (2, 3, 4, 6), (2, 3))]
    for given_state, given_starts, eps in ((state, starts, 1e-6), (state, None, 0.1), (None, None, 1e-6)):

        def run(form, kind, state=given_state, **settings):
            leaves = [operands[n].to(kind).requires_grad_() for n in NAMES]
            held = [x.to(kind).requires_grad_() for x in state or ()]
            y, after = form(*leaves, state=tuple(held) or None, **settings)
            outcomes = (y, *after)
            loss = sum((x.double() * w).sum() for x, w in zip(outcomes, weights, strict=True))
            return outcomes, torch.autograd.grad(loss, [*leaves, *held])

        want, slopes = run(mlstm_reference, torch.float64, starts=given_starts, scale=0.5, eps=eps)
        settings = {"starts": given_starts, "scale": 0.5, "eps": eps, "chunk": 16, "backend": backend}
        got, found = run(mlstm_chunked, dtype, **settings)
        for name, mine, other in zip(("h", "memory", "m"), got, want, strict=True):
            close(mine, other, TOLERANCE[dtype], name)
        for name, mine, other in zip((*NAMES, "memory", "m"), found, slopes, strict=False):
            close(mine, other, 3 * TOLERANCE[dtype], f"gradient of {name}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    """Against finite differences; eps is large, so that the way through m is seen."""
    operands, state, _ = make(T=6, B=1, H=2, K=2, V=2)
    starts = torch.zeros(1, 6, dtype=torch.bool)
    starts[0, 4] = True
    leaves = [x.requires_grad_() for x in (*operands.values(), *state)]

    def run(*values):
        y, after = mlstm_chunked(*values[:5], (values[5], values[6]), starts, eps=0.3, chunk=3, backend=backend)
        return y, *after

    assert torch.autograd.gradcheck(run, leaves, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_split_anywhere_and_steps(backend):
    operands, state, starts = make(T=40)
    h, after = mlstm(**operands, state=state, starts=starts, backend=backend)
    for cuts in ((7, 8, 21), range(1, 40)):
        held, rows = state, []
        for low, high in zip((0, *cuts), (*cuts, 40), strict=True):
            piece = {n: x[:, low:high] for n, x in operands.items()}
            row, held = mlstm(**piece, state=held, starts=starts[:, low:high], backend=backend)
            rows.append(row)
        close(torch.cat(rows, 1), h, 1e-11)
        close(held[0] * held[1].exp()[..., None, None], after[0] * after[1].exp()[..., None, None], 1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_and_starts(backend):
    operands, state, starts = make(T=60)
    lengths = torch.tensor([60, 23])
    h, after = mlstm(**operands, state=state, starts=starts, lengths=lengths, chunk=16, backend=backend)
    row = {n: x[1:, :23] for n, x in operands.items()}
    want, end = mlstm(**row, state=tuple(x[1:] for x in state), starts=starts[1:, :23], backend=backend)
    close(h[1:, :23], want, 1e-12)
    close(after[0][1:], end[0], 1e-12)
    close(after[1][1:], end[1], 1e-12)
    _, still = mlstm(**operands, state=state, lengths=torch.tensor([60, 0]), backend=backend)
    close(still[0][1], state[0][1], 1e-15)
    begin = torch.zeros(2, 60, dtype=torch.bool)
    begin[:, 31] = True
    h, after = mlstm(**operands, state=tuple(100 * x for x in state), starts=begin, backend=backend)
    want, end = mlstm(**{n: x[:, 31:] for n, x in operands.items()}, backend=backend)
    close(h[:, 31:], want, 1e-12)
    close(after[0], end[0], 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("f", [-math.inf, math.log(1e-30), -20.0, math.log1p(-1e-7), 0.0], ids=lambda g: f"f{g:.3g}")
@pytest.mark.parametrize("i", [-60.0, 0.0, 60.0], ids=lambda g: f"i{g:g}")
def test_extreme_gates(f, i, dtype, backend):
    """One pair of gates everywhere or in three of ten places; values right, gradients finite."""
    operands, _, _ = make(T=100, dtype=dtype)
    for share in (1.0, 0.3):
        mixed = torch.rand(2, 100, 3, generator=torch.Generator().manual_seed(1)) < share
        chosen = dict(operands, f_log=torch.where(mixed, f, operands["f_log"]), i_log=torch.where(mixed, i, operands["i_log"]))
        h, after = mlstm(**chosen, backend=backend)
        want, *_ = oracle(*arrays(chosen), eps=1e-6)
        close(h, want, TOLERANCE[dtype])
        leaves = [x.clone().requires_grad_() for x in chosen.values()]
        h, after = mlstm(*leaves, backend=backend)
        for name, slope in zip(NAMES, torch.autograd.grad(h.sum() + after[0].sum(), leaves), strict=True):
            assert torch.isfinite(slope).all(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_gates_shut(backend):
    operands, state, _ = make(T=20, dtype=torch.float32)
    shut = dict(operands, i_log=torch.full((2, 20, 3), -math.inf), f_log=torch.full((2, 20, 3), -math.inf))
    h, (memory, m) = mlstm(**shut, state=state, backend=backend)
    assert not h.any() and not memory.any() and (m == LOWEST).all()
    again, _ = mlstm(**operands, state=(memory, m), backend=backend)
    assert torch.isfinite(again).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_drift_over_64k_steps(backend):
    """A decay of 1 - 1e-7 for 65,536 steps; and input gates of 1 whose sum is the normaliser."""
    T, gate = 65_536, math.log1p(-1e-7)
    f_log = torch.full((1, T, 1), gate)
    rate = float(f_log[0, 0, 0].double())
    one, zero = torch.ones(1, T, 1, 1), torch.zeros(1, T, 1, 1)
    state = torch.tensor([[[[3.0, 2.0]]]]), torch.zeros(1, 1)
    h, (memory, m) = mlstm(one, zero, zero, torch.full((1, T, 1), -1e9), f_log, state, eps=0.0, backend=backend)
    close(memory * m.exp(), state[0].double() * math.exp(rate * T), 2e-6)
    close(h[0, -1], torch.tensor([[1.5]]), 2e-6)
    _, (memory, m) = mlstm(one, one, one, torch.zeros(1, T, 1), f_log, backend=backend)
    close(memory[0, 0, 0] * m.exp(), torch.full((1, 2), math.expm1(T * rate) / math.expm1(rate)), 1e-5)


def test_half_precision_and_one_token():
    operands, state, _ = make(T=80, dtype=torch.bfloat16)
    h, after = mlstm(**operands, state=state)
    want, _ = mlstm_reference(**{n: x.double() for n, x in operands.items()}, state=tuple(x.double() for x in state))
    assert h.dtype == torch.bfloat16 and after[0].dtype == after[1].dtype == torch.float32
    close(h, want, 2**-8)
    one = {n: x[:, 0] for n, x in operands.items()}
    y, after = mlstm_step(**one, state=state)
    assert y.dtype == torch.bfloat16 and after[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 5, 3, 9)}, "it needs"),
        ({"i_log": torch.zeros(2, 5, 4)}, "it needs"),
        ({"state": (torch.zeros(2, 3, 4, 5), torch.zeros(2, 3))}, "a state of shapes"),
        ({"starts": torch.zeros(2, 4, dtype=torch.bool)}, "starts of shape"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    operands, _, _ = make(T=5)
    with pytest.raises(StateError, match=message):
        mlstm(**{**operands, **change})
