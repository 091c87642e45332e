"""Passes joined into programs: the same numbers as pass by pass, on any number of threads and in any order of their arrival."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from orrery.ops import program as programs
from orrery.ops.compiled import Pass, compiled, prepare_blocks
from orrery.ops.program import Program, Steps, flat, joined
from orrery.ops.steps.row_linear import RowNorm, row_linear
from orrery.ops.steps.row_steps import add_rows, best_rows, cap_rows, embed_rows

pytest.importorskip("numba")


@compiled
def _advance(first, last, x, step, scale, up):  # type: ignore[no-untyped-def]
    for i in range(first, last):
        x[i, 0] = x[i, 0] * scale + step if up else x[i, 0] * scale - step


@compiled
def _neighbours(first, last, x, y):  # type: ignore[no-untyped-def]
    for i in range(first, last):
        y[i] = x[(i + 1) % len(x), 0] + x[i - 1, 0]


def chain(count: int = 12) -> tuple[list[Pass], np.ndarray, np.ndarray]:
    """Passes of which each reads what other threads wrote in the one before."""
    x, y = np.arange(7.0)[:, None].repeat(3, 1)[:, 1:], np.zeros(7)  # rows that do not lie next to each other
    passes = []
    for n in range(count):
        passes.append(prepare_blocks(_advance, 7, 1 << 20, x, 0.5 * n, np.float32(0.75), n % 3 > 0))
        passes.append(prepare_blocks(_neighbours, 7, 1 << 20, x, y))
        passes.append(prepare_blocks(_advance, 7, 0, x, 1.0, np.float32(1.0), True))
        passes.append(prepare_blocks(_neighbours, 7, 1 << 20, y[:, None], x[:, 0]))
        passes.append(prepare_blocks(_advance, 7, 0, x, 0.0, np.float32(0.4), True))
    return passes, x, y


def expected(calls: int) -> tuple[np.ndarray, np.ndarray]:
    """What `calls` rounds of the passes leave, one pass after the other."""
    passes, x, y = chain()
    for _ in range(calls):
        for each in passes:
            each()
    return x, y


@pytest.fixture
def two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_one_thread_gives_what_the_passes_give() -> None:
    passes, x, y = chain()
    program = Program(passes, 1)
    program()
    program(2)
    for found, wanted in zip((x, y), expected(3), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_two_threads_give_what_the_passes_give(two_threads: object) -> None:
    passes, x, y = chain()
    (program,) = joined(passes)
    if not isinstance(program, Program) or program.threads != 2:
        pytest.skip("no OpenMP here")
    for _ in range(100):
        program()
    program(100)
    for found, wanted in zip((x, y), expected(200), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_thread_that_never_comes_is_not_missed() -> None:
    """Three places, of which one loop alone comes, or two come one after the other, or at the same time."""
    import numba

    names = {"invoke": programs._invoke(3), "relax": programs._invoke(0), "look": programs._look(), "settle": programs._settle(),
             "swap": programs._swap(), "pause": programs._pause(), "_PATIENCE": 8}  # fmt: skip
    work = numba.njit(programs.types.FunctionType(programs._work.__code__, names), nogil=True)
    passes, x, y = chain()
    program = Program(passes, 3)

    def comes(me: int, turn: int) -> None:
        work(me, 1, turn * (len(program._edges) - 1), program._table, program._edges, program._flags, programs._yield_address())

    comes(2, 0)  # alone
    comes(1, 1)
    comes(0, 1)  # late: finds everything done
    together = [threading.Thread(target=comes, args=(n, 2)) for n in range(3)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join(60)
    assert not any(thread.is_alive() for thread in together)
    for found, wanted in zip((x, y), expected(3), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_neighbours_that_share_no_memory_are_one_stage(two_threads: object) -> None:
    rows, y, z = np.arange(30.0).reshape(10, 3), np.zeros(4), np.zeros(4)

    def passes() -> list[Pass]:
        up, down = rows[:4], rows[5:9]  # apart, though of one array; row 4 is in neither
        return [
            prepare_blocks(_advance, 4, 1 << 20, up, 2.0, np.float32(0.5), True),
            prepare_blocks(_advance, 4, 0, down, 1.0, np.float32(3.0), False),
            prepare_blocks(_neighbours, 4, 1 << 20, up, y),
            prepare_blocks(_neighbours, 4, 1 << 20, down, z),
            prepare_blocks(_advance, 4, 1 << 20, rows[3:7], 1.0, np.float32(1.0), True),  # of both
            prepare_blocks(_advance, 4, 0, rows[::3], 1.0, np.float32(1.0), True),  # reaches over all rows
        ]

    start = rows.copy()
    for each in passes() * 3:
        each()
    wanted = rows.copy(), y.copy(), z.copy()
    rows[:] = start
    program = Program(passes(), 2)
    assert program._edges.tolist() == [0, 2, 4, 5, 6]
    program(3)
    for found, known in zip((rows, y, z), wanted, strict=True):
        np.testing.assert_array_equal(found, known)


def test_what_is_no_pass_stays_between_programs() -> None:
    seen: list[int] = []
    passes, x, _ = chain(2)
    steps = joined([Steps(passes[:4]), Steps((passes[4], Steps((lambda: seen.append(1),)))), passes[5], lambda: seen.append(2)])
    assert [type(step) for step in steps] == [Program, type(lambda: 0), Pass, type(lambda: 0)]
    for step in steps:
        step()
    assert seen == [1, 2]
    passes, wanted, _ = chain(2)
    for each in passes[:6]:
        each()
    np.testing.assert_array_equal(x, wanted)
    assert flat([Steps(passes)]) == passes


def test_a_step_of_maps_joined() -> None:
    generator = torch.Generator().manual_seed(0)
    table, wide, out = (torch.randn(n, m, generator=generator) for n, m in ((50, 24), (66, 24), (24, 33)))
    places, bias = torch.randn(9, 24, generator=generator), torch.randn(24, generator=generator)
    tokens, positions, best = torch.tensor([3, 49]), torch.tensor([8, 0]), torch.zeros(2, dtype=torch.int64)
    x, h, z = torch.empty(2, 24), torch.empty(2, 33), torch.empty(2, 50)
    steps = joined([
        embed_rows(tokens, table, positions, places, x),
        row_linear(x, wide, None, h, RowNorm("rmsnorm", bias, None, 1e-6), "swiglu"),
        row_linear(h, out, bias, x, add=True),
        add_rows(x, x.clone().zero_()),
        row_linear(x, table, None, z),
        cap_rows(z, 3.0),
        best_rows(z, best),
    ])  # fmt: skip
    assert [type(step) for step in steps] == [Program]
    for step in steps:
        step()
    given = table[tokens] + places[positions]
    a, b = torch.nn.functional.linear(torch.nn.functional.rms_norm(given, (24,), bias, 1e-6), wide).chunk(2, -1)
    given = given + torch.nn.functional.linear(torch.nn.functional.silu(a) * b, out, bias)
    scores = 3.0 * torch.tanh(given @ table.T / 3.0)
    torch.testing.assert_close(z, scores, atol=2e-5, rtol=1e-5)
    assert best.tolist() == z.argmax(-1).tolist()


@pytest.mark.parametrize("size", [5, 16, 40])
def test_best_of_a_row(size: int) -> None:
    z, best = torch.zeros(4, size), torch.zeros(4, dtype=torch.int64)
    z[0, [2, 4]] = 1.0  # the first of equals
    z[1, size - 1], z[2, 3], z[3] = torch.inf, torch.nan, -torch.inf
    best_rows(z, best)()
    assert best.tolist() == [2, size - 1, -1, 0]
    z[2], z[0, size - 1] = -1.0, torch.nan
    best_rows(z, best)()
    assert best.tolist() == [-1, size - 1, 0, 0]
