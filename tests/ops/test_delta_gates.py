"""The elementwise functions around the recurrences of RWKV-7, KDA, minGRU and minLSTM: compiled loops against float64."""

from __future__ import annotations

import pytest
import torch

from orrery.ops.backend import current_backend, forget_backends
from orrery.ops.fused import kda_gates as kda
from orrery.ops.fused import mingru_terms as mingru
from orrery.ops.fused import rwkv7_gates as rwkv7

pytest.importorskip("numba")
HEADS, SIZE = 3, 20


def compare(op, fast, slow, inputs, rest=(), rtol=3e-6):
    """Outputs and gradients of a fixed random functional, float32 compiled against float64 formulas."""
    exact = [x.double().requires_grad_() for x in inputs]
    single = [x.clone().requires_grad_() for x in inputs]
    forget_backends()
    got, wanted = fast(*single, *rest), slow(*exact, *rest)
    assert current_backend()[op] == "numba"
    got, wanted = ((x,) if isinstance(x, torch.Tensor) else x for x in (got, wanted))
    weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64) for x in wanted]
    found = torch.autograd.grad(sum((x * w.float()).sum() for x, w in zip(got, weights, strict=True)), single)
    right = torch.autograd.grad(sum((x * w).sum() for x, w in zip(wanted, weights, strict=True)), exact)
    for number, (a, b) in enumerate(zip((*got, *found), (*wanted, *right), strict=True)):
        assert torch.isfinite(a).all()
        assert (a.double() - b).abs().max() <= rtol * b.abs().max().clamp(min=1e-3), number


def normal(*shape, seed=0, size=1.0):
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _however_small(monkeypatch):
    monkeypatch.setattr(kda, "SMALL", 1)
    monkeypatch.setattr(rwkv7, "SMALL", 1)
    monkeypatch.setattr(mingru, "SMALL", 1)


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_rwkv7_gates(size):
    inputs = [normal(2, 37, HEADS * SIZE, seed=n, size=size) for n in range(3)] + [normal(HEADS * SIZE, seed=n) for n in (3, 4)]
    compare("rwkv7_gates", rwkv7.rwkv7_gates, rwkv7.rwkv7_gates_reference, inputs, (HEADS,))


def test_rwkv7_gates_of_a_key_of_zeros():
    inputs = [torch.zeros(2, 5, HEADS * SIZE), *(normal(2, 5, HEADS * SIZE, seed=n) for n in (1, 2)), *(normal(HEADS * SIZE) for _ in "sa")]
    for x in rwkv7.rwkv7_gates(*(x.requires_grad_() for x in inputs), HEADS)[:3]:
        assert not x.any()


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_rwkv7_out(size):
    inputs = [normal(2, 37, HEADS, SIZE, seed=n, size=size) for n in range(4)] + [normal(2, 37, HEADS * SIZE, seed=4)]
    inputs += [normal(HEADS * SIZE, seed=n) for n in (5, 6, 7)]
    compare("rwkv7_out", rwkv7.rwkv7_out, rwkv7.rwkv7_out_reference, inputs, (1e-3,), rtol=1e-5)


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("bound", [0.0, -5.0])
def test_kda_gates(size, padded, bound):
    inputs = [normal(2, 37, 3 * HEADS * SIZE, size=size), normal(2, 37, HEADS, seed=1, size=size), normal(2, 37, HEADS * SIZE, seed=2, size=size)]
    inputs += [normal(HEADS, seed=3), normal(HEADS * SIZE, seed=4)]
    valid = (torch.arange(37) < torch.tensor([[37], [11]])) if padded else None
    compare("kda_gates", kda.kda_gates, kda.kda_gates_reference, inputs, (2.0, valid, bound), rtol=1e-5)


@pytest.mark.parametrize("lstm", [False, True])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0])
def test_mingru_terms(lstm, size):
    def formulas(p, lstm):
        v, k = mingru.mingru_parts(p, lstm)
        return -torch.nn.functional.softplus(k), torch.sigmoid(k) * torch.where(v >= 0, v + 0.5, torch.sigmoid(v))

    p = normal(2, 37, (3 if lstm else 2) * 20, size=size)
    compare("mingru_terms", mingru.mingru_terms, formulas, [p], (lstm,))
    wide = p.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: mingru.mingru_terms(p, lstm), wide[:1, :3] if size == 1.0 else wide[:1, :1])
