"""The fused linear cross-entropy against a float64 loop, against torch's own, and against finite differences."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from oracles.cross_entropy import linear_cross_entropy as oracle
from orrery.ops.losses.cross_entropy import (
    IGNORE,
    chunk_rows,
    cross_entropy,
    linear_cross_entropy,
    linear_nats,
    logit_nats,
)

N, D, V = 23, 6, 11


def make(dtype=torch.float64, seed=0, spread=2.0):
    g = torch.Generator().manual_seed(seed)
    hidden = (spread * torch.randn(N, D, generator=g, dtype=torch.float64)).to(dtype)
    weight = torch.randn(V, D, generator=g, dtype=torch.float64).to(dtype)
    bias = torch.randn(V, generator=g, dtype=torch.float64).to(dtype)
    targets = torch.randint(0, V, (N,), generator=g)
    targets[[2, 7, 22]] = IGNORE
    weights = torch.rand(N, generator=g, dtype=torch.float64)
    return hidden, weight, bias, targets, weights


@pytest.mark.parametrize("rows", [1, 5, 23, None])
@pytest.mark.parametrize(
    ("with_bias", "with_weights", "z_loss", "softcap"), list(itertools.product([0, 1], [0, 1], [0.0, 0.1], [None, 3.0]))
)
def test_values_match_the_float64_loop(rows, with_bias, with_weights, z_loss, softcap):
    hidden, weight, bias, targets, weights = make()
    bias, weights = bias if with_bias else None, weights if with_weights else None
    wanted, wanted_nats = oracle(
        hidden.numpy(),
        weight.numpy(),
        targets.numpy(),
        None if bias is None else bias.numpy(),
        None if weights is None else weights.numpy(),
        z_loss,
        softcap,
    )
    options = {"bias": bias, "weights": weights, "z_loss": z_loss, "softcap": softcap, "rows": rows}
    silent = linear_cross_entropy(hidden, weight, targets, **options)
    loud = linear_cross_entropy(hidden.clone().requires_grad_(), weight, targets, **options)
    nats = linear_nats(hidden, weight, targets, bias=bias, softcap=softcap, rows=rows)
    np.testing.assert_allclose(silent.loss.item(), wanted, rtol=1e-13)
    np.testing.assert_allclose(loud.loss.item(), wanted, rtol=1e-13)
    np.testing.assert_allclose(nats.numpy(), wanted_nats, rtol=1e-12, atol=1e-13)
    share = np.where(targets.numpy() == IGNORE, 0.0, 1.0 if weights is None else weights.numpy())
    np.testing.assert_allclose(loud.nats.item(), (wanted_nats * share).sum(), rtol=1e-13)
    np.testing.assert_allclose(loud.weight.item(), share.sum(), rtol=1e-13)


@pytest.mark.parametrize("rows", [4, None])
@pytest.mark.parametrize(
    ("with_weights", "z_loss", "softcap"), list(itertools.product([0, 1], [0.0, 0.1], [None, 3.0]))
)
def test_gradients_by_finite_differences(rows, with_weights, z_loss, softcap):
    hidden, weight, bias, targets, weights = make()
    inputs = [t.requires_grad_() for t in (hidden, weight, bias)]

    def loss(h, w, b):
        return linear_cross_entropy(
            h, w, targets, bias=b, weights=weights if with_weights else None, z_loss=z_loss, softcap=softcap, rows=rows
        ).loss

    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_equal_torch(reduction):
    hidden, weight, bias, targets, _ = make()
    leaves = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    plain = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    (
        3 * linear_cross_entropy(leaves[0], leaves[1], targets, bias=leaves[2], reduction=reduction, rows=7).loss
    ).backward()
    (3 * F.cross_entropy(F.linear(plain[0], plain[1], plain[2]), targets, reduction=reduction)).backward()
    for ours, theirs in zip(leaves, plain, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-14)


def test_gradients_equal_torch_with_class_weights():
    hidden, weight, _, targets, _ = make()
    classes = torch.rand(V, dtype=torch.float64)
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    loss = linear_cross_entropy(ours, weight, targets, weights=classes[targets.clamp(min=0)]).loss
    plain = F.cross_entropy(theirs @ weight.t(), targets, weight=classes)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(torch.autograd.grad(loss, ours), torch.autograd.grad(plain, theirs))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_given_logits(reduction):
    hidden, weight, _, targets, weights = make()
    ours, theirs = (hidden @ weight.t()).requires_grad_(), (hidden @ weight.t()).requires_grad_()
    loss = cross_entropy(ours, targets, reduction=reduction, rows=5)
    plain = F.cross_entropy(theirs, targets, reduction=reduction)
    torch.testing.assert_close(loss.loss, plain)
    torch.testing.assert_close(torch.autograd.grad(loss.loss, ours), torch.autograd.grad(plain, theirs))
    torch.testing.assert_close(
        logit_nats(theirs, targets, rows=5), F.cross_entropy(theirs, targets, reduction="none").detach()
    )
    heavy = cross_entropy(ours, targets, weights=weights, z_loss=0.1)
    fused = linear_cross_entropy(hidden, weight, targets, weights=weights, z_loss=0.1)
    torch.testing.assert_close(heavy.loss, fused.loss)
    assert torch.autograd.gradcheck(
        lambda x: cross_entropy(x, targets, weights=weights, z_loss=0.1, rows=5).loss, [ours]
    )


def test_shapes_and_slices_need_no_copy_by_the_caller():
    hidden = torch.randn(3, 9, D)
    weight = torch.randn(V, D)
    targets = torch.randint(0, V, (3, 10))[:, 1:]
    assert linear_nats(hidden, weight, targets).shape == (3, 9)
    flat = linear_nats(hidden.reshape(-1, D), weight, targets.reshape(-1))
    torch.testing.assert_close(linear_nats(hidden, weight, targets).reshape(-1), flat, rtol=0, atol=0)


def test_a_frozen_head_or_frozen_body_gets_no_gradient():
    hidden, weight, bias, targets, _ = make()
    hidden.requires_grad_()
    linear_cross_entropy(hidden, weight, targets, bias=bias).loss.backward()
    assert hidden.grad is not None
    assert weight.grad is None
    weight.requires_grad_()
    linear_cross_entropy(hidden.detach(), weight, targets).loss.backward()
    assert weight.grad is not None


def test_backward_twice_gives_the_same_gradient():
    hidden, weight, _, targets, _ = make()
    hidden.requires_grad_()
    loss = linear_cross_entropy(hidden, weight, targets).loss
    (first,) = torch.autograd.grad(loss, hidden, torch.tensor(2.0, dtype=torch.float64), retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, hidden, torch.tensor(2.0, dtype=torch.float64))
    torch.testing.assert_close(first, kept, rtol=0, atol=0)
    torch.testing.assert_close(second, kept, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, hidden)


def test_when_no_row_counts_the_loss_is_zero():
    hidden, weight, _, targets, _ = make()
    hidden.requires_grad_()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(targets, IGNORE)).loss
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad.abs().max().item() == 0


def test_ignored_rows_may_hold_anything():
    hidden, weight, _, targets, _ = make()
    clean = linear_cross_entropy(hidden, weight, targets).loss
    hidden[[2, 7, 22]] = float("nan")
    hidden.requires_grad_()
    loss = linear_cross_entropy(hidden, weight, targets).loss
    loss.backward()
    torch.testing.assert_close(loss.detach(), clean, rtol=0, atol=0)
    assert hidden.grad.isfinite().all()


def test_huge_logits_stay_finite():
    hidden = torch.full((4, 2), 1e4)
    weight = torch.tensor([[1e3, 1e3], [-1e3, 1e3], [0.0, 0.0]])
    targets = torch.tensor([0, 1, 2, 0])
    hidden.requires_grad_()
    loss = linear_cross_entropy(hidden, weight, targets).loss
    loss.backward()
    torch.testing.assert_close(loss.detach(), F.cross_entropy(hidden.detach() @ weight.t(), targets))
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize("way", ["autocast", "bf16 weights"])
def test_bfloat16_sums_in_float32(way):
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(600, 64, generator=g), 0.2 * torch.randn(512, 64, generator=g)
    targets = torch.randint(0, 512, (600,), generator=g)
    low_h, low_w = hidden.bfloat16(), weight.bfloat16()
    exact_h, exact_w = low_h.double().requires_grad_(), low_w.double().requires_grad_()
    exact = F.cross_entropy(exact_h @ exact_w.t(), targets)
    exact.backward()
    if way == "autocast":
        ours_h, ours_w = low_h.float().requires_grad_(), low_w.float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            result = linear_cross_entropy(ours_h, ours_w, targets, rows=100)
    else:
        ours_h, ours_w = low_h.clone().requires_grad_(), low_w.clone().requires_grad_()
        result = linear_cross_entropy(ours_h, ours_w, targets, rows=100)
    result.loss.backward()
    assert result.loss.dtype == torch.float32
    assert ours_w.grad.dtype == ours_w.dtype
    assert abs(result.loss.item() - exact.item()) < 2e-3 * exact.item()  # logits carry bfloat16's 2^-9 each
    for ours, wanted in ((ours_h, exact_h), (ours_w, exact_w)):
        assert (ours.grad.double() - wanted.grad).norm() < 1e-2 * wanted.grad.norm()


def test_impossible_input_is_named():
    hidden, weight, _, targets, weights = make()
    with pytest.raises(IndexError, match="a target is 11, but there are 11 classes"):
        linear_cross_entropy(hidden, weight, torch.full_like(targets, V))
    with pytest.raises(IndexError, match="a target is -5"):
        linear_nats(hidden, weight, torch.full_like(targets, -5))
    with pytest.raises(ValueError, match="do not fit"):
        linear_cross_entropy(hidden, weight, targets[:-1])
    with pytest.raises(ValueError, match="width"):
        linear_cross_entropy(hidden[:, :-1], weight, targets)
    with pytest.raises(ValueError, match="weights"):
        linear_cross_entropy(hidden, weight, targets, weights=weights[:3])
    with pytest.raises(ValueError, match="reduction"):
        linear_cross_entropy(hidden, weight, targets, reduction="none")


def test_chunks_cover_the_rows_evenly():
    cpu = torch.device("cpu")
    assert chunk_rows(10, 100, cpu) == 10
    rows = chunk_rows(4096, 8192, cpu)
    assert rows * 8192 <= 1 << 22
    assert -(-4096 // rows) * rows - 4096 < rows
    assert chunk_rows(0, 8192, cpu) == 1


MEMORY = """
import sys, torch
import torch.nn.functional as F
from orrery.ops.losses.cross_entropy import linear_cross_entropy
torch.set_num_threads(1)
def mark():  # of this process alone; getrusage would begin at its parent's
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
h, w, t = torch.randn(4096, 8).requires_grad_(), torch.randn(8192, 8).requires_grad_(), torch.randint(0, 8192, (4096,))
linear_cross_entropy(h[:256], w, t[:256]).loss.backward()
before = mark()
(linear_cross_entropy(h, w, t).loss if sys.argv[1] == "fused" else F.cross_entropy(h @ w.t(), t)).backward()
print(mark() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the high-water mark that Linux keeps")
def test_the_logits_of_the_batch_are_never_held():
    """Peak resident memory of one step: 134 MB of logits the plain way, a few chunks of 8 MB here."""
    peak = {
        way: int(subprocess.run([sys.executable, "-c", MEMORY, way], capture_output=True, text=True, check=True).stdout)
        for way in ("fused", "plain")
    }
    assert peak["plain"] > 4 * 4096 * 8192
    assert peak["fused"] < 4 * 4096 * 8192 / 3
