"""What an objective's training step costs beside plain next-token prediction, with the same model and batch.

    python benchmarks/objectives.py [THREADS]

Steps are interleaved; the ratio is the median of the rounds' own ratios. Forward and backward, without the optimizer
(which would flatter the ratio). Transformer of width 256, 6 layers, 8 x 512 tokens.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

import orrery

CASES = (
    ("emo, adaptive costs", "emo", {}),
    ("emo, fixed costs", "emo", {"costs": "fixed"}),
    ("emo, emphasis emo", "emo", {"emphasis": "emo"}),
    ("mixce", "mixce", {}),
    ("tailr", "tailr", {"gamma": 0.1}),
)


def step(objective, model, batch) -> float:
    """Seconds of one forward and backward pass."""
    model.zero_grad()
    start = time.perf_counter()
    objective(model, batch)[0].backward()
    return time.perf_counter() - start


def zipf(vocabulary: int) -> dict[str, torch.Tensor]:
    """Tokens with the frequencies of text (1/rank): how often a chunk repeats its targets decides EMO's cost."""
    weights = 1.0 / torch.arange(1, vocabulary + 1)
    drawn = torch.multinomial(weights, 8 * 513, replacement=True, generator=torch.Generator().manual_seed(0))
    return {"tokens": drawn.view(8, 513)}


def main() -> None:
    """Print a row per case and vocabulary."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    for vocabulary in (257, 8192):
        model = orrery.create_model("transformer", width=256, depth=6, vocab_size=vocabulary, seed=1)
        batch, plain = zipf(vocabulary), orrery.create_objective("next-token")
        others = [orrery.create_objective(name, **settings) for _, name, settings in CASES]
        for objective in (plain, *others):
            step(objective, model, batch)
        rounds = []
        for _ in range(5):
            base = step(plain, model, batch)
            rounds.append([base, *(step(objective, model, batch) for objective in others)])
        base = statistics.median(row[0] for row in rounds)
        print(f"vocabulary {vocabulary}: next-token {base * 1e3:.0f} ms a step")
        for index, (label, *_) in enumerate(CASES, 1):
            ratio = statistics.median(row[index] / row[0] for row in rounds)
            print(f"  {label:22} {ratio:.3f} of next-token's time")


if __name__ == "__main__":
    main()
