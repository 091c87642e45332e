"""Documents and padding on the time axis, worked out once per call and shared by every part of a model.

`segments` (B,T) int64 says which document each token belongs to: -1 is padding, other ids never decrease along a row,
and a change resets state and positions. The clock (B,2) that every state carries keeps [last segment id, next
position], so a document may cross a cut. Padding may stand anywhere in what a user passes; inside a part it is always
trailing, because rows are compacted first (a gather) and spread again afterwards.

B batch, T time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from orrery.core.errors import StateError


class Timeline(NamedTuple):
    """What parts need to know about time.

    starts: (B,T) bool, True where a new document begins at a token (the state is zeroed before it); None if nowhere.
    positions: (T,) or (B,T) int64, the position within the document.
    lengths: (B,) int64, valid tokens per row when rows have trailing padding; None when every token is valid.
    clock: (B,2) int64 after the call: [last segment id, next position].
    past: greatest position before the call over the batch (0 without a state): how much a cache may hold.
    even: every row stands at that same position.
    groups: of a row that is nothing but whole documents (:mod:`orrery.nn.packing`): (documents, their length) in order; else None.
    """

    starts: Tensor | None
    positions: Tensor
    lengths: Tensor | None
    clock: Tensor
    past: int
    even: bool = True
    groups: tuple[tuple[int, int], ...] | None = None

    def valid(self, length: int) -> Tensor | None:
        """(B,T) bool, False at trailing padding; None when all tokens are valid."""
        if self.lengths is None:
            return None
        return torch.arange(length, device=self.lengths.device) < self.lengths[:, None]


def fresh_clock(batch: int, device: torch.device | str | None = None) -> Tensor:
    """The clock of a state that has seen nothing: segment -1, position 0."""
    clock = torch.zeros(batch, 2, dtype=torch.int64, device=device)
    clock[:, 0] = -1
    return clock


def plan(
    segments: Tensor | None, clock: Tensor | None, batch: int, length: int, device: torch.device
) -> tuple[Timeline, Tensor | None]:
    """The timeline of a call, and the order that makes padding trailing (None when it already is).

    Args:
        segments: (B,T) int64 or None (all tokens continue one document).
        clock: (B,2) of the state that is continued, or None.
        batch, length: B and T of the input.
        device: where new tensors go.

    Raises:
        StateError: when segments have another shape, or decrease along a row or across the cut.
    """
    if batch == 0 or length == 0:
        raise StateError(f"an input of batch {batch} and length {length} is empty; pass at least one token")
    if segments is None:
        return _plain(clock, batch, length, device), None
    if segments.shape != (batch, length):
        raise StateError(f"segments have shape {tuple(segments.shape)}, the input has batch {batch} and length {length}")
    valid = segments >= 0
    lengths = valid.sum(1)
    order = None
    if bool((valid[:, 1:] & ~valid[:, :-1]).any()):
        order = torch.argsort(~valid, dim=1, stable=True)
        segments, valid = segments.gather(1, order), valid.gather(1, order)
    return _with_segments(segments, valid, lengths, clock), order


def _plain(clock: Tensor | None, batch: int, length: int, device: torch.device) -> Timeline:
    steps = torch.arange(length, device=device)
    if clock is None:
        after = torch.zeros(batch, 2, dtype=torch.int64, device=device)
        after[:, 1] = length
        return Timeline(None, steps, None, after, 0)
    positions = clock[:, 1:] + steps
    after = torch.stack([clock[:, 0].clamp(min=0), clock[:, 1] + length], 1)
    least, most = (int(bound) for bound in clock[:, 1].aminmax())
    return Timeline(None, positions, None, after, most, least == most)


def _with_segments(segments: Tensor, valid: Tensor, lengths: Tensor, clock: Tensor | None) -> Timeline:
    """Timeline of compacted segments. Position = valid tokens so far minus those before the last document start."""
    before = clock if clock is not None else fresh_clock(len(segments), segments.device)
    running = torch.cummax(segments, 1).values
    previous = torch.cat([before[:, :1], running[:, :-1]], 1)
    if bool((valid & (segments < previous)).any()):
        row = int((valid & (segments < previous)).any(1).nonzero()[0])
        raise StateError(f"segments decrease along row {row}; document ids may only grow (padding is -1)")
    starts = valid & (segments != previous)
    counted = valid.cumsum(1) - 1
    origin = torch.where(starts, counted, -before[:, 1:])
    positions = (counted - torch.cummax(origin, 1).values).clamp(min=0)
    if clock is None:
        starts = starts & (previous >= 0)  # the first document starts from a zero state anyway
    last = (lengths - 1).clamp(min=0)[:, None]
    seen = lengths > 0
    segment = torch.where(seen, segments.gather(1, last)[:, 0], before[:, 0])
    position = torch.where(seen, positions.gather(1, last)[:, 0] + 1, before[:, 1])
    return Timeline(
        starts=starts if bool(starts.any()) else None,
        positions=positions,
        lengths=lengths if bool((lengths < segments.shape[1]).any()) else None,
        clock=torch.stack([segment, position], 1),
        past=int(before[:, 1].max()),
        even=bool((before[:, 1] == before[0, 1]).all()),
    )


def gather_time(x: Tensor, order: Tensor) -> Tensor:
    """Rows of x (B,T,...) in a new time order (B,T)."""
    return x[torch.arange(len(x), device=x.device)[:, None], order]


def spread_time(x: Tensor, order: Tensor) -> Tensor:
    """The inverse of :func:`gather_time`."""
    return gather_time(x, torch.argsort(order, dim=1))
