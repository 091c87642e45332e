"""Speed beside peers, in one run: `python benchmarks/speed.py [--only NAME] [--rounds N]` writes benchmarks/RESULTS.md.

Both sides of a pair are timed in turn (A B A B ...) in the same process with the same number of threads, after warm-up of
both; medians are compared, and the ratio is the median of the rounds' ratios. Training: forward, loss, backward, one fused
AdamW step on 8 x 512 tokens; ours through its objective (chunked cross-entropy), the peer through its own loss. Prefill: all
logits of 4 x 512 tokens, without gradients. Decode: greedy, batch 1, 64 tokens after a prompt of 128. Memory: peak of a
fresh process over three training steps, above what it held before the first.

Fraction of matmul rate: our model's FLOPs by its own formulas (three forward passes; a larger chunk earns nothing) over
the time, over the float32 matmul rate measured in the same rounds.
"""

from __future__ import annotations

import argparse
import json
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
from torch import nn
from torch.nn import functional as F

import orrery
from orrery.core.environment import cpu_name, version
from orrery.core.files import write_text
from orrery.core.memory import keep_large_blocks
from orrery.objectives import create_objective

RESULTS = Path(__file__).with_name("RESULTS.md")
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


def readers(pair: Pair, own: nn.Module, peer: nn.Module) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """All logits of a batch, without gradients."""
    tokens = data(READ_BATCH, LENGTH)

    def read(model: nn.Module, kind: str) -> None:
        with torch.inference_mode():
            result = model(tokens)
            _ = result.logits if kind in ("own", "hf", "hf-train") else result

    return lambda: read(own.eval(), "own"), lambda: read(peer.eval(), pair.kind)


def writers(pair: Pair, own: nn.Module, peer: nn.Module) -> tuple[Callable[[], Any], Callable[[], Any]] | None:
    """Greedy decoding at batch 1."""
    prompt = data(1, PROMPT)

    def ours() -> None:
        orrery.generate(own, prompt, NEW, temperature=0)

    def hf() -> None:
        with torch.inference_mode():
            peer.eval().generate(prompt, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, use_cache=True, pad_token_id=0)

    def gpt() -> None:
        with torch.inference_mode():
            logits, cache = peer.eval()(prompt)
            for _ in range(NEW):
                logits, cache = peer(logits[:, -1:].argmax(-1), cache)

    if pair.kind in ("plain", "hf-train"):
        return None
    return ours, hf if pair.kind == "hf" else gpt


def in_turn(a: Callable[[], Any], b: Callable[[], Any], rounds: int) -> tuple[float, float, float]:
    """Median seconds of both, and the median over rounds of b / a: how many times as fast a is."""
    for work in (a, b, a, b):
        work()
    times: list[tuple[float, float]] = []
    for _ in range(rounds):
        pair = []
        for work in (a, b):
            started = time.perf_counter()
            work()
            pair.append(time.perf_counter() - started)
        times.append((pair[0], pair[1]))
    ratio = statistics.median(second / first for first, second in times)
    return statistics.median(t[0] for t in times), statistics.median(t[1] for t in times), ratio


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
    row: dict[str, Any] = {"name": pair.name, "peer": pair.peer}
    rate = matmul_rate()
    a, b, ratio = in_turn(trainer(own, own_loss), trainer(peer, peer_loss(pair)), rounds)
    tokens = BATCH * LENGTH
    rate = max(rate, matmul_rate())
    row["train"] = {"own": tokens / a, "peer": tokens / b, "ratio": ratio}
    row["fraction"] = 3 * BATCH * own.flops(LENGTH) / a / rate
    a, b, ratio = in_turn(*readers(pair, own, peer), rounds)
    row["prefill"] = {"own": READ_BATCH * LENGTH / a, "peer": READ_BATCH * LENGTH / b, "ratio": ratio}
    pairs = writers(pair, own, peer)
    if pairs:
        a, b, ratio = in_turn(*pairs, rounds)
        row["decode"] = {"own": NEW / a, "peer": NEW / b, "ratio": ratio}
    row["matmul_rate"] = rate
    return row


def memory(index: int, side: str) -> float:
    """Peak bytes of three training steps above what the process held before them; run in a process of its own."""
    pair = PAIRS[index]
    own, peer = pair.build()
    model, loss = (own, own_loss) if side == "own" else (peer, peer_loss(pair))
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


def table(rows: list[dict[str, Any]], threads: int, rounds: int) -> str:
    """The page."""
    lines = [
        "# Speed beside peers",
        "",
        f"{datetime.now(timezone.utc):%Y-%m-%d}; {cpu_name()}, {threads} threads; torch {torch.__version__}, "
        f"transformers {version('transformers')}; {rounds} rounds; float32 matmul {max(r['matmul_rate'] for r in rows) / 1e9:.0f} GFLOP/s.",
        "",
        "Width 256, 6 layers, vocabulary 8192. Training 8 x 512 tokens, prefill 4 x 512 tokens with all logits, greedy decoding of "
        f"{NEW} tokens after {PROMPT} at batch 1. Ratios are ours over the peer's, medians of rounds in turn, in one process; more is",
        "faster. Memory: peak of three training steps in a fresh process, ours over the peer's; less is better.",
        "How each is measured: `benchmarks/speed.py`.",
        "",
        "| architecture | peer | train tokens/s | ratio | of matmul rate | prefill tokens/s | ratio | decode tokens/s | ratio | memory MB | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row, pair in ((row, PAIRS[row["index"]]) for row in rows):
        decode = row.get("decode")
        fraction = f"{row['fraction']:.0%}"
        if pair.fraction:
            fraction += f" ({'' if row['fraction'] >= pair.fraction else 'short of '}>= {pair.fraction:.0%})"
        own, peer = row["memory"]
        cells = [
            row["name"],
            row["peer"],
            f"{row['train']['own']:,.0f} / {row['train']['peer']:,.0f}",
            mark(row["train"]["ratio"], pair.train),
            fraction,
            f"{row['prefill']['own']:,.0f} / {row['prefill']['peer']:,.0f}",
            mark(row["prefill"]["ratio"], pair.prefill),
            f"{decode['own']:,.0f} / {decode['peer']:,.0f}" if decode else "",
            mark(decode["ratio"], pair.decode) if decode else "",
            f"{own / 1e6:,.0f} / {peer / 1e6:,.0f}",
            mark(own / peer, pair.memory, least=False),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what was asked for; a whole run takes about ten minutes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="architectures to time (may be repeated); RESULTS.md is then left as it is")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        print(memory(int(options.memory[0]), options.memory[1]))
        return
    keep_large_blocks()  # for both sides: they share this process
    rows = []
    for index, pair in enumerate(PAIRS):
        if options.only and pair.name not in options.only:
            continue
        row = {**measure(pair, options.rounds), "index": index}
        row["memory"] = [memory_of(index, side, options.threads) for side in ("own", "peer")]
        print(json.dumps(row), file=sys.stderr, flush=True)
        rows.append(row)
    page = table(rows, options.threads, options.rounds)
    print(page)
    if not options.only:
        write_text(RESULTS, page)


if __name__ == "__main__":
    main()
