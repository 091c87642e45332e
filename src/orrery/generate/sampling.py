"""From scores to a token: repetition penalty, temperature, top-k, min-p, top-p, then one draw.

    repetition penalty r (CTRL, arXiv 1909.05858):  s <- s / r if s > 0 else s r, for tokens already seen
    temperature t:                                  s <- s / t; t = 0 takes the best token
    top-k:                                          the k best stay
    min-p (arXiv 2407.01082):                       p_i >= min_p * max p stays
    top-p (arXiv 1904.09751):                       the fewest tokens whose probabilities sum to at least p stay

Each filter sees the distribution that the one before left. At least one token always stays.

B batch, V vocabulary, S tokens seen so far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from orrery.core.config import Config, require

_PLAIN = (torch.float32, torch.float64)  # what numpy knows, too


@dataclass(frozen=True, kw_only=True)
class Sampling(Config):
    """How to choose the next token. The default draws from the model's own distribution; temperature 0 is greedy."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        require(self.temperature >= 0 and math.isfinite(self.temperature), f"temperature must be 0 or more, not {self.temperature}")
        require(self.top_k is None or self.top_k >= 1, f"top_k must be 1 or more, not {self.top_k}")
        require(self.top_p is None or 0 < self.top_p <= 1, f"top_p must lie in (0, 1], not {self.top_p}")
        require(self.min_p is None or 0 <= self.min_p <= 1, f"min_p must lie in [0, 1], not {self.min_p}")
        require(self.repetition_penalty > 0, f"repetition_penalty must be positive, not {self.repetition_penalty}")

    @property
    def greedy(self) -> bool:
        """Whether the next token is the first best of the model's own scores."""
        return self.temperature == 0 and self.repetition_penalty == 1.0

    def choose(self, scores: Tensor, seen: Tensor, valid: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """The next token of every row.

        Args:
            scores: (B,V) logits.
            seen: (B,S) tokens so far; valid: (B,S) bool, False at padding, or None.
            generator: drawn from once per row and call, whatever the settings, on the CPU.

        Returns:
            (B,) int64.
        """
        if self.repetition_penalty != 1.0:
            scores = self._penalise(scores, seen, valid)
        if self.temperature == 0:
            return _best(scores)
        probabilities = self.filter(scores.double() / self.temperature)
        draw = torch.rand(len(scores), 1, generator=generator, dtype=torch.float64).to(scores.device)
        cumulative = probabilities.cumsum(-1)
        return torch.searchsorted(cumulative, draw * cumulative[:, -1:]).squeeze(-1).clamp(max=scores.shape[-1] - 1)

    def filter(self, scores: Tensor) -> Tensor:
        """Probabilities (B,V) after the filters, summing to 1."""
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            least = scores.topk(self.top_k, -1).values[..., -1:]
            scores = scores.masked_fill(scores < least, -math.inf)
        if self.min_p:
            best = scores.max(-1, keepdim=True).values
            scores = scores.masked_fill(scores < best + math.log(self.min_p), -math.inf)
        if self.top_p is not None and self.top_p < 1:
            ordered, index = scores.softmax(-1).sort(-1, descending=True)
            before = ordered.cumsum(-1) - ordered
            drop = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, index, before >= self.top_p)
            scores = scores.masked_fill(drop, -math.inf)
        return scores.softmax(-1)

    def _penalise(self, scores: Tensor, seen: Tensor, valid: Tensor | None) -> Tensor:
        present = torch.zeros_like(scores, dtype=torch.bool)
        rows = torch.arange(len(seen), device=seen.device)[:, None].expand_as(seen)
        if valid is not None:
            rows, seen = rows[valid], seen[valid]
        present[rows, seen] = True
        penalised = torch.where(scores > 0, scores / self.repetition_penalty, scores * self.repetition_penalty)
        return torch.where(present, penalised, scores)


def holds_nan(scores: Tensor) -> bool:
    """Whether a score is not a number: a maximum passes NaN on. On a CPU numpy finds it in 2 microseconds of 8192, torch in 15."""
    most = scores.detach().numpy().max() if scores.device.type == "cpu" and scores.dtype in _PLAIN else float(scores.max())
    return math.isnan(most)


def _best(scores: Tensor) -> Tensor:
    """The first best of every row. On a CPU numpy finds it in 2 microseconds of 8192, torch in 13."""
    if scores.device.type == "cpu" and scores.dtype in _PLAIN:
        return torch.from_numpy(scores.detach().numpy().argmax(-1))
    return scores.argmax(-1)
