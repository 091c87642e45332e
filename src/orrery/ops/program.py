"""Passes that follow one another, as one call: threads are woken once and meet between the passes.

A pass of a decode step (:func:`orrery.ops.compiled.prepare_blocks`) takes 10 to 50 microseconds, of which Python and its
arguments take one and waking a second thread two; and between the passes of one token weights have pushed the interpreter
out of the caches, so that it takes several times as long as in a loop by itself. Here the passes of a whole token are a list
of addresses, which one compiled loop goes through on every thread.

    piece c of stage s is claimed and done once: flag[c] goes from 2 s - 1 to 2 s to 2 s + 1;  s + 1 begins when all have gone there

A stage is a pass, or several that follow one another and share no memory, so that nothing of one waits for another.

A thread does its own piece, then those that nobody has claimed, then waits for the rest. So a thread that comes late, or
not at all, costs nothing but its help, whatever the scheduler does; nobody ever waits for a piece that has not been begun.
Who waits long lets others have the core. A block writes only its own part of the output, so the results do not depend on
the number of threads.

A kernel meets the list as a C function of (first, last, address of its arguments): numbers, and of an array its data, shape
and strides, one word each.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import platform
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from orrery.core.kernels import renamed
from orrery.ops.compiled import Pass, compiled_with, openmp_threads

_LINE = 16  # numbers between two flags, so that threads do not share a cache line, or two that are fetched together
_PATIENCE = 1 << 12  # looks at a flag, some 50 ns each, before the core is offered to others


class Steps(tuple[Callable[[], Any], ...]):
    """Functions of no arguments, one after the other; a function of no arguments itself."""

    def __call__(self) -> None:
        for step in self:
            step()


def flat(steps: Iterable[Callable[[], Any]]) -> list[Callable[[], Any]]:
    """The single functions behind `steps`, in order."""
    found: list[Callable[[], Any]] = []
    for step in steps:
        found += flat(step) if isinstance(step, Steps) else [step]
    return found


def joined(steps: Iterable[Callable[[], Any]]) -> list[Callable[[], Any]]:
    """The same work in fewer calls: neighbouring passes become one program, everything else stays as it is."""
    found: list[Callable[[], Any]] = []
    run: list[Pass] = []
    threads = openmp_threads()

    def close() -> None:
        found.extend([Program(run, threads)] if len(run) > 1 else run)
        run.clear()

    for step in flat(steps):
        if threads and isinstance(step, Pass) and _kinds(step.given) is not None:
            run.append(step)
        else:
            close()
            found.append(step)
    close()
    return found


class Program:
    """Prepared passes as one call on `threads` threads; what the passes read and write may change between calls, not move."""

    def __init__(self, passes: Iterable[Pass], threads: int) -> None:
        self.passes = tuple(passes)  # keeps the arrays alive
        self.threads, self._turn = threads, 0
        words: list[int] = []
        table, starts = np.empty((len(self.passes), 3), np.int64), []
        for row, each in zip(table, self.passes, strict=True):
            kinds = _kinds(each.given)
            assert kinds is not None
            row[0], row[2] = _address(each.kernel, kinds), each.blocks
            starts.append(len(words))
            for arg in each.given:
                _put(arg, words)
        self._words = np.array(words, np.int64)
        table[:, 1] = self._words.ctypes.data + 8 * np.array(starts)
        self._table, self._flags = table, np.full((threads, _LINE), -1, np.int64)
        self._edges = np.array(_stages(self.passes), np.int64)
        self._run = _loop(threads > 1)
        self._yield = _yield_address()

    def __call__(self, rounds: int = 1) -> None:
        """All passes, `rounds` times over."""
        self._run(self.threads, rounds, self._turn, self._table, self._edges, self._flags, self._yield)
        self._turn += rounds * (len(self._edges) - 1)


def _stages(passes: Sequence[Pass]) -> list[int]:
    """The number of the first pass of every stage, and behind them that of all passes."""
    edges: list[int] = []
    held: list[tuple[int, int]] = []  # memory of the passes of a stage, from and up to
    for number, each in enumerate(passes):
        own = [_bounds(arg) for arg in each.given if type(arg) is np.ndarray and arg.size]
        if not edges or any(low < end and begin < high for low, high in own for begin, end in held):
            edges.append(number)
            held = []
        held += own
    return [*edges, len(passes)]


def _bounds(arg: Any) -> tuple[int, int]:
    """Where an array's memory begins, and where it has ended."""
    begin = arg.__array_interface__["data"][0]
    if arg.flags.c_contiguous:
        return begin, begin + arg.nbytes
    return begin, begin + arg.itemsize + sum((size - 1) * stride for size, stride in zip(arg.shape, arg.strides, strict=True))


def _kinds(given: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """What decides how a kernel is compiled for these arguments; None for some that a program cannot pass on."""
    found: list[Any] = []
    for arg in given:
        if type(arg) is np.ndarray:
            flags = arg.flags
            found.append((arg.dtype.str, arg.ndim, flags.c_contiguous, flags.writeable))
        elif type(arg) in _NUMBERS:
            found.append(_NUMBERS[type(arg)])
        else:
            return None
    return tuple(found)


_NUMBERS: dict[type, str] = {int: "int64", float: "float64", bool: "boolean", np.float32: "float32", np.float64: "float64"}


def _put(arg: Any, words: list[int]) -> None:
    """An argument as 64-bit words."""
    if type(arg) is np.ndarray:
        words.append(arg.__array_interface__["data"][0])
        words += arg.shape
        words += arg.strides
    elif type(arg) is float or type(arg) is np.float64:
        words.append(int(np.float64(arg).view(np.int64)))
    elif type(arg) is np.float32:
        words.append(int(arg.view(np.int32)))
    else:
        words.append(int(arg))


@functools.cache
def _address(kernel: Any, kinds: tuple[Any, ...]) -> int:
    """Of the C function for a kernel and arguments of these kinds, compiled where it is not on the disk."""
    import numba

    template = types.FunctionType(_erased.__code__, {"kernel": kernel.compiled, "fetch": _fetcher(kinds)})
    digest = hashlib.sha256(repr(kinds).encode()).hexdigest()[:12]
    template.__module__, template.__qualname__ = __name__, f"_erased_{kernel.__name__}_{digest}"
    own = renamed(template, f"kernel {kernel.__module__}.{kernel.__qualname__}")
    made = compiled_with(functools.partial(numba.cfunc, "void(int64, int64, int64)"), own, error_model="numpy")
    _kept.append(made)
    return int(made.address)


_kept: list[Any] = []  # compiled functions live as long as somebody holds them


def _erased(first: int, last: int, address: int) -> None:
    """The template of a kernel's C function, which is given its two names by :func:`_address`."""
    kernel(first, last, *fetch(address))  # type: ignore[name-defined]  # noqa: F821


def _fetcher(kinds: tuple[Any, ...]) -> Any:
    """A function for compiled code: the arguments of these kinds from the words at an address."""
    import numba
    from llvmlite import ir
    from numba.core import cgutils
    from numba.extending import intrinsic
    from numba.np.arrayobj import make_array, populate_array

    known = numba.core.types
    found = []
    for kind in kinds:
        if isinstance(kind, str):
            found.append(getattr(known, kind))
        else:
            dtype, dimensions, contiguous, writeable = kind
            layout = "C" if contiguous else "A"
            found.append(known.Array(numba.from_dtype(np.dtype(dtype)), dimensions, layout, readonly=not writeable))
    word = ir.IntType(64)

    def value(context: Any, builder: Any, kind: Any, words: Any) -> Any:
        if not isinstance(kind, known.Array):
            bits = next(words)
            if kind == known.boolean:
                return builder.icmp_unsigned("!=", bits, word(0))
            if kind == known.float32:
                return builder.bitcast(builder.trunc(bits, ir.IntType(32)), ir.FloatType())
            return builder.bitcast(bits, ir.DoubleType()) if kind == known.float64 else bits
        array = make_array(kind)(context, builder)
        data = builder.inttoptr(next(words), array.data.type)
        shape, strides = ([next(words) for _ in range(kind.ndim)] for _ in range(2))
        size = word(context.get_abi_sizeof(context.get_data_type(kind.dtype)))
        pack = functools.partial(cgutils.pack_array, builder, ty=word)
        populate_array(array, data=data, shape=pack(shape), strides=pack(strides), itemsize=size, meminfo=None)
        return array._getvalue()

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base = builder.inttoptr(args[0], word.as_pointer())
        words = (builder.load(builder.gep(base, [word(at)])) for at in range(1 << 20))
        return context.make_tuple(builder, signature.return_type, [value(context, builder, kind, words) for kind in found])

    @intrinsic
    def fetch(typing: Any, address: Any) -> Any:
        return known.Tuple(found)(address), build

    return fetch


@functools.cache
def _loop(parallel: bool) -> Callable[..., None]:
    """The compiled loop over a program, for several threads or for one."""
    import numba

    names = {"prange": numba.prange, "invoke": _invoke(3), "relax": _invoke(0), "look": _look(), "settle": _settle(), "swap": _swap(),
             "pause": _pause(), "_PATIENCE": _PATIENCE}  # fmt: skip
    if not parallel:
        return compiled_with(numba.njit, _named(_alone, names), nogil=True, error_model="numpy")
    names["work"] = numba.njit(types.FunctionType(_work.__code__, names), nogil=True, error_model="numpy")
    return compiled_with(numba.njit, _named(_together, names), nogil=True, error_model="numpy", parallel=True)


def _named(template: Callable[..., None], names: dict[str, Any]) -> types.FunctionType:
    own = types.FunctionType(template.__code__, names)
    own.__module__, own.__qualname__ = __name__, template.__name__
    return renamed(own, sys.platform, platform.machine())


def _alone(threads: int, rounds: int, turn: int, table: Any, edges: Any, flags: Any, give_way: int) -> None:
    for _ in range(rounds):
        for s in range(len(table)):
            invoke(table[s, 0], 0, table[s, 2], table[s, 1])  # type: ignore[name-defined]  # noqa: F821


def _together(threads: int, rounds: int, turn: int, table: Any, edges: Any, flags: Any, give_way: int) -> None:
    for n in prange(threads):  # type: ignore[name-defined]  # noqa: F821
        work(n, rounds, turn, table, edges, flags, give_way)  # type: ignore[name-defined]  # noqa: F821


def _work(me, rounds, turn, table, edges, flags, give_way):  # type: ignore[no-untyped-def]
    """What one thread does of a program: `flags` (threads, line) stand at 2 turn - 1 when it begins."""
    pieces, stages = len(flags), len(edges) - 1
    for at in range(rounds * stages):
        s, free = at % stages, 2 * (turn + at) - 1
        for offset in range(pieces):
            c = (me + offset) % pieces
            if look(flags, c) == free and swap(flags, c, free, free + 1):  # type: ignore[name-defined]  # noqa: F821
                for n in range(edges[s], edges[s + 1]):
                    blocks = table[n, 2]
                    first, last = (blocks * c + pieces - 1) // pieces, (blocks * (c + 1) + pieces - 1) // pieces
                    if first < last:
                        invoke(table[n, 0], first, last, table[n, 1])  # type: ignore[name-defined]  # noqa: F821
                settle(flags, c, free + 2)  # type: ignore[name-defined]  # noqa: F821
        for c in range(pieces):
            looks = 0
            while look(flags, c) < free + 2:  # type: ignore[name-defined]  # noqa: F821
                pause()  # type: ignore[name-defined]  # noqa: F821
                looks += 1
                if looks >= _PATIENCE and give_way != 0:
                    relax(give_way)  # type: ignore[name-defined]  # noqa: F821


def _intrinsic(arguments: int, kind: str, build: Callable[..., Any]) -> Any:
    """A function for compiled code: `build(builder, context, types, values)`."""
    import numba
    from numba.extending import intrinsic

    returned = getattr(numba.core.types, kind)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        found = build(builder, context, signature.args, args)
        return context.get_dummy_value() if kind == "void" else found

    bodies: dict[int, Any] = {
        0: lambda typing: (returned(), emit),
        1: lambda typing, a: (returned(a), emit),
        2: lambda typing, a, b: (returned(a, b), emit),
        3: lambda typing, a, b, c: (returned(a, b, c), emit),
        4: lambda typing, a, b, c, d: (returned(a, b, c, d), emit),
    }
    return intrinsic(bodies[arguments])


def _invoke(arguments: int) -> Any:
    """`invoke(function, *arguments)`: call the C function at an address, of so many int64."""
    from llvmlite import ir

    word = ir.IntType(64)
    kind = ir.FunctionType(ir.VoidType(), [word] * arguments)
    return _intrinsic(1 + arguments, "void", lambda b, context, types, v: b.call(b.inttoptr(v[0], kind.as_pointer()), v[1:]))


def _place(builder: Any, context: Any, kinds: Any, values: Any) -> Any:
    """Where the first number of row values[1] of the array values[0] stands."""
    from numba.core import cgutils
    from numba.np.arrayobj import make_array

    array = make_array(kinds[0])(context, builder, value=values[0])
    return builder.gep(array.data, [builder.mul(values[1], cgutils.unpack_tuple(builder, array.shape)[1])])


def _look() -> Any:
    """`look(flags, c)`: the flag of row c, with everything that was written before it was set."""
    return _intrinsic(2, "int64", lambda b, context, kinds, v: b.load_atomic(_place(b, context, kinds, v), "acquire", 8))


def _settle() -> Any:
    """`settle(flags, c, value)`: set it."""
    return _intrinsic(3, "void", lambda b, context, kinds, v: b.store_atomic(v[2], _place(b, context, kinds, v), "release", 8))


def _swap() -> Any:
    """`swap(flags, c, old, new)`: set it to new if it is old; whether it was."""

    def build(builder: Any, context: Any, kinds: Any, v: Any) -> Any:
        return builder.extract_value(builder.cmpxchg(_place(builder, context, kinds, v), v[2], v[3], "acq_rel", "acquire"), 1)

    return _intrinsic(4, "boolean", build)


def _pause() -> Any:
    """`pause()`: wait a few cycles in a loop that looks at memory."""
    from llvmlite import ir

    name = {"x86_64": "llvm.x86.sse2.pause", "amd64": "llvm.x86.sse2.pause"}.get(platform.machine().lower())

    def build(builder: Any, context: Any, kinds: Any, v: Any) -> Any:
        if name is not None:
            builder.call(builder.module.declare_intrinsic(name, (), ir.FunctionType(ir.VoidType(), [])), [])

    return _intrinsic(0, "void", build)


@functools.cache
def _yield_address() -> int:
    """Of the system's function that lets others have the core; 0 where there is none."""
    try:
        library: Any = ctypes.CDLL("kernel32") if sys.platform == "win32" else ctypes.CDLL(None)
        function = library.SwitchToThread if sys.platform == "win32" else library.sched_yield
    except (OSError, AttributeError):
        return 0
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)
