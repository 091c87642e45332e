"""Loops that numba compiles: plain functions over arrays, compiled at their first call, run on several threads.

A kernel is a module-level function of numpy arrays, marked with :func:`compiled`; numba is imported and the function
compiled when it is first called, so importing an op costs nothing. Kernels release the interpreter lock and take a range
of blocks `first, last` as their first two arguments, which :func:`run_blocks` spreads over threads. A block writes only
its own part of the output, so results do not depend on the number of threads.

Threads are OpenMP's where numba has it: a loop that takes 0.7 ms on one core, called between torch products on two cores,
adds 0.4 ms to them; with Python threads of our own it added 1.0 ms, more than on one thread, because torch's workers spin
between calls and ours had to wake up beside them. Elsewhere, and in a forked process, which must not enter OpenMP again,
a thread pool runs the blocks; numba's own work queue never does, since it aborts the process when two Python threads
enter it, as a server or autograd may do.

What kernels call instead of the C library, without branches, so that the compiler vectorises the loop around it, and with
products and sums contracted (a fused multiply-add rounds once); times on one core with AVX-512: `exp`, always float64, 0.7 ns
against 2.2 ns, within 1 unit in the last place, exactly 0 below -708 and infinity above 709; `sigmoid` and `tanh`, in the type of
their argument, 0.4 and 0.5 ns in float32 with a relative error below 2e-7 (sigmoid below -87 stays at 2e-38), and `expm1` (0.4 ns)
and `softplus`, as exact near 0 (softplus within 3e-7; below -87 it stays at 2e-38); `split_exp` gives the two parts of an exponential, from
which a loop takes e^x or e^x - 1, whichever keeps its digits.
`dot`, the sum of products in whatever order is fastest, reads a row as fast as
memory gives it.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import torch

from orrery.core.kernels import renamed

_LOG2_HIGH, _LOG2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # their sum is log 2 to 90 bits
_INVERSE_LOG2 = 1.0 / math.log(2.0)
_C2, _C3, _C4, _C5, _C6, _C7 = (1.0 / math.factorial(n) for n in range(2, 8))
_C8, _C9, _C10, _C11, _C12, _C13 = (1.0 / math.factorial(n) for n in range(8, 14))
_ROUND, _ONE_BITS = 1.5 * 2.0**52, 1023 << 52  # x + _ROUND is rounded to an integer, which stands in the lowest bits

# Numbers below which starting a second thread (some 30 microseconds) costs more than it gains.
_WORTH_A_THREAD = 1 << 16


def exp(x: float) -> float:
    """e^x in float64 without a branch or a call, so that the compiler can vectorise the loop around it."""
    p, scale = _split_exp_float64(x)
    result = 0.0 if x < -708.0 else scale * p + scale
    return np.inf if x > 709.0 else result


def _split_exp_float64(x):  # type: ignore[no-untyped-def]
    y = -709.0 if x < -709.0 else x
    y = 709.0 if y > 709.0 else y
    shifted = y * _INVERSE_LOG2 + _ROUND
    n = shifted - _ROUND
    r = (y - n * _LOG2_HIGH) - n * _LOG2_LOW  # |r| <= log(2) / 2: the Taylor series to r^13 is exact to rounding
    p = ((((_C13 * r + _C12) * r + _C11) * r + _C10) * r + _C9) * r + _C8
    p = (((((p * r + _C7) * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2
    return p * (r * r) + r, np.int64((np.float64(shifted).view(np.int64) << 52) + _ONE_BITS).view(np.float64)


_F = np.float32
_ONE, _TWO, _LOWEST, _HIGHEST = _F(1.0), _F(2.0), _F(-87.0), _F(87.0)
_INVERSE_LOG2_F, _LOG2_HIGH_F, _LOG2_LOW_F = _F(1.0 / math.log(2.0)), _F(0.693359375), _F(math.log(2.0) - 0.693359375)
_ROUND_F, _ONE_BITS_F = _F(1.5 * 2.0**23), 127 << 23
# Of the polynomials of their degree the one that makes the relative error of e^r - 1 for |r| <= log(2) / 2 least, 1.3e-8.
_F2, _F3, _F4, _F5, _F6 = (_F(c) for c in (0.49999997, 0.16666543, 0.0416672, 0.0083665475, 0.0013882517))


def _parts(x):  # type: ignore[no-untyped-def]
    """float32 (e^r - 1, 2^n) with x = n log 2 + r, for x between -88 and 87; 2^n is 0 where it would be less than 2^-126."""
    shifted = x * _INVERSE_LOG2_F + _ROUND_F
    n = shifted - _ROUND_F
    r = (x - n * _LOG2_HIGH_F) - n * _LOG2_LOW_F
    p = (((_F6 * r + _F5) * r + _F4) * r + _F3) * r + _F2
    return p * (r * r) + r, np.int32((np.float32(shifted).view(np.int32) << 23) + _ONE_BITS_F).view(np.float32)


_NOTHING = _F(-88.0)  # where the second part of _parts is 0


def _split_exp_float32(x):  # type: ignore[no-untyped-def]
    y = _NOTHING if x < _NOTHING else x
    return _parts(_HIGHEST if y > _HIGHEST else y)


def _sigmoid_float32(x):  # type: ignore[no-untyped-def]
    y = _LOWEST if -x < _LOWEST else -x
    y = _HIGHEST if y > _HIGHEST else y
    p, scale = _parts(y)
    return _ONE / (_ONE + (scale * p + scale))


def _tanh_float32(x):  # type: ignore[no-untyped-def]
    y = -_TWO * abs(x)
    y = _LOWEST if y < _LOWEST else y
    p, scale = _parts(y)
    e = scale * p + (scale - _ONE)  # e^{-2|x|} - 1 without cancellation
    t = -e / (_TWO + e)
    return t if x > 0 else -t


def _sigmoid_float64(x):  # type: ignore[no-untyped-def]
    return 1.0 / (1.0 + exp(-x))


def _tanh_float64(x):  # type: ignore[no-untyped-def]
    p, scale = _split_exp_float64(-2.0 * abs(x))
    e = scale * p + (scale - 1.0)
    t = -e / (2.0 + e)
    return t if x > 0 else -t


def _expm1_float32(x):  # type: ignore[no-untyped-def]
    y = _LOWEST if x < _LOWEST else x
    y = _HIGHEST if y > _HIGHEST else y
    p, scale = _parts(y)
    return scale * p + (scale - _ONE)


def _expm1_float64(x):  # type: ignore[no-untyped-def]
    p, scale = _split_exp_float64(x)
    return np.inf if x > 709.0 else scale * p + (scale - 1.0)


_ZERO, _TINY = _F(0.0), _F(1e-10)
_L3, _L5, _L7, _L9, _L11, _L13, _L15 = (_F(1.0 / n) for n in range(3, 16, 2))


def _softplus_float32(x):  # type: ignore[no-untyped-def]
    y = -abs(x)
    y = _LOWEST if y < _LOWEST else y
    p, scale = _parts(y)
    u = scale * p + scale
    s = u / (_TWO + u)  # log(1 + u) = 2 artanh(u / (2 + u)), whose series in s <= 1/3 is short
    q = s if s > _TINY else _TINY  # what underflows takes a processor a hundred times as long
    q = q * q
    series = _ONE + q * (_L3 + q * (_L5 + q * (_L7 + q * (_L9 + q * (_L11 + q * (_L13 + q * _L15))))))
    return (x if x > 0 else _ZERO) + _TWO * s * series


def _softplus_float64(x):  # type: ignore[no-untyped-def]
    return (x if x > 0 else 0.0) + np.log1p(exp(-abs(x)))


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x); inside a kernel, in the type of x."""
    return 1.0 / (1.0 + math.exp(-x))


def tanh(x: float) -> float:
    """The hyperbolic tangent; inside a kernel, in the type of x."""
    return math.tanh(x)


def expm1(x: float) -> float:
    """e^x - 1; inside a kernel, in the type of x."""
    return math.expm1(x)


def split_exp(x: float) -> tuple[float, float]:
    """(p, 2^n) with e^x = 2^n p + 2^n and p = e^r - 1, |r| <= log(2) / 2; n = 0, and p = e^x - 1, for |x| < log(2) / 2.

    Inside a kernel, in the type of x, for x from -88 to 87 in float32 and -709 to 709 in float64; below, both parts of the
    sum are exactly 0, above it stays as it is.
    """
    scale = 2.0 ** round(x / math.log(2.0))
    return math.exp(x) / scale - 1.0, scale


def softplus(x: float) -> float:
    """log(1 + e^x); inside a kernel, in the type of x."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def dot(a, b):  # type: ignore[no-untyped-def]
    """sum_i a_i b_i of two rows of one length; only here may the compiler reorder a sum."""
    total = a.dtype.type(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@functools.cache
def _numba() -> Any:
    import numba
    from numba import extending

    extending.register_jitable(fastmath={"contract", "reassoc", "nsz"})(dot)
    inner = (exp, _split_exp_float64, _parts, _split_exp_float32, _sigmoid_float32, _tanh_float32, _sigmoid_float64)
    for function in (*inner, _tanh_float64, _expm1_float32, _softplus_float32, _expm1_float64, _softplus_float64):
        extending.register_jitable(fastmath={"contract"}, error_model="numpy")(function)
    single = numba.types.float32
    extending.overload(sigmoid)(lambda x: _sigmoid_float32 if x == single else _sigmoid_float64)
    extending.overload(tanh)(lambda x: _tanh_float32 if x == single else _tanh_float64)
    extending.overload(expm1)(lambda x: _expm1_float32 if x == single else _expm1_float64)
    extending.overload(split_exp)(lambda x: _split_exp_float32 if x == single else _split_exp_float64)
    extending.overload(softplus)(lambda x: _softplus_float32 if x == single else _softplus_float64)
    return numba


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Mark a kernel. It is compiled at its first call for the argument types it meets, and cached on disk where possible."""
    return functools.wraps(function)(_Kernel(function))


class _Kernel:
    """A kernel and what has been compiled of it: itself, and a loop that runs its blocks on OpenMP's threads."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> None:
        self.compiled(*args)

    @functools.cached_property
    def compiled(self) -> Callable[..., None]:
        return _compile(self._function)

    @functools.cached_property
    def spread(self) -> Callable[..., None]:
        """`spread(threads, blocks, *args)`, kept on the disk like the kernel, whose file is one of its parts."""
        own = types.FunctionType(_spread.__code__, {"kernel": self.compiled, "prange": _numba().prange})
        own.__qualname__ = f"_spread_{self._function.__name__}"
        own.__module__ = __name__
        return _compile(own, parallel=True)


def _spread(threads: int, blocks: int, *args: Any) -> None:
    """The template of :attr:`_Kernel.spread`, which gives it the two names that it lacks."""
    for n in prange(threads):  # type: ignore[name-defined]  # noqa: F821
        kernel(blocks * n // threads, blocks * (n + 1) // threads, *args)  # type: ignore[name-defined]  # noqa: F821


_pending: list[Any] = []  # functions that kernels call and that numba does not know yet


def inlined(function: Any) -> Any:
    """Mark a function that kernels call; outside of them it stays what it is."""
    _pending.append(function)
    return function


def _compile(function: Callable[..., None], parallel: bool = False) -> Callable[..., None]:
    numba = _numba()
    while _pending:
        numba.extending.register_jitable(fastmath={"contract"}, error_model="numpy")(_pending.pop())
    options: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy", "parallel": parallel}
    function = renamed(cast("types.FunctionType", function))  # a kernel is compiled anew when a file of its parts changes
    return cast("Callable[..., None]", compiled_with(numba.njit, function, **options))


def compiled_with(compiler: Callable[..., Any], function: Any, **options: Any) -> Any:
    """`function` by one of numba's compilers, kept on the disk where there is a folder that numba may write its cache into."""
    try:
        return compiler(cache=True, **options)(function)
    except RuntimeError:
        return compiler(**options)(function)


@functools.cache
def _openmp_process() -> int:
    """The process that may enter OpenMP; 0 where numba has none. A forked child inherits the answer of its parent."""
    numba = _numba()
    try:
        importlib.import_module("numba.np.ufunc.omppool")
    except ImportError:
        return 0
    numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
    return os.getpid()


@functools.cache
def _pool(process: int, workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="orrery-kernel")


class Pass(functools.partial[None]):
    """A kernel with its arguments, to be called again and again: `given` are those behind first and last, over all of `blocks`."""

    kernel: Any
    blocks: int
    given: tuple[Any, ...]

    def of(self, kernel: Any, blocks: int, given: tuple[Any, ...]) -> Pass:
        """This pass, saying what it is made of."""
        self.kernel, self.blocks, self.given = kernel, blocks, given
        return self


def openmp_threads() -> int:
    """As many threads as kernels run on here, where they may share one parallel region; 0 where that is not so."""
    threads = torch.get_num_threads()
    if threads <= 1:
        return 1
    if os.getpid() != _openmp_process():
        return 0
    numba = _numba()
    threads = min(threads, numba.config.NUMBA_NUM_THREADS)
    if numba.get_num_threads() != threads:
        numba.set_num_threads(threads)
    return int(threads)


def run_blocks(kernel: Callable[..., None], blocks: int, work: int, *args: Any) -> None:
    """Run `kernel(first, last, *args)` over all of `blocks`, on as many threads as torch uses.

    Args:
        kernel: a function marked with :func:`compiled`.
        blocks: number of independent blocks.
        work: numbers touched in all; small work stays on one thread.
        args: arrays and numbers, the same for every thread.
    """
    prepare_blocks(kernel, blocks, work, *args)()


def prepare_blocks(kernel: Callable[..., None], blocks: int, work: int, *args: Any) -> Callable[[], None]:
    """:func:`run_blocks` as a function to call again and again, while `args` are overwritten in place."""
    threads = min(torch.get_num_threads(), blocks, max(1, work // _WORTH_A_THREAD))
    if not isinstance(kernel, _Kernel):
        return functools.partial(_run_on_pool, kernel, threads, blocks, *args) if threads > 1 else functools.partial(kernel, 0, blocks, *args)
    if threads <= 1:
        return Pass(kernel.compiled, 0, blocks, *args).of(kernel, blocks, args)
    nested = any(isinstance(each, tuple) for each in args)  # which numba cannot take into a parallel loop
    if not nested and (most := openmp_threads()):
        return Pass(kernel.spread, min(threads, most), blocks, *args).of(kernel, blocks, args)
    return Pass(_run_on_pool, kernel, threads, blocks, *args).of(kernel, blocks, args)


def _run_on_pool(kernel: Callable[..., None], threads: int, blocks: int, *args: Any) -> None:
    edges = [blocks * n // threads for n in range(threads + 1)]
    pool = _pool(os.getpid(), threads - 1)
    waiting = [pool.submit(kernel, edges[n], edges[n + 1], *args) for n in range(threads - 1)]
    kernel(edges[-2], edges[-1], *args)
    for future in waiting:
        future.result()
