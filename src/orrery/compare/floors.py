"""Lines for orientation: counting models on the same training tokens, scored on the same text as the models.

A bigram and an interpolated Kneser-Ney 5-gram (see :mod:`orrery.ngram.counts`) are counted on the very batches that a run
sees, so they say what the tokens alone hold before any architecture has a merit. The number beside the models' final
quality is scored on their validation windows. The line beside their learning curves is scored as those curves are, on the
batches of the training stream that come next: the two texts differ in how hard they are. Windows start without memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from orrery.compare.analyse import band
from orrery.compare.protocol import STREAM, bytes_per_token
from orrery.compare.result import Floor
from orrery.data import Dataset, Loader, ValidationWindows
from orrery.ngram.counts import BackoffModel, KneserNey

MOST = 4_000_000  # training tokens counted at most: more would take longer than the line is worth
ORDERS = (("bigram", 2), ("Kneser-Ney 5-gram", 5))
SHARES = (0.1, 0.2, 0.4, 0.7, 0.92)  # of the steps, for the curve
AHEAD = 0.08  # of the steps: what a point of the curve is scored on, right behind what it has counted


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
    rows = [loader.arrays(step)["tokens"] for step in range(steps)]
    stream = np.concatenate([row[:, :-1].reshape(-1) for row in rows])
    vocabulary, per_token = data.tokenizer.vocab_size, bytes_per_token(data)
    found = []
    for label, order in ORDERS:
        line = {}
        for share in SHARES:
            seen = max(1, int(share * steps))
            ahead = np.concatenate(rows[seen : seen + max(1, int(AHEAD * steps))] or rows[-1:])
            counts = KneserNey.fit(stream[: seen * loader.tokens_per_step], vocabulary, order, None)
            targets = len(ahead) * (ahead.shape[1] - 1)
            line[float(seen * loader.tokens_per_step)] = nats(counts, ahead) / math.log(2) / targets / per_token
        detail = f"counted on the {len(stream):,} tokens that seed {seed} trains on"
        if steps * loader.tokens_per_step < tokens - loader.tokens_per_step:
            detail += f" first (of {tokens:,})"
        quality = score(KneserNey.fit(stream, vocabulary, order, None), windows)
        found.append(Floor(label, quality, detail, band({str(seed): line}, "training tokens", "bits per byte", STREAM)))
    return found


def nats(counts: BackoffModel, rows: np.ndarray) -> float:
    """Nats of every token but the first of each row (R,T+1)."""
    return -sum(float(counts.log_probabilities(row)[1:].sum()) for row in rows)


def score(counts: BackoffModel, windows: ValidationWindows) -> float:
    """Bits per byte over validation windows."""
    nats = 0.0
    for number in range(len(windows)):
        rows = windows.arrays(number)
        for tokens, segments in zip(rows["tokens"], rows["segments"], strict=True):
            valid: Sequence[int] | np.ndarray = tokens[segments >= 0]
            nats -= float(counts.log_probabilities(np.asarray(valid))[1:].sum())
    return nats / math.log(2) / windows.bytes
