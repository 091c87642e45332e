"""The EGRU loop and its derived gradient against autograd through the reference with the same surrogate."""

from __future__ import annotations

import pytest
import torch

from orrery.core.errors import StateError
from orrery.ops.egru import egru_reference, egru_sequence, egru_step, event

B, H = 4, 9


def operands(time, seed=0):
    g = torch.Generator().manual_seed(seed)
    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)
    state = (0.3 * draw(B, H), 0.3 * draw(B, H))
    return [1.5 * draw(B, time, 3 * H), 0.5 * draw(3 * H, H), 0.3 * draw(H).abs(), 0.3 * draw(3 * H)], state


def gradients(found, leaves, seed=3):
    g = torch.Generator().manual_seed(seed)
    y, (h, last) = found
    total = sum((x * torch.randn(x.shape, generator=g, dtype=torch.float64)).sum() for x in (y, h, last))
    return torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("time", [1, 2, 33])
@pytest.mark.parametrize("with_starts", [False, True])
@pytest.mark.parametrize(("backend", "dtype", "limit"), [
    ("torch", torch.float64, 1e-12), ("numba", torch.float32, 2e-5), ("torch", torch.float32, 2e-5),
])  # fmt: skip
def test_forms_and_gradients(time, with_starts, backend, dtype, limit):
    parts, state = operands(time)
    starts = torch.rand(B, time, generator=torch.Generator().manual_seed(1)) < 0.2 if with_starts else None
    exact = [x.clone().requires_grad_() for x in (*parts, *state)]
    want = egru_reference(*exact[:4], tuple(exact[4:]), starts, 0.6, 1.3)
    own = [x.to(dtype).requires_grad_() for x in (*parts, *state)]
    got = egru_sequence(*own[:4], tuple(own[4:]), starts, None, 0.6, 1.3, backend=backend)
    share = (want[0] != 0).double().mean()
    assert time == 1 or 0.1 < share < 0.6  # both kinds of units are there
    for a, b in zip((got[0], *got[1]), (want[0], *want[1]), strict=True):
        assert (a - b).abs().max() <= limit * b.abs().max().clamp(min=1e-3)
    for a, b in zip(gradients(got, own), gradients(want, exact), strict=True):
        assert (a - b).abs().max() <= limit * b.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize(("backend", "dtype", "limit"), [("torch", torch.float64, 1e-11), ("numba", torch.float32, 3e-5)])
def test_padding_leaves_the_state(backend, dtype, limit):
    parts, state = operands(12)
    lengths = torch.tensor([12, 5, 1, 0])
    leaves = [x.to(dtype).requires_grad_() for x in (*parts, *state)]
    got = egru_sequence(*leaves[:4], tuple(leaves[4:]), None, lengths, backend=backend)
    pieces, total = [], gradients(got, leaves)
    for row, n in enumerate(lengths.tolist()):
        before = tuple(s[row : row + 1] for s in leaves[4:])
        y, end = egru_reference(leaves[0][row : row + 1, :n], *leaves[1:4], before) if n else (leaves[0][row : row + 1, :0, :H], before)
        pieces.append((torch.nn.functional.pad(y, (0, 0, 0, 12 - n)), end))
    want = torch.cat([y for y, _ in pieces]), tuple(torch.cat([end[i] for _, end in pieces]) for i in (0, 1))
    for a, b in zip((got[0], *got[1]), (want[0], *want[1]), strict=True):
        assert (a - b).abs().max() < limit
    for a, b in zip(total, gradients(want, leaves), strict=True):
        assert (a - b).abs().max() < limit * b.abs().max()


def test_without_events_and_resets_it_is_a_gru():
    """A threshold that none reaches silences all; one below all values makes every unit speak and, being 0, resets none."""
    (gates, weight, _, bias), _ = operands(20)
    y, (h, last) = egru_sequence(gates, weight, torch.full((H,), 1e9, dtype=torch.float64), bias)
    assert not y.any() and not last.any() and h.any()
    one = egru_step(gates[:, 0], weight, torch.zeros(H, dtype=torch.float64), bias, (torch.ones(B, H).double() * 50, torch.ones(B, H).double()))
    assert (one[0] == one[1][0]).all() and (one[0] > 0).any()


def test_the_surrogate_is_a_triangle():
    u = torch.linspace(-2, 2, 41, dtype=torch.float64, requires_grad=True)
    o = event(u, 0.5, 2.0)
    (slope,) = torch.autograd.grad(o.sum(), u)
    assert torch.equal(o, (u > 0).double()) and torch.allclose(slope, 0.5 * (1 - 2 * u.detach().abs()).clamp(min=0))


def test_64k_tokens_stay_bounded():
    (_, weight, theta, bias), _ = operands(1)
    torch.manual_seed(0)
    long = torch.randn(1, 65536, 3 * H)
    y, (h, _) = egru_sequence(long, weight.float(), theta.float(), bias.float())
    assert y.isfinite().all() and y.abs().max() <= 1 and h.abs().max() <= 1


@pytest.mark.parametrize("wrong", [{"theta": torch.zeros(3)}, {"state": (torch.zeros(2, H), torch.zeros(2, H))}])
def test_shapes_that_do_not_fit(wrong):
    (gates, weight, theta, bias), _ = operands(3)
    with pytest.raises(StateError, match="egru"):
        egru_sequence(gates, weight, wrong.get("theta", theta), bias, wrong.get("state"))
