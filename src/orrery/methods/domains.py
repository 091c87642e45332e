"""What continued pre-training gains on its domain and loses on what came before: one task, one noise, before and after.

The domain is the corpus that is trained on, its held-out side; the other is the corpus that the model came from. Both models meet
the same windows with the same noise, so their losses are compared window by window.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from orrery.data.dataset import prepare
from orrery.data.loader import Loader
from orrery.data.tokenizers import Tokenizer
from orrery.evaluate.predictions import paired_interval
from orrery.objectives import create_objective
from orrery.train.engine import Pair

SEED, ROWS = 20_260_101, 4


def domain_losses(
    before: nn.Module, after: nn.Module, tokenizer: Tokenizer, corpora: dict[str, str], objective: str, settings: dict[str, Any],
    length: int, tokens: int, strict: bool = False, quiet: bool = True,
) -> list[dict[str, Any]]:
    """Losses of two models on the held-out sides of corpora.

    Args:
        corpora: by role, such as {"domain": "law/", "origin": "stdlib"}.
        objective, settings: what both are asked. length: of a window. tokens: about so many are read of each corpus; 0: all.

    Returns:
        For each corpus "role", "corpus", "before", "after" (nats per target), "difference" and its 95 % interval "low", "high"
        over groups of windows; None of a corpus so small that there is one group.
    """
    found = []
    for role, corpus in corpora.items():
        file = prepare(corpus, tokenizer, strict, quiet=quiet).validation
        count = max(1, min(len(file), tokens or len(file)) // (ROWS * length))
        items = []
        for model in (before, after):
            pair = Pair(model, create_objective(objective, **settings), tokenizer).eval()
            items.append(_items(pair, Loader(file, ROWS, length, SEED), count))
        gap = paired_interval(_mean, items[1], items[0])
        values = {"before": _mean(items[0]), "after": _mean(items[1])}
        low, high = (gap.low, gap.high) if count > 1 else (None, None)
        found.append({"role": role, "corpus": corpus, **values, "difference": gap.estimate, "low": low, "high": high})
    return found


def _mean(items: Any) -> float:
    return float(items["nats"].sum() / max(1.0, items["targets"].sum()))


@torch.no_grad()
def _items(pair: nn.Module, loader: Loader, batches: int) -> dict[str, Any]:
    nats, targets = [], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        for number in range(batches):
            metrics = pair(loader.batch(number))[1]
            targets.append(float(metrics["tokens"]))
            nats.append(float(metrics["loss"]) * targets[-1])
    return {"nats": np.array(nats), "targets": np.array(targets)}
