"""Which files a compiled loop is made of: a name for it that changes with every one of them.

numba keeps compiled functions on the disk, by the function's name, and drops them when the function's own file changes. What
the function calls is compiled into it, and may stand in other files: a loop kept from before such a file changed would go
on doing what the file used to say. So a kernel with such parts gets a name that holds a hash of them: of the whole files of
functions that it calls, at any depth, with the modules' names, which what is kept imports, and of the values of its constants.

A file may also change between its import and the first use of its loops, in a long session or while tests run: what is compiled
then is what was imported, but numba would keep it for the file as it is by then, and another process would run old
code for new arguments. So of files that are younger than this process the code itself is hashed as well.

Nothing here imports numba: it reads code objects, some 50 microseconds a kernel, when the kernel is first compiled.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_YOUNG = time.time() - 10  # files that were written later may have changed since they were imported
_CONSTANTS = (bool, int, float, complex, str, bytes, tuple, frozenset, type(None))


def renamed(function: types.FunctionType, *more: str) -> types.FunctionType:
    """`function` under a name with a hash of what it is made of outside of its own file; itself if that is nothing.

    Args:
        more: anything else that decides what is compiled.
    """
    parts = sorted({*ingredients(function), *more})
    if not parts:
        return function
    own = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    own.__module__, own.__doc__, own.__kwdefaults__ = function.__module__, function.__doc__, function.__kwdefaults__
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    own.__qualname__ = f"{function.__qualname__}_{digest}"
    return own


def ingredients(function: types.FunctionType) -> Iterator[str]:
    """The other files that a function is compiled from, with their hashes, and the constants that it and its parts read."""
    own, seen, waiting = function.__code__.co_filename, {function}, [function]
    while waiting:
        each = waiting.pop()
        if each.__code__.co_filename != own:
            yield f"{each.__module__} {file_hash(each.__code__.co_filename)}"
        if _young(each.__code__.co_filename):
            yield f"{each.__qualname__} {_code_hash(each.__code__)}"
        for name, value in _read(each):
            called = _plain(value)
            if called is not None:
                if called not in seen:
                    seen.add(called)
                    waiting.append(called)
            elif isinstance(value, types.ModuleType):
                path = getattr(value, "__file__", None) or ""
                if path.endswith(".py") and value.__name__.partition(".")[0] not in ("numpy", "numba"):
                    yield f"{name} {value.__name__} {file_hash(path)}"
            elif isinstance(value, np.ndarray):
                yield f"{name} = {value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
            elif isinstance(value, (*_CONSTANTS, np.generic)):
                yield f"{name} = {value!r}"


@functools.cache
def file_hash(path: str) -> str:
    """SHA-256 of a source file, read once; of one that is gone, the empty text."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""


def _young(path: str) -> bool:
    with contextlib.suppress(OSError):
        return os.stat(path).st_mtime > _YOUNG
    return True


def _code_hash(code: types.CodeType) -> str:
    """Of what a function does, as it was imported."""
    found = hashlib.sha256(code.co_code)
    for const in code.co_consts:
        found.update(_code_hash(const).encode() if isinstance(const, types.CodeType) else repr(const).encode())
    found.update(repr((code.co_names, code.co_varnames, code.co_freevars)).encode())
    return found.hexdigest()


def _read(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function reads from its module and from around it, by name."""
    waiting = [function.__code__]
    while waiting:
        code = waiting.pop()
        waiting += [const for const in code.co_consts if isinstance(const, types.CodeType)]
        for name in code.co_names:
            if name in function.__globals__:
                yield name, function.__globals__[name]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not filled yet
            yield name, cell.cell_contents


def _plain(value: Any) -> types.FunctionType | None:
    """The Python function in a function, a marked kernel or a compiled one; None for anything else."""
    for inner in (value, getattr(value, "py_func", None), getattr(value, "__wrapped__", None)):
        if isinstance(inner, types.FunctionType):
            return inner
    return None
