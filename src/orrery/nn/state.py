"""States as values: batch-first NamedTuples that can be kept, forked, reordered and continued any number of times.

A state never aliases a model's buffers: using one twice gives the same answer. A whole model's state is nested tuples
of such NamedTuples; the functions here walk any nesting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from orrery.core.errors import StateError

S = TypeVar("S")


def map_state(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply `function` to every tensor of a nested state; None stays None."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return function(value)
    if hasattr(value, "_fields"):
        return type(value)(*(map_state(function, item) for item in value))
    if isinstance(value, tuple):
        return tuple(map_state(function, item) for item in value)
    raise TypeError(f"a state holds tensors, None and tuples, not {type(value).__name__}")


def state_tensors(value: Any) -> list[Tensor]:
    """All tensors of a nested state, in order."""
    if value is None:
        return []
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in state_tensors(item)]


def state_fields(value: Any) -> list[Tensor]:
    """As `state_tensors`, without clocks."""
    if hasattr(value, "_fields"):
        return [tensor for name, item in zip(value._fields, value, strict=True) if name != "clock" for tensor in state_fields(item)]
    if isinstance(value, tuple):
        return [tensor for item in value for tensor in state_fields(item)]
    return [] if value is None else [value]


def select(value: S, index: Tensor) -> S:
    """Chosen batch rows (an index or boolean mask over B) of every tensor: beam search, dropping finished rows."""
    return map_state(lambda tensor: tensor[index], value)


def detach(value: S) -> S:
    """The same values without history: what a trainer carries from one window to the next."""
    return map_state(torch.Tensor.detach, value)


def settled(value: S) -> S:
    """The same values without history, in memory of their own, each laid out plainly.

    A state that is carried on holds nothing of what made it alive, and continues bit for bit as its copy on a disk does.
    """
    return map_state(lambda tensor: tensor.detach().clone(memory_format=torch.contiguous_format), value)


def rebuild(template: S, tensors: list[Tensor]) -> S:
    """A state of the template's form out of what `state_tensors` gave.

    Raises:
        StateError: when there are too few or too many.
    """
    needed = len(state_tensors(template))
    if needed != len(tensors):
        raise StateError(f"a state of {len(tensors)} tensors is not one of {needed}; it belongs to another architecture")
    rest = iter(tensors)
    return map_state(lambda _: next(rest), template)


def state_bytes(value: Any, clocks: bool = False) -> int:
    """Bytes that a state holds over its whole batch. The clock (16 bytes a row) is bookkeeping, left out by default."""
    if hasattr(value, "_fields"):
        kept = [item for name, item in zip(value._fields, value, strict=True) if clocks or name != "clock"]
        return sum(state_bytes(item, clocks) for item in kept)
    if isinstance(value, tuple):
        return sum(state_bytes(item, clocks) for item in value)
    return 0 if value is None else value.numel() * value.element_size()


def reserve(value: S, capacity: int) -> S:
    """Room for `capacity` tokens in every cache of a nested state, so that a caller who donates it never reallocates."""
    if hasattr(value, "with_capacity"):
        return cast(S, value.with_capacity(capacity))
    if hasattr(value, "_fields"):
        return type(value)(*(reserve(item, capacity) for item in cast(Any, value)))
    if isinstance(value, tuple):
        return cast(S, tuple(reserve(item, capacity) for item in value))
    return value


def state(cls: type[S]) -> type[S]:
    """Class decorator for a NamedTuple of batch-first tensors: adds `select(index)`, `detach()` and `bytes()`."""
    cls.select = select  # type: ignore[attr-defined]
    cls.detach = detach  # type: ignore[attr-defined]
    cls.bytes = state_bytes  # type: ignore[attr-defined]
    return cls
