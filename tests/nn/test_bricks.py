"""Bricks against their formulas, forward and backward, in float64."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from orrery.core.errors import ConfigError
from orrery.nn.contract import Context, Place
from orrery.nn.conv import Canon, ShortConv
from orrery.nn.feedforward import GLU, MLP, FeedForwardConfig
from orrery.nn.norms import LayerNorm, RMSNorm, SimpleRMSNorm, make_norm
from orrery.nn.rotary import cached_table, rotary_table, rotate
from orrery.nn.timeline import plan
from orrery.ops.fused.short_conv import short_conv
from orrery.ops.fused.swiglu import swiglu


def random(*shape, seed=0, grad=True):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_(grad)


def test_rms_norm_is_the_formula():
    x, norm = random(2, 5, 6), RMSNorm(6, eps=1e-3).double()
    norm.weight.data = random(6, seed=1, grad=False)
    expected = x.detach().numpy() / np.sqrt((x.detach().numpy() ** 2).mean(-1, keepdims=True) + 1e-3) * norm.weight.detach().numpy()
    assert np.allclose(norm(x).detach(), expected, atol=1e-14)
    assert torch.autograd.gradcheck(lambda a, w: torch.func.functional_call(norm, {"weight": w}, (a,)), (x, norm.weight))
    assert torch.autograd.gradcheck(SimpleRMSNorm(6, 1e-3), (x,))


def test_rms_norm_of_zero_is_zero():
    assert torch.equal(RMSNorm(4)(torch.zeros(1, 2, 4)), torch.zeros(1, 2, 4))


def test_layer_norm_equals_torch():
    x, own, theirs = random(3, 4, 6), LayerNorm(6).double(), torch.nn.LayerNorm(6).double()
    assert torch.equal(own(x), theirs(x))
    with pytest.raises(ConfigError, match="rmsnorm"):
        make_norm("rmsnrm", 4, 1e-5)


def test_swiglu_gradient():
    x = random(2, 3, 8)
    a, b = x.chunk(2, -1)
    assert torch.allclose(swiglu(x), F.silu(a) * b)
    assert torch.autograd.gradcheck(swiglu, (x,))


@pytest.mark.parametrize("taps", [1, 2, 4])
def test_short_conv_is_a_causal_depthwise_convolution(taps):
    x, w, b = random(2, 9, 3), random(3, taps, seed=1), random(3, seed=2)
    y, last = short_conv(x, w, b)
    reference = F.conv1d(F.pad(x.transpose(1, 2), (taps - 1, 0)), w[:, None], b, groups=3).transpose(1, 2)
    assert torch.allclose(y, reference)
    assert torch.equal(last, F.pad(x, (0, 0, taps - 1, 0))[:, 9:])
    assert torch.autograd.gradcheck(lambda *a: short_conv(*a)[0], (x, w, b))


def test_short_conv_stays_within_documents_and_ignores_padding():
    x, w = random(1, 9, 3), random(3, 4, seed=1)
    starts = torch.zeros(1, 9, dtype=torch.bool)
    starts[0, 4] = True
    y, last = short_conv(x, w, None, None, starts, torch.tensor([6]))
    assert torch.allclose(y[:, :4], short_conv(x[:, :4], w)[0])
    alone, alone_last = short_conv(x[:, 4:6], w)
    assert torch.allclose(y[:, 4:6], alone) and torch.allclose(last, alone_last)
    assert torch.autograd.gradcheck(lambda a, v: short_conv(a, v, None, None, starts)[0], (x, w))


def test_canon_is_the_identity_without_weights_and_continues_its_state():
    canon, x = Canon(5).double(), random(2, 8, 5, grad=False)
    ctx = lambda n: Context(time=plan(None, None, 2, n, torch.device("cpu"))[0])  # noqa: E731
    whole, _ = canon(x, None, ctx(8))
    first, state = canon(x[:, :3], None, ctx(3))
    rest, _ = canon(x[:, 3:], state, ctx(5))
    assert torch.allclose(torch.cat([first, rest], 1), whole)
    torch.nn.init.zeros_(canon.conv.weight)
    assert torch.equal(canon(x, None, ctx(8))[0], x)


def test_convolutions_start_as_pytorch_starts_them():
    torch.manual_seed(0)
    conv = ShortConv(4000, 4)
    bound = 1 / math.sqrt(4)
    assert conv.weight.abs().max() <= bound and conv.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_rotation_turns_pairs_by_position_times_rate():
    x = random(1, 6, 2, 8, grad=False)
    y = rotate(x, rotary_table(torch.arange(6), 8, 100.0, double=True))
    for t in range(6):
        for j in range(4):
            angle = t * 100.0 ** (-2 * j / 8)
            c, s = math.cos(angle), math.sin(angle)
            a, b = x[0, t, :, 2 * j], x[0, t, :, 2 * j + 1]
            assert torch.allclose(y[0, t, :, 2 * j], a * c - b * s) and torch.allclose(y[0, t, :, 2 * j + 1], a * s + b * c)


def test_rotation_keeps_relative_positions_and_the_rest_of_the_head():
    q, k = random(1, 1, 1, 8, grad=False), random(1, 1, 1, 8, seed=1, grad=False)
    at = lambda x, p: rotate(x, rotary_table(torch.tensor([p]), 8, 1e4, double=True))  # noqa: E731
    assert torch.allclose((at(q, 5) * at(k, 3)).sum(), (at(q, 9) * at(k, 7)).sum())
    partial = rotate(q, rotary_table(torch.tensor([5]), 4, 1e4, double=True))
    assert torch.equal(partial[..., 4:], q[..., 4:]) and not torch.equal(partial[..., :4], q[..., :4])
    grad = random(2, 5, 3, 8)
    assert torch.autograd.gradcheck(lambda x: rotate(x, rotary_table(torch.arange(5), 8, 1e4, double=True)), (grad,))


def test_rotary_tables_are_shared_and_equal_what_they_cache():
    positions = torch.tensor([[0, 70], [3, 9]])
    table = cached_table(positions, 71, 8, 1e4, torch.float64)
    assert torch.equal(table, rotary_table(positions, 8, 1e4, double=True))
    with torch.inference_mode():
        cached_table(torch.arange(5), 5, 6, 77.0, torch.float32)
    x = torch.randn(1, 5, 1, 6, requires_grad=True)
    rotate(x, cached_table(torch.arange(5), 5, 6, 77.0, torch.float32)).sum().backward()  # no inference tensor was kept


def test_far_on_in_a_stream_no_table_of_all_positions_is_made(monkeypatch):
    from orrery.nn import rotary

    made = []
    monkeypatch.setattr(rotary, "_table", lambda length, *rest: made.append(length) or rotary_table(torch.arange(length), *rest[:2]))
    for start in (1000, (1 << 40) - 3):
        positions = torch.tensor([[start, start + 1], [5, 6]])
        found = cached_table(positions, start + 2, 8, 1e4, torch.float32)
        assert torch.equal(found, rotary_table(positions, 8, 1e4))
    assert made == [1024]


@pytest.mark.parametrize(("cls", "hidden"), [(MLP, 64), (GLU, 48)])
def test_feed_forward_sizes_and_canon(cls, hidden):
    plain = cls(FeedForwardConfig(), Place(width=16))
    assert plain.hidden == hidden
    part = cls(FeedForwardConfig(hidden=10, activation="gelu", bias=True), Place(width=16, canon="d")).double()
    x = random(2, 7, 16, grad=False)
    whole, _ = part(x)
    first, state = part(x[:, :3])
    assert torch.allclose(torch.cat([first, part(x[:, 3:], state)[0]], 1), whole)
    with pytest.raises(ConfigError, match="gelu"):
        cls(FeedForwardConfig(activation="gellu"), Place(width=16))
