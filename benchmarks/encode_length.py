"""Do encoders without attention cost linearly in the length of a text? Time, memory, and the rate of pNLP-Mixer's projection.

    python benchmarks/encode_length.py [hypermixer] [pnlp-mixer] [bert] [--longest 8192] [--rounds 9] [--threads 1]

One text at a time, no gradients. Every round reads every length from 128, doubling, once; a row is the median over rounds. The
slope is that of log2(time) over log2(length) by least squares: 1 is linear cost, 2 quadratic; below 1 what a call costs in any
case still counts. Its interval: 95 %, bootstrap over rounds (2,000 draws of rounds, the slope of their medians). It is given over
all lengths and over those from 1,024 on, where calls no longer count. Memory: the peak of a fresh process while it reads one text,
above what it held with the model alone.

Width 256, 2 layers, as pNLP-Mixer's default; `bert` is there as the quadratic contrast. pnlp-mixer reads bytes, the others ids.
The projection's rate: words of the docstrings of the standard library, cut, hashed and counted, in as many threads as asked for;
once as they come, where a word that comes again is hashed once a call, and once as a text in which none does. Nothing is kept
between calls.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
from speed import forget_peak, mark, status_bytes

import orrery
from orrery.core.environment import cpu_name
from orrery.data.stdlib import docstrings, standard_library

SHORTEST, CALLS, DRAWS, RATE = 128, 1024, 2000, 100_000
NAMES = ("hypermixer", "pnlp-mixer", "bert")


def text() -> bytes:
    """Docstrings of the standard library."""
    files = sorted(standard_library().glob("*.py"))[:80]
    return " ".join(docstrings(file.read_text(encoding="utf-8")) for file in files).encode()


def build(name: str, longest: int) -> Any:
    """A model of two layers."""
    if name == "pnlp-mixer":
        model: Any = orrery.create_model(name, width=256, depth=2, seed=0, head=None)
    else:
        own = {"max_positions": longest} if name == "bert" else {}
        model = orrery.create_model(name, width=256, depth=2, vocab_size=8192, seed=0, head=None, **own)
    return model.eval()


def tokens(name: str, length: int) -> torch.Tensor:
    """Ids (1,T): bytes of real text where words count."""
    if name == "pnlp-mixer":
        return torch.frombuffer(bytearray(text()[:length]), dtype=torch.uint8).long()[None]
    return torch.randint(0, 8192, (1, length), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def times(name: str, lengths: list[int], rounds: int) -> np.ndarray:
    """Seconds (rounds, lengths)."""
    model, given = build(name, lengths[-1]), tokens(name, lengths[-1])
    found = np.zeros((rounds + 1, len(lengths)))
    for turn in range(rounds + 1):
        for place, length in enumerate(lengths):
            begin = time.perf_counter()
            model(given[:, :length])
            found[turn, place] = time.perf_counter() - begin
    return found[1:]


def slope(lengths: list[int], found: np.ndarray) -> tuple[float, float, float]:
    """Of log2 time over log2 length, from medians over rounds, and its bootstrap interval."""
    x, rng = np.log2(lengths), np.random.default_rng(0)
    drawn = rng.integers(0, len(found), (DRAWS, len(found)))
    values = [np.polyfit(x, np.log2(np.median(found[rows], 0)), 1)[0] for rows in drawn]
    low, high = np.quantile(values, (0.025, 0.975))
    return float(np.polyfit(x, np.log2(np.median(found, 0)), 1)[0]), float(low), float(high)


@torch.inference_mode()
def memory(name: str, length: int) -> float:
    """Peak bytes above those held before the text was read; run in a process of its own."""
    model, given = build(name, length), tokens(name, length)
    model(given[:, :16])
    before = forget_peak()
    model(given)
    return status_bytes("VmHWM") - before


@torch.inference_mode()
def projection(rounds: int, once: bool) -> tuple[float, float, float]:
    """Words a second: cut, hashed and counted (the paper's projection), and with the product that makes vectors of the counts; and
    the share of words whose spelling stood in the text before, which are hashed once. `once`: a text that has no such words."""
    content = text()[: 1 << 18]
    if once:
        content = b" ".join(dict.fromkeys(re.findall(rb"[a-z0-9]+", text().lower())))
    model, given = build("pnlp-mixer", 0), torch.frombuffer(bytearray(content), dtype=torch.uint8).long()[None]
    spent, words, spelled = np.zeros((rounds + 1, 2)), 0, 0
    for turn in range(rounds + 1):
        begin = time.perf_counter()
        reading = model.read(given)
        middle = time.perf_counter()
        words, spelled = len(model._projected(reading, None)), len(reading.buckets)
        spent[turn] = middle - begin, time.perf_counter() - begin
    hashed, whole = words / np.median(spent[1:], 0)
    return float(hashed), float(whole), 1 - spelled / words


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(NAMES))
    parser.add_argument("--longest", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        print(memory(options.names[0], options.memory))
        return 0
    lengths = [SHORTEST << k for k in range(20) if SHORTEST << k <= options.longest]
    print(f"{cpu_name()}, threads: {options.threads}, torch {torch.__version__}, {options.rounds} rounds")
    for name in options.names:
        found = times(name, lengths, options.rounds)
        print(f"{name}: length, milliseconds, megabytes")
        for length, spent in zip(lengths, np.median(found, 0), strict=True):
            command = [sys.executable, __file__, name, "--memory", str(length), "--threads", str(options.threads)]
            held = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
            print(f"  {length:7,}  {spent * 1e3:9.2f}  {held / 1e6:8.1f}", flush=True)
        for least in (SHORTEST, CALLS):
            if sum(length >= least for length in lengths) < 3:
                continue  # no line through fewer
            first = lengths.index(least)
            middle, low, high = slope(lengths[first:], found[:, first:])
            print(f"  slope from {least:,}: {middle:.3f} (95 % {low:.3f} to {high:.3f}; 1 is linear cost)")
    if "pnlp-mixer" in options.names:
        for what, once in (("of running text", False), ("of a text in which no word comes twice", True)):
            hashed, whole, again = projection(options.rounds, once)
            print(f"pNLP-Mixer's projection {what} ({again:.1%} spelled before): {hashed:,.0f} words a second, "
                  f"{mark(hashed / RATE, 1.0)} of {RATE:,}; with its bottleneck {whole:,.0f}, {mark(whole / RATE, 1.0)}")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
