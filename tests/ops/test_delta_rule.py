"""The delta rule: every form against a float64 loop, gradients against autograd of the loop and finite differences."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from oracles.delta_rule import delta_rule as oracle
from orrery.core.errors import ConfigError, OrreryError
from orrery.ops import delta_rule as module
from orrery.ops.delta_rule import delta_rule, delta_rule_chunked, delta_rule_reference, delta_rule_step

NAMES = ("q", "k", "v", "beta", "g_log", "state")
LENGTHS = [1, 2, 63, 64, 65, 100, 257]


def make(time, batch=2, heads=2, key=4, value=6, dtype=torch.float64, seed=0, decay=0.3, beta=2.0, normalise=True):
    """Inputs by name. Keys of norm 1 (or up to about 1), beta in [0, 2], decays from nothing to e^-3 a token."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    k = F.normalize(normal(batch, time, heads, key), dim=-1)
    made = {
        "q": normal(batch, time, heads, key),
        "k": k if normalise else k * torch.rand(batch, time, heads, 1, generator=rng, dtype=torch.float64),
        "v": normal(batch, time, heads, value),
        "beta": beta * torch.rand(batch, time, heads, generator=rng, dtype=torch.float64),
        "g_log": -decay * normal(batch, time, heads).abs(),
        "state": normal(batch, heads, key, value),
    }
    return {name: x.to(dtype).requires_grad_() for name, x in made.items()}


def some_starts(time, batch=2, seed=0):
    starts = torch.rand(batch, time, generator=torch.Generator().manual_seed(seed)) < 0.15
    starts[0, 0] = True
    return starts


def loop(inputs, **more):
    arrays = {name: None if x is None else x.detach().double().numpy() for name, x in inputs.items()}
    return oracle(**arrays, **more)


def gradients(function, inputs, **more):
    """Outputs and the gradients of a fixed random functional of both of them."""
    y, final = function(**inputs, **more)
    rng = torch.Generator().manual_seed(9)
    total = (y * torch.randn(y.shape, generator=rng, dtype=torch.float64)).sum()
    total = total + (final * torch.randn(final.shape, generator=rng, dtype=torch.float64)).sum()
    wanted = [x for x in inputs.values() if x is not None]
    return y, final, torch.autograd.grad(total, wanted)


def close(got, wanted, rtol):
    """Relative to the largest number, as rounding is."""
    got, wanted = torch.as_tensor(got).detach().double(), torch.as_tensor(wanted).detach().double()
    assert got.shape == wanted.shape
    assert torch.isfinite(got).all()
    error, size = (got - wanted).abs().max().item(), max(wanted.abs().max().item(), 1e-30)
    assert error <= rtol * size, f"off by {error:.3e} of {size:.3e}"


@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("with_starts", [False, True])
def test_every_form_is_the_float64_loop(time, with_starts):
    inputs = make(time)
    starts = some_starts(time) if with_starts else None
    y, final = loop(inputs, starts=None if starts is None else starts.numpy(), scale=0.5)
    for form in (delta_rule, delta_rule_reference, delta_rule_chunked):
        got = form(**inputs, starts=starts, scale=0.5)
        close(got[0], y, 1e-12)
        close(got[1], final, 1e-12)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("without", [(), ("g_log",), ("state",), ("g_log", "state")])
def test_gradients_are_the_loop_s(time, dtype, rtol, without):
    """Both forms in this type against autograd of the equation in float64; q's decay and state may be absent."""
    exact = make(time) | dict.fromkeys(without)
    inputs = make(time, dtype=dtype) | dict.fromkeys(without)
    starts = some_starts(time) if time % 2 else None
    y, final, wanted = gradients(delta_rule_reference, exact, starts=starts)
    got_y, got_final, got = gradients(delta_rule, inputs, starts=starts)
    assert got_y.dtype == dtype and got_final.dtype == dtype
    close(got_y, y, rtol)
    close(got_final, final, rtol)
    for mine, right in zip(got, wanted, strict=True):
        assert mine.dtype == dtype
        close(mine, right, rtol)


@pytest.mark.parametrize("with_decay", [True, False])
@pytest.mark.parametrize("time", [1, 7])
def test_gradients_are_finite_differences(time, with_decay):
    inputs = list(make(time, batch=1, key=3, value=2).values())
    starts = torch.zeros(1, time, dtype=torch.bool)
    starts[0, time // 2] = time > 1
    gate = (inputs[4],) if with_decay else ()

    def function(q, k, v, beta, state, *g_log):
        return delta_rule(q, k, v, beta, g_log[0] if g_log else None, state, starts, chunk=3)

    assert torch.autograd.gradcheck(function, (*inputs[:4], inputs[5], *gate))


@given(
    time=st.integers(1, 90),
    cuts=st.lists(st.integers(0, 90), max_size=3),
    chunk=st.sampled_from([None, 1, 5, 16, 128]),
    seed=st.integers(0, 3),
)
def test_any_split_gives_the_same(time, cuts, chunk, seed):
    """Carrying the state over cuts, whatever the chunk: the values of the unbroken run."""
    inputs = make(time, batch=1, seed=seed)
    starts = some_starts(time, batch=1, seed=seed)
    y, final = delta_rule_reference(**inputs, starts=starts)
    state, parts, edges = inputs["state"], [], sorted({0, time, *(c for c in cuts if c < time)})
    for a, b in itertools.pairwise(edges):
        piece = {name: inputs[name][:, a:b] for name in NAMES[:-1]}
        part, state = delta_rule(**piece, state=state, starts=starts[:, a:b], chunk=chunk)
        parts.append(part)
    close(torch.cat(parts, 1), y, 1e-12)
    close(state, final, 1e-12)


def test_steps_are_the_sequence():
    inputs = make(20, dtype=torch.float32)
    starts = some_starts(20)
    y, final = loop(inputs, starts=starts.numpy())
    state = inputs["state"]
    for t in range(20):
        piece = {name: inputs[name][:, t : t + 1] for name in NAMES[:-1]}
        part, state = delta_rule_step(**piece, state=state, starts=starts[:, t : t + 1])
        close(part[:, 0], y[:, t], 1e-5)
    close(state, final, 1e-5)


@pytest.mark.parametrize("section", [1, 600, 2000])
def test_sections_change_nothing(monkeypatch, section):
    """On a CPU the work is cut by rows and by time; the default cut leaves these inputs whole."""
    inputs = make(100, batch=3, dtype=torch.float64)
    whole = gradients(delta_rule, inputs, chunk=16)
    monkeypatch.setattr(module, "_SECTION", section)
    assert len(list(module._sections(inputs["k"], inputs["v"], 16))) > 1
    parts = gradients(delta_rule, inputs, chunk=16)
    close(parts[0], whole[0], 1e-13)
    close(parts[1], whole[1], 1e-13)
    for mine, right in zip(parts[2], whole[2], strict=True):
        close(mine, right, 1e-13)


GATES = {
    "forget all": -math.inf,
    "underflow": -1e30,
    "1e-30": math.log(1e-30),
    "1 - 1e-7": math.log1p(-1e-7),
    "keep all": 0.0,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gate", list(GATES))
@pytest.mark.parametrize("everywhere", [True, False])
def test_extreme_decays(gate, everywhere, dtype):
    """Exact at both ends, and one extreme gate costs its neighbours no digits."""
    inputs = make(70, dtype=dtype, decay=0.01)
    g_log = inputs["g_log"].detach().clone()
    g_log[:, :: 1 if everywhere else 7] = GATES[gate]
    inputs["g_log"] = g_log.requires_grad_()
    rtol = 1e-11 if dtype == torch.float64 else 2e-5
    y, final = loop(inputs)
    got_y, got_final, got = gradients(delta_rule, inputs)
    close(got_y, y, rtol)
    close(got_final, final, rtol)
    exact = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    wanted = gradients(delta_rule_reference, exact)[2]
    for name, mine, right in zip(NAMES, got, wanted, strict=True):
        assert torch.isfinite(mine).all(), name
        size = 1.0 if name == "g_log" else right.abs().max().item()  # nothing flows through a closed gate
        assert (mine - right).abs().max().item() <= 10 * rtol * max(size, 1.0), name


@pytest.mark.parametrize("strength", [0.2, 3.0, 6.0, 50.0])
def test_strong_decays_leave_no_denormals(monkeypatch, strength):
    """Products of two small decays would be denormal numbers, which slowed the op down by four to five times."""
    seen = []

    def watched(*args):
        y, kept = forward(*args)
        seen.extend([y, *(x for x in kept if x is not None)])
        return y, kept

    forward = module._forward_section
    monkeypatch.setattr(module, "_forward_section", watched)
    inputs = make(128, dtype=torch.float32) | {"state": None}
    inputs["g_log"] = -strength * torch.rand(2, 128, 2, generator=torch.Generator().manual_seed(0))
    y, _ = delta_rule(**inputs)
    close(y, loop(inputs)[0], 2e-5)
    assert len(seen) == 10
    for x in seen:
        assert not ((x != 0) & (x.abs() < torch.finfo(torch.float32).tiny)).any()


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("keys", ["equal", "opposite", "random", "short"])
def test_extreme_corrections(beta, keys):
    """Equal keys with beta 1 or 2 are where a power series for the inverse loses every digit; substitution keeps them."""
    inputs = make(130, dtype=torch.float32, decay=0.001, normalise=keys != "short")
    k = inputs["k"].detach().clone()
    if keys in ("equal", "opposite"):
        k[:] = k[:, :1]
    if keys == "opposite":
        k[:, 1::2] *= -1
    inputs["k"] = k.requires_grad_()
    inputs["beta"] = torch.full_like(inputs["beta"], beta).requires_grad_()
    y, final, got = gradients(delta_rule, inputs)
    exact = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    right_y, right_final, wanted = gradients(delta_rule_reference, exact)
    close(right_y, loop(inputs)[0], 1e-9)
    close(y, right_y, 1e-4)
    close(final, right_final, 1e-4)
    for mine, right in zip(got, wanted, strict=True):
        assert (mine - right).abs().max() <= 2e-4 * max(1.0, right.abs().max().item())


def test_beta_zero_keeps_the_state_bit_for_bit():
    """Padding is beta 0 and g_log 0."""
    inputs = make(65, dtype=torch.float32)
    still = torch.zeros_like(inputs["beta"])
    final = delta_rule(inputs["q"], inputs["k"], inputs["v"], still, still, inputs["state"])[1]
    assert torch.equal(final, inputs["state"])


def test_long_memory_does_not_drift():
    """65,536 tokens that rotate a state without loss (beta 2, no decay): float32 stays near float64 and keeps the norm."""
    rng = torch.Generator().manual_seed(3)
    time, width = 65536, 4
    k = F.normalize(torch.randn(1, time, 1, width, generator=rng), dim=-1)
    q, v = torch.randn(1, time, 1, width, generator=rng), torch.zeros(1, time, 1, width)
    state = torch.eye(width)[None, None]
    beta = torch.full((1, time, 1), 2.0)
    wide = [x.double() for x in (q, k, v, beta)]
    wide[1] = F.normalize(wide[1], dim=-1)
    y, final = delta_rule(*wide, torch.zeros(1, time, 1, dtype=torch.float64), state.double())
    got_y, got_final = delta_rule(q, k, v, beta, torch.zeros(1, time, 1), state)
    assert final[0, 0].det().abs().item() == pytest.approx(1.0, abs=1e-9)
    assert got_final[0, 0].det().abs().item() == pytest.approx(1.0, abs=5e-3)
    close(got_y[:, :4096], y[:, :4096], 5e-4)
    close(got_final, final, 5e-3)


def test_the_future_cannot_be_seen():
    inputs = make(70, dtype=torch.float64)
    y, _ = delta_rule(**inputs)
    for t in (0, 31, 32, 55):
        grads = torch.autograd.grad(y[:, t].sum(), [inputs[name] for name in NAMES[:-1]], retain_graph=True)
        for grad in grads:
            assert not grad[:, t + 1 :].any()
            assert grad[:, t].any()


def test_half_precision_inputs_keep_a_float32_state():
    inputs = make(100, dtype=torch.float64)
    rounded = {name: x.detach().to(torch.float32 if name == "state" else torch.bfloat16) for name, x in inputs.items()}
    rounded = {name: x.requires_grad_() for name, x in rounded.items()}
    y, final, got = gradients(delta_rule, rounded)
    right_y, right_final = loop(rounded)
    assert y.dtype == torch.bfloat16 and final.dtype == torch.float32
    close(y, right_y, 2**-8)
    close(final, right_final, 2e-5)  # nothing but the inputs was rounded
    for name, grad in zip(NAMES, got, strict=True):
        assert grad.dtype == rounded[name].dtype and torch.isfinite(grad).all()


def test_autocast_does_not_reach_inside():
    inputs = make(64, dtype=torch.float32)
    plain = gradients(delta_rule, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = gradients(delta_rule, inputs)
    assert torch.equal(plain[0], cast[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[2], cast[2], strict=True))


@pytest.mark.parametrize("time", [1, 31, 65])
def test_uninitialised_memory_is_never_read(time):
    inputs = make(time, dtype=torch.float32)
    plain = gradients(delta_rule, inputs, chunk=16)
    torch.use_deterministic_algorithms(True)  # torch.empty is then full of NaN
    try:
        assert torch.empty(3).isnan().all()
        poisoned = gradients(delta_rule, inputs, chunk=16)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(plain[0], poisoned[0]) and torch.equal(plain[1], poisoned[1])
    assert all(torch.equal(a, b) for a, b in zip(plain[2], poisoned[2], strict=True))


def test_inputs_are_left_alone_and_uses_agree():
    inputs = make(65, dtype=torch.float32)
    before = {name: x.detach().clone() for name, x in inputs.items()}
    first, again = gradients(delta_rule, inputs), gradients(delta_rule, inputs)
    assert all(torch.equal(inputs[name], before[name]) for name in NAMES)
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(first[2], again[2], strict=True))


def test_batch_rows_do_not_meet():
    inputs = make(50, batch=3)
    whole, final = delta_rule(**inputs)
    one, last = delta_rule(**{name: x[1:2] for name, x in inputs.items()})
    close(one, whole[1:2], 1e-12)
    close(last, final[1:2], 1e-12)


def test_strided_inputs():
    inputs = make(40)
    wide = torch.cat([inputs["q"], inputs["k"]], -1)
    q, k = wide.split(4, -1)
    y, _ = delta_rule(**(inputs | {"q": q, "k": k}))
    close(y, delta_rule(**inputs)[0], 1e-13)


@pytest.mark.parametrize("time", [1, 65])
def test_normalised_queries_and_keys(time):
    """Inside the op as outside it, forms and gradients; a key of zeros stays one."""
    inputs = make(time)
    with torch.no_grad():
        inputs["q"] *= 3
        inputs["k"] *= torch.arange(4.0)
        inputs["k"][:, 0] = 0

    def outside(q, k, **rest):
        return delta_rule_reference(*(x / (x.square().sum(-1, keepdim=True) + 1e-3).sqrt() for x in (q, k)), **rest)

    y, final, wanted = gradients(outside, inputs)
    for form in (delta_rule, delta_rule_reference, delta_rule_chunked):
        got_y, got_final, got = gradients(form, inputs, l2_eps=1e-3)
        close(got_y, y, 1e-12)
        close(got_final, final, 1e-12)
        for mine, right in zip(got, wanted, strict=True):
            close(mine, right, 1e-12)


def test_documents_share_no_gradient():
    """Exactly none, although the gradient of the decay is a difference of sums."""
    inputs = make(60)
    starts = torch.zeros(2, 60, dtype=torch.bool)
    starts[:, 20] = starts[:, 41] = True
    y, final = delta_rule(**inputs, starts=starts, chunk=16)
    for a, b, total in ((0, 20, y[:, :20].sum()), (20, 41, y[:, 20:41].sum()), (41, 60, y[:, 41:].sum() + final.sum())):
        grads = torch.autograd.grad(total, list(inputs.values()), retain_graph=True)
        for name, grad in zip(NAMES[:-1], grads, strict=False):
            outside = torch.ones(60, dtype=torch.bool)
            outside[a:b] = False
            assert not grad[:, outside].any(), name
            assert grad[:, a + 1 : b - 1].any(), name
        assert bool(grads[5].any()) == (a == 0)


@pytest.mark.parametrize("wrong", ["q", "v", "beta", "g_log", "state", "starts"])
def test_wrong_shapes_are_named(wrong):
    inputs = {**make(5), "starts": torch.zeros(2, 5, dtype=torch.bool)}
    inputs[wrong] = inputs[wrong][:1]
    with pytest.raises(OrreryError, match=f"delta_rule was given {wrong} of shape"):
        delta_rule(**inputs)


def test_unknown_backend():
    with pytest.raises(ConfigError, match="no backend 'cuda'"):
        delta_rule(**make(5), backend="cuda")


def test_numpy_oracle_agrees_with_the_error_form():
    """The oracle is written from the paper's matrix form, our file from the correction u; by hand, one token."""
    s = np.array([[1.0, 2.0]]).T  # K = 2, V = 1
    y, final = oracle(
        np.array([3.0, 1.0]).reshape(1, 1, 1, 2),
        np.array([0.6, 0.8]).reshape(1, 1, 1, 2),
        np.array([5.0]).reshape(1, 1, 1, 1),
        np.array([0.5]).reshape(1, 1, 1),
        np.log(np.array([0.5]).reshape(1, 1, 1)),
        s.reshape(1, 1, 2, 1),
    )
    u = 0.5 * (5.0 - (0.6 * 0.5 + 0.8 * 1.0))
    np.testing.assert_allclose(final.ravel(), [0.5 + 0.6 * u, 1.0 + 0.8 * u], rtol=1e-15)
    np.testing.assert_allclose(y.ravel(), [3 * (0.5 + 0.6 * u) + 1.0 + 0.8 * u], rtol=1e-15)
