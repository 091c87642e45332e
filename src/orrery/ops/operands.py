"""What a recurrence is called with, looked at once: sizes that fit each other, types, documents, lengths. Misfits are one sentence.

A compiled loop reads memory by the sizes it is told, so nothing that reaches one may be smaller than these. And nothing in between
may change a type: within a recurrence autocast is off, in the backward pass too, wherever that is called from.

B batch, T time.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from orrery.core.errors import ConfigError, StateError

_P = ParamSpec("_P")
_R = TypeVar("_R")


def sizes(op: str, name: str, x: Tensor, letters: str) -> tuple[int, ...]:
    """The sizes of the operand that says what the others must be; `letters` names its dimensions, batch and time first.

    Raises:
        StateError: x has another number of dimensions, holds no token, or no floating-point numbers.
    """
    if x.dim() != len(letters):
        raise StateError(f"{op} was given {name} of shape {tuple(x.shape)}; it needs ({','.join(letters)})")
    if 0 in x.shape[:2]:
        raise StateError(f"{op} was given {name} of shape {tuple(x.shape)}, which is empty; pass at least one token")
    _floating(op, name, x)
    return tuple(x.shape)


def check_operands(
    op: str, operands: Mapping[str, tuple[Tensor | None, tuple[int, ...]]], time: tuple[int, int], starts: Tensor | None = None,
    lengths: Tensor | None = None, chunk: int | None = None,
) -> None:  # fmt: skip
    """Raise unless every operand that is given has its shape and floating-point numbers.

    Args:
        op: who asks.
        operands: by name, with the shape that each needs.
        time: B and T.
        starts: (B,T) bool. lengths: (B,) integers from 0 to T, looked at on a CPU only. chunk: 1 or more.

    Raises:
        StateError: something does not fit.
        ConfigError: for the chunk.
    """
    for name, (x, shape) in operands.items():
        if x is None:
            continue
        if x.shape != shape:
            raise StateError(f"{op} was given {name} of shape {tuple(x.shape)}; the input needs {shape}")
        _floating(op, name, x)
    if starts is not None and (starts.shape != time or starts.dtype != torch.bool):
        raise StateError(f"{op} was given starts of shape {tuple(starts.shape)} in {starts.dtype}; the input needs {time} in torch.bool")
    if lengths is not None:
        _check_lengths(op, lengths, time)
    if chunk is not None and chunk < 1:
        raise ConfigError(f"{op} was given a chunk of {chunk} tokens; it must be 1 or more")


def check_broadcast(op: str, name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless x holds floating-point numbers and can be expanded to `shape`."""
    pairs = zip(reversed(x.shape), reversed(shape), strict=False)
    if x.dim() > len(shape) or any(own not in (1, wanted) for own, wanted in pairs):
        raise StateError(f"{op} was given {name} of shape {tuple(x.shape)}, which cannot be expanded to {shape}")
    _floating(op, name, x)


def exact(x: Tensor) -> Any:
    """Switches autocast off: the operands have been brought to the type they are meant to have."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()


def exactly(backward: Callable[_P, _R]) -> Callable[_P, _R]:
    """The `backward` of a :class:`torch.autograd.Function` with autocast off."""

    @functools.wraps(backward)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        given = next((slope for slope in args[1:] if isinstance(slope, Tensor)), None)
        with contextlib.nullcontext() if given is None else exact(given):
            return backward(*args, **kwargs)

    return run


def _floating(op: str, name: str, x: Tensor) -> None:
    if not x.is_floating_point():
        raise StateError(f"{op} was given {name} in {x.dtype}; it takes floating-point numbers")


def _check_lengths(op: str, lengths: Tensor, time: tuple[int, int]) -> None:
    if lengths.shape != time[:1] or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise StateError(f"{op} was given lengths of shape {tuple(lengths.shape)} in {lengths.dtype}; the input needs {time[:1]} integers")
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling():
        least, most = (int(bound) for bound in lengths.aminmax())
        if least < 0 or most > time[1]:
            raise StateError(f"{op} was given a length of {least if least < 0 else most}; the input has {time[1]} tokens")
