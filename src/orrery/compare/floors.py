"""Lines for orientation: counting models on the same training tokens, scored on the same validation windows.

A bigram and an interpolated Kneser-Ney 5-gram (see :mod:`orrery.ngram.counts`) are counted on the very batches that a run
sees, so they say what the tokens alone hold before any architecture has a merit. Windows are scored as for every model:
each starts without memory, so no context is longer than a model's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from orrery.compare.analyse import band
from orrery.compare.result import Floor
from orrery.data import Dataset, Loader, ValidationWindows
from orrery.ngram.counts import KneserNey

MOST = 4_000_000  # training tokens counted at most: more would take longer than the line is worth
ORDERS = (("bigram", 2), ("Kneser-Ney 5-gram", 5))
SHARES = (0.1, 0.3, 1.0)  # of the tokens, for the curve


def floors(data: Dataset, windows: ValidationWindows, tokens: int, batch: int, length: int, seed: int) -> list[Floor]:
    """Bits per byte of the counting models after (a part of) the tokens that a run sees.

    Args:
        windows: the fixed validation sample.
        tokens: training tokens of a run.
        batch, length, seed: of its loader.
    """
    loader = Loader(data.train, batch, length, seed)
    once = loader.sequences * length  # text counted twice would look more regular than it is
    steps = max(1, min(tokens, MOST, once) // loader.tokens_per_step)
    stream = np.concatenate([loader.arrays(step)["tokens"][:, :-1].reshape(-1) for step in range(steps)])
    found = []
    for label, order in ORDERS:
        line = {}
        for share in SHARES:
            part = stream[: max(length, int(share * len(stream)))]
            counts = KneserNey.fit(part, data.tokenizer.vocab_size, order, None)
            line[float(len(part))] = score(counts, windows)
        detail = f"counted on the {len(stream):,} tokens that seed {seed} trains on"
        if steps * loader.tokens_per_step < tokens - loader.tokens_per_step:
            detail += f" first (of {tokens:,})"
        found.append(Floor(label, line[float(len(stream))], detail, band({str(seed): line}, "training tokens", "bits per byte")))
    return found


def score(counts: KneserNey, windows: ValidationWindows) -> float:
    """Bits per byte over validation windows."""
    nats = 0.0
    for number in range(len(windows)):
        rows = windows.arrays(number)
        for tokens, segments in zip(rows["tokens"], rows["segments"], strict=True):
            valid: Sequence[int] | np.ndarray = tokens[segments >= 0]
            nats -= float(counts.log_probabilities(np.asarray(valid))[1:].sum())
    return nats / math.log(2) / windows.bytes
