"""Does a model go on reading well beyond the length it was trained on? Bits per byte by position in the document.

Documents are read whole with the state carried (:mod:`orrery.evaluate.carried`), and the nats of all targets with position p
in a bucket are summed, p = 1 for a document's first token. A document's bytes are spread evenly over its targets, so

    bits per byte of a bucket = sum of nats / ln 2 / (targets in the bucket * the document's bytes / its targets, summed)

and the buckets' bytes add up to the text's. Intervals are bootstrapped over documents. Later buckets hold only the
documents that are long enough, so a row differs from the one above it in its texts too; `least` asks for documents of at
least so many tokens, which makes all rows up to there rows of the same documents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from orrery.core.errors import ConfigError, DataError
from orrery.data.shards import TokenFile
from orrery.evaluate.carried import Policy, read_carried
from orrery.evaluate.statistics import bootstrap

LONGEST = 1 << 16
_RESAMPLES = 2000


def default_edges(longest: int = LONGEST, first: int = 64) -> list[int]:
    """Ends of buckets: first, then doubling, up to `longest`."""
    edges = [min(first, longest)]
    while edges[-1] < longest:
        edges.append(min(2 * edges[-1], longest))
    return edges


def by_position(
    model: nn.Module,
    tokens: TokenFile,
    edges: Sequence[int] | None = None,
    least: int = 0,
    max_bytes: int | None = None,
    length: int = 256,
    batch_size: int = 16,
    policy: Policy | None = None,
    dtype: torch.dtype = torch.float32,
    quiet: bool = True,
) -> dict[str, Any]:
    """Bits per byte in buckets of position.

    Args:
        model: a causal model that continues from a state.
        tokens: held-out documents.
        edges: last positions of the buckets, ascending; None: 64, 128, ... 65536.
        least: only documents of at least so many tokens.
        max_bytes: the longest documents up to so many bytes of text (at least one document); None: all.
        length: tokens of a window; memory grows with it, results do not depend on it (without a policy).
        policy: changes the state between windows.

    Returns:
        "rows": [{"from", "to", "bits_per_byte", "low", "high" (None with one document), "documents", "targets"}];
        "edges", "documents", "least", "window", "method" (of the intervals), "bits_per_byte" of everything read; "each":
        {"document": numbers, "bits", "bytes": one list of every bucket for each document}, for :func:`difference`.

    Raises:
        ConfigError: for edges that do not ascend, or a model without a state.
        DataError: when no document is long enough.
    """
    ends = np.asarray(default_edges() if edges is None else list(edges), dtype=np.int64)
    if not len(ends) or ends[0] < 1 or (np.diff(ends) <= 0).any():
        raise ConfigError(f"the ends of position buckets must ascend from 1 on, not {ends.tolist()}")
    sizes = np.diff(np.asarray(tokens.offsets))  # targets: tokens and the end
    text = np.asarray(tokens.text_bytes)
    chosen = np.flatnonzero((sizes >= max(1, least)) & (text > 0))
    if not len(chosen):
        longest = int(sizes.max()) if len(sizes) else 0
        raise DataError(f"no held-out document has {least} tokens; the longest has {longest}")
    if max_bytes is not None:
        order = chosen[np.argsort(-sizes[chosen], kind="stable")]
        chosen = order[: max(1, int((np.cumsum(text[order]) <= max_bytes).sum()))]
    chosen = np.sort(chosen)
    nats, count = np.zeros((len(chosen), len(ends))), np.zeros((len(chosen), len(ends)), dtype=np.int64)
    reading = read_carried(model, tokens, chosen, length, batch_size, int(ends[-1]), policy, (), dtype, quiet)
    for window in reading:
        place = np.searchsorted(chosen, window.documents)
        bucket = np.searchsorted(ends, window.start + 1 + np.arange(window.nats.shape[1]))
        for number in np.unique(bucket[bucket < len(ends)]):
            inside = bucket == number
            nats[place, number] += window.nats[:, inside].sum(1)
            count[place, number] += window.scored[:, inside].sum(1)
    covered = count * (text[chosen] / sizes[chosen])[:, None]
    rows = [_row(nats[:, i], covered[:, i], count[:, i], int(ends[i - 1]) + 1 if i else 1, int(ends[i])) for i in range(len(ends))]
    return {
        "rows": [row for row in rows if row["documents"]],
        "edges": ends.tolist(),
        "documents": len(chosen),
        "least": least,
        "window": length,
        "bits_per_byte": float(nats.sum() / math.log(2) / covered.sum()),
        "method": f"BCa bootstrap over documents, 95 %, {_RESAMPLES} resamples",
        "each": {"document": chosen.tolist(), "bits": (nats / math.log(2)).tolist(), "bytes": covered.tolist()},
    }


def difference(first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, Any]]:
    """How many more bits per byte `first` takes than `second`, bucket by bucket, paired over documents.

    Args: two results of :func:`by_position` on the same documents and buckets.

    Returns:
        Rows as there: {"from", "to", "difference", "low", "high", "documents"}.

    Raises:
        ConfigError: when they were read on other documents or in other buckets.
    """
    a, b = first["each"], second["each"]
    if a["document"] != b["document"] or first["edges"] != second["edges"]:
        raise ConfigError("only readings of the same documents in the same position buckets can be compared")
    gap, size = np.asarray(a["bits"]) - np.asarray(b["bits"]), np.asarray(a["bytes"])
    rows, start = [], 1
    for number, end in enumerate(first["edges"]):
        there = size[:, number] > 0
        if there.any():
            interval = bootstrap(gap[there, number], size[there, number], samples=_RESAMPLES)
            low, high = (bound if math.isfinite(bound) else None for bound in (interval.low, interval.high))
            rows.append({"from": start, "to": end, "difference": interval.estimate, "low": low, "high": high, "documents": interval.n})
        start = end + 1
    return rows


def _row(nats: np.ndarray, covered: np.ndarray, count: np.ndarray, first: int, last: int) -> dict[str, Any]:
    there = count > 0
    row: dict[str, Any] = {"from": first, "to": last, "documents": int(there.sum()), "targets": int(count.sum())}
    if not there.any():
        return row
    interval = bootstrap(nats[there] / math.log(2), covered[there], samples=_RESAMPLES)
    low, high = (end if math.isfinite(end) else None for end in (interval.low, interval.high))
    return {**row, "bits_per_byte": interval.estimate, "low": low, "high": high}
