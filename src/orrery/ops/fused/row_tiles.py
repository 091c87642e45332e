"""A linear map of some ten to a hundred rows whose weights are read once, in order: reading one short text on a CPU, in float32.

    y = act(x W^T + b);   act: see ACTIVATIONS of :mod:`orrery.ops.steps.row_linear`, none that is gated

A product of so few rows is half computing and half waiting for weights, which general libraries lay out anew each time. Here
W lies in blocks of SIZE outputs, (blocks, I, SIZE), so that a thread reads its blocks from front to back. A tile of rows times
a block stays in registers from the first input to the last, and the first tile asks for weights some way ahead. On two cores
with AVX-512, weights cold, 21 rows, all maps of four layers of a BERT of width 256: 0.96 ms, MKL 1.64 ms; warm 0.76 and 1.18.

The tile is written in LLVM's vectors, which become what the processor has; nothing else keeps its sums in registers. No gradient.

N rows, I inputs, O outputs.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orrery.ops.compiled import compiled, expm1, inlined, prepare_blocks
from orrery.ops.steps.row_linear import ACTIVATIONS, GATED, activated

SIZE = 32  # outputs of a block: two registers of AVX-512, four of AVX
SPARE = 2  # rows behind the last that a tile may read and write
_LANES = 16
_AHEAD = 4096  # numbers, 16 kB
GELU = ACTIVATIONS.index("gelu")
_ONE, _HALF, _ROOT = np.float32(1.0), np.float32(0.5), np.float32(0.5**0.5)
_P, _A1, _A2, _A3, _A4, _A5 = (np.float32(c) for c in (0.3275911, 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429))

_TALL = False  # these wait for `install`
_address: Any = None
_tile_3: Any = None
_tile_6: Any = None
_tile_9: Any = None
_tile_12: Any = None


def blocked(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """W (O,I) and b (O,) laid out for :func:`tile_linear`: (blocks,I,SIZE) and (blocks*SIZE,), zeros behind the last output; copies."""
    outputs, inputs = weight.shape
    blocks = -(-outputs // SIZE)
    rows = weight.new_zeros(blocks * SIZE, inputs)
    rows[:outputs] = weight.detach()
    shift = weight.new_zeros(blocks * SIZE)
    if bias is not None:
        shift[:outputs] = bias.detach()
    return rows.view(blocks, SIZE, inputs).transpose(1, 2).contiguous(), shift


def tile_linear(x: Tensor, weight: Tensor, bias: Tensor, y: Tensor, activation: str = "") -> Any:
    """A function that reads x and writes y each time it is called.

    Args:
        x: (N,I), y: (N,O), float32, contiguous; SPARE more rows lie behind each in its own memory, which may be overwritten.
        weight, bias: as :func:`blocked` gives them.
        activation: one of ACTIVATIONS, none that is gated.
    """
    code = ACTIVATIONS.index(activation)
    assert code < GATED and tuple(weight.shape[1:]) == (x.shape[1], SIZE) and len(weight) == -(-y.shape[1] // SIZE)
    install()
    arrays = [spared(x).numpy(), weight.numpy(), bias.numpy(), spared(y).numpy()]
    return prepare_blocks(_linear, len(weight), 2 * weight.numel() * len(x), *arrays, len(x), code)


def spared(x: Tensor) -> Tensor:
    """X (N,...) and the SPARE rows behind it; raises where its memory ends before."""
    return torch.as_strided(x, (len(x) + SPARE, *x.shape[1:]), x.stride())


@functools.cache
def install() -> None:
    """Make the tiles, which kernels that call `tiles` need before they are compiled; numba is imported now."""
    globals().update(_address=_make_address(), **{f"_tile_{height}": _make_tile(height) for height in (3, 6, 9, 12)}, _TALL=_tall())


def _tall() -> bool:
    """Whether a tile of 12 rows fits into the registers: 24 sums of 16 numbers."""
    from llvmlite import binding

    return bool(binding.get_host_cpu_features().get("avx512f", False))


def _make_address() -> Any:
    """`_address(a, n)`: where the n-th number of a contiguous array stands."""
    import numba
    from numba.extending import intrinsic
    from numba.np.arrayobj import make_array

    types = numba.core.types

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.gep(make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])

    @intrinsic
    def address(typing: Any, a: Any, n: Any) -> Any:
        return types.CPointer(a.dtype)(a, types.intp), build

    return address


def _make_tile(height: int) -> Any:
    """`_tile(x, next, w, ahead, inputs, b, y, below)`: y (height,SIZE) = b + x (height,inputs) w (inputs,SIZE).

    next, below: numbers from a row of x and y to the following one. ahead: how far before its use a weight is asked for.
    """
    import numba
    from llvmlite import ir
    from numba.core import cgutils
    from numba.extending import intrinsic

    types = numba.core.types
    word, index, number = ir.IntType(64), ir.IntType(32), ir.FloatType()
    vector, byte = ir.VectorType(number, _LANES), ir.IntType(8).as_pointer()
    parts = SIZE // _LANES
    zeros = ir.Constant(ir.VectorType(index, _LANES), [0] * _LANES)
    nothing = ir.Constant(vector, ir.Undefined)

    def build(context: Any, b: Any, signature: Any, args: Any) -> Any:
        x, following, w, ahead, inputs, bias, y, below = args
        fma = cgutils.get_or_insert_function(b.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{_LANES}f32")
        fetch = cgutils.get_or_insert_function(b.module, ir.FunctionType(ir.VoidType(), [byte, *[index] * 3]), "llvm.prefetch.p0")

        def places(base: Any) -> list[Any]:
            return [b.bitcast(b.gep(base, [word(part * _LANES)]), vector.as_pointer()) for part in range(parts)]

        rows = [b.gep(x, [b.mul(following, word(r))]) for r in range(height)]
        first = [b.load(place, align=4) for place in places(bias)]
        before, loop, after = b.block, b.append_basic_block(), b.append_basic_block()
        b.branch(loop)
        b.position_at_end(loop)
        k = b.phi(word)
        k.add_incoming(word(0), before)
        sums = [[b.phi(vector) for _ in range(parts)] for _ in rows]
        here = b.gep(w, [b.mul(k, word(SIZE))])
        weights = [b.load(place, align=4) for place in places(here)]
        for place in places(b.gep(here, [ahead])):
            b.call(fetch, [b.bitcast(place, byte), index(0), index(2), index(1)])  # to be read, into the second cache, data
        found = []
        for row, own in zip(rows, sums, strict=True):
            one = b.shuffle_vector(b.insert_element(nothing, b.load(b.gep(row, [k])), index(0)), nothing, zeros)
            found.append([b.call(fma, [one, weight, total]) for weight, total in zip(weights, own, strict=True)])
        then = b.add(k, word(1))
        k.add_incoming(then, loop)
        for own, new in zip(sums, found, strict=True):
            for total, start, value in zip(own, first, new, strict=True):
                total.add_incoming(start, before)
                total.add_incoming(value, loop)
        b.cbranch(b.icmp_signed("<", then, inputs), loop, after)
        b.position_at_end(after)
        for r, new in enumerate(found):
            for value, place in zip(new, places(b.gep(y, [b.mul(below, word(r))])), strict=True):
                b.store(value, place, align=4)
        return context.get_dummy_value()

    @intrinsic
    def tile(typing: Any, x: Any, following: Any, w: Any, ahead: Any, inputs: Any, bias: Any, y: Any, below: Any) -> Any:
        n = types.intp
        return types.void(x, n, w, n, n, bias, y, n), build

    return tile


@inlined
def tiles(x, at, following, w, block, inputs, bias, begin, y, to, below, rows):  # type: ignore[no-untyped-def]
    """Rows of `inputs` numbers each, from x[at], times w[block], a block (inputs,SIZE); SIZE numbers each from y[to].

    Arrays are contiguous; at, block, begin (of the bias) and to count numbers; up to SPARE rows more are read and written.
    """
    done, ahead = 0, _AHEAD
    weights, start = _address(w, block), _address(bias, begin)
    while done < rows:
        left, given, out = rows - done, _address(x, at + done * following), _address(y, to + done * below)
        if _TALL and left > 9:
            _tile_12(given, following, weights, ahead, inputs, start, out, below)
            done += 12
        elif _TALL and left > 6:
            _tile_9(given, following, weights, ahead, inputs, start, out, below)
            done += 9
        elif _TALL and left > 3:
            _tile_6(given, following, weights, ahead, inputs, start, out, below)
            done += 6
        else:
            _tile_3(given, following, weights, ahead, inputs, start, out, below)
            done += 3
        ahead = 0


@inlined
def gelu(v):  # type: ignore[no-untyped-def]
    """v Phi(v) of a float32, by Abramowitz and Stegun's 7.1.26 (within 1.5e-7): math.erf would be a call for every number."""
    x = abs(v) * _ROOT
    t = _ONE / (_ONE + _P * x)
    beyond = t * (_A1 + t * (_A2 + t * (_A3 + t * (_A4 + t * _A5)))) * (expm1(-x * x) + _ONE) * _HALF
    return v * (_ONE - beyond if v > 0 else beyond)


@compiled
def _linear(first, last, x, weight, bias, y, rows, activation):  # type: ignore[no-untyped-def]
    inputs, outputs = x.shape[1], y.shape[1]
    part = np.empty((rows + SPARE, SIZE), np.float32) if outputs % SIZE > 0 else y
    for block in range(first, last):
        begin = block * SIZE
        count = min(SIZE, outputs - begin)
        if count == SIZE:
            tiles(x, 0, inputs, weight, block * inputs * SIZE, inputs, bias, begin, y, begin, outputs, rows)
        else:
            tiles(x, 0, inputs, weight, block * inputs * SIZE, inputs, bias, begin, part, 0, SIZE, rows)
            for n in range(rows):
                for j in range(count):
                    y[n, begin + j] = part[n, j]
        if activation > 0:
            for n in range(rows):
                row = y[n, begin : begin + count]
                if activation == GELU:
                    for j in range(count):
                        row[j] = gelu(row[j])
                else:
                    for j in range(count):
                        row[j] = activated(row[j], activation)
