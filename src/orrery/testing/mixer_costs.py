"""Checks of what a mixer declares (bytes of state, operations) and of how it is stored and compiled.

Every check takes a :class:`Subject` and raises AssertionError with numbers. B batch, T time, D width.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orrery.nn.contract import Mixer
from orrery.nn.state import state_bytes as measured_bytes
from orrery.testing.count import counting, step_flops
from orrery.testing.subject import Subject, inputs, run
from orrery.testing.tolerance import FLOPS, assert_close, assert_same


def state_bytes(subject: Subject) -> None:
    """state_bytes(T) is what the state's tensors hold per sequence after T tokens."""
    mixer = subject.build(torch.float32)
    for length in (1, 5, 40, 100):
        with torch.no_grad():
            state = (
                None if "bidirectional" in subject.tags else run(mixer, inputs(subject, 3, length, torch.float32))[1]
            )
        held, declared = measured_bytes(state) / 3, mixer.state_bytes(length)
        assert declared == held, f"state_bytes({length}) says {declared}, the state holds {held:g} bytes per sequence"
    if "recurrent" in subject.tags:
        assert mixer.state_bytes(10) == mixer.state_bytes(100_000), "tagged 'recurrent', but the state grows"


def flops(subject: Subject) -> None:
    """flops(T) lies between the products counted and all arithmetic counted, in the form that does no work twice.

    That form is one step per token (a chunked form may do more, and earns nothing by it); without a state, one call.
    """
    length, batch = 24, 2
    for width in (subject.width, 2 * subject.width):
        mixer = subject.build(torch.float32, width=width)
        x = torch.randn(batch, length, width)
        with counting() as counter:
            if "bidirectional" in subject.tags:
                mixer(x)
            else:
                state: Any = None
                for time in range(length):
                    _, state = mixer(x[:, time : time + 1], state)
        declared = step_flops(mixer, length)
        least, most = counter.products / batch, (counter.products + counter.elementwise) / batch
        assert isinstance(declared, int), f"flops({length}) is a {type(declared).__name__}, not an int"
        assert (1 - FLOPS) * least <= declared <= (1 + FLOPS) * most, (
            f"flops({length}) says {declared} at width {width}; counted were {least:.0f} in products and {most:.0f} with elementwise work"
        )
        assert mixer.flops(2 * length) > mixer.flops(length) > mixer.flops(length // 2) > 0, "flops(T) does not grow with T"


def save_load(subject: Subject) -> None:
    """Parameters go through safetensors into a mixer built from the stored config, and the bits come back."""
    import safetensors.torch as safetensors

    mixer, x = subject.build(torch.float32), inputs(subject, 2, 20, torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "mixer.safetensors")
        safetensors.save_file({k: v.contiguous() for k, v in mixer.state_dict().items()}, path)
        config = type(mixer.config).from_dict(mixer.config.to_dict())
        other = subject.wired(subject.cls(config, mixer.place).eval())
        other.load_state_dict(safetensors.load_file(path), strict=True)
    with torch.no_grad():
        assert_same(run(other, x)[0], run(mixer, x)[0], "the output after saving and loading, which")


def compile_(subject: Subject) -> None:
    """One block goes through torch.compile(backend="aot_eager") with the same outputs and gradients."""
    model, x = _block(subject), inputs(subject, 2, 7, torch.float32)
    torch._dynamo.reset()
    try:
        compiled = torch.compile(model, backend="aot_eager")
        expected, found = _with_gradients(model, model, x), _with_gradients(model, compiled, x)
    finally:
        torch._dynamo.reset()
    for name, value in expected.items():
        assert_close(found[name], value, f"{name} under torch.compile", gradient=name != "the output")


def _block(subject: Subject) -> nn.Module:
    """The mixer in a pre-norm residual block of its own (a class may be checked before it has a name)."""

    class Residual(nn.Module):
        def __init__(self, mixer: Mixer) -> None:
            super().__init__()
            self.norm, self.mixer = nn.LayerNorm(subject.width), mixer

        def forward(self, x: Tensor) -> Tensor:
            y, _ = self.mixer(self.norm(x))
            return x + y

    return Residual(subject.build(torch.float32)).eval()


def _with_gradients(model: nn.Module, call: Any, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = call(x)
    found = torch.autograd.grad(y.square().sum(), [x, *model.parameters()], allow_unused=True)
    names = ["x", *(name for name, _ in model.named_parameters())]
    return {
        "the output": y.detach(),
        **{f"the gradient of {n}": g for n, g in zip(names, found, strict=True) if g is not None},
    }
