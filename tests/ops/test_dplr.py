"""Diagonal plus low rank: every form against a float64 loop, gradients against autograd of the loop and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from oracles.dplr import dplr as oracle
from oracles.dplr import vector_delta_rule as delta_oracle
from orrery.core.errors import ConfigError, StateError
from orrery.ops import dplr as module
from orrery.ops.dplr import dplr, dplr_chunked, dplr_reference, dplr_step, vector_delta_rule

NAMES = ("q", "k", "v", "a", "b", "g_log", "state")


def make(time, batch=2, heads=2, key=5, value=6, dtype=torch.float64, seed=0, decay=0.3):
    """Inputs by name: the low-rank part removes a share in [0, 1] of a direction, decays from nothing to e^-1 a token."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    direction = F.normalize(normal(batch, time, heads, key), dim=-1)
    made = {
        "q": normal(batch, time, heads, key),
        "k": normal(batch, time, heads, key),
        "v": normal(batch, time, heads, value),
        "a": -direction,
        "b": direction * torch.rand(batch, time, heads, key, generator=rng, dtype=torch.float64),
        "g_log": -decay * normal(batch, time, heads, key).abs(),
        "state": normal(batch, heads, key, value),
    }
    return {name: x.to(dtype).requires_grad_() for name, x in made.items()}


def some_starts(time, batch=2):
    starts = torch.rand(batch, time, generator=torch.Generator().manual_seed(0)) < 0.15
    starts[0, 0] = True
    return starts


def loop(inputs, **more):
    return oracle(**{name: None if x is None else x.detach().double().numpy() for name, x in inputs.items()}, **more)


def gradients(function, inputs, **more):
    """Outputs and the gradients of a fixed random functional of both of them."""
    y, final = function(**inputs, **more)
    rng = torch.Generator().manual_seed(9)
    total = (y * torch.randn(y.shape, generator=rng, dtype=torch.float64)).sum()
    total = total + (final * torch.randn(final.shape, generator=rng, dtype=torch.float64)).sum()
    wanted = [x for x in inputs.values() if x is not None]
    return [y, final, *torch.autograd.grad(total, wanted, materialize_grads=True)]


def close(got, wanted, rtol):
    """Relative to the largest number, as rounding is."""
    got, wanted = torch.as_tensor(got).detach().double(), torch.as_tensor(wanted).detach().double()
    assert got.shape == wanted.shape and torch.isfinite(got).all()
    error, size = (got - wanted).abs().max().item(), max(wanted.abs().max().item(), 1e-30)
    assert error <= rtol * size, f"off by {error:.3e} of {size:.3e}"


@pytest.mark.parametrize("time", [1, 2, 16, 33, 65])
@pytest.mark.parametrize("with_starts", [False, True])
def test_every_form_is_the_float64_loop(time, with_starts):
    inputs = make(time)
    starts = some_starts(time) if with_starts else None
    y, final = loop(inputs, starts=None if starts is None else starts.numpy(), scale=0.5)
    for form in (dplr, dplr_reference, dplr_chunked):
        got = form(**inputs, starts=starts, scale=0.5)
        close(got[0], y, 1e-12)
        close(got[1], final, 1e-12)


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("time", [1, 2, 31, 130])
@pytest.mark.parametrize("with_state", [True, False])
def test_gradients_are_the_loop_s(time, backend, with_state):
    """In float32 against autograd of the equation in float64; lengths around the stretch between kept states."""
    without = {} if with_state else {"state": None}
    exact, inputs = make(time) | without, make(time, dtype=torch.float32) | without
    starts = some_starts(time) if time % 2 else None
    wanted = gradients(dplr_reference, exact, starts=starts, scale=0.7)
    got = gradients(dplr, inputs, starts=starts, scale=0.7, backend=backend)
    for mine, right in zip(got, wanted, strict=True):
        assert mine.dtype == torch.float32
        close(mine, right, 1e-5)


def test_chunked_gradients_in_float64(monkeypatch):
    """Sections by rows and by time, resets, a chunk longer than the input."""
    inputs, starts = make(50, batch=3), some_starts(50, batch=3)
    wanted = gradients(dplr_reference, inputs, starts=starts)
    for matrices, chunk in ((module._MATRICES, None), (2, 8), (5, 100), (1, 1)):
        monkeypatch.setattr(module, "_MATRICES", matrices)
        for mine, right in zip(gradients(dplr_chunked, inputs, starts=starts, chunk=chunk), wanted, strict=True):
            close(mine, right, 1e-11)


def test_gradients_are_finite_differences():
    inputs = list(make(7, batch=1, heads=1, key=3, value=4).values())
    starts = torch.zeros(1, 7, dtype=torch.bool)
    starts[0, 3] = True

    def function(*tensors):
        named = dict(zip(NAMES, tensors, strict=True))
        return dplr(**named, starts=starts, chunk=3)

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_steps_and_cuts_are_the_sequence(backend):
    inputs, starts = make(70, dtype=torch.float32), some_starts(70)
    y, final = loop(inputs, starts=starts.numpy())
    for cuts in ([0, 13, 14, 66, 70], list(range(71))):
        state, parts = inputs["state"], []
        for low, high in zip(cuts, cuts[1:], strict=False):
            piece = {name: inputs[name][:, low:high] for name in NAMES[:-1]}
            part, state = dplr(**piece, state=state, starts=starts[:, low:high], backend=backend)
            parts.append(part)
        close(torch.cat(parts, 1), y, 1e-5)
        close(state, final, 1e-5)
    close(dplr_step(**{name: inputs[name][:, :1] for name in NAMES[:-1]})[0], loop(inputs | {"state": None})[0][:, :1], 1e-5)


GATES = {"forget all": -math.inf, "underflow": -1e30, "1e-30": math.log(1e-30), "1 - 1e-7": math.log1p(-1e-7), "keep all": 0.0}


@pytest.mark.parametrize("backend", ["torch", "numba", "float64"])
@pytest.mark.parametrize("gate", list(GATES))
@pytest.mark.parametrize("where", ["everywhere", "some tokens", "one channel"])
def test_extreme_decays(gate, where, backend):
    """Exact at both ends, and one extreme gate costs its neighbours no digits."""
    inputs = make(40, dtype=torch.float64 if backend == "float64" else torch.float32, decay=0.01)
    g_log = inputs["g_log"].detach().clone()
    if where == "one channel":
        g_log[..., 1] = GATES[gate]
    else:
        g_log[:, :: 1 if where == "everywhere" else 7] = GATES[gate]
    inputs["g_log"] = g_log.requires_grad_()
    rtol = 1e-11 if backend == "float64" else 1e-5
    exact = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    wanted = gradients(dplr_reference, exact)
    close(wanted[0], loop(inputs)[0], 1e-11)
    got = gradients(dplr, inputs, backend=None if backend == "float64" else backend)
    for name, mine, right in zip(("y", "final", *NAMES), got, wanted, strict=True):
        assert torch.isfinite(mine).all(), name
        assert (mine - right).abs().max().item() <= rtol * max(right.abs().max().item(), 1.0), name


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_padding_keeps_the_state(backend):
    inputs = make(65, dtype=torch.float32)
    still = dict.fromkeys(("k", "a", "b", "g_log"), torch.zeros_like(inputs["k"]))
    final = dplr(**(inputs | still), backend=backend)[1]
    assert torch.equal(final, inputs["state"])


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_long_memory_does_not_drift(backend):
    """65,536 tokens that rotate a state without loss (a reflection a token): float32 stays near float64 and keeps the norm."""
    rng = torch.Generator().manual_seed(3)
    time, width = 65536, 4
    direction = F.normalize(torch.randn(1, time, 1, width, generator=rng), dim=-1)
    q, none = torch.randn(1, time, 1, width, generator=rng), torch.zeros(1, time, 1, width)
    given = {"q": q, "k": none, "v": none, "a": -direction, "b": 2 * direction, "g_log": none, "state": torch.eye(width)[None, None]}
    wide = {name: x.double() for name, x in given.items()}
    wide["a"] = F.normalize(wide["a"], dim=-1)
    wide["b"] = -2 * wide["a"]
    y, final = dplr(**wide)
    got_y, got_final = dplr(**given, backend=backend)
    assert final[0, 0].det().abs().item() == pytest.approx(1.0, abs=1e-9)
    assert got_final[0, 0].det().abs().item() == pytest.approx(1.0, abs=5e-3)
    close(got_y[:, :4096], y[:, :4096], 5e-4)


def test_the_vector_delta_rule():
    """Kimi Delta Attention is one case, and with equal decays in a head it is the gated delta rule."""
    from orrery.ops.delta_rule import delta_rule_reference

    inputs = make(37)
    k = F.normalize(inputs["k"].detach(), dim=-1)
    beta = torch.rand(2, 37, 2, dtype=torch.float64)
    starts = some_starts(37)
    given = {"q": inputs["q"], "k": k, "v": inputs["v"], "beta": beta, "g_log": inputs["g_log"], "state": inputs["state"]}
    y, final = delta_oracle(**{name: x.detach().numpy() for name, x in given.items()}, starts=starts.numpy(), scale=0.3)
    for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        got = vector_delta_rule(**{name: x.to(dtype) for name, x in given.items()}, starts=starts, scale=0.3)
        close(got[0], y, rtol)
        close(got[1], final, rtol)
    one = given["g_log"][..., :1]
    equal = vector_delta_rule(**(given | {"g_log": one.expand_as(k)}), starts=starts)
    close(equal[0], delta_rule_reference(**(given | {"g_log": one[..., 0]}), starts=starts)[0], 1e-12)


def test_half_precision_inputs_keep_a_float32_state():
    rounded = {name: x.detach().bfloat16().requires_grad_() for name, x in make(40).items()}
    rounded["state"] = rounded["state"].detach().float().requires_grad_()
    got = gradients(dplr, rounded)
    y, final = loop(rounded)
    assert got[0].dtype == torch.bfloat16 and got[1].dtype == torch.float32
    step = dplr_step(**{name: rounded[name][:, :1] for name in NAMES[:-1]}, state=rounded["state"])
    assert step[0].dtype == torch.bfloat16 and step[1].dtype == torch.float32
    close(got[0], y, 2**-7)
    close(got[1], final, 1e-5)
    for name, grad in zip(NAMES, got[2:], strict=True):
        assert grad.dtype == rounded[name].dtype and torch.isfinite(grad).all()


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_uninitialised_memory_is_never_read_and_uses_agree(backend):
    inputs = make(67, dtype=torch.float32)
    before = {name: x.detach().clone() for name, x in inputs.items()}
    plain = gradients(dplr, inputs, backend=backend)
    torch.use_deterministic_algorithms(True)  # torch.empty is then full of NaN
    try:
        poisoned = gradients(dplr, inputs, backend=backend)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(plain, poisoned, strict=True))
    assert all(torch.equal(inputs[name], before[name]) for name in NAMES)


def test_what_is_kept_grows_with_the_tokens_not_with_the_matrices():
    """Compiled: inputs, u, and a state of K V numbers every 64 tokens; nothing of size T K V."""
    inputs = make(640, batch=1, heads=1, key=32, value=32, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        dplr(**inputs, backend="numba")
    assert sum(kept) <= 640 * 32 * 8 + 12 * 32 * 32 + 32 * 32


def test_mistakes_are_named():
    inputs = make(5)
    with pytest.raises(StateError, match="given a of shape"):
        dplr(**(inputs | {"a": inputs["a"][:, :3]}))
    with pytest.raises(StateError, match="given state of shape"):
        dplr(**(inputs | {"state": inputs["state"][:1]}))
    with pytest.raises(ConfigError, match="no backend 'nmba'"):
        dplr(**inputs, backend="nmba")


def test_gates_that_forget_all_beside_document_starts():
    """A document that ends in a chunk has decayed further than the one that follows it there."""
    inputs = make(40)
    with torch.no_grad():
        inputs["g_log"][torch.rand(inputs["g_log"].shape, generator=torch.Generator().manual_seed(3)) < 0.1] = -torch.inf
    starts = some_starts(40)
    for found, wanted in zip(gradients(dplr_chunked, inputs, starts=starts), gradients(dplr_reference, inputs, starts=starts), strict=True):
        close(found, wanted, 1e-11)
