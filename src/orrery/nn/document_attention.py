"""Softmax attention inside documents that are laid end to end, one dense block for all documents of one length.

    y_t = sum_{s in the document of t} softmax_s( q_t . k_s / sqrt(K) + b_{ts} ) v_s;   with a window W: |t - s| <= W only

No mask over the packed row is ever made, and padding costs nothing. Under a window, queries go in chunks that meet only the
keys they can see, so that cost and memory grow with T W.

B documents, T time, H query heads, G key-value heads, K head dimension, N tokens of a packed row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from orrery.nn.kept import kept
from orrery.ops.backend import choose
from orrery.ops.fused.short_attention import short_attention as compiled_attention

CHUNK = 256  # least queries that go together under a window


def exporting() -> bool:
    """Whether a graph is being exported, which must serve every length."""
    return bool(getattr(torch.compiler, "is_exporting", lambda: False)())


def attend_documents(
    heads: Tensor, sizes: tuple[int, int, int], groups: tuple[tuple[int, int], ...] | None, bias: Tensor | None = None,
    window: int | None = None, dropout: float = 0.0,
) -> Tensor:
    """Attention of every token to all of its document.

    Args:
        heads: (B,T,H+2G,K) queries, keys and values; a packed row (1,N,H+2G,K) where there are `groups`.
        sizes: (H, G, G).
        groups: (documents, their length) of a packed row, or None: every row is one document.
        bias: (1|B,H|1,T,T) added to the scores; for a packed row that of its longest document, of which a shorter one takes the
            upper left corner, as relative positions have it.
        window: W, or None.
        dropout: share of the attention weights that is dropped.

    Returns:
        (B,T,H,K).
    """
    if groups is None:
        return _attend(heads, sizes, bias, window, dropout)
    counts = [count * length for count, length in groups]
    blocks = heads[0].split(counts) if len(groups) > 1 else (heads[0],)
    found = []
    for block, (count, length) in zip(blocks, groups, strict=True):
        own = None if bias is None else bias[..., :length, :length]
        y = _attend(block.unflatten(0, (count, length)), sizes, own, window, dropout)
        found.append(y.flatten(0, 1))
    return (torch.cat(found) if len(found) > 1 else found[0])[None]


def _attend(heads: Tensor, sizes: tuple[int, int, int], bias: Tensor | None, window: int | None, dropout: float) -> Tensor:
    length = heads.shape[1]
    q, k, v = heads.transpose(1, 2).split(sizes, 1)
    grouped = sizes[0] != sizes[1]
    if window is not None and exporting():  # for every length at once: a mask over all pairs
        steps = torch.arange(length, device=q.device)
        own = torch.zeros(1, 1, 1, 1, dtype=q.dtype) if bias is None else bias
        bias, window = own.masked_fill(((steps[:, None] - steps).abs() > window)[None, None], -math.inf), None
    if window is None or length <= window + 1:
        return F.scaled_dot_product_attention(q, k, v, bias, dropout, enable_gqa=grouped).transpose(1, 2)
    found = []
    for begin, stop, low, high in _chunks(length, window):
        mask = band(begin, stop, low, high, window, q.device)
        seen = mask if bias is None else bias[..., begin:stop, low:high].masked_fill(~mask, -math.inf)
        found.append(F.scaled_dot_product_attention(
            q[:, :, begin:stop], k[:, :, low:high], v[:, :, low:high], seen, dropout, enable_gqa=grouped
        ))  # fmt: skip
    return (torch.cat(found, 2) if len(found) > 1 else found[0]).transpose(1, 2)


def short_attention(
    heads: Tensor, sizes: tuple[int, int, int], y: Tensor, bias: Tensor | None, window: int | None, turns: Tensor | None
) -> Callable[[], Any]:
    """Attention of one text as a step, by the rule for backends.

    Args:
        heads: (T,H+2G,K), which may be overwritten. sizes: (H, G, G). y: (T,H K), a buffer of a short text, written.
        bias: (1,H,T,T). window: W, or None. turns: (T,R/2) complex, by which queries and keys are rotated.
    """
    if choose(None, heads, op="short-attention") == "numba":
        return compiled_attention(heads, sizes[1], y, None if bias is None else bias[0], turns, window)
    turned = None if turns is None else heads[:, : sizes[0] + sizes[1], : 2 * turns.shape[1]].unflatten(-1, (-1, 2))

    def attend() -> None:
        if turned is not None and turns is not None:
            torch.view_as_complex(turned).mul_(turns[:, None])
        y.copy_(_attend(heads[None], sizes, bias, window, 0.0)[0].flatten(1))

    return attend


def _chunks(length: int, window: int) -> list[tuple[int, int, int, int]]:
    """Queries (begin, stop) that go together, and the keys (low, high) that they can see."""
    size = max(CHUNK, 2 * window)
    return [
        (begin, min(begin + size, length), max(0, begin - window), min(length, begin + size + window)) for begin in range(0, length, size)
    ]


def pairs_seen(length: int, window: int | None) -> int:
    """Scores that are computed for a document of `length` tokens."""
    if window is None or length <= window + 1:
        return length * length
    return sum((stop - begin) * (high - low) for begin, stop, low, high in _chunks(length, window))


@kept(256)
def band(begin: int, stop: int, low: int, high: int, window: int, device: torch.device) -> Tensor:
    """Which keys low..high-1 the queries begin..stop-1 see: (1,1,stop-begin,high-low) bool."""
    with torch.inference_mode(False):
        distance = torch.arange(begin, stop, device=device)[:, None] - torch.arange(low, high, device=device)
        return (distance.abs() <= window)[None, None]
