"""Relations between the tokens of a document by one of their projections, and how far two models' relations are apart.

Equation (2012.15828, eq. 6 to 8): for relation head a with vectors A_t of width d,
``R_ts = softmax_s(A_t . A_s / sqrt(d))`` over the tokens s of the document of t (s <= t of causal models), and the divergence is
``mean_{a,t} KL(R_t of the teacher || R_t of the student)``.

Both models' projections are cut into equally many heads, whatever heads their attention has, so widths may differ.

Method: a few rows of the batch at a time, each made again in the backward pass, so that (B,H,T,T) is never held.

B batch, T time, H relation heads, E, F widths of the two models' projections.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

HELD = 1 << 21  # numbers of one relation matrix that are held at a time, about


def relation_divergence(
    own: Tensor, theirs: Tensor, heads: int, segments: Tensor, asked: Tensor, causal: bool = False
) -> Tensor:
    """Mean divergence over heads and the tokens asked for.

    Args:
        own: (B,T,E) of the student; theirs: (B,T,F) of the teacher, without gradient.
        heads: H, which divides E and F.
        segments: (B,T) document ids, -1 padding.
        asked: (B,T) bool, which tokens t count; none of them padding.
        causal: tokens are related to those before them only.
    """
    batch, length = segments.shape
    size = max(1, HELD // max(1, heads * length * length))
    parts = []
    for first in range(0, batch, size):
        rows = slice(first, first + size)
        held = (own[rows], theirs[rows], heads, segments[rows], asked[rows], causal)
        parts.append(checkpoint(_sum, *held, use_reentrant=False) if torch.is_grad_enabled() else _sum(*held))
    return torch.stack(parts).sum() / (heads * asked.sum().clamp(min=1))


def _sum(own: Tensor, theirs: Tensor, heads: int, segments: Tensor, asked: Tensor, causal: bool) -> Tensor:
    apart = (segments[:, :, None] != segments[:, None, :])[:, None]
    if causal:
        apart = apart | torch.ones_like(apart[0, 0]).triu(1)
    student, teacher = (_relation(each, heads, apart) for each in (own, theirs))
    each = (teacher.exp() * (teacher - student.to(teacher.dtype)).masked_fill(apart, 0.0)).sum(-1)
    return each.masked_fill(~asked[:, None], 0.0).sum()


def _relation(x: Tensor, heads: int, apart: Tensor) -> Tensor:
    """log R (B,H,T,T)."""
    a = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = a @ a.transpose(-1, -2) / math.sqrt(a.shape[-1])
    return scores.masked_fill(apart, -math.inf).log_softmax(-1)
