"""Whole documents laid end to end in one row, shortest first: what an encoder computes in the place of a padded batch.

A batch of B rows with padding, or with several documents in a row, becomes one row of N tokens, N being the valid ones.
Everything that works token by token then does no work for padding; whatever mixes over time does so in `groups`, runs of
documents of one length, each a dense block without a mask. It is done once per call, by the frame; a part that says
`packs` may meet such a row (`ctx.timeline.groups`).

    rows  [a a a . .]  [b b c . .]  [d d d . .]   ->   [c | b b | a a a | d d d],  groups ((1,1), (1,2), (2,3))

B batch, T time, N valid tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from orrery.core.errors import StateError
from orrery.nn.timeline import Timeline


class Packing(NamedTuple):
    """Where the tokens of a packed row come from.

    source: (N,) int64, place of each packed token in the flattened batch. batch, length: B and T of the batch.
    groups: (documents, their length) in order.
    """

    source: Tensor
    batch: int
    length: int
    groups: tuple[tuple[int, int], ...]

    def gather(self, x: Tensor) -> Tensor:
        """Rows x (B,T,...) -> the packed row (1,N,...)."""
        return x.flatten(0, 1).index_select(0, self.source)[None]

    def spread(self, x: Tensor) -> Tensor:
        """The packed row x (1,N,...) -> rows (B,T,...), zero at padding."""
        rows = x.new_zeros(self.batch * self.length, *x.shape[2:])
        return rows.index_copy(0, self.source, x[0]).unflatten(0, (self.batch, self.length))


def pack(segments: Tensor) -> tuple[Packing, Timeline]:
    """How to pack rows of documents, and the timeline of the packed row.

    Args:
        segments: (B,T) int64, document ids that never decrease along a row, -1 at padding.

    Raises:
        StateError: when ids decrease along a row, or every token is padding.
    """
    batch, length = segments.shape
    places = (segments >= 0).flatten().nonzero()[:, 0]
    if not len(places):
        raise StateError("every token of the batch is padding; pass at least one token")
    ids, rows = segments.flatten()[places], places // length
    same_row = rows[1:] == rows[:-1]
    if bool((same_row & (ids[1:] < ids[:-1])).any()):
        row = int(rows[1:][same_row & (ids[1:] < ids[:-1])][0])
        raise StateError(f"segments decrease along row {row}; document ids may only grow (padding is -1)")
    begins = torch.ones_like(places, dtype=torch.bool)
    begins[1:] = ~same_row | (ids[1:] != ids[:-1])
    first = begins.nonzero()[:, 0]
    sizes, order = torch.diff(first, append=first.new_tensor([len(places)])).sort(stable=True)
    ends = sizes.cumsum(0)
    positions = torch.arange(len(places), device=places.device) - torch.repeat_interleave(ends - sizes, sizes)
    source = torch.repeat_interleave(first[order], sizes) + positions
    lengths, counts = sizes.unique_consecutive(return_counts=True)
    groups = tuple(zip(counts.tolist(), lengths.tolist(), strict=True))
    return Packing(places[source], batch, length, groups), _timeline(positions, groups)


def _timeline(positions: Tensor, groups: tuple[tuple[int, int], ...]) -> Timeline:
    documents, last = sum(count for count, _ in groups), groups[-1][1]
    starts = None
    if documents > 1:
        starts = positions == 0
        starts[0] = False  # the first document starts from nothing anyway
        starts = starts[None]
    clock = torch.tensor([[documents - 1, last]], device=positions.device)
    return Timeline(starts, positions[None], None, clock, 0, True, groups)


def pack_timeline(time: Timeline, batch: int, length: int) -> tuple[Packing, Timeline]:
    """The same for rows with trailing padding whose timeline is known."""
    device = time.clock.device
    documents = torch.zeros(batch, length, dtype=torch.int64, device=device) if time.starts is None else time.starts.cumsum(1)
    valid = time.valid(length)
    return pack(documents if valid is None else documents.masked_fill(~valid, -1))
