"""Arrays longer than the caches in a compiled loop: rows asked for before they are needed, and rows written past the caches.

    fetch(row)          a row begins to come near while something else is computed
    stream(given, row)  row = given, as whole lines of memory: what stood there is not read, and nothing of it stays near
    settle()            what was streamed is there for every thread

What loads memory ahead of a program follows rising addresses. A loop that goes down through the rows of an array (a gradient through
time) is as fast as one that goes up if it asks for the rows below it in rising order, tile by tile, and puts its results out in
rising order, too; and a line that is written in one piece need not be read first. Streaming is a loss where the array fits
into a cache, since whoever reads it next finds it far away.

Kernels call these by name after :func:`ready`; outside of compiled code they are what the first lines say.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

_LINE = 64  # bytes of a line of memory, or of half of one


def fetch(row: Any) -> None:
    """Ask for a row (contiguous), which is not changed."""


def stream(given: Any, row: Any) -> None:
    """Write a row that begins with a line and is made of whole lines; `given` is as long. Threads see it after `settle`."""
    row[:] = given


def settle() -> None:
    """Once behind everything that was streamed."""


def whole_lines(*tensors: Tensor) -> bool:
    """Whether all rows of these (...,D) can be streamed, and pieces of them that begin at multiples of a line."""
    return all(t.is_contiguous() and t.data_ptr() % _LINE == 0 and t.shape[-1] * t.element_size() % _LINE == 0 for t in tensors)


@functools.cache
def ready() -> None:
    """Tell numba what these are; before a kernel that calls them is first run."""
    from llvmlite import ir
    from numba import extending
    from numba.core import cgutils, types
    from numba.np.arrayobj import make_array

    word, byte = ir.IntType(64), ir.IntType(8).as_pointer()

    def row_of(context: Any, builder: Any, kind: Any, value: Any) -> tuple[Any, Any]:
        array = make_array(kind)(context, builder, value=value)
        return array.data, cgutils.unpack_tuple(builder, array.shape)[0]

    def emit_fetch(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data, count = row_of(context, builder, signature.args[0], args[0])
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        ask, base = builder.module.declare_intrinsic("llvm.prefetch", (byte,), kind), builder.bitcast(data, byte)
        lines = builder.udiv(builder.mul(count, word(signature.args[0].dtype.bitwidth // 8)), word(_LINE))
        with cgutils.for_range(builder, lines) as loop:  # to be read, into the second cache, as data
            builder.call(ask, [builder.gep(base, [builder.mul(loop.index, word(_LINE))]), flag(0), flag(2), flag(1)])
        return context.get_dummy_value()

    def emit_stream(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, _ = row_of(context, builder, signature.args[0], args[0])
        target, count = row_of(context, builder, signature.args[1], args[1])
        numbers = 8 * _LINE // signature.args[1].dtype.bitwidth
        line = ir.VectorType(target.type.pointee, numbers)
        source, target = (builder.bitcast(data, line.as_pointer()) for data in (source, target))
        past = builder.module.add_metadata([ir.IntType(32)(1)])
        with cgutils.for_range(builder, builder.udiv(count, word(numbers))) as loop:
            value = builder.load(builder.gep(source, [loop.index]), align=signature.args[0].dtype.bitwidth // 8)
            builder.store(value, builder.gep(target, [loop.index]), align=_LINE).set_metadata("nontemporal", past)
        return context.get_dummy_value()

    def emit_settle(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    none = types.void
    fetch_row = extending.intrinsic(lambda typing, row: (none(row), emit_fetch))
    stream_row = extending.intrinsic(lambda typing, given, row: (none(given, row), emit_stream))
    settle_all = extending.intrinsic(lambda typing: (none(), emit_settle))

    def fetched(row):  # type: ignore[no-untyped-def]  # numba wants the very signature of the overload
        fetch_row(row)

    def streamed(given, row):  # type: ignore[no-untyped-def]
        stream_row(given, row)

    def settled():  # type: ignore[no-untyped-def]
        settle_all()

    # Written into the kernel: a call would count references, and what counts them also empties what gathers lines.
    extending.overload(fetch, inline="always")(lambda row: fetched)
    extending.overload(stream, inline="always")(lambda given, row: streamed)
    extending.overload(settle, inline="always")(lambda: settled)
