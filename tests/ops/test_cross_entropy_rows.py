"""The compiled softmax of cross-entropy against the torch form in float64; hard logits; the record of backends."""

from __future__ import annotations

import math

import pytest
import torch

from orrery.ops.backend import current_backend, forget_backends, use_backend
from orrery.ops.losses.cross_entropy import linear_cross_entropy
from orrery.ops.losses.cross_entropy_rows import score_rows


def expected(scores, labels, factors, z_loss, softcap):
    """Autograd of the formula in float64."""
    z = scores.double().requires_grad_()
    capped = z if softcap is None else softcap * torch.tanh(z / softcap)
    lse = capped.logsumexp(1)
    nats = lse - capped.gather(1, labels[:, None])[:, 0]
    (gradient,) = torch.autograd.grad((factors.double() * (nats + z_loss * lse.square())).sum(), z)
    return nats.detach(), lse.detach(), gradient


@pytest.mark.parametrize("classes", [1, 3, 64, 1000])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_rows_against_float64(classes, softcap, z_loss):
    torch.manual_seed(0)
    scores, labels, factors = 4 * torch.randn(37, classes), torch.randint(0, classes, (37,)), torch.rand(37)
    nats, lse, gradient = expected(scores, labels, factors, z_loss, softcap)
    found = scores.clone()
    for mine, want in zip((*score_rows(found, labels, factors, z_loss, softcap), found), (nats, lse, gradient), strict=True):
        assert (mine.double() - want).abs().max() <= 3e-6 * max(1.0, want.abs().max().item())
    for mine, want in zip(score_rows(scores.clone(), labels, None, 0.0, softcap), (nats, lse), strict=True):
        assert (mine.double() - want).abs().max() <= 3e-6 * max(1.0, want.abs().max().item())


def test_hard_logits():
    """Far apart, masked with -inf, and NaN, which stays in its row."""
    scores = torch.tensor([[1e4, -1e4, 0.0], [-math.inf, 2.0, 2.0], [0.0, math.nan, 0.0]])
    nats, lse = score_rows(scores, torch.tensor([0, 1, 0]), torch.ones(3), 0.0, None)
    assert nats[:2].tolist() == pytest.approx([0.0, math.log(2)]) and lse[0] == 1e4
    assert scores[0].tolist() == [0.0, 0.0, 0.0] and scores[1].tolist() == pytest.approx([0.0, -0.5, 0.5])
    assert nats[2].isnan()


def test_the_whole_loss_on_both_backends():
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(300, 16), torch.randn(500, 16), torch.randint(0, 500, (300,))
    results = {}
    for name in ("torch", "numba"):
        forget_backends()
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        with use_backend(name):
            loss = linear_cross_entropy(*leaves, labels, softcap=8.0, z_loss=0.01).loss
        results[name] = (loss.detach(), *torch.autograd.grad(loss, leaves))
        assert current_backend()["cross_entropy"] == name
    for mine, want in zip(results["numba"], results["torch"], strict=True):
        torch.testing.assert_close(mine, want, rtol=2e-5, atol=1e-7)
