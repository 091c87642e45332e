"""A linear-chain conditional random field over tags (Lafferty et al. 2001): sums by the forward algorithm, the best path by Viterbi.

    score(y) = a_{y_1} + sum_t e_{t,y_t} + sum_{t>1} T_{y_{t-1},y_t} + b_{y_L};   p(y) = exp(score(y)) / sum_{y'} exp(score(y'))

Sequences come padded behind, with their lengths; what stands at padding is not read.

N sequences, L steps, C tags.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

FORBIDDEN = -1e4  # a score, not an infinity: a sequence that breaks the scheme keeps a finite loss


class CRF(nn.Module):
    """Transitions T (from, to), beginnings a and endings b of C tags.

    Args:
        tags: C.
        allowed: (C+1,C+1) bool, which tag may follow which; row C is the beginning, column C the end. None: all.
    """

    allowed: Tensor | None

    def __init__(self, tags: int, allowed: Tensor | None = None) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.empty(tags, tags))
        self.begin = nn.Parameter(torch.empty(tags))
        self.end = nn.Parameter(torch.empty(tags))
        self.register_buffer("allowed", allowed, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-0.1."""
        for parameter in (self.transitions, self.begin, self.end):
            nn.init.uniform_(parameter, -0.1, 0.1)

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Transitions, beginnings and endings, with what the scheme forbids put out of reach."""
        if self.allowed is None:
            return self.transitions, self.begin, self.end
        no = ~self.allowed
        return (
            self.transitions.masked_fill(no[:-1, :-1], FORBIDDEN),
            self.begin.masked_fill(no[-1, :-1], FORBIDDEN),
            self.end.masked_fill(no[:-1, -1], FORBIDDEN),
        )

    def score(self, emissions: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """Unnormalised log-probability (N,) of tag sequences (N,L) under emissions (N,L,C)."""
        transitions, begin, end = self._tables()
        steps = torch.arange(emissions.shape[1], device=emissions.device)
        valid = steps < lengths[:, None]
        tags = tags.masked_fill(~valid, 0)
        own = emissions.gather(2, tags[..., None])[..., 0].masked_fill(~valid, 0.0).sum(1)
        moves = transitions[tags[:, :-1], tags[:, 1:]].masked_fill(~valid[:, 1:], 0.0).sum(1)
        last = tags.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0]
        return own + moves + begin[tags[:, 0]] + end[last]

    def log_partition(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """Log of the sum over all tag sequences (N,), by the forward algorithm."""
        transitions, begin, end = self._tables()
        alpha = begin + emissions[:, 0]
        for step in range(1, emissions.shape[1]):
            after = torch.logsumexp(alpha[:, :, None] + transitions, 1) + emissions[:, step]
            alpha = torch.where((step < lengths)[:, None], after, alpha)
        return torch.logsumexp(alpha + end, 1)

    def nats(self, emissions: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """-log p(tags) of every sequence (N,)."""
        return self.log_partition(emissions, lengths) - self.score(emissions, tags, lengths)

    @torch.no_grad()
    def best(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """The most probable tags (N,L) int64 (Viterbi), 0 at padding; of equals the lower tag."""
        transitions, begin, end = self._tables()
        length = emissions.shape[1]
        score, back = begin + emissions[:, 0], []
        for step in range(1, length):
            value, origin = (score[:, :, None] + transitions).max(1)
            on = (step < lengths)[:, None]
            score = torch.where(on, value + emissions[:, step], score)
            back.append(torch.where(on, origin, torch.arange(score.shape[1], device=score.device)))
        tag = (score + end).argmax(1)
        path = [tag]
        for origin in reversed(back):
            tag = origin.gather(1, tag[:, None])[:, 0]
            path.append(tag)
        tags = torch.stack(path[::-1], 1)
        return tags.masked_fill(torch.arange(length, device=tags.device) >= lengths[:, None], 0)


def scheme_allows(names: tuple[str, ...]) -> Tensor:
    """Which tag may follow which in the scheme BIO: I-X only behind B-X or I-X. (C+1,C+1) bool as :class:`CRF` takes it."""
    kinds = [name.partition("-") for name in names]
    allowed = torch.ones(len(names) + 1, len(names) + 1, dtype=torch.bool)
    for to, (mark, _, kind) in enumerate(kinds):
        if mark != "I":
            continue
        for origin, (before, _, other) in enumerate(kinds):
            allowed[origin, to] = before in ("B", "I") and other == kind
        allowed[-1, to] = False
    return allowed
