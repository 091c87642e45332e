"""Checks of the arithmetic: gradients, precision, extremes, memory, initialisation, repeatability.

Every check takes a :class:`Subject` and raises AssertionError with numbers. B batch, T time, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from orrery.core.seeds import generator
from orrery.nn.contract import Mixer
from orrery.ops.backend import use_backend
from orrery.testing.poison import poisoned_memory
from orrery.testing.subject import Subject, copied, floating, inputs, memory, run, token_ids
from orrery.testing.tolerance import DIFFERENCE, ORACLE, TOLERANCES, assert_close, assert_finite, assert_same, error


def gradients(subject: Subject) -> None:
    """Gradients of the input, the initial state and every parameter equal central differences along random directions."""
    for length in (9, 70):
        mixer = subject.build()
        x = inputs(subject, 2, length)
        state = None
        if "bidirectional" not in subject.tags:
            state = copied(run(mixer, inputs(subject, 2, 6, seed=3))[1])
        leaves = {"the input": x, **{f"the initial state ({i})": t for i, t in enumerate(floating(state))}}
        leaves.update({f"parameter {name}": p for name, p in mixer.named_parameters() if p.requires_grad})
        for leaf in leaves.values():
            leaf.requires_grad_()
        compare_with_differences(lambda m=mixer, x=x, s=state: _scalar(m, x, s), leaves, f" at length {length}")  # type: ignore[misc]


def _scalar(mixer: Mixer, x: Tensor, state: Any) -> Tensor:
    """A fixed random linear functional of everything that comes out."""
    y, after = run(mixer, x, state)
    outcomes = [y, *floating(after)]
    total = y.new_zeros(())
    for number, value in enumerate(outcomes):
        total = (
            total
            + (value * torch.randn(value.shape, generator=generator(number, "functional"), dtype=value.dtype)).sum()
        )
    return total


def compare_with_differences(scalar: Callable[[], Tensor], leaves: dict[str, Tensor], where: str = "") -> float:
    """Raise unless autograd agrees with (f(p + e d) - f(p - e d)) / 2e for a random unit direction d of every leaf.

    Args:
        scalar: computes a differentiable number from the leaves, the same every time.
        leaves: what is differentiated, float64 and requiring gradients.
        where: appended to the message.

    Returns:
        The largest error, relative to the size of the gradient.
    """
    found = torch.autograd.grad(scalar(), list(leaves.values()), allow_unused=True)
    worst = 0.0
    for (name, leaf), gradient in zip(leaves.items(), found, strict=True):
        if leaf.numel() == 0:
            continue
        direction = torch.randn(leaf.shape, generator=generator(1, "direction", name), dtype=leaf.dtype)
        direction /= direction.norm()
        analytic = 0.0 if gradient is None else float((gradient * direction).sum())
        size = 0.0 if gradient is None else float(gradient.norm()) / math.sqrt(leaf.numel())
        errors, numeric = [], 0.0
        for step in (1e-5, 1e-6):  # a kink may lie within the first step, hardly within both
            numeric = (_moved(scalar, leaf, direction, step) - _moved(scalar, leaf, direction, -step)) / (2 * step)
            errors.append(abs(numeric - analytic) / max(size, abs(analytic), abs(numeric), 1e-3))
        if min(errors) > DIFFERENCE:
            raise AssertionError(
                f"the gradient of {name}{where} along a random direction is {analytic:.9g} by autograd, {numeric:.9g} by differences "
                f"(relative error {min(errors):.3g}, allowed {DIFFERENCE:.3g})"
            )
        worst = max(worst, min(errors))
    return worst


def _moved(scalar: Callable[[], Tensor], leaf: Tensor, direction: Tensor, step: float) -> float:
    kept = leaf.detach().clone()
    with torch.no_grad():
        leaf.add_(direction, alpha=step)
        value = float(scalar())
        leaf.copy_(kept)
    return value


def every_parameter(subject: Subject) -> None:
    """Every parameter receives a finite gradient that is not zero."""
    mixer, x = subject.build(torch.float32), inputs(subject, 3, 24, torch.float32)
    y, state = run(mixer, x)
    if "bidirectional" not in subject.tags:
        y, _ = run(mixer, x, state)
    (y * inputs(subject, 3, 24, torch.float32, seed=1)).sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.requires_grad, (
            f"parameter {name} does not require a gradient; tag the mixer 'frozen' if that is meant"
        )
        assert parameter.grad is not None, f"parameter {name} receives no gradient"
        assert_finite(parameter.grad, f"the gradient of parameter {name}")
        assert bool(parameter.grad.any()), f"the gradient of parameter {name} is zero everywhere"


def extremes(subject: Subject) -> None:
    """Saturated gates, zero, tiny and huge inputs, and long constant ones stay finite, forward and backward, in float32."""
    for scale, largest in ((1.0, 1e4), (10.0, 1e2)):  # the product of both is what saturates gates and scores
        mixer = subject.build(torch.float32)
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter.mul_(scale)
        sizes = (0.0, 1e-20, 1.0, largest)
        cases = {f"inputs of size {size:g}": size * inputs(subject, 2, 70, torch.float32) for size in sizes}
        cases["a constant input of length 300"] = inputs(subject, 1, 1, torch.float32).expand(1, 300, -1) * 3
        for what, x in cases.items():
            x = x.clone().requires_grad_()
            y, state = run(mixer, x)
            where = f"with {what} and parameters times {scale:g}"
            assert_finite(y, f"the output {where}")
            for tensor in floating(state):
                assert not bool(tensor.isnan().any()), f"the state holds NaN {where}"
            found = torch.autograd.grad(y.mean(), [x, *mixer.parameters()], allow_unused=True)
            for name, gradient in zip(["x", *(n for n, _ in mixer.named_parameters())], found, strict=True):
                if gradient is not None:
                    assert_finite(gradient, f"the gradient of {name} {where}")


def precision(subject: Subject) -> None:
    """float32 and bfloat16 agree with float64, forward and backward, on every backend that runs here."""
    exact = _gradients_of(subject, torch.float64)
    for backend in (None, "torch"):
        with use_backend(backend):
            _compare(
                _gradients_of(subject, torch.float32),
                exact,
                f"float32 (backend {backend or 'automatic'})",
                torch.float32,
            )
    if "surrogate" in subject.tags:  # in bfloat16 values often cross a threshold that they do not cross exactly
        return
    for what, rounded in (
        ("bfloat16", _gradients_of(subject, torch.bfloat16)),
        ("autocast to bfloat16", _gradients_of(subject, torch.float32, autocast=True)),
    ):
        kinked = "rectified" in subject.tags  # rounding moves features over the kink, where the gradient jumps
        _compare({"the output": rounded["the output"]} if kinked else rounded, exact, what, torch.bfloat16)
    if "bidirectional" not in subject.tags:
        mixer, x, state, found = subject.build(torch.bfloat16), inputs(subject, 2, 40, torch.bfloat16), None, []
        with torch.no_grad():
            for time in range(40):
                y, state = run(mixer, x[:, time : time + 1], state)
                found.append(y)
        steps = {"the output": torch.cat(found, 1)}  # a state that is rounded at every step drifts away
        _compare(steps, exact, "bfloat16, token by token,", torch.bfloat16)


def _gradients_of(subject: Subject, dtype: torch.dtype, autocast: bool = False) -> dict[str, Tensor]:
    mixer, x = subject.build(dtype), inputs(subject, 2, 40, dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, _ = run(mixer, x)
        weight = inputs(subject, 2, 40, y.dtype, seed=1)
        found = torch.autograd.grad((y * weight).sum(), [x, *mixer.parameters()], allow_unused=True, retain_graph=autocast)
    if autocast:  # the pass back may be called within it or, as torch advises, outside
        outside = torch.autograd.grad((y * weight).sum(), [x, *mixer.parameters()], allow_unused=True)
        for one, other in zip(found, outside, strict=True):
            if one is not None and other is not None:
                assert_finite(one, "a gradient taken within autocast")
                assert float((one.double() - other.double()).norm() / other.double().norm().clamp(min=1e-6)) <= TOLERANCES[torch.bfloat16].gradient
    names = ["x", *(name for name, _ in mixer.named_parameters())]
    return {
        "the output": y.detach(),
        **{f"the gradient of {n}": g for n, g in zip(names, found, strict=True) if g is not None},
    }


def _compare(found: dict[str, Tensor], exact: dict[str, Tensor], what: str, dtype: torch.dtype) -> None:
    """Root mean square errors, since the worst single entry of many rounded ones says little in bfloat16."""
    for name, value in found.items():
        limit = TOLERANCES[dtype].value if name == "the output" else TOLERANCES[dtype].gradient
        if dtype == torch.float32:
            assert_close(value.float(), exact[name].float(), f"{name} in {what}", limit=limit)
            continue
        assert_finite(value, f"{name} in {what}")
        reference = exact[name]
        ratio = float((value.double() - reference).norm() / reference.norm().clamp(min=1e-6))
        assert ratio <= limit, f"{name} in {what} is off by {ratio:.3g} (root mean square ratio, allowed {limit:.3g})"


def uninitialised_memory(subject: Subject) -> None:
    """With NaN in all unfilled memory, construction, outputs, states and gradients are as without."""
    for dtype in (torch.float64, torch.float32):
        found = []
        for poison in (False, True):
            if poison:
                with poisoned_memory():
                    found.append(_everything(subject, dtype))
            else:
                found.append(_everything(subject, dtype))
        for number, (clean, dirty) in enumerate(zip(*found, strict=True)):
            assert_finite(dirty, f"result {number} computed in poisoned memory")
            assert_close(dirty, clean, f"result {number} computed in poisoned memory")


def _everything(subject: Subject, dtype: torch.dtype) -> list[Tensor]:
    mixer, x = subject.build(dtype), inputs(subject, 2, 70, dtype).requires_grad_()
    y, state = run(mixer, x)
    grads = torch.autograd.grad(y.sum(), [x, *mixer.parameters()], allow_unused=True)
    results = [y, *floating(state), *(g for g in grads if g is not None)]
    if "bidirectional" not in subject.tags:
        results.append(run(mixer, x[:, :1], state)[0])
    segments = torch.tensor([[1] * 30 + [2] * 35 + [-1] * 5, [1] * 70])
    results.append(run(mixer, x, segments=segments)[0])
    return results


def initialisation(subject: Subject) -> None:
    """reset_parameters draws everything anew, repeatably, with the constructor's statistics; signals keep a sane size."""
    width = 2 * subject.width
    built = subject.build(torch.float32, seed=1, randomise=False, width=width)
    states = []
    for seed in (11, 11, 12):
        with torch.no_grad():
            for tensor in (*built.parameters(), *built.buffers()):
                tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
        torch.manual_seed(seed)
        built.reset_parameters()
        states.append({name: value.clone() for name, value in built.state_dict().items()})
    first, again, other = states
    for name, value in first.items():
        assert_finite(value, f"{name} after reset_parameters() of parameters that held NaN")
        assert_same(again[name], value, f"{name} after reset_parameters() with the same seed")
    assert any(not torch.equal(first[name], other[name]) for name in first), "two seeds initialise alike"
    fresh = subject.build(torch.float32, seed=2, randomise=False, width=width).state_dict()
    for name, value in fresh.items():
        _same_statistics(name, value, first[name])
    _meta_device(subject, width)
    x = torch.randn(4, 64, width, generator=generator(0, "initialisation"))
    with torch.no_grad():
        size = float(run(built, x)[0].square().mean().sqrt())
    zero_start = "zero-start" in subject.tags and size == 0
    assert zero_start or 1e-4 < size < 30, f"at initialisation, unit inputs give outputs of root mean square {size:.3g}"


def _same_statistics(name: str, constructed: Tensor, reset: Tensor) -> None:
    """Mean and deviation of two draws agree within six standard errors."""
    if not constructed.is_floating_point() or constructed.numel() < 16:
        return
    a, b = constructed.double().flatten(), reset.double().flatten()
    spread = max(float(a.std()), float(b.std()), 1e-12)
    room = 6 * spread * math.sqrt(2 / len(a)) + 1e-9
    assert abs(float(a.mean() - b.mean())) <= room, (
        f"{name}: mean {float(a.mean()):.4g} constructed, {float(b.mean()):.4g} reset"
    )
    ratio = float(b.std() + 1e-12) / float(a.std() + 1e-12)
    slack = 1 + 6 / math.sqrt(len(a)) + 0.5 * (len(a) < 100)
    assert 1 / slack <= ratio <= slack, (
        f"{name}: standard deviation {float(a.std()):.4g} constructed, {float(b.std()):.4g} reset"
    )


def _meta_device(subject: Subject, width: int) -> None:
    """Built without memory, then given some and reset: how sharded training makes large models."""
    with torch.device("meta"):
        empty = subject.build(torch.float32, seed=1, randomise=False, width=width)
    with torch.no_grad():
        filled = empty.to_empty(device="cpu")
        for tensor in (*filled.parameters(), *filled.buffers()):
            tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
        filled.reset_parameters()
        for name, tensor in (*filled.named_parameters(), *filled.named_buffers()):
            assert_finite(tensor, f"{name} after the meta device and reset_parameters()")
        assert_finite(run(filled, torch.ones(1, 5, width))[0], "the output of a mixer that came from the meta device")


def determinism(subject: Subject) -> None:
    """The same call gives the same bits, forward and backward, in evaluation and in training mode."""
    for dtype in (torch.float32, torch.float64):
        for training in (False, True):
            found = []
            for _ in range(2):
                mixer, x = subject.build(dtype).train(training), inputs(subject, 3, 70, dtype).requires_grad_()
                y, state = run(mixer, x)
                grads = torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()], allow_unused=True)
                found.append([y, *floating(state), *(g for g in grads if g is not None)])
            for number, (a, b) in enumerate(zip(*found, strict=True)):
                assert_same(a, b, f"result {number} of the same call in {dtype}, repeated,")


def oracle(subject: Subject) -> None:
    """Outputs equal an independent float64 implementation; so do gradients, by differences of that implementation."""
    forward, gradient = oracle_errors(subject)
    limit = ORACLE
    assert forward <= limit, f"the output differs from the oracle's by {forward:.3g} (allowed {limit:.3g})"
    if "surrogate" in subject.tags:  # its gradient is not the derivative of its output, and has tests of its own
        return
    assert gradient <= DIFFERENCE, (
        f"the gradient differs from differences of the oracle by {gradient:.3g} (allowed {DIFFERENCE:.3g})"
    )


def oracle_errors(subject: Subject, dtype: torch.dtype = torch.float64, length: int = 23) -> tuple[float, float]:
    """(forward error, gradient error) against `subject.oracle`, over plain rows and packed ones."""
    assert subject.oracle is not None
    mixer, forward, worst = subject.build(dtype), 0.0, 0.0
    exact = subject.build(torch.float64)
    with torch.no_grad():
        for p, q in zip(exact.parameters(), mixer.parameters(), strict=True):
            p.copy_(q.double())
    packed = torch.repeat_interleave(torch.tensor([[0, 1, 2], [4, 5, 6]]), torch.tensor([8, 1, length - 9]), 1)
    for segments in (None, packed):
        x = inputs(subject, 2, length, dtype).requires_grad_()
        y, _ = run(mixer, x, **({} if segments is None else {"segments": segments}))
        weight = inputs(subject, 2, length, seed=1)
        forward = max(forward, error(y, _call_oracle(subject, exact, x, segments)))
        leaves = {"x": (x, None), **{n: (p, n) for n, p in mixer.named_parameters()}}
        grads = torch.autograd.grad(
            (y * weight.to(dtype)).sum(), [leaf for leaf, _ in leaves.values()], allow_unused=True
        )
        for (leaf, name), gradient in zip(leaves.values(), grads, strict=True):
            if gradient is None:
                continue
            direction = torch.randn(leaf.shape, generator=generator(2, name), dtype=torch.float64)
            direction /= direction.norm()
            numeric = (_along(subject, exact, x, name, direction, segments, weight, 1e-5) - _along(
                subject, exact, x, name, direction, segments, weight, -1e-5)) / 2e-5  # fmt: skip
            size = max(float(gradient.double().norm()) / math.sqrt(leaf.numel()), abs(numeric), 1e-3)
            worst = max(worst, abs(float((gradient.double() * direction).sum()) - numeric) / size)
    return forward, worst


def _call_oracle(subject: Subject, mixer: nn.Module, x: Tensor, segments: Tensor | None) -> Tensor:
    """The oracle sees arrays only: parameters by name, the config as a dict, the input, the segments."""
    assert subject.oracle is not None
    parameters = {name: value.detach().double().numpy() for name, value in mixer.state_dict().items()}
    config = {**mixer.config.to_dict(), "width": subject.width, "canon": subject.canon}  # type: ignore[operator, union-attr]
    extra = {"tokens": token_ids(x).numpy()} if "tokens" in subject.tags else {}
    if "memory" in subject.tags:
        extra["memory"] = memory(subject.width, x.detach().double()).numpy()
    y = subject.oracle(parameters, config, x.detach().double().numpy(), None if segments is None else segments.numpy(), **extra)
    return torch.as_tensor(y, dtype=torch.float64)


def _along(
    subject: Subject,
    mixer: nn.Module,
    x: Tensor,
    name: str | None,
    direction: Tensor,
    segments: Tensor | None,
    weight: Tensor,
    step: float,
) -> float:
    """The weighted sum of the oracle's output with x or one parameter moved by `step` along `direction`."""
    target = x.detach().double() if name is None else dict(mixer.named_parameters())[name].detach()
    kept = target.clone()
    with torch.no_grad():
        target.add_(direction, alpha=step)
        moved = target if name is None else x
        value = float((_call_oracle(subject, mixer, moved, segments) * weight).sum())
        target.copy_(kept)
    return value
