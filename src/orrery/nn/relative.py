"""Relative positions in buckets: a learned number per head, added to attention's scores (T5, arXiv 1910.10683, section 2.1).

    b_{ts} = w[bucket(s - t)];   distances below half of the buckets have one each, further ones share buckets that grow
    logarithmically up to a greatest distance, beyond which all are one. Looking both ways, half of the buckets lie ahead.

    d = |s - t|, E = exact buckets, M = greatest distance, N buckets on one side:
    bucket = d                                                if d < E
             E + floor( log(d / E) / log(M / E) (N - E) )     else, at most N - 1

T queries, S keys, H heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from orrery.nn.marks import no_decay


class RelativeBias(nn.Module):
    """The table w (buckets, H) of one model.

    Args:
        heads: H.
        buckets: N in all.
        most: M.
        both: keys may lie ahead of queries.
    """

    def __init__(self, heads: int, buckets: int, most: int, both: bool) -> None:
        super().__init__()
        self.buckets, self.most, self.both = buckets, most, both
        self.weight = nn.Parameter(torch.empty(buckets, heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with std 0.02: near no preference for any distance."""
        nn.init.normal_(self.weight, std=0.02)
        no_decay(self.weight)

    def bucket(self, ahead: Tensor) -> Tensor:
        """The bucket of keys that lie so many tokens ahead of their queries (negative: behind), int64 of any shape."""
        count = self.buckets // 2 if self.both else self.buckets
        side = (ahead > 0).long() * count if self.both else torch.zeros_like(ahead)
        distance = ahead.abs() if self.both else (-ahead).clamp(min=0)
        exact = count // 2
        ratio = torch.log(distance.float().clamp(min=1) / exact) / math.log(self.most / exact)
        far = (exact + (ratio * (count - exact)).long()).clamp(max=count - 1)
        return side + torch.where(distance < exact, distance, far)

    def forward(self, ahead: Tensor) -> Tensor:
        """Bias of a matrix of distances (1|B,T,S) -> (1|B,H,T,S)."""
        return self.weight[self.bucket(ahead)].permute(0, 3, 1, 2)

    def square(self, length: int) -> Tensor:
        """Bias of `length` queries on the same keys (1,H,T,T); every distance is looked up once."""
        steps = torch.arange(length, device=self.weight.device)
        values = self.weight[self.bucket(torch.arange(1 - length, length, device=self.weight.device))]
        return nn.functional.embedding(steps - steps[:, None] + length - 1, values).permute(2, 0, 1)[None]
