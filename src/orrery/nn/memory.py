"""The past that attention looks back at: which tokens a row keeps, how far they lie, and what it keeps afterwards.

A memory holds, per row, the last min(position, M) tokens of the current document, oldest first, from slot 0 on (M None:
all of them). A call puts its T new tokens behind `old` slots, so that there are old + T columns; :func:`distances` says of
every query how many tokens back each column lies, and :func:`keep` makes the next memory. Every token sees its M
predecessors, however the sequence was cut: it is a window that slides, not a segment that is cached.

B batch, T time, S columns, M memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from orrery.nn.timeline import Timeline


def columns(time: Timeline, memory: int | None) -> int:
    """Slots of the memory that a call has to read."""
    return time.past if memory is None else min(time.past, memory)


def distances(
    time: Timeline,
    clock: Tensor | None,
    length: int,
    memory: int | None,
    queries: slice = slice(None),
    keys: slice = slice(None),
) -> Tensor:
    """Tokens from key to query (1|B,T,old+T) int64, 0 for a token itself; -1 where the query does not see the key.

    Args:
        time: of the call.
        clock: of the state that is continued, or None.
        length: T.
        memory: M; None: all of the document.
        queries, keys: the part of the matrix that is wanted; a long sequence is not asked for all of it at once.
    """
    old, device = columns(time, memory), time.clock.device
    steps = torch.arange(length, device=device)[queries]
    slots = torch.arange(old + length, device=device)[keys]
    reach = old + length if memory is None else memory
    if time.starts is None and time.even:
        found = (steps[:, None] + old - slots)[None]
        return torch.where((found >= 0) & (found <= reach), found, -1)
    held = _held(time, clock, memory)[:, None]
    place = torch.where(slots < old, slots, slots - old + held)  # index along the row's own stream; negative: empty
    place = torch.where((slots < old) & (slots >= held), -1 - reach - length, place)
    found = (steps + held)[:, :, None] - place[:, None, :]
    seen = (found >= 0) & (found <= reach)
    if time.starts is not None:
        document = time.starts.cumsum(1)
        of_key = torch.cat([document.new_zeros(len(document), old), document], 1)[:, keys]
        seen = seen & (document[:, queries, None] == of_key[:, None, :])
    return torch.where(seen, found, -1)


def join(past: Tensor | None, new: Tensor, time: Timeline, memory: int | None) -> Tensor:
    """Columns of a call: the slots of `past` (B,M',...) that count, then `new` (B,T,...)."""
    old = columns(time, memory)
    return new if past is None or old == 0 else torch.cat([past[:, :old].to(new.dtype), new], 1)


def keep(parts: tuple[Tensor, ...], time: Timeline, clock: Tensor | None, memory: int | None) -> tuple[Tensor, ...]:
    """The next memory, from columns (B,old+T,...) of a call: each row's last min(position, M) valid ones, from slot 0 on."""
    total, old = parts[0].shape[1], columns(time, memory)
    if time.starts is None and time.lengths is None and time.even:
        kept = total if memory is None else min(total, memory)
        return parts if kept == total else tuple(part[:, total - kept :].clone() for part in parts)
    held = _held(time, clock, memory)
    new = torch.full_like(held, total - old) if time.lengths is None else time.lengths
    kept_each = time.clock[:, 1] if memory is None else time.clock[:, 1].clamp(max=memory)
    slots = torch.arange(int(kept_each.max()), device=held.device)
    stream = (held + new - kept_each)[:, None] + slots
    index = torch.where(stream < held[:, None], stream, stream - held[:, None] + old).clamp(max=total - 1)
    rows, empty = torch.arange(len(held), device=held.device)[:, None], slots >= kept_each[:, None]
    return tuple(part[rows, index].masked_fill(empty.view(*empty.shape, *(1,) * (part.dim() - 2)), 0.0) for part in parts)


def _held(time: Timeline, clock: Tensor | None, memory: int | None) -> Tensor:
    """(B,) tokens that each row's memory holds before the call."""
    if clock is None:
        return time.clock.new_zeros(len(time.clock))
    return clock[:, 1] if memory is None else clock[:, 1].clamp(max=memory)
