"""The sLSTM: every form against an unstabilised float64 loop, every gradient, cuts, document starts, hard gates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from orrery.core.errors import StateError
from orrery.ops.slstm import slstm, slstm_initial, slstm_reference

BACKENDS = ("torch", "numba")
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5}


def make(T=40, B=3, H=2, K=5, dtype=torch.float64, seed=0):
    """Gates, R, a state as from an earlier call, document starts, row lengths."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    state = normal(B, H, K), normal(B, H, K), 1 + normal(B, H, K).abs(), normal(B, H, K)
    starts = torch.rand(B, T, generator=g) < 0.1
    lengths = torch.tensor([T, max(1, T // 2), 0])
    return 2 * normal(B, T, H, 4 * K), 0.5 * normal(H, K, 4 * K), state, starts, lengths


def close(got, want, tolerance, what=""):
    want, got = torch.as_tensor(want).double(), got.double()
    assert got.shape == want.shape and torch.isfinite(got).all(), what
    worst = (got - want).abs().max().item() / max(want.abs().max().item(), 1e-30)
    assert worst <= tolerance, f"{what}: {worst:.1e} of the largest number"


def plain(gates, weight, starts):
    """Equations 8 to 14 with exp and sigmoid as they stand."""
    gates, weight = gates.double().numpy(), weight.double().numpy()
    batch, time, heads, total = gates.shape
    out, sigma = np.zeros((batch, time, heads, total // 4)), lambda x: 1 / (1 + np.exp(-x))
    for b in range(batch):
        for a in range(heads):
            h = c = n = np.zeros(total // 4)
            for t in range(time):
                if starts[b, t]:
                    h = c = n = np.zeros(total // 4)
                i, f, z, o = (gates[b, t, a] + h @ weight[a]).reshape(4, -1)
                c = sigma(f) * c + np.exp(i) * np.tanh(z)
                n = sigma(f) * n + np.exp(i)
                h = out[b, t, a] = sigma(o) * c / n
    return out


def test_reference_is_the_unstabilised_equation():
    gates, weight, _, starts, _ = make()
    close(slstm_reference(gates, weight, starts=starts)[0], plain(gates, weight, starts.numpy()), 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("time", [1, 2, 33])
def test_values_and_gradients_against_the_reference(time, dtype, backend):
    """Row by row, since the reference knows no padding; gradients through h and all parts of the state."""
    gates, weight, state, starts, lengths = make(T=time, seed=time)
    torch.manual_seed(time)
    weights = torch.randn(3, time, 2, 5, dtype=torch.float64), torch.randn(4, 3, 2, 5, dtype=torch.float64)
    for given, marks, ends in ((state, starts, lengths), (state, None, None), (None, starts, None)):
        leaves = [x.clone().requires_grad_() for x in (gates, weight, *(given or ()))]
        total = 0.0
        for b in range(3):
            end = time if ends is None else int(ends[b])
            held = tuple(x[b : b + 1] for x in leaves[2:]) or slstm_initial(1, 2, 5, dtype=torch.float64)
            if end:
                first = None if marks is None else marks[b : b + 1, :end]
                y, held = slstm_reference(leaves[0][b : b + 1, :end], leaves[1], held, first)
                total = total + (y[0] * weights[0][b, :end]).sum()
            total = total + sum((x[0] * w[b]).sum() for x, w in zip(held, weights[1], strict=True))
        want = torch.autograd.grad(total, leaves)
        low = [x.detach().to(dtype).clone().requires_grad_() for x in leaves]
        y, held = slstm(low[0], low[1], tuple(low[2:]) or None, marks, ends, backend=backend)
        mine = (y.double() * weights[0]).sum() + sum((x.double() * w).sum() for x, w in zip(held, weights[1], strict=True))
        close(mine, total.detach(), TOLERANCE[dtype])
        for number, (got, other) in enumerate(zip(torch.autograd.grad(mine, low), want, strict=True)):
            close(got, other, 3 * TOLERANCE[dtype], f"gradient {number}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_split_anywhere_and_steps(backend):
    gates, weight, state, starts, _ = make()
    y, after = slstm(gates, weight, state, starts, backend=backend)
    for cuts in ((11, 12, 30), range(1, 40)):
        held, rows = state, []
        for low, high in zip((0, *cuts), (*cuts, 40), strict=True):
            marks = starts[:, low:high]
            row, held = slstm(gates[:, low:high], weight, held, marks if marks.any() else None, backend=backend)
            rows.append(row)
        close(torch.cat(rows, 1), y, 1e-12)
        for mine, want in zip(held, after, strict=True):
            close(mine, want, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("i", [-60.0, 0.0, 60.0, 1e4])
@pytest.mark.parametrize("f", [-1e4, math.log(1e-30), 16.1, 1e4])
def test_extreme_gates(i, f, backend):
    """Everywhere, and in some places; a forget gate of 16.1 is 1 - 1e-7. (Single precision knows 1e4 to 1e-3 only.)"""
    gates, weight, _, _, _ = make(T=60, dtype=torch.float32)
    for share in (1.0, 0.3):
        mixed = torch.rand(3, 60, 1, generator=torch.Generator().manual_seed(1)) < share
        hard = gates.clone()
        hard[..., :5] = torch.where(mixed[..., None], i, hard[..., :5])
        hard[..., 5:10] = torch.where(mixed[..., None], f, hard[..., 5:10])
        leaves = hard.requires_grad_(), weight.clone().requires_grad_()
        y, after = slstm(*leaves, backend=backend)
        want, _ = slstm_reference(hard.detach().double(), weight.double())
        close(y, want, 2e-5 if i < 1e4 else 2e-3)
        for slope in torch.autograd.grad(y.sum() + after[1].sum(), leaves):
            assert torch.isfinite(slope).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_drift_over_many_steps(backend):
    """A cell kept by gates of 1 - 1e-7 (f = 16.1) for 65,536 steps (8,192 in torch's loop) without input; h is c / n all the while."""
    T = 65_536 if backend == "numba" else 8_192
    gates = torch.zeros(1, T, 1, 4)
    gates[..., 0], gates[..., 1], gates[..., 3] = -1e4, 16.118095, 1e4
    state = tuple(torch.full((1, 1, 1), x) for x in (0.0, 3.0, 2.0, 0.0))
    y, (_, c, _, m) = slstm(gates, torch.zeros(1, 1, 4), state, backend=backend)
    close(y[0, -1, 0], torch.tensor([1.5]), 1e-6)
    rate = float(torch.nn.functional.logsigmoid(gates[0, 0, 0, 1].double()))
    assert (c * m.exp()).item() == pytest.approx(3 * math.exp(T * rate), rel=1e-5)


def test_half_precision_and_shapes():
    gates, weight, state, _, _ = make(dtype=torch.bfloat16)
    y, after = slstm(gates, weight, state)
    assert y.dtype == torch.bfloat16 and all(x.dtype == torch.float32 for x in after)
    with pytest.raises(StateError, match="it needs"):
        slstm(gates, weight[:1])
    with pytest.raises(StateError, match="state of shape"):
        slstm(gates, weight, tuple(x[:2] for x in state))
    with pytest.raises(StateError, match="starts of shape"):
        slstm(gates, weight, state, torch.zeros(3, 2, dtype=torch.bool))
