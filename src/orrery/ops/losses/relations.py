"""Relations between the tokens of a document by one of their projections, and how far two models' relations are apart.

Equation (2012.15828, eq. 6 to 8): for relation head a with vectors A_t of width d,
``R_ts = softmax_s(A_t . A_s / sqrt(d))`` over the tokens s of the document of t (s <= t of causal models), and the divergence is
``mean_{a,t} KL(R_t of the teacher || R_t of the student)``.

Both models' projections are cut into equally many heads, whatever heads their attention has, so widths may differ.

The attention itself, of queries Q_t and keys K_t as a mixer has them (rotated, divided by sqrt(d)):
``scores  A_ts = Q_t . K_s + b_ts``, and over heads, tokens t and the tokens s that they see

    scores         mean (A_S - A_T)^2                   (TinyBERT, 1909.10351, eq. 7: before the softmax)
    probabilities  mean_{h,t} KL(P_T || P_S), P = softmax_s A    (MobileBERT, 2004.02984, sec. 3.4; MiniLM, 2002.10957, eq. 2)
    mean           mean_t KL(mean_h P_T || mean_h P_S)  (for models with different numbers of heads; no paper's)

Method: a few rows of the batch at a time, each made again in the backward pass, so that (B,H,T,T) is never held.

B batch, T time, H heads, K head dimension, L longest document, E, F widths of the two models' projections.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MATRICES = ("scores", "probabilities", "mean")
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


class Scored(NamedTuple):
    """What a layer's attention is made of. q, k: (B,T,H,K), rotated, q divided by sqrt(K). bias: (H,L,L) by places in a document, or
    None. window: the greatest distance that is seen, or None."""

    q: Tensor
    k: Tensor
    bias: Tensor | None = None
    window: int | None = None

    def at(self, rows: slice) -> Scored:
        """Some rows of the batch."""
        return self._replace(q=self.q[rows], k=self.k[rows])


def attention_distance(own: Scored, theirs: Scored, form: str, segments: Tensor, asked: Tensor, causal: bool = False) -> Tensor:
    """How far the attention of two layers is apart, mean over what is compared.

    Args:
        own: of the student; theirs: of the teacher, without gradient; of one window, and unless `form` is "mean" of as many heads.
        form: one of MATRICES.
        segments: (B,T) document ids, -1 padding.
        asked: (B,T) bool, which tokens t count; none of them padding.
        causal: tokens see those before them only.
    """
    batch, length = segments.shape
    place = torch.arange(length, device=segments.device)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    places = place - torch.where(begins, place, 0).cummax(1).values  # in its document
    heads = own.q.shape[2]
    size = max(1, HELD // max(1, heads * length * length))
    sums, counts = [], []
    for first in range(0, batch, size):
        rows = slice(first, first + size)
        seen = (segments[rows, :, None] == segments[rows, None, :]) & asked[rows, :, None]
        distance = place[:, None] - place
        seen = seen & (distance >= 0) if causal else seen
        seen = seen if own.window is None else seen & (distance.abs() <= own.window)
        held = (own.at(rows), theirs.at(rows), form, places[rows], seen)
        sums.append(checkpoint(_distance, *held, use_reentrant=False) if torch.is_grad_enabled() else _distance(*held))
        counts.append(seen.sum() if form == "scores" else seen.any(-1).sum())
    share = 1 if form == "mean" else heads
    return torch.stack(sums).sum() / (share * torch.stack(counts).sum().clamp(min=1))


def _distance(own: Scored, theirs: Scored, form: str, places: Tensor, seen: Tensor) -> Tensor:
    """The sum over rows, tokens and heads."""
    apart = ~seen[:, None]
    student, teacher = (_scores(each, places) for each in (own, theirs))
    if form == "scores":
        return (student - teacher.to(student.dtype)).masked_fill(apart, 0.0).square().sum()
    apart = apart & seen.any(-1)[:, None, :, None]  # a token that is not asked sees everything, so that no row is empty
    student, teacher = (each.masked_fill(apart, -math.inf).log_softmax(-1).masked_fill(~seen[:, None], 0.0) for each in (student, teacher))
    if form == "mean":
        student, teacher = (each.logsumexp(1) - math.log(each.shape[1]) for each in (student, teacher))
    return (teacher.exp() * (teacher - student.to(teacher.dtype))).sum()


def _scores(scored: Scored, places: Tensor) -> Tensor:
    """A (B,H,T,T)."""
    scores = torch.einsum("bthk,bshk->bhts", scored.q, scored.k)
    if scored.bias is None:
        return scores
    places = places.clamp(max=scored.bias.shape[-1] - 1)  # of padding, which may be longer than any document
    return scores + scored.bias[:, places[:, :, None], places[:, None, :]].transpose(0, 1)
