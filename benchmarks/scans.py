"""How far scans are from the memory: `python benchmarks/scans.py [--threads 2] [--rounds 20]`

Every recurrence of the diagonal family, 8 x 2048 x 512 (batch, tokens, channels), forward and backward as a model calls them, beside what
copying takes to move the bytes that the pass cannot avoid: every array read or written once. Copying is `y.copy_(x)` in
memory that the process holds, one byte read and one written for each it copies, measured in turn with the passes; the fastest of
all rounds counts. An array that a compiled loop writes is also read once by the processor, line by line, before it is
overwritten, which copying can avoid; that is not counted, so a loop that is bound by memory alone stands at 1.3x to 1.4x.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from orrery.core.environment import cpu_name
from orrery.core.memory import keep_large_blocks
from orrery.ops.diagonal_scan import diagonal_scan
from orrery.ops.rg_lru import rg_lru
from orrery.ops.selective_scan import selective_scan
from orrery.ops.wkv4 import wkv4

BATCH, TIME, WIDTH, STATES, IN_A_ROW = 8, 2048, 512, 16, 4


class Scan(NamedTuple):
    """A recurrence with its inputs, and how many arrays (B,T,D) a pass reads and writes."""

    call: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    forward: int
    backward: int


def scans(batch: int, time: int, width: int) -> dict[str, Scan]:
    """The recurrences by name; inputs drawn from a fixed seed."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    def rows() -> Tensor:
        return normal(batch, time, width)

    decay, pace = torch.exp(normal(width)), torch.nn.functional.softplus(normal(width))
    rates = torch.arange(1.0, STATES + 1).repeat(width, 1)
    first = torch.arange(time) == 0
    return {
        "diagonal_scan": Scan(lambda a, b: diagonal_scan(a, b)[0], (-torch.exp(3 * rows() - 2), rows()), 3, 5),
        "wkv4": Scan(lambda k, v: wkv4(k, v, -decay, pace)[0], (rows(), rows()), 3, 6),
        "rg_lru": Scan(lambda x, i, r: rg_lru(x, i, r, pace, first)[0], (rows(), rows(), rows()), 4, 8),
        "selective_scan": Scan(
            lambda x, d, b, c: selective_scan(x, d, -rates, b, c)[0],
            (rows(), rows() - 3, normal(batch, time, STATES), normal(batch, time, STATES)),
            3,
            5,
        ),
    }


def fastest(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of the fastest call of each, called in turn."""
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(IN_A_ROW):
                begin = time.perf_counter()
                call()
                best[name] = min(best[name], time.perf_counter() - begin)
    return best


def passes(scan: Scan) -> tuple[Callable[[], object], Callable[[], object]]:
    """The forward pass as training calls it, and the backward pass alone."""
    inputs = [x.requires_grad_() for x in scan.inputs]
    y = scan.call(*inputs)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return lambda: scan.call(*inputs), lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", help="one recurrence")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_large_blocks()
    source = torch.randn(BATCH, TIME, WIDTH)
    target, size = torch.empty_like(source), source.numel() * source.element_size()
    shape = f"{BATCH} x {TIME} x {WIDTH}"
    print(f"{cpu_name()}, {options.threads} threads, {shape}, the fastest of {options.rounds} rounds\n")
    print("| recurrence | copying | forward | over copying | backward | over copying |")
    print("|---|---|---|---|---|---|")
    for name, scan in scans(BATCH, TIME, WIDTH).items():
        if options.only not in (None, name):
            continue
        forward, backward = passes(scan)
        best = fastest({"copy": lambda: target.copy_(source), "forward": forward, "backward": backward}, options.rounds)
        array = best["copy"] / 2  # seconds to read or to write one array
        cells = [f"{2 * size / best['copy'] / 1e9:.1f} GB/s"]
        for key, count in (("forward", scan.forward), ("backward", scan.backward)):
            cells += [f"{best[key] * 1e3:.1f} ms", f"{best[key] / (array * count):.2f}x"]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
