"""Is the cost linear? `python benchmarks/length.py mamba2 lstm transformer [--longest 65536] [--rounds 5]`

`--tag recurrent` measures every architecture that carries the tag; `--factor 4` takes every fourth length, `--rows` prints one
row of a Markdown table for each.

Time per token of reading (no gradients, batch 1, the state carried through windows of `--window` tokens, so memory does
not grow with the text) at each length from 1k, doubling, and of decoding one token after as many. Every round reads every
length once, in turn; a row is the median over rounds. The slope is that of log2(time per token) over log2(length), by
least squares for every round, with the 95 % t-interval over rounds: 0 is linear cost, 1 quadratic. Bytes of state are
counted on the state itself. Compiling loops and caches are warmed before.

Nano models of 257 ids; times are of this machine now, so run it alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import orrery
from orrery.core import registry
from orrery.core.environment import cpu_name
from orrery.evaluate.statistics import t_interval
from orrery.nn.contract import Context
from orrery.nn.state import map_state, reserve


def read(model: Any, tokens: Tensor, window: int) -> Any:
    """The state after tokens (1,T), read window by window."""
    state: Any = None
    for start in range(0, tokens.shape[1], window):
        state = model(tokens[:, start : start + window], state=state).state
    return state


def decode(model: Any, tokens: Tensor, state: Any, count: int) -> float:
    """Seconds per token of single steps as `generate` takes them, from a state of its own; the median of them."""
    capacity, times = tokens.shape[1] + count + 2, []
    step = model.stepper(map_state(torch.clone, state), capacity) or called(model, reserve(state, capacity))
    for place in range(count + 2):
        token = tokens[:, place % 1024]
        begin = time.perf_counter()
        step(token)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


def called(model: Any, state: Any) -> Callable[[Tensor], Tensor]:
    """The step of a model that has no prepared one."""

    def step(token: Tensor) -> Tensor:
        nonlocal state
        out = model(token[:, None], state=state, ctx=Context(donate=True))
        state = out.state
        return model.head(out.hidden)

    return step


@torch.inference_mode()
def measure(name: str, lengths: list[int], rounds: int, window: int, count: int) -> dict[str, Any]:
    """All figures of one architecture."""
    model: Any = orrery.create_model(name, size="nano", seed=0).eval()
    tokens = torch.randint(0, 256, (1, lengths[-1]), generator=torch.Generator().manual_seed(0))
    decode(model, tokens, read(model, tokens[:, : 2 * window], window), 4)
    reading, writing, held = np.zeros((rounds, len(lengths))), np.zeros((rounds, len(lengths))), []
    for turn in range(rounds):
        for place, length in enumerate(lengths):
            begin = time.perf_counter()
            state = read(model, tokens[:, :length], window)
            reading[turn, place] = (time.perf_counter() - begin) / length
            writing[turn, place] = decode(model, tokens, state, count)
            if not turn:
                held.append(int(state.bytes()))
    return {
        "name": name,
        "lengths": lengths,
        "read_us": (1e6 * np.median(reading, 0)).tolist(),
        "decode_us": (1e6 * np.median(writing, 0)).tolist(),
        "state_bytes": held,
        "read_slope": slope(lengths, reading),
        "decode_slope": slope(lengths, writing),
    }


def slope(lengths: list[int], times: np.ndarray) -> dict[str, float]:
    """Of log2 time per token over log2 length: mean over rounds and its 95 % t-interval."""
    x = np.log2(lengths)
    interval = t_interval([np.polyfit(x, np.log2(row), 1)[0] for row in times])
    return {"slope": interval.estimate, "low": interval.low, "high": interval.high}


def table(found: dict[str, Any]) -> str:
    """One architecture as text."""
    lines = [f"{found['name']}: length, microseconds a token read, milliseconds a token decoded, bytes of state"]
    for row in zip(found["lengths"], found["read_us"], found["decode_us"], found["state_bytes"], strict=True):
        lines.append(f"  {row[0]:7,}  {row[1]:8.2f}  {row[2] / 1000:8.3f}  {row[3]:12,}")
    for what, word in (("read", "reading"), ("decode", "decoding")):
        s = found[f"{what}_slope"]
        lines.append(
            f"  slope of {word}: {s['slope']:+.3f} (95 % {s['low']:+.3f} to {s['high']:+.3f}; 0 is linear cost)"
        )
    return "\n".join(lines)


HEADING = """| nano, batch 1 | us a token read: 1k | {}k | slope of reading (95 %) | ms a token decoded: 1k | {}k | slope of decoding (95 %) \
| bytes of state |
|---|---|---|---|---|---|---|---|"""


def row(found: dict[str, Any]) -> str:
    """One architecture as a row: first and last length, slopes, bytes of state (at 1k and at the end where they differ)."""
    cells = [found["name"]]
    for what, digits, unit in (("read", 2, 1), ("decode", 3, 1000)):
        s = found[f"{what}_slope"]
        cells += [f"{found[f'{what}_us'][place] / unit:.{digits}f}" for place in (0, -1)]
        cells.append(f"{s['slope']:+.3f} ({s['low']:+.3f} to {s['high']:+.3f})")
    held = found["state_bytes"]
    cells.append(f"{held[0]:,}" if len(set(held)) == 1 else f"{held[0]:,} to {held[-1]:,}")
    return f"| {' | '.join(cells)} |"


def architectures(tag: str) -> list[str]:
    """Names of the architectures with a tag, without their published sizes."""
    return [
        name
        for name in registry.names(kind="architecture", tags=(tag,))
        if "architecture" in registry.lookup(name).kinds and registry.lookup(name).name == name
    ]


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="architectures")
    parser.add_argument("--tag", help="all architectures with this tag, in place of names")
    parser.add_argument("--factor", type=int, default=2, help="from one length to the next")
    parser.add_argument("--rows", action="store_true", help="a Markdown table")
    parser.add_argument("--longest", type=int, default=65536)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--decode", type=int, default=24, help="tokens decoded after each length")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lengths = [1024]
    while lengths[-1] < options.longest:
        lengths.append(options.factor * lengths[-1])
    names = options.names or architectures(options.tag or "recurrent")
    if options.rows:
        print(HEADING.format(*[lengths[-1] // 1024] * 2))
    elif not options.json:
        print(
            f"{cpu_name()}, {options.threads} threads, torch {torch.__version__}; nano, batch 1, {options.rounds} rounds"
        )
    for name in names:
        found = measure(name, lengths, options.rounds, options.window, options.decode)
        print(json.dumps(found) if options.json else row(found) if options.rows else table(found), flush=True)


if __name__ == "__main__":
    main()
