"""Minimal pairs: of two sentences that differ in one point of grammar, does a model find the right one likelier?

Paper: BLiMP (1912.00582): 67 paradigms of 1,000 pairs in four fields. Any file with two columns of sentences will do.

Equation: ``accuracy = share of pairs with score(good) > score(bad)``; equal scores count as wrong and are counted. The score is

  causal   ``sum_t log p(s_t | document mark, s_<t)`` over the whole sentence, its end not scored
  masked   ``sum_t log p(s_t | s with s_t masked)``: pseudo-log-likelihood (1910.14659), between the marks of a text

Sentences of unlike length are compared as they are, as in the papers. Intervals are Wilson's (1927), over pairs; pairs of one
paradigm are made by one template, so that they say nothing about other sentences of the language.

B batch, T time, N sentences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from orrery.core.errors import ConfigError, DataError, NonFiniteError
from orrery.core.progress import progress
from orrery.data.marks import frame_ids
from orrery.data.records import read_table
from orrery.data.tokenizers import Tokenizer
from orrery.models.encoder import Encoder
from orrery.models.encoder_decoder import PairFrame
from orrery.models.output import Output
from orrery.models.scoring import nats

TOKENS = 8192  # of one call
GOOD, BAD = "sentence_good", "sentence_bad"


@dataclass(frozen=True)
class Pair:
    """One pair, and what it belongs to."""

    good: str
    bad: str
    paradigm: str = ""
    field: str = ""


def read_pairs(source: str | Path, limit: int | None = None) -> list[Pair]:
    """Pairs of a table with the columns `sentence_good` and `sentence_bad`; `UID` and `field` name paradigm and field.

    Args:
        source: as :func:`orrery.data.records.read_table` takes it; without `UID` the paradigm is the file's name.
        limit: at most so many, from the top.

    Raises:
        DataError: a column is missing, or a sentence is empty.
    """
    table = read_table(source, limit=limit)
    pairs = []
    for row, good, bad in zip(table.rows, table.column(GOOD), table.column(BAD), strict=True):
        for name, sentence in ((GOOD, good), (BAD, bad)):
            if not isinstance(sentence, str) or not sentence.strip():
                raise DataError(f"{row.where}: '{name}' holds no sentence")
        paradigm = str(row.values.get("UID") or table.name.split(".")[0])
        pairs.append(Pair(good, bad, paradigm, str(row.values.get("field") or "")))
    return pairs


def sentence_scores(
    model: nn.Module, tokenizer: Tokenizer, sentences: Sequence[str], tokens: int = TOKENS, quiet: bool = True
) -> NDArray[np.float64]:
    """Log-probability (causal) or pseudo-log-likelihood (masked) of every sentence in nats, (N,).

    Args:
        tokens: of one call of the model; a longer sentence goes alone.

    Raises:
        ConfigError: a model that gives sentences no probability, or a tokenizer without a mask for a masked model.
        NonFiniteError: naming the sentence.
    """
    score = _scorer(model, tokenizer)
    ids = [torch.as_tensor(np.asarray(row, dtype=np.int64)) for row in tokenizer.encode_batch(list(sentences))]
    total = np.zeros(len(ids))
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), progress(len(ids), "sentences", quiet=quiet) as bar:
            for part in _parts([len(row) + 2 for row in ids], tokens, isinstance(model, Encoder)):
                total[part] = score([ids[i] for i in part]).double().cpu().numpy()
                bar.update(len(part))
    finally:
        model.train(training)
    if not np.isfinite(total).all():
        raise NonFiniteError(f"the model gives '{sentences[int(np.argmin(np.isfinite(total)))]}' no finite probability")
    return total


def minimal_pairs(
    model: nn.Module, tokenizer: Tokenizer, pairs: Sequence[Pair], tokens: int = TOKENS, quiet: bool = True
) -> dict[str, Any]:
    """Accuracy over all pairs, by field and by paradigm.

    Returns:
        "score" (which rule); "accuracy", "low", "high", "pairs", "ties"; "fields" and "paradigms": lists of the same by "name",
        in the order of the pairs; "mean_of_paradigms", the figure that BLiMP reports.

    Raises:
        DataError: there is no pair. Others: see :func:`sentence_scores`.
    """
    if not pairs:
        raise DataError("there is no pair to score")
    every = sentence_scores(model, tokenizer, [s for pair in pairs for s in (pair.good, pair.bad)], tokens, quiet)
    good, bad = every[0::2], every[1::2]
    right, ties = good > bad, good == bad
    found = {
        "score": "pseudo-log-likelihood" if isinstance(model, Encoder) else "log-probability",
        **_share(right, ties),
    }
    for name, key in (("fields", "field"), ("paradigms", "paradigm")):
        labels = np.array([getattr(pair, key) for pair in pairs])
        listed = [label for label in dict.fromkeys(labels.tolist()) if label]
        found[name] = [{"name": label, **_share(right[labels == label], ties[labels == label])} for label in listed]
    shares = [one["accuracy"] for one in found["paradigms"]]
    found["mean_of_paradigms"] = float(np.mean(shares)) if shares else found["accuracy"]
    return found


def wilson(right: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share (doi 10.1080/01621459.1927.10502953)."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share, scale = right / count, 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def _share(right: NDArray[np.bool_], ties: NDArray[np.bool_]) -> dict[str, Any]:
    low, high = wilson(int(right.sum()), len(right))
    return {"accuracy": float(right.mean()), "low": low, "high": high, "pairs": len(right), "ties": int(ties.sum())}


def _parts(lengths: Sequence[int], tokens: int, squared: bool) -> list[list[int]]:
    """Sentences that go together, of like lengths; with a masked model a sentence of n tokens stands n times in a call."""
    parts: list[list[int]] = [[]]
    cost = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        own = lengths[index] ** 2 if squared else lengths[index]
        if parts[-1] and cost + own > tokens:
            parts.append([])
            cost = 0
        parts[-1].append(index)
        cost += own
    return [part for part in parts if part]


def _scorer(model: nn.Module, tokenizer: Tokenizer) -> Any:
    """Ids of sentences, a list of (n,) -> their scores (N,)."""
    head = getattr(model, "head", None)
    if isinstance(model, PairFrame):
        raise ConfigError(
            "an encoder-decoder gives a sentence a probability only for a source; minimal pairs need a causal or a masked model"
        )
    if tokenizer.vocab_size > int(getattr(model, "vocab_size", tokenizer.vocab_size)):
        raise ConfigError(
            f"the tokenizer makes {tokenizer.vocab_size} ids, more than the model knows; use the one it was trained with"
        )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if not isinstance(model, Encoder):
        return lambda rows: _causal(model, rows, tokenizer.doc_id, device)
    if head is None or head.level != "vocabulary":
        raise ConfigError(
            "this encoder has no head that scores the vocabulary; minimal pairs need one trained as a masked language model"
        )
    mask = tokenizer.marks.get("mask")
    if mask is None:
        raise ConfigError(f"the tokenizer '{tokenizer.name}' has no mask, which scoring by a masked model needs")
    return lambda rows: _masked(model, rows, frame_ids(tokenizer), mask, device)


def _causal(model: nn.Module, rows: list[Tensor], start: int, device: torch.device) -> Tensor:
    """Padding stands behind, where a causal model's outputs do not reach."""
    tokens = nn.utils.rnn.pad_sequence([torch.cat([row.new_tensor([start]), row]) for row in rows], batch_first=True)
    targets = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    if not targets.shape[1]:
        return torch.zeros(len(rows))
    return -nats(model, model(tokens[:, :-1].to(device)), targets.to(device)).sum(1, dtype=torch.float64)


def _masked(model: Any, rows: list[Tensor], frame: tuple[int, int], mask: int, device: torch.device) -> Tensor:
    """Every sentence as often as it has tokens, each time with another one masked; only masked places go through the head."""
    copies, places, owners, wanted = [], [], [], []
    for owner, row in enumerate(rows):
        whole = torch.cat([row.new_tensor([frame[0]]), row, row.new_tensor([frame[1]])])
        for place in range(1, len(row) + 1):
            copy = whole.clone()
            copy[place] = mask
            copies.append(copy)
            places.append(place)
            owners.append(owner)
            wanted.append(whole[place])
    total = torch.zeros(len(rows), dtype=torch.float64)
    if not copies:
        return total
    tokens = nn.utils.rnn.pad_sequence(copies, batch_first=True)
    sizes = torch.tensor([len(copy) for copy in copies])
    segments = torch.where(torch.arange(tokens.shape[1]) < sizes[:, None], 0, -1)
    plain = bool((segments == 0).all())
    out = model(tokens.to(device), segments=None if plain else segments.to(device))
    hidden = out.hidden[torch.arange(len(copies)), torch.tensor(places)]
    each = -nats(model, Output(hidden[None], None), torch.stack(wanted)[None].to(device))[0]
    return total.index_add_(0, torch.tensor(owners), each.double().cpu())
