"""The fused linear cross-entropy beside `F.cross_entropy(F.linear(...))`: time of forward and backward, and peak memory.

    python benchmarks/cross_entropy.py [THREADS]

Times are interleaved, one repetition of each way after the other; the ratio is the median of the pairs'. Memory is the
growth of the process' high-water mark (Linux), each way in a process of its own.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from orrery.ops.losses.cross_entropy import chunk_rows, linear_cross_entropy

SHAPES = ((4096, 256, 257), (4096, 256, 8192), (4096, 512, 32000), (2048, 768, 50257))  # rows, width, classes
PEAK = """
import sys, torch
import torch.nn.functional as F
from orrery.ops.losses.cross_entropy import linear_cross_entropy
def mark():  # of this process alone; getrusage would begin at its parent's
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
n, d, v = map(int, sys.argv[2:])
h, w, t = torch.randn(n, d).requires_grad_(), torch.randn(v, d).requires_grad_(), torch.randint(0, v, (n,))
linear_cross_entropy(h[:64], w[:64], t[:64] % 64).loss.backward()
h.grad = w.grad = None
before = mark()
(linear_cross_entropy(h, w, t).loss if sys.argv[1] == "fused" else F.cross_entropy(F.linear(h, w), t)).backward()
print(mark() - before)
"""


def seconds(shape: tuple[int, int, int], repeats: int = 9) -> tuple[float, float, float]:
    """Median seconds of the plain and of the fused way, and the median of their ratios."""
    rows, width, classes = shape
    hidden = torch.randn(rows, width).requires_grad_()
    weight = (0.05 * torch.randn(classes, width)).requires_grad_()
    targets = torch.randint(0, classes, (rows,))
    ways = (
        lambda: F.cross_entropy(F.linear(hidden, weight), targets),
        lambda: linear_cross_entropy(hidden, weight, targets).loss,
    )
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        for way, spent in zip(ways, times, strict=True):
            hidden.grad = weight.grad = None
            start = time.perf_counter()
            way().backward()
            spent.append(time.perf_counter() - start)
    plain, fused = (spent[1:] for spent in times)
    return (
        statistics.median(plain),
        statistics.median(fused),
        statistics.median(p / f for p, f in zip(plain, fused, strict=True)),
    )


def megabytes(way: str, shape: tuple[int, int, int]) -> float:
    """Growth of the high-water mark over one forward and backward."""
    command = [sys.executable, "-c", PEAK, way, *map(str, shape)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Print one line per shape."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, forward and backward")
    print("rows   width classes | chunk | plain ms  fused ms  plain/fused | plain MB  fused MB")
    for shape in SHAPES:
        plain, fused, ratio = seconds(shape)
        chunk = chunk_rows(shape[0], shape[2], torch.device("cpu"))
        memory = [megabytes(way, shape) for way in ("plain", "fused")]
        print(
            f"{shape[0]:5} {shape[1]:6} {shape[2]:7} | {chunk:5} | {1e3 * plain:8.1f} {1e3 * fused:9.1f} {ratio:12.2f} |"
            f" {memory[0]:8.0f} {memory[1]:9.0f}"
        )


if __name__ == "__main__":
    main()
