"""Does data ever hold a model up? `python benchmarks/loader.py` times the loader beside the fastest model's training step.

The same batch shape for both (8 x 512 tokens), two threads; the model's median. The model is the cheapest of the zoo at the smallest
size, so the ratio is the worst case.
"""

from __future__ import annotations

import statistics
import time

import torch

import orrery
from orrery.core.memory import keep_large_blocks
from orrery.data import Loader, prepare
from orrery.objectives import create_objective

BATCH, LENGTH, TARGET = 8, 512, 50.0


def main() -> None:
    """Print tokens per second of both and their ratio."""
    torch.set_num_threads(2)
    keep_large_blocks()
    data = prepare("stdlib", "bytes", quiet=True)
    loader = Loader(data.train, BATCH, LENGTH, seed=0)
    loader.batch(0)
    started = time.perf_counter()
    for step in range(1, 401):  # the mean, not the median: work that is done for many steps at once counts
        loader.batch(step)
    feeding = 400 * BATCH * LENGTH / (time.perf_counter() - started)
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
    ratio = feeding / fastest
    print(f"loader {feeding:,.0f} tokens/s; fastest model at nano ({name}) trains {fastest:,.0f} tokens/s")
    print(f"ratio {ratio:.0f} ({'met' if ratio >= TARGET else 'short of'} the target of {TARGET:.0f})")


if __name__ == "__main__":
    main()
