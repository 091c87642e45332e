"""One vector for every document of a batch.

B batch, T time, D width, N documents: B where no row holds several, a row without tokens counting as one.
"""

from __future__ import annotations

import torch
from torch import Tensor

POOLS = ("first", "last", "mean", "max")


def documents(shape: torch.Size | tuple[int, ...], segments: Tensor | None, device: torch.device) -> tuple[Tensor, int]:
    """The number (B,T) of each token's document, counted over the batch (-1 at padding), and N."""
    batch, length = shape
    if segments is None:
        return torch.arange(batch, device=device)[:, None].expand(batch, length), batch
    valid = segments >= 0
    running = segments.cummax(1).values  # padding inside a document does not end it
    new = torch.zeros_like(valid)
    new[:, 1:] = (running[:, 1:] != running[:, :-1]) & (running[:, :-1] >= 0)
    inside = new.cumsum(1)
    counts = inside[:, -1] + 1
    ids = inside + (counts.cumsum(0) - counts)[:, None]
    return ids.masked_fill(~valid, -1), int(counts.sum())


def pool(hidden: Tensor, segments: Tensor | None, how: str) -> Tensor:
    """Hidden (B,T,D) -> (N,D): the first or last vector of each document, their mean, or their greatest entries."""
    if segments is None:
        if how in ("first", "last"):
            return hidden[:, 0 if how == "first" else -1]
        return hidden.mean(1) if how == "mean" else hidden.amax(1)
    ids, count = documents(hidden.shape[:2], segments, hidden.device)
    valid = ids >= 0
    places, number = valid.flatten().nonzero()[:, 0], ids[valid]
    rows = hidden.flatten(0, 1)
    if how in ("first", "last"):
        sizes = torch.bincount(number, minlength=count)
        ends = sizes.cumsum(0)
        at = (ends - sizes if how == "first" else ends - 1).clamp(0, len(places) - 1)
        found = rows[places[at]]
        return found if bool(sizes.all()) else found.masked_fill((sizes == 0)[:, None], 0.0)
    values = rows[places]
    if how == "max":
        start = values.new_full((count, hidden.shape[-1]), -torch.inf)
        found = start.scatter_reduce(0, number[:, None].expand_as(values), values, "amax")
        return found.masked_fill(found == -torch.inf, 0.0)
    sizes = torch.bincount(number, minlength=count).clamp(min=1)
    return hidden.new_zeros(count, hidden.shape[-1]).index_add(0, number, values) / sizes[:, None].to(hidden.dtype)
