"""Which implementation of an operation runs: one rule, announced once, recorded, never silent.

The rule, first match wins:

1. the `backend=` argument of the call;
2. `with use_backend("torch"):` around it;
3. on a CUDA device `fla` (Triton kernels of fla-core), on a CPU in 32 bits or less `numba` (compiled loops), each only
   where the operation offers it and its package is installed;
4. `torch`, which every operation offers on every device, and which is all that a traced graph (`torch.compile`) holds.

What is asked for by name and cannot run is an error. Where the automatic choice has to pass over a faster backend
because its package is missing, a warning says so once. Every choice is logged once (logger `orrery.ops`) and kept for
the results: :func:`current_backend`.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

from orrery.core.errors import ConfigError, suggest

DEVICES = {"torch": None, "numba": "cpu", "fla": "cuda"}
"""Backend -> the device it is made for (None: all). A backend other than torch is named after the package it needs."""

_log = logging.getLogger("orrery.ops")
_asked: contextvars.ContextVar[str | None] = contextvars.ContextVar("orrery_backend", default=None)
_used: dict[str, set[str]] = {}


@cache
def installed(backend: str) -> bool:
    """Whether the package behind `backend` can be found; nothing is imported."""
    return backend == "torch" or importlib.util.find_spec(backend) is not None


def choose(requested: str | None, tensor: Tensor, *, op: str, offered: Sequence[str] = ("numba", "torch")) -> str:
    """The backend that runs operation `op` on tensors like `tensor`, by the rule of this file.

    Args:
        requested: the call's `backend=` argument.
        tensor: any of the operands; its device and dtype count.
        op: name of the operation, for the record.
        offered: the forms that the operation has.

    Raises:
        ConfigError: a backend asked for by name is not offered, not installed, or made for another device.
    """
    if torch.compiler.is_compiling() and requested is None:
        return "torch"  # what a compiler traces; the look-ups below would cut its graph in two at every operation
    if requested is not None:
        name = _required(requested, tensor, op, offered)
    else:
        wished = _asked.get()
        if wished is None:
            name = _automatic(tensor, op, offered)
        else:  # a wish for everything reaches the operations that have such a form
            name = _required(wished, tensor, op, offered) if wished in offered else "torch"
    used = _used.get(op)
    if used is None or name not in used:
        _used.setdefault(op, set()).add(name)
        _log.info("%s runs on backend %s", op, name)
    return name


def _required(name: str, tensor: Tensor, op: str, offered: Sequence[str]) -> str:
    if name not in offered:
        raise ConfigError(f"{op} has no backend {name!r}; it offers {', '.join(offered)}.{suggest(name, offered)}")
    if not installed(name):
        raise ConfigError(
            f"The backend {name!r} of {op} needs the package of that name, which is missing;"
            " install it or leave the backend out."
        )
    if DEVICES.get(name) not in (None, tensor.device.type):
        raise ConfigError(f"The backend {name!r} of {op} cannot run on the device {tensor.device}; use 'torch'.")
    return name


def _automatic(tensor: Tensor, op: str, offered: Sequence[str]) -> str:
    device = tensor.device.type
    best = next((name for name in offered if DEVICES.get(name) == device), "torch")
    if best == "torch" or tensor.dtype == torch.float64:
        return "torch"
    if installed(best):
        return best
    if op not in _used:
        warnings.warn(
            f"{op} runs on its torch backend: the package {best!r}, which makes it faster here, is not installed.",
            RuntimeWarning,
            stacklevel=4,
        )
    return "torch"


def current_backend() -> dict[str, str]:
    """Operation -> the backends that have run it in this process (`"numba"`, `"numba+torch"`), for results."""
    return {op: "+".join(sorted(names)) for op, names in sorted(_used.items())}


def forget_backends() -> None:
    """Empties the record, so that a new run in the same process starts its own."""
    _used.clear()


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Within the block, operations that offer `name` run on it, all others on `torch`; None restores the automatic rule.

    Raises:
        ConfigError: no operation has a backend of this name.
    """
    if name is not None and name not in DEVICES:
        raise ConfigError(f"Unknown backend {name!r}; known are {', '.join(DEVICES)}.{suggest(name, DEVICES)}")
    token = _asked.set(name)
    try:
        yield
    finally:
        _asked.reset(token)
