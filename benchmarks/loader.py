"""Does data ever hold a model up? The loader beside the fastest model's step, and how soon a run over much text goes on.

    python benchmarks/loader.py [--write]

Feeding: the same batch shape for both (8 x 512 tokens), two threads; the model's median. The model is the cheapest of the zoo at
the smallest size, so the ratio is the worst case. Resuming: a run over more than 100 million byte tokens (the stdlib corpus again and
again, each time under another heading) is ended with SIGKILL after its first checkpoint; the same command in a fresh process is
timed from the end of its imports to its first new step in the log. `--write` puts both into benchmarks/LOADER.md.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import torch

import orrery
from orrery.core.environment import environment
from orrery.core.memory import keep_large_blocks
from orrery.data import Loader, prepare
from orrery.objectives import create_objective

BATCH, LENGTH, FEEDING = 8, 512, 50.0
TOKENS, RESUMING, TRIALS = 100_000_000, 2.0, 5

RUN = """
import os, sys, time
import torch._dynamo, orrery, orrery.train.run
orrery.create_model("transformer", size="nano", vocab_size=257)  # imports what the model stands on
ready = time.perf_counter()

def watch(event, fields):
    if event == "step" and os.environ.get("WATCH"):
        print(time.perf_counter() - ready, flush=True)
        os._exit(0)

config = {"model": {"name": "transformer", "size": "nano"}, "data": {"corpus": sys.argv[1], "batch": 8, "length": 512},
          "budget": "900steps", "checkpoint": {"every": 3}}
orrery.train(config, sys.argv[2], watch, quiet=True)
"""


def feeding() -> tuple[float, float, str]:
    """Tokens per second of the loader and of the fastest model, and its name."""
    data = prepare("stdlib", "bytes", quiet=True)
    loader = Loader(data.train, BATCH, LENGTH, seed=0)
    loader.batch(0)
    started = time.perf_counter()
    for step in range(1, 401):  # the mean, not the median: work that is done for many steps at once counts
        loader.batch(step)
    fed = 400 * BATCH * LENGTH / (time.perf_counter() - started)
    fastest, name = 0.0, ""
    for name_of in ("lstm", "gru", "transformer", "mamba2"):
        model = orrery.create_model(name_of, size="nano", vocab_size=data.tokenizer.vocab_size, seed=0)
        objective, optimizer, taken = create_objective("next-token"), torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True), []
        for step in range(8):
            batch = loader.batch(step)
            started = time.perf_counter()
            objective(model, batch)[0].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            taken.append(time.perf_counter() - started)
        speed = BATCH * LENGTH / statistics.median(taken[3:])
        if speed > fastest:
            fastest, name = speed, name_of
    return fed, fastest, name


def much_text(file: Path) -> int:
    """Write more than TOKENS bytes of text; the number of bytes."""
    once = prepare("stdlib", "bytes", quiet=True)
    text = once.train.read(0, len(once.train))
    text = text[text < 256].astype("uint8").tobytes()  # without the marks between documents
    written, lines = 0, text.split(b"\n")
    with file.open("wb") as stream:
        for copy in range(1000):
            for number in range(0, len(lines), 400):
                written += stream.write(b"copy %d, part %d\n" % (copy, number) + b"\n".join(lines[number : number + 400]) + b"\n\n")
                if written > TOKENS * 1.2:  # a tenth goes to validation
                    return written
    return written


def resuming(folder: Path) -> tuple[int, list[float]]:
    """Training tokens, and seconds from imports to the first new step, for each trial."""
    os.environ["ORRERY_CACHE"] = str(folder / "cache")  # the shards of this text go with it
    file = folder / "much.txt"
    much_text(file)
    tokens = len(prepare(str(file), "bytes").train)
    taken = []
    for trial in range(TRIALS):
        out = folder / f"run{trial}"
        command = [sys.executable, "-c", RUN, str(file), str(out)]
        with subprocess.Popen(command) as process:
            while not list(out.glob("checkpoint/manifest.json")) and process.poll() is None:
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
        again = subprocess.run(command, env={**os.environ, "WATCH": "1"}, capture_output=True, text=True, check=True)
        taken.append(float(again.stdout.split()[-1]))
    return tokens, taken


def main() -> None:
    """Print, and with --write keep, both tables."""
    torch.set_num_threads(2)
    keep_large_blocks()
    fed, fastest, name = feeding()
    ratio = fed / fastest
    lines = [
        "# The loader, and going on", "",
        f"{environment()['cpu']}, 2 threads, {datetime.now(timezone.utc):%Y-%m-%d}; `python benchmarks/loader.py --write`.", "",
        "| what | measured | asked |", "|---|---|---|",
        f"| loader, batches of {BATCH} x {LENGTH} | {fed / 1e6:,.1f}M tokens/s | |",
        f"| fastest model at nano ({name}), training | {fastest:,.0f} tokens/s | |",
        f"| ratio | {ratio:,.0f}x ({'met' if ratio >= FEEDING else 'short'}) | >= {FEEDING:.0f}x |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        tokens, taken = resuming(Path(folder))
    middle, worst = statistics.median(taken), max(taken)
    lines.append(
        f"| a killed run over {tokens / 1e6:.0f}M tokens, from imports to its next step | {middle:.2f} s, at most {worst:.2f} s of "
        f"{TRIALS} ({'met' if worst < RESUMING else 'short'}) | < {RESUMING:.0f} s |"
    )
    print("\n".join(lines))
    if "--write" in sys.argv:
        Path(__file__).with_name("LOADER.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
