"""Loops over memory-mapped arrays, compiled by numba at their first call; the same source runs without it, slowly.

Unlike :mod:`orrery.ops.compiled`, which serves torch operations, nothing here imports torch, and a loop may return
numbers. A kernel holds only integers and arrays of integers, so that it means the same in both worlds: compiled over
numpy arrays, or as it stands over memoryviews, whose items are Python integers.

A kernel may call functions of other files: where one of them changes, the kernel is compiled anew (:mod:`orrery.core.kernels`).
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar, cast

from orrery.core.kernels import renamed

F = TypeVar("F", bound=Callable[..., Any])

_pending: list[tuple[Any, bool]] = []  # functions that kernels call and that numba does not know yet


@functools.cache
def available() -> bool:
    """Whether numba can be found; nothing is imported."""
    return importlib.util.find_spec("numba") is not None


def inlined(function: F) -> F:
    """Mark a function that kernels call; outside of them it stays what it is."""
    _pending.append((function, False))
    return function


def tiny(function: F) -> F:
    """:func:`inlined` for a few lines called in the innermost loops, where passing arrays would cost more than they do."""
    _pending.append((function, True))
    return function


class Kernel:
    """A function and, from the first use of :attr:`fast` on, its compiled form, which releases the interpreter lock."""

    def __init__(self, function: Callable[..., Any], bare: bool = False) -> None:
        functools.update_wrapper(self, function)
        self.plain, self._bare = function, bare

    @functools.cached_property
    def fast(self) -> Callable[..., Any]:
        """Compiled, and kept on the disk where numba finds a place; without numba the plain function."""
        return _compile(self.plain, self._bare) if available() else self.plain

    def __call__(self, *args: Any) -> Any:
        return self.fast(*args)


def popcount(x: int) -> int:
    """Bits that are set in a word; one instruction where it is compiled."""
    return (int(x) & 0xFFFFFFFFFFFFFFFF).bit_count()


def kernel(function: Callable[..., Any]) -> Kernel:
    """Mark a function of arrays and integers that is worth compiling."""
    return Kernel(function)


def bare(function: Callable[..., Any]) -> Kernel:
    """:func:`kernel` for loops that make no arrays, only fill those that they are given: no references are counted.

    numba counts the references to an array whenever a function takes it, also one that is inlined: two atomic operations, on
    one word that all threads share. In loops that call functions for every token they take most of the time, and a
    second thread makes it worse: of a binary search, four fifths.
    """
    return Kernel(function, bare=True)


@functools.cache
def _count_in_hardware() -> None:
    """Tell numba what :func:`popcount` is."""
    from numba import types
    from numba.extending import intrinsic, overload

    @intrinsic
    def ctpop(context: Any, x: Any) -> Any:
        return types.int64(types.int64), lambda context, builder, signature, args: builder.ctpop(args[0])

    @overload(popcount, inline="always")
    def counted(x):  # type: ignore[no-untyped-def]
        return lambda x: ctpop(x)  # noqa: PLW0108 - numba wants a function of Python


def _compile(function: Callable[..., Any], bare: bool = False) -> Callable[..., Any]:
    import numba
    from numba import extending

    _count_in_hardware()
    while _pending:
        called, always = _pending.pop()
        extending.register_jitable(error_model="numpy", forceinline=always)(called)
    function = renamed(cast("FunctionType", function), *(["bare"] if bare else []))
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", **({"_nrt": False} if bare else {})}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # no folder that numba may write its cache into
        return numba.njit(function, **options)
