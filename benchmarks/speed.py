"""Speed beside peers: `python benchmarks/speed.py [--only NAME] [--rounds N]` writes benchmarks/RESULTS.md; with `--profile NAME`
it prints where the time of a row goes instead.

Rows are kept in results.json with the date and load of their own measurement; `--only` measures some rows anew and leaves
the others, so that the table can be made in pieces on a machine that is not idle for long.

Both sides of a pair are timed in turn (A B A B ...) in the same process with the same number of threads, after warm-up of
both; medians are compared, and the ratio is the median of the rounds' ratios. Training: forward, loss, backward, one fused
AdamW step on 8 x 512 tokens; ours through its objective (chunked cross-entropy), the peer through its own loss. Prefill: all
logits of 4 x 512 tokens, without gradients. Decode: greedy, batch 1, 64 tokens after a prompt of 128. Memory: peak of a
fresh process over three training steps, above what it held before the first. A side that needs longer than a minute for one
call is called once, without warm-up. An architecture that nobody else runs on a CPU has a row without a peer.

Fraction of matmul rate: our model's FLOPs by its own formulas (three forward passes; a larger chunk earns nothing) over
the time, over the float32 matmul rate measured in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from peers import PAIRS, Pair, V
from profiles import decode_lines, lines
from torch import nn
from torch.nn import functional as F

import orrery
from orrery.core.environment import cpu_name, version
from orrery.core.files import read_json, write_json, write_text
from orrery.core.memory import keep_large_blocks
from orrery.objectives import create_objective

RESULTS, ROWS = Path(__file__).with_name("RESULTS.md"), Path(__file__).with_name("results.json")
SLOW = 60.0  # seconds of one call beyond which it is not repeated
BATCH, LENGTH, READ_BATCH, PROMPT, NEW = 8, 512, 4, 128, 64


def data(batch: int, length: int) -> torch.Tensor:
    """Random tokens, the same for everybody."""
    return torch.randint(1, V, (batch, length), generator=torch.Generator().manual_seed(0))


def own_loss(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Our loss: the objective, which never holds all logits."""
    return create_objective("next-token")(model, {"tokens": tokens})[0]


def peer_loss(pair: Pair) -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
    """The peer's own loss."""
    if pair.kind.startswith("hf"):
        return lambda model, tokens: model(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss
    if pair.kind == "gpt":
        return lambda model, tokens: F.cross_entropy(model(tokens[:, :-1])[0].flatten(0, 1), tokens[:, 1:].flatten())
    return lambda model, tokens: F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def trainer(model: nn.Module, loss: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> Callable[[], None]:
    """One optimizer step."""
    optimizer, tokens = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True), data(BATCH, LENGTH + 1)
    model.train()

    def step() -> None:
        loss(model, tokens).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def readers(pair: Pair, own: nn.Module, peer: nn.Module | None) -> tuple[Callable[[], Any], Callable[[], Any] | None]:
    """All logits of a batch, without gradients."""
    tokens = data(READ_BATCH, LENGTH)

    def read(model: nn.Module, kind: str) -> None:
        with torch.inference_mode():
            result = model(tokens)
            _ = result.logits if kind in ("own", "hf", "hf-train") else result

    return lambda: read(own.eval(), "own"), None if peer is None else lambda: read(peer.eval(), pair.kind)


def writers(pair: Pair, own: nn.Module, peer: nn.Module | None) -> tuple[Callable[[], Any], Callable[[], Any] | None] | None:
    """Greedy decoding at batch 1."""
    prompt = data(1, PROMPT)

    def ours() -> None:
        orrery.generate(own, prompt, NEW, temperature=0)

    def hf() -> None:
        with torch.inference_mode():
            assert peer is not None
            peer.eval().generate(prompt, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, use_cache=True, pad_token_id=0)

    def gpt() -> None:
        with torch.inference_mode():
            assert peer is not None
            logits, cache = peer.eval()(prompt)
            for _ in range(NEW):
                logits, cache = peer(logits[:, -1:].argmax(-1), cache)

    if pair.kind in ("plain", "hf-train"):
        return None
    return ours, {"hf": hf, "gpt": gpt}.get(pair.kind)


def seconds_of(work: Callable[[], Any]) -> float:
    """One call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turn(name: str, a: Callable[[], Any], b: Callable[[], Any] | None, rounds: int, tokens: int) -> dict[str, dict[str, float]]:
    """Tokens a second of both, and how many times as fast a is: the median over rounds. `b` None: there is no peer."""
    first = seconds_of(a), 0.0 if b is None else seconds_of(b)
    slow = max(first) > SLOW
    if not slow:
        for work in (a, b):
            _ = work and work()
    times = []
    for _ in range(1 if slow else rounds):
        own = seconds_of(a)
        times.append((own, 0.0 if b is None else first[1] if slow else seconds_of(b)))
    row = {"own": tokens / statistics.median(t[0] for t in times)}
    if b is not None:
        row["peer"] = tokens / statistics.median(t[1] for t in times)
        row["ratio"] = statistics.median(second / first for first, second in times)
    return {name: row}


def matmul_rate() -> float:
    """float32 FLOP/s of a product of 4096 x 1024 by 1024 x 1024, the best of several."""
    a, b = torch.randn(4096, 1024), torch.randn(1024, 1024)
    best = 0.0
    for _ in range(8):
        started = time.perf_counter()
        a @ b
        best = max(best, 2 * 4096 * 1024 * 1024 / (time.perf_counter() - started))
    return best


def measure(pair: Pair, rounds: int) -> dict[str, Any]:
    """All figures of a pair."""
    torch.manual_seed(0)
    own, peer = pair.build()
    row: dict[str, Any] = {"date": f"{datetime.now(timezone.utc):%Y-%m-%d}", "rounds": rounds, "load": os.getloadavg()[0]}
    rate = matmul_rate()
    theirs = None if peer is None else trainer(peer, peer_loss(pair))
    row |= in_turn("train", trainer(own, own_loss), theirs, rounds, BATCH * LENGTH)
    rate = max(rate, matmul_rate())
    row["fraction"] = 3 * own.flops(LENGTH) / LENGTH * row["train"]["own"] / rate
    row |= in_turn("prefill", *readers(pair, own, peer), rounds, READ_BATCH * LENGTH)
    pairs = writers(pair, own, peer)
    if pairs:
        row |= in_turn("decode", *pairs, rounds, NEW)
    row["matmul_rate"] = rate
    return row


def memory(index: int, side: str) -> float:
    """Peak bytes of three training steps above what the process held before them; run in a process of its own."""
    pair = PAIRS[index]
    own, peer = pair.build()
    model, loss = (own, own_loss) if side == "own" or peer is None else (peer, peer_loss(pair))
    del own, peer
    step = trainer(model, loss)
    a = torch.randn(512, 512)
    (a @ a).sum()
    before = forget_peak()
    for _ in range(3):
        step()
    return status_bytes("VmHWM") - before


def status_bytes(field: str) -> float:
    """A field of /proc/self/status in bytes (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024.0 * float(line.split()[1])


def forget_peak() -> float:
    """Let the kernel's record of this process's peak begin anew; returns what the process holds now."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def memory_of(index: int, side: str, threads: int) -> float:
    """`memory` in a fresh process."""
    command = [sys.executable, __file__, "--memory", str(index), side, "--threads", str(threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def mark(value: float | None, target: float | None, least: bool = True) -> str:
    """A ratio with its target, and whether it is met."""
    if value is None:
        return ""
    if target is None:
        return f"{value:.2f}x"
    met = value >= target if least else value <= target
    return f"{value:.2f}x ({'' if met else 'short of '}{'>=' if least else '<='} {target:g})"


def cells(pair: Pair, row: dict[str, Any]) -> list[str]:
    """One line of the table."""
    fraction = f"{row['fraction']:.0%}"
    if pair.fraction:
        fraction += f" ({'' if row['fraction'] >= pair.fraction else 'short of '}>= {pair.fraction:.0%})"
    line = [pair.name, pair.peer or "none"]
    for what in ("train", "prefill", "decode"):
        found = row.get(what)
        speeds = " / ".join(f"{found[side]:,.0f}" for side in ("own", "peer") if side in found) if found else ""
        line += [speeds, mark(found.get("ratio"), getattr(pair, what)) if found else ""]
        line += [fraction] if what == "train" else []
    own, peer = (row["memory"] + [None])[:2]
    line += [f"{own / 1e6:,.0f}" + (f" / {peer / 1e6:,.0f}" if peer else "")]
    return [*line, mark(own / peer if peer else None, pair.memory, least=False), row["date"]]


def table(rows: dict[str, Any], threads: int) -> str:
    """The page, from the rows that are kept."""
    here = [(pair, rows[key(pair)]) for pair in PAIRS if key(pair) in rows]
    rates = [row["matmul_rate"] / 1e9 for _, row in here]
    lines = [
        "# Speed beside peers",
        "",
        f"{cpu_name()}, {threads} threads; torch {torch.__version__}, transformers {version('transformers')}; float32 matmul "
        f"{min(rates):.0f} to {max(rates):.0f} GFLOP/s while the rows were measured; load before a row at most "
        f"{max(row['load'] for _, row in here):.1f}.",
        "",
        "Width 256, 6 layers, vocabulary 8192. Training 8 x 512 tokens, prefill 4 x 512 tokens with all logits, greedy decoding of "
        f"{NEW} tokens after {PROMPT} at batch 1. Ratios are ours over the peer's, medians of rounds in turn, in one process; more is",
        "faster. Memory: peak of three training steps in a fresh process, ours over the peer's; less is better.",
        "How each is measured: `benchmarks/speed.py`; the numbers with all digits: `benchmarks/results.json`.",
        "",
        "| architecture | peer | train tokens/s | ratio | of matmul rate | prefill tokens/s | ratio | decode tokens/s | ratio "
        "| memory MB | ratio | measured |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + ["| " + " | ".join(cells(pair, row)) + " |" for pair, row in here]) + "\n"


def key(pair: Pair) -> str:
    """Name of a pair's row in results.json."""
    return f"{pair.name} beside {pair.peer or 'nobody'}"


def profile(name: str) -> str:
    """Where the time of our side of a row goes."""
    pair = next((pair for pair in PAIRS if pair.name == name), None)
    if pair is None:
        raise SystemExit(f"there is no row '{name}'; known: {', '.join(dict.fromkeys(pair.name for pair in PAIRS))}")
    torch.manual_seed(0)
    own = pair.build()[0]
    rate, cost = matmul_rate(), own.flops(LENGTH) / LENGTH
    page = [f"# {name}: {cpu_name()}, {torch.get_num_threads()} threads", ""]
    page += lines("training step", trainer(own, own_loss), BATCH * LENGTH, 3 * cost * BATCH * LENGTH, rate)
    page += lines("prefill with all logits", readers(pair, own, None)[0], READ_BATCH * LENGTH, cost * READ_BATCH * LENGTH, rate)
    return "\n".join(page + (decode_lines(own, data(1, PROMPT), NEW) if hasattr(own, "stepper") else []))


def main() -> None:
    """Run what was asked for; a whole run takes half an hour."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="architectures to time (may be repeated); the other rows stay as they are")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="print the rows and write nothing")
    parser.add_argument("--profile", metavar="NAME", help="print where the time of one architecture goes, and write nothing")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        print(memory(int(options.memory[0]), options.memory[1]))
        return
    if options.profile:
        keep_large_blocks()
        print(profile(options.profile))
        return
    keep_large_blocks()  # for both sides: they share this process
    rows: dict[str, Any] = read_json(ROWS) if ROWS.exists() and not options.dry else {}
    for index, pair in enumerate(PAIRS):
        if not pair.measurable or (options.only and pair.name not in options.only):
            continue
        sides = ("own", "peer") if pair.peer else ("own",)
        row = measure(pair, options.rounds)
        row["memory"] = [memory_of(index, side, options.threads) for side in sides]
        print(json.dumps({key(pair): row}), file=sys.stderr, flush=True)
        rows[key(pair)] = row
        if not options.dry:
            write_json(ROWS, {key(pair): rows[key(pair)] for pair in PAIRS if key(pair) in rows})
    page = table(rows, options.threads)
    print(page)
    if not options.dry:
        write_text(RESULTS, page)


if __name__ == "__main__":
    main()
