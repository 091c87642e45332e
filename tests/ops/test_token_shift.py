"""RWKV's token shift: both backends against the equation, gradients, cuts, document starts, padding."""

from __future__ import annotations

import pytest
import torch

from orrery.ops.fused.token_shift import token_mix, token_mix_reference

BACKENDS = ("torch", "numba")


def make(batch=3, time=150, width=5, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, time, width, generator=g, dtype=torch.float64).to(dtype)
    ratios = torch.rand(3, width, generator=g, dtype=torch.float64).to(dtype)
    before = torch.randn(batch, width, generator=g, dtype=torch.float64).to(dtype)
    return x, ratios, before, torch.rand(batch, time, generator=g) < 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_equation(backend):
    x, ratios, before, starts = make(time=70)
    mixed, last = token_mix(x, ratios, before, starts, backend=backend)
    for row in range(len(x)):
        for t in range(x.shape[1]):
            earlier = before[row] if t == 0 else x[row, t - 1]
            earlier = torch.zeros_like(earlier) if starts[row, t] else earlier
            for n in range(3):
                want = ratios[n] * x[row, t] + (1 - ratios[n]) * earlier
                torch.testing.assert_close(mixed[n][row, t], want)
    assert torch.equal(last, x[:, -1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend):
    x, ratios, before, starts = make(time=7, width=2)
    for marks, lengths in ((None, None), (starts, torch.tensor([7, 3, 0]))):
        inputs = [t.clone().requires_grad_() for t in (x, ratios, before)]

        def function(*tensors, marks=marks, lengths=lengths):
            mixed, last = token_mix(*tensors, marks, lengths, backend=backend)
            return (*mixed, last)

        torch.autograd.gradcheck(function, inputs)


def test_long_gradients_agree_in_float32():
    x, ratios, before, starts = make(dtype=torch.float32, width=40)
    found = []
    for backend in BACKENDS:
        inputs = [t.clone().requires_grad_() for t in (x, ratios, before)]
        mixed, _ = token_mix(*inputs, starts, backend=backend)
        found.append(torch.autograd.grad(sum(m.pow(n + 2).sum() for n, m in enumerate(mixed)), inputs))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_cut_and_padding():
    x, ratios, before, starts = make()
    whole, _ = token_mix(x, ratios, before, starts)
    left, middle = token_mix(x[:, :61], ratios, before, starts[:, :61])
    right, _ = token_mix(x[:, 61:], ratios, middle, starts[:, 61:])
    for one, two, want in zip(left, right, whole, strict=True):
        torch.testing.assert_close(torch.cat([one, two], 1), want)
    _, last = token_mix(x, ratios, before, None, torch.tensor([150, 4, 0]))
    assert torch.equal(last, torch.stack([x[0, 149], x[1, 3], before[2]]))


def test_bfloat16_runs_in_torch():
    x, ratios, before, _ = make(dtype=torch.bfloat16)
    mixed, _ = token_mix(x, ratios.float(), before)
    want = token_mix_reference(x.double(), ratios.double(), before.double())
    assert mixed[0].dtype == torch.bfloat16
    torch.testing.assert_close(mixed[1].double(), want[1], rtol=0.02, atol=0.02)
